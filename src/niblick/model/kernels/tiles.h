/* Products on the matrix tiles of a processor that has them (AMX, bfloat16): what products.h does a
   vector at a time, sixteen rows at a time.

   A tile is 16 rows of 64 bytes. Of the eight, four hold a block of 32 by 32 sums, two take rows of
   A (16 pairs each), two take 16 pairs of B by 16 columns, which is how panels lie. Each thread
   sets its tiles up when a call begins on it and gives them back when it ends: state that lies in
   them makes switching threads slow. */

#if defined(__AVX512BF16__) && defined(__linux__) && defined(__x86_64__)
#define HAS_TILES
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SIDE = 16,
    DEPTH = 256
}; /* rows of a tile, pairs in its row; pairs that are taken at once */
enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 }; /* of arch_prctl */

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

static const TileShapes tile_shapes __attribute__((aligned(64))) = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
static int has_tiles;
static _Thread_local int tiles_held; /* by how many calls, one inside the other */

#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t::)
#define TILE_LOAD(t, from, stride)                                                                 \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t::"r"(from), "r"((int64_t)(stride)) : "memor"  \
                                                                                          "y")
#define TILE_STORE(t, to, stride)                                                                  \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride))         \
                     : "memory")
#define TILE_ADD(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c::)

static void hold_tiles(void) {
    if (!tiles_held++) __asm__ volatile("ldtilecfg %0" ::"m"(tile_shapes));
}

static void free_tiles(void) {
    if (!--tiles_held) __asm__ volatile("tilerelease" ::);
}

/* Whether products use tiles from now on: where that is `wanted` and processor and system let us.
 */
int64_t use_tiles(int64_t wanted) {
    unsigned a, b, c, d, low = 0, high;
    has_tiles = 0;
    if (wanted && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1)) {
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        has_tiles = (low >> 17 & 3) == 3 && !syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA);
    }
    nb_around(has_tiles ? hold_tiles : 0, has_tiles ? free_tiles : 0);
    return has_tiles;
}

/* 16 rows of 16 pairs, `step` apart, to where they are columns. */
static inline void turn_square(const uint32_t *from, int64_t step, uint32_t *to, int64_t stride) {
    __m512i x[SIDE], y[SIDE];
    _Pragma("GCC unroll 16") for (int i = 0; i < SIDE; i++) x[i] =
        _mm512_loadu_si512(from + i * step);
    _Pragma("GCC unroll 16") for (int i = 0; i < SIDE; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < SIDE; i += 4) {
        _Pragma("GCC unroll 2") for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
        }
    }
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(to + i * stride, _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 8) * stride, _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd));
    }
}

/* C (16 or 32, 16 or 32) = or += A B over k2 pairs, a multiple of 16; A by rows. */
static inline __attribute__((always_inline)) void tile_block(const pair *a, int64_t row,
                                                             const uint32_t *b, int64_t ldb,
                                                             float *c, int64_t ldc, int64_t k2,
                                                             int tall, int wide, int add) {
    float *low = c + SIDE * ldc;
    const pair *a_low = a + SIDE * row;
    if (add) TILE_LOAD(0, c, 4 * ldc);
    else TILE_ZERO(0);
    if (wide && add) TILE_LOAD(1, c + SIDE, 4 * ldc);
    else if (wide) TILE_ZERO(1);
    if (tall && add) TILE_LOAD(2, low, 4 * ldc);
    else if (tall) TILE_ZERO(2);
    if (tall && wide && add) TILE_LOAD(3, low + SIDE, 4 * ldc);
    else if (tall && wide) TILE_ZERO(3);
    for (int64_t p = 0; p < k2; p += SIDE) {
        TILE_LOAD(4, a + p, 4 * row);
        TILE_LOAD(6, b + ldb * p, 4 * ldb);
        TILE_ADD(0, 4, 6);
        if (wide) TILE_LOAD(7, b + ldb * p + SIDE, 4 * ldb);
        if (wide) TILE_ADD(1, 4, 7);
        if (tall) TILE_LOAD(5, a_low + p, 4 * row);
        if (tall) TILE_ADD(2, 5, 6);
        if (tall && wide) TILE_ADD(3, 5, 7);
    }
    TILE_STORE(0, c, 4 * ldc);
    if (wide) TILE_STORE(1, c + SIDE, 4 * ldc);
    if (tall) TILE_STORE(2, low, 4 * ldc);
    if (tall && wide) TILE_STORE(3, low + SIDE, 4 * ldc);
}

/* C (m, n) = or += A B over k2 pairs; all multiples of 16, A by rows. */
static void tile_blocks(const pair *a, int64_t row, const uint32_t *b, int64_t ldb, float *c,
                        int64_t ldc, int64_t m, int64_t n, int64_t k2, int add) {
    for (int64_t j = 0; j < n; j += 2 * SIDE) {
        int wide = n - j > SIDE;
        for (int64_t i = 0; i < m; i += 2 * SIDE) {
            const pair *rows = a + row * i;
            float *to = c + ldc * i + j;
            int tall = m - i > SIDE;
            if (tall && wide) tile_block(rows, row, b + j, ldb, to, ldc, k2, 1, 1, add);
            else if (wide) tile_block(rows, row, b + j, ldb, to, ldc, k2, 0, 1, add);
            else if (tall) tile_block(rows, row, b + j, ldb, to, ldc, k2, 1, 0, add);
            else tile_block(rows, row, b + j, ldb, to, ldc, k2, 0, 0, add);
        }
    }
}

/* Pairs (k2, m), rows `step` apart, by columns to `to`, DEPTH in a row; multiples of 16. */
static void turn_pairs(const pair *a, int64_t step, uint32_t *to, int64_t m, int64_t k2) {
    for (int64_t p = 0; p < k2; p += SIDE)
        for (int64_t i = 0; i < m; i += SIDE)
            turn_square((const uint32_t *)a + step * p + i, step, to + DEPTH * i + p, DEPTH);
}

/* Pairs (k2, m) as product takes them: by rows, in `room` for m times DEPTH, where that is a gain.
 */
static const pair *turned(const pair *a, int64_t m, int64_t k2, uint32_t *room, int64_t *row,
                          int64_t *step) {
    if (!has_tiles || k2 % SIDE) return a;
    turn_pairs(a, *step, room, m, k2);
    *row = DEPTH, *step = 1;
    return room;
}

/* The last pairs, under 16, of a product: filled up with zeros. */
static void tile_rest(const pair *a, int64_t row, int64_t step, const uint32_t *b, int64_t ldb,
                      float *c, int64_t ldc, int64_t m, int64_t n, int64_t k2, int add) {
    uint32_t left[m * SIDE], right[SIDE * n];
    memset(left, 0, sizeof left);
    memset(right + k2 * n, 0, (SIDE - k2) * n * 4);
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k2; p++) left[i * SIDE + p] = a[row * i + step * p];
    for (int64_t p = 0; p < k2; p++) memcpy(right + p * n, b + ldb * p, n * 4);
    tile_blocks(left, SIDE, right, n, c, ldc, m, n, SIDE, add);
}

/* As `product`, for m that is a multiple of 16. */
static void tile_product(const pair *a, int64_t row, int64_t step, const uint32_t *b, int64_t ldb,
                         float *c, int64_t ldc, int64_t m, int64_t n, int64_t k2, int add) {
    int64_t whole = k2 / SIDE * SIDE;
    if (step == 1 && whole) tile_blocks(a, row, b, ldb, c, ldc, m, n, whole, add);
    for (int64_t p = 0; step > 1 && p < whole; p += DEPTH)
        for (int64_t i = 0; i < m; i += 64) {
            uint32_t turned[64 * DEPTH] __attribute__((aligned(64)));
            int64_t deep = whole - p < DEPTH ? whole - p : DEPTH, high = m - i < 64 ? m - i : 64;
            turn_pairs(a + step * p + i, step, turned, high, deep);
            tile_blocks(turned, DEPTH, b + ldb * p, ldb, c + ldc * i, ldc, high, n, deep, add || p);
        }
    if (whole < k2)
        tile_rest(a + step * whole, row, step, b + ldb * whole, ldb, c, ldc, m, n, k2 - whole,
                  add || whole);
}
#else
enum { DEPTH = 256 };
static const pair *turned(const pair *a, int64_t m, int64_t k2, uint32_t *room, int64_t *row,
                          int64_t *step) {
    return a;
}
int64_t use_tiles(int64_t wanted) { return 0; }
#endif
