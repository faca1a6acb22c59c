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

/* The family of an AMD Zen CPU, and 0 for others. */
static unsigned zen_family(void)
{
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    __builtin_cpu_init();
    if (__builtin_cpu_is("amd") && __get_cpuid(1, &eax, &ebx, &ecx, &edx)) {
        unsigned family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
        return family >= 0x17 ? family : 0;
    }
#endif
    return 0;
}

static void find(void)
{
    enum { ZEN_5 = 0x1a };
    unsigned family = zen_family();
    int64_t half = size_of(2, USUAL_L2) / 2;
    if (family)
        this_cpu = (caches){family < ZEN_5 ? ZEN_4_BLOCK : half, SPILL, size_of(3, USUAL_SHARE), 1};
    else
        this_cpu = (caches){half, half, USUAL_SHARE, 0};
}

const caches *bn_caches(void)
{
    pthread_once(&once, find);
    return &this_cpu;
}
