/* What opening a file takes beside its symbols: the tables that coding starts from, as fixed.py
 * makes them, and the values of a quantized tensor, as quantized.py does. Equal bit for bit: no
 * contraction of products and sums, no reordering.
 */
#include <float.h>
#include <stdint.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic is wider than its type here"
#endif

typedef __int128 wide;
#define ONE ((wide)1 << 60) /* of numbers with 60 binary digits behind the point */

static wide floor_divide(wide value, wide by) { return value / by - (value % by < 0); }

static wide square_root(wide value) {
    wide root = 0;
    for (wide bit = (wide)1 << 62; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= value) root += bit;
    return root;
}

/* r^k with r = (sqrt(1 + m^2) - 1) / m, scaled by 2^30. */
static void geometric(int64_t mean, int64_t limit, wide *law) {
    const wide root = square_root((((wide)1 << 16) + (wide)mean * mean) << 60);
    const wide ratio = ((root - ((wide)1 << 38)) << 30) / ((wide)mean << 30);
    law[0] = (wide)1 << 30;
    for (int64_t k = 0; k < limit; k++) law[k + 1] = law[k] * ratio >> 30;
}

/* exp(-k^2 / (pi m^2)), whose magnitudes have mean m, scaled by 2^60. */
static void gaussian(int64_t mean, int64_t limit, wide *law) {
    const wide exponent = ONE * (1 << 16) * 113 / ((wide)355 * mean * mean);
    wide ratio = ONE, term = ONE;
    for (int n = 1; n < 24; n++) {
        term = floor_divide(-term * exponent, n * ONE);
        ratio += term;
    }
    wide factor = ratio;
    law[0] = ONE;
    for (int64_t k = 0; k < limit; k++) {
        law[k + 1] = law[k] * factor >> 60;
        factor = (factor * ratio >> 60) * ratio >> 60;
    }
}

static void add_law(const wide *law, int64_t limit, wide share, int whole, int64_t *half) {
    wide total = 0;
    for (int64_t k = 1; k <= limit; k++) total += law[k];
    total = whole * (law[0] + 2 * total);
    for (int64_t k = 0; k <= limit; k++) half[k] += (int64_t)(share * law[k] / total);
}

/* `prior` of fixed.py: counts of the symbols -limit .. limit; `law` is scratch of limit + 1. */
void niblick_prior(int64_t mean, int64_t limit, int64_t weight, wide *law, int64_t *counts) {
    int64_t *half = counts + limit;
    for (int64_t k = 0; k <= limit; k++) half[k] = 0;
    const int whole = mean >= 256 ? 4 : 1;
    geometric(mean, limit, law);
    add_law(law, limit, weight, whole, half);
    if (whole > 1) {
        gaussian(mean, limit, law);
        add_law(law, limit, (wide)weight * 3, whole, half);
    }
    for (int64_t k = 0; k <= limit; k++) half[k] = half[k] > 1 ? half[k] : 1;
    for (int64_t k = 1; k <= limit; k++) half[-k] = half[k];
}

/* A row's values; 0.0f makes one zero of two. */
#define ROW(type)                                                                                  \
    for (int64_t c = 0; c < columns; c++)                                                          \
    out[c] = (float)((double)((const type *)codes)[c] * (step * factors[c])) + 0.0f

/* `QuantizedTensor.dequantize` for codes of 1, 2 or 4 bytes: float32 (rows, columns). */
void niblick_dequantize(const char *codes, int64_t size, int64_t rows, int64_t columns,
                        const double *steps, const double *factors, float *out) {
    for (int64_t r = 0; r < rows; r++, codes += size * columns, out += columns) {
        const double step = steps[r];
        if (size == 1) ROW(int8_t);
        else if (size == 2) ROW(int16_t);
        else ROW(int32_t);
    }
}

/* A function for each size of codes that are given as bytes. */
#define BY_SIZE(size, name, ...)                                                                   \
    if (size == 1) name##_1(__VA_ARGS__);                                                          \
    else if (size == 2) name##_2(__VA_ARGS__);                                                     \
    else name##_4(__VA_ARGS__)

#define ROWS 32 /* of a block, and how many columns of it stand together, as engine.h has them */
#define GROUP 4
#define UNIT 256

/* What weights.py does to lay codes out, CHUNK codes at a time, for which a counter of any type has
 * room. `wider` counts those that need more bits, for each of some numbers of them; `outside` gives
 * the places of those beyond `most`; `fill` a unit: two groups of columns, cut off at the range of
 * their bits, plus half that range. */
#define CHUNK 128
#define LAYING(type, unsigned_type, bytes)                                                         \
    static unsigned_type beyond_##bytes(const type *codes, int64_t count, int32_t most) {          \
        unsigned_type found = 0;                                                                   \
        for (int64_t i = 0; i < count; i++)                                                        \
            found +=                                                                               \
                (unsigned_type)(codes[i] ^ codes[i] >> (8 * bytes - 1)) > (unsigned_type)most;     \
        return found;                                                                              \
    }                                                                                              \
    static void wider_##bytes(const type *codes, int64_t count, const int64_t *bits,               \
                              int64_t kinds, int64_t *wider) {                                     \
        for (int64_t at = 0; at < count; at += CHUNK)                                              \
            for (int64_t k = 0; k < kinds && bits[k] < 8 * bytes; k++)                             \
                wider[k] += beyond_##bytes(codes + at, count - at < CHUNK ? count - at : CHUNK,    \
                                           (1 << (bits[k] - 1)) - 1);                              \
    }                                                                                              \
    static void outside_##bytes(const type *codes, int64_t count, int32_t most, int64_t *places) { \
        for (int64_t at = 0; at < count; at += CHUNK) {                                            \
            const int64_t end = count - at < CHUNK ? count : at + CHUNK;                           \
            if (beyond_##bytes(codes + at, end - at, most))                                        \
                for (int64_t i = at; i < end; i++)                                                 \
                    if (codes[i] > most || codes[i] < -most - 1) *places++ = i;                    \
        }                                                                                          \
    }                                                                                              \
    static inline __attribute__((always_inline)) void fill_##bytes(                                \
        const type *codes, int64_t rows, int64_t columns, int64_t stride, int32_t most,            \
        uint8_t *unit) {                                                                           \
        for (int64_t r = 0; r < rows; r++)                                                         \
            for (int64_t c = 0; c < columns; c++) {                                                \
                const int32_t code = codes[r * stride + c];                                        \
                const int32_t low = code < -most - 1 ? -most - 1 : code;                           \
                const int32_t kept = low > most ? most : low;                                      \
                unit[c / GROUP * ROWS * GROUP + r * GROUP + c % GROUP] =                           \
                    (uint8_t)(kept + most + 1);                                                    \
            }                                                                                      \
    }
LAYING(int8_t, uint8_t, 1)
LAYING(int16_t, uint16_t, 2)
LAYING(int32_t, uint32_t, 4)

/* By each of `kinds` numbers of `bits`, in rising order: how many codes need more. */
void niblick_wider(const void *codes, int64_t size, int64_t count, const int64_t *bits,
                   int64_t kinds, int64_t *wider) {
    for (int64_t k = 0; k < kinds; k++) wider[k] = 0;
    BY_SIZE(size, wider, codes, count, bits, kinds, wider);
}

void niblick_outside(const void *codes, int64_t size, int64_t count, int64_t most,
                     int64_t *places) {
    BY_SIZE(size, outside, codes, count, (int32_t)most, places);
}

/* The four quarters of a unit in their low bits; what is written. */
static uint8_t *pack(const uint8_t *unit, int64_t bits, uint8_t *out) {
    const uint8_t *one = unit, *two = unit + 64, *three = unit + 128, *four = unit + 192;
    for (int i = 0; i < 64; i++) {
        if (bits == 8) {
            out[i] = one[i], out[64 + i] = two[i], out[128 + i] = three[i], out[192 + i] = four[i];
        } else if (bits == 6) {
            out[i] = (uint8_t)(one[i] | (four[i] << 2 & 0xC0));
            out[64 + i] = (uint8_t)(two[i] | (four[i] << 4 & 0xC0));
            out[128 + i] = (uint8_t)(three[i] | four[i] << 6);
        } else if (bits == 4) {
            out[i] = (uint8_t)(one[i] | two[i] << 4);
            out[64 + i] = (uint8_t)(three[i] | four[i] << 4);
        } else {
            out[i] = (uint8_t)(one[i] | two[i] << 2 | three[i] << 4 | four[i] << 6);
        }
    }
    return out + 32 * bits;
}

/* Codes (rows, columns) in 2, 4, 6 or 8 bits: blocks of rows, columns filled up to 64. */
void niblick_lay_out(const char *codes, int64_t size, int64_t rows, int64_t columns, int64_t bits,
                     uint8_t *out) {
    const int32_t most = (1 << (bits - 1)) - 1;
    uint8_t unit[UNIT];
    for (int64_t row = 0; row < rows; row += ROWS)
        for (int64_t column = 0; column < (columns + 63) / 64 * 64; column += 2 * GROUP) {
            const int64_t high = rows - row < ROWS ? rows - row : ROWS;
            const int64_t left = columns - column, most_wide = 2 * GROUP;
            const int64_t wide = left < 0 ? 0 : left < most_wide ? left : most_wide;
            const void *from = codes + size * (row * columns + column);
            if (high == ROWS && wide == 2 * GROUP) {
                BY_SIZE(size, fill, from, ROWS, 2 * GROUP, columns, most, unit);
            } else {
                for (int i = 0; i < UNIT; i++) unit[i] = (uint8_t)(most + 1);
                BY_SIZE(size, fill, from, high, wide, columns, most, unit);
            }
            out = pack(unit, bits, out);
        }
}
