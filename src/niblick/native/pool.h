/* One pool of threads for all of our libraries: training, decoding and packing.

   Threads without work sleep, after a spin that is shorter than what waking one costs on a busy
   machine. A call that finds the pool in use by another thread, or called from inside of it, does
   its work alone. Written with what POSIX and Windows have; no compiler's own threads. */
#ifndef NB_POOL_H
#define NB_POOL_H
#include <stdint.h>

enum { NB_MOST_THREADS = 256 };

typedef void (*nb_task)(const void *arguments, int64_t unit);
typedef void (*nb_part)(void *what, int thread);

/* Threads that nb_each uses from now on, the caller's among them. */
void nb_threads(int threads);

typedef void (*nb_parallel)(void (*body)(void *), void *given, unsigned threads, unsigned flags);
typedef int (*nb_number)(void);

/* A host's threads for nb_each while they come at once: its function that runs `body` on so many
   threads and waits for them, and the one that says which thread it is called on. */
void nb_borrow(nb_parallel parallel, nb_number number);

/* task(arguments, unit) for every unit of 0 .. units - 1, in any order, at the same time. Each
   thread begins with its own share of consecutive units, the same ones in every call, and then
   takes what is left of others'; a thread that comes late is not waited for. */
void nb_each(int64_t units, nb_task task, const void *arguments);

/* What a thread does before and after its part of an nb_each; none unless given. */
void nb_around(void (*before)(void), void (*after)(void));

/* Takes the pool for nb_team; how many threads there are for it, at most `threads`: one where it is
   in use. */
int nb_begin(int threads);

/* part(what, thread) on exactly the threads that nb_begin gave, at once; gives the pool back. */
void nb_team(int threads, nb_part part, void *what);

/* Inside of part: all threads of the team arrive before any goes on. */
void nb_meet(int threads);

/* EACH_UNIT(linkage, name, units, (type, argument), ...) { ... } defines

       linkage void name(type argument, ...)

   which runs the block by nb_each, with `unit` and the arguments at hand. */
#define EACH_UNIT(linkage, name, units, ...) NB_EACH(linkage, name, units, __VA_ARGS__)
#define NB_EACH(linkage, name, units, ...)                                                         \
    struct name##_arguments {                                                                      \
        NB_LIST(NB_FIELD, NB_SEMICOLON, __VA_ARGS__);                                              \
    };                                                                                             \
    static inline void name##_unit(NB_LIST(NB_FIELD, NB_COMMA, __VA_ARGS__), int64_t unit);        \
    static void name##_task(const void *given, int64_t unit) {                                     \
        const struct name##_arguments *nb_given = given;                                           \
        name##_unit(NB_LIST(NB_TAKEN, NB_COMMA, __VA_ARGS__), unit);                               \
    }                                                                                              \
    linkage void name(NB_LIST(NB_FIELD, NB_COMMA, __VA_ARGS__)) {                                  \
        const struct name##_arguments nb_given = {NB_LIST(NB_NAMED, NB_COMMA, __VA_ARGS__)};       \
        nb_each(units, name##_task, &nb_given);                                                    \
    }                                                                                              \
    static inline void name##_unit(NB_LIST(NB_FIELD, NB_COMMA, __VA_ARGS__), int64_t unit)

#define NB_COMMA() ,
#define NB_SEMICOLON() ;
#define NB_FIELD(type, name) type name
#define NB_NAMED(type, name) name
#define NB_TAKEN(type, name) nb_given->name

/* M(type, name) of up to 24 pairs, S() between them. */
#define NB_LIST(M, S, ...)                                                                         \
    NB_COUNTED(__VA_ARGS__, NB_24, NB_23, NB_22, NB_21, NB_20, NB_19, NB_18, NB_17, NB_16, NB_15,  \
               NB_14, NB_13, NB_12, NB_11, NB_10, NB_9, NB_8, NB_7, NB_6, NB_5, NB_4, NB_3, NB_2,  \
               NB_1, NB_0)                                                                         \
    (M, S, __VA_ARGS__)
#define NB_COUNTED(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, N, ...) N
#define NB_1(M, S, a) M a
#define NB_2(M, S, a, ...) M a S() NB_1(M, S, __VA_ARGS__)
#define NB_3(M, S, a, ...) M a S() NB_2(M, S, __VA_ARGS__)
#define NB_4(M, S, a, ...) M a S() NB_3(M, S, __VA_ARGS__)
#define NB_5(M, S, a, ...) M a S() NB_4(M, S, __VA_ARGS__)
#define NB_6(M, S, a, ...) M a S() NB_5(M, S, __VA_ARGS__)
#define NB_7(M, S, a, ...) M a S() NB_6(M, S, __VA_ARGS__)
#define NB_8(M, S, a, ...) M a S() NB_7(M, S, __VA_ARGS__)
#define NB_9(M, S, a, ...) M a S() NB_8(M, S, __VA_ARGS__)
#define NB_10(M, S, a, ...) M a S() NB_9(M, S, __VA_ARGS__)
#define NB_11(M, S, a, ...) M a S() NB_10(M, S, __VA_ARGS__)
#define NB_12(M, S, a, ...) M a S() NB_11(M, S, __VA_ARGS__)
#define NB_13(M, S, a, ...) M a S() NB_12(M, S, __VA_ARGS__)
#define NB_14(M, S, a, ...) M a S() NB_13(M, S, __VA_ARGS__)
#define NB_15(M, S, a, ...) M a S() NB_14(M, S, __VA_ARGS__)
#define NB_16(M, S, a, ...) M a S() NB_15(M, S, __VA_ARGS__)
#define NB_17(M, S, a, ...) M a S() NB_16(M, S, __VA_ARGS__)
#define NB_18(M, S, a, ...) M a S() NB_17(M, S, __VA_ARGS__)
#define NB_19(M, S, a, ...) M a S() NB_18(M, S, __VA_ARGS__)
#define NB_20(M, S, a, ...) M a S() NB_19(M, S, __VA_ARGS__)
#define NB_21(M, S, a, ...) M a S() NB_20(M, S, __VA_ARGS__)
#define NB_22(M, S, a, ...) M a S() NB_21(M, S, __VA_ARGS__)
#define NB_23(M, S, a, ...) M a S() NB_22(M, S, __VA_ARGS__)
#define NB_24(M, S, a, ...) M a S() NB_23(M, S, __VA_ARGS__)
#endif
