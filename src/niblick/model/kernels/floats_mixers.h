/* channel.h and token_shift.h for float on the products of floats.h: the same equations, the same
   arguments. Widths are multiples of PANEL. */

#ifdef MULTIPLIES
#define FLOAT_STRIP 64 /* hidden channels of one product */

/* y = x + a branch and n = scale rms(y) for the rows of a tile. */
static void float_add_norm(const float *x, const float *branch, const float *a, float scale,
                           float *y, float *n, float *inverse, int64_t count, int64_t d) {
    for (int64_t r = 0; r < count; r++, x += d, branch += d, y += d, n += d) {
        float sum = 0;
        INDEPENDENT for (int64_t j = 0; j < d; j++) y[j] = x[j] + a[j] * branch[j];
        INDEPENDENT for (int64_t j = 0; j < d; j++) sum += y[j] * y[j];
        float inv = inverse[r] = 1 / sqrtf(sum / d + FLT_EPSILON);
        INDEPENDENT for (int64_t j = 0; j < d; j++) n[j] = y[j] * inv * scale;
    }
}

/* Its backward from g, the gradient of y, and gn, that of n; adds up the gradient of a. */
static void float_add_norm_back(const float *g, const float *gn, const float *y,
                                const float *inverse, const float *branch, const float *a,
                                float scale, float *gx, float *gbranch, float *ga, int64_t count,
                                int64_t d) {
    memset(ga, 0, d * 4);
    for (int64_t r = 0; r < count;
         r++, g += d, gn += d, y += d, branch += d, gx += d, gbranch += d) {
        float dot = 0, k = scale * inverse[r];
        INDEPENDENT for (int64_t j = 0; j < d; j++) dot += gn[j] * y[j];
        float pull = dot / d * inverse[r] * inverse[r];
        INDEPENDENT for (int64_t j = 0; j < d; j++) {
            float whole = g[j] + k * (gn[j] - y[j] * pull);
            ga[j] += whole * branch[j];
            gx[j] = whole;
            gbranch[j] = whole * a[j];
        }
    }
}

/* The forward's tiles; up and down are the weights in slabs. */
EACH_UNIT(static, float_channel_tiles, TILES(rows), (const float *, x), (const float *, branch),
          (const float *, a), (const float *, s), (float *, up), (float *, down), (float, slope),
          (float, scale), (float *, y), (float *, inverse), (float *, h), (float *, out),
          (int64_t, rows), (int64_t, d), (int64_t, m)) {
    int64_t t0 = unit * LANES, count = tile_rows(t0, rows), at = t0 * d;
    float *n = room(LANES * d * 4), *act = room(LANES * m * 4);
    float_add_norm(x + at, branch + at, a, scale, y + at, n, inverse + t0, count, d);
    for (int64_t j = 0; j < m; j += FLOAT_STRIP) {
        int64_t wide_by = m - j < FLOAT_STRIP ? m - j : FLOAT_STRIP;
        float *strip = h + t0 * m + j;
        rows_by_slabs(n, up, j, strip, m, count, wide_by, d);
        for (int64_t r = 0; r < count; r++) INDEPENDENT for (int64_t i = 0; i < wide_by; i++) {
                float v = strip[r * m + i], bend = v > 0 ? v : v * slope;
                act[r * m + j + i] = bend * bend;
            }
    }
    rows_by_slabs(act, down, 0, n, d, count, d, m);
    for (int64_t r = 0; r < count; r++)
        INDEPENDENT for (int64_t j = 0; j < d; j++) out[at + r * d + j] =
            y[at + r * d + j] + s[j] * n[r * d + j];
    free(n), free(act);
}

void channel_f32(const float *x, const float *branch, const float *a, const float *s,
                 const float *w1, const float *w2, float slope, float scale, float *y,
                 float *inverse, float *h, float *out, int64_t rows, int64_t d, int64_t m) {
    float *up = slabs_across(w1, m, d), *down = slabs_across(w2, d, m);
    float_channel_tiles(x, branch, a, s, up, down, slope, scale, y, inverse, h, out, rows, d, m);
    free(up), free(down);
}

/* What backward's products for the weights read of `k` positions, in slabs. */
typedef struct {
    float *g, *n, *act, *slope;
    int64_t k;
} ChannelSlabs;

/* One strip of hidden channels of a tile: from c, the gradient of act, that of h (to gh by rows and
 * to slabs) and act. */
static void float_channel_slopes(const float *h, const float *c, float slope, int64_t count,
                                 int64_t m, int64_t j, int64_t width, float *gh,
                                 const ChannelSlabs *kept, int64_t t0) {
    for (int64_t i = 0; i < width; i += SLAB) {
        float *act = slab(kept->act, kept->k, j + i) + t0 * SLAB,
              *rise = slab(kept->slope, kept->k, j + i) + t0 * SLAB;
        for (int64_t r = 0; r < count; r++) INDEPENDENT for (int e = 0; e < SLAB; e++) {
                float v = h[r * m + j + i + e], k = v > 0 ? 1 : slope, bend = k * v;
                float up = 2 * k * bend * c[r * width + i + e];
                act[r * SLAB + e] = bend * bend;
                rise[r * SLAB + e] = up;
                gh[r * m + j + i + e] = up;
            }
    }
}

typedef struct {
    const float *g, *branch, *a, *s, *y, *inverse, *h;
    float *into, *back; /* the weights in slabs */
    float slope, scale, *gx, *gbranch, *ga;
    float *sums; /* per part, of the gradient of w1 (m, d) and of that of w2 (d, m) for s = 1 */
    int64_t rows, d, m;
} ChannelBack;

/* The `count` positions from t0 on, which are those from k0 on of what is kept. */
static void float_channel_tile_back(const ChannelBack *o, const ChannelSlabs *kept, int64_t t0,
                                    int64_t count, int64_t k0) {
    int64_t d = o->d, m = o->m, at = t0 * d;
    const float *g = o->g + at;
    float *up = room(LANES * d * 4), *c = room(LANES * FLOAT_STRIP * 4), *gh = room(LANES * m * 4);
    for (int64_t r = 0; r < count; r++) {
        float k = o->inverse[t0 + r] * o->scale;
        INDEPENDENT for (int64_t j = 0; j < d; j++) up[r * d + j] = k * o->y[at + r * d + j];
    }
    fill_down(up, count, d, kept->n, kept->k, k0);
    fill_down(g, count, d, kept->g, kept->k, k0);
    for (int64_t r = 0; r < count; r++)
        INDEPENDENT for (int64_t j = 0; j < d; j++) up[r * d + j] = o->s[j] * g[r * d + j];
    for (int64_t j = 0; j < m; j += FLOAT_STRIP) {
        int64_t width = m - j < FLOAT_STRIP ? m - j : FLOAT_STRIP;
        rows_by_slabs(up, o->into, j, c, width, count, width, d);
        float_channel_slopes(o->h + t0 * m, c, o->slope, count, m, j, width, gh, kept, k0);
    }
    rows_by_slabs(gh, o->back, 0, up, d, count, d, m);
    float_add_norm_back(g, up, o->y + at, o->inverse + t0, o->branch + at, o->a, o->scale,
                        o->gx + at, o->gbranch + at, o->ga + t0 / LANES * d, count, d);
    free(up), free(c), free(gh);
}

EACH_UNIT(static, float_channel_parts_back, float_parts(o->rows), (const ChannelBack *, o)) {
    int64_t d = o->d, m = o->m;
    float *sums = o->sums + unit * 2 * m * d;
    ChannelSlabs kept = {room(FLOAT_BACK_TURN * d * 4), room(FLOAT_BACK_TURN * d * 4),
                         room(FLOAT_BACK_TURN * m * 4), room(FLOAT_BACK_TURN * m * 4)};
    Range part = part_of(o->rows, unit);
    for (int64_t t0 = part.first; t0 < part.last || t0 == part.first; t0 += FLOAT_BACK_TURN) {
        kept.k = within(part.last - t0, FLOAT_BACK_TURN);
        for (int64_t k0 = 0; k0 < kept.k; k0 += LANES)
            float_channel_tile_back(o, &kept, t0 + k0, tile_rows(k0, kept.k), k0);
        gather_slabs(kept.slope, kept.n, sums, m, d, kept.k, t0 > part.first);
        gather_slabs(kept.g, kept.act, sums + m * d, d, m, kept.k, t0 > part.first);
    }
    free(kept.g), free(kept.n), free(kept.act), free(kept.slope);
}

/* From the parts' sums, rows of w2's gradient, their part in that of s, and as many elements of
 * w1's. */
EACH_UNIT(static, float_channel_weights, d, (const float *, sums), (int64_t, parts),
          (const float *, w2), (const float *, s), (float *, gs), (float *, gw1), (float *, gw2),
          (int64_t, d), (int64_t, m)) {
    int64_t at = unit * m;
    float along = 0, *row = gw2 + at, by = s[unit];
    add_parts(sums + at, 2 * m * d, parts, gw1 + at, m);
    add_parts(sums + m * d + at, 2 * m * d, parts, row, m);
    INDEPENDENT for (int64_t i = 0; i < m; i++) along += row[i] * w2[at + i];
    INDEPENDENT for (int64_t i = 0; i < m; i++) row[i] *= by;
    gs[unit] = along;
}

void channel_back_f32(const float *g, const float *branch, const float *a, const float *s,
                      const float *w1, const float *w2, float slope, float scale, const float *y,
                      const float *inverse, const float *h, float *gx, float *gbranch, float *ga,
                      float *gs, float *gw1, float *gw2, int64_t rows, int64_t d, int64_t m) {
    int64_t parts = float_parts(rows);
    float *into = slabs_down(w2, d, m), *back = slabs_down(w1, m, d),
          *sums = room(parts * 2 * m * d * 4);
    ChannelBack o = {g,     branch, a,  s,       y,  inverse, h,    into, back,
                     slope, scale,  gx, gbranch, ga, sums,    rows, d,    m};
    float_channel_parts_back(&o);
    float_channel_weights(sums, parts, w2, s, gs, gw1, gw2, d, m);
    free(into), free(back), free(sums);
}

/* Rows t0 .. t0 + count of one interpolation of token shift. */
static void float_shift_rows(const float *u, const uint8_t *boundary, const float *share,
                             int64_t t0, int64_t count, int64_t length, float *out, int64_t d) {
    for (int64_t t = t0; t < t0 + count; t++, out += d) {
        const float *now = u + t * d, *before = now - d;
        if (follows(boundary, t, length))
            INDEPENDENT for (int64_t j = 0; j < d; j++) out[j] =
                before[j] + share[j] * (now[j] - before[j]);
        else INDEPENDENT for (int64_t j = 0; j < d; j++) out[j] = share[j] * now[j];
    }
}

static void float_shares(const float *mix_r, const float *mix_k, float *share_r, float *share_k,
                         int64_t d) {
    for (int64_t j = 0; j < d; j++)
        share_r[j] = logistic(mix_r[j]), share_k[j] = logistic(mix_k[j]);
}

static inline float relu(float x) { return x > 0 ? x : 0; }

/* The forward's tiles; pr, pk and pv are the weights in slabs. */
EACH_UNIT(static, float_shift_tiles, TILES(rows), (const float *, u), (const uint8_t *, boundary),
          (const float *, share_r), (const float *, share_k), (float *, pr), (float *, pk),
          (float *, pv), (float *, z), (float *, h), (float *, v), (float *, out), (int64_t, rows),
          (int64_t, length), (int64_t, d)) {
    int64_t t0 = unit * LANES, count = tile_rows(t0, rows), at = t0 * d;
    float *in = room(LANES * d * 4);
    float_shift_rows(u, boundary, share_k, t0, count, length, in, d);
    rows_by_slabs(in, pk, 0, h + at, d, count, d, d);
    INDEPENDENT for (int64_t i = 0; i < count * d; i++) {
        float x = relu(h[at + i]);
        in[i] = x * x;
    }
    rows_by_slabs(in, pv, 0, v + at, d, count, d, d);
    float_shift_rows(u, boundary, share_r, t0, count, length, in, d);
    rows_by_slabs(in, pr, 0, z + at, d, count, d, d);
    INDEPENDENT for (int64_t i = at; i < at + count * d; i++) out[i] = logistic(z[i]) * v[i];
    free(in);
}

void token_shift_f32(const float *u, const uint8_t *boundary, const float *mix_r,
                     const float *mix_k, const float *wr, const float *wk, const float *wv,
                     float *z, float *h, float *v, float *out, int64_t rows, int64_t length,
                     int64_t d) {
    float *pr = slabs_across(wr, d, d), *pk = slabs_across(wk, d, d), *pv = slabs_across(wv, d, d);
    float share_r[d], share_k[d];
    float_shares(mix_r, mix_k, share_r, share_k, d);
    float_shift_tiles(u, boundary, share_r, share_k, pr, pk, pv, z, h, v, out, rows, length, d);
    free(pr), free(pk), free(pv);
}

/* What the three products for the weights read of `count` positions, in slabs. */
typedef struct {
    float *r, *k, *act, *gz, *gh, *gv;
    int64_t count;
} ShiftSlabs;

/* A tile's gradients of z and v from that of the output, and act. */
static void float_gate_rows(const float *g, const float *z, const float *v, const float *h,
                            int64_t n, float *gz, float *gv, float *act) {
    INDEPENDENT for (int64_t i = 0; i < n; i++) {
        float s = logistic(z[i]), part = g[i] * s, x = relu(h[i]);
        gv[i] = part;
        gz[i] = (part - part * s) * v[i];
        act[i] = x * x;
    }
}

typedef struct {
    const float *g, *u, *z, *h, *v;
    const uint8_t *boundary;
    const float *share_r, *share_k;
    float *pr, *pk, *pv; /* the weights in slabs */
    float *gr, *gk;
    float *sums; /* per part, of the gradients of the three weights */
    int64_t rows, length, d;
} ShiftBack;

/* The `count` positions from t0 on, which are those from k0 on of what is kept. */
static void float_shift_tile_back(const ShiftBack *o, const ShiftSlabs *kept, int64_t t0,
                                  int64_t count, int64_t k0) {
    int64_t d = o->d, k = kept->count, at = t0 * d;
    float *one = room(LANES * d * 4), *two = room(LANES * d * 4), *act = room(LANES * d * 4);
    float_shift_rows(o->u, o->boundary, o->share_r, t0, count, o->length, one, d);
    float_shift_rows(o->u, o->boundary, o->share_k, t0, count, o->length, two, d);
    fill_down(one, count, d, kept->r, k, k0);
    fill_down(two, count, d, kept->k, k, k0);
    float_gate_rows(o->g + at, o->z + at, o->v + at, o->h + at, count * d, one, two, act);
    fill_down(one, count, d, kept->gz, k, k0);
    fill_down(two, count, d, kept->gv, k, k0);
    fill_down(act, count, d, kept->act, k, k0);
    rows_by_slabs(one, o->pr, 0, o->gr + at, d, count, d, d);
    rows_by_slabs(two, o->pv, 0, act, d, count, d, d);
    INDEPENDENT for (int64_t i = 0; i < count * d; i++) act[i] *= 2 * relu(o->h[at + i]);
    fill_down(act, count, d, kept->gh, k, k0);
    rows_by_slabs(act, o->pk, 0, o->gk + at, d, count, d, d);
    free(one), free(two), free(act);
}

EACH_UNIT(static, float_shift_parts_back, float_parts(o->rows), (const ShiftBack *, o)) {
    int64_t d = o->d, size = FLOAT_BACK_TURN * d * 4;
    float *sums = o->sums + unit * 3 * d * d;
    ShiftSlabs kept = {room(size), room(size), room(size), room(size), room(size), room(size)};
    Range part = part_of(o->rows, unit);
    for (int64_t t0 = part.first; t0 < part.last || t0 == part.first; t0 += FLOAT_BACK_TURN) {
        int64_t k = kept.count = within(part.last - t0, FLOAT_BACK_TURN);
        int add = t0 > part.first;
        for (int64_t k0 = 0; k0 < k; k0 += LANES)
            float_shift_tile_back(o, &kept, t0 + k0, tile_rows(k0, k), k0);
        gather_slabs(kept.gz, kept.r, sums, d, d, k, add);
        gather_slabs(kept.gh, kept.k, sums + d * d, d, d, k, add);
        gather_slabs(kept.gv, kept.act, sums + 2 * d * d, d, d, k, add);
    }
    free(kept.r), free(kept.k), free(kept.act), free(kept.gz), free(kept.gh), free(kept.gv);
}

/* Rows of the weights' gradients from those of their parts. */
EACH_UNIT(static, float_shift_weights, d, (const float *, sums), (int64_t, parts), (float *, gwr),
          (float *, gwk), (float *, gwv), (int64_t, d)) {
    float *const to[] = {gwr, gwk, gwv};
    for (int i = 0; i < 3; i++)
        add_parts(sums + (i * d + unit) * d, 3 * d * d, parts, to[i] + unit * d, d);
}

void token_shift_back_f32(const float *g, const float *u, const uint8_t *boundary,
                          const float *mix_r, const float *mix_k, const float *wr, const float *wk,
                          const float *wv, const float *z, const float *h, const float *v,
                          float *gr, float *gk, float *gu, float *sums, float *gmix, float *gwr,
                          float *gwk, float *gwv, int64_t rows, int64_t length, int64_t d) {
    int64_t parts = float_parts(rows);
    float *pr = slabs_down(wr, d, d), *pk = slabs_down(wk, d, d), *pv = slabs_down(wv, d, d),
          *whole = room(parts * 3 * d * d * 4), share_r[d], share_k[d];
    float_shares(mix_r, mix_k, share_r, share_k, d);
    ShiftBack o = {g,  u,  z,  h,  v,     boundary, share_r, share_k, pr,
                   pk, pv, gr, gk, whole, rows,     length,  d};
    float_shift_parts_back(&o);
    float_shift_weights(whole, parts, gwr, gwk, gwv, d);
    shift_back_f32(gr, gk, u, boundary, share_r, share_k, gu, sums, rows, length, d);
    fold_f32(sums, gmix, CHUNKS, 2 * d);
    for (int64_t j = 0; j < d; j++)
        gmix[j] *= share_r[j] * (1 - share_r[j]), gmix[d + j] *= share_k[j] * (1 - share_k[j]);
    free(pr), free(pk), free(pv), free(whole);
}
#endif
