/* The loop over the plan's virtual layers for all columns of a call; every thread runs it in step
 * with the others.
 *
 * Work on single columns is divided by column, products by row, attention by group; nb_meet stands
 * wherever one thread reads what another has written.
 */
#include "engine.h"

#include <math.h>
#include <string.h>

typedef struct {
    nb_engine *e;
    int thread, threads, from, to; /* this thread's columns */
    void *scratch;
} work;

static void product(const work *w, const nb_matrix *m, const float *in, int in_stride, float *out,
                    int out_stride, int n, int act, float parameter) {
    int blocks = (m->rows + ROWS - 1) / ROWS, first = blocks * w->thread / w->threads * ROWS,
        end = blocks * (w->thread + 1) / w->threads * ROWS;
    if (end > m->rows) end = m->rows;
    if (first < end)
        nb_product(m, in, in_stride, out, out_stride, n, first, end, act, parameter, w->scratch);
}

static const float *before(const nb_engine *e, int c, const float *columns, int64_t at) {
    const nb_column *col = e->column + c;
    if (!col->since) return NULL;
    if (col->previous >= 0) return columns + (int64_t)col->previous * e->wide;
    return e->state + col->slot * e->plan.state_floats + at;
}

static void embed(const work *w) {
    nb_engine *e = w->e;
    const nb_plan *p = &e->plan;
    float sum[4096];
    for (int c = w->from; c < w->to; c++) {
        const nb_column *col = e->column + c;
        float *x = e->xe + (int64_t)c * e->wide, *row = e->u + (int64_t)c * e->wide;
        nb_row(&p->embedding, col->token, 1, x);
        if (p->bigram.codes) {
            int64_t mixed = (int32_t)(36313u * (uint32_t)col->token) ^
                            (int32_t)(27191u * (uint32_t)col->before);
            int64_t index = mixed % (p->buckets - 1);
            if (index < 0) index += p->buckets - 1;
            if (col->before == NO_TOKEN) index = p->buckets - 1;
            memset(row, 0, e->wide * sizeof(float));
            nb_row(&p->bigram, index, 1, row);
            const float *branch = row;
            if (p->bigram_proj.codes) {
                nb_product(&p->bigram_proj, row, 0, sum, 0, 1, 0, p->dim, PLAIN, 0, w->scratch);
                branch = sum;
            }
            for (int i = 0; i < p->dim; i++) x[i] += p->bigram_scale * branch[i];
        }
        nb_rms(x, x, p->dim, 1);
        if (p->value.codes) {
            memset(row, 0, e->wide * sizeof(float));
            nb_row(&p->value, col->token, 1, row);
            nb_product(&p->value_proj, row, 0, e->ve + (int64_t)c * e->wide_qkv, 0, 1, 0,
                       p->value_proj.rows, PLAIN, 0, w->scratch);
        }
        for (int i = 0; i < p->half; i++) {
            double angle = (double)col->position * p->frequencies[i];
            e->angle[(int64_t)c * 2 * p->half + i] = (float)cos(angle);
            e->angle[(int64_t)c * 2 * p->half + p->half + i] = (float)sin(angle);
        }
    }
    if (e->chained) nb_meet(e->active);
    for (int c = w->from; c < w->to; c++) {
        float *x = e->x + (int64_t)c * e->wide;
        memcpy(x, e->xe + (int64_t)c * e->wide, p->dim * sizeof(float));
        if (p->smear) {
            const float *last = before(e, c, e->xe, p->at_smear);
            for (int i = 0; i < p->dim; i++)
                x[i] = (1 - p->smear[i]) * x[i] + (last ? p->smear[i] * last[i] : 0);
        }
        memcpy(e->x0 + (int64_t)c * e->wide, x, p->dim * sizeof(float));
    }
}

/* x += scale * W_p(silu(W_g n + gate) * conv(W_v n)); `side` keeps every column's W_v n for the
 * ones after it */
static void sidecar_column(nb_engine *e, const nb_layer *layer, int c, void *scratch) {
    const nb_plan *p = &e->plan;
    const nb_column *col = e->column + c;
    int width = p->side_width, kernel = p->side_kernel,
        padded = (width + BLOCK - 1) / BLOCK * BLOCK;
    float *x = e->x + (int64_t)c * e->wide, *n = e->u + (int64_t)c * e->wide;
    float *values = e->side + (int64_t)c * 2 * padded, *gate = values + padded;
    float *state = e->state + col->slot * p->state_floats + layer->at_sidecar;
    nb_rms(x, n, p->dim, 1);
    nb_product(&p->side_v, n, 0, values, 0, 1, 0, width, PLAIN, 0, scratch);
    nb_product(&p->side_g, n, 0, gate, 0, 1, 0, width, PLAIN, 0, scratch);
    float mixed[4096];
    for (int i = width; i < padded; i++) gate[i] = 0;
    for (int i = 0; i < width; i++) gate[i] += p->side_gate[layer->site * width + i];
    memcpy(mixed, gate, width * sizeof(float));
    nb_sigmoid(mixed, width);
    for (int i = 0; i < width; i++) {
        float local = values[i] * p->side_kernels[i * kernel + kernel - 1];
        for (int back = 1; back < kernel && back <= col->since; back++)
            local += state[(kernel - 1 - back) * width + i] *
                     p->side_kernels[i * kernel + kernel - 1 - back];
        gate[i] *= mixed[i] * local;
    }
    memmove(state, state + width, (size_t)(kernel - 2) * width * sizeof(float));
    memcpy(state + (kernel - 2) * width, values, width * sizeof(float));
    nb_product(&p->side_p, gate, 0, mixed, 0, 1, 0, p->dim, PLAIN, 0, scratch);
    for (int i = 0; i < p->dim; i++) x[i] += p->side_scale[layer->site * p->dim + i] * mixed[i];
}

static void sidecar(const work *w, const nb_layer *layer) {
    nb_engine *e = w->e;
    if (!e->chained) {
        for (int c = w->from; c < w->to; c++) sidecar_column(e, layer, c, w->scratch);
        return;
    }
    nb_meet(
        e->active); /* columns of one slot depend on each other: one thread takes them in order */
    if (w->thread == 0)
        for (int c = 0; c < e->n; c++) sidecar_column(e, layer, c, w->scratch);
    nb_meet(e->active);
}

/* skip, residual mix, norm: x becomes the layer's input, u what its mixer sees */
static void begin(const work *w, const nb_layer *layer, int *depth) {
    nb_engine *e = w->e;
    int dim = e->plan.dim;
    if (layer->pop >= 0) --*depth;
    for (int c = w->from; c < w->to; c++) {
        float *x = e->x + (int64_t)c * e->wide;
        const float *x0 = e->x0 + (int64_t)c * e->wide;
        if (layer->pop >= 0) {
            const float *kept = e->skip + ((int64_t)*depth * e->plan.columns + c) * e->wide;
            for (int i = 0; i < dim; i++) x[i] += layer->carry[i] * kept[i];
        }
        if (layer->mix)
            for (int i = 0; i < dim; i++) x[i] = layer->mix[i] * x[i] + layer->mix[dim + i] * x0[i];
        nb_rms(x, e->u + (int64_t)c * e->wide, dim, layer->scale);
    }
}

static void token_shift(const work *w, const nb_layer *layer) {
    nb_engine *e = w->e;
    const nb_plan *p = &e->plan;
    if (e->chained) nb_meet(e->active);
    for (int c = w->from; c < w->to; c++) {
        const float *u = e->u + (int64_t)c * e->wide, *last = before(e, c, e->u, layer->at_shift);
        float *r = e->a + (int64_t)c * e->wide, *k = e->b + (int64_t)c * e->wide;
        for (int i = 0; i < p->dim; i++) {
            float old = last ? last[i] : 0, step = u[i] - old;
            r[i] = old + layer->mix_r[i] * step;
            k[i] = old + layer->mix_k[i] * step;
        }
    }
    nb_meet(e->active);
    product(w, &layer->r, e->a, e->wide, e->qkv, e->wide_qkv, e->n, SIGMOID, 0);
    product(w, &layer->k, e->b, e->wide, e->hidden, e->wide_hidden, e->n, SQUARE, 0);
    nb_meet(e->active);
    product(w, &layer->v, e->hidden, e->wide_hidden, e->o, e->wide, e->n, PLAIN, 0);
    nb_meet(e->active);
    for (int c = w->from; c < w->to; c++) {
        float *o = e->o + (int64_t)c * e->wide;
        const float *gate = e->qkv + (int64_t)c * e->wide_qkv;
        for (int i = 0; i < p->dim; i++) o[i] *= gate[i];
        const nb_column *col = e->column + c;
        if (col->last)
            memcpy(e->state + col->slot * p->state_floats + layer->at_shift,
                   e->u + (int64_t)c * e->wide, p->dim * sizeof(float));
    }
}

static void attention(const work *w, const nb_layer *layer) {
    nb_engine *e = w->e;
    int dim = e->plan.dim, groups = e->plan.groups;
    nb_meet(e->active);
    product(w, &layer->q, e->u, e->wide, e->qkv, e->wide_qkv, e->n, PLAIN, 0);
    product(w, &layer->k, e->u, e->wide, e->qkv + dim, e->wide_qkv, e->n, PLAIN, 0);
    product(w, &layer->v, e->u, e->wide, e->qkv + dim + layer->k.rows, e->wide_qkv, e->n, PLAIN, 0);
    nb_meet(e->active);
    for (int g = w->thread; g < groups; g += w->threads)
        nb_attention(e, layer, g, e->scores + (int64_t)w->thread * e->score_floats);
    nb_meet(e->active);
    product(w, &layer->out, e->a, e->wide, e->o, e->wide, e->n, PLAIN, 0);
    nb_meet(e->active);
}

static void channel_mixer(const work *w, const nb_layer *layer) {
    nb_engine *e = w->e;
    int dim = e->plan.dim;
    for (int c = w->from; c < w->to; c++) {
        float *x = e->x + (int64_t)c * e->wide;
        const float *o = e->o + (int64_t)c * e->wide;
        for (int i = 0; i < dim; i++) x[i] += layer->attn_scale[i] * o[i];
        nb_rms(x, e->b + (int64_t)c * e->wide, dim, layer->scale);
    }
    nb_meet(e->active);
    product(w, &layer->fc, e->b, e->wide, e->hidden, e->wide_hidden, e->n, SQUARE, e->plan.slope);
    nb_meet(e->active);
    product(w, &layer->proj, e->hidden, e->wide_hidden, e->o, e->wide, e->n, PLAIN, 0);
    nb_meet(e->active);
    for (int c = w->from; c < w->to; c++) {
        float *x = e->x + (int64_t)c * e->wide;
        const float *o = e->o + (int64_t)c * e->wide;
        for (int i = 0; i < dim; i++) x[i] += layer->mlp_scale[i] * o[i];
    }
}

static void push(const work *w, int *depth) {
    nb_engine *e = w->e;
    for (int c = w->from; c < w->to; c++)
        memcpy(e->skip + ((int64_t)*depth * e->plan.columns + c) * e->wide,
               e->x + (int64_t)c * e->wide, e->plan.dim * sizeof(float));
    ++*depth;
}

/* logits of every slot's last column, or of all columns and what their likelihoods divide by */
static void head(const work *w) {
    nb_engine *e = w->e;
    const nb_plan *p = &e->plan;
    for (int c = w->from; c < w->to; c++)
        nb_rms(e->x + (int64_t)c * e->wide, e->u + (int64_t)c * e->wide, p->dim, 1);
    nb_meet(e->active);
    int act = p->softcap > 0 ? SOFTCAP : PLAIN;
    if (e->chained && e->wanted != ALL) { /* most columns are nobody's last */
        for (int c = 0; c < e->n; c++)
            if (e->column[c].last)
                product(w, &p->head_matrix, e->u + (int64_t)c * e->wide, 0,
                        e->logits + (int64_t)e->column[c].slot * p->vocab, 0, 1, act, p->softcap);
        return;
    }
    product(w, &p->head_matrix, e->u, e->wide, e->hidden, e->wide_hidden, e->n, act, p->softcap);
    nb_meet(e->active);
    for (int c = w->from; c < w->to; c++) {
        const float *row = e->hidden + (int64_t)c * e->wide_hidden;
        if (e->column[c].last)
            memcpy(e->logits + (int64_t)e->column[c].slot * p->vocab, row,
                   p->vocab * sizeof(float));
        if (e->wanted == ALL) e->log_sum[c] = nb_log_sum(row, p->vocab);
    }
}

void nb_forward(void *engine, int thread) {
    nb_engine *e = engine;
    const nb_plan *p = &e->plan;
    work w = {e,
              thread,
              e->active,
              e->n * thread / e->active,
              e->n * (thread + 1) / e->active,
              e->scratch + thread * e->scratch_bytes};
    int depth = 0;
    embed(&w);
    for (int i = 0; i < p->layers; i++) {
        const nb_layer *layer = p->layer + i;
        begin(&w, layer, &depth);
        if (layer->mixer == TOKEN_SHIFT) token_shift(&w, layer);
        else attention(&w, layer);
        channel_mixer(&w, layer);
        if (layer->site >= 0) sidecar(&w, layer);
        if (layer->push) push(&w, &depth);
    }
    if (p->smear)
        for (int c = w.from; c < w.to; c++)
            if (e->column[c].last)
                memcpy(e->state + e->column[c].slot * p->state_floats + p->at_smear,
                       e->xe + (int64_t)c * e->wide, p->dim * sizeof(float));
    if (e->wanted) head(&w);
}
