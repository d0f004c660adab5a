/* Threads that wait for work by spinning shortly and then sleeping, and the barrier inside a call.
 */
#include "engine.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

enum { SPINS = 2000, LONG_SPINS = 20000 };

typedef struct nb_pool {
    nb_engine *e;
    pthread_t threads[MAX_THREADS];
    int started;
    _Atomic int call, stop, sleeping;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} nb_pool;

typedef struct {
    nb_pool *pool;
    int thread;
} start;

static void breathe(int spins) {
    if (spins > SPINS) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
    else __builtin_ia32_pause();
#endif
}

/* All threads of the call arrive before any goes on. */
void nb_wait(nb_engine *e) {
    int threads = e->active;
    if (threads == 1) return;
    nb_barrier *b = &e->barrier;
    int phase = atomic_load_explicit(&b->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&b->phase, memory_order_acquire) == phase; spins++)
        breathe(spins);
}

static void await_call(nb_pool *pool, int seen) {
    for (int spins = 0; spins < LONG_SPINS; spins++) {
        if (atomic_load_explicit(&pool->call, memory_order_acquire) != seen) return;
        breathe(spins < SPINS ? 0 : SPINS + 1);
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleeping, 1);
    while (atomic_load(&pool->call) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *serve(void *argument) {
    start given = *(start *)argument;
    free(argument);
    for (int seen = 0;; seen++) {
        await_call(given.pool, seen);
        if (atomic_load(&given.pool->stop)) return NULL;
        nb_forward(given.pool->e, given.thread);
        nb_wait(given.pool->e);
    }
}

static void announce(nb_pool *pool) {
    atomic_fetch_add(&pool->call, 1);
    if (atomic_load(&pool->sleeping)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

nb_pool *nb_pool_create(nb_engine *e) {
    nb_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->e = e;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 1; i < e->plan.threads; i++) {
        start *given = malloc(sizeof *given);
        if (!given) break;
        *given = (start){pool, i};
        if (pthread_create(pool->threads + i, NULL, serve, given)) {
            free(given);
            break;
        }
        pool->started = i;
    }
    e->plan.threads = pool->started + 1; /* as many as the system gave */
    return pool;
}

void nb_pool_destroy(nb_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    announce(pool);
    for (int i = 1; i <= pool->started; i++) pthread_join(pool->threads[i], NULL);
    free(pool);
}

/* Run nb_forward on the active threads, all or the caller's alone, and return when all have
 * finished. */
void nb_pool_run(nb_pool *pool) {
    if (pool->e->active > 1) announce(pool);
    nb_forward(pool->e, 0);
    nb_wait(pool->e);
}
