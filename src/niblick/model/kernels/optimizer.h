/* The optimizer's kernels: AdamW, momentum and gradients in one pass each for any processor, and
 * Newton-Schulz where pairs of bfloat16 multiply (for float: floats_newton.h). */

#define EACH_ELEMENT                                                                               \
    INDEPENDENT for (int64_t i = n * unit / CHUNKS; i < n * (unit + 1) / CHUNKS; i++)

/* AdamW on n elements, of gradients times `share`; keep = 1 - lr * decay, rate = lr / (1 -
 * beta1^t), correct = 1 / sqrt(1 - beta2^t). */
EACH_CHUNK(adam_f32, (float *, w), (const float *, gradients), (float, share), (float *, first),
           (float *, second), (float, beta1), (float, beta2), (float, eps), (float, rate),
           (float, correct), (float, keep), (int64_t, n)) {
    EACH_ELEMENT {
        float g = share * gradients[i], m = first[i] + (1 - beta1) * (g - first[i]),
              v = beta2 * second[i] + (1 - beta2) * g * g;
        first[i] = m;
        second[i] = v;
        w[i] = keep * w[i] - rate * m / (sqrtf(v) * correct + eps);
    }
}

/* m moves towards g, the gradients times `share`, by 1 - beta; g becomes the direction: nearer to m
 * by beta in Nesterov's form, else m. */
EACH_CHUNK(momentum_f32, (float *, g), (float, share), (float *, m), (float, beta),
           (int64_t, nesterov), (int64_t, n)) {
    float keep = nesterov ? beta : 1;
    EACH_ELEMENT {
        float now = share * g[i];
        m[i] += (1 - beta) * (now - m[i]);
        g[i] = now + keep * (m[i] - now);
    }
}

/* w = keep w - rate u */
EACH_CHUNK(descend_bf16, (float *, w), (const uint16_t *, u), (float, keep), (float, rate),
           (int64_t, n)) {
    EACH_ELEMENT w[i] = keep * w[i] - rate * widen(u[i]);
}

EACH_CHUNK(descend_f32, (float *, w), (const float *, u), (float, keep), (float, rate),
           (int64_t, n)) {
    EACH_ELEMENT w[i] = keep * w[i] - rate * u[i];
}

/* The gradients of `slots` parameters, wherever they lie, to (or with `add` added to) their places
   in the flat buffer: kind 0 is absent, 2 bfloat16, 4 float. */
EACH_UNIT(, collect_f32, slots, (const int64_t *, from), (const int64_t *, kind),
          (const int64_t *, start), (const int64_t *, size), (float *, flat), (int64_t, add),
          (int64_t, slots)) {
    float *to = flat + start[unit];
    const uint16_t *half = (const uint16_t *)from[unit];
    const float *whole = (const float *)from[unit];
    int64_t n = size[unit], of = kind[unit];
    if (of == 0 && !add) memset(to, 0, n * sizeof(float));
    else if (of == 2 && add) INDEPENDENT for (int64_t i = 0; i < n; i++) to[i] += widen(half[i]);
    else if (of == 2) INDEPENDENT for (int64_t i = 0; i < n; i++) to[i] = widen(half[i]);
    else if (of == 4 && add) INDEPENDENT for (int64_t i = 0; i < n; i++) to[i] += whole[i];
    else if (of == 4) memcpy(to, whole, n * sizeof(float));
}

/* Mirror the lower blocks of the symmetric sums (n, n) into the upper ones. */
static void mirror(float *sums, int64_t n) {
    for (int64_t i = 0; i < n; i += PANEL)
        for (int64_t j = i + PANEL; j < n; j += PANEL)
            for (int64_t r = i; r < i + PANEL; r++)
                for (int64_t q = j; q < j + PANEL; q++) sums[r * n + q] = sums[q * n + r];
}

#ifdef __AVX512BF16__
/* One matrix in its tall form Y (m, n), m >= n: rows, and the same as pairs down the rows; gram and
 * poly are (n, n). */
typedef struct {
    int64_t m, n;
    uint16_t *rows, *small;
    uint32_t *down, *small_down;
    float *sums, *gram;
} Newton;

/* sums (m, n), scaled by b, plus a times `add` where given, as bfloat16 by rows and as pairs down
 * them. */
static void newton_round(const float *sums, const uint16_t *add, float a, float b, uint16_t *rows,
                         uint32_t *down, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i += 2)
        for (int64_t j = 0; j < n; j += 16) {
            __m512 v[2];
            _Pragma("GCC unroll 2") for (int two = 0; two < 2; two++) {
                int64_t at = (i + two) * n + j;
                v[two] = _mm512_mul_ps(_mm512_loadu_ps(sums + at), _mm512_set1_ps(b));
                if (add) v[two] = _mm512_fmadd_ps(wide(add + at), _mm512_set1_ps(a), v[two]);
                slim(rows + at, v[two]);
            }
            if (down)
                _mm512_storeu_si512(panel(down, m / 2, j) + i / 2 * PANEL + j % PANEL,
                                    paired(v[0], v[1]));
        }
}

/* Y <- a Y + Y (b G + c G G) with G = Y^T Y; both products that give symmetric matrices are
 * computed by half. */
static void newton_step(Newton *t, float a, float b, float c, int last) {
    int64_t m = t->m, n = t->n;
    for (int64_t i = 0; i < n; i += PANEL)
        gather_rows(t->down, t->down, t->gram, n, m / 2, i, 0, i + PANEL, 0);
    mirror(t->gram, n);
    newton_round(t->gram, 0, 0, 1, t->small, t->small_down, n, n);
    for (int64_t j = 0; j < n; j += PANEL)
        product(t->small + j * n, n / 2, 1, panel(t->small_down, n / 2, j), PANEL,
                t->gram + j * n + j, n, n - j, PANEL, n / 2, 0);
    mirror(t->gram, n);
    newton_round(t->gram, t->small, b, c, t->small, t->small_down, n, n);
    rows_by_panels(t->rows, t->small_down, 0, t->sums, m, n, n / 2);
    newton_round(t->sums, t->rows, a, 1, t->rows, last ? 0 : t->down, m, n);
}

/* x (count, rows, columns) float -> out, the same in bfloat16, each matrix nearly orthogonal; sides
 * are multiples of PANEL. */
EACH_UNIT(, newton_bf16, count, (const float *, x), (uint16_t *, out), (float, a), (float, b),
          (float, c), (int64_t, steps), (int64_t, count), (int64_t, rows), (int64_t, columns)) {
    int64_t tall = rows >= columns, m = tall ? rows : columns, n = tall ? columns : rows,
            size = m * n;
    const float *in = x + unit * size;
    Newton t = {m,
                n,
                room(size * 2),
                room(n * n * 2),
                room(size * 2),
                room(n * n * 2),
                room(size * 4),
                room(n * n * 4)};
    float norm = 0;
    INDEPENDENT for (int64_t i = 0; i < size; i++) norm += in[i] * in[i];
    norm = 1 / (sqrtf(norm) + 1e-7f);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) t.sums[i * n + j] = in[tall ? i * n + j : j * m + i];
    newton_round(t.sums, 0, 0, norm, t.rows, t.down, m, n);
    for (int64_t i = 0; i < steps; i++) newton_step(&t, a, b, c, i + 1 == steps);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            out[unit * size + (tall ? i * n + j : j * m + i)] = t.rows[i * n + j];
    free(t.rows), free(t.small), free(t.down), free(t.small_down), free(t.sums), free(t.gram);
}
#endif
