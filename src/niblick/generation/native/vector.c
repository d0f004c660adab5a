/* Norm, exponential, sigmoid, and rows of quantized tables. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* Zeros, to be given to free; in huge pages where they are large, which halves the time to stream through weights. */
float *nb_floats(int64_t count) {
    void *found = NULL;
    size_t bytes = ((size_t)count * sizeof(float) + 63) / 64 * 64 + 64, page = (size_t)1 << 21;
    int large = bytes >= page;
    if (large) bytes = (bytes + page - 1) / page * page;
    if (posix_memalign(&found, large ? page : 64, bytes)) return NULL;
#ifdef MADV_HUGEPAGE
    if (large) madvise(found, bytes, MADV_HUGEPAGE); /* a wish: refusing it costs speed only */
#endif
    return memset(found, 0, bytes);
}

/* 16 i .. 16 i + 15 of a run of 64 codes, without their offset */
void nb_decode(const uint8_t *run, int bits, int i, int32_t *out) {
    for (int j = 0; j < WIDE; j++) {
        int at = WIDE * i + j, low = run[WIDE * (i & 1) + j];
        if (bits == 8) out[j] = run[at] - 128;
        else if (bits == 16) out[j] = (run[BLOCK + at] - 128) * 256 + run[at];
        else if (bits == 24) out[j] = ((run[2 * BLOCK + at] - 128) * 256 + run[BLOCK + at]) * 256 + run[at];
        else {
            low = i & 2 ? low >> 4 : low & 15;
            out[j] = bits == 4 ? low - 8 : (low | ((run[2 * WIDE + j] >> (2 * i)) & 3) << 4) - 32;
        }
    }
}

/* out[0 .. cols) = gain * row of the matrix */
void nb_row(const nb_matrix *m, int64_t row, float gain, float *out) {
    const uint8_t *codes = m->codes + row * m->stride;
    float scale = gain * m->scales[row];
    for (int at = 0; at < m->cols; at += WIDE) {
        int32_t w[WIDE];
        nb_decode(codes + (int64_t)(at / BLOCK) * 8 * m->bits, m->bits, at % BLOCK / WIDE, w);
        int count = m->cols - at < WIDE ? m->cols - at : WIDE;
        for (int j = 0; j < count; j++) out[at + j] = scale * (float)w[j] * (m->columns ? m->columns[at + j] : 1);
    }
}

float nb_total(vec x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

/* out = gain * in / sqrt(mean(in^2) + eps); returns the factor without the gain */
float nb_rms(const float *in, float *out, int n, float gain) {
    vec sums = {0};
    float sum = 0;
    int i = 0;
    for (; i + WIDE <= n; i += WIDE) sums += *(const vec *)(in + i) * *(const vec *)(in + i);
    for (; i < n; i++) sum += in[i] * in[i];
    float factor = 1 / sqrtf((sum + nb_total(sums)) / n + 1.1920929e-7f);
    for (i = 0; i < n; i++) out[i] = in[i] * (factor * gain);
    return factor;
}

static inline vec pick(veci where, vec yes, vec no) { return (vec)(((veci)yes & where) | ((veci)no & ~where)); }

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
