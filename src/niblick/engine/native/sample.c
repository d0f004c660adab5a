/* Choosing tokens, by the rule of engine/sampling.py, and going on with many sequences at once. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double uniform(uint64_t seed, uint64_t draw) {
    uint64_t z = seed + (draw + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static int likelier(const void *left, const void *right) {
    const nb_draw *a = left, *b = right;
    if (a->weight != b->weight) return a->weight > b->weight ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

static int by_id(const void *left, const void *right) {
    return ((const nb_draw *)left)->id - ((const nb_draw *)right)->id;
}

/* Keep the top_k likeliest of n draws, then the fewest that hold top_p of their weight; sorted by
 * id again. Without top_k, draws so light that all of their kind together are less than what top_p
 * leaves out are not sorted: most of a vocabulary. */
static int filter(nb_draw *draws, int n, int top_k, double top_p) {
    double held = 0, sum = 0;
    int some = 0;
    if (top_k > 0 && top_k < n) {
        qsort(draws, n, sizeof *draws, likelier);
        n = some = top_k;
        for (int i = 0; i < n; i++) sum += draws[i].weight;
    } else {
        for (int i = 0; i < n; i++) sum += draws[i].weight;
        double light = 0.999 * (1 - top_p) * sum / n;
        for (int i = 0; i < n; i++)
            if (draws[i].weight >= light) draws[some++] = draws[i];
        qsort(draws, some, sizeof *draws, likelier);
    }
    for (int i = 0; i < some; i++) {
        held += draws[i].weight;
        if (held >= top_p * sum) some = i + 1;
    }
    qsort(draws, some, sizeof *draws, by_id);
    return some;
}

static int choose(const float *logits, int vocab, double temperature, int top_k, double top_p,
                  uint64_t seed, uint64_t draw, nb_draw *draws) {
    int best = 0, n = vocab;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    if (temperature == 0) return best;
    for (int i = 0; i < vocab; i++)
        draws[i] = (nb_draw){exp(((double)logits[i] - logits[best]) / temperature), i};
    if (top_k > 0 || top_p < 1) n = filter(draws, n, top_k, top_p);
    double sum = 0, reached = 0;
    for (int i = 0; i < n; i++) sum += draws[i].weight;
    double target = uniform(seed, draw) * sum;
    for (int i = 0; i < n; i++) {
        reached += draws[i].weight;
        if (reached > target) return draws[i].id;
    }
    return best;
}

int nb_choose(nb_engine *e, int slot, int vocab, double temperature, int top_k, double top_p,
              uint64_t seed, uint64_t draw) {
    return choose(nb_logits(e, slot), vocab, temperature, top_k, top_p, seed, draw, e->draws);
}

typedef struct {
    nb_engine *e;
    nb_sequence *sequences;
    int32_t n, threads, *tokens;
} nb_choices;

static void choose_some(void *what, int thread) {
    nb_choices *c = what;
    nb_engine *e = c->e;
    nb_draw *draws = e->draws + (int64_t)thread * e->plan.vocab;
    for (int i = thread; i < c->n; i += c->threads) {
        nb_sequence *s = c->sequences + i;
        c->tokens[i] = NO_TOKEN;
        if (s->left < 1) continue;
        c->tokens[i] = choose(nb_logits(e, s->slot), s->vocab, s->temperature, s->top_k, s->top_p,
                              s->seed, s->draw, draws);
        s->draw++, s->left--;
        if (c->tokens[i] == s->end) s->left = 0;
    }
}

/* `steps` times: choose the next token of each of n <= slots sequences, whose slots have logits,
 * into tokens (steps, n), NO_TOKEN for those that have none left; then give the slots these tokens,
 * all at once. A sequence's last token is not given: nothing follows it. */
void nb_continue(nb_engine *e, int n, nb_sequence *sequences, int steps, int32_t *tokens) {
    int32_t *slots = e->given, *given = slots + e->plan.slots;
    for (int step = 0; step < steps; step++, tokens += n) {
        int greedy = 1, live = 0;
        for (int i = 0; i < n; i++) greedy &= sequences[i].temperature == 0;
        int threads = greedy || n < 4 ? 1 : nb_begin(e->plan.threads);
        nb_choices choices = {e, sequences, n, threads, tokens};
        nb_team(threads, choose_some, &choices);
        for (int i = 0; i < n; i++)
            if (sequences[i].left > 0) slots[live] = sequences[i].slot, given[live++] = tokens[i];
        if (live) nb_run(e, live, slots, given, LAST);
    }
}
