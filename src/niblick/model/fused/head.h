/* Output head, softcap and cross-entropy in one pass over tiles of positions, never holding the logits.

   Scores of a tile are held transposed, a row per token of the vocabulary and a lane per position. What forward keeps for
   backward are slopes: the gradient of the scores times the sum of each position's exponentials, so that they can be written
   before that sum is known; it divides what they are multiplied with. Every sum is taken in a fixed order. */

#ifdef __AVX512BF16__
#define WORDS 128   /* tokens of the vocabulary in one block of scores */
#define GATHERED 256 /* positions whose slopes lie side by side */

/* From scores z: e = exp(cap(z) - cap) adds to `sum`; returns its slope e (1 - tanh(z / c)^2). */
static inline __m512 head_slope(__m512 z, __m512 steep, __m512 height, __m512 *sum) {
    __m512 one = _mm512_set1_ps(1), two = _mm512_set1_ps(2), sign = _mm512_set1_ps(-0.0f);
    __m512 u = power(_mm512_mul_ps(_mm512_andnot_ps(sign, z), steep)); /* exp(-2 |z| / c) */
    __m512 w = _mm512_add_ps(one, u), r = _mm512_rcp14_ps(w);
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(w, r, two));
    __m512 below = _mm512_mul_ps(_mm512_mul_ps(two, u), r); /* 1 - tanh(|z| / c) */
    __m512 gap = _mm512_mask_sub_ps(below, _mm512_movepi32_mask(_mm512_castps_si512(z)), two, below);
    __m512 e = power(_mm512_mul_ps(gap, height));
    *sum = _mm512_add_ps(*sum, e);
    return _mm512_mul_ps(e, _mm512_mul_ps(below, _mm512_sub_ps(two, below)));
}

/* Where the slopes of token v lie for the tile that begins at position t0. */
static inline uint16_t *head_slopes(uint16_t *slopes, int64_t words, int64_t t0, int64_t v) {
    return slopes + (t0 / GATHERED * words + v) * GATHERED + t0 % GATHERED;
}

/* One block of the vocabulary for one tile: sums, slopes and their products with the weights. */
static void head_block(const uint16_t *weight, const uint32_t *down, const uint32_t *across, uint16_t *slopes, int64_t v0,
                       int64_t count, float cap, int64_t d, float *total, float *out) {
    float scores[WORDS * LANES] __attribute__((aligned(64)));
    uint32_t pairs[WORDS / 2 * LANES] __attribute__((aligned(64)));
    __m512 steep = _mm512_set1_ps(-2 * LOG2E / cap), height = _mm512_set1_ps(-cap * LOG2E);
    product(weight + v0 * d, d / 2, 1, across, LANES, scores, LANES, count, LANES, d / 2, 0);
    for (int64_t j = 0; j < LANES; j += 16) {
        __m512 sum = _mm512_loadu_ps(total + j);
        for (int64_t v = 0; v < count; v += 2) {
            __m512 low = head_slope(_mm512_load_ps(scores + v * LANES + j), steep, height, &sum);
            __m512 high = head_slope(_mm512_load_ps(scores + (v + 1) * LANES + j), steep, height, &sum);
            if (!slopes) continue;
            _mm512_store_si512(pairs + v / 2 * LANES + j, paired(low, high));
            _mm256_storeu_si256((__m256i *)(slopes + v * GATHERED + j), (__m256i)_mm512_cvtneps_pbh(low));
            _mm256_storeu_si256((__m256i *)(slopes + (v + 1) * GATHERED + j), (__m256i)_mm512_cvtneps_pbh(high));
        }
        _mm512_storeu_ps(total + j, sum);
    }
    if (slopes) product(pairs, 1, LANES, down + v0 / 2 * d, d, out, d, LANES, d, count / 2, 1);
}

/* hidden (rows, d), weight (words, d), targets (rows) -> nll (rows). With `slopes` (rows rounded up to GATHERED, times words)
   also total (rows), the sums, and gh (rows, d): the gradient of nll with respect to hidden. `words` is even, d a multiple
   of 16, cap positive. */
void head_bf16(const uint16_t *hidden, const uint16_t *weight, const int64_t *targets, float cap, float *nll, float *totals,
               uint16_t *slopes, float *gh, int64_t rows, int64_t words, int64_t d) {
    uint32_t *down = slopes ? room(words * d * 2) : 0;
    if (down) pack_down(weight, d, words, words, d, down);
    int64_t groups = (rows + GATHERED - 1) / GATHERED;
    _Pragma("omp parallel for schedule(static)") for (int64_t group = 0; group < groups; group++) {
        int64_t g0 = group * GATHERED, count = rows - g0 < GATHERED ? rows - g0 : GATHERED;
        uint32_t *across = room(GATHERED * d * 2);
        float *out = room(GATHERED * d * 4), total[GATHERED] = {0};
        memset(out, 0, GATHERED * d * 4);
        for (int64_t j = 0; j < GATHERED; j += LANES)
            pack_across(hidden + (g0 + j) * d, d, count - j, LANES, d, across + j * d / 2);
        for (int64_t v0 = 0; v0 < words; v0 += WORDS)
            for (int64_t j = 0; j < GATHERED; j += LANES)
                head_block(weight, down, across + j * d / 2, slopes ? head_slopes(slopes, words, g0 + j, v0) : 0, v0,
                           words - v0 < WORDS ? words - v0 : WORDS, cap, d, total + j, out + j * d);
        for (int64_t j = 0; j < count; j++) {
            const uint16_t *now = hidden + (g0 + j) * d, *hit = weight + targets[g0 + j] * d;
            float z = 0;
            INDEPENDENT for (int64_t e = 0; e < d; e++) z += widen(now[e]) * widen(hit[e]);
            float t = tanhf(z / cap), pull = 1 - t * t, inverse = 1 / total[j];
            nll[g0 + j] = cap + logf(total[j]) - cap * t;
            if (!slopes) continue;
            totals[g0 + j] = total[j];
            uint16_t *mark = head_slopes(slopes, words, g0, targets[g0 + j]) + j;
            *mark = narrow(widen(*mark) - pull * total[j]);
            INDEPENDENT for (int64_t e = 0; e < d; e++)
                gh[(g0 + j) * d + e] = out[j * d + e] * inverse - pull * widen(hit[e]);
        }
        free(across), free(out);
    }
    free(down);
}

/* From forward's slopes and gh and up (rows), the gradient of each nll: the gradients of the weights and of hidden. */
void head_back_bf16(const uint16_t *hidden, const float *totals, const float *up, uint16_t *slopes, const float *gh,
                    uint16_t *ghidden, float *gweight, int64_t rows, int64_t words, int64_t d) {
    int64_t padded = (rows + GATHERED - 1) / GATHERED * GATHERED;
    uint32_t *down = room(padded * d * 2);
    _Pragma("omp parallel for schedule(static)") for (int64_t t = 0; t < padded; t += 2) {
        float one = t < rows ? up[t] / totals[t] : 0, two = t + 1 < rows ? up[t + 1] / totals[t + 1] : 0;
        const uint16_t *first = hidden + (t < rows ? t : 0) * d, *second = hidden + (t + 1 < rows ? t + 1 : 0) * d;
        INDEPENDENT for (int64_t e = 0; e < d; e++)
            down[t / 2 * d + e] = narrow(widen(first[e]) * one) | (uint32_t)narrow(widen(second[e]) * two) << 16;
        for (int64_t r = t; r < t + 2 && r < rows; r++)
            INDEPENDENT for (int64_t e = 0; e < d; e++) ghidden[r * d + e] = narrow(up[r] * gh[r * d + e]);
    }
    _Pragma("omp parallel for schedule(static)") for (int64_t v0 = 0; v0 < words; v0 += LANES) {
        int64_t count = tile_rows(v0, words);
        for (int64_t t0 = 0; t0 < padded; t0 += GATHERED)
            product(head_slopes(slopes, words, t0, v0), GATHERED / 2, 1, down + t0 / 2 * d, d, gweight + v0 * d, d, count,
                    d, GATHERED / 2, t0 > 0);
    }
    free(down);
}
#endif
