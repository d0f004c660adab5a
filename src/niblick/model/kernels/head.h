/* Output head, softcap and cross-entropy in one pass over tiles of positions, with both gradients,
   never holding the logits.

   Scores of a tile are held transposed, a row per token of the vocabulary and a lane per position.
   Slopes are the gradient of the scores times the sum of each position's exponentials, so that they
   can be written before that sum is known; it divides what they are multiplied with. They are kept
   for a turn of positions only, small enough for the caches. Every sum is taken in a fixed order.
 */

/* to[i] = share x[i] */
EACH_UNIT(static, shrink, CHUNKS, (const float *, x), (float, share), (float *, to), (int64_t, n)) {
    INDEPENDENT for (int64_t i = n * unit / CHUNKS; i < n * (unit + 1) / CHUNKS; i++) to[i] =
        share * x[i];
}

#ifdef __AVX512BF16__
#define WORDS 128    /* tokens of the vocabulary in one block of scores */
#define GATHERED 256 /* positions whose slopes lie side by side */
#define TURN 1024    /* positions whose slopes are kept at once, a multiple of GATHERED */

/* From scores z: e = exp(cap(z) - cap) adds to `sum`; returns its slope e (1 - tanh(z / c)^2). */
static inline __m512 head_slope(__m512 z, __m512 steep, __m512 height, __m512 *sum) {
    __m512 one = _mm512_set1_ps(1), two = _mm512_set1_ps(2), sign = _mm512_set1_ps(-0.0f);
    __m512 u = power(_mm512_mul_ps(_mm512_andnot_ps(sign, z), steep)); /* exp(-2 |z| / c) */
    __m512 w = _mm512_add_ps(one, u), r = _mm512_rcp14_ps(w);
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(w, r, two));
    __m512 below = _mm512_mul_ps(_mm512_mul_ps(two, u), r); /* 1 - tanh(|z| / c) */
    __m512 gap =
        _mm512_mask_sub_ps(below, _mm512_movepi32_mask(_mm512_castps_si512(z)), two, below);
    __m512 e = power(_mm512_mul_ps(gap, height));
    *sum = _mm512_add_ps(*sum, e);
    return _mm512_mul_ps(e, _mm512_mul_ps(below, _mm512_sub_ps(two, below)));
}

/* Where the slopes of token v lie for the tile that begins at position t0. */
static inline uint16_t *head_slopes(uint16_t *slopes, int64_t words, int64_t t0, int64_t v) {
    return slopes + (t0 / GATHERED * words + v) * GATHERED + t0 % GATHERED;
}

/* One block of the vocabulary for one tile: sums, slopes and their products with the weights. */
static void head_block(const uint16_t *weight, const uint32_t *down, const uint32_t *across,
                       uint16_t *slopes, int64_t v0, int64_t count, float cap, int64_t d,
                       float *total, float *out) {
    float scores[WORDS * LANES] __attribute__((aligned(64)));
    uint32_t pairs[WORDS / 2 * LANES] __attribute__((aligned(64)));
    __m512 steep = _mm512_set1_ps(-2 * LOG2E / cap), height = _mm512_set1_ps(-cap * LOG2E);
    product(weight + v0 * d, d / 2, 1, across, LANES, scores, LANES, count, LANES, d / 2, 0);
    for (int64_t j = 0; j < LANES; j += 16) {
        __m512 sum = _mm512_loadu_ps(total + j);
        for (int64_t v = 0; v < count; v += 2) {
            __m512 low = head_slope(_mm512_load_ps(scores + v * LANES + j), steep, height, &sum);
            __m512 high =
                head_slope(_mm512_load_ps(scores + (v + 1) * LANES + j), steep, height, &sum);
            if (!slopes) continue;
            _mm512_store_si512(pairs + v / 2 * LANES + j, paired(low, high));
            _mm256_storeu_si256((__m256i *)(slopes + v * GATHERED + j),
                                (__m256i)_mm512_cvtneps_pbh(low));
            _mm256_storeu_si256((__m256i *)(slopes + (v + 1) * GATHERED + j),
                                (__m256i)_mm512_cvtneps_pbh(high));
        }
        _mm512_storeu_ps(total + j, sum);
    }
    if (slopes) product(pairs, 1, LANES, down + v0 / 2 * d, d, out, d, LANES, d, count / 2, 1);
}

/* The positions t0 .. stop, GATHERED or as many as there are at a time: nll and, with slopes (of
   their turn, which begins at t0), also gh and down, what the slopes are multiplied with: hidden
   divided by the sums, as pairs down the rows. */
EACH_UNIT(static, head_groups, (stop - t0 + GATHERED - 1) / GATHERED, (const uint16_t *, hidden),
          (const uint16_t *, weight), (const uint32_t *, under), (const int64_t *, targets),
          (float, cap), (float *, nll), (uint16_t *, slopes), (float *, gh), (uint32_t *, down),
          (int64_t, t0), (int64_t, stop), (int64_t, rows), (int64_t, words), (int64_t, d)) {
    int64_t g0 = t0 + unit * GATHERED, count = rows - g0 < GATHERED ? rows - g0 : GATHERED;
    uint32_t *across = room(GATHERED * d * 2);
    float *out = room(GATHERED * d * 4), total[GATHERED] = {0};
    memset(out, 0, GATHERED * d * 4);
    for (int64_t j = 0; j < GATHERED; j += LANES)
        pack_across(hidden + (g0 + j) * d, d, count - j, LANES, d, across + j * d / 2);
    for (int64_t v0 = 0; v0 < words; v0 += WORDS)
        for (int64_t j = 0; j < GATHERED; j += LANES)
            head_block(weight, under, across + j * d / 2,
                       slopes ? head_slopes(slopes, words, g0 - t0 + j, v0) : 0, v0,
                       words - v0 < WORDS ? words - v0 : WORDS, cap, d, total + j, out + j * d);
    float inverse[GATHERED] = {0};
    for (int64_t j = 0; j < count; j++) {
        const uint16_t *now = hidden + (g0 + j) * d, *hit = weight + targets[g0 + j] * d;
        float z = 0;
        INDEPENDENT for (int64_t e = 0; e < d; e++) z += widen(now[e]) * widen(hit[e]);
        float t = tanhf(z / cap), pull = 1 - t * t;
        inverse[j] = 1 / total[j];
        nll[g0 + j] = cap + logf(total[j]) - cap * t;
        if (!slopes) continue;
        uint16_t *mark = head_slopes(slopes, words, g0 - t0, targets[g0 + j]) + j;
        *mark = narrow(widen(*mark) - pull * total[j]);
        INDEPENDENT for (int64_t e = 0; e < d; e++) gh[(g0 + j) * d + e] =
            out[j * d + e] * inverse[j] - pull * widen(hit[e]);
    }
    for (int64_t j = 0; slopes && j < GATHERED; j += 2) {
        const uint16_t *first = hidden + (j < count ? g0 + j : 0) * d,
                       *second = hidden + (j + 1 < count ? g0 + j + 1 : 0) * d;
        INDEPENDENT for (int64_t e = 0; e < d; e++) down[(g0 - t0 + j) / 2 * d + e] =
            narrow(widen(first[e]) * inverse[j]) |
            (uint32_t)narrow(widen(second[e]) * inverse[j + 1]) << 16;
    }
    free(across), free(out);
}

/* Adds what the positions t0 .. stop say about the weights' gradient, or, the first, sets it. */
EACH_UNIT(static, head_weights, TILES(words), (uint16_t *, slopes), (const uint32_t *, down),
          (float *, gweight), (int64_t, t0), (int64_t, stop), (int64_t, words), (int64_t, d)) {
    int64_t v0 = unit * LANES;
    for (int64_t g0 = t0; g0 < stop; g0 += GATHERED)
        product(head_slopes(slopes, words, g0 - t0, v0), GATHERED / 2, 1, down + (g0 - t0) / 2 * d,
                d, gweight + v0 * d, d, tile_rows(v0, words), d, GATHERED / 2, g0 > 0);
}

/* hidden (rows, d), weight (words, d), targets (rows) -> nll (rows); with gh (rows, d) and gweight
   (words, d) also the gradients of the sum of nll. `words` is even, d a multiple of 16, cap
   positive. */
void head_bf16(const uint16_t *hidden, const uint16_t *weight, const int64_t *targets, float cap,
               float *nll, float *gh, float *gweight, int64_t rows, int64_t words, int64_t d) {
    int64_t turn = rows < TURN ? (rows + GATHERED - 1) / GATHERED * GATHERED : TURN;
    uint32_t *under = gh ? room(words * d * 2) : 0, *down = gh ? room(turn * d * 2) : 0;
    uint16_t *slopes = gh ? room(turn * words * 2) : 0;
    if (gh) pack_down(weight, d, words, words, d, under);
    for (int64_t t0 = 0; t0 < rows; t0 += turn) {
        int64_t stop = rows - t0 < turn ? rows : t0 + turn;
        head_groups(hidden, weight, under, targets, cap, nll, slopes, gh, down, t0, stop, rows,
                    words, d);
        if (gh) head_weights(slopes, down, gweight, t0, stop, words, d);
    }
    free(under), free(down), free(slopes);
}

/* to[i] = share x[i], as bfloat16. */
EACH_UNIT(static, shrink_half, CHUNKS, (const float *, x), (float, share), (uint16_t *, to),
          (int64_t, n)) {
    INDEPENDENT for (int64_t i = n * unit / CHUNKS; i < n * (unit + 1) / CHUNKS; i++) to[i] =
        narrow(share * x[i]);
}

/* Gradients of the mean of nll times *up, from those of its sum. */
void head_back_bf16(const float *gh, const float *gweight, const float *up, uint16_t *ghidden,
                    float *gw, int64_t rows, int64_t words, int64_t d) {
    shrink_half(gh, *up / rows, ghidden, rows * d);
    shrink(gweight, *up / rows, gw, words * d);
}
#endif
