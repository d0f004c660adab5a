/* What a browser needs beside the engine: a model's image put to use in place, and one thread.
 *
 * An image (browser/image.py) is the structures of engine.h and stream.c as 32-bit WebAssembly lays
 * them out, followed by what they point to. Its pointers are places in the image until nb_open
 * makes them addresses. Most matrices come as a symbol stream: their codes are empty until then.
 */
#include "engine.h"
#include "stream.c"

#include <string.h>
#include <time.h>

enum { IMAGE = 0x314d494e }; /* NIM1 */

typedef struct {
    uint32_t magic, bytes, plan_bytes, layer_bytes;
    uint32_t plan, members;           /* where plans stand, one a member, and how many */
    uint32_t pointers, count;         /* where pointers stand, and how many */
    uint32_t decoder, how, to, coded; /* matrices of the stream: a Matrix and an nb_matrix each */
} nb_image;

/* number i of a quarter of a unit of numbers of `bits`, all zero before */
static void put(uint8_t *unit, int bits, int quarter, int i, int value) {
    if (bits == 6 && quarter == 3) {
        unit[i] |= value >> 4 << 6;
        unit[BLOCK + i] |= (value >> 2 & 3) << 6;
        unit[2 * BLOCK + i] |= (value & 3) << 6;
    } else if (bits == 6) unit[quarter * BLOCK + i] |= value;
    else unit[quarter * bits / 8 * BLOCK + i] |= value << quarter * bits % 8;
}

/* The codes of a matrix from its integers; what its bits cannot hold stands in its tails. */
static void lay_out(const nb_matrix *m, const int32_t *level) {
    int64_t units = (int64_t)(m->cols + BLOCK - 1) / BLOCK * (BLOCK / 8);
    int high = 1 << (m->bits - 1);
    for (int64_t row = 0; row < m->rows; row++)
        for (int c = 0; c < m->cols; c++) {
            int code = *level++, quarter = c / 4 % 2 * HALVES + row % ROWS / WIDE;
            code = (code < -high ? 0 : code >= high ? 2 * high - 1 : code + high);
            uint8_t *at = (uint8_t *)m->codes + row / ROWS * units * (UNIT / 8) * m->bits;
            for (int low = 0; low < m->bits; low += 8, at += units * UNIT) {
                int width = m->bits - low < 8 ? m->bits - low : 8;
                put(at + c / 8 * (UNIT / 8) * width, width, quarter, (int)(row % WIDE) * 4 + c % 4,
                    code >> low & ((1 << width) - 1));
            }
        }
}

/* An engine of the image, which stays in use; null where it is not one, is damaged, or memory is
 * short. */
nb_engine *nb_open(uint8_t *image, uint32_t bytes) {
    const nb_image *head = (const nb_image *)image;
    if (bytes < sizeof *head || head->magic != IMAGE || head->bytes != bytes ||
        head->plan_bytes != sizeof(nb_plan) || head->layer_bytes != sizeof(nb_layer))
        return 0;
    const uint32_t *places = (const uint32_t *)(image + head->pointers);
    for (uint32_t i = 0; i < head->count; i++)
        *(uint32_t *)(image + places[i]) += (uint32_t)(uintptr_t)image;
    Matrix *how = (Matrix *)(image + head->how);
    const nb_matrix *to = (const nb_matrix *)(image + head->to);
    for (uint32_t i = 0; i < head->coded; i++) {
        memset(how[i].state, 0, (size_t)(how[i].height * how[i].columns) * sizeof(int64_t));
        if (!niblick_levels((Decoder *)(image + head->decoder), how + i)) return 0;
        lay_out(to + i, how[i].level);
    }
    const nb_plan *plan = (const nb_plan *)(image + head->plan);
    nb_engine *first = nb_create(plan);
    for (uint32_t i = 1; first && i < head->members; i++) {
        nb_engine *next = nb_create(plan + i);
        if (!next) return 0;
        nb_join(first, next);
    }
    return first;
}

/* pool.h and the clock, for one thread that never waits */
int nb_begin(int threads) {
    (void)threads;
    return 1;
}

void nb_team(int threads, nb_part part, void *what) {
    (void)threads;
    part(what, 0);
}

void nb_meet(int threads) { (void)threads; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    (void)clock;
    *now = (struct timespec){0};
    return 0;
}
