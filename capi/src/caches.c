/* What bnnumba/cpu/caches.py tells of this CPU, for C. */

#include <unistd.h>

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

int64_t bn_block_bytes(void)
{
    static int64_t kept;
    int64_t bytes = __atomic_load_n(&kept, __ATOMIC_RELAXED);
    if (!bytes) {
        long l2 = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
        l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
        bytes = bn_fetches_ahead() ? AMD_BLOCK : (l2 > 0 ? l2 : USUAL_L2) / 2;
        __atomic_store_n(&kept, bytes, __ATOMIC_RELAXED);
    }
    return bytes;
}
