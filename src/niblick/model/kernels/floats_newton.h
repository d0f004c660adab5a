/* Newton-Schulz for float on the products of floats.h; of symmetric products only the lower blocks
   are computed. */

#ifdef MULTIPLIES
/* One matrix in its tall form Y (m, n), m >= n: rows, and the same in slabs, as `small` is in
 * small_slabs; gram is (n, n). */
typedef struct {
    int64_t m, n;
    float *rows, *slabs, *gram, *small, *small_slabs, *next;
} FloatNewton;

/* Y <- a Y + Y (b G + c G G) with G = Y^T Y. */
static void float_newton_step(FloatNewton *t, float a, float b, float c) {
    int64_t m = t->m, n = t->n;
    for (int64_t j = 0; j < n; j += SLAB)
        for (int64_t i = j / PANEL * PANEL; i < n; i += SLAB)
            for (int64_t p = 0; p < m; p += DEEP)
                multiply(slab(t->slabs, m, i) + p * SLAB, 1, SLAB, slab(t->slabs, m, j) + p * SLAB,
                         SLAB, t->gram + i * n + j, n, SLAB, SLAB, m - p < DEEP ? m - p : DEEP,
                         p > 0);
    mirror(t->gram, n);
    fill_down(t->gram, n, n, t->small_slabs, n, 0);
    for (int64_t j = 0; j < n; j += SLAB) {
        int64_t i = j / PANEL * PANEL;
        rows_by_slabs(t->gram + i * n, t->small_slabs, j, t->small + i * n + j, n, n - i, SLAB, n);
    }
    mirror(t->small, n);
    INDEPENDENT for (int64_t i = 0; i < n * n; i++) t->small[i] = b * t->gram[i] + c * t->small[i];
    for (int64_t i = 0; i < n; i++) t->small[i * n + i] += a;
    fill_down(t->small, n, n, t->small_slabs, n, 0);
    rows_by_slabs(t->rows, t->small_slabs, 0, t->next, n, m, n, n);
    float *before = t->rows;
    t->rows = t->next, t->next = before;
    fill_down(t->rows, m, n, t->slabs, m, 0);
}

/* As newton_bf16. */
EACH_UNIT(, newton_f32, count, (const float *, x), (float *, out), (float, a), (float, b),
          (float, c), (int64_t, steps), (int64_t, count), (int64_t, rows), (int64_t, columns)) {
    int64_t tall = rows >= columns, m = tall ? rows : columns, n = tall ? columns : rows,
            size = m * n;
    const float *in = x + unit * size;
    FloatNewton t = {m,
                     n,
                     room(size * 4),
                     room(size * 4),
                     room(n * n * 4),
                     room(n * n * 4),
                     room(n * n * 4),
                     room(size * 4)};
    float norm = 0;
    INDEPENDENT for (int64_t i = 0; i < size; i++) norm += in[i] * in[i];
    norm = 1 / (sqrtf(norm) + 1e-7f);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) t.rows[i * n + j] = norm * in[tall ? i * n + j : j * m + i];
    fill_down(t.rows, m, n, t.slabs, m, 0);
    for (int64_t i = 0; i < steps; i++) float_newton_step(&t, a, b, c);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            out[unit * size + (tall ? i * n + j : j * m + i)] = t.rows[i * n + j];
    free(t.rows), free(t.slabs), free(t.gram), free(t.small), free(t.small_slabs), free(t.next);
}
#endif
