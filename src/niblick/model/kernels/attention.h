/* Softmax attention over bfloat16 in tiles that stay in the nearest caches; for processors that
   multiply pairs of bfloat16.

   A tile is LANES queries against up to LANES keys. Scores are held transposed, a row per key and a
   lane per query, so that maxima, sums and masks run down the rows without crossing lanes. Nothing
   of the size of the scores is kept: backward computes them again from the logarithm of each
   query's sum. Products sum in float; a unit of work is one group of heads of one sequence, done in
   order, so results do not depend on the number of threads. */

#define NONE -1e30f /* score of a key that a query does not see */

/* Queries q0 .. q0 + LANES against keys k0 .. k0 + keys of which each sees `span` at most, none
   before `begins`, which does not fall; `step` rows and lanes go together: all of them where all
   is seen, else so few that most of what is not seen is left out. */
typedef struct {
    int64_t q0, k0, keys, span, step;
    const int32_t *begins;
} Block;

static inline Block block_of(int64_t q0, int64_t k0, int64_t keys, int64_t span,
                             const int32_t *begins) {
    int whole = k0 + keys - 1 <= q0 && k0 > q0 + LANES - 1 - span && k0 >= begins[LANES - 1];
    return (Block){q0, k0, keys, span, whole ? LANES : 16, begins};
}

/* The first key of each query of a tile, from `first` (T), 0 where there is none. */
static void tile_begins(const int64_t *first, int64_t q0, int64_t length, int32_t *begins) {
    for (int64_t i = 0; i < LANES; i++)
        begins[i] = first ? (int32_t)first[q0 + i < length ? q0 + i : length - 1] : 0;
}

typedef struct {
    int64_t first, last;
} Range;

static inline int64_t within(int64_t x, int64_t most) { return x < 0 ? 0 : x > most ? most : x; }

/* Lanes that see any of the keys i .. i + step, in whole vectors. */
static inline Range lanes_of(const Block *o, int64_t i) {
    int64_t first = within(o->k0 + i - o->q0, LANES),
            last = within(o->k0 + i + o->step - 1 + o->span - o->q0, LANES);
    while (last > 0 && o->begins[last - 1] > o->k0 + i + o->step - 1) last--;
    return (Range){first / 16 * 16, (last + 15) / 16 * 16};
}

/* Keys that any of the lanes j .. j + step sees, in whole steps but for the end. */
static inline Range keys_of(const Block *o, int64_t j) {
    int64_t low = o->q0 + j - o->span + 1, begin = o->begins[j];
    int64_t first = within((low > begin ? low : begin) - o->k0, o->keys),
            last = within(o->q0 + j + o->step - o->k0, o->keys);
    return (Range){first / 16 * 16, within((last + 15) / 16 * 16, o->keys)};
}

/* The first block of keys that a tile sees any of. */
static inline int64_t first_key(int64_t q0, int64_t span, const int32_t *begins) {
    int64_t low = q0 - span + 1;
    return (low > begins[0] ? low : begins[0]) / LANES * LANES;
}

#define SCORES(name) float name[LANES * LANES] __attribute__((aligned(64)))

#ifdef __AVX512BF16__
/* scores[key][lane] = rows of keys, `stride` apart, times what `across` holds of the queries. */
static void block_scores(const Block *o, const uint16_t *rows, int64_t stride,
                         const uint32_t *across, int64_t padded, float *scores, int64_t d) {
    for (int64_t i = 0; i < o->keys; i += o->step) {
        Range lanes = lanes_of(o, i);
        if (lanes.first < lanes.last)
            product(rows + i * stride, stride / 2, 1, across + lanes.first, padded,
                    scores + i * LANES + lanes.first, LANES, within(o->keys - i, o->step),
                    lanes.last - lanes.first, d / 2, 0);
    }
}

/* out[lane] += pairs of keys' shares [pair][lane] times their rows in pairs, `down`. */
static void block_out(const Block *o, const uint32_t *shares, const uint32_t *down, float *out,
                      int64_t d) {
    for (int64_t j = 0; j < LANES; j += o->step) {
        Range keys = keys_of(o, j);
        if (keys.first < keys.last)
            product(shares + keys.first / 2 * LANES + j, 1, LANES, down + keys.first / 2 * d, d,
                    out + j * d, d, o->step, d, (keys.last + 1) / 2 - keys.first / 2, 1);
    }
}

/* out[key] += shares [key][lane] times the queries' rows in pairs, `down`. */
static void block_back(const Block *o, const uint16_t *shares, const uint32_t *down, float *out,
                       int64_t d) {
    for (int64_t i = 0; i < o->keys; i += o->step) {
        Range lanes = lanes_of(o, i);
        if (lanes.first < lanes.last)
            product(shares + i * LANES + lanes.first, LANES / 2, 1, down + lanes.first / 2 * d, d,
                    out + i * d, d, within(o->keys - i, o->step), d, (lanes.last - lanes.first) / 2,
                    1);
    }
}

/* Which of the lanes j .. j + 16 see key i. */
static inline __mmask16 seen(const Block *o, int64_t i, int64_t j) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int64_t first = o->k0 + i - o->q0 - j, last = first + o->span;
    return _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32((int)within(first, 16))) &
           _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32((int)within(last, 16))) &
           _mm512_cmple_epi32_mask(_mm512_loadu_si512(o->begins + j),
                                   _mm512_set1_epi32((int)(o->k0 + i)));
}

/* Set scores of keys that a query does not see, and the row after an odd last one. */
static void hide(const Block *o, float *scores) {
    for (int64_t j = 0; o->step < LANES && j < LANES; j += 16) {
        Range keys = keys_of(o, j);
        for (int64_t i = keys.first; i < keys.last; i++) {
            float *at = scores + i * LANES + j;
            _mm512_store_ps(
                at, _mm512_mask_mov_ps(_mm512_set1_ps(NONE), seen(o, i, j), _mm512_load_ps(at)));
        }
    }
    if (o->keys % 2)
        for (int64_t j = 0; j < LANES; j++) scores[o->keys * LANES + j] = NONE;
}

/* One block of keys more for a tile: its part of the weighted values, running maxima (of scores
   before the factor `scale`, which holds log2 e) and sums. */
static void attend_block(const Block *o, const uint16_t *k, const uint32_t *across, int64_t padded,
                         const uint32_t *v_down, int64_t d, float *top, float *total, float *out) {
    SCORES(scores);
    uint32_t shares[LANES / 2 * LANES];
    float fade[LANES];
    __m512 scale = _mm512_set1_ps(LOG2E / sqrtf(d));
    block_scores(o, k + o->k0 * d, d, across + o->q0, padded, scores, d);
    hide(o, scores);
    for (int64_t j = 0; j < LANES; j += 16) {
        const float *column = scores + j;
        Range keys = keys_of(o, j / o->step * o->step);
        __m512 before = _mm512_loadu_ps(top + j), most = before;
        for (int64_t i = keys.first; i < keys.last; i++)
            most = _mm512_max_ps(most, _mm512_load_ps(column + i * LANES));
        __m512 shift = _mm512_mul_ps(_mm512_max_ps(most, _mm512_set1_ps(NONE / 1e10f)), scale);
        __m512 left = power(_mm512_fmsub_ps(before, scale, shift));
        __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(total + j), left);
        for (int64_t i = keys.first; i < keys.last; i += 2) {
            __m512 low = power(_mm512_fmsub_ps(_mm512_load_ps(column + i * LANES), scale, shift));
            __m512 high =
                power(_mm512_fmsub_ps(_mm512_load_ps(column + (i + 1) * LANES), scale, shift));
            sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
            _mm512_storeu_si512(shares + i / 2 * LANES + j, paired(low, high));
        }
        _mm512_storeu_ps(top + j, most);
        _mm512_storeu_ps(total + j, sum);
        _mm512_storeu_ps(fade + j, left);
    }
    for (int64_t i = 0; i < LANES; i++)
        INDEPENDENT for (int64_t e = 0; e < d; e++) out[i * d + e] *= fade[i];
    block_out(o, shares, v_down + o->k0 / 2 * d, out, d);
}

/* q (B, H, T, d), k (B, G, T, d), v (B, T, G, d) -> y (B, T, H, d) and log_sum (B, H, T), to base
 * 2; causal, `span` keys at most, from `first` (B, T) on where it is given. */
EACH_UNIT(, attend_bf16, batch *groups, (const uint16_t *, q), (const uint16_t *, k),
          (const uint16_t *, v), (const int64_t *, first), (uint16_t *, y), (float *, log_sum),
          (int64_t, batch), (int64_t, heads), (int64_t, groups), (int64_t, length), (int64_t, span),
          (int64_t, d)) {
    int64_t padded = (length + LANES - 1) / LANES * LANES, each = heads / groups;
    int64_t b = unit / groups, g = unit % groups;
    uint32_t *across = room(padded * d * 2), *v_down = room(padded * d * 2);
    float *out = room(LANES * d * 4), top[LANES], total[LANES];
    int32_t begins[LANES];
    pack_down(v + (b * length * groups + g) * d, groups * d, length, padded, d, v_down);
    for (int64_t h = g * each; h < (g + 1) * each; h++) {
        pack_across(q + (b * heads + h) * length * d, d, length, padded, d, across);
        for (int64_t q0 = 0; q0 < length; q0 += LANES) {
            for (int64_t j = 0; j < LANES; j++) top[j] = NONE, total[j] = 0;
            memset(out, 0, LANES * d * 4);
            tile_begins(first ? first + b * length : 0, q0, length, begins);
            for (int64_t k0 = first_key(q0, span, begins); k0 < q0 + LANES && k0 < length;
                 k0 += LANES) {
                Block block = block_of(q0, k0, tile_rows(k0, length), span, begins);
                attend_block(&block, k + unit * length * d, across, padded, v_down, d, top, total,
                             out);
            }
            for (int64_t i = 0; i < tile_rows(q0, length); i++) {
                uint16_t *to = y + ((b * length + q0 + i) * heads + h) * d;
                log_sum[(b * heads + h) * length + q0 + i] =
                    top[i] * LOG2E / sqrtf(d) + log2f(total[i]);
                INDEPENDENT for (int64_t e = 0; e < d; e++) to[e] =
                    narrow(out[i * d + e] / total[i]);
            }
        }
    }
    free(across), free(v_down), free(out);
}

/* A head's tensors as backward's products read them. */
typedef struct {
    uint32_t *q_across, *q_down, *g_across, *g_down;
    float *log_sum, *pull;
} Packed;

/* Tile against one block of keys: adds to the gradients of its keys and values (rows k0 ..) and of
 * its queries. */
static void attend_back_block(const Block *o, const uint16_t *k, const uint16_t *v,
                              int64_t v_stride, const uint32_t *k_down, const Packed *head,
                              int64_t padded, int64_t d, float *gq, float *gk, float *gv) {
    SCORES(scores);
    SCORES(slopes);
    uint16_t shares[LANES * LANES], rises[LANES * LANES];
    uint32_t pairs[LANES / 2 * LANES];
    int64_t q0 = o->q0, k0 = o->k0;
    __m512 unit = _mm512_set1_ps(1 / sqrtf(d)), scale = _mm512_set1_ps(LOG2E / sqrtf(d));
    block_scores(o, k + k0 * d, d, head->q_across + q0, padded, scores, d);
    block_scores(o, v + k0 * v_stride, v_stride, head->g_across + q0, padded, slopes, d);
    hide(o, scores);
    if (o->keys % 2)
        for (int64_t j = 0; j < LANES; j++) slopes[o->keys * LANES + j] = 0;
    for (int64_t j = 0; j < LANES; j += 16) {
        __m512 shift = _mm512_loadu_ps(head->log_sum + q0 + j),
               pull = _mm512_loadu_ps(head->pull + q0 + j);
        Range keys = keys_of(o, j / o->step * o->step);
        for (int64_t i = keys.first; i < keys.last; i += 2) {
            __m512 rise[2];
            _Pragma("GCC unroll 2") for (int two = 0; two < 2; two++) {
                int64_t at = (i + two) * LANES + j;
                __m512 share = power(_mm512_fmsub_ps(_mm512_load_ps(scores + at), scale, shift));
                rise[two] = _mm512_mul_ps(_mm512_mul_ps(share, unit),
                                          _mm512_sub_ps(_mm512_load_ps(slopes + at), pull));
                _mm256_storeu_si256((__m256i *)(shares + at), (__m256i)_mm512_cvtneps_pbh(share));
                _mm256_storeu_si256((__m256i *)(rises + at),
                                    (__m256i)_mm512_cvtneps_pbh(rise[two]));
            }
            _mm512_storeu_si512(pairs + i / 2 * LANES + j, paired(rise[0], rise[1]));
        }
    }
    block_back(o, shares, head->g_down + q0 / 2 * d, gv + k0 * d, d);
    block_back(o, rises, head->q_down + q0 / 2 * d, gk + k0 * d, d);
    block_out(o, pairs, k_down + k0 / 2 * d, gq, d);
}

/* Backward: from g, the gradient of y, and what forward gave, the gradients gq, gk, gv, laid out as
 * q, k, v. */
EACH_UNIT(, attend_back_bf16, batch *groups, (const uint16_t *, q), (const uint16_t *, k),
          (const uint16_t *, v), (const int64_t *, first), (const uint16_t *, y),
          (const float *, log_sum), (const uint16_t *, g), (uint16_t *, gq), (uint16_t *, gk),
          (uint16_t *, gv), (int64_t, batch), (int64_t, heads), (int64_t, groups),
          (int64_t, length), (int64_t, span), (int64_t, d)) {
    int64_t padded = (length + LANES - 1) / LANES * LANES, each = heads / groups,
            size = padded * d * 2;
    int64_t b = unit / groups, group = unit % groups;
    Packed head = {room(size), room(size),       room(size),
                   room(size), room(padded * 4), room(padded * 4)};
    uint32_t *k_down = room(size);
    float *sum_k = room(padded * d * 4), *sum_v = room(padded * d * 4),
          *sum_q = room(LANES * d * 4);
    int32_t begins[LANES];
    const uint16_t *keys = k + unit * length * d, *values = v + (b * length * groups + group) * d;
    memset(sum_k, 0, padded * d * 4);
    memset(sum_v, 0, padded * d * 4);
    pack_down(keys, d, length, padded, d, k_down);
    for (int64_t h = group * each; h < (group + 1) * each; h++) {
        int64_t at = (b * length * heads + h) * d, row = heads * d, mine = (b * heads + h) * length;
        pack_across(q + mine * d, d, length, padded, d, head.q_across);
        pack_down(q + mine * d, d, length, padded, d, head.q_down);
        pack_across(g + at, row, length, padded, d, head.g_across);
        pack_down(g + at, row, length, padded, d, head.g_down);
        for (int64_t t = 0; t < padded; t++) {
            float sum = 0;
            if (t < length)
                INDEPENDENT for (int64_t e = 0; e < d; e++) sum +=
                    widen(g[at + t * row + e]) * widen(y[at + t * row + e]);
            head.pull[t] = sum;
            head.log_sum[t] = t < length ? log_sum[mine + t] : 0;
        }
        for (int64_t q0 = 0; q0 < length; q0 += LANES) {
            memset(sum_q, 0, LANES * d * 4);
            tile_begins(first ? first + b * length : 0, q0, length, begins);
            for (int64_t k0 = first_key(q0, span, begins); k0 < q0 + LANES && k0 < length;
                 k0 += LANES) {
                Block block = block_of(q0, k0, tile_rows(k0, length), span, begins);
                attend_back_block(&block, keys, values, groups * d, k_down, &head, padded, d, sum_q,
                                  sum_k, sum_v);
            }
            INDEPENDENT for (int64_t i = 0; i < tile_rows(q0, length) * d; i++)
                gq[(mine + q0) * d + i] = narrow(sum_q[i]);
        }
    }
    for (int64_t t = 0; t < length; t++) {
        uint16_t *to = gv + ((b * length + t) * groups + group) * d;
        INDEPENDENT for (int64_t e = 0; e < d; e++) gk[(unit * length + t) * d + e] =
            narrow(sum_k[t * d + e]);
        INDEPENDENT for (int64_t e = 0; e < d; e++) to[e] = narrow(sum_v[t * d + e]);
    }
    free(head.q_across), free(head.q_down), free(head.g_across), free(head.g_down),
        free(head.log_sum);
    free(head.pull), free(k_down), free(sum_k), free(sum_v), free(sum_q);
}

int64_t attends(void) { return 1; }
#else
int64_t attends(void) { return 0; }
#endif
