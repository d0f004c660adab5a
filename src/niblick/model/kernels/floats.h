/* Products of float, for processors with AVX2 or AVX-512; included by what is built on them.

   A block of C, RISE rows of SLAB columns, stays in registers. B lies in slabs, strips of SLAB
   columns, each contiguous: row p of column j at [j / SLAB][p][j % SLAB]; A is read as it lies, by
   rows or by columns. */

#if defined(__AVX2__) && defined(__FMA__)
#define MULTIPLIES
#include <immintrin.h>
#ifdef __AVX512F__
#define VEC __m512
#define V(op) _mm512_##op##_ps
enum { WIDE = 16 };
#else
#define VEC __m256
#define V(op) _mm256_##op##_ps
enum { WIDE = 8 };
#endif
enum { SLAB = 2 * WIDE, RISE = 6, DEEP = 256 }; /* DEEP: rows of B taken at once */

/* C (MR, NV vectors) = or += A B over k terms: A at a[row * i + step * p], B at b[ldb * p + j]. */
#define FLOAT_BLOCK(MR, NV)                                                                        \
    static void float_block_##MR##_##NV(const float *a, int64_t row, int64_t step, const float *b, \
                                        int64_t ldb, float *c, int64_t ldc, int64_t k, int add) {  \
        VEC sum[MR][NV];                                                                           \
        _Pragma("GCC unroll 6") for (int i = 0; i < MR; i++)                                       \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] = V(setzero)();         \
        for (int64_t p = 0; p < k; p++, a += step, b += ldb) {                                     \
            VEC in[NV];                                                                            \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) in[v] = V(loadu)(b + WIDE * v);   \
            _Pragma("GCC unroll 6") for (int i = 0; i < MR; i++) {                                 \
                VEC one = V(set1)(a[row * i]);                                                     \
                _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) sum[i][v] =                   \
                    V(fmadd)(one, in[v], sum[i][v]);                                               \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 6") for (int i = 0; i < MR; i++)                                       \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) {                                 \
            float *to = c + i * ldc + WIDE * v;                                                    \
            V(storeu)(to, add ? V(add)(V(loadu)(to), sum[i][v]) : sum[i][v]);                      \
        }                                                                                          \
    }
#define FLOAT_BLOCKS(MR) FLOAT_BLOCK(MR, 1) FLOAT_BLOCK(MR, 2)
FLOAT_BLOCKS(1)
FLOAT_BLOCKS(2)
FLOAT_BLOCKS(3)
FLOAT_BLOCKS(4)
FLOAT_BLOCKS(5)
FLOAT_BLOCKS(6)

typedef void FloatBlock(const float *, int64_t, int64_t, const float *, int64_t, float *, int64_t,
                        int64_t, int);
#define OF_HEIGHTS(NV)                                                                             \
    {0,                                                                                            \
     float_block_1_##NV,                                                                           \
     float_block_2_##NV,                                                                           \
     float_block_3_##NV,                                                                           \
     float_block_4_##NV,                                                                           \
     float_block_5_##NV,                                                                           \
     float_block_6_##NV}
static FloatBlock *const float_blocks[2][RISE + 1] = {OF_HEIGHTS(1), OF_HEIGHTS(2)};

/* C (m, n) = or += A B over k terms, n a multiple of WIDE; rows go to blocks of nearly equal
 * height, so that none waits for its own sums. */
static void multiply(const float *a, int64_t row, int64_t step, const float *b, int64_t ldb,
                     float *c, int64_t ldc, int64_t m, int64_t n, int64_t k, int add) {
    int64_t count = (m + RISE - 1) / RISE;
    for (int64_t j = 0; j < n; j += SLAB)
        for (int64_t u = 0, i = 0; u < count; u++) {
            int64_t rise = m / count + (u < m % count);
            float_blocks[n - j >= SLAB][rise](a + row * i, row, step, b + j, ldb, c + ldc * i + j,
                                              ldc, k, add);
            i += rise;
        }
}

static inline float *slab(float *slabs, int64_t k, int64_t column) {
    return slabs + column / SLAB * k * SLAB;
}

/* Rows of x (length, width) as columns: slabs of `length` columns, `width` rows each. */
static void fill_across(const float *x, int64_t length, int64_t width, float *out) {
    for (int64_t t = 0; t < length; t++) {
        float *to = slab(out, width, t) + t % SLAB;
        for (int64_t p = 0; p < width; p++) to[p * SLAB] = x[t * width + p];
    }
}

static float *slabs_across(const float *x, int64_t length, int64_t width) {
    float *out = room(length * width * 4);
    fill_across(x, length, width, out);
    return out;
}

/* `count` rows of x (width) to slabs of k rows, from row k0 on. */
static void fill_down(const float *x, int64_t count, int64_t width, float *out, int64_t k,
                      int64_t k0) {
    for (int64_t j = 0; j < width; j += SLAB)
        for (int64_t t = 0; t < count; t++)
            memcpy(slab(out, k, j) + (k0 + t) * SLAB, x + t * width + j, SLAB * 4);
}

static float *slabs_down(const float *x, int64_t length, int64_t width) {
    float *out = room(length * width * 4);
    fill_down(x, length, width, out, length, 0);
    return out;
}

/* C (m, n), rows ldc apart, = A B: A by rows of k, B in slabs of which columns j .. j + n. */
static void rows_by_slabs(const float *a, float *b, int64_t j, float *c, int64_t ldc, int64_t m,
                          int64_t n, int64_t k) {
    for (int64_t i = 0; i < n; i += SLAB)
        for (int64_t p = 0; p < k; p += DEEP)
            multiply(a + p, k, 1, slab(b, k, i + j) + p * SLAB, SLAB, c + i, ldc, m, SLAB,
                     k - p < DEEP ? k - p : DEEP, p > 0);
}

/* g (m, n) = or += the sum over k positions of a (columns m) times b (columns n), both in slabs. */
static void gather_slabs(float *a, float *b, float *g, int64_t m, int64_t n, int64_t k, int add) {
    for (int64_t i = 0; i < m; i += SLAB)
        for (int64_t p = 0; p < k || p == 0; p += DEEP)
            for (int64_t j = 0; j < n; j += SLAB)
                multiply(slab(a, k, i) + p * SLAB, 1, SLAB, slab(b, k, j) + p * SLAB, SLAB,
                         g + i * n + j, n, SLAB, SLAB, k - p < DEEP ? k - p : DEEP, add || p > 0);
}

/* A backward divides its positions into parts of whole tiles, as many for any number of threads.
   One task does all of a part, FLOAT_BACK_TURN positions at a time, whose slabs stay in the nearest
   caches, and has sums of its own for the weights' gradients. */
#define FLOAT_BACK_TURN 256 /* a multiple of LANES */

static inline int64_t part_tiles(int64_t rows) {
    int64_t tiles = (TILES(rows) + 7) / 8;
    return tiles < 2 ? 2 : tiles > 16 ? 16 : tiles;
}

static inline int64_t float_parts(int64_t rows) {
    int64_t each = part_tiles(rows);
    return rows ? (TILES(rows) + each - 1) / each : 1;
}

static inline Range part_of(int64_t rows, int64_t part) {
    int64_t each = part_tiles(rows) * LANES, first = part * each;
    return (Range){first, first + each < rows ? first + each : rows};
}

/* out (n) = the sum of `parts` rows of `size`, in their order. */
static void add_parts(const float *sums, int64_t size, int64_t parts, float *out, int64_t n) {
    memcpy(out, sums, n * 4);
    for (int64_t p = 1; p < parts; p++)
        INDEPENDENT for (int64_t i = 0; i < n; i++) out[i] += sums[p * size + i];
}

/* 2^x for x <= 0 with relative error under 3e-7, 0 far below. */
static inline VEC power_of_two(VEC x) {
#ifdef __AVX512F__
    x = _mm512_max_ps(x, _mm512_set1_ps(-200));
    VEC k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = _mm256_max_ps(x, _mm256_set1_ps(-127)); /* whose power is 0 below */
    VEC k = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
    VEC t = V(sub)(x, k), p = V(set1)(1.3333558e-3f);
    p = V(fmadd)(p, t, V(set1)(9.6181291e-3f));
    p = V(fmadd)(p, t, V(set1)(5.5504109e-2f));
    p = V(fmadd)(p, t, V(set1)(2.4022651e-1f));
    p = V(fmadd)(p, t, V(set1)(6.9314718e-1f));
    p = V(fmadd)(p, t, V(set1)(1));
#ifdef __AVX512F__
    return _mm512_scalef_ps(p, k);
#else
    __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
#endif
}

int64_t multiplies(void) { return 1; }
#else
int64_t multiplies(void) { return 0; }
#endif
