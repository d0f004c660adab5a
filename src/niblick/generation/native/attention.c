/* One key/value head of one attention layer over all columns of a call, in order (sections 1-3 of the spec).
 *
 * Rings: keys in blocks of 16 positions, each block E x 16; values span x padded E. Position p lives at p mod span.
 */
#include "engine.h"

#include <math.h>
#include <string.h>

enum { QUEUE = 64 }; /* values are read in runs that stay in the first-level cache while every head meets them */

static void rotate(float *x, const float *angle, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[half + i], c = angle[i], s = angle[half + i];
        x[i] = a * c + b * s;
        x[half + i] = b * c - a * s;
    }
}

/* out = this column's raw k or v of the group, plus mix times the position before's */
static void shifted(const nb_engine *e, const nb_column *col, int64_t offset, const float *mix, const float *kept,
                    int group, float *out) {
    int width = e->plan.head;
    const float *own = e->qkv + (col - e->column) * e->wide_qkv + offset;
    memcpy(out, own, width * sizeof(float));
    if (!mix || !col->since) return;
    const float *before = col->previous >= 0 ? e->qkv + (int64_t)col->previous * e->wide_qkv + offset
                                             : kept + (int64_t)group * width;
    for (int i = 0; i < width; i++) out[i] += mix[group] * before[i];
}

static void score(const float *keys, const float *q, int blocks, int width, float *out) {
    int j = 0;
    for (; j + 4 <= blocks; j += 4) {
        vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        const float *k = keys + (int64_t)j * width * WIDE;
        for (int i = 0; i < width; i++) {
            s0 += q[i] * *(const vec *)(k + i * WIDE);
            s1 += q[i] * *(const vec *)(k + (width + i) * WIDE);
            s2 += q[i] * *(const vec *)(k + (2 * width + i) * WIDE);
            s3 += q[i] * *(const vec *)(k + (3 * width + i) * WIDE);
        }
        *(vec *)(out + j * WIDE) = s0;
        *(vec *)(out + (j + 1) * WIDE) = s1;
        *(vec *)(out + (j + 2) * WIDE) = s2;
        *(vec *)(out + (j + 3) * WIDE) = s3;
    }
    for (; j < blocks; j++) {
        vec s = {0};
        const float *k = keys + (int64_t)j * width * WIDE;
        for (int i = 0; i < width; i++) s += q[i] * *(const vec *)(k + i * WIDE);
        *(vec *)(out + j * WIDE) = s;
    }
}

/* scores (count of them, padded to 16) become weights that sum to one; hidden ones are -infinity */
static void softmax(float *s, int count) {
    int padded = (count + WIDE - 1) / WIDE * WIDE;
    for (int i = count; i < padded; i++) s[i] = -INFINITY;
    float top = -INFINITY;
    for (int i = 0; i < padded; i++) top = s[i] > top ? s[i] : top;
    vec sums = {0};
    float sum = 0;
    for (int i = 0; i < padded; i += WIDE) {
        vec x = *(vec *)(s + i), w = nb_exp(x - top);
        veci seen = x > -3.0e38f;
        w = (vec)((veci)w & seen);
        *(vec *)(s + i) = w;
        sums += w;
    }
    for (int i = 0; i < WIDE; i++) sum += sums[i];
    float share = 1 / sum;
    for (int i = 0; i < padded; i++) s[i] *= share;
}

static inline __attribute__((always_inline)) void mix_run(const float *values, const float *w, int count, int padded, float *y,
                                                          const int parts) {
    vec sum[8];
    for (int p = 0; p < parts; p++) sum[p] = *(vec *)(y + p * WIDE);
    for (int j = 0; j < count; j++)
        for (int p = 0; p < parts; p++) sum[p] += w[j] * *(const vec *)(values + (int64_t)j * padded + p * WIDE);
    for (int p = 0; p < parts; p++) *(vec *)(y + p * WIDE) = sum[p];
}

static void mix_values(const float *values, const float *w, int count, int padded, float *y) {
    switch (padded / WIDE) {
    case 1: mix_run(values, w, count, padded, y, 1); return;
    case 2: mix_run(values, w, count, padded, y, 2); return;
    case 3: mix_run(values, w, count, padded, y, 3); return;
    case 4: mix_run(values, w, count, padded, y, 4); return;
    case 6: mix_run(values, w, count, padded, y, 6); return;
    case 8: mix_run(values, w, count, padded, y, 8); return;
    default:
        for (int p = 0; p < padded; p += WIDE)
            for (int j = 0; j < count; j++) *(vec *)(y + p) += w[j] * *(const vec *)(values + (int64_t)j * padded + p);
    }
}

/* Ring entries outside the newest `visible` positions get -infinity. */
static void hide(float *s, int64_t position, int span, int filled, int64_t visible) {
    for (int i = 0; i < filled; i++) {
        int64_t back = (position - i) % span; /* how long ago entry i was written */
        if (back < 0) back += span;
        if (back >= visible) s[i] = -INFINITY;
    }
}

/* y (padded E per head of the group) = softmax(q k / sqrt(E)) v */
static void attend(const nb_layer *layer, const nb_column *col, const float *keys, const float *values,
                   const float *q, int heads, int width, int padded, float *scores, float *y) {
    int64_t seen = col->position + 1;
    int filled = seen < layer->span ? (int)seen : layer->span, blocks = (filled + WIDE - 1) / WIDE;
    int room = (layer->span + WIDE - 1) / WIDE * WIDE;
    int64_t visible = seen - col->first;
    for (int h = 0; h < heads; h++) {
        score(keys, q + h * padded, blocks, width, scores + (int64_t)h * room);
        if (visible < filled) hide(scores + (int64_t)h * room, col->position, layer->span, filled, visible);
        softmax(scores + (int64_t)h * room, filled);
    }
    memset(y, 0, (size_t)heads * padded * sizeof(float));
    for (int at = 0; at < filled; at += QUEUE) {
        int count = filled - at < QUEUE ? filled - at : QUEUE;
        for (int h = 0; h < heads; h++)
            mix_values(values + (int64_t)at * padded, scores + (int64_t)h * room + at, count, padded, y + h * padded);
    }
}

/* local value residual and exclusive self attention, then y goes to its place in the columns' outputs */
static void finish(const nb_engine *e, const nb_layer *layer, int head, const float *v, float *y, float *out) {
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
    int blocks = (layer->span + WIDE - 1) / WIDE, half = p->half;
    float *q = scores + (int64_t)heads * blocks * WIDE, *y = q + heads * padded, *k = y + heads * padded, *v = k + padded;
    int64_t k_at = (int64_t)p->dim + group * width, v_at = k_at + p->groups * width;
    if (layer->value_scale != 0)
        for (int c = 0; c < e->n; c++)
            for (int i = 0; i < width; i++)
                e->qkv[(int64_t)c * e->wide_qkv + v_at + i] += layer->value_scale * e->ve[(int64_t)c * e->wide_qkv + group * width + i];
    for (int c = 0; c < e->n; c++) {
        const nb_column *col = e->column + c;
        float *state = e->state + col->slot * p->state_floats;
        float *keys = state + layer->at_keys + (int64_t)group * blocks * WIDE * width;
        float *values = state + layer->at_values + (int64_t)group * layer->span * padded;
        const float *own = e->qkv + (int64_t)c * e->wide_qkv, *angle = e->angle + (int64_t)c * 2 * half;
        shifted(e, col, k_at, layer->k_shift, state + layer->at_k_shift, group, k);
        shifted(e, col, v_at, layer->v_shift, state + layer->at_v_shift, group, v);
        if (p->qk_norm) nb_rms(k, k, width, 1);
        rotate(k, angle, half);
        float gain = layer->k_gain ? layer->k_gain[group] : 1;
        int entry = (int)(col->position % layer->span);
        for (int i = 0; i < width; i++) keys[((int64_t)(entry / WIDE) * width + i) * WIDE + entry % WIDE] = gain * k[i];
        memcpy(values + (int64_t)entry * padded, v, width * sizeof(float));
        for (int h = 0; h < heads; h++) {
            int head = group * heads + h;
            float *own_q = q + h * padded, scale = 1 / sqrtf((float)width);
            memcpy(own_q, own + head * width, width * sizeof(float));
            if (p->qk_norm) nb_rms(own_q, own_q, width, 1);
            rotate(own_q, angle, half);
            if (layer->q_gain) scale *= layer->q_gain[head];
            for (int i = 0; i < width; i++) own_q[i] *= scale;
        }
        attend(layer, col, keys, values, q, heads, width, padded, scores, y);
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
        memcpy(state + layer->at_k_shift + (int64_t)group * width, own + k_at, width * sizeof(float));
        memcpy(state + layer->at_v_shift + (int64_t)group * width, own + v_at, width * sizeof(float));
    }
}
