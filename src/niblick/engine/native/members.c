/* Ensembles: the logits of several engines' mean probability, one token's logits being
 * ln(1/K sum of e^(logit - ln of the sum of e^logit)). */
#include "engine.h"

#include <math.h>
#include <string.h>

/* ln of x >= 1 to about one unit in the last place */
static vec logarithm(vec x) {
    veci bits = (veci)x, power = (bits - 0x3f3504f3) >> 23; /* mantissas from sqrt(1/2) on */
    vec m = (vec)(bits - (power << 23)) - 1.0f, square = m * m;
    vec p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    vec exponent = __builtin_convertvector(power, vec);
    vec low = p * m * square + exponent * -2.12194440e-4f - 0.5f * square;
    return m + low + exponent * 0.693359375f;
}

/* the next of `count` floats, and `rest` in what they do not fill */
static inline vec next(const float *x, int count, float rest) {
    if (count >= WIDE) return *(const vec *)x;
    vec found = (vec){0} + rest;
    memcpy(&found, x, count * sizeof(float));
    return found;
}

float nb_log_sum(const float *x, int n) {
    float most = x[0];
    for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    double sum = 0;
    for (int i = 0; i < n; i += WIDE) {
        vec part = next(x + i, n - i, -INFINITY);
        vec power = nb_exp(part - most);
        sum += nb_total((vec)((veci)power & (part > -3.0e38f)));
    }
    return most + (float)log(sum);
}

/* Rows of K members' logits, whose likelihoods divide by e^sums, as their mean's into the first. */
static void mix(float *const *rows, const float *sums, int members, int n) {
    float share = -(float)log(members);
    for (int i = 0; i < n; i += WIDE) {
        vec part[MOST_MEMBERS], most = (vec){0} - INFINITY, sum = (vec){0};
        for (int k = 0; k < members; k++) {
            part[k] = next(rows[k] + i, n - i, 0) - sums[k];
            most = nb_pick(part[k] > most, part[k], most);
        }
        for (int k = 0; k < members; k++) sum += nb_exp(part[k] - most);
        vec mean = most + logarithm(sum) + share;
        if (n - i >= WIDE) *(vec *)(rows[0] + i) = mean;
        else memcpy(rows[0] + i, &mean, (n - i) * sizeof(float));
    }
}

void nb_mix_last(void *engine, int thread) {
    nb_engine *e = engine;
    float *rows[MOST_MEMBERS], sums[MOST_MEMBERS];
    for (int c = 0, at = 0; c < e->n; c++) {
        if (!e->column[c].last || at++ % e->active != thread) continue;
        int k = 0;
        for (nb_engine *m = e; m; m = m->next, k++) {
            rows[k] = m->logits + (int64_t)e->column[c].slot * e->plan.vocab;
            sums[k] = nb_log_sum(rows[k], e->plan.vocab);
        }
        mix(rows, sums, k, e->plan.vocab);
    }
}

/* The first's rows become the mean's, whose likelihoods divide by one. */
void nb_mix_rows(nb_engine *e) {
    float *rows[MOST_MEMBERS], sums[MOST_MEMBERS];
    for (int c = 0; c < e->n; c++) {
        int k = 0;
        for (nb_engine *m = e; m; m = m->next, k++) {
            rows[k] = m->hidden + (int64_t)c * m->wide_hidden;
            sums[k] = m->log_sum[c];
        }
        mix(rows, sums, k, e->plan.vocab);
        e->log_sum[c] = 0;
    }
    e->mixed = 1;
}

double nb_nats(const nb_engine *e, int column, int target) {
    double part[MOST_MEMBERS], most = -INFINITY, sum = 0;
    int members = 0;
    for (const nb_engine *m = e; m; m = e->mixed ? 0 : m->next, members++) {
        part[members] = (double)m->hidden[(int64_t)column * m->wide_hidden + target];
        part[members] -= m->log_sum[column];
        if (part[members] > most) most = part[members];
    }
    if (members == 1) return -part[0];
    for (int k = 0; k < members; k++) sum += exp(part[k] - most);
    return log(members) - most - log(sum);
}
