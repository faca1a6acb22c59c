/* Threads: OpenMP's, one parallel region at a time, and none after a fork. */

#include <pthread.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "internal.h"

/* OpenMP's runtime ends the process if it cannot start as many threads as it is asked for. */
enum { MOST_THREADS = 1024 };

static int limit;        /* 0: OpenMP's default */
static int region_taken; /* a parallel region is running */
static int forked;       /* GNU's OpenMP hangs in the child of a process that used it */
static pthread_mutex_t handles = PTHREAD_MUTEX_INITIALIZER;

void bn_lock(void)
{
    pthread_mutex_lock(&handles);
}

void bn_unlock(void)
{
    pthread_mutex_unlock(&handles);
}

static void after_fork_in_child(void)
{
    forked = 1;
    region_taken = 0;
    bn_unlock();
}

__attribute__((constructor)) static void prepare_for_forks(void)
{
    pthread_atfork(bn_lock, bn_unlock, after_fork_in_child);
}

bnnumba_status bnnumba_set_num_threads(int threads)
{
    if (threads < 0)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                       "threads: expected a number that is not negative, got %d", threads);
    __atomic_store_n(&limit, threads, __ATOMIC_RELAXED);
    return BNNUMBA_OK;
}

int bnnumba_get_num_threads(void)
{
#ifdef _OPENMP
    int threads = __atomic_load_n(&limit, __ATOMIC_RELAXED);
    if (forked || omp_in_parallel())
        return 1;
    threads = threads ? threads : omp_get_max_threads();
    int most = omp_get_thread_limit() < MOST_THREADS ? omp_get_thread_limit() : MOST_THREADS;
    return threads < most ? threads : most;
#else
    return 1;
#endif
}

int bn_enter(int64_t size)
{
    if (size < PARALLEL_SIZE)
        return 1;
    int threads = bnnumba_get_num_threads();
    if (threads > 1 && __atomic_exchange_n(&region_taken, 1, __ATOMIC_ACQUIRE))
        return 1;
    return threads;
}

void bn_leave(int threads)
{
    if (threads > 1)
        __atomic_store_n(&region_taken, 0, __ATOMIC_RELEASE);
}

/*
 * Order what this thread has streamed before what it does next. On x86 neither a release store nor
 * a return does: a thread that the caller tells of the result could read what stood there before.
 */
static void order_streamed(const job *j)
{
#if defined(__x86_64__)
    if (j->streaming)
        _mm_sfence();
#else
    (void)j;
#endif
}

#ifdef _OPENMP
/* The next item of a thread's share comes first in it; no other share is in its cache line. */
typedef int64_t share[16];

/* Do an even share of the items, and then what other threads have left of theirs. */
static void work_in_team(kernel *run, job *j, int64_t items, int threads, share *shares,
                         double *work)
{
    for (int turn = 0; turn < threads; turn++) {
        int owner = (omp_get_thread_num() + turn) % threads;
        int64_t end = (owner + 1) * items / threads;
        int64_t *next = shares[owner];
        int64_t left;
        while ((left = end - __atomic_load_n(next, __ATOMIC_RELAXED)) > 0) {
            int64_t part = (left + 1) / 2;
            int64_t begin = __atomic_fetch_add(next, part, __ATOMIC_RELAXED);
            if (begin < end)
                run(begin, begin + part < end ? begin + part : end, j, work);
        }
    }
    order_streamed(j);
}
#endif

void bn_run(kernel *run, job *j, int64_t items, int threads, double *work, int64_t stride)
{
#ifdef _OPENMP
    if (threads > 1 && items > 1) {
        if (threads > items)
            threads = (int)items;
        /* One for each thread that takes part: MOST_THREADS would take 128 KiB, and the stack of a
           thread of the caller's may have less. */
        share shares[threads];
        for (int k = 0; k < threads; k++)
            shares[k][0] = k * items / threads;
#pragma omp parallel num_threads(threads)
        work_in_team(run, j, items, threads, shares, work + omp_get_thread_num() * stride);
        return;
    }
#endif
    (void)threads;
    (void)stride;
    run(0, items, j, work);
    order_streamed(j);
}
