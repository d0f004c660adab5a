/* Kernels over rows of activations, for one element type: REAL is how an element is stored, LOAD
   and STORE convert to and from float, NAME(f) is f with the type's suffix. Included once per type
   by kernels.c.

   All arithmetic is float. Sums over rows go to CHUNKS partial rows each, so that results do not
   depend on the number of threads. No tensor written overlaps one that is read. `rows` counts
   positions (batch times length), `d` is the width of one. */

#define EACH_ROW for (int64_t r = rows * unit / CHUNKS; r < rows * (unit + 1) / CHUNKS; r++)
#define EACH INDEPENDENT for (int64_t j = 0; j < d; j++)

/* mixed = m0 x + m1 x0 (x itself without m0), n = scale * rms(mixed), inverse[r] = 1 / root mean
 * square. */
EACH_CHUNK(NAME(mix_norm), (const REAL *, x), (const REAL *, x0), (const float *, m0),
           (const float *, m1), (float, scale), (REAL *, mixed), (REAL *, n), (float *, inverse),
           (int64_t, rows), (int64_t, d)) {
    EACH_ROW {
        const REAL *in = x + r * d, *start = x0 ? x0 + r * d : in;
        float kept[d], sum = 0;
        if (m0) {
            EACH {
                REAL rounded = STORE(m0[j] * LOAD(in[j]) + m1[j] * LOAD(start[j]));
                mixed[r * d + j] = rounded;
                kept[j] = LOAD(rounded);
            }
        } else EACH kept[j] = LOAD(in[j]);
        EACH sum += kept[j] * kept[j];
        float inv = 1 / sqrtf(sum / d + FLT_EPSILON);
        inverse[r] = inv;
        EACH n[r * d + j] = STORE(kept[j] * inv * scale);
    }
}

/* Gradient of rms at one row: adds scale * inv * (gn - x inv^2 mean(gn x)) to g. */
static inline void NAME(norm_slope)(const REAL *gn, const REAL *x, float inv, float scale, float *g,
                                    int64_t d) {
    float dot = 0;
    EACH dot += LOAD(gn[j]) * LOAD(x[j]);
    float pull = dot / d * inv * inv;
    EACH g[j] += scale * inv * (LOAD(gn[j]) - LOAD(x[j]) * pull);
}

/* Backward of mix_norm; gmixed may be absent; gm takes CHUNKS times (2, d) sums. */
EACH_CHUNK(NAME(mix_norm_back), (const REAL *, gmixed), (const REAL *, gn), (const REAL *, mixed),
           (const float *, inverse), (const REAL *, x), (const REAL *, x0), (const float *, m0),
           (const float *, m1), (float, scale), (REAL *, gx), (REAL *, gx0), (float *, gm),
           (int64_t, rows), (int64_t, d)) {
    float *sum0 = gm + unit * 2 * d, *sum1 = sum0 + d;
    if (m0) memset(sum0, 0, 2 * d * sizeof(float));
    EACH_ROW {
        float g[d];
        if (gmixed) EACH g[j] = LOAD(gmixed[r * d + j]);
        else EACH g[j] = 0;
        if (gn) NAME(norm_slope)(gn + r * d, mixed + r * d, inverse[r], scale, g, d);
        if (!m0) {
            EACH gx[r * d + j] = STORE(g[j]);
            continue;
        }
        EACH {
            sum0[j] += g[j] * LOAD(x[r * d + j]);
            sum1[j] += g[j] * LOAD(x0[r * d + j]);
            gx[r * d + j] = STORE(g[j] * m0[j]);
            gx0[r * d + j] = STORE(g[j] * m1[j]);
        }
    }
}

/* y = x + a * branch; with n: n = scale * rms(y). */
EACH_CHUNK(NAME(add_norm), (const REAL *, x), (const REAL *, branch), (const float *, a),
           (float, scale), (REAL *, y), (REAL *, n), (float *, inverse), (int64_t, rows),
           (int64_t, d)) {
    EACH_ROW {
        float kept[d], sum = 0;
        EACH {
            REAL rounded = STORE(LOAD(x[r * d + j]) + a[j] * LOAD(branch[r * d + j]));
            y[r * d + j] = rounded;
            kept[j] = LOAD(rounded);
        }
        if (!n) continue;
        EACH sum += kept[j] * kept[j];
        float inv = 1 / sqrtf(sum / d + FLT_EPSILON);
        inverse[r] = inv;
        EACH n[r * d + j] = STORE(kept[j] * inv * scale);
    }
}

/* Backward of add_norm: gx is the gradient of both y and x; ga takes CHUNKS sums. */
EACH_CHUNK(NAME(add_norm_back), (const REAL *, gy), (const REAL *, gn), (const REAL *, y),
           (const float *, inverse), (const REAL *, branch), (const float *, a), (float, scale),
           (REAL *, gx), (REAL *, gbranch), (float *, ga), (int64_t, rows), (int64_t, d)) {
    float *sum = ga + unit * d;
    memset(sum, 0, d * sizeof(float));
    EACH_ROW {
        float g[d];
        if (gy) EACH g[j] = LOAD(gy[r * d + j]);
        else EACH g[j] = 0;
        if (gn) NAME(norm_slope)(gn + r * d, y + r * d, inverse[r], scale, g, d);
        EACH {
            sum[j] += g[j] * LOAD(branch[r * d + j]);
            gx[r * d + j] = STORE(g[j]);
            gbranch[r * d + j] = STORE(g[j] * a[j]);
        }
    }
}

/* first, second = prev + s (u - prev), prev the row before within the sequence, zero at its start
   and at a boundary. The second may be absent, here and in the backward. */
EACH_CHUNK(NAME(shift), (const REAL *, u), (const uint8_t *, boundary), (const float *, s1),
           (const float *, s2), (REAL *, first), (REAL *, second), (int64_t, rows),
           (int64_t, length), (int64_t, d)) {
    EACH_ROW {
        const REAL *now = u + r * d, *before = now - d;
        if (!follows(boundary, r, length)) {
            EACH first[r * d + j] = STORE(s1[j] * LOAD(now[j]));
            if (second) EACH second[r * d + j] = STORE(s2[j] * LOAD(now[j]));
            continue;
        }
        EACH first[r * d + j] = STORE(LOAD(before[j]) + s1[j] * (LOAD(now[j]) - LOAD(before[j])));
        if (second)
            EACH second[r * d + j] =
                STORE(LOAD(before[j]) + s2[j] * (LOAD(now[j]) - LOAD(before[j])));
    }
}

/* Backward of shift; gs takes CHUNKS times (2, d) sums. */
EACH_CHUNK(NAME(shift_back), (const REAL *, g1), (const REAL *, g2), (const REAL *, u),
           (const uint8_t *, boundary), (const float *, s1), (const float *, s2), (REAL *, gu),
           (float *, gs), (int64_t, rows), (int64_t, length), (int64_t, d)) {
    float *sum1 = gs + unit * 2 * d, *sum2 = sum1 + d;
    memset(sum1, 0, 2 * d * sizeof(float));
    EACH_ROW {
        int64_t at = r * d, after = at + d;
        float g[d];
        int followed = follows(boundary, r + 1, length);
        EACH g[j] = s1[j] * LOAD(g1[at + j]);
        if (g2) EACH g[j] += s2[j] * LOAD(g2[at + j]);
        if (followed) EACH g[j] += (1 - s1[j]) * LOAD(g1[after + j]);
        if (followed && g2) EACH g[j] += (1 - s2[j]) * LOAD(g2[after + j]);
        EACH gu[at + j] = STORE(g[j]);
        int alone = !follows(boundary, r, length);
        const REAL *before = alone ? u + at : u + at - d;
        float keep = alone ? 0 : 1;
        EACH sum1[j] += (LOAD(u[at + j]) - keep * LOAD(before[j])) * LOAD(g1[at + j]);
        if (g2) EACH sum2[j] += (LOAD(u[at + j]) - keep * LOAD(before[j])) * LOAD(g2[at + j]);
    }
}

/* y = leaky_relu(x, slope)^2, and its backward. */
EACH_CHUNK(NAME(square), (const REAL *, x), (float, slope), (REAL *, y), (int64_t, rows),
           (int64_t, d)) {
    EACH_ROW EACH {
        float v = LOAD(x[r * d + j]), h = v > 0 ? v : v * slope;
        y[r * d + j] = STORE(h * h);
    }
}

EACH_CHUNK(NAME(square_back), (const REAL *, g), (const REAL *, x), (float, slope), (REAL *, gx),
           (int64_t, rows), (int64_t, d)) {
    EACH_ROW EACH {
        float v = LOAD(x[r * d + j]), k = v > 0 ? 2 : 2 * slope * slope;
        gx[r * d + j] = STORE(LOAD(g[r * d + j]) * k * v);
    }
}

/* y = sigmoid(a) b, and its backward. */
EACH_CHUNK(NAME(gate), (const REAL *, a), (const REAL *, b), (REAL *, y), (int64_t, rows),
           (int64_t, d)) {
    EACH_ROW EACH y[r * d + j] = STORE(LOAD(b[r * d + j]) * logistic(LOAD(a[r * d + j])));
}

EACH_CHUNK(NAME(gate_back), (const REAL *, g), (const REAL *, a), (const REAL *, b), (REAL *, ga),
           (REAL *, gb), (int64_t, rows), (int64_t, d)) {
    EACH_ROW EACH {
        float s = logistic(LOAD(a[r * d + j])), up = LOAD(g[r * d + j]);
        gb[r * d + j] = STORE(up * s);
        ga[r * d + j] = STORE(up * LOAD(b[r * d + j]) * s * (1 - s));
    }
}

/* nll[r] = log sum exp(cap(z)) - cap(z[target]), cap(z) = c tanh(z / c) or z for c = 0; log_sum is
   kept for backward. |cap(z)| <= c bounds the exponent, so rows are shifted by c where there is a
   cap, else by their maximum. */
EACH_CHUNK(NAME(nll), (const REAL *, z), (const int64_t *, target), (float, c0), (float *, nll),
           (float *, log_sum), (int64_t, rows), (int64_t, d)) {
    EACH_ROW {
        const REAL *row = z + r * d;
        float top = c0, sum = 0;
        if (c0 == 0) {
            top = LOAD(row[0]);
            EACH top = LOAD(row[j]) > top ? LOAD(row[j]) : top;
            EACH sum += exponential(LOAD(row[j]) - top);
        } else EACH sum += exponential(capped(LOAD(row[j]), c0) - top);
        float hit = LOAD(row[target[r]]);
        log_sum[r] = top + logf(sum);
        nll[r] = log_sum[r] - (c0 == 0 ? hit : capped(hit, c0));
    }
}

/* Backward of nll: g is the gradient per row. */
EACH_CHUNK(NAME(nll_back), (const REAL *, z), (const int64_t *, target), (const float *, log_sum),
           (const float *, g), (float, c0), (REAL *, gz), (int64_t, rows), (int64_t, d)) {
    EACH_ROW {
        const REAL *row = z + r * d;
        REAL *out = gz + r * d;
        float up = g[r], base = log_sum[r];
        if (c0 == 0) {
            EACH out[j] = STORE(up * exponential(LOAD(row[j]) - base));
        } else EACH {
                float v = capped(LOAD(row[j]), c0), t = v / c0;
                out[j] = STORE(up * (1 - t * t) * exponential(v - base));
            }
        float hit = LOAD(row[target[r]]), v = c0 == 0 ? hit : capped(hit, c0),
              t = c0 == 0 ? 0 : v / c0;
        out[target[r]] = STORE(up * (1 - t * t) * (exponential(v - base) - 1));
    }
}

/* How the heads of one position turn: cosines and sines (half) of a width of d. */
typedef struct {
    const float *co, *si;
    int64_t half, d;
#ifdef FAST_HEADS
    int fast;
    Rotation rotation;
#endif
} NAME(Turning);

static inline void NAME(turning)(NAME(Turning) * o, const float *cosine, const float *sine,
                                 int64_t t, int64_t half, int64_t d) {
    o->co = cosine + t * half, o->si = sine + t * half, o->half = half, o->d = d;
#ifdef FAST_HEADS
    o->fast = fast_heads(half, d);
    if (o->fast) rotation(&o->rotation, o->co, o->si, half, d);
#endif
}

/* One head's rms, rotation of the first 2 half dims, and gain. */
static inline float NAME(head_row)(const NAME(Turning) * o, const REAL *in, float gain, REAL *out) {
#ifdef FAST_HEADS
    if (o->fast) return fast_head(&o->rotation, in, gain, out);
#endif
    const float *co = o->co, *si = o->si;
    int64_t half = o->half, d = o->d;
    float kept[d], sum = 0;
    EACH kept[j] = LOAD(in[j]);
    EACH sum += kept[j] * kept[j];
    float inv = 1 / sqrtf(sum / d + FLT_EPSILON), k = inv * gain;
    INDEPENDENT for (int64_t j = 0; j < half; j++) {
        float a = kept[j], b = kept[j + half];
        out[j] = STORE(k * (a * co[j] + b * si[j]));
        out[j + half] = STORE(k * (b * co[j] - a * si[j]));
    }
    INDEPENDENT for (int64_t j = 2 * half; j < d; j++) out[j] = STORE(k * kept[j]);
    return inv;
}

/* All heads of position r; see `heads`. */
static inline void NAME(heads_row)(const REAL *x, const float *cosine, const float *sine,
                                   const float *gain, REAL *y, float *inverse, int64_t r,
                                   int64_t length, int64_t heads, int64_t half, int64_t d) {
    REAL *to = y + (r / length * heads * length + r % length) * d;
    NAME(Turning) turning;
    NAME(turning)(&turning, cosine, sine, r % length, half, d);
    for (int64_t h = 0; h < heads; h++)
        inverse[r * heads + h] = NAME(head_row)(&turning, x + (r * heads + h) * d,
                                                gain ? gain[h] : 1, to + h * length * d);
}

/* Heads: x (rows, heads, d) -> y (batch, heads, length, d): rms over d, rotate the first 2 half
   dims, times gain. cosine and sine are (length, half); gain (heads) may be absent; inverse (rows,
   heads) is kept for backward. */
EACH_CHUNK(NAME(heads), (const REAL *, x), (const float *, cosine), (const float *, sine),
           (const float *, gain), (REAL *, y), (float *, inverse), (int64_t, rows),
           (int64_t, length), (int64_t, heads), (int64_t, half), (int64_t, d)) {
    EACH_ROW NAME(heads_row)(x, cosine, sine, gain, y, inverse, r, length, heads, half, d);
}

/* Its backward; returns the gradient of the gain. */
static inline float NAME(head_row_back)(const NAME(Turning) * o, const REAL *up, const REAL *in,
                                        float gain, float inv, REAL *out) {
#ifdef FAST_HEADS
    if (o->fast) return fast_head_back(&o->rotation, up, in, gain, inv, out);
#endif
    const float *co = o->co, *si = o->si;
    int64_t half = o->half, d = o->d;
    float g[d], dot = 0;
    INDEPENDENT for (int64_t j = 0; j < half; j++) {
        float a = LOAD(up[j]), b = LOAD(up[j + half]);
        g[j] = a * co[j] - b * si[j];
        g[j + half] = a * si[j] + b * co[j];
    }
    INDEPENDENT for (int64_t j = 2 * half; j < d; j++) g[j] = LOAD(up[j]);
    EACH dot += g[j] * LOAD(in[j]);
    float pull = dot / d * inv * inv;
    EACH out[j] = STORE(gain * inv * (g[j] - LOAD(in[j]) * pull));
    return dot * inv;
}

/* Backward of heads_row: to gx (heads, d), and adds to gg (heads), the gains' gradients. */
static inline void NAME(heads_back_row)(const REAL *gy, const REAL *x, const float *cosine,
                                        const float *sine, const float *gain, const float *inverse,
                                        REAL *gx, float *gg, int64_t r, int64_t length,
                                        int64_t heads, int64_t half, int64_t d) {
    const REAL *from = gy + (r / length * heads * length + r % length) * d;
    NAME(Turning) turning;
    NAME(turning)(&turning, cosine, sine, r % length, half, d);
    for (int64_t h = 0; h < heads; h++)
        gg[h] += NAME(head_row_back)(&turning, from + h * length * d, x + (r * heads + h) * d,
                                     gain ? gain[h] : 1, inverse[r * heads + h], gx + h * d);
}

/* Backward of heads; gg takes CHUNKS times (heads) sums of the gain's gradient. */
EACH_CHUNK(NAME(heads_back), (const REAL *, gy), (const REAL *, x), (const float *, cosine),
           (const float *, sine), (const float *, gain), (const float *, inverse), (REAL *, gx),
           (float *, gg), (int64_t, rows), (int64_t, length), (int64_t, heads), (int64_t, half),
           (int64_t, d)) {
    memset(gg + unit * heads, 0, heads * sizeof(float));
    EACH_ROW NAME(heads_back_row)(gy, x, cosine, sine, gain, inverse, gx + r * heads * d,
                                  gg + unit * heads, r, length, heads, half, d);
}

/* Exclusive self attention: out = y - (y . u) u, u the unit vector of the group's v; y (rows,
   heads, d), v (rows, groups, d). */
EACH_CHUNK(NAME(exclude), (const REAL *, y), (const REAL *, v), (REAL *, out), (int64_t, rows),
           (int64_t, heads), (int64_t, groups), (int64_t, d)) {
    EACH_ROW for (int64_t h = 0; h < heads; h++) {
        const REAL *a = y + (r * heads + h) * d, *b = v + (r * groups + h / (heads / groups)) * d;
        float dot = 0, square = 0;
        EACH dot += LOAD(a[j]) * LOAD(b[j]);
        EACH square += LOAD(b[j]) * LOAD(b[j]);
        float part = square > 1e-24f ? dot / square : 0;
        EACH out[(r * heads + h) * d + j] = STORE(LOAD(a[j]) - part * LOAD(b[j]));
    }
}

/* Backward of exclude: with s = y . u, gy = g - (g . u) u and gu = -sum over the group's heads of
 * (g . u) y + s g. */
EACH_CHUNK(NAME(exclude_back), (const REAL *, g), (const REAL *, y), (const REAL *, v),
           (REAL *, gy), (REAL *, gv), (int64_t, rows), (int64_t, heads), (int64_t, groups),
           (int64_t, d)) {
    int64_t repeat = heads / groups;
    EACH_ROW for (int64_t k = 0; k < groups; k++) {
        const REAL *b = v + (r * groups + k) * d;
        float square = 0, unit[d], slope[d], along = 0;
        EACH square += LOAD(b[j]) * LOAD(b[j]);
        float inv = square > 1e-24f ? 1 / sqrtf(square) : 0;
        EACH unit[j] = LOAD(b[j]) * inv;
        EACH slope[j] = 0;
        for (int64_t h = k * repeat; h < (k + 1) * repeat; h++) {
            int64_t at = (r * heads + h) * d;
            float s = 0, up = 0;
            EACH s += LOAD(y[at + j]) * unit[j];
            EACH up += LOAD(g[at + j]) * unit[j];
            EACH gy[at + j] = STORE(LOAD(g[at + j]) - up * unit[j]);
            EACH slope[j] -= up * LOAD(y[at + j]) + s * LOAD(g[at + j]);
        }
        EACH along += slope[j] * unit[j];
        EACH gv[(r * groups + k) * d + j] = STORE((slope[j] - along * unit[j]) * inv);
    }
}

/* In place: row r of s (rows, d) becomes softmax(scale * s) over columns first[q] .. last[q]-1,
   zero elsewhere, where q = r mod queries. */
EACH_CHUNK(NAME(softmax), (REAL *, s), (const int32_t *, first), (const int32_t *, last),
           (float, scale), (int64_t, rows), (int64_t, queries), (int64_t, d)) {
    EACH_ROW {
        REAL *row = s + r * d;
        int64_t lo = first[r % queries], hi = last[r % queries];
        float kept[d], top = -FLT_MAX, sum = 0;
        INDEPENDENT for (int64_t j = lo; j < hi; j++) kept[j] = LOAD(row[j]) * scale;
        for (int64_t j = lo; j < hi; j++) top = kept[j] > top ? kept[j] : top;
        INDEPENDENT for (int64_t j = lo; j < hi; j++) kept[j] = exponential(kept[j] - top);
        for (int64_t j = lo; j < hi; j++) sum += kept[j];
        float share = sum > 0 ? 1 / sum : 0;
        for (int64_t j = 0; j < lo; j++) row[j] = 0;
        INDEPENDENT for (int64_t j = lo; j < hi; j++) row[j] = STORE(kept[j] * share);
        for (int64_t j = hi; j < d; j++) row[j] = 0;
    }
}

/* In place: the gradient g of softmax's output p becomes that of its input, scale included. */
EACH_CHUNK(NAME(softmax_back), (REAL *, g), (const REAL *, p), (float, scale), (int64_t, rows),
           (int64_t, d)) {
    EACH_ROW {
        float dot = 0;
        EACH dot += LOAD(g[r * d + j]) * LOAD(p[r * d + j]);
        EACH g[r * d + j] = STORE(scale * LOAD(p[r * d + j]) * (LOAD(g[r * d + j]) - dot));
    }
}

#include "tables.h"
#include "sidecar.h"
#undef EACH_ROW
#undef EACH
