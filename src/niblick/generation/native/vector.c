/* Norm, sigmoid, and rows of quantized tables. */
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

/* code i of 64, without its offset */
static int32_t code(const uint8_t *codes, int bits, int i) {
    if (bits == 8) return codes[i] - 128;
    if (bits == 16) return (codes[BLOCK + i] - 128) * 256 + codes[i];
    if (bits == 24) return ((codes[2 * BLOCK + i] - 128) * 256 + codes[BLOCK + i]) * 256 + codes[i];
    int low = i < BLOCK / 2 ? codes[i] & 15 : codes[i - BLOCK / 2] >> 4;
    return bits == 4 ? low - 8 : (low | (codes[BLOCK / 2 + i % WIDE] >> (i / WIDE * 2) & 3) << 4) - 32;
}

/* out[0 .. cols) = gain * row of the matrix */
void nb_row(const nb_matrix *m, int64_t row, float gain, float *out) {
    int64_t groups = (m->cols + BLOCK - 1) / BLOCK * (BLOCK / 4);
    const uint8_t *codes = m->codes + (row / ROWS * groups * HALVES + row % ROWS / WIDE) * 8 * m->bits;
    float scale = gain * m->scales[row];
    for (int i = 0; i < m->cols; i++) {
        int32_t found = code(codes + (int64_t)(i / 4) * HALVES * 8 * m->bits, m->bits, (int)(row % WIDE) * 4 + i % 4);
        out[i] = scale * (float)found * (m->columns ? m->columns[i] : 1);
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

void nb_sigmoid(float *x, int n) {
    for (int i = 0; i < n; i += WIDE) {
        vec part = {0};
        int count = n - i < WIDE ? n - i : WIDE;
        memcpy(&part, x + i, count * sizeof(float));
        part = 1.0f / (1.0f + nb_exp(-part));
        memcpy(x + i, &part, count * sizeof(float));
    }
}
