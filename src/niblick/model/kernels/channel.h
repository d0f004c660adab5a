/* The channel mixer with what surrounds it, a tile of positions at a time: y = x + a branch, out =
   y + s W2 act(W1 scale rms(y)) with act(h) = leaky_relu(h)^2. Kept for backward: y, each row's 1 /
   root mean square, and h. Widths are multiples of PANEL. */

#ifdef __AVX512BF16__
#define STRIP 64 /* hidden channels of one product */
#ifndef BACK_TURN
#define BACK_TURN 2048 /* positions whose panels are kept at once in backward, a multiple of LANES  \
                       */
#endif

/* Row r of x, or zeros from row `count` on. */
static inline const uint16_t *row_or_zero(const uint16_t *x, int64_t r, int64_t count, int64_t d) {
    static const uint16_t zeros[MOST];
    return r < count ? x + r * d : zeros;
}

static inline __m512 bent(__m512 h, float slope) {
    return _mm512_mask_mul_ps(h, _mm512_movepi32_mask(_mm512_castps_si512(h)), h,
                              _mm512_set1_ps(slope));
}

/* y = x + a branch and n = scale rms(y) for the rows of a tile. */
static void add_norm_rows(const uint16_t *x, const uint16_t *branch, const float *a, float scale,
                          uint16_t *y, uint16_t *n, float *inverse, int64_t count, int64_t d) {
    for (int64_t r = 0; r < count; r++, x += d, branch += d, y += d, n += d) {
        float sum = 0;
        INDEPENDENT for (int64_t j = 0; j < d; j++) y[j] =
            narrow(widen(x[j]) + a[j] * widen(branch[j]));
        INDEPENDENT for (int64_t j = 0; j < d; j++) sum += widen(y[j]) * widen(y[j]);
        inverse[r] = 1 / sqrtf(sum / d + FLT_EPSILON);
        INDEPENDENT for (int64_t j = 0; j < d; j++) n[j] = narrow(widen(y[j]) * inverse[r] * scale);
    }
}

/* Its backward from g, the gradient of y, and gn, that of n; adds up the gradient of a. */
static void add_norm_rows_back(const uint16_t *g, const float *gn, const uint16_t *y,
                               const float *inverse, const uint16_t *branch, const float *a,
                               float scale, uint16_t *gx, uint16_t *gbranch, float *ga,
                               int64_t count, int64_t d) {
    memset(ga, 0, d * 4);
    for (int64_t r = 0; r < count;
         r++, g += d, gn += d, y += d, branch += d, gx += d, gbranch += d) {
        float dot = 0, k = scale * inverse[r];
        INDEPENDENT for (int64_t j = 0; j < d; j++) dot += gn[j] * widen(y[j]);
        float pull = dot / d * inverse[r] * inverse[r];
        INDEPENDENT for (int64_t j = 0; j < d; j++) {
            float whole = widen(g[j]) + k * (gn[j] - widen(y[j]) * pull);
            ga[j] += whole * widen(branch[j]);
            gx[j] = narrow(whole);
            gbranch[j] = narrow(whole * a[j]);
        }
    }
}

/* The forward's tiles; up and down are the weights in panels. */
EACH_UNIT(static, channel_tiles, TILES(rows), (const uint16_t *, x), (const uint16_t *, branch),
          (const float *, a), (const float *, s), (uint32_t *, up), (uint32_t *, down),
          (float, slope), (float, scale), (uint16_t *, y), (float *, inverse), (uint16_t *, h),
          (uint16_t *, out), (int64_t, rows), (int64_t, d), (int64_t, m)) {
    int64_t t0 = unit * LANES;
    int64_t count = tile_rows(t0, rows), at = t0 * d;
    uint16_t *n = room(LANES * d * 2), *act = room(LANES * m * 2);
    float *c = room(LANES * (d > STRIP ? d : STRIP) * 4);
    add_norm_rows(x + at, branch + at, a, scale, y + at, n, inverse + t0, count, d);
    for (int64_t j = 0; j < m; j += STRIP) {
        int64_t wide_by = m - j < STRIP ? m - j : STRIP;
        rows_by_panels(n, up, j, c, count, wide_by, d / 2);
        for (int64_t r = 0; r < count; r++)
            for (int64_t i = 0; i < wide_by; i += 16) {
                __m512 v = _mm512_loadu_ps(c + r * wide_by + i);
                slim(h + (t0 + r) * m + j + i, v);
                v = bent(v, slope);
                slim(act + r * m + j + i, _mm512_mul_ps(v, v));
            }
    }
    rows_by_panels(act, down, 0, c, count, d, m / 2);
    for (int64_t r = 0; r < count; r++)
        INDEPENDENT for (int64_t j = 0; j < d; j++) out[at + r * d + j] =
            narrow(widen(y[at + r * d + j]) + s[j] * c[r * d + j]);
    free(n), free(act), free(c);
}

void channel_bf16(const uint16_t *x, const uint16_t *branch, const float *a, const float *s,
                  const uint16_t *w1, const uint16_t *w2, float slope, float scale, uint16_t *y,
                  float *inverse, uint16_t *h, uint16_t *out, int64_t rows, int64_t d, int64_t m) {
    uint32_t *up = panels_across(w1, m, d), *down = panels_across(w2, d, m);
    channel_tiles(x, branch, a, s, up, down, slope, scale, y, inverse, h, out, rows, d, m);
    free(up), free(down);
}

/* What backward's products read of all positions, as pairs down the rows in panels. */
typedef struct {
    uint32_t *g, *n, *act, *slope;
} ChannelPanels;

/* One strip of hidden channels of a tile: from c, the gradient of act, that of h (to gh by rows and
 * to panels) and act. */
static void channel_slopes(const uint16_t *h, const float *c, float slope, int64_t count, int64_t m,
                           int64_t j, int64_t width, uint16_t *gh, const ChannelPanels *kept,
                           int64_t pairs, int64_t pair0) {
    for (int64_t r = 0; r < LANES; r += 2)
        for (int64_t i = 0; i < width; i += 16) {
            __m512 act[2], rise[2];
            _Pragma("GCC unroll 2") for (int two = 0; two < 2; two++) {
                __m512 v = wide(row_or_zero(h, r + two, count, m) + j + i), bend = bent(v, slope);
                __m512 g = _mm512_loadu_ps(c + (r + two) * width + i),
                       twice = bent(_mm512_add_ps(bend, bend), slope);
                act[two] = _mm512_mul_ps(bend, bend);
                rise[two] = _mm512_mul_ps(g, twice);
                slim(gh + (r + two) * m + j + i, rise[two]);
            }
            int64_t to = (pair0 + r / 2) * PANEL + (j + i) % PANEL;
            _mm512_storeu_si512(panel(kept->act, pairs, j + i) + to, paired(act[0], act[1]));
            _mm512_storeu_si512(panel(kept->slope, pairs, j + i) + to, paired(rise[0], rise[1]));
        }
}

/* Rows of a tile, `count` of them and then zeros, as pairs into panels. */
static void keep_pairs(const uint16_t *x, int64_t count, int64_t d, uint32_t *panels, int64_t pairs,
                       int64_t pair0) {
    for (int64_t r = 0; r < LANES; r += 2)
        for (int64_t j = 0; j < d; j += PANEL)
            pack_down(x + r * d + j, d, count - r, 2, PANEL,
                      panel(panels, pairs, j) + (pair0 + r / 2) * PANEL);
}

/* The backward's tiles; into and back are the weights in panels. */
EACH_UNIT(static, channel_tiles_back, TILES(rows), (const uint16_t *, g),
          (const uint16_t *, branch), (const float *, a), (const float *, s), (uint32_t *, into),
          (uint32_t *, back), (float, slope), (float, scale), (const uint16_t *, y),
          (const float *, inverse), (const uint16_t *, h), (uint16_t *, gx), (uint16_t *, gbranch),
          (float *, ga), (const ChannelPanels *, kept), (int64_t, rows), (int64_t, d),
          (int64_t, m)) {
    int64_t pairs = TILES(rows) * LANES / 2;
    int64_t t0 = unit * LANES, count = tile_rows(t0, rows), at = t0 * d, pair0 = t0 / 2;
    uint16_t *up = room(LANES * d * 2), *n = room(LANES * d * 2), *gh = room(LANES * m * 2);
    float *c = room(LANES * (d > STRIP ? d : STRIP) * 4);
    for (int64_t r = 0; r < LANES; r++) {
        const uint16_t *now = row_or_zero(g + at, r, count, d),
                       *row = row_or_zero(y + at, r, count, d);
        float k = r < count ? inverse[t0 + r] * scale : 0;
        INDEPENDENT for (int64_t j = 0; j < d; j++) up[r * d + j] = narrow(s[j] * widen(now[j]));
        INDEPENDENT for (int64_t j = 0; j < d; j++) n[r * d + j] = narrow(k * widen(row[j]));
    }
    keep_pairs(g + at, count, d, kept->g, pairs, pair0);
    keep_pairs(n, LANES, d, kept->n, pairs, pair0);
    for (int64_t j = 0; j < m; j += STRIP) {
        int64_t width = m - j < STRIP ? m - j : STRIP;
        rows_by_panels(up, into, j, c, LANES, width, d / 2);
        channel_slopes(h + t0 * m, c, slope, count, m, j, width, gh, kept, pairs, pair0);
    }
    rows_by_panels(gh, back, 0, c, LANES, d, m / 2);
    add_norm_rows_back(g + at, c, y + at, inverse + t0, branch + at, a, scale, gx + at,
                       gbranch + at, ga + unit * d, count, d);
    free(up), free(n), free(gh), free(c);
}

/* Rows of w2's gradient and their part in that of s, from the sums for s = 1. */
EACH_UNIT(static, channel_scales, d, (const float *, sum), (const uint16_t *, w2),
          (const float *, s), (uint16_t *, gw2), (float *, gs), (int64_t, d), (int64_t, m)) {
    int64_t j = unit;
    __m512 along = _mm512_setzero_ps(), share = _mm512_set1_ps(s[j]);
    for (int64_t i = j * m; i < (j + 1) * m; i += 16) {
        __m512 v = _mm512_loadu_ps(sum + i);
        along = _mm512_fmadd_ps(v, wide(w2 + i), along);
        slim(gw2 + i, _mm512_mul_ps(v, share));
    }
    gs[j] = _mm512_reduce_add_ps(along);
}

/* Backward: g is the gradient of out; ga holds (tiles, d) partial sums; gw1 and gw2 are laid out as
 * the weights. */
void channel_back_bf16(const uint16_t *g, const uint16_t *branch, const float *a, const float *s,
                       const uint16_t *w1, const uint16_t *w2, float slope, float scale,
                       const uint16_t *y, const float *inverse, const uint16_t *h, uint16_t *gx,
                       uint16_t *gbranch, float *ga, float *gs, uint16_t *gw1, uint16_t *gw2,
                       int64_t rows, int64_t d, int64_t m) {
    int64_t turn = rows < BACK_TURN ? rows : BACK_TURN, pairs = TILES(turn) * LANES / 2;
    uint32_t *into = panels_down(w2, d, m), *back = panels_down(w1, m, d);
    ChannelPanels kept = {room(pairs * d * 4), room(pairs * d * 4), room(pairs * m * 4),
                          room(pairs * m * 4)};
    float *sum1 = room(d * m * 4), *sum2 = room(d * m * 4);
    for (int64_t t0 = 0; t0 < rows || t0 == 0; t0 += BACK_TURN) {
        int64_t count = rows - t0 < turn ? rows - t0 : turn, at = t0 * d;
        pairs = TILES(count) * LANES / 2;
        channel_tiles_back(g + at, branch + at, a, s, into, back, slope, scale, y + at,
                           inverse + t0, h + t0 * m, gx + at, gbranch + at, ga + t0 / LANES * d,
                           &kept, count, d, m);
        gather(kept.slope, kept.n, sum1, m, d, pairs, t0 > 0);
        gather(kept.g, kept.act, sum2, d, m, pairs, t0 > 0);
    }
    slim_all(sum1, gw1, m, d);
    channel_scales(sum2, w2, s, gw2, gs, d, m);
    free(into), free(back), free(kept.g), free(kept.n), free(kept.act), free(kept.slope);
    free(sum1), free(sum2);
}
#endif
