/* The pool of pool.h.

   One word says all about the call that is under way: its number, how many threads it is open to
   (none: closed) and how many have entered. A thread enters by changing the word, so that it cannot
   enter a call that has ended meanwhile, and what describes a call changes only while the word is
   closed and nobody is inside.

   Threads of a host (torch's, by nb_borrow) are better than ours while nobody else needs the
   processors: they are awake from the host's own work, and two pools do not get into each other's
   way. But a call of the host waits for all of its threads, which beside other work come late. So
   calls go to the host until one has waited, then to our threads; after a while the host is tried
   again. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool.h"

#include <stdatomic.h>

enum { STACK = 8 << 20, SPIN = 50 * 1000 };         /* bytes; nanoseconds */
enum { LATE = 2500 * 1000, FEW = 50, MANY = 3200 }; /* nanoseconds; calls */

#ifdef _WIN32
#include <windows.h>
typedef SRWLOCK Lock;
typedef CONDITION_VARIABLE Signal;
#define UNLOCKED SRWLOCK_INIT
#define SILENT CONDITION_VARIABLE_INIT
static void take(Lock *lock) { AcquireSRWLockExclusive(lock); }
static void give(Lock *lock) { ReleaseSRWLockExclusive(lock); }
static void await(Signal *signal, Lock *lock) {
    SleepConditionVariableSRW(signal, lock, INFINITE, 0);
}
static void raise_all(Signal *signal) { WakeAllConditionVariable(signal); }
static DWORD WINAPI enter_thread(LPVOID place);
static int start_thread(void *place) {
    HANDLE thread =
        CreateThread(NULL, STACK, enter_thread, place, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return thread && CloseHandle(thread);
}
static int64_t now(void) {
    LARGE_INTEGER ticks, rate;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&rate);
    return (int64_t)((double)ticks.QuadPart / (double)rate.QuadPart * 1e9);
}
#else
#include <pthread.h>
#include <time.h>
typedef pthread_mutex_t Lock;
typedef pthread_cond_t Signal;
#define UNLOCKED PTHREAD_MUTEX_INITIALIZER
#define SILENT PTHREAD_COND_INITIALIZER
static void take(Lock *lock) { pthread_mutex_lock(lock); }
static void give(Lock *lock) { pthread_mutex_unlock(lock); }
static void await(Signal *signal, Lock *lock) { pthread_cond_wait(signal, lock); }
static void raise_all(Signal *signal) { pthread_cond_broadcast(signal); }
static void *enter_thread(void *place);
static int start_thread(void *place) {
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return 0;
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int failed = pthread_create(&thread, &attributes, enter_thread, place);
    pthread_attr_destroy(&attributes);
    return !failed;
}
static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * (int64_t)1000000000 + time.tv_nsec;
}
#endif

static void breathe(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* The word: entered in bits 0 .. 15, open to in 16 .. 30, whether a team in 31, number above. */
#define ENTERED(word) ((int)((word) & 0xffff))
#define OPEN_TO(word) ((int)((word) >> 16 & 0x7fff))
#define IS_TEAM(word) ((int)((word) >> 31 & 1))
#define NUMBER(word) ((uint32_t)((word) >> 32))
#define WORD(number, team, open_to, entered)                                                       \
    ((uint64_t)(number) << 32 | (uint64_t)(team) << 31 | (uint64_t)(open_to) << 16 | (entered))

typedef struct {
    _Alignas(64) _Atomic int64_t next; /* of this thread's share of the units */
    int64_t end;
    _Alignas(64) _Atomic int sleeping;
    Signal wake;
    uint32_t seen; /* number of the last call that it took part in */
} Place;

typedef struct {
    _Alignas(64) _Atomic uint64_t word;
    _Alignas(64) _Atomic int taken, waiting; /* whether in use; whether its user sleeps */
    int started;                             /* threads beside the user's */
    Lock lock;
    Signal done, met;
    nb_task task;
    const void *arguments;
    nb_part part;
    void *what;
    _Alignas(64) _Atomic int arrived, phase, resting; /* where a team meets */
    Place place[NB_MOST_THREADS];
} Pool;

static struct {
    nb_parallel parallel;
    nb_number number;
    int64_t done;     /* when the caller had nothing left to do */
    int avoid, calls; /* calls that still go to our threads; that will, when it is late again */
} host;

static void (*before_work)(void), (*after_work)(void);
static Pool pool = {.lock = UNLOCKED, .done = SILENT, .met = SILENT};
static _Atomic int wanted = 1;

/* Wait shortly for what HOLDS; then sleep until SIGNAL, with FLAG raised for who will give it. */
#define WAIT_UNTIL(HOLDS, FLAG, SIGNAL)                                                            \
    do {                                                                                           \
        if (HOLDS) break;                                                                          \
        for (int64_t until = now() + SPIN; !(HOLDS) && now() < until;) breathe();                  \
        if (HOLDS) break;                                                                          \
        take(&pool.lock);                                                                          \
        atomic_fetch_add(FLAG, 1);                                                                 \
        while (!(HOLDS)) await(SIGNAL, &pool.lock);                                                \
        atomic_fetch_sub(FLAG, 1);                                                                 \
        give(&pool.lock);                                                                          \
    } while (0)

/* After what is waited for has come: whoever raised FLAG before that is inside of await by the time
 * the lock is free. */
static void wake(_Atomic int *flag, Signal *signal) {
    if (!atomic_load(flag)) return;
    take(&pool.lock);
    give(&pool.lock);
    raise_all(signal);
}

static int is_open(uint64_t word, int thread, uint32_t seen) {
    return OPEN_TO(word) > thread && NUMBER(word) != seen;
}

static void work(int thread, int threads) {
    if (before_work) before_work();
    for (int i = 0; i < threads; i++) {
        Place *from = pool.place + (thread + i) % threads;
        for (;;) {
            if (atomic_load_explicit(&from->next, memory_order_relaxed) >= from->end) break;
            int64_t unit = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
            if (unit >= from->end) break;
            pool.task(pool.arguments, unit);
        }
    }
    if (after_work) after_work();
}

static void serve(Place *mine) {
    int thread = (int)(mine - pool.place);
    for (;;) {
        WAIT_UNTIL(is_open(atomic_load(&pool.word), thread, mine->seen), &mine->sleeping,
                   &mine->wake);
        uint64_t word = atomic_load(&pool.word);
        if (!is_open(word, thread, mine->seen)) continue;
        if (IS_TEAM(word)) pool.part(pool.what, thread); /* it has been counted as inside */
        else if (atomic_compare_exchange_strong(&pool.word, &word, word + 1))
            work(thread, OPEN_TO(word));
        else continue;
        mine->seen = NUMBER(word);
        if (ENTERED(atomic_fetch_sub(&pool.word, 1)) == 1) wake(&pool.waiting, &pool.done);
    }
}

#ifdef _WIN32
static DWORD WINAPI enter_thread(LPVOID place) {
    serve(place);
    return 0;
}
#else
static void *enter_thread(void *place) {
    serve(place);
    return 0;
}

/* A forked process has none of the threads, nor the host's. */
static void forget(void) {
    pool = (Pool){.lock = UNLOCKED, .done = SILENT, .met = SILENT};
    host.parallel = 0;
}
#endif

static void forget_in_forks(void) {
#ifndef _WIN32
    static int told;
    if (!told) told = !pthread_atfork(0, 0, forget);
#endif
}

/* Have `threads`, or as many as the system gives, for who has taken the pool. */
static int gather_threads(int threads) {
    forget_in_forks();
    static const Signal silent = SILENT;
    while (pool.started + 1 < threads) {
        Place *fresh = pool.place + pool.started + 1;
        fresh->wake = silent;
        fresh->seen = NUMBER(atomic_load(&pool.word));
        if (!start_thread(fresh)) break;
        pool.started++;
    }
    return pool.started + 1 < threads ? pool.started + 1 : threads;
}

static void open_to(int threads, int team) {
    uint32_t number = NUMBER(atomic_load(&pool.word)) + 1;
    atomic_store(&pool.word, WORD(number, team, threads, team ? threads - 1 : 0));
    for (int i = 1; i < threads; i++) wake(&pool.place[i].sleeping, &pool.place[i].wake);
}

static void close_call(void) { atomic_fetch_and(&pool.word, ~WORD(0, 1, 0x7fff, 0)); }

static void await_all(void) {
    WAIT_UNTIL(ENTERED(atomic_load(&pool.word)) == 0, &pool.waiting, &pool.done);
}

void nb_threads(int threads) { atomic_store(&wanted, threads < 1 ? 1 : threads); }

void nb_around(void (*before)(void), void (*after)(void)) {
    before_work = before;
    after_work = after;
}

void nb_borrow(nb_parallel parallel, nb_number number) {
    forget_in_forks();
    host.parallel = parallel;
    host.number = number;
    host.avoid = 0;
    host.calls = FEW;
}

static void work_as_host(void *threads) {
    int thread = host.number();
    work(thread, (int)(intptr_t)threads);
    if (thread == 0) host.done = now();
}

/* Whether the host has done it. */
static int had_host_work(int threads) {
    if (!host.parallel) return 0;
    if (host.avoid > 0) return host.avoid--, 0;
    host.parallel(work_as_host, (void *)(intptr_t)threads, (unsigned)threads, 0);
    if (now() - host.done > LATE) {
        host.avoid = host.calls;
        host.calls = host.calls < MANY ? 2 * host.calls : MANY;
    } else if (host.calls > FEW) host.calls--;
    return 1;
}

int nb_begin(int threads) {
    if (threads > NB_MOST_THREADS) threads = NB_MOST_THREADS;
    if (threads < 2 || atomic_exchange(&pool.taken, 1)) return 1;
    threads = gather_threads(threads);
    if (threads < 2) atomic_store(&pool.taken, 0);
    return threads;
}

void nb_each(int64_t units, nb_task task, const void *arguments) {
    int threads = atomic_load_explicit(&wanted, memory_order_relaxed);
    threads = nb_begin(units < threads ? (int)units : threads);
    if (threads < 2) {
        if (before_work) before_work();
        for (int64_t unit = 0; unit < units; unit++) task(arguments, unit);
        if (after_work) after_work();
        return;
    }
    pool.task = task;
    pool.arguments = arguments;
    for (int i = 0; i < threads; i++) {
        atomic_store_explicit(&pool.place[i].next, units * i / threads, memory_order_relaxed);
        pool.place[i].end = units * (i + 1) / threads;
    }
    if (!had_host_work(threads)) {
        open_to(threads, 0);
        work(0, threads);
        close_call();
        await_all();
    }
    atomic_store(&pool.taken, 0);
}

void nb_team(int threads, nb_part part, void *what) {
    if (threads < 2) {
        part(what, 0);
        return;
    }
    pool.part = part;
    pool.what = what;
    open_to(threads, 1);
    part(what, 0);
    await_all();
    close_call();
    atomic_store(&pool.taken, 0);
}

void nb_meet(int threads) {
    if (threads < 2) return;
    int phase = atomic_load(&pool.phase);
    if (atomic_fetch_add(&pool.arrived, 1) == threads - 1) {
        atomic_store(&pool.arrived, 0);
        atomic_store(&pool.phase, phase + 1);
        wake(&pool.resting, &pool.met);
        return;
    }
    WAIT_UNTIL(atomic_load(&pool.phase) != phase, &pool.resting, &pool.met);
}
