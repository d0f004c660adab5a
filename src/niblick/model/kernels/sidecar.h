/* What the sidecar transformer adds to attention, and its gated filter; included by kernels.h once
 * per element type. */

/* out = x + m prev(x), m (d). */
EACH_CHUNK(NAME(shift_mix), (const REAL *, x), (const uint8_t *, boundary), (const float *, m),
           (REAL *, out), (int64_t, rows), (int64_t, length), (int64_t, d)) {
    EACH_ROW {
        const REAL *now = x + r * d, *before = now - d;
        if (follows(boundary, r, length))
            EACH out[r * d + j] = STORE(LOAD(now[j]) + m[j] * LOAD(before[j]));
        else EACH out[r * d + j] = now[j];
    }
}

/* Backward of shift_mix; gm takes CHUNKS sums. */
EACH_CHUNK(NAME(shift_mix_back), (const REAL *, g), (const REAL *, x), (const uint8_t *, boundary),
           (const float *, m), (REAL *, gx), (float *, gm), (int64_t, rows), (int64_t, length),
           (int64_t, d)) {
    float *sum = gm + unit * d;
    memset(sum, 0, d * sizeof(float));
    EACH_ROW {
        const REAL *up = g + r * d, *later = up + d, *before = x + (r - 1) * d;
        if (r + 1 < rows && follows(boundary, r + 1, length))
            EACH gx[r * d + j] = STORE(LOAD(up[j]) + m[j] * LOAD(later[j]));
        else EACH gx[r * d + j] = up[j];
        if (follows(boundary, r, length)) EACH sum[j] += LOAD(up[j]) * LOAD(before[j]);
    }
}

/* out = y + m_h v of the head's group; y (rows, heads, d), v (rows, groups, d), m (heads). */
EACH_CHUNK(NAME(local_value), (const REAL *, y), (const REAL *, v), (const float *, m),
           (REAL *, out), (int64_t, rows), (int64_t, heads), (int64_t, groups), (int64_t, d)) {
    EACH_ROW for (int64_t h = 0; h < heads; h++) {
        const REAL *a = y + (r * heads + h) * d, *b = v + (r * groups + h / (heads / groups)) * d;
        EACH out[(r * heads + h) * d + j] = STORE(LOAD(a[j]) + m[h] * LOAD(b[j]));
    }
}

/* Backward of local_value with respect to v and m (that of y is g); gm takes CHUNKS sums. */
EACH_CHUNK(NAME(local_value_back), (const REAL *, g), (const REAL *, v), (const float *, m),
           (REAL *, gv), (float *, gm), (int64_t, rows), (int64_t, heads), (int64_t, groups),
           (int64_t, d)) {
    int64_t repeat = heads / groups;
    memset(gm + unit * heads, 0, heads * sizeof(float));
    EACH_ROW for (int64_t k = 0; k < groups; k++) {
        const REAL *own = v + (r * groups + k) * d;
        float slope[d];
        EACH slope[j] = 0;
        for (int64_t h = k * repeat; h < (k + 1) * repeat; h++) {
            const REAL *up = g + (r * heads + h) * d;
            float along = 0;
            EACH along += LOAD(up[j]) * LOAD(own[j]);
            EACH slope[j] += m[h] * LOAD(up[j]);
            gm[unit * heads + h] += along;
        }
        EACH gv[(r * groups + k) * d + j] = STORE(slope[j]);
    }
}

/* The causal depthwise filter at position r: the sum over `taps` of w (d, taps), newest last,
 * within the document. */
static inline void NAME(filter_row)(const REAL *v, const uint8_t *boundary, const float *w,
                                    float *sum, int64_t r, int64_t length, int64_t taps,
                                    int64_t d) {
    EACH sum[j] = w[j * taps + taps - 1] * LOAD(v[r * d + j]);
    for (int64_t back = 1; back < taps && follows(boundary, r - back + 1, length); back++)
        EACH sum[j] += w[j * taps + taps - 1 - back] * LOAD(v[(r - back) * d + j]);
}

/* out = silu(gate + site) * filter(v); v, gate (rows, d), site (d), w (d, taps). */
EACH_CHUNK(NAME(gated_filter), (const REAL *, v), (const REAL *, gate), (const float *, site),
           (const float *, w), (const uint8_t *, boundary), (REAL *, out), (int64_t, rows),
           (int64_t, length), (int64_t, taps), (int64_t, d)) {
    EACH_ROW {
        float sum[d];
        NAME(filter_row)(v, boundary, w, sum, r, length, taps, d);
        EACH {
            float a = LOAD(gate[r * d + j]) + site[j];
            out[r * d + j] = STORE(a * logistic(a) * sum[j]);
        }
    }
}

/* The filter's gradient `pull`, and what does not need that of later positions. */
EACH_UNIT(static, NAME(gated_filter_slopes), CHUNKS, (const REAL *, g), (const REAL *, v),
          (const REAL *, gate), (const float *, site), (const float *, w),
          (const uint8_t *, boundary), (float *, pull), (REAL *, ggate), (float *, gs),
          (int64_t, rows), (int64_t, length), (int64_t, taps), (int64_t, d)) {
    float *sums = gs + unit * (1 + taps) * d;
    memset(sums, 0, (1 + taps) * d * sizeof(float));
    EACH_ROW {
        float sum[d], *own = pull + r * d;
        NAME(filter_row)(v, boundary, w, sum, r, length, taps, d);
        EACH {
            float a = LOAD(gate[r * d + j]) + site[j], s = logistic(a), up = LOAD(g[r * d + j]);
            float slope = up * sum[j] * s * (1 + a * (1 - s));
            own[j] = up * a * s;
            ggate[r * d + j] = STORE(slope);
            sums[j] += slope;
        }
        EACH sums[taps * d + j] += own[j] * LOAD(v[r * d + j]);
        for (int64_t back = 1; back < taps && follows(boundary, r - back + 1, length); back++)
            EACH sums[(taps - back) * d + j] += own[j] * LOAD(v[(r - back) * d + j]);
    }
}

/* gv from `pull`. */
EACH_UNIT(static, NAME(filter_back), CHUNKS, (const float *, w), (const uint8_t *, boundary),
          (const float *, pull), (REAL *, gv), (int64_t, rows), (int64_t, length), (int64_t, taps),
          (int64_t, d)) {
    EACH_ROW {
        float sum[d];
        EACH sum[j] = w[j * taps + taps - 1] * pull[r * d + j];
        for (int64_t on = 1; on < taps && r + on < rows && follows(boundary, r + on, length); on++)
            EACH sum[j] += w[j * taps + taps - 1 - on] * pull[(r + on) * d + j];
        EACH gv[r * d + j] = STORE(sum[j]);
    }
}

/* Backward of gated_filter: pull (rows, d), the filter's gradient, is scratch; gs takes CHUNKS
   times (1 + taps, d) sums, of the site and of each tap. */
void NAME(gated_filter_back)(const REAL *g, const REAL *v, const REAL *gate, const float *site,
                             const float *w, const uint8_t *boundary, float *pull, REAL *gv,
                             REAL *ggate, float *gs, int64_t rows, int64_t length, int64_t taps,
                             int64_t d) {
    NAME(gated_filter_slopes)(g, v, gate, site, w, boundary, pull, ggate, gs, rows, length, taps,
                              d);
    NAME(filter_back)(w, boundary, pull, gv, rows, length, taps, d);
}
