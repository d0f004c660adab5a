/* What Python calls: create, reset, run columns, read logits. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TRIALS = 8, PROBE = 100 };

static int pad(int n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

static int allocate(nb_engine *e) {
    const nb_plan *p = &e->plan;
    int64_t n = p->columns, ratio = p->heads / p->groups, span = 0;
    for (int i = 0; i < p->layers; i++)
        span = nb_ring(p->layer + i) > span ? nb_ring(p->layer + i) : span;
    int inner = p->bigram_proj.cols > p->dim ? p->bigram_proj.cols : p->dim;
    if (p->value_proj.cols > inner) inner = p->value_proj.cols;
    e->wide = pad(inner);
    e->wide_hidden = pad(p->hidden > p->vocab ? p->hidden : p->vocab);
    if (e->wide_hidden < e->wide) e->wide_hidden = e->wide;
    e->wide_qkv = pad(p->dim + 2 * p->groups * p->head);
    e->score_floats = (int)(ratio * span + (2 * ratio + 2) * pad(p->head) + WIDE);
    float **columns[] = {&e->x, &e->x0, &e->xe, &e->u, &e->a, &e->b, &e->o};
    int ok = 1;
    for (int i = 0; i < 7; i++) ok = (*columns[i] = nb_floats(n * e->wide)) && ok;
    ok = (e->hidden = nb_floats(n * e->wide_hidden)) && ok;
    ok = (e->qkv = nb_floats(n * e->wide_qkv)) && ok;
    ok = (e->ve = nb_floats(n * e->wide_qkv)) && ok;
    ok = (e->side = nb_floats(n * 2 * pad(p->side_width + 1))) && ok;
    ok = (e->skip = nb_floats(n * p->pushes * e->wide + 1)) && ok;
    ok = (e->angle = nb_floats(n * 2 * p->half + 1)) && ok;
    ok = (e->log_sum = nb_floats(n)) && ok;
    ok = (e->scores = nb_floats((int64_t)p->threads * e->score_floats)) && ok;
    e->scratch_bytes = nb_scratch((int)n, e->wide_hidden) / 64 * 64 + 64;
    ok = (e->scratch = (uint8_t *)nb_floats(p->threads * e->scratch_bytes / 4 + 1)) && ok;
    ok = (e->state = nb_floats(p->slots * p->state_floats + WIDE)) && ok;
    ok = (e->logits = nb_floats((int64_t)p->slots * p->vocab)) && ok;
    ok = (e->slot = calloc(p->slots, sizeof(nb_slot))) && ok;
    ok = (e->column = calloc(n, sizeof(nb_column))) && ok;
    ok = (e->draws = calloc((int64_t)p->threads * p->vocab, sizeof(nb_draw))) && ok;
    ok = (e->given = calloc(2 * (int64_t)p->slots, sizeof(int32_t))) && ok;
    return ok;
}

nb_engine *nb_create(const nb_plan *plan) {
    nb_engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->plan = *plan;
    e->members = 1;
    if (!allocate(e)) {
        nb_destroy(e);
        return NULL;
    }
    for (int i = 0; i < plan->slots; i++) nb_reset(e, i, 0);
    return e;
}

/* `next` becomes a member of the ensemble whose first is `e`, and is destroyed with it. Both have
 * the same slots, columns and vocabulary. */
void nb_join(nb_engine *e, nb_engine *next) {
    nb_engine *last = e;
    while (last->next) last = last->next;
    last->next = next;
    e->members++;
}

void nb_destroy(nb_engine *e) {
    if (!e) return;
    nb_destroy(e->next);
    float *owned[] = {e->x,     e->x0,     e->xe,    e->u,      e->a,       e->b,
                      e->o,     e->hidden, e->qkv,   e->ve,     e->side,    e->skip,
                      e->angle, e->scores, e->state, e->logits, e->log_sum, (float *)e->scratch};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) nb_free(owned[i]);
    free(e->slot), free(e->column), free(e->draws), free(e->given), free(e);
}

/* The next token stands at `position`. Old contents of rings and vectors are never read again:
 * nothing before is seen. */
void nb_reset(nb_engine *e, int slot, int64_t position) {
    for (; e; e = e->next) e->slot[slot] = (nb_slot){position, 0, position, NO_TOKEN};
}

static void place(nb_engine *e, int c, int slot, int token) {
    const nb_plan *p = &e->plan;
    nb_slot *s = e->slot + slot;
    int begins = token == p->bos;
    if (begins && p->document_mask) s->since = 0;
    if (begins && p->within) s->first = s->position;
    int chained = c > 0 && e->column[c - 1].slot == slot;
    e->column[c] = (nb_column){
        slot,     token,   s->since ? s->token : NO_TOKEN, chained ? c - 1 : -1, 1, s->position,
        s->since, s->first};
    if (chained) e->column[c - 1].last = 0, e->chained = 1;
    s->position++, s->since++;
    s->token = token;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* Whole members, each on one thread. */
static void run_some(void *first, int thread) {
    nb_engine *e = first;
    int threads = e->team;
    for (int i = 0; e; e = e->next, i++)
        if (i % threads == thread) nb_forward(e, 0);
}

/* nb_forward on as many threads as there are, `threads` at most. Members of an ensemble run side by
 * side unless there are more threads than members. */
static void run(nb_engine *e, int threads) {
    int whole = e->members >= threads;
    if (whole) {
        e->team = nb_begin(threads);
        for (nb_engine *m = e; m; m = m->next) m->active = 1;
        nb_team(e->team, run_some, e);
    } else
        for (nb_engine *m = e; m; m = m->next) {
            m->active = nb_begin(threads);
            nb_team(m->active, nb_forward, m);
        }
    if (!e->next || !e->wanted) return;
    e->active = nb_begin(e->n > 1 ? threads : 1);
    nb_team(e->active, nb_mix_last, e);
}

/* On busy processors waiting for each other costs more than sharing the work saves: take what has
 * been faster lately, and look again now and then. Results are the same to the bit. */
static void run_single(nb_engine *e) {
    int all = e->cost[1] <= e->cost[0];
    uint32_t step = e->steps++;
    if (step < TRIALS) all = step & 1;
    else if (step % PROBE == 0) all = !all;
    double began = seconds();
    run(e, all ? e->plan.threads : 1);
    double cost = seconds() - began;
    e->cost[all] = step < 2 ? cost : 0.8 * e->cost[all] + 0.2 * cost;
}

/* n <= columns tokens of known slots and ids (checked by the caller), each slot's consecutive; 0
 * when done */
int nb_run(nb_engine *e, int n, const int32_t *slots, const int32_t *tokens, int wanted) {
    if (n < 1 || n > e->plan.columns) return 1;
    for (nb_engine *m = e; m; m = m->next) {
        m->n = n;
        m->chained = m->mixed = 0;
        m->wanted = wanted;
        for (int c = 0; c < n; c++) place(m, c, slots[c], tokens[c]);
    }
    if (n > 1 || e->plan.threads == 1) run(e, e->plan.threads);
    else run_single(e);
    return 0;
}

float *nb_logits(nb_engine *e, int slot) { return e->logits + (int64_t)slot * e->plan.vocab; }

/* Logits of all columns of a call that wanted them: rows nb_stride apart, until the next call. */
float *nb_rows(nb_engine *e) {
    if (e->next && e->wanted == ALL && !e->mixed) nb_mix_rows(e);
    return e->hidden;
}

int nb_stride(nb_engine *e) { return e->wide_hidden; }

/* Nats of `count` targets after each of the n columns of a call that wanted all logits. */
void nb_nll(nb_engine *e, int n, int count, const int32_t *targets, float *out) {
    for (int c = 0; c < n; c++)
        for (int k = 0; k < count; k++) {
            int64_t at = (int64_t)c * count + k;
            if (e->next) out[at] = (float)nb_nats(e, c, targets[at]);
            else out[at] = e->log_sum[c] - e->hidden[(int64_t)c * e->wide_hidden + targets[at]];
        }
}
