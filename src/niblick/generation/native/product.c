/* Products with quantized matrices, exact to float32 rounding.
 *
 * With AVX512-VNNI, inputs become 24-bit integers in three signed bytes each and all sums are integers; elsewhere codes
 * become floats. A column's result depends on nothing but the column: not on its neighbours, threads or cuts.
 */
#include "engine.h"

#include <math.h>
#include <string.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const nb_matrix *m;
    const float *in;
    float *out;
    const int8_t *digits; /* per column: runs of 3 x 64 bytes, then 3 x 64 bytes of sums */
    const float *steps;
    int64_t in_stride, out_stride, digit_stride;
    int runs;
} job;

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


#ifdef __AVX512VNNI__
enum { DIGITS = 3, STRIP = 16, TOP = 127 * 65536 }; /* leaves room for rounding in the digits */

/* x[at .. at + 16) times the columns' factors, zeros beyond the last column */
INLINE __m512 load(const nb_matrix *m, const float *x, int at) {
    int left = m->cols - at < 0 ? 0 : m->cols - at;
    __m512 part = _mm512_maskz_loadu_ps(left < WIDE ? (__mmask16)((1u << left) - 1) : 0xffff, x + at);
    return m->columns ? _mm512_mul_ps(part, _mm512_loadu_ps(m->columns + at)) : part;
}

/* x = step * (65536 high + 256 middle + low), and for every lane of four bytes minus the sum of each digit */
static float split(const nb_matrix *m, const float *x, int8_t *digits) {
    int runs = (m->cols + BLOCK - 1) / BLOCK;
    __m512 top = _mm512_setzero_ps();
    for (int i = 0; i < runs * 4; i++) top = _mm512_max_ps(top, _mm512_abs_ps(load(m, x, i * WIDE)));
    float most = _mm512_reduce_max_ps(top);
    __m512 factor = _mm512_set1_ps(most > 0 ? TOP / most : 0);
    __m512i half = _mm512_set1_epi32(128), sum[DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int run = 0; run < runs; run++) {
        int8_t *place = digits + run * DIGITS * BLOCK;
        for (int i = 0; i < 4; i++) {
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(load(m, x, run * BLOCK + i * WIDE), factor));
            for (int d = 0; d < DIGITS; d++) {
                _mm_storeu_si128((__m128i *)(place + d * BLOCK + i * WIDE), _mm512_cvtepi32_epi8(q));
                q = _mm512_srai_epi32(_mm512_add_epi32(q, half), 8);
            }
        }
        for (int d = 0; d < DIGITS; d++)
            sum[d] = _mm512_dpbusd_epi32(sum[d], _mm512_set1_epi8(1), _mm512_loadu_si512(place + d * BLOCK));
    }
    for (int d = 0; d < DIGITS; d++)
        _mm512_storeu_si512(digits + (runs * DIGITS + d) * BLOCK, _mm512_sub_epi32(_mm512_setzero_si512(), sum[d]));
    return most / TOP;
}

/* 64 codes as unsigned bytes, still with their offset */
INLINE __m512i unpack(const uint8_t *run, int bits) {
    if (bits == 8) return _mm512_loadu_si512(run);
    __m256i low = _mm256_loadu_si256((const __m256i *)run);
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_srli_epi16(low, 4), 1);
    both = _mm512_and_si512(both, _mm512_set1_epi8(15));
    if (bits == 4) return both;
    __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(run + 32)));
    __m512i turns = _mm512_set_epi32(30, 30, 30, 30, 0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4);
    high = _mm512_and_si512(_mm512_rolv_epi32(high, turns), _mm512_set1_epi8(0x30));
    return _mm512_or_si512(both, high);
}

INLINE float joined(__m512i low, __m512i middle, __m512i high) {
    __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(middle), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low));
    return _mm512_reduce_add_ps(_mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536), value));
}

/* the sum over one of the lower bytes of a row's codes */
static float low_bytes(const job *j, const uint8_t *codes, int bytes, const int8_t *x) {
    __m512i sum[DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int run = 0; run < j->runs; run++)
        for (int d = 0; d < DIGITS; d++)
            sum[d] = _mm512_dpbusd_epi32(sum[d], _mm512_loadu_si512(codes + (int64_t)run * bytes), _mm512_loadu_si512(x + (run * DIGITS + d) * BLOCK));
    return joined(sum[0], sum[1], sum[2]);
}

/* R rows times C columns of bytes; codes of 16 and 24 bits are bytes too, of which only the high one has an offset */
INLINE void tile(const job *j, const uint8_t *codes, int64_t stride, int bits, int row, int c0, const int R, const int C) {
    __m512i sum[2][2][DIGITS];
    const int8_t *x = j->digits + c0 * j->digit_stride;
    const int offset = bits > 8 ? 7 : bits - 1, high = bits > 8 ? bits / 8 - 1 : 0; /* offset: a power of two */
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
#pragma GCC unroll 3
            for (int d = 0; d < DIGITS; d++)
                sum[r][c][d] = _mm512_slli_epi32(_mm512_loadu_si512(x + c * j->digit_stride + (j->runs * DIGITS + d) * BLOCK), offset);
    int bytes = 8 * bits;
    for (int run = 0; run < j->runs; run++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            __m512i w = unpack(codes + r * stride + run * bytes + high * BLOCK, bits > 8 ? 8 : bits);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++)
#pragma GCC unroll 3
                for (int d = 0; d < DIGITS; d++)
                    sum[r][c][d] = _mm512_dpbusd_epi32(sum[r][c][d], w, _mm512_loadu_si512(x + c * j->digit_stride + (run * DIGITS + d) * BLOCK));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            float found = joined(sum[r][c][0], sum[r][c][1], sum[r][c][2]);
            for (int byte = high - 1; byte >= 0; byte--)
                found = 256 * found + low_bytes(j, codes + r * stride + byte * BLOCK, bytes, x + c * j->digit_stride);
            j->out[(c0 + c) * j->out_stride + row + r] = j->m->scales[row + r] * (j->steps[c0 + c] * found);
        }
}

INLINE void rows_of(const job *j, const uint8_t *codes, int64_t stride, int bits, int first, int end, int c, const int C) {
    int row = first;
    /* A single column is bound by memory, which is fastest read strictly in order: one row after the other. */
    if (C == 2)
        for (; row + 2 <= end; row += 2) tile(j, codes + (row - first) * stride, stride, bits, row, c, 2, C);
    for (; row < end; row++) tile(j, codes + (row - first) * stride, stride, bits, row, c, 1, C);
}

INLINE void strip_of(const job *j, const uint8_t *codes, int64_t stride, int bits, int n, int first, int end) {
    int c = 0;
    for (; c + 2 <= n; c += 2) rows_of(j, codes, stride, bits, first, end, c, 2);
    for (; c < n; c++) rows_of(j, codes, stride, bits, first, end, c, 1);
}

INLINE void matrix_of(const job *j, int bits, int n, int first, int end, uint8_t *bytes) {
    const uint8_t *codes = j->m->codes + (int64_t)first * j->m->stride;
    if (n == 1) {
        strip_of(j, codes, j->m->stride, bits, n, first, end);
        return;
    }
    for (int row = first; row < end; row += STRIP) { /* a strip stays in the cache while it meets all columns */
        int stop = row + STRIP < end ? row + STRIP : end;
        codes = j->m->codes + (int64_t)row * j->m->stride;
        if (bits >= 8) {
            strip_of(j, codes, j->m->stride, bits, n, row, stop);
            continue;
        }
        for (int r = row; r < stop; r++)
            for (int run = 0; run < j->runs; run++) {
                __m512i w = unpack(codes + (int64_t)(r - row) * j->m->stride + run * 8 * bits, bits);
                w = _mm512_add_epi8(w, _mm512_set1_epi8((char)(128 - (1 << (bits - 1)))));
                _mm512_storeu_si512(bytes + ((int64_t)(r - row) * j->runs + run) * BLOCK, w);
            }
        strip_of(j, bytes, (int64_t)j->runs * BLOCK, 8, n, row, stop);
    }
}

int64_t nb_scratch(int columns, int widest) {
    int64_t runs = (widest + BLOCK - 1) / BLOCK;
    return columns * (runs + 4) * DIGITS * BLOCK + STRIP * runs * BLOCK + columns * (int64_t)sizeof(float) + BLOCK;
}

static void multiply(job *j, int n, int first, int end, void *scratch) {
    float *steps = scratch;
    int8_t *digits = (int8_t *)(steps + (n + WIDE - 1) / WIDE * WIDE);
    j->digit_stride = (int64_t)(j->runs + 4) * DIGITS * BLOCK; /* not a power of two: columns share no cache set */
    for (int c = 0; c < n; c++) steps[c] = split(j->m, j->in + c * j->in_stride, digits + c * j->digit_stride);
    j->digits = digits, j->steps = steps;
    uint8_t *bytes = (uint8_t *)digits + n * j->digit_stride;
    switch (j->m->bits) {
    case 4: matrix_of(j, 4, n, first, end, bytes); break;
    case 6: matrix_of(j, 6, n, first, end, bytes); break;
    case 8: matrix_of(j, 8, n, first, end, bytes); break;
    case 16: matrix_of(j, 16, n, first, end, bytes); break;
    default: matrix_of(j, 24, n, first, end, bytes);
    }
}
#else
int64_t nb_scratch(int columns, int widest) { return (int64_t)(widest + BLOCK) * 4 + columns * 0; }

/* A row becomes floats once and meets every column. */
static void multiply(job *j, int n, int first, int end, void *scratch) {
    float *w = scratch;
    for (int row = first; row < end; row++) {
        const uint8_t *codes = j->m->codes + (int64_t)row * j->m->stride;
        for (int run = 0; run < j->runs; run++)
            for (int i = 0; i < 4; i++) {
                int32_t part[WIDE];
                nb_decode(codes + (int64_t)run * 8 * j->m->bits, j->m->bits, i, part);
                for (int k = 0; k < WIDE; k++) w[run * BLOCK + i * WIDE + k] = (float)part[k] * (j->m->columns ? j->m->columns[run * BLOCK + i * WIDE + k] : 1);
            }
        for (int c = 0; c < n; c++) {
            const float *x = j->in + c * j->in_stride;
            vec sum[4] = {{0}, {0}, {0}, {0}};
            for (int run = 0; run < j->runs; run++)
                for (int i = 0; i < 4; i++) sum[i] += *(vec *)(w + run * BLOCK + i * WIDE) * *(const vec *)(x + run * BLOCK + i * WIDE);
            j->out[c * j->out_stride + row] = j->m->scales[row] * nb_total((sum[0] + sum[1]) + (sum[2] + sum[3]));
        }
    }
}
#endif

/* out[c, row] = act(scale[row] * codes[row] . in[c]) for rows first .. end - 1; `in` is readable up to a multiple of 64 */
void nb_product(const nb_matrix *m, const float *in, int64_t in_stride, float *out, int64_t out_stride, int n,
                int first, int end, int act, float parameter, void *scratch) {
    job j = {m, in, out, NULL, NULL, in_stride, out_stride, 0, (m->cols + BLOCK - 1) / BLOCK};
    multiply(&j, n, first, end, scratch);
    if (act != PLAIN)
        for (int c = 0; c < n; c++) activate(out + c * out_stride + first, end - first, act, parameter);
}
