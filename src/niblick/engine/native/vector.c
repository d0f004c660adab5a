/* Norm, sigmoid, and rows of quantized tables. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _WIN32
#include <malloc.h>
#endif

/* Zeros, to be given to nb_free; in huge pages where they are large, which halves the time to
 * stream through weights. */
float *nb_floats(int64_t count) {
    void *found = NULL;
    size_t bytes = ((size_t)count * sizeof(float) + 63) / 64 * 64 + 64, page = (size_t)1 << 21;
    int large = bytes >= page;
    if (large) bytes = (bytes + page - 1) / page * page;
#ifdef _WIN32
    if (!(found = _aligned_malloc(bytes, 64))) return NULL;
#else
    if (posix_memalign(&found, large ? page : 64, bytes)) return NULL;
#endif
#ifdef MADV_HUGEPAGE
    if (large) madvise(found, bytes, MADV_HUGEPAGE); /* a wish: refusing it costs speed only */
#endif
    return memset(found, 0, bytes);
}

/* What nb_floats gave. */
void nb_free(float *memory) {
#ifdef _WIN32
    _aligned_free(memory);
#else
    free(memory);
#endif
}

/* number i of a quarter of a unit of numbers of `bits` */
static int32_t number(const uint8_t *unit, int bits, int quarter, int i) {
    if (bits == 6 && quarter == 3)
        return unit[i] >> 6 << 4 | unit[BLOCK + i] >> 6 << 2 | unit[2 * BLOCK + i] >> 6;
    if (bits == 6) return unit[quarter * BLOCK + i] & 63;
    return unit[quarter * bits / 8 * BLOCK + i] >> quarter * bits % 8 & ((1 << bits) - 1);
}

/* code i of a quarter of one of `units` units, without its offset */
static int32_t code(const uint8_t *codes, int64_t units, int unit, int bits, int quarter, int i) {
    int32_t found = -(1 << (bits - 1));
    for (int p = 0; 8 * p < bits; p++) {
        int width = bits - 8 * p < 8 ? bits - 8 * p : 8;
        found += number(codes + p * units * UNIT + unit * (UNIT / 8) * width, width, quarter, i)
                 << 8 * p;
    }
    return found;
}

/* out[0 .. cols) = gain * row of the matrix */
void nb_row(const nb_matrix *m, int64_t row, float gain, float *out) {
    int64_t units = (int64_t)(m->cols + BLOCK - 1) / BLOCK * (BLOCK / 8);
    const uint8_t *codes = m->codes + row / ROWS * units * (UNIT / 8) * m->bits;
    int half = (int)(row % ROWS / WIDE), lane = (int)(row % WIDE) * 4;
    for (int i = 0; i < m->cols; i++)
        out[i] = (float)code(codes, units, i / 8, m->bits, i / 4 % 2 * HALVES + half, lane + i % 4);
    if (m->tail)
        for (int i = m->tail_at[row / WIDE]; i < m->tail_at[row / WIDE + 1]; i++)
            if (m->tail[i].row == row % WIDE) out[m->tail[i].column] += m->tail[i].rest;
    float scale = gain * m->scales[row];
    for (int i = 0; i < m->cols; i++) out[i] = scale * out[i] * (m->columns ? m->columns[i] : 1);
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

void nb_sigmoid(float *x, int n) {
    for (int i = 0; i < n; i += WIDE) {
        vec part = {0};
        int count = n - i < WIDE ? n - i : WIDE;
        memcpy(&part, x + i, count * sizeof(float));
        part = 1.0f / (1.0f + nb_exp(-part));
        memcpy(x + i, &part, count * sizeof(float));
    }
}
