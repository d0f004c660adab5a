/* Rows of tables by their ids, forward and backward; included by kernels.h once per element type.
 */

/* out[r] = the row ids[r] of a table (words, d). */
EACH_CHUNK(NAME(lookup), (const int64_t *, ids), (const float *, table), (REAL *, out),
           (int64_t, rows), (int64_t, d)) {
    EACH_ROW EACH out[r * d + j] = STORE(table[ids[r] * d + j]);
}

/* Adds the rows of g to those of gtable (words, d), which is cleared first; a unit of work is a
 * strip of columns. */
EACH_UNIT(static, NAME(lookup_strips), (d + 15) / 16, (const REAL *, g), (const int64_t *, ids),
          (float *, gtable), (int64_t, rows), (int64_t, d)) {
    int64_t j0 = 16 * unit, wide_by = d - j0 < 16 ? d - j0 : 16;
    for (int64_t r = 0; r < rows; r++) {
        float *to = gtable + ids[r] * d + j0;
        INDEPENDENT for (int64_t j = 0; j < wide_by; j++) to[j] += LOAD(g[r * d + j0 + j]);
    }
}

void NAME(lookup_back)(const REAL *g, const int64_t *ids, float *gtable, int64_t rows,
                       int64_t words, int64_t d) {
    clear(gtable, words * d);
    NAME(lookup_strips)(g, ids, gtable, rows, d);
}

/* n = rms(f0 row + f1 share branch), row = the one of the table (words, d) at ids; branch, f0 and
 * f1 (rows) may be absent. */
EACH_CHUNK(NAME(embed), (const int64_t *, ids), (const float *, table), (const REAL *, branch),
           (const float *, share), (const float *, f0), (const float *, f1), (REAL *, n),
           (float *, inverse), (int64_t, rows), (int64_t, d)) {
    EACH_ROW {
        float x[d], sum = 0, own = f0 ? f0[r] : 1, other = branch ? (f1 ? f1[r] : 1) * *share : 0;
        EACH x[j] = own * table[ids[r] * d + j];
        if (branch) EACH x[j] += other * LOAD(branch[r * d + j]);
        EACH sum += x[j] * x[j];
        float inv = inverse[r] = 1 / sqrtf(sum / d + FLT_EPSILON);
        EACH n[r * d + j] = STORE(x[j] * inv);
    }
}

EACH_UNIT(static, NAME(embed_slopes), CHUNKS, (const REAL *, gn), (const int64_t *, ids),
          (const float *, table), (const REAL *, branch), (const float *, share),
          (const float *, f0), (const float *, f1), (const float *, inverse), (float *, gx),
          (REAL *, gbranch), (float *, gshare), (int64_t, rows), (int64_t, d)) {
    gshare[unit] = 0;
    EACH_ROW {
        float x[d], dot = 0, along = 0, own = f0 ? f0[r] : 1, factor = f1 ? f1[r] : 1,
                    inv = inverse[r], *g = gx + r * d;
        EACH x[j] = own * table[ids[r] * d + j];
        if (branch) EACH x[j] += factor * *share * LOAD(branch[r * d + j]);
        EACH dot += LOAD(gn[r * d + j]) * x[j];
        float pull = dot / d * inv * inv;
        EACH g[j] = inv * (LOAD(gn[r * d + j]) - x[j] * pull);
        if (branch) EACH along += g[j] * LOAD(branch[r * d + j]);
        if (branch) EACH gbranch[r * d + j] = STORE(g[j] * factor * *share);
        gshare[unit] += factor * along;
        EACH g[j] *= own;
    }
}

/* Backward of embed: gx (rows, d) is scratch, gshare takes CHUNKS sums. */
void NAME(embed_back)(const REAL *gn, const int64_t *ids, const float *table, const REAL *branch,
                      const float *share, const float *f0, const float *f1, const float *inverse,
                      float *gx, float *gtable, REAL *gbranch, float *gshare, int64_t rows,
                      int64_t words, int64_t d) {
    NAME(embed_slopes)(gn, ids, table, branch, share, f0, f1, inverse, gx, gbranch, gshare, rows,
                       d);
    lookup_back_f32(gx, ids, gtable, rows, words, d);
}
