/* head.h for float on the products of floats.h: output head, softcap and cross-entropy with both
   gradients, never holding the logits. Scores of a tile are held transposed, a row per token of the
   vocabulary and a lane per position; see there for what the slopes are. */

#ifdef MULTIPLIES
#define FLOAT_WORDS 64 /* tokens of the vocabulary in one block of scores */
#define FLOAT_TURN 512 /* positions whose slopes are kept at once, a multiple of LANES */

/* From scores z: e = exp(cap(z) - cap) adds to `sum`; returns its slope e (1 - tanh(z / c)^2). */
static inline VEC float_head_slope(VEC z, VEC steep, VEC height, VEC *sum) {
    VEC one = V(set1)(1), two = V(set1)(2), high = V(max)(z, V(sub)(V(setzero)(), z));
    VEC u = power_of_two(V(mul)(high, steep)), w = V(add)(one, u); /* u = exp(-2 |z| / c) */
#ifdef __AVX512F__
    VEC r = _mm512_rcp14_ps(w);
#else
    VEC r = _mm256_rcp_ps(w);
#endif
    r = V(mul)(r, V(fnmadd)(w, r, two));
    VEC below = V(mul)(V(add)(u, u), r), above = V(sub)(two, below); /* 1 -+ tanh(|z| / c) */
#ifdef __AVX512F__
    VEC gap = _mm512_mask_mov_ps(below, _mm512_movepi32_mask(_mm512_castps_si512(z)), above);
#else
    VEC gap = _mm256_blendv_ps(below, above, z);
#endif
    VEC e = power_of_two(V(mul)(gap, height));
    *sum = V(add)(*sum, e);
    return V(mul)(e, V(mul)(below, above));
}

/* One block of the vocabulary for one tile: sums and, with slopes (rows FLOAT_TURN apart), those
 * and their products with the weights. */
static void float_head_block(const float *weight, float *under, float *across, float *slopes,
                             int64_t words, int64_t v0, int64_t count, float cap, int64_t d,
                             float *total, float *out) {
    float scores[FLOAT_WORDS * LANES] __attribute__((aligned(64)));
    VEC steep = V(set1)(-2 * LOG2E / cap), height = V(set1)(-cap * LOG2E);
    for (int64_t j = 0; j < LANES; j += SLAB)
        multiply(weight + v0 * d, d, 1, slab(across, d, j), SLAB, scores + j, LANES, count, SLAB, d,
                 0);
    for (int64_t j = 0; j < LANES; j += SLAB) {
        VEC sum[2] = {V(loadu)(total + j), V(loadu)(total + j + WIDE)};
        for (int64_t v = 0; v < count; v++)
            _Pragma("GCC unroll 2") for (int half = 0; half < 2; half++) {
                float *at = scores + v * LANES + j + half * WIDE;
                VEC slope = float_head_slope(V(load)(at), steep, height, sum + half);
                if (!slopes) continue;
                V(store)(at, slope);
                V(storeu)(slopes + v * FLOAT_TURN + j + half * WIDE, slope);
            }
        V(storeu)(total + j, sum[0]), V(storeu)(total + j + WIDE, sum[1]);
    }
    for (int64_t e = 0; slopes && e < d; e += SLAB)
        multiply(scores, 1, LANES, slab(under, words, e) + v0 * SLAB, SLAB, out + e, d, LANES, SLAB,
                 count, 1);
}

/* The tiles of the positions t0 .. stop: nll and, with slopes, also gh and down, what the slopes
   are multiplied with: hidden divided by the sums, in slabs. */
EACH_UNIT(static, float_head_tiles, TILES(stop - t0), (const float *, hidden),
          (const float *, weight), (float *, under), (const int64_t *, targets), (float, cap),
          (float *, nll), (float *, slopes), (float *, gh), (float *, down), (int64_t, t0),
          (int64_t, stop), (int64_t, words), (int64_t, d)) {
    int64_t first = unit * LANES, g0 = t0 + first, count = tile_rows(g0, stop);
    float *across = room(LANES * d * 4), *out = room(LANES * d * 4), total[LANES] = {0};
    memset(across, 0, LANES * d * 4), memset(out, 0, LANES * d * 4);
    fill_across(hidden + g0 * d, count, d, across);
    for (int64_t v0 = 0; v0 < words; v0 += FLOAT_WORDS)
        float_head_block(weight, under, across, slopes ? slopes + v0 * FLOAT_TURN + first : 0,
                         words, v0, words - v0 < FLOAT_WORDS ? words - v0 : FLOAT_WORDS, cap, d,
                         total, out);
    for (int64_t j = 0; j < count; j++) {
        const float *now = hidden + (g0 + j) * d, *hit = weight + targets[g0 + j] * d;
        float z = 0, inverse = 1 / total[j];
        INDEPENDENT for (int64_t e = 0; e < d; e++) z += now[e] * hit[e];
        float t = tanhf(z / cap), pull = 1 - t * t;
        nll[g0 + j] = cap + logf(total[j]) - cap * t;
        if (!slopes) continue;
        slopes[targets[g0 + j] * FLOAT_TURN + first + j] -= pull * total[j];
        INDEPENDENT for (int64_t e = 0; e < d; e++) gh[(g0 + j) * d + e] =
            out[j * d + e] * inverse - pull * hit[e];
        INDEPENDENT for (int64_t e = 0; e < d; e++) out[j * d + e] = now[e] * inverse;
    }
    if (slopes) fill_down(out, count, d, down, FLOAT_TURN, first);
    free(across), free(out);
}

/* Adds what the positions t0 .. stop say about the weights' gradient, or, the first, sets it. */
EACH_UNIT(static, float_head_weights, TILES(words), (const float *, slopes), (float *, down),
          (float *, gweight), (int64_t, t0), (int64_t, stop), (int64_t, words), (int64_t, d)) {
    int64_t v0 = unit * LANES;
    for (int64_t e = 0; e < d; e += SLAB)
        multiply(slopes + v0 * FLOAT_TURN, FLOAT_TURN, 1, slab(down, FLOAT_TURN, e), SLAB,
                 gweight + v0 * d + e, d, tile_rows(v0, words), SLAB, stop - t0, t0 > 0);
}

/* d is a multiple of PANEL; all else as head_bf16. */
void head_f32(const float *hidden, const float *weight, const int64_t *targets, float cap,
              float *nll, float *gh, float *gweight, int64_t rows, int64_t words, int64_t d) {
    float *under = gh ? slabs_down(weight, words, d) : 0, *down = gh ? room(FLOAT_TURN * d * 4) : 0,
          *slopes = gh ? room(FLOAT_TURN * words * 4) : 0;
    for (int64_t t0 = 0; t0 < rows; t0 += FLOAT_TURN) {
        int64_t stop = rows - t0 < FLOAT_TURN ? rows : t0 + FLOAT_TURN;
        float_head_tiles(hidden, weight, under, targets, cap, nll, slopes, gh, down, t0, stop,
                         words, d);
        if (gh) float_head_weights(slopes, down, gweight, t0, stop, words, d);
    }
    free(under), free(down), free(slopes);
}

/* Gradients of the mean of nll times *up, from those of its sum. */
void head_back_f32(const float *gh, const float *gweight, const float *up, float *ghidden,
                   float *gw, int64_t rows, int64_t words, int64_t d) {
    shrink(gh, *up / rows, ghidden, rows * d);
    shrink(gweight, *up / rows, gw, words * d);
}
#endif
