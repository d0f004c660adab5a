/* The token-shift mixer, a tile of positions at a time: out = sigmoid(z) v with z = Wr r, v = Wv
   act(h), h = Wk k, act(h) = relu(h)^2; r and k lie between each position and the one before it, as
   `shift` takes them, by sigmoid(mix). Kept for backward: z, h and v. The width is a multiple of
   PANEL. */

#ifdef __AVX512BF16__
/* Rows t0 .. t0 + LANES of one interpolation; zeros from `count` on. */
static void shift_rows(const uint16_t *u, const uint8_t *boundary, const float *share, int64_t t0,
                       int64_t count, int64_t length, uint16_t *out, int64_t d) {
    for (int64_t r = 0, t = t0; r < LANES; r++, t++, out += d) {
        const uint16_t *now = row_or_zero(u + t0 * d, r, count, d), *before = now;
        float keep = 0;
        if (r < count && follows(boundary, t, length)) before = now - d, keep = 1;
        INDEPENDENT for (int64_t j = 0; j < d; j++) {
            float prev = keep * widen(before[j]);
            out[j] = narrow(prev + share[j] * (widen(now[j]) - prev));
        }
    }
}

static inline __m512 sigmoid(__m512 z) {
    __m512 e = power(_mm512_min_ps(_mm512_mul_ps(z, _mm512_set1_ps(-LOG2E)), _mm512_set1_ps(126)));
    return _mm512_div_ps(_mm512_set1_ps(1), _mm512_add_ps(_mm512_set1_ps(1), e));
}

/* The shares of r and k. */
static void shares(const float *mix_r, const float *mix_k, float *share_r, float *share_k,
                   int64_t d) {
    for (int64_t j = 0; j < d; j++)
        share_r[j] = logistic(mix_r[j]), share_k[j] = logistic(mix_k[j]);
}

/* The forward's tiles; pr, pk and pv are the weights in panels. */
EACH_UNIT(static, token_shift_tiles, TILES(rows), (const uint16_t *, u),
          (const uint8_t *, boundary), (const float *, share_r), (const float *, share_k),
          (uint32_t *, pr), (uint32_t *, pk), (uint32_t *, pv), (uint16_t *, z), (uint16_t *, h),
          (uint16_t *, v), (uint16_t *, out), (int64_t, rows), (int64_t, length), (int64_t, d)) {
    int64_t t0 = unit * LANES;
    int64_t count = tile_rows(t0, rows), at = t0 * d;
    uint16_t *in = room(LANES * d * 2), *act = room(LANES * d * 2);
    float *c = room(LANES * d * 4);
    shift_rows(u, boundary, share_k, t0, count, length, in, d);
    rows_by_panels(in, pk, 0, c, count, d, d / 2);
    for (int64_t i = 0; i < count * d; i += 16) {
        __m512 x = _mm512_loadu_ps(c + i);
        slim(h + at + i, x);
        x = _mm512_max_ps(x, _mm512_setzero_ps());
        slim(act + i, _mm512_mul_ps(x, x));
    }
    rows_by_panels(act, pv, 0, c, count, d, d / 2);
    for (int64_t i = 0; i < count * d; i += 16) slim(v + at + i, _mm512_loadu_ps(c + i));
    shift_rows(u, boundary, share_r, t0, count, length, in, d);
    rows_by_panels(in, pr, 0, c, count, d, d / 2);
    for (int64_t i = 0; i < count * d; i += 16) {
        __m512 x = _mm512_loadu_ps(c + i);
        slim(z + at + i, x);
        slim(out + at + i, _mm512_mul_ps(sigmoid(x), wide(v + at + i)));
    }
    free(in), free(act), free(c);
}

void token_shift_bf16(const uint16_t *u, const uint8_t *boundary, const float *mix_r,
                      const float *mix_k, const uint16_t *wr, const uint16_t *wk,
                      const uint16_t *wv, uint16_t *z, uint16_t *h, uint16_t *v, uint16_t *out,
                      int64_t rows, int64_t length, int64_t d) {
    uint32_t *pr = panels_across(wr, d, d), *pk = panels_across(wk, d, d),
             *pv = panels_across(wv, d, d);
    float share_r[d], share_k[d];
    shares(mix_r, mix_k, share_r, share_k, d);
    token_shift_tiles(u, boundary, share_r, share_k, pr, pk, pv, z, h, v, out, rows, length, d);
    free(pr), free(pk), free(pv);
}

/* What the three products for the weights read, as pairs down the rows in panels. */
typedef struct {
    uint32_t *r, *k, *act, *gz, *gh, *gv;
} ShiftPanels;

/* A tile's gradients of z and v from that of the output, and act, all by rows; zeros from `count`
 * on. */
static void gate_rows(const uint16_t *g, const uint16_t *z, const uint16_t *v, const uint16_t *h,
                      int64_t count, uint16_t *gz, uint16_t *gv, uint16_t *act, int64_t d) {
    for (int64_t i = 0; i < count * d; i += 16) {
        __m512 up = wide(g + i), s = sigmoid(wide(z + i)),
               x = _mm512_max_ps(wide(h + i), _mm512_setzero_ps());
        __m512 part = _mm512_mul_ps(up, s);
        slim(gv + i, part);
        slim(gz + i, _mm512_mul_ps(_mm512_fnmadd_ps(part, s, part), wide(v + i)));
        slim(act + i, _mm512_mul_ps(x, x));
    }
    memset(gz + count * d, 0, (LANES - count) * d * 2);
    memset(gv + count * d, 0, (LANES - count) * d * 2);
    memset(act + count * d, 0, (LANES - count) * d * 2);
}

/* The backward's tiles. */
EACH_UNIT(static, token_shift_tiles_back, TILES(rows), (const uint16_t *, g), (const uint16_t *, u),
          (const uint8_t *, boundary), (const float *, share_r), (const float *, share_k),
          (uint32_t *, pr), (uint32_t *, pk), (uint32_t *, pv), (const uint16_t *, z),
          (const uint16_t *, h), (const uint16_t *, v), (uint16_t *, gr), (uint16_t *, gk),
          (const ShiftPanels *, kept), (int64_t, rows), (int64_t, length), (int64_t, d)) {
    int64_t pairs = TILES(rows) * LANES / 2;
    int64_t t0 = unit * LANES, count = tile_rows(t0, rows), at = t0 * d, pair0 = t0 / 2;
    uint16_t *one = room(LANES * d * 2), *two = room(LANES * d * 2), *act = room(LANES * d * 2);
    float *c = room(LANES * d * 4);
    shift_rows(u, boundary, share_r, t0, count, length, one, d);
    shift_rows(u, boundary, share_k, t0, count, length, two, d);
    keep_pairs(one, LANES, d, kept->r, pairs, pair0);
    keep_pairs(two, LANES, d, kept->k, pairs, pair0);
    gate_rows(g + at, z + at, v + at, h + at, count, one, two, act, d);
    keep_pairs(one, LANES, d, kept->gz, pairs, pair0);
    keep_pairs(two, LANES, d, kept->gv, pairs, pair0);
    keep_pairs(act, LANES, d, kept->act, pairs, pair0);
    rows_by_panels(one, pr, 0, c, count, d, d / 2);
    for (int64_t i = 0; i < count * d; i += 16) slim(gr + at + i, _mm512_loadu_ps(c + i));
    rows_by_panels(two, pv, 0, c, count, d, d / 2);
    for (int64_t i = 0; i < count * d; i += 16) {
        __m512 x = _mm512_max_ps(wide(h + at + i), _mm512_setzero_ps());
        slim(two + i, _mm512_mul_ps(_mm512_loadu_ps(c + i), _mm512_add_ps(x, x)));
    }
    keep_pairs(two, count, d, kept->gh, pairs, pair0);
    rows_by_panels(two, pk, 0, c, count, d, d / 2);
    for (int64_t i = 0; i < count * d; i += 16) slim(gk + at + i, _mm512_loadu_ps(c + i));
    free(one), free(two), free(act), free(c);
}

/* Backward: g is the gradient of out; gr and gk, those of r and k, are scratch (rows, d), as are
 * sums; gmix (2, d). */
void token_shift_back_bf16(const uint16_t *g, const uint16_t *u, const uint8_t *boundary,
                           const float *mix_r, const float *mix_k, const uint16_t *wr,
                           const uint16_t *wk, const uint16_t *wv, const uint16_t *z,
                           const uint16_t *h, const uint16_t *v, uint16_t *gr, uint16_t *gk,
                           uint16_t *gu, float *sums, float *gmix, uint16_t *gwr, uint16_t *gwk,
                           uint16_t *gwv, int64_t rows, int64_t length, int64_t d) {
    int64_t pairs = TILES(rows) * LANES / 2, size = pairs * d * 4;
    uint32_t *pr = panels_down(wr, d, d), *pk = panels_down(wk, d, d), *pv = panels_down(wv, d, d);
    float share_r[d], share_k[d];
    shares(mix_r, mix_k, share_r, share_k, d);
    ShiftPanels kept = {room(size), room(size), room(size), room(size), room(size), room(size)};
    token_shift_tiles_back(g, u, boundary, share_r, share_k, pr, pk, pv, z, h, v, gr, gk, &kept,
                           rows, length, d);
    shift_back_bf16(gr, gk, u, boundary, share_r, share_k, gu, sums, rows, length, d);
    fold_f32(sums, gmix, CHUNKS, 2 * d);
    for (int64_t j = 0; j < d; j++)
        gmix[j] *= share_r[j] * (1 - share_r[j]), gmix[d + j] *= share_k[j] * (1 - share_k[j]);
    float *sum = room(d * d * 4);
    uint32_t *left[3] = {kept.gz, kept.gh, kept.gv}, *right[3] = {kept.r, kept.k, kept.act};
    uint16_t *to[3] = {gwr, gwk, gwv};
    for (int w = 0; w < 3; w++) {
        gather(left[w], right[w], sum, d, d, pairs, 0);
        slim_all(sum, to[w], d, d);
        free(left[w]), free(right[w]);
    }
    free(pr), free(pk), free(pv), free(sum);
}
#endif
