/* What bnnumba/cpu/caches.py finds out about this CPU, for C. */

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "internal.h"

static caches this_cpu;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int64_t size_of(int index, int64_t usual)
{
    char path[sizeof CACHE_SIZE];
    int64_t kib = 0;
    snprintf(path, sizeof path, CACHE_SIZE, index);
    FILE *size = fopen(path, "r");
    if (size) {
        if (fscanf(size, "%" SCNd64 "K", &kib) != 1)
            kib = 0;
        fclose(size);
    }
    return kib > 0 ? 1024 * kib : usual;
}

/* What AMD calls this CPU's generation, 3 also for older ones, and 0 for CPUs of others. */
static int zen(void)
{
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    __builtin_cpu_init();
    if (__builtin_cpu_is("amd") && __get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        unsigned family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
        if (family >= 0x17)
            return family >= 0x1a ? 5 : __builtin_cpu_supports("avx512f") ? 4 : 3;
    }
#endif
    return 0;
}

static void find(void)
{
    int generation = zen();
    int64_t half = size_of(2, USUAL_L2) / 2, last = size_of(3, USUAL_SHARE);
    if (generation)
        this_cpu = (caches){generation < 5 ? ZEN_4_BLOCK : half, SPILL,
                            generation < 4 ? last / 2 : last, last / 2, 1};
    else
        this_cpu = (caches){half, half, USUAL_SHARE, USUAL_SWEPT, 0};
}

const caches *bn_caches(void)
{
    pthread_once(&once, find);
    return &this_cpu;
}
