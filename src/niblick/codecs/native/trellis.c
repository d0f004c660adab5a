/* The Viterbi search of trellis.py over independent paths, operation for operation: the results are
 * equal bit for bit.
 *
 * Compile without contraction of products and sums and without reordering. Arrays are row-major:
 * target and kinds (length, paths), bits (kinds, 2, prices), subset (2, states), chosen and
 * quantizer (length, paths); scratch holds 5 * length 64-bit words. States 2j and 2j + 1 are
 * reached from j and j + states / 2 alone.
 */
#include <math.h>
#include <stdint.h>

#define STATES 8
#define HALF (STATES / 2)

static double price_of(const double *prices, int64_t symbol, int64_t last) {
    const int64_t beyond = symbol > last ? symbol - last : 0;
    return prices[symbol > last ? last : symbol] + (double)beyond * 0.01;
}

/* For each subset (quantizer, parity) the cheaper of its two nearest magnitudes towards zero. */
static void candidates(double size, const double *bits, int64_t prices, double multiplier,
                       double *cost, int64_t *symbol) {
    for (int subset = 0; subset < 4; subset++) {
        const int64_t quantizer = subset >> 1, parity = subset & 1;
        const double *row = bits + quantizer * prices;
        int64_t near =
            2 * (int64_t)rint(((size + (double)quantizer) / 2 - (double)parity) / 2) + parity;
        near = near > parity ? near : parity;
        const int64_t below = near - 2 > parity ? near - 2 : parity;
        const double one = size - (double)(2 * near - quantizer * (near > 0));
        const double two = size - (double)(2 * below - quantizer * (below > 0));
        const double first = one * one + multiplier * price_of(row, near, prices - 1);
        const double second = two * two + multiplier * price_of(row, below, prices - 1);
        cost[subset] = first <= second ? first : second;
        symbol[subset] = first <= second ? near : below;
    }
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
        int state = 0;
        for (int other = 1; other < STATES; other++)
            if (total[other] < total[state]) state = other;
        for (int64_t i = length - 1; i >= 0; i--) {
            const int pick = (int)(upper[i] >> state) & 1;
            const int64_t taken = subset[pick * STATES + state];
            chosen[i * paths + path] = symbols[4 * i + taken];
            quantizer[i * paths + path] = taken >> 1;
            state = (state >> 1) + HALF * pick;
        }
    }
}
