/* Products with quantized matrices in float32 arithmetic, and the small vector functions around them. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef int8_t b16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t u16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef int16_t s16 __attribute__((vector_size(32), aligned(2), may_alias));
#define INLINE static inline __attribute__((always_inline))

float *nb_floats(int64_t count) {
    void *found = NULL;
    size_t bytes = ((size_t)count * sizeof(float) + 63) / 64 * 64 + 64;
    if (posix_memalign(&found, 64, bytes)) return NULL;
    return memset(found, 0, bytes);
}

INLINE vec widen(b16 codes) { return __builtin_convertvector(__builtin_convertvector(codes, veci), vec); }

/* codes 16 i .. 16 i + 15 of a block of 64 */
INLINE vec decode(const uint8_t *block, int bits, int i) {
    if (bits == 8) return widen(*(const b16 *)(block + 16 * i));
    if (bits == 16) {
        s16 codes = *(const s16 *)(block + 32 * i);
        return __builtin_convertvector(__builtin_convertvector(codes, veci), vec);
    }
    u16 low = *(const u16 *)(block + 16 * (i & 1));
    if (i & 2) low >>= 4;
    else low &= 15;
    if (bits == 4) return widen((b16)low - 8);
    u16 high = *(const u16 *)(block + 32);
    return widen((b16)(low | (((high >> (2 * i)) & 3) << 4)) - 32);
}

INLINE float total(vec x) {
    float sum = 0;
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    sum = x[0];
    return sum;
}

/* R rows times C columns; `bits`, R and C are constants where this is inlined */
INLINE void tile(const nb_matrix *m, int bits, const float *in, int64_t in_stride, float *out, int64_t out_stride,
                 int row, const int R, const int C) {
    vec sum[4][4];
    const uint8_t *codes = m->codes + (int64_t)row * m->stride;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sum[r][c] = (vec){0};
    int bytes = 8 * bits, blocks = (m->cols + BLOCK - 1) / BLOCK;
    for (int block = 0; block < blocks; block++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vec x[4];
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) x[c] = *(const vec *)(in + c * in_stride + block * BLOCK + i * WIDE);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                vec w = decode(codes + (int64_t)r * m->stride + (int64_t)block * bytes, bits, i);
#pragma GCC unroll 4
                for (int c = 0; c < C; c++) sum[r][c] += w * x[c];
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) out[c * out_stride + row + r] = m->scales[row + r] * total(sum[r][c]);
}

INLINE void rows_of(const nb_matrix *m, int bits, const float *in, int64_t in_stride, float *out,
                    int64_t out_stride, int first, int end, const int C) {
    int row = first;
    for (; row + 4 <= end; row += 4) tile(m, bits, in, in_stride, out, out_stride, row, 4, C);
    for (; row < end; row++) tile(m, bits, in, in_stride, out, out_stride, row, 1, C);
}

/* Every column is summed in the same order whatever C is, so batches and cuts do not change results. */
INLINE void columns_of(const nb_matrix *m, int bits, const float *in, int64_t in_stride, float *out,
                       int64_t out_stride, int n, int first, int end) {
    int c = 0;
    for (; c + 4 <= n; c += 4) rows_of(m, bits, in + c * in_stride, in_stride, out + c * out_stride, out_stride, first, end, 4);
    for (; c + 2 <= n; c += 2) rows_of(m, bits, in + c * in_stride, in_stride, out + c * out_stride, out_stride, first, end, 2);
    for (; c < n; c++) rows_of(m, bits, in + c * in_stride, in_stride, out + c * out_stride, out_stride, first, end, 1);
}

static void activate(float *x, int n, int act, float parameter) {
    if (act == SQUARE) {
        for (int i = 0; i < n; i++) {
            float y = x[i] > 0 ? x[i] : parameter * x[i];
            x[i] = y * y;
        }
    } else if (act == SIGMOID) {
        nb_sigmoid(x, n);
    } else if (act == SOFTCAP) { /* c tanh(x / c) = c (2 sigmoid(2 x / c) - 1) */
        for (int i = 0; i < n; i++) x[i] *= 2 / parameter;
        nb_sigmoid(x, n);
        for (int i = 0; i < n; i++) x[i] = parameter * (2 * x[i] - 1);
    }
}

/* out[c, row] = act(scale[row] * codes[row] . in[c]) for rows first .. end - 1; `in` is padded with zeros to 64 */
void nb_product(const nb_matrix *m, const float *in, int64_t in_stride, float *out, int64_t out_stride, int n,
                int first, int end, int act, float parameter) {
    /* a strip of rows stays in the cache while it meets all columns */
    for (int strip = first; strip < end; strip += 16) {
        int stop = strip + 16 < end && n > 4 ? strip + 16 : end;
        switch (m->bits) {
        case 4: columns_of(m, 4, in, in_stride, out, out_stride, n, strip, stop); break;
        case 6: columns_of(m, 6, in, in_stride, out, out_stride, n, strip, stop); break;
        case 8: columns_of(m, 8, in, in_stride, out, out_stride, n, strip, stop); break;
        default: columns_of(m, 16, in, in_stride, out, out_stride, n, strip, stop);
        }
        if (stop == end) break;
    }
    if (act != PLAIN)
        for (int c = 0; c < n; c++) activate(out + c * out_stride + first, end - first, act, parameter);
}

/* out[0 .. cols) = gain * row of the matrix; writes up to the padded width */
void nb_row(const nb_matrix *m, int64_t row, float gain, float *out) {
    const uint8_t *codes = m->codes + row * m->stride;
    float scale = gain * m->scales[row];
    for (int at = 0; at < m->cols; at += WIDE) {
        const uint8_t *block = codes + (int64_t)(at / BLOCK) * 8 * m->bits;
        int i = at % BLOCK / WIDE;
        vec w = m->bits == 8 ? decode(block, 8, i) : m->bits == 16 ? decode(block, 16, i)
              : m->bits == 6 ? decode(block, 6, i) : decode(block, 4, i);
        int count = m->cols - at < WIDE ? m->cols - at : WIDE;
        for (int j = 0; j < count; j++) out[at + j] = scale * w[j];
    }
}

/* out = gain * in / sqrt(mean(in^2) + eps); returns the factor without the gain */
float nb_rms(const float *in, float *out, int n, float gain) {
    vec sums = {0};
    float sum = 0;
    int i = 0;
    for (; i + WIDE <= n; i += WIDE) sums += *(const vec *)(in + i) * *(const vec *)(in + i);
    for (; i < n; i++) sum += in[i] * in[i];
    float factor = 1 / sqrtf((sum + total(sums)) / n + 1.1920929e-7f);
    for (i = 0; i < n; i++) out[i] = in[i] * (factor * gain);
    return factor;
}

INLINE vec pick(veci where, vec yes, vec no) { return (vec)(((veci)yes & where) | ((veci)no & ~where)); }

/* e^x to about one unit in the last place, for x clamped to what float32 can hold */
vec nb_exp(vec x) {
    vec low = (vec){0} - 87.3f, high = (vec){0} + 88.3f;
    x = pick(x < low, low, x);
    x = pick(x > high, high, x);
    vec shift = (vec){0} + 12582912.0f;
    vec n = (x * 1.44269504f + shift) - shift;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    veci power = (__builtin_convertvector(n, veci) + 127) << 23;
    return p * (vec)power;
}

void nb_sigmoid(float *x, int n) {
    for (int i = 0; i < n; i += WIDE) {
        vec part = {0};
        int count = n - i < WIDE ? n - i : WIDE;
        memcpy(&part, x + i, count * sizeof(float));
        part = 1.0f / (1.0f + nb_exp(-part));
        memcpy(x + i, &part, count * sizeof(float));
    }
}
