/* Fused kernels of the training step on the CPU, for float32 and bfloat16 activations; see
 * kernels.h. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

#define CHUNKS 32
#define MOST 16384 /* widest row */
#define LANES 64   /* positions of one tile */
#define TILES(rows) (((rows) + LANES - 1) / LANES)
#define PANEL 32 /* widths of what multiplies are multiples of it */
#define LOG2E 1.44269504f

static inline int64_t tile_rows(int64_t start, int64_t length) {
    return length - start < LANES ? length - start : LANES;
}

#ifdef _WIN32
#include <malloc.h>
#define aligned_alloc(alignment, bytes) _aligned_malloc(bytes, alignment)
#define free _aligned_free /* nothing is freed here that room has not given */
#endif
static void *room(int64_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* The loop's iterations touch different memory: vectorise without asking. */
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

static inline float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

/* e^x with relative error under 1e-6 between -87 and 88, clamped outside: 2^k times a polynomial on
 * [-1/2, 1/2]. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float k = floorf(x * 1.44269504f + 0.5f), t = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * t + 1.3981999507e-3f;
    p = p * t + 8.3334519073e-3f;
    p = p * t + 4.1665795894e-2f;
    p = p * t + 1.6666665459e-1f;
    p = p * t + 5.0000001201e-1f;
    p = p * t * t + t + 1;
    return p * from_bits((uint32_t)((int32_t)k + 127) << 23);
}

static inline float logistic(float x) { return 1 / (1 + exponential(-x)); }

/* c tanh(z / c) */
static inline float capped(float z, float c) { return c - 2 * c / (1 + exponential(2 * z / c)); }

/* bfloat16 by its bits, rounded to nearest even. */
static inline float widen(uint16_t x) { return from_bits((uint32_t)x << 16); }

static inline uint16_t narrow(float x) {
    uint32_t bits = to_bits(x);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Whether position r has one before it in its sequence and document. */
static inline int follows(const uint8_t *boundary, int64_t r, int64_t length) {
    return r % length && !(boundary && boundary[r]);
}

/* out = the sum of `parts` rows of d, in their order. */
void fold_f32(const float *rows, float *out, int64_t parts, int64_t d) {
    memset(out, 0, d * sizeof(float));
    for (int64_t p = 0; p < parts; p++)
        INDEPENDENT for (int64_t j = 0; j < d; j++) out[j] += rows[p * d + j];
}

/* void name(type argument, ...), which runs the block for each of CHUNKS parts, `unit`. */
#define EACH_CHUNK(name, ...) EACH_UNIT(, name, CHUNKS, __VA_ARGS__)

EACH_UNIT(static, clear, CHUNKS, (float *, x), (int64_t, n)) {
    memset(x + n * unit / CHUNKS, 0, (n * (unit + 1) / CHUNKS - n * unit / CHUNKS) * sizeof(float));
}

#define REAL float
#define LOAD(x) (x)
#define STORE(x) (x)
#define NAME(f) f##_f32
#include "kernels.h"
#undef REAL
#undef LOAD
#undef STORE
#undef NAME

typedef uint32_t
    __attribute__((may_alias, aligned(2))) pair; /* two bfloat16 that lie side by side */

#include "tiles.h"
#include "products.h"
#include "heads.h"
#define REAL uint16_t
#define LOAD(x) widen(x)
#define STORE(x) narrow(x)
#define NAME(f) f##_bf16
#include "kernels.h"
#undef REAL
#undef LOAD
#undef STORE
#undef NAME

#include "attention.h"
#include "head.h"
#include "channel.h"
#include "maps.h"
#include "token_shift.h"
#include "optimizer.h"

#include "floats.h"
#include "floats_attention.h"
#include "floats_head.h"
#include "floats_maps.h"
#include "floats_mixers.h"
#include "floats_newton.h"
