/* Products with quantized matrices, exact to float32 rounding.
 *
 * Rows go side by side, one in each lane, so that a product reads its matrix once and in order and
 * needs no sums across lanes. With AVX512-VNNI, inputs become 24-bit integers in three signed bytes
 * each and all sums are integers; so they are in WebAssembly (browser/native/dot.h); elsewhere
 * codes become floats. A column's result depends on nothing but the column: not on its neighbours,
 * threads or cuts.
 */
#include "engine.h"

#include <math.h>
#include <string.h>
#if defined(__AVX512VNNI__) && defined(__AVX512DQ__)
#define NB_VNNI
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* `call` with the constant BITS for every width of codes: each is compiled by itself */
#define WIDTH(label, bits, call)                                                                   \
    label:                                                                                         \
    {                                                                                              \
        enum { BITS = bits };                                                                      \
        call;                                                                                      \
        break;                                                                                     \
    }
#define EACH_WIDTH(call)                                                                           \
    switch (j->m->bits) {                                                                          \
        WIDTH(case 2, 2, call)                                                                     \
        WIDTH(case 4, 4, call)                                                                     \
        WIDTH(case 6, 6, call)                                                                     \
        WIDTH(case 8, 8, call)                                                                     \
        WIDTH(case 10, 10, call)                                                                   \
        WIDTH(case 12, 12, call)                                                                   \
        WIDTH(case 16, 16, call)                                                                   \
        WIDTH(default, 24, call)                                                                   \
    }

typedef struct {
    const nb_matrix *m;
    const float *in;
    float *out;
    int64_t in_stride, out_stride, block; /* block: bytes of a block of rows */
    int groups;                           /* of four columns, in whole runs of 64 columns */
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

#ifdef NB_VNNI
enum {
    DIGITS = 3,
    TOP = 127 * 65536,
    PIECE = 4 * DIGITS,
    QUARTERS = 4
}; /* TOP leaves room for rounding in the digits */

/* the first `left` of sixteen lanes */
INLINE __mmask16 lanes(int left) {
    return left >= WIDE ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

/* x[at .. at + 16) times the columns' factors, zeros beyond the last column */
INLINE __m512 load(const nb_matrix *m, const float *x, int at) {
    __m512 part = _mm512_maskz_loadu_ps(lanes(m->cols - at), x + at);
    return m->columns ? _mm512_mul_ps(part, _mm512_loadu_ps(m->columns + at)) : part;
}

/* x = step * whole, whole = 65536 high + 256 middle + low: per four columns the low bytes, the
 * middle ones and the high ones; their sums go to `sums`. Returns the step. */
static float split(const job *j, const float *x, int8_t *digits, int32_t *sums, int64_t *whole) {
    __m512 top = _mm512_setzero_ps();
    for (int i = 0; i < j->groups / 4; i++)
        top = _mm512_max_ps(top, _mm512_abs_ps(load(j->m, x, i * WIDE)));
    float most = _mm512_reduce_max_ps(top);
    __m512 factor = _mm512_set1_ps(most > 0 ? TOP / most : 0);
    __m512i half = _mm512_set1_epi32(128), zero = _mm512_setzero_si512(),
            sum[DIGITS + 1] = {zero, zero, zero, zero};
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, 0, 0, 0, 0);
    for (int i = 0; i < j->groups / 4; i++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(load(j->m, x, i * WIDE), factor));
        if (j->m->tail) {
            _mm512_storeu_si512(whole + i * WIDE, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(q)));
            _mm512_storeu_si512(whole + i * WIDE + 8,
                                _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(q, 1)));
        }
        __m512i middle = _mm512_srai_epi32(_mm512_add_epi32(q, half), 8);
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(middle, half), 8);
        sum[0] = _mm512_add_epi32(sum[0], q), sum[1] = _mm512_add_epi32(sum[1], middle),
        sum[2] = _mm512_add_epi32(sum[2], high);
        __m512i all = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(q));
        all = _mm512_inserti32x4(all, _mm512_cvtepi32_epi8(middle), 1);
        all = _mm512_inserti32x4(all, _mm512_cvtepi32_epi8(high), 2);
        _mm512_mask_storeu_epi32(digits + i * 4 * PIECE, 0xfff,
                                 _mm512_permutexvar_epi32(order, all));
    }
    for (int d = 0; d < DIGITS; d++) /* of the digits alone; what overflows here cancels */
        sums[d] = (int32_t)((uint32_t)_mm512_reduce_add_epi32(sum[d]) -
                            256u * (uint32_t)_mm512_reduce_add_epi32(sum[d + 1]));
    return most / TOP;
}

/* the four times 64 numbers of `bits` in a unit, still with their offset */
INLINE void unpack(const uint8_t *unit, int bits, __m512i w[QUARTERS]) {
    const __m512i low = _mm512_set1_epi8((char)((1 << bits) - 1));
    __m512i raw[QUARTERS];
#pragma GCC unroll 4
    for (int i = 0; i < bits / 2; i++) raw[i] = _mm512_loadu_si512(unit + i * BLOCK);
#pragma GCC unroll 4
    for (int q = 0; q < QUARTERS; q++) {
        if (bits == 8) w[q] = raw[q];
        else if (bits == 6) w[q] = raw[q < 3 ? q : 0];
        else w[q] = _mm512_srli_epi32(raw[q * bits / 8], q * bits % 8);
    }
    if (bits == 6) { /* 0xca takes the second where the first is set, else the third */
        w[3] = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x30), _mm512_srli_epi32(raw[0], 2),
                                         _mm512_srli_epi32(raw[1], 4), 0xca);
        w[3] = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x3c), w[3], _mm512_srli_epi32(raw[2], 6),
                                         0xca);
    }
#pragma GCC unroll 4
    for (int q = 0; q < QUARTERS; q++)
        if (bits < 8) w[q] = _mm512_and_si512(w[q], low);
}

/* sum += four bytes of w times four of x in every lane; written out because compilers move and load
 * it to death */
INLINE void add(__m512i *sum, __m512i w, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

typedef struct {
    const int8_t *digits;
    const int32_t *sums;
    const int64_t *whole;
    const float *steps;
    int64_t stride; /* between columns' digits */
} inputs;

/* what the codes of sixteen rows leave over, times C columns from `c0` on */
INLINE void tails(const job *j, const inputs *x, int row, int c0, int64_t sum[4][WIDE],
                  const int C) {
    const int64_t *whole = x->whole + (int64_t)c0 * 4 * j->groups;
    const nb_tail *end = j->m->tail + j->m->tail_at[row / WIDE + 1];
    memset(sum, 0, C * sizeof *sum);
    for (const nb_tail *tail = j->m->tail + j->m->tail_at[row / WIDE]; tail < end; tail++)
        for (int c = 0; c < C; c++)
            sum[c][tail->row] += tail->rest * whole[(int64_t)c * 4 * j->groups + tail->column];
}

/* sixteen rows' sums of rising weight, and what is left over, as floats */
INLINE __m512 joined(const __m512i *sum, int sums, const int64_t *left) {
    __m256 part[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 5
        for (int k = sums - 1; k >= 0; k--) {
            __m256i eight =
                i ? _mm512_extracti64x4_epi64(sum[k], 1) : _mm512_castsi512_si256(sum[k]);
            total = _mm512_add_epi64(_mm512_slli_epi64(total, 8), _mm512_cvtepi32_epi64(eight));
        }
        if (left) total = _mm512_add_epi64(total, _mm512_loadu_si512(left + 8 * i));
        part[i] = _mm512_cvtepi64_ps(total);
    }
    return _mm512_insertf32x8(_mm512_castps256_ps512(part[0]), part[1], 1);
}

/* A block of rows from `row` on times C columns from `c0` on. Codes of more than 8 bits are several
 * numbers, of which only the high one has an offset; products of equal weight share their sum. The
 * whole sum is exact and rounded once. */
INLINE void tile(const job *j, const inputs *x, const uint8_t *codes, int bits, int row, int c0,
                 const int C) {
    const int planes = (bits + 7) / 8, sums = planes + DIGITS - 1, offset = 1 << (bits - 1) % 8;
    __m512i sum[4][HALVES][5];
    const int8_t *at[4];
    int64_t left[4][WIDE];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
        at[c] = x->digits + (c0 + c) * x->stride;
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++)
#pragma GCC unroll 5
            for (int k = 0; k < sums; k++)
                sum[c][h][k] = _mm512_set1_epi32(
                    k < planes - 1 ? 0 : -offset * x->sums[(c0 + c) * DIGITS + k - planes + 1]);
    }
#pragma GCC unroll 3
    for (int p = 0; p < planes; p++, codes += j->groups * (UNIT / 2))
        for (int64_t g = 0; g < j->groups; g += 2) {
            __m512i w[QUARTERS];
            int width = bits - 8 * p < 8 ? bits - 8 * p : 8;
            unpack(codes + g * (UNIT / 16) * width, width, w);
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++)
#pragma GCC unroll 4
                for (int c = 0; c < C; c++)
#pragma GCC unroll 3
                    for (int d = 0; d < DIGITS; d++) {
                        int32_t four;
                        memcpy(&four, at[c] + (g + k) * PIECE + 4 * d, 4);
                        __m512i part = _mm512_set1_epi32(four);
#pragma GCC unroll 2
                        for (int h = 0; h < HALVES; h++)
                            add(&sum[c][h][p + d], w[HALVES * k + h], part);
                    }
        }
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++) {
        int at_row = row + h * WIDE;
        __mmask16 mask = lanes(j->m->rows - at_row);
        __m512 scale = _mm512_maskz_loadu_ps(mask, j->m->scales + at_row);
        if (j->m->tail) tails(j, x, at_row, c0, left, C);
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            __m512 value = joined(sum[c][h], sums, j->m->tail ? left[c] : NULL);
            value = _mm512_mul_ps(scale, _mm512_mul_ps(_mm512_set1_ps(x->steps[c0 + c]), value));
            _mm512_mask_storeu_ps(j->out + (c0 + c) * j->out_stride + at_row, mask, value);
        }
    }
}

/* a block of rows times n columns */
INLINE void block_of(const job *j, const inputs *x, const uint8_t *codes, int bits, int n,
                     int row) {
    int c = 0;
    if (bits <= 8)
        for (; c + 4 <= n; c += 4) tile(j, x, codes, bits, row, c, 4);
    for (; c + 2 <= n; c += 2) tile(j, x, codes, bits, row, c, 2);
    if (c < n) tile(j, x, codes, bits, row, c, 1);
}

INLINE void matrix_of(const job *j, const inputs *x, int bits, int n, int first, int end,
                      uint8_t *bytes) {
    const __m512i more = _mm512_set1_epi8((char)(128 - (1 << (bits < 8 ? bits - 1 : 7))));
    for (int row = first; row < end; row += ROWS) {
        const uint8_t *codes = j->m->codes + row / ROWS * j->block;
        if (n <= 4 || bits >= 8) {
            block_of(j, x, codes, bits, n, row);
            continue;
        }
        for (int64_t i = 0; i < j->groups / 2; i++) {
            __m512i w[QUARTERS];
            unpack(codes + i * UNIT / 8 * bits, bits, w);
            for (int q = 0; q < QUARTERS; q++)
                _mm512_storeu_si512(bytes + i * UNIT + q * BLOCK, _mm512_add_epi8(w[q], more));
        }
        block_of(j, x, bytes, 8, n, row);
    }
}

int64_t nb_scratch(int columns, int widest) {
    int64_t padded = (widest + BLOCK - 1) / BLOCK * BLOCK;
    return columns * (padded * (DIGITS + 8) + BLOCK) + ROWS * padded +
           columns * (int64_t)(DIGITS + 1) * 4 + 3 * BLOCK;
}

static void multiply(job *j, int n, int first, int end, void *scratch) {
    float *steps = scratch;
    int32_t *sums = (int32_t *)(steps + n);
    int8_t *digits =
        (int8_t *)scratch + ((int64_t)n * (DIGITS + 1) * 4 + BLOCK - 1) / BLOCK * BLOCK;
    int64_t stride =
        (int64_t)j->groups * PIECE + BLOCK; /* not a power of two: columns share no cache set */
    int64_t *whole = (int64_t *)(digits + n * stride);
    uint8_t *bytes = (uint8_t *)(whole + (int64_t)n * 4 * j->groups);
    for (int c = 0; c < n; c++)
        steps[c] = split(j, j->in + c * j->in_stride, digits + c * stride, sums + c * DIGITS,
                         whole + (int64_t)c * 4 * j->groups);
    inputs x = {digits, sums, whole, steps, stride};
    EACH_WIDTH(matrix_of(j, &x, BITS, n, first, end, bytes))
}
#elif defined(__wasm_simd128__)
#include "dot.h"
#else
enum { RUN = BLOCK / 4 }; /* groups made floats at a time */

int64_t nb_scratch(int columns, int widest) {
    int64_t padded = (widest + BLOCK - 1) / BLOCK * BLOCK;
    return (columns * (padded + 4 * WIDE) + 4 * RUN * WIDE + WIDE) * (int64_t)sizeof(float);
}

/* a quarter of a unit of numbers of `bits`, as sixteen words of four columns each */
INLINE veci words(const uint8_t *unit, int bits, int quarter) {
    const veci *raw = (const veci *)unit;
    if (bits == 6 && quarter == 3)
        return (raw[0] >> 2 & 0x30303030) | (raw[1] >> 4 & 0x0c0c0c0c) | (raw[2] >> 6 & 0x03030303);
    if (bits == 6) return raw[quarter] & 0x3f3f3f3f;
    if (bits == 8) return raw[quarter];
    return raw[quarter * bits / 8] >> quarter * bits % 8 & 0x01010101 * ((1 << bits) - 1);
}

/* a quarter of one of `units` units, a vector of sixteen rows for each column */
INLINE void widen(const uint8_t *codes, int64_t units, int unit, int bits, int quarter, vec *out) {
    int planes = (bits + 7) / 8;
    veci word[3];
    for (int p = 0; p < planes; p++) {
        int width = bits - 8 * p < 8 ? bits - 8 * p : 8;
        word[p] = words(codes + p * units * UNIT + unit * (UNIT / 8) * width, width, quarter);
    }
    for (int k = 0; k < 4; k++) {
        veci code = word[0] >> 8 * k & 255;
        for (int p = 1; p < planes; p++) code |= (word[p] >> 8 * k & 255) << 8 * p;
        out[k] = __builtin_convertvector(code - (1 << (bits - 1)), vec);
    }
}

/* half `half` of a block of rows times n columns: a run of codes becomes floats once and meets
 * every column */
INLINE void half_of(const job *j, const float *x, int64_t stride, const uint8_t *codes, int bits,
                    int half, int n, vec *w, vec *sum) {
    for (int c = 0; c < 4 * n; c++) sum[c] = (vec){0};
    for (int g = 0; g < j->groups; g += RUN) {
        for (int i = 0; i < RUN; i++)
            widen(codes, j->groups / 2, (g + i) / 2, bits, (g + i) % 2 * HALVES + half, w + 4 * i);
        for (int c = 0; c < n; c++) {
            const float *at = x + c * stride + 4 * g;
            vec part[4] = {sum[4 * c], sum[4 * c + 1], sum[4 * c + 2], sum[4 * c + 3]};
            for (int i = 0; i < 4 * RUN; i += 4)
                for (int k = 0; k < 4; k++) part[k] += w[i + k] * at[i + k];
            for (int k = 0; k < 4; k++) sum[4 * c + k] = part[k];
        }
    }
}

/* sum += what the codes of sixteen rows leave over, times x */
static void add_tails(const nb_matrix *m, int row, const float *x, float *sum) {
    const nb_tail *end = m->tail + m->tail_at[row / WIDE + 1];
    for (const nb_tail *tail = m->tail + m->tail_at[row / WIDE]; tail < end; tail++)
        sum[tail->row] += tail->rest * x[tail->column];
}

INLINE void matrix_of(const job *j, int bits, int n, int first, int end, float *scratch) {
    int64_t stride = 4 * j->groups;
    float *x = scratch + (4 * RUN + 4 * n) * WIDE;
    vec *w = (vec *)scratch, *sum = w + 4 * RUN;
    for (int c = 0; c < n; c++)
        for (int i = 0; i < stride; i++)
            x[c * stride + i] = i < j->m->cols ? j->in[c * j->in_stride + i] *
                                                     (j->m->columns ? j->m->columns[i] : 1)
                                               : 0;
    for (int row = first; row < end; row += WIDE) {
        half_of(j, x, stride, j->m->codes + row / ROWS * j->block, bits, row % ROWS / WIDE, n, w,
                sum);
        for (int c = 0; c < n; c++) {
            vec total = (sum[4 * c] + sum[4 * c + 1]) + (sum[4 * c + 2] + sum[4 * c + 3]);
            if (j->m->tail) add_tails(j->m, row, x + c * stride, (float *)&total);
            for (int i = 0; i < WIDE && row + i < end; i++)
                j->out[c * j->out_stride + row + i] = j->m->scales[row + i] * total[i];
        }
    }
}

static void multiply(job *j, int n, int first, int end, void *scratch) {
    EACH_WIDTH(matrix_of(j, BITS, n, first, end, scratch))
}
#endif

/* out[c, row] = act(scale[row] * codes[row] . in[c]) for rows first .. end - 1, first a multiple of
 * ROWS, end too or the last; `in` is readable up to a multiple of 64 */
void nb_product(const nb_matrix *m, const float *in, int64_t in_stride, float *out,
                int64_t out_stride, int n, int first, int end, int act, float parameter,
                void *scratch) {
    int groups = (m->cols + BLOCK - 1) / BLOCK * (BLOCK / 4);
    job j = {m, in, out, in_stride, out_stride, (int64_t)groups * HALVES * 8 * m->bits, groups};
    multiply(&j, n, first, end, scratch);
    if (act != PLAIN)
        for (int c = 0; c < n; c++)
            activate(out + c * out_stride + first, end - first, act, parameter);
}
