/* What a browser needs beside the engine: a model's image put to use in place, and one thread.
 *
 * An image is the structures of engine.h as 32-bit WebAssembly lays them out, followed by what they
 * point to. Its pointers are places in the image until nb_open makes them addresses.
 */
#include "engine.h"

#include <time.h>

enum { MAGIC = 0x314d494e }; /* NIM1 */

typedef struct {
    uint32_t magic, bytes, plan_bytes, layer_bytes, plan, pointers, count;
} nb_image;

/* An engine of the image, which stays in use; null where it is not one, or memory is short. */
nb_engine *nb_open(uint8_t *image, uint32_t bytes) {
    const nb_image *head = (const nb_image *)image;
    if (bytes < sizeof *head || head->magic != MAGIC || head->bytes != bytes ||
        head->plan_bytes != sizeof(nb_plan) || head->layer_bytes != sizeof(nb_layer))
        return 0;
    const uint32_t *places = (const uint32_t *)(image + head->pointers);
    for (uint32_t i = 0; i < head->count; i++)
        *(uint32_t *)(image + places[i]) += (uint32_t)(uintptr_t)image;
    return nb_create((const nb_plan *)(image + head->plan));
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
