/* The decoding engine: one plan, quantized weights, preallocated state; mirrored by
 * engine/structures.py.
 *
 * A call processes `n` columns: tokens of one or more slots, those of a slot consecutive and in
 * order. Letters as in the spec: D width, H heads, G key/value heads, E head width, V vocabulary.
 * Guarantees: no allocation after nb_create, state of constant size, results independent of the
 * number of threads and of how a prompt is cut.
 */
#ifndef NB_ENGINE_H
#define NB_ENGINE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* madvise */
#endif

#include "pool.h"

#include <stdint.h>

typedef float vec
    __attribute__((vector_size(64), aligned(4), may_alias)); /* 16 floats, at any address */
typedef int32_t veci __attribute__((vector_size(64), aligned(4), may_alias));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2), may_alias));

enum {
    WIDE = 16,
    ROWS = 32,
    HALVES = ROWS / WIDE,
    BLOCK = 64,
    UNIT = 8 * ROWS,
    NO_TOKEN = -1,
    MAX_THREADS = 64,
    MOST_MEMBERS = 16
};
enum { TOKEN_SHIFT = 0, ATTENTION = 1 };
enum { NONE = 0, LAST = 1, ALL = 2 };                     /* tokens whose logits are wanted */
enum { PLAIN = 0, SQUARE = 1, SIGMOID = 2, SOFTCAP = 3 }; /* what happens to a product's outputs */

typedef struct {
    uint32_t row : 4, column : 12; /* row of sixteen */
    int32_t rest : 16;             /* of a code that its matrix's bits cannot hold */
} nb_tail;

/* rows x cols codes of 2, 4, 6, 8, 10, 12, 16 or 24 bits times the row's scale, in blocks of 32
 * rows. A block holds numbers of 8 bits for each whole byte of its codes, then numbers of what is
 * above. Of these, every eight columns (padded to a multiple of 64) are a unit of four times 64,
 * sixteen rows of four columns each. 8 bits: the four in turn; 2 and 4: one above the other in the
 * same bytes; 6: three, and two bits of the fourth above each. A code beyond the range is cut off;
 * what is missing stands in the tails. */
typedef struct {
    const uint8_t *codes;
    const float *scales,
        *columns; /* columns: a factor of each column, or null; readable up to a multiple of 64 */
    const nb_tail *tail;    /* or null */
    const int32_t *tail_at; /* where those of every sixteen rows of the blocks begin, and the end */
    int32_t rows, cols, bits;
} nb_matrix;

/* one virtual layer; absent parts are null pointers, absent indices -1; state places are counted in
 * floats */
typedef struct {
    int32_t mixer, span, xsa, push, pop, site;
    float scale, value_scale;
    const float *attn_scale, *mlp_scale, *mix, *carry, *mix_r, *mix_k;
    const float *q_gain, *k_gain, *k_shift, *v_shift, *local_v;
    int64_t at_shift, at_keys, at_values, at_key_steps, at_value_steps, at_k_shift, at_v_shift,
        at_sidecar;
    nb_matrix r, k, v, q, out, fc, proj; /* r, k, v of a token shift; q, k, v, out of attention */
} nb_layer;

typedef struct {
    int32_t dim, heads, groups, head, vocab, hidden, half, layers, pushes, bos, document_mask,
        within, qk_norm;
    int32_t buckets, side_width, side_kernel, columns, slots, threads;
    float softcap, slope, bigram_scale;
    const nb_layer *layer;
    const float *smear, *side_gate, *side_scale, *side_kernels;
    const double *frequencies;
    nb_matrix embedding, head_matrix, bigram, bigram_proj, value, value_proj, side_g, side_v,
        side_p;
    int64_t at_smear, state_floats;
} nb_plan;

typedef struct {
    int32_t slot, token, before, previous,
        last;                       /* previous: column of the same slot just before, or -1 */
    int64_t position, since, first; /* since: tokens back to the start of what may be mixed */
} nb_column;

typedef struct {
    int64_t position, since, first;
    int32_t token;
} nb_slot;

/* a text being written; mirrored by engine/batch.py. `left` tokens may still come; `end` is the
 * token after which none do, or -1; `draw` counts those that have come */
typedef struct {
    int32_t slot, left, end, vocab, top_k, unused;
    double temperature, top_p;
    uint64_t seed, draw;
} nb_sequence;

typedef struct {
    double weight;
    int id;
} nb_draw;

typedef struct nb_engine {
    nb_plan plan;
    float *state;  /* slots x state_floats */
    float *logits; /* slots x V, after each slot's last token */
    nb_slot *slot;
    nb_column *column;
    int32_t n, chained, wanted;
    float *x, *x0, *xe, *u, *a, *b, *o, *hidden, *qkv, *ve, *side, *skip, *angle,
        *log_sum;     /* columns x something; hidden holds all logits at the end */
    float *scores;    /* threads x (H/G) x span */
    uint8_t *scratch; /* threads x scratch_bytes */
    int64_t scratch_bytes;
    nb_draw *draws; /* threads x V */
    int32_t *given; /* 2 x slots: those that go on, and their tokens */
    int32_t wide, wide_hidden, wide_qkv, score_floats;
    int32_t
        active; /* threads of this call: all of them, or one where single columns go faster alone */
    uint32_t steps;
    double
        cost[2]; /* seconds of a single column, alone and with all threads, as a moving average */
    struct nb_engine *next; /* of an ensemble: the member after this one */
    int32_t members;        /* of the first: how many there are, itself included */
    int32_t mixed;          /* whether the first's rows are the mean's already */
    int32_t team;           /* threads that run whole members */
} nb_engine;

static inline vec nb_pick(veci where, vec yes, vec no) {
    return (vec)(((veci)yes & where) | ((veci)no & ~where));
}

/* e^x to about one unit in the last place, for x clamped to what float32 can hold */
static inline vec nb_exp(vec x) {
    vec low = (vec){0} - 87.3f, high = (vec){0} + 88.3f;
    x = nb_pick(x < low, low, x);
    x = nb_pick(x > high, high, x);
    vec shift = (vec){0} + 12582912.0f;
    vec n = (x * 1.44269504f + shift) - shift;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    veci power = (__builtin_convertvector(n, veci) + 127) << 23;
    return p * (vec)power;
}

/* positions that a layer's rings have room for */
static inline int64_t nb_ring(const nb_layer *layer) {
    return (int64_t)(layer->span + BLOCK - 1) / BLOCK * BLOCK;
}

/* product.c */
void nb_product(const nb_matrix *m, const float *in, int64_t in_stride, float *out,
                int64_t out_stride, int n, int first, int end, int act, float parameter,
                void *scratch);
int64_t nb_scratch(int columns, int widest);
/* vector.c */
float *nb_floats(int64_t count);
float nb_total(vec x);
void nb_row(const nb_matrix *m, int64_t row, float gain, float *out);
float nb_rms(const float *in, float *out, int n, float gain);
void nb_sigmoid(float *x, int n);
/* attention.c */
void nb_attention(nb_engine *e, const nb_layer *layer, int group, float *scores);
/* members.c */
float nb_log_sum(const float *x, int n); /* ln of the sum of e^x */
void nb_mix_last(void *first, int thread);
void nb_mix_rows(nb_engine *first);
double nb_nats(const nb_engine *first, int column, int target);
/* forward.c */
void nb_forward(void *engine, int thread);
/* api.c: what Python calls */
nb_engine *nb_create(const nb_plan *plan);
void nb_join(nb_engine *e, nb_engine *next);
void nb_destroy(nb_engine *e);
void nb_free(float *memory);
void nb_reset(nb_engine *e, int slot, int64_t position);
int nb_run(nb_engine *e, int n, const int32_t *slots, const int32_t *tokens, int wanted);
float *nb_logits(nb_engine *e, int slot);
float *nb_rows(nb_engine *e);
int nb_stride(nb_engine *e);
void nb_nll(nb_engine *e, int n, int count, const int32_t *targets, float *out);
/* sample.c */
int nb_choose(nb_engine *e, int slot, int vocab, double temperature, int top_k, double top_p,
              uint64_t seed, uint64_t draw);
void nb_continue(nb_engine *e, int n, nb_sequence *sequences, int steps, int32_t *tokens);

#endif
