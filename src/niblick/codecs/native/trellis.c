/* The Viterbi searches of trellis.py, operation for operation: the results are equal bit for bit.
 *
 * Compile without contraction of products and sums and without reordering. Arrays are row-major,
 * bits (kinds, 2, prices) and subset (2, states). States 2j and 2j + 1 are reached from j and
 * j + states / 2 alone, and the quantizer of a state is its lowest bit.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define STATES 8
#define HALF (STATES / 2)

static double price_of(const double *prices, int64_t symbol, int64_t last) {
    const int64_t beyond = symbol > last ? symbol - last : 0;
    return prices[symbol > last ? last : symbol] + (double)beyond * 0.01;
}

/* Of a subset's two nearest magnitudes towards zero the cheaper one, and its cost. */
static int64_t nearest(double size, int64_t quantizer, int64_t parity, const double *row,
                       int64_t prices, double multiplier, double *cost) {
    const int64_t whole = (int64_t)((size + (double)quantizer) / 2);
    const int64_t near = whole + ((whole ^ parity) & 1);
    const int64_t below = near - 2 > parity ? near - 2 : parity;
    const double one = size - (double)(2 * near - quantizer * (near > 0));
    const double two = size - (double)(2 * below - quantizer * (below > 0));
    const double first = one * one + multiplier * price_of(row, near, prices - 1);
    const double second = two * two + multiplier * price_of(row, below, prices - 1);
    *cost = first <= second ? first : second;
    return first <= second ? near : below;
}

/* The same for each subset (quantizer, parity). */
static void candidates(double size, const double *bits, int64_t prices, double multiplier,
                       double *cost, int64_t *symbol) {
    for (int subset = 0; subset < 4; subset++)
        symbol[subset] = nearest(size, subset >> 1, subset & 1, bits + (subset >> 1) * prices,
                                 prices, multiplier, cost + subset);
}

static int forward(const double *cost, const int64_t *subset, double *total) {
    double reached[STATES];
    int upper = 0;
    for (int state = 0; state < STATES; state++) {
        const double one = total[state / 2] + cost[subset[state]];
        const double two = total[state / 2 + HALF] + cost[subset[STATES + state]];
        upper |= (two < one) << state;
        reached[state] = two < one ? two : one;
    }
    for (int state = 0; state < STATES; state++) total[state] = reached[state];
    return upper;
}

static int cheapest(const double *total) {
    int state = 0;
    for (int other = 1; other < STATES; other++)
        if (total[other] < total[state]) state = other;
    return state;
}

/* Independent paths: target, kinds, chosen and quantizer are (length, paths); scratch holds
 * 5 * length words. */
void niblick_trellis(const double *target, const int64_t *kinds, const double *bits,
                     const int64_t *subset, double multiplier, int64_t prices, int64_t length,
                     int64_t paths, int64_t *scratch, int64_t *chosen, int64_t *quantizer) {
    int64_t *symbols = scratch, *upper = scratch + 4 * length;
    for (int64_t path = 0; path < paths; path++) {
        double total[STATES] = {0.0, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30};
        for (int64_t i = 0; i < length; i++) {
            double cost[4];
            const int64_t at = i * paths + path;
            candidates(fabs(target[at]), bits + kinds[at] * 2 * prices, prices, multiplier, cost,
                       symbols + 4 * i);
            upper[i] = forward(cost, subset, total);
        }
        int state = cheapest(total);
        for (int64_t i = length - 1; i >= 0; i--) {
            const int pick = (int)(upper[i] >> state) & 1;
            const int64_t taken = subset[pick * STATES + state];
            chosen[i * paths + path] = symbols[4 * i + taken];
            quantizer[i * paths + path] = taken >> 1;
            state = (state >> 1) + HALF * pick;
        }
    }
}

/* What a row does to those after it: coupling is (rows, rows), ahead (rows,) what is carried to
 * each. */
static void carry(double error, const double *coupling, int64_t from, int64_t to,
                  const double *before, double *ahead) {
    for (int64_t k = from; k < to; k++) ahead[k] = before[k] + error * coupling[k];
}

/* Where each of the eight paths came from, and by which symbol and level. */
typedef struct {
    int64_t from[STATES], symbol[STATES], level[STATES];
    double aim[STATES];
} Step;

/* One row more: its candidates from every state, and the cheapest way to each. */
static void advance(double target, const double *carried, int64_t rows, const double *bits,
                    int64_t prices, const int64_t *subset, double multiplier, double *total,
                    Step *step) {
    double cost[STATES][2], aim[STATES], reached[STATES];
    int64_t symbol[STATES][2];
    for (int state = 0; state < STATES; state++) {
        aim[state] = target + carried[state * rows];
        for (int parity = 0; parity < 2; parity++)
            symbol[state][parity] =
                nearest(fabs(aim[state]), state & 1, parity, bits + (state & 1) * prices, prices,
                        multiplier, &cost[state][parity]);
    }
    for (int state = 0; state < STATES; state++) {
        const int low = state / 2, high = low + HALF;
        const int even = (int)subset[state] & 1, odd = (int)subset[STATES + state] & 1;
        const double one = total[low] + cost[low][even], two = total[high] + cost[high][odd];
        const int from = two < one ? high : low, parity = two < one ? odd : even;
        const int64_t size = symbol[from][parity], level = 2 * size - (from & 1) * (size > 0);
        reached[state] = two < one ? two : one;
        step->from[state] = from;
        step->aim[state] = aim[from];
        step->symbol[state] = aim[from] < 0 ? -size : size;
        step->level[state] = aim[from] < 0 ? -level : level;
    }
    memcpy(total, reached, sizeof reached);
}

/* The cheapest path so far to the row before `end`, back to `begin`. */
static void trace(const Step *steps, const double *total, int64_t begin, int64_t end,
                  int64_t *symbol, int64_t *level, double *aim) {
    for (int64_t r = end - 1, state = cheapest(total); r >= begin; r--) {
        symbol[r] = steps[r].symbol[state];
        level[r] = steps[r].level[state];
        aim[r] = steps[r].aim[state];
        state = steps[r].from[state];
    }
}

/* Coupled rows: target, kinds, symbol, level and aim are (batch, rows), path after path, and
 * coupling is (batch, rows, rows). Path p of `paths` has the rows p, p + paths, ... of a matrix.
 * Within a block every state's path carries its own errors to the rows ahead of it; to those beyond
 * the block all carry the errors of the cheapest, and to those beyond the path go the errors of the
 * one that was taken. `carried` holds 2 * STATES + 1 times `rows` numbers, `steps` as many Steps as
 * there are rows. */
void niblick_coupled(const double *target, const int64_t *kinds, const double *bits,
                     const int64_t *subset, const double *coupling, double multiplier,
                     int64_t prices, int64_t batch, int64_t rows, int64_t paths, int64_t block,
                     double *carried, Step *steps, int64_t *symbol, int64_t *level, double *aim) {
    double *settled = carried + 2 * STATES * rows;
    for (int64_t b = 0; b < batch; b++, target += rows, kinds += rows, symbol += rows,
                 level += rows, aim += rows, coupling += rows * rows) {
        for (int64_t k = 0; k < rows; k++) settled[k] = 0.0;
        for (int64_t p = 0, begin = 0, end; p < paths; p++, begin = end) {
            double total[STATES] = {0.0, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30};
            end = begin + (rows - p + paths - 1) / paths;
            for (int64_t from = begin, to; from < end; from = to) {
                double *now = carried, *next = carried + STATES * rows;
                to = from + block < end ? from + block : end;
                for (int state = 0; state < STATES; state++)
                    memcpy(now + state * rows + from, settled + from,
                           sizeof(double) * (size_t)(to - from));
                for (int64_t r = from; r < to; r++) {
                    advance(target[r], now + r, rows, bits + kinds[r] * 2 * prices, prices, subset,
                            multiplier, total, steps + r);
                    for (int state = 0; state < STATES; state++)
                        carry(target[r] - (double)steps[r].level[state], coupling + r * rows, r + 1,
                              to, now + steps[r].from[state] * rows, next + state * rows);
                    double *swapped = now;
                    now = next, next = swapped;
                }
                trace(steps, total, from, to, symbol, level, aim);
                for (int64_t r = from; r < to; r++)
                    carry(target[r] - (double)level[r], coupling + r * rows, to, end, settled,
                          settled);
            }
            trace(steps, total, begin, end, symbol, level, aim);
            for (int64_t r = begin; r < end; r++)
                carry(target[r] - (double)level[r], coupling + r * rows, end, rows, settled,
                      settled);
        }
    }
}
