/* One key/value head of one attention layer over all columns of a call, in order (sections 1-3 of
 * the spec).
 *
 * Rings hold 16-bit integers times a step per position and head: keys in blocks of 64 positions,
 * each block E x 64; values span x padded E. Position p lives at p mod span. All query heads of the
 * group read them together.
 */
#include "engine.h"

#include <math.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    TOP = 32767,
    HEADS = 4,
    PARTS = BLOCK / WIDE
}; /* HEADS: query heads that share one reading */

static void rotate(float *x, const float *angle, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], c = angle[i], s = angle[half + i];
        x[i] = a * c + b * s;
        x[half + i] = b * c - a * s;
    }
}

/* out = this column's raw k or v of the group, plus mix times the position before's */
static void shifted(const nb_engine *e, const nb_column *col, int64_t offset, const float *mix,
                    const float *kept, int group, float *out) {
    int width = e->plan.head;
    const float *own = e->qkv + (col - e->column) * e->wide_qkv + offset;
    memcpy(out, own, width * sizeof(float));
    if (!mix || !col->since) return;
    const float *before = col->previous >= 0
                              ? e->qkv + (int64_t)col->previous * e->wide_qkv + offset
                              : kept + (int64_t)group * width;
    for (int i = 0; i < width; i++) out[i] += mix[group] * before[i];
}

/* sixteen numbers as floats */
INLINE vec widen(const int16_t *x) {
#if defined(__AVX512F__) /* compilers take two halves */
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)x)));
#else
    return __builtin_convertvector(*(const shorts *)x, vec);
#endif
}

/* out[i * stride] = x[i] / step, the step chosen so that the largest becomes TOP; returns the step
 */
static float narrow(const float *x, int n, int16_t *out, int stride) {
    float most = 0;
    for (int i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float factor = most > 0 ? TOP / most : 0;
    for (int i = 0; i < n; i++) out[i * stride] = (int16_t)rintf(x[i] * factor);
    return most / TOP;
}

/* scores of H heads with whole blocks of positions */
INLINE void score(const int16_t *keys, const float *steps, const float *q, int q_stride, int blocks,
                  int width, float *out, int64_t room, const int H) {
    for (int b = 0; b < blocks; b++, out += BLOCK, steps += BLOCK) {
        vec sum[HEADS][PARTS];
        for (int h = 0; h < H; h++)
            for (int p = 0; p < PARTS; p++) sum[h][p] = (vec){0};
        for (int i = 0; i < width; i++, keys += BLOCK)
            for (int p = 0; p < PARTS; p++) {
                vec k = widen(keys + p * WIDE);
                for (int h = 0; h < H; h++) sum[h][p] += q[h * q_stride + i] * k;
            }
        for (int h = 0; h < H; h++)
            for (int p = 0; p < PARTS; p++)
                *(vec *)(out + h * room + p * WIDE) = sum[h][p] * *(const vec *)(steps + p * WIDE);
    }
}

/* Scores (count of them, padded to 16) become weights that sum to one, each times its position's
 * step; hidden ones are -infinity. */
static void softmax(float *s, const float *steps, int count) {
    vec top = (vec){0} - INFINITY, sums = {0};
    for (int i = count; i % WIDE; i++) s[i] = -INFINITY;
    for (int i = 0; i < count; i += WIDE) {
        vec x = *(vec *)(s + i);
        top = nb_pick(x > top, x, top);
    }
    float most = top[0], sum = 0;
    for (int i = 1; i < WIDE; i++) most = top[i] > most ? top[i] : most;
    for (int i = 0; i < count; i += WIDE) {
        vec x = *(vec *)(s + i), w = nb_exp(x - most);
        w = (vec)((veci)w & (x > -3.0e38f));
        *(vec *)(s + i) = w;
        sums += w;
    }
    for (int i = 0; i < WIDE; i++) sum += sums[i];
    float norm = 1 / sum;
    for (int i = 0; i < count; i += WIDE) *(vec *)(s + i) *= norm * *(const vec *)(steps + i);
}

/* y += weights times values, for H heads and P vectors of a value */
INLINE void mix_part(const int16_t *values, const float *w, int64_t room, int count, int padded,
                     float *y, const int H, const int P) {
    vec sum[HEADS][PARTS];
    for (int h = 0; h < H; h++)
        for (int p = 0; p < P; p++) sum[h][p] = (vec){0};
    for (int j = 0; j < count; j++)
        for (int p = 0; p < P; p++) {
            vec v = widen(values + (int64_t)j * padded + p * WIDE);
            for (int h = 0; h < H; h++) sum[h][p] += w[h * room + j] * v;
        }
    for (int h = 0; h < H; h++)
        for (int p = 0; p < P; p++) *(vec *)(y + h * padded + p * WIDE) = sum[h][p];
}

INLINE void mix_values(const int16_t *values, const float *w, int64_t room, int count, int padded,
                       float *y, const int H) {
    int at = 0;
    for (; at + BLOCK <= padded; at += BLOCK)
        mix_part(values + at, w, room, count, padded, y + at, H, PARTS);
    for (; at < padded; at += WIDE) mix_part(values + at, w, room, count, padded, y + at, H, 1);
}

/* Ring entries outside the newest `visible` positions get -infinity. */
static void hide(float *s, int64_t position, int span, int filled, int64_t visible) {
    int newest = (int)(position % span);
    for (int i = 0; i < filled; i++) {
        int back = newest - i + (i > newest ? span : 0); /* how long ago entry i was written */
        if (back >= visible) s[i] = -INFINITY;
    }
}

typedef struct {
    int16_t *keys, *values;
    float *key_steps, *value_steps;
} rings;

/* y (padded E per head) = softmax(q k / sqrt(E)) v for H heads of the group */
INLINE void attend(const nb_layer *layer, const nb_column *col, const rings *ring, const float *q,
                   int width, int padded, float *scores, int64_t room, float *y, const int H) {
    int64_t seen = col->position + 1, visible = seen - col->first;
    int filled = seen < layer->span ? (int)seen : layer->span,
        blocks = (filled + BLOCK - 1) / BLOCK;
    score(ring->keys, ring->key_steps, q, padded, blocks, width, scores, room, H);
    for (int h = 0; h < H; h++) {
        if (visible < filled) hide(scores + h * room, col->position, layer->span, filled, visible);
        softmax(scores + h * room, ring->value_steps, filled);
    }
    mix_values(ring->values, scores, room, filled, padded, y, H);
}

static void attend_all(const nb_layer *layer, const nb_column *col, const rings *ring,
                       const float *q, int heads, int width, int padded, float *scores,
                       int64_t room, float *y) {
    for (int h = 0; h < heads; h += HEADS, q += HEADS * padded, y += HEADS * padded)
        switch (heads - h) {
        case 1:
            attend(layer, col, ring, q, width, padded, scores, room, y, 1);
            break;
        case 2:
            attend(layer, col, ring, q, width, padded, scores, room, y, 2);
            break;
        case 3:
            attend(layer, col, ring, q, width, padded, scores, room, y, 3);
            break;
        default:
            attend(layer, col, ring, q, width, padded, scores, room, y, 4);
        }
}

/* local value residual and exclusive self attention, then y goes to its place in the columns'
 * outputs */
static void finish(const nb_engine *e, const nb_layer *layer, int head, const float *v, float *y,
                   float *out) {
    int width = e->plan.head;
    if (layer->local_v)
        for (int i = 0; i < width; i++) y[i] += layer->local_v[head] * v[i];
    if (layer->xsa) {
        float norm = 0, along = 0;
        for (int i = 0; i < width; i++) norm += v[i] * v[i], along += y[i] * v[i];
        norm = sqrtf(norm) > 1e-12f ? sqrtf(norm) : 1e-12f;
        for (int i = 0; i < width; i++) y[i] -= along / (norm * norm) * v[i];
    }
    memcpy(out, y, width * sizeof(float));
}

void nb_attention(nb_engine *e, const nb_layer *layer, int group, float *scores) {
    const nb_plan *p = &e->plan;
    int width = p->head, padded = (width + WIDE - 1) / WIDE * WIDE, heads = p->heads / p->groups;
    int half = p->half;
    int64_t room = nb_ring(layer);
    float *q = scores + heads * room, *y = q + heads * padded, *k = y + heads * padded,
          *v = k + padded;
    int64_t k_at = (int64_t)p->dim + group * width, v_at = k_at + p->groups * width;
    if (layer->value_scale != 0)
        for (int c = 0; c < e->n; c++)
            for (int i = 0; i < width; i++)
                e->qkv[(int64_t)c * e->wide_qkv + v_at + i] +=
                    layer->value_scale * e->ve[(int64_t)c * e->wide_qkv + group * width + i];
    for (int c = 0; c < e->n; c++) {
        const nb_column *col = e->column + c;
        float *state = e->state + col->slot * p->state_floats;
        rings ring = {(int16_t *)(state + layer->at_keys) + group * room * width,
                      (int16_t *)(state + layer->at_values) + (int64_t)group * layer->span * padded,
                      state + layer->at_key_steps + group * room,
                      state + layer->at_value_steps + group * room};
        const float *own = e->qkv + (int64_t)c * e->wide_qkv,
                    *angle = e->angle + (int64_t)c * 2 * half;
        shifted(e, col, k_at, layer->k_shift, state + layer->at_k_shift, group, k);
        shifted(e, col, v_at, layer->v_shift, state + layer->at_v_shift, group, v);
        if (p->qk_norm) nb_rms(k, k, width, 1);
        rotate(k, angle, half);
        float gain = layer->k_gain ? layer->k_gain[group] : 1;
        int entry = (int)(col->position % layer->span);
        ring.key_steps[entry] =
            gain * narrow(k, width,
                          ring.keys + (int64_t)(entry / BLOCK) * width * BLOCK + entry % BLOCK,
                          BLOCK);
        ring.value_steps[entry] = narrow(v, width, ring.values + (int64_t)entry * padded, 1);
        for (int h = 0; h < heads; h++) {
            int head = group * heads + h;
            float *own_q = q + h * padded, scale = 1 / sqrtf((float)width);
            memcpy(own_q, own + head * width, width * sizeof(float));
            if (p->qk_norm) nb_rms(own_q, own_q, width, 1);
            rotate(own_q, angle, half);
            if (layer->q_gain) scale *= layer->q_gain[head];
            for (int i = 0; i < width; i++) own_q[i] *= scale;
        }
        attend_all(layer, col, &ring, q, heads, width, padded, scores, room, y);
        for (int h = 0; h < heads; h++) {
            int head = group * heads + h;
            finish(e, layer, head, v, y + h * padded, e->a + (int64_t)c * e->wide + head * width);
        }
    }
    if (!layer->k_shift) return;
    for (int c = 0; c < e->n; c++) {
        const nb_column *col = e->column + c;
        if (!col->last) continue;
        float *state = e->state + col->slot * p->state_floats;
        const float *own = e->qkv + (int64_t)c * e->wide_qkv;
        memcpy(state + layer->at_k_shift + (int64_t)group * width, own + k_at,
               width * sizeof(float));
        memcpy(state + layer->at_v_shift + (int64_t)group * width, own + v_at,
               width * sizeof(float));
    }
}
