/* Decoding of the symbol stream: symbols.py, contexts.py and tensor_stream.py, operation for
 * operation.
 *
 * All memory is the caller's. Integers wrap and divide as numpy's do; fractions are float32
 * without contraction, so that every number equals the reference's. Tables of all kinds lie
 * behind one another in `counts` and, each followed by the end of its range, in `cdf`; a table
 * holds the symbols -limit .. limit and the escape.
 */
#include <float.h>
#include <stdint.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic is wider than its type here"
#endif

#define PRECISION 24
#define GUIDE_BITS 9
#define STEP_BITS (PRECISION - GUIDE_BITS)
#define LARGEST_TOTAL (1 << 21)
#define LARGEST_SIZE (1 << 20)
#define LONGEST_ESCAPE 30
#define DIGITS 12

typedef struct {
    const uint32_t *words; /* those left are popped from the end */
    int64_t left;
    uint64_t state;
    const uint8_t *escapes; /* most significant bit first */
    int64_t bits, at;
    const int64_t *limits, *offsets; /* by kind */
    int64_t *totals, *fresh;         /* by kind; fresh is -1 where no model has been made */
    int64_t *counts;
    uint32_t *cdf;
    uint16_t *guide; /* by kind and first bits of a quantile: the symbol to search from */
    int64_t kinds;
    void (*start)(int64_t kind); /* puts in what a table counts at first; null: all are there */
} Decoder;

typedef struct {
    int64_t rows, columns, height; /* height: rows of a block */
    const int64_t *scale, *lift;   /* (rows,): the rows' steps and corrections */
    int64_t *sum;                  /* (columns,): magnitudes so far */
    int64_t seen, base, levels;
    const int64_t *thresholds; /* (levels - 1,) */
    int64_t states, stride;
    const int64_t *following, *quantizer; /* (states, 2), (states,) */
    int64_t *state;                       /* (height, columns) */
    uint8_t *kind;                        /* (height * columns,) scratch */
    int64_t *place, *symbol;              /* the same */
    int32_t *level;                       /* (rows, columns) */
} Matrix;

/* The quantized cumulative distribution that constriction makes of float32 counts. */
static void rebuild(Decoder *d, int64_t kind) {
    if (d->fresh[kind] < 0 && d->start) d->start(kind);
    const int64_t size = 2 * d->limits[kind] + 2;
    const int64_t *counts = d->counts + d->offsets[kind];
    uint32_t *cdf = d->cdf + d->offsets[kind] + kind;
    uint16_t *guide = d->guide + (kind << GUIDE_BITS);
    float sum = 0.0f, before = 0.0f;
    for (int64_t i = 0; i < size; i++) sum += (float)counts[i];
    const float scale = (float)((1 << PRECISION) - size) / sum;
    for (int64_t i = 0; i < size; i++) {
        cdf[i] = (uint32_t)(before * scale) + (uint32_t)i;
        before += (float)counts[i];
    }
    cdf[size] = 1u << PRECISION;
    for (int64_t slot = 0, symbol = 0; symbol < size; symbol++) {
        const int64_t end = (cdf[symbol + 1] + (1 << STEP_BITS) - 1) >> STEP_BITS;
        while (slot < end) guide[slot++] = (uint16_t)symbol;
    }
    d->fresh[kind] = 0;
}

static int bit_at(const Decoder *d, int64_t at) {
    return d->escapes[at >> 3] >> (7 - (at & 7)) & 1;
}

/* A magnitude beyond `limit`, in Elias gamma; 0 where the stream is damaged. */
static int64_t escape(Decoder *d, int64_t limit) {
    int64_t start = d->at, coded = 0;
    while (start < d->bits && start - d->at < LONGEST_ESCAPE && !bit_at(d, start)) start++;
    const int64_t length = start - d->at + 1;
    if (length > LONGEST_ESCAPE || start + length > d->bits) return 0;
    for (d->at = start; d->at < start + length; d->at++) coded = coded << 1 | bit_at(d, d->at);
    const int64_t magnitude = (coded + 1) / 2 + limit;
    return coded & 1 ? magnitude : -magnitude;
}

/* `count` symbols of one kind to their places; false where the escapes are damaged. */
static int take_group(Decoder *d, int64_t kind, const int64_t *place, int64_t count,
                      int64_t *symbol) {
    if (d->fresh[kind] < 0 || d->fresh[kind] * 8 > d->totals[kind]) rebuild(d, kind);
    const int64_t limit = d->limits[kind], last = 2 * limit + 1;
    const uint32_t *cdf = d->cdf + d->offsets[kind] + kind;
    const uint16_t *guide = d->guide + (kind << GUIDE_BITS);
    int64_t *counts = d->counts + d->offsets[kind];
    uint64_t state = d->state;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t quantile = (uint32_t)state & ((1u << PRECISION) - 1);
        int64_t index = guide[quantile >> STEP_BITS];
        while (cdf[index + 1] <= quantile) index++;
        state = (state >> PRECISION) * (cdf[index + 1] - cdf[index]) + (quantile - cdf[index]);
        if (state >> 32 == 0 && d->left > 0) state = state << 32 | d->words[--d->left];
        counts[index] += 16;
        symbol[place[i]] = index - limit;
        if (index == last && !(symbol[place[i]] = escape(d, limit))) return 0;
    }
    d->state = state;
    d->fresh[kind] += 16 * count;
    d->totals[kind] += 16 * count;
    if (d->totals[kind] > LARGEST_TOTAL) {
        d->totals[kind] = 0;
        for (int64_t i = 0; i <= last; i++) d->totals[kind] += counts[i] = (counts[i] + 1) / 2;
    }
    return 1;
}

/* A block of `count` symbols, those of each kind together, in order of kind; `place` is scratch. */
int niblick_take(Decoder *d, const uint8_t *kind, int64_t count, int64_t *place, int64_t *symbol) {
    int64_t ends[256] = {0}, begin = 0;
    for (int64_t i = 0; i < count; i++) ends[kind[i]]++;
    for (int64_t k = 0, total = 0; k < d->kinds; k++) {
        const int64_t size = ends[k];
        ends[k] = total;
        total += size;
    }
    for (int64_t i = 0; i < count; i++) place[ends[kind[i]]++] = i;
    for (int64_t k = 0; k < d->kinds; begin = ends[k++])
        if (ends[k] > begin && !take_group(d, k, place + begin, ends[k] - begin, symbol)) return 0;
    return 1;
}

/* A quotient of numbers below 2^52, rounded to double, never reaches the integer above it. */
static int64_t divide_down(int64_t value, int64_t by) {
    if ((uint64_t)value >> 52 == 0 && (uint64_t)by >> 52 == 0)
        return (int64_t)((double)value / (double)by);
    return value / by - (value % by < 0);
}

/* By the highest bit of a number: how many thresholds are at most that bit, and the next of them.
 * Thresholds are half octaves, so that one at most lies between that bit and the number. */
typedef struct {
    int64_t level[64], next[64];
} Octaves;

static Octaves octaves_of(const Matrix *m) {
    Octaves found;
    const int64_t last = m->levels - 1;
    for (int64_t bit = 0, level = 0; bit < 64; bit++) {
        while (level < last && (uint64_t)m->thresholds[level] <= (uint64_t)1 << bit) level++;
        found.level[bit] = level;
        found.next[bit] = level < last ? m->thresholds[level] : INT64_MAX;
    }
    return found;
}

/* The half octave of an expected magnitude: how many thresholds do not exceed it. */
static int64_t level_of(const Octaves *octaves, int64_t expected) {
    const int64_t value = expected > 0 ? expected : 0;
    const int bit = 63 - __builtin_clzll((uint64_t)value | 1);
    return octaves->level[bit] + (octaves->next[bit] <= value);
}

/* The kinds of a block of rows; `place` is scratch. */
static void kinds_of(const Matrix *m, const Octaves *octaves, int64_t start, int64_t height) {
    const int64_t columns = m->columns, seen = m->seen, base = m->base, levels = m->levels;
    const int64_t *sum = m->sum, *quantizer = m->quantizer;
    int64_t *mean = m->place;
    for (int64_t c = 0; c < columns; c++)
        mean[c] = (int64_t)((uint64_t)divide_down(sum[c], seen) << 8);
    for (int64_t r = 0; r < height; r++) {
        const int64_t scale = m->scale[start + r], *state = m->state + r * columns;
        const uint64_t lift = (uint64_t)m->lift[start + r];
        uint8_t *kind = m->kind + r * columns;
        for (int64_t c = 0; c < columns; c++) {
            const int64_t ratio = divide_down(mean[c], scale);
            const int64_t level = level_of(octaves, (int64_t)((uint64_t)ratio * lift) >> DIGITS);
            kind[c] = (uint8_t)(base + level + quantizer[state[c]] * levels);
        }
    }
}

/* Learn a row, move its path, and turn symbols into levels. */
static void finish_row(Matrix *m, int64_t row, const int64_t *symbol, int64_t *state) {
    const int64_t columns = m->columns, stride = m->stride;
    const int64_t *quantizer = m->quantizer, *following = m->following;
    const uint64_t scale = (uint64_t)m->scale[row];
    int64_t *sum = m->sum;
    int32_t *levels = m->level + row * columns;
    for (int64_t c = 0; c < columns; c++) {
        const int64_t size = symbol[c] < 0 ? -symbol[c] : symbol[c];
        const int64_t known = size < LARGEST_SIZE ? size : LARGEST_SIZE;
        sum[c] = (int64_t)((uint64_t)sum[c] + (uint64_t)known * scale);
        int64_t level = symbol[c];
        if (stride > 1) {
            level = stride * level - ((level > 0) - (level < 0)) * quantizer[state[c]];
            state[c] = following[2 * state[c] + (symbol[c] & 1)];
        }
        levels[c] = (int32_t)level;
    }
}

/* The levels of a whole matrix; false where the escapes are damaged. */
int niblick_levels(Decoder *d, Matrix *m) {
    const Octaves octaves = octaves_of(m);
    for (int64_t start = 0; start < m->rows; start += m->height) {
        const int64_t height = m->rows - start < m->height ? m->rows - start : m->height;
        kinds_of(m, &octaves, start, height);
        if (!niblick_take(d, m->kind, height * m->columns, m->place, m->symbol)) return 0;
        for (int64_t r = 0; r < height; r++)
            finish_row(m, start + r, m->symbol + r * m->columns, m->state + r * m->columns);
        m->seen += height;
    }
    return 1;
}
