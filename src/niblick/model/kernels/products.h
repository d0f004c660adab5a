/* Products of bfloat16 that sum in float, for processors that multiply pairs of bfloat16; included
 * by what is built on them. */

#ifdef __AVX512BF16__
#include <immintrin.h>

/* C (m, n) = or += A B over 2 k2 terms: A as pairs at a[row * i + step * p], B as pairs (k2, n) at
 * b[ldb * p + j]. */
#define BLOCK(MR, NV)                                                                              \
    static inline __attribute__((always_inline)) void block_##MR##_##NV(                           \
        const pair *a, int64_t row, int64_t step, const uint32_t *b, int64_t ldb, float *c,        \
        int64_t ldc, int64_t k2, int add) {                                                        \
        __m512 sum[MR][NV];                                                                        \
        _Pragma("GCC unroll 8") for (int i = 0; i < MR; i++)                                       \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] =                       \
                add ? _mm512_loadu_ps(c + i * ldc + 16 * v) : _mm512_setzero_ps();                 \
        for (int64_t p = 0; p < k2; p++) {                                                         \
            __m512i in[NV];                                                                        \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) in[v] =                           \
                _mm512_loadu_si512(b + ldb * p + 16 * v);                                          \
            _Pragma("GCC unroll 8") for (int i = 0; i < MR; i++) {                                 \
                __m512i one = _mm512_set1_epi32((int)a[row * i + step * p]);                       \
                _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] =                   \
                    _mm512_dpbf16_ps(sum[i][v], (__m512bh)one, (__m512bh)in[v]);                   \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (int i = 0; i < MR; i++)                                       \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++)                                   \
                _mm512_storeu_ps(c + i * ldc + 16 * v, sum[i][v]);                                 \
    }
BLOCK(8, 2)
BLOCK(8, 1)
BLOCK(1, 2)
BLOCK(1, 1)

static inline __attribute__((always_inline)) void blocks(const pair *a, int64_t row, int64_t step,
                                                         const uint32_t *b, int64_t ldb, float *c,
                                                         int64_t ldc, int64_t m, int64_t n,
                                                         int64_t k2, int add) {
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) {
        int64_t j = 0;
        for (; j + 32 <= n; j += 32)
            block_8_2(a + row * i, row, step, b + j, ldb, c + ldc * i + j, ldc, k2, add);
        if (j < n) block_8_1(a + row * i, row, step, b + j, ldb, c + ldc * i + j, ldc, k2, add);
    }
    for (; i < m; i++) {
        int64_t j = 0;
        for (; j + 32 <= n; j += 32)
            block_1_2(a + row * i, row, step, b + j, ldb, c + ldc * i + j, ldc, k2, add);
        if (j < n) block_1_1(a + row * i, row, step, b + j, ldb, c + ldc * i + j, ldc, k2, add);
    }
}

/* C (m, n) = or += A B; n is a multiple of 16. */
static void product(const void *a, int64_t row, int64_t step, const uint32_t *b, int64_t ldb,
                    float *c, int64_t ldc, int64_t m, int64_t n, int64_t k2, int add) {
#ifdef HAS_TILES
    if (has_tiles && m >= SIDE && k2) {
        int64_t whole = m / SIDE * SIDE;
        tile_product(a, row, step, b, ldb, c, ldc, whole, n, k2, add);
        if (whole == m) return;
        a = (const pair *)a + row * whole, c += ldc * whole, m -= whole;
    }
#endif
    if (step == 1 && add) blocks(a, row, 1, b, ldb, c, ldc, m, n, k2, 1);
    else if (step == 1) blocks(a, row, 1, b, ldb, c, ldc, m, n, k2, 0);
    else if (add) blocks(a, 1, step, b, ldb, c, ldc, m, n, k2, 1);
    else blocks(a, 1, step, b, ldb, c, ldc, m, n, k2, 0);
}

/* Rows of x, `stride` apart, as pairs across the row: out[e2 * padded + t] = x[t][2 e2, 2 e2 + 1];
 * zeros from `length` on. */
static void pack_across(const uint16_t *x, int64_t stride, int64_t length, int64_t padded,
                        int64_t width, uint32_t *out) {
    for (int64_t t = 0; t < padded; t++)
        for (int64_t e = 0; e < width / 2; e++)
            out[e * padded + t] = t < length ? ((const pair *)(x + t * stride))[e] : 0;
}

/* As pairs down the rows: out[t2 * width + e] = x[2 t2][e], x[2 t2 + 1][e]. */
static void pack_down(const uint16_t *x, int64_t stride, int64_t length, int64_t padded,
                      int64_t width, uint32_t *out) {
    for (int64_t t = 0; t < padded; t += 2) {
        const uint16_t *one = x + t * stride, *two = one + stride;
        uint32_t *to = out + t / 2 * width;
        if (t + 1 < length)
            INDEPENDENT for (int64_t e = 0; e < width; e++) to[e] = one[e] | (uint32_t)two[e] << 16;
        else
            for (int64_t e = 0; e < width; e++) to[e] = t < length ? one[e] : 0;
    }
}

/* 2^x for x <= 0 with relative error under 3e-7, 0 far below. */
static inline __m512 power(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-200));
    __m512 k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), t = _mm512_sub_ps(x, k);
    __m512 p = _mm512_set1_ps(1.3333558e-3f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, k);
}

/* Two vectors as bfloat16, each rounded to nearest even, side by side in pairs. */
static inline __m512i paired(__m512 low, __m512 high) {
    static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(order),
                                    (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* Panels: pairs of bfloat16 in strips of PANEL columns, each contiguous: pair p of column j at [j /
   PANEL][p][j % PANEL]. Columns are multiples of PANEL. */

static inline uint32_t *panel(uint32_t *panels, int64_t pairs, int64_t column) {
    return panels + column / PANEL * pairs * PANEL;
}

/* Rows of x (length, width) as pairs across: panels of `length` columns, width / 2 pairs each. */
static uint32_t *panels_across(const uint16_t *x, int64_t length, int64_t width) {
    uint32_t *out = room(length * width * 2);
    for (int64_t t = 0; t < length; t++) {
        uint32_t *to = panel(out, width / 2, t) + t % PANEL;
        for (int64_t p = 0; p < width / 2; p++) to[p * PANEL] = ((const pair *)(x + t * width))[p];
    }
    return out;
}

/* As pairs down the rows: panels of `width` columns, length / 2 pairs each. */
static uint32_t *panels_down(const uint16_t *x, int64_t length, int64_t width) {
    uint32_t *out = room(length * width * 2);
    for (int64_t t = 0; t < length; t += 2)
        for (int64_t j = 0; j < width; j += PANEL)
            pack_down(x + t * width + j, width, 2, 2, PANEL,
                      panel(out, length / 2, j) + t / 2 * PANEL);
    return out;
}

/* C (m, n) = A B over k2 pairs, A by rows of k2 pairs, B in panels; columns j .. j + n of B. */
static void rows_by_panels(const uint16_t *a, uint32_t *b, int64_t j, float *c, int64_t m,
                           int64_t n, int64_t k2) {
    for (int64_t i = 0; i < n; i += PANEL)
        product(a, k2, 1, panel(b, k2, i + j), PANEL, c + i, n, m, PANEL, k2, 0);
}

/* Rows i .. i + PANEL, columns j .. stop of g (.., n) = or += the sum over `pairs` pairs of
 * positions of a times b, both in panels. */
static void gather_rows(uint32_t *a, uint32_t *b, float *g, int64_t n, int64_t pairs, int64_t i,
                        int64_t j, int64_t stop, int add) {
    uint32_t room[PANEL * DEPTH] __attribute__((aligned(64)));
    for (int64_t p = 0; p < pairs || p == 0; p += DEPTH) {
        int64_t deep = pairs - p < DEPTH ? pairs - p : DEPTH, row = 1, step = PANEL;
        const pair *left = turned(panel(a, pairs, i) + p * PANEL, PANEL, deep, room, &row, &step);
        for (int64_t at = j; at < stop; at += PANEL)
            product(left, row, step, panel(b, pairs, at) + p * PANEL, PANEL, g + i * n + at, n,
                    PANEL, PANEL, deep, add || p > 0);
    }
}

/* g (m, n) = or += the sum over `pairs` pairs of positions of a (columns m) times b (columns n). */
#define BROAD (2 * PANEL)
EACH_UNIT(static, gather, m / PANEL * ((n + BROAD - 1) / BROAD), (uint32_t *, a), (uint32_t *, b),
          (float *, g), (int64_t, m), (int64_t, n), (int64_t, pairs), (int, add)) {
    int64_t across = (n + BROAD - 1) / BROAD, i = unit / across * PANEL, j = unit % across * BROAD;
    gather_rows(a, b, g, n, pairs, i, j, n - j < BROAD ? n : j + BROAD, add);
}

static inline __m512 wide(const uint16_t *x) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

static inline void slim(uint16_t *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* to[i] = x[i] for rows (m, n), n a multiple of 16. */
EACH_UNIT(static, slim_all, CHUNKS, (const float *, x), (uint16_t *, to), (int64_t, m),
          (int64_t, n)) {
    for (int64_t i = m * unit / CHUNKS * n; i < m * (unit + 1) / CHUNKS * n; i += 16)
        slim(to + i, _mm512_loadu_ps(x + i));
}
#endif
