/* maps.h for float on the products of floats.h: up to three linear maps of one input, of which the
   first two may be heads, normed, rotated and scaled. */

#ifdef MULTIPLIES
/* The forward's tiles; across is w in slabs. */
EACH_UNIT(static, float_map_tiles, TILES(s->rows), (const float *, x), (float *, across),
          (float *const *, raw), (float *const *, out), (const Maps *, s), (const Turn *, turn)) {
    int64_t t0 = unit * LANES, count = tile_rows(t0, s->rows), before = 0;
    for (int i = 0; i < MAPS; before += s->m[i++]) {
        int64_t m = s->m[i];
        if (m) rows_by_slabs(x + t0 * s->d, across, before, raw[i] + t0 * m, m, count, m, s->d);
        for (int64_t t = t0; turn && i < 2 && t < t0 + count; t++)
            heads_row_f32(raw[i], turn->cosine, turn->sine, turn->gain[i], out[i], turn->inverse[i],
                          t, turn->length, m / turn->e, turn->half, turn->e);
    }
}

/* x (rows, d) -> raw[i] (rows, m[i]), and where they turn, out[i] (batch, heads, length, e). */
static void float_maps(const float *x, const float *w, float *const *raw, float *const *out,
                       const Maps *s, const Turn *turn) {
    float *across = slabs_across(w, s->all, s->d);
    float_map_tiles(x, across, raw, out, s, turn);
    free(across);
}

typedef struct {
    const float *const *g, *const *raw, *x;
    float *const *sums, *down, *gx, *gw; /* down: w in slabs; gw: per part, (all, d) */
    const Maps *s;
    const Turn *turn;
} MapsBack;

/* The `count` positions from t0 on; kept_x and kept_g, slabs of k positions, take from k0 on what
 * the gradient of w is made from. */
static void float_map_tile_back(const MapsBack *o, int64_t t0, int64_t count, float *kept_x,
                                float *kept_g, int64_t k, int64_t k0) {
    const Maps *s = o->s;
    const Turn *turn = o->turn;
    int64_t d = s->d, all = s->all, before = 0;
    float *up = room(LANES * all * 4);
    for (int i = 0; i < MAPS; before += s->m[i++]) {
        int64_t m = s->m[i], heads = turn ? m / turn->e : 0;
        float *sums = turn && i < 2 ? o->sums[i] + t0 / LANES * heads : 0;
        if (sums) memset(sums, 0, heads * 4);
        for (int64_t r = 0; m && r < count; r++)
            if (sums)
                heads_back_row_f32(o->g[i], o->raw[i], turn->cosine, turn->sine, turn->gain[i],
                                   turn->inverse[i], up + r * all + before, sums, t0 + r,
                                   turn->length, heads, turn->half, turn->e);
            else memcpy(up + r * all + before, o->g[i] + (t0 + r) * m, m * 4);
    }
    fill_down(up, count, all, kept_g, k, k0);
    fill_down(o->x + t0 * d, count, d, kept_x, k, k0);
    rows_by_slabs(up, o->down, 0, o->gx + t0 * d, d, count, d, all);
    free(up);
}

EACH_UNIT(static, float_map_parts_back, float_parts(o->s->rows), (const MapsBack *, o)) {
    int64_t d = o->s->d, all = o->s->all;
    float *kept_x = room(FLOAT_BACK_TURN * d * 4), *kept_g = room(FLOAT_BACK_TURN * all * 4);
    Range part = part_of(o->s->rows, unit);
    for (int64_t t0 = part.first; t0 < part.last || t0 == part.first; t0 += FLOAT_BACK_TURN) {
        int64_t k = within(part.last - t0, FLOAT_BACK_TURN);
        for (int64_t k0 = 0; k0 < k; k0 += LANES)
            float_map_tile_back(o, t0 + k0, tile_rows(k0, k), kept_x, kept_g, k, k0);
        gather_slabs(kept_g, kept_x, o->gw + unit * all * d, all, d, k, t0 > part.first);
    }
    free(kept_x), free(kept_g);
}

/* Rows of the weights' gradient from those of its parts. */
EACH_UNIT(static, float_map_weights, all, (const float *, sums), (float *, gw), (int64_t, parts),
          (int64_t, all), (int64_t, d)) {
    add_parts(sums + unit * d, all * d, parts, gw + unit * d, d);
}

/* From g[i], the gradients of raw[i] or of what turned, those of x and w; sums[i] take (tiles,
 * heads) sums of the gains' gradients. */
static void float_maps_back(const float *const *g, const float *const *raw, float *const *sums,
                            const float *x, const float *w, float *gx, float *gw, const Maps *s,
                            const Turn *turn) {
    int64_t parts = float_parts(s->rows);
    float *down = slabs_down(w, s->all, s->d), *whole = room(parts * s->all * s->d * 4);
    MapsBack o = {g, raw, x, sums, down, gx, whole, s, turn};
    float_map_parts_back(&o);
    float_map_weights(whole, gw, parts, s->all, s->d);
    free(down), free(whole);
}

void maps_f32(const float *x, const float *w, float *out0, float *out1, float *out2, int64_t m0,
              int64_t m1, int64_t m2, int64_t rows, int64_t d) {
    Maps s = maps_of(m0, m1, m2, rows, d);
    float_maps(x, w, (float *const[]){out0, out1, out2}, 0, &s, 0);
}

void maps_back_f32(const float *g0, const float *g1, const float *g2, const float *x,
                   const float *w, float *gx, float *gw, int64_t m0, int64_t m1, int64_t m2,
                   int64_t rows, int64_t d) {
    Maps s = maps_of(m0, m1, m2, rows, d);
    float_maps_back((const float *const[]){g0, g1, g2}, 0, 0, x, w, gx, gw, &s, 0);
}

void project_f32(const float *x, const float *w, const float *cosine, const float *sine,
                 const float *gain_q, const float *gain_k, float *raw_q, float *raw_k, float *q,
                 float *k, float *v, float *inverse_q, float *inverse_k, int64_t heads,
                 int64_t groups, int64_t rows, int64_t d, int64_t length, int64_t half, int64_t e) {
    Maps s = maps_of(heads * e, groups * e, groups * e, rows, d);
    Turn turn = {cosine, sine, {gain_q, gain_k}, {inverse_q, inverse_k}, length, half, e};
    float_maps(x, w, (float *const[]){raw_q, raw_k, v}, (float *const[]){q, k}, &s, &turn);
}

void project_back_f32(const float *gq, const float *gk, const float *gv, const float *x,
                      const float *w, const float *cosine, const float *sine, const float *gain_q,
                      const float *gain_k, const float *raw_q, const float *raw_k, float *inverse_q,
                      float *inverse_k, float *gx, float *gw, float *sums_q, float *sums_k,
                      int64_t heads, int64_t groups, int64_t rows, int64_t d, int64_t length,
                      int64_t half, int64_t e) {
    Maps s = maps_of(heads * e, groups * e, groups * e, rows, d);
    Turn turn = {cosine, sine, {gain_q, gain_k}, {inverse_q, inverse_k}, length, half, e};
    float_maps_back((const float *const[]){gq, gk, gv}, (const float *const[]){raw_q, raw_k},
                    (float *const[]){sums_q, sums_k}, x, w, gx, gw, &s, &turn);
}
#endif
