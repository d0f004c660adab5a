/* Products with quantized matrices for WebAssembly, included by product.c: integers throughout.
 *
 * Inputs become 24-bit integers in two signed digits of twelve bits, so that a pair of products
 * fits the one instruction that multiplies integers and adds (i32x4.dot_i16x8_s). Sums of up to
 * 4096 columns fit 32 bits; they are joined exactly and rounded once.
 */
#include <wasm_simd128.h>

enum { DIGIT = 12, TOP = 2047 << DIGIT, LANES = 16 }; /* LANES: digits of a group, each twice */

int64_t nb_scratch(int columns, int widest) {
    int64_t padded = (widest + BLOCK - 1) / BLOCK * BLOCK;
    (void)columns; /* they take turns */
    return padded * (LANES / 4 * 2 + 4) + BLOCK;
}

/* one column's inputs: digits of each four columns (the high ones twice, then the low ones twice),
 * the whole numbers, their sum, and the step that they count */
typedef struct {
    int16_t *digits;
    int32_t *whole;
    int64_t sum;
    float step;
} inputs;

/* x[at .. at + 4) times the columns' factors, zeros beyond the last column */
INLINE v128_t load(const nb_matrix *m, const float *x, int at) {
    v128_t part = wasm_v128_load(x + at);
    if (m->columns) part = wasm_f32x4_mul(part, wasm_v128_load(m->columns + at));
    if (at + 4 <= m->cols) return part;
    v128_t left = wasm_i32x4_make(0, 1, 2, 3);
    return wasm_v128_and(part, wasm_i32x4_lt(left, wasm_i32x4_splat(m->cols - at)));
}

static void split(const job *j, const float *x, inputs *to) {
    v128_t top = wasm_f32x4_splat(0), sum = wasm_i64x2_splat(0);
    for (int g = 0; g < j->groups; g++)
        top = wasm_f32x4_max(top, wasm_f32x4_abs(load(j->m, x, 4 * g)));
    float most = 0;
    float each[4];
    wasm_v128_store(each, top);
    for (int i = 0; i < 4; i++) most = each[i] > most ? each[i] : most;
    v128_t factor = wasm_f32x4_splat(most > 0 ? TOP / most : 0);
    for (int g = 0; g < j->groups; g++) {
        v128_t scaled = wasm_f32x4_nearest(wasm_f32x4_mul(load(j->m, x, 4 * g), factor));
        v128_t q = wasm_i32x4_trunc_sat_f32x4(scaled);
        v128_t high = wasm_i32x4_shr(wasm_i32x4_add(q, wasm_i32x4_splat(1 << (DIGIT - 1))), DIGIT);
        v128_t low = wasm_i32x4_sub(q, wasm_i32x4_shl(high, DIGIT));
        wasm_v128_store(to->whole + 4 * g, q);
        wasm_v128_store(to->digits + LANES * g, wasm_i16x8_narrow_i32x4(high, high));
        wasm_v128_store(to->digits + LANES * g + 8, wasm_i16x8_narrow_i32x4(low, low));
        sum = wasm_i64x2_add(
            sum, wasm_i64x2_add(wasm_i64x2_extend_low_i32x4(q), wasm_i64x2_extend_high_i32x4(q)));
    }
    to->sum = wasm_i64x2_extract_lane(sum, 0) + wasm_i64x2_extract_lane(sum, 1);
    to->step = most / TOP;
}

/* numbers of `bits` of four rows (the `part`-th) of a quarter of a unit: four columns each */
INLINE v128_t numbers(const uint8_t *unit, int bits, int quarter, int part) {
    const uint8_t *at = unit + part * 16;
    v128_t raw = wasm_v128_load(at + (bits == 6 ? quarter % 3 : quarter * bits / 8) * BLOCK);
    if (bits == 8) return raw;
    if (bits == 6 && quarter == 3) {
        v128_t second = wasm_v128_load(at + BLOCK), third = wasm_v128_load(at + 2 * BLOCK);
        v128_t high = wasm_v128_and(wasm_u32x4_shr(raw, 2), wasm_i8x16_splat(0x30));
        v128_t middle = wasm_v128_and(wasm_u32x4_shr(second, 4), wasm_i8x16_splat(0x0c));
        v128_t low = wasm_v128_and(wasm_u32x4_shr(third, 6), wasm_i8x16_splat(0x03));
        return wasm_v128_or(high, wasm_v128_or(middle, low));
    }
    if (bits < 6) raw = wasm_u32x4_shr(raw, quarter * bits % 8);
    return wasm_v128_and(raw, wasm_i8x16_splat((1 << bits) - 1));
}

/* the sums of neighbours: of four rows that have two lanes each */
INLINE v128_t joined(v128_t a, v128_t b) {
    return wasm_i32x4_add(wasm_i32x4_shuffle(a, b, 0, 2, 4, 6),
                          wasm_i32x4_shuffle(a, b, 1, 3, 5, 7));
}

/* total += weight times numbers of `bits` of half a block's rows times x; four rows at a time,
 * whose sums stay in registers */
INLINE void add_plane(const uint8_t *codes, int bits, int groups, int half, const inputs *x,
                      double weight, double *total) {
    for (int part = 0; part < 4; part++, total += 4) {
        v128_t sum[4];
        for (int i = 0; i < 4; i++) sum[i] = wasm_i32x4_splat(0);
        const uint8_t *unit = codes;
        const int16_t *digits = x->digits;
        for (int g = 0; g < groups; g += 2, unit += UNIT / 8 * bits)
            for (int k = 0; k < 2; k++, digits += LANES) {
                v128_t high = wasm_v128_load(digits), low = wasm_v128_load(digits + 8);
                v128_t w = numbers(unit, bits, k * HALVES + half, part);
                v128_t one = wasm_u16x8_extend_low_u8x16(w), two = wasm_u16x8_extend_high_u8x16(w);
                sum[0] = wasm_i32x4_add(sum[0], wasm_i32x4_dot_i16x8(one, high));
                sum[1] = wasm_i32x4_add(sum[1], wasm_i32x4_dot_i16x8(two, high));
                sum[2] = wasm_i32x4_add(sum[2], wasm_i32x4_dot_i16x8(one, low));
                sum[3] = wasm_i32x4_add(sum[3], wasm_i32x4_dot_i16x8(two, low));
            }
        int32_t high[4], low[4];
        wasm_v128_store(high, joined(sum[0], sum[1]));
        wasm_v128_store(low, joined(sum[2], sum[3]));
        for (int i = 0; i < 4; i++)
            total[i] += weight * ((double)high[i] * (1 << DIGIT) + (double)low[i]);
    }
}

/* half a block: sixteen rows from `row` on */
INLINE void half_of(const job *j, const uint8_t *codes, int bits, int row, int half,
                    const inputs *x, float *out) {
    double total[WIDE], offset = -(double)(1 << (bits - 1)) * (double)x->sum;
    for (int i = 0; i < WIDE; i++) total[i] = offset;
    for (int p = 0; 8 * p < bits; p++, codes += j->groups * (UNIT / 2))
        add_plane(codes, bits - 8 * p < 8 ? bits - 8 * p : 8, j->groups, half, x,
                  (double)(1 << 8 * p), total);
    if (j->m->tail) {
        const nb_tail *end = j->m->tail + j->m->tail_at[row / WIDE + 1];
        for (const nb_tail *t = j->m->tail + j->m->tail_at[row / WIDE]; t < end; t++)
            total[t->row] += (double)t->rest * x->whole[t->column];
    }
    for (int i = 0; i < WIDE && row + i < j->m->rows; i++)
        out[row + i] = j->m->scales[row + i] * (x->step * (float)total[i]);
}

INLINE void matrix_of(const job *j, int bits, const inputs *x, float *out, int first, int end) {
    for (int row = first; row < end; row += ROWS) {
        const uint8_t *codes = j->m->codes + row / ROWS * j->block;
        half_of(j, codes, bits, row, 0, x, out);
        if (row + WIDE < end) half_of(j, codes, bits, row + WIDE, 1, x, out);
    }
}

static void multiply(job *j, int n, int first, int end, void *scratch) {
    for (int c = 0; c < n; c++) {
        inputs x = {scratch, (int32_t *)((int16_t *)scratch + LANES * j->groups), 0, 0};
        float *out = j->out + c * j->out_stride;
        split(j, j->in + c * j->in_stride, &x);
        EACH_WIDTH(matrix_of(j, BITS, &x, out, first, end))
    }
}
