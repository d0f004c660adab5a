/* Up to three linear maps of the same input in one pass, a tile of positions at a time: out_i = x
   W_i^T. The weights lie one below the other in w (the sum of their heights, d). Widths are
   multiples of PANEL; an absent map has width 0.

   As attention's inputs, the first two are heads of width e, normed, rotated and scaled as in
   `heads`: what `Turn` describes. */

#define MAPS 3

typedef struct {
    const float *cosine, *sine, *gain[2];
    float *inverse[2]; /* (rows, heads) */
    int64_t length, half, e;
} Turn;

typedef struct {
    int64_t m[MAPS], rows, d, all; /* widths, positions, width of the input, sum of widths */
} Maps;

static Maps maps_of(int64_t m0, int64_t m1, int64_t m2, int64_t rows, int64_t d) {
    return (Maps){{m0, m1, m2}, rows, d, m0 + m1 + m2};
}

#ifdef __AVX512BF16__
/* The forward's tiles; across is w in panels. */
EACH_UNIT(static, map_units, TILES(s->rows), (const uint16_t *, x), (uint32_t *, across),
          (uint16_t *const *, raw), (uint16_t *const *, out), (const Maps *, s),
          (const Turn *, turn)) {
    int64_t t0 = unit * LANES;
    int64_t count = tile_rows(t0, s->rows), before = 0;
    float c[LANES * PANEL] __attribute__((aligned(64)));
    for (int i = 0; i < MAPS; before += s->m[i++]) {
        int64_t m = s->m[i];
        for (int64_t j = 0; j < m; j += PANEL) {
            rows_by_panels(x + t0 * s->d, across, before + j, c, count, PANEL, s->d / 2);
            for (int64_t r = 0; r < count; r++)
                for (int64_t e = 0; e < PANEL; e += 16)
                    slim(raw[i] + (t0 + r) * m + j + e, _mm512_load_ps(c + r * PANEL + e));
        }
        for (int64_t t = t0; turn && i < 2 && t < t0 + count; t++)
            heads_row_bf16(raw[i], turn->cosine, turn->sine, turn->gain[i], out[i],
                           turn->inverse[i], t, turn->length, m / turn->e, turn->half, turn->e);
    }
}

/* x (rows, d) -> raw[i] (rows, m[i]), and where they turn, out[i] (batch, heads, length, e). */
static void map_tiles(const uint16_t *x, const uint16_t *w, uint16_t *const *raw,
                      uint16_t *const *out, const Maps *s, const Turn *turn) {
    uint32_t *across = panels_across(w, s->all, s->d);
    map_units(x, across, raw, out, s, turn);
    free(across);
}

/* The backward's tiles; down is w in panels, kept_x and kept_g take what the gradient of w is made
 * from. */
EACH_UNIT(static, map_units_back, TILES(s->rows), (const uint16_t *const *, g),
          (const uint16_t *const *, raw), (float *const *, sums), (const uint16_t *, x),
          (uint32_t *, down), (uint32_t *, kept_x), (uint32_t *, kept_g), (uint16_t *, gx),
          (const Maps *, s), (const Turn *, turn)) {
    int64_t d = s->d, all = s->all, pairs = TILES(s->rows) * LANES / 2;
    int64_t t0 = unit * LANES, count = tile_rows(t0, s->rows), before = 0;
    uint16_t *up = room(LANES * all * 2);
    float *c = room(LANES * d * 4);
    memset(up + count * all, 0, (LANES - count) * all * 2);
    for (int i = 0; i < MAPS; before += s->m[i++]) {
        int64_t m = s->m[i], heads = turn ? m / turn->e : 0;
        if (turn && i < 2) memset(sums[i] + unit * heads, 0, heads * 4);
        for (int64_t r = 0; r < count; r++)
            if (turn && i < 2)
                heads_back_row_bf16(g[i], raw[i], turn->cosine, turn->sine, turn->gain[i],
                                    turn->inverse[i], up + r * all + before, sums[i] + unit * heads,
                                    t0 + r, turn->length, heads, turn->half, turn->e);
            else memcpy(up + r * all + before, g[i] + (t0 + r) * m, m * 2);
    }
    keep_pairs(up, LANES, all, kept_g, pairs, t0 / 2);
    keep_pairs(x + t0 * d, count, d, kept_x, pairs, t0 / 2);
    rows_by_panels(up, down, 0, c, count, d, all / 2);
    for (int64_t i = 0; i < count * d; i += 16) slim(gx + t0 * d + i, _mm512_loadu_ps(c + i));
    free(up), free(c);
}

/* Backward from the gradients g[i] of what was put out; raw and sums, per tile (heads), the gains'
   gradients, where they turn. gw is laid out as w. */
static void map_tiles_back(const uint16_t *const *g, const uint16_t *const *raw, float *const *sums,
                           const uint16_t *x, const uint16_t *w, uint16_t *gx, uint16_t *gw,
                           const Maps *s, const Turn *turn) {
    int64_t d = s->d, all = s->all, pairs = TILES(s->rows) * LANES / 2;
    uint32_t *down = panels_down(w, all, d), *kept_x = room(pairs * d * 4),
             *kept_g = room(pairs * all * 4);
    map_units_back(g, raw, sums, x, down, kept_x, kept_g, gx, s, turn);
    float *sum = room(all * d * 4);
    gather(kept_g, kept_x, sum, all, d, pairs, 0);
    slim_all(sum, gw, all, d);
    free(down), free(kept_x), free(kept_g), free(sum);
}

void maps_bf16(const uint16_t *x, const uint16_t *w, uint16_t *out0, uint16_t *out1, uint16_t *out2,
               int64_t m0, int64_t m1, int64_t m2, int64_t rows, int64_t d) {
    Maps s = maps_of(m0, m1, m2, rows, d);
    map_tiles(x, w, (uint16_t *const[]){out0, out1, out2}, 0, &s, 0);
}

void maps_back_bf16(const uint16_t *g0, const uint16_t *g1, const uint16_t *g2, const uint16_t *x,
                    const uint16_t *w, uint16_t *gx, uint16_t *gw, int64_t m0, int64_t m1,
                    int64_t m2, int64_t rows, int64_t d) {
    Maps s = maps_of(m0, m1, m2, rows, d);
    map_tiles_back((const uint16_t *const[]){g0, g1, g2}, 0, 0, x, w, gx, gw, &s, 0);
}

void project_bf16(const uint16_t *x, const uint16_t *w, const float *cosine, const float *sine,
                  const float *gain_q, const float *gain_k, uint16_t *raw_q, uint16_t *raw_k,
                  uint16_t *q, uint16_t *k, uint16_t *v, float *inverse_q, float *inverse_k,
                  int64_t heads, int64_t groups, int64_t rows, int64_t d, int64_t length,
                  int64_t half, int64_t e) {
    Maps s = maps_of(heads * e, groups * e, groups * e, rows, d);
    Turn turn = {cosine, sine, {gain_q, gain_k}, {inverse_q, inverse_k}, length, half, e};
    map_tiles(x, w, (uint16_t *const[]){raw_q, raw_k, v}, (uint16_t *const[]){q, k}, &s, &turn);
}

void project_back_bf16(const uint16_t *gq, const uint16_t *gk, const uint16_t *gv,
                       const uint16_t *x, const uint16_t *w, const float *cosine, const float *sine,
                       const float *gain_q, const float *gain_k, const uint16_t *raw_q,
                       const uint16_t *raw_k, float *inverse_q, float *inverse_k, uint16_t *gx,
                       uint16_t *gw, float *sums_q, float *sums_k, int64_t heads, int64_t groups,
                       int64_t rows, int64_t d, int64_t length, int64_t half, int64_t e) {
    Maps s = maps_of(heads * e, groups * e, groups * e, rows, d);
    Turn turn = {cosine, sine, {gain_q, gain_k}, {inverse_q, inverse_k}, length, half, e};
    map_tiles_back((const uint16_t *const[]){gq, gk, gv}, (const uint16_t *const[]){raw_q, raw_k},
                   (float *const[]){sums_q, sums_k}, x, w, gx, gw, &s, &turn);
}
#endif
