/* attention.h for float on the products of floats.h: the same tiles, whose scores are held
   transposed, a row per key and a lane per query. Keys, values and gradients are read where they
   lie. */

#ifdef MULTIPLIES
/* scores[key][lane] = rows of keys, `stride` apart, times `across`, a tile's queries in slabs. */
static void float_scores(const Block *o, const float *rows, int64_t stride, float *across,
                         float *scores, int64_t d) {
    for (int64_t i = 0; i < o->keys; i += o->step) {
        Range lanes = lanes_of(o, i);
        for (int64_t j = lanes.first; j < lanes.last; j += SLAB - j % SLAB)
            multiply(rows + i * stride, stride, 1, slab(across, d, j) + j % SLAB, SLAB,
                     scores + i * LANES + j, LANES, within(o->keys - i, o->step),
                     within(lanes.last - j, SLAB - j % SLAB), d, 0);
    }
}

/* out[lane] += shares [key][lane] times rows of keys, `stride` apart. */
static void float_out(const Block *o, const float *shares, const float *rows, int64_t stride,
                      float *out, int64_t d) {
    for (int64_t j = 0; j < LANES; j += o->step) {
        Range keys = keys_of(o, j);
        if (keys.first < keys.last)
            multiply(shares + keys.first * LANES + j, 1, LANES, rows + keys.first * stride, stride,
                     out + j * d, d, o->step, d, keys.last - keys.first, 1);
    }
}

/* out[key] += shares [key][lane] times the queries' rows, of which there are `count`. */
static void float_back(const Block *o, const float *shares, const float *rows, int64_t stride,
                       int64_t count, float *out, int64_t d) {
    for (int64_t i = 0; i < o->keys; i += o->step) {
        Range lanes = lanes_of(o, i);
        int64_t last = within(lanes.last, count);
        if (lanes.first < last)
            multiply(shares + i * LANES + lanes.first, LANES, 1, rows + lanes.first * stride,
                     stride, out + i * d, d, within(o->keys - i, o->step), d, last - lanes.first,
                     1);
    }
}

typedef int32_t Lanes __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));

/* Set scores of keys that a query does not see. */
static void float_hide(const Block *o, float *scores) {
    static const int32_t count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int32_t span = o->span > INT32_MAX ? INT32_MAX : (int32_t)o->span;
    for (int64_t j = 0; o->step < LANES && j < LANES; j += WIDE) {
        Range keys = keys_of(o, j / 16 * 16);
        Lanes begins = *(const Lanes *)(o->begins + j), none = (Lanes)V(set1)(NONE);
        Lanes query = *(const Lanes *)count + (int32_t)(o->q0 + j);
        for (int64_t i = keys.first; i < keys.last; i++) {
            int32_t key = (int32_t)(o->k0 + i);
            Lanes hidden = (query < key) | (query - key >= span) | (begins > key);
            Lanes *at = (Lanes *)(scores + i * LANES + j);
            *at = (hidden & none) | (~hidden & *at);
        }
    }
}

/* One block of keys more for a tile; see attend_block. */
static void float_attend_block(const Block *o, const float *k, float *across, const float *v,
                               int64_t v_stride, int64_t d, float *top, float *total, float *out) {
    SCORES(scores);
    float fade[LANES];
    VEC scale = V(set1)(LOG2E / sqrtf(d));
    float_scores(o, k + o->k0 * d, d, across, scores, d);
    float_hide(o, scores);
    for (int64_t j = 0; j < LANES; j += WIDE) {
        float *column = scores + j;
        Range keys = keys_of(o, j / o->step * o->step);
        VEC before = V(loadu)(top + j), most = before;
        for (int64_t i = keys.first; i < keys.last; i++)
            most = V(max)(most, V(load)(column + i * LANES));
        VEC shift = V(mul)(V(max)(most, V(set1)(NONE / 1e10f)), scale);
        VEC left = power_of_two(V(fmsub)(before, scale, shift));
        VEC sum = V(mul)(V(loadu)(total + j), left);
        for (int64_t i = keys.first; i < keys.last; i++) {
            VEC share = power_of_two(V(fmsub)(V(load)(column + i * LANES), scale, shift));
            sum = V(add)(sum, share);
            V(store)(column + i * LANES, share);
        }
        V(storeu)(top + j, most);
        V(storeu)(total + j, sum);
        V(storeu)(fade + j, left);
    }
    for (int64_t i = 0; i < LANES; i++)
        INDEPENDENT for (int64_t e = 0; e < d; e++) out[i * d + e] *= fade[i];
    float_out(o, scores, v + o->k0 * v_stride, v_stride, out, d);
}

/* Slabs of a tile's rows as columns, zeros where there are none. */
static void float_across(const float *x, int64_t stride, int64_t count, int64_t d, float *out) {
    memset(out, 0, LANES * d * 4);
    for (int64_t t = 0; t < count; t++)
        for (int64_t e = 0; e < d; e++) slab(out, d, t)[e * SLAB + t % SLAB] = x[t * stride + e];
}

/* As attend_bf16. */
EACH_UNIT(, attend_f32, batch *groups, (const float *, q), (const float *, k), (const float *, v),
          (const int64_t *, first), (float *, y), (float *, log_sum), (int64_t, batch),
          (int64_t, heads), (int64_t, groups), (int64_t, length), (int64_t, span), (int64_t, d)) {
    int64_t each = heads / groups, b = unit / groups, g = unit % groups;
    float *across = room(LANES * d * 4), *out = room(LANES * d * 4), top[LANES], total[LANES];
    int32_t begins[LANES];
    const float *keys = k + unit * length * d, *values = v + (b * length * groups + g) * d;
    for (int64_t h = g * each; h < (g + 1) * each; h++)
        for (int64_t q0 = 0; q0 < length; q0 += LANES) {
            int64_t count = tile_rows(q0, length), mine = (b * heads + h) * length + q0;
            for (int64_t j = 0; j < LANES; j++) top[j] = NONE, total[j] = 0;
            memset(out, 0, LANES * d * 4);
            float_across(q + mine * d, d, count, d, across);
            tile_begins(first ? first + b * length : 0, q0, length, begins);
            for (int64_t k0 = first_key(q0, span, begins); k0 < q0 + LANES && k0 < length;
                 k0 += LANES) {
                Block block = block_of(q0, k0, tile_rows(k0, length), span, begins);
                float_attend_block(&block, keys, across, values, groups * d, d, top, total, out);
            }
            for (int64_t i = 0; i < count; i++) {
                float *to = y + ((b * length + q0 + i) * heads + h) * d, inverse = 1 / total[i];
                log_sum[mine + i] = top[i] * LOG2E / sqrtf(d) + log2f(total[i]);
                INDEPENDENT for (int64_t e = 0; e < d; e++) to[e] = out[i * d + e] * inverse;
            }
        }
    free(across), free(out);
}

/* A tile of queries as backward's products read it. */
typedef struct {
    const float *q, *g;
    float *q_across, *g_across, log_sum[LANES], pull[LANES];
    int64_t count, g_stride;
} QueryTile;

/* Tile against one block of keys: adds to the gradients of its keys and values (rows k0 ..) and of
 * its queries. */
static void float_attend_back_block(const Block *o, const float *k, const float *v,
                                    int64_t v_stride, const QueryTile *tile, int64_t d, float *gq,
                                    float *gk, float *gv) {
    SCORES(shares);
    SCORES(rises);
    int64_t k0 = o->k0;
    VEC unit = V(set1)(1 / sqrtf(d)), scale = V(set1)(LOG2E / sqrtf(d));
    float_scores(o, k + k0 * d, d, tile->q_across, shares, d);
    float_scores(o, v + k0 * v_stride, v_stride, tile->g_across, rises, d);
    float_hide(o, shares);
    for (int64_t j = 0; j < LANES; j += WIDE) {
        VEC shift = V(loadu)(tile->log_sum + j), pull = V(loadu)(tile->pull + j);
        Range keys = keys_of(o, j / o->step * o->step);
        for (int64_t i = keys.first; i < keys.last; i++) {
            int64_t at = i * LANES + j;
            VEC share = power_of_two(V(fmsub)(V(load)(shares + at), scale, shift));
            V(store)(shares + at, share);
            V(store)(rises + at, V(mul)(V(mul)(share, unit), V(sub)(V(load)(rises + at), pull)));
        }
    }
    float_back(o, shares, tile->g, tile->g_stride, tile->count, gv + k0 * d, d);
    float_back(o, rises, tile->q, d, tile->count, gk + k0 * d, d);
    float_out(o, rises, k + k0 * d, d, gq, d);
}

/* What a tile reads of its queries, from position q0 on. */
static void float_query_tile(QueryTile *tile, const float *y, const float *log_sum, int64_t d) {
    float_across(tile->q, d, tile->count, d, tile->q_across);
    float_across(tile->g, tile->g_stride, tile->count, d, tile->g_across);
    for (int64_t t = 0; t < LANES; t++) {
        float sum = 0;
        if (t < tile->count)
            INDEPENDENT for (int64_t e = 0; e < d; e++) sum +=
                tile->g[t * tile->g_stride + e] * y[t * tile->g_stride + e];
        tile->pull[t] = sum;
        tile->log_sum[t] = t < tile->count ? log_sum[t] : 0;
    }
}

/* As attend_back_bf16. */
EACH_UNIT(, attend_back_f32, batch *groups, (const float *, q), (const float *, k),
          (const float *, v), (const int64_t *, first), (const float *, y),
          (const float *, log_sum), (const float *, g), (float *, gq), (float *, gk), (float *, gv),
          (int64_t, batch), (int64_t, heads), (int64_t, groups), (int64_t, length), (int64_t, span),
          (int64_t, d)) {
    int64_t each = heads / groups, b = unit / groups, group = unit % groups;
    QueryTile tile = {.q_across = room(LANES * d * 4), .g_across = room(LANES * d * 4)};
    float *sum_v = room(length * d * 4);
    int32_t begins[LANES];
    const float *keys = k + unit * length * d, *values = v + (b * length * groups + group) * d;
    float *to_k = gk + unit * length * d;
    memset(to_k, 0, length * d * 4), memset(sum_v, 0, length * d * 4);
    for (int64_t h = group * each; h < (group + 1) * each; h++)
        for (int64_t q0 = 0; q0 < length; q0 += LANES) {
            int64_t mine = (b * heads + h) * length + q0, at = ((b * length + q0) * heads + h) * d;
            tile.q = q + mine * d, tile.g = g + at, tile.g_stride = heads * d;
            tile.count = tile_rows(q0, length);
            float_query_tile(&tile, y + at, log_sum + mine, d);
            float sum_q[LANES * d];
            memset(sum_q, 0, sizeof sum_q);
            tile_begins(first ? first + b * length : 0, q0, length, begins);
            for (int64_t k0 = first_key(q0, span, begins); k0 < q0 + LANES && k0 < length;
                 k0 += LANES) {
                Block block = block_of(q0, k0, tile_rows(k0, length), span, begins);
                float_attend_back_block(&block, keys, values, groups * d, &tile, d, sum_q, to_k,
                                        sum_v);
            }
            memcpy(gq + mine * d, sum_q, tile.count * d * 4);
        }
    for (int64_t t = 0; t < length; t++)
        memcpy(gv + ((b * length + t) * groups + group) * d, sum_v + t * d, d * 4);
    free(tile.q_across), free(tile.g_across), free(sum_v);
}
#endif
