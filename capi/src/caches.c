/* What bnnumba/cpu/caches.py tells of this CPU, for C. */

#include <inttypes.h>
#include <stdio.h>

#include "internal.h"

int64_t bn_fetches_ahead(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") ? 1 : 0;
#else
    return 0;
#endif
}

static int64_t l2_bytes(void)
{
    int64_t kib = 0;
    FILE *size = fopen(L2_SIZE, "r");
    if (size) {
        if (fscanf(size, "%" SCNd64 "K", &kib) != 1)
            kib = 0;
        fclose(size);
    }
    return kib > 0 ? 1024 * kib : USUAL_L2;
}

int64_t bn_block_bytes(void)
{
    static int64_t kept;
    int64_t bytes = __atomic_load_n(&kept, __ATOMIC_RELAXED);
    if (!bytes) {
        bytes = bn_fetches_ahead() ? AMD_BLOCK : l2_bytes() / 2;
        __atomic_store_n(&kept, bytes, __ATOMIC_RELAXED);
    }
    return bytes;
}
