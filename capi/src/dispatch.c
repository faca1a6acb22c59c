/* libbnnumba: which of the kernels compiled ahead of time run on this CPU. */

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* kernel bnnumba_forward_ncs_f32_v3, ... */
#define DECLARE(name, level) extern kernel bnnumba_##name##_##level;
#define SYMBOL(name, level) bnnumba_##name##_##level,
#define LEVEL(level, text)                                          \
    KERNELS_OF(DECLARE, level)                                      \
    static kernel *const table_##level[] = {KERNELS_OF(SYMBOL, level)};
LEVELS(LEVEL)
#undef LEVEL

static const struct level {
    const char *name;
    kernel *const *table;
} levels[] = {
#define LEVEL(level, text) {text, table_##level},
    LEVELS(LEVEL)
#undef LEVEL
};

static const struct level *chosen;

#if defined(__x86_64__)
/* F16C, MOVBE and LZCNT came with AVX2, but a virtual machine may lack them; not all compilers ask. */
static int has_the_rest_of_v3(void)
{
    unsigned eax, ebx, ecx, edx;
    const unsigned wanted = bit_F16C | bit_MOVBE;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & wanted) == wanted &&
           __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & bit_LZCNT);
}
#endif

static int cpu_has(const char *level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(level, "x86-64-v2"))
        return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    if (!strcmp(level, "x86-64-v3"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
               has_the_rest_of_v3();
    if (!strcmp(level, "x86-64-v4"))
        return cpu_has("x86-64-v3") && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return 0;
#else
    (void)level;
    return 1;
#endif
}

__attribute__((constructor)) static void choose(void)
{
    const char *wanted = getenv("BNNUMBA_ISA");
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if ((!wanted || !*wanted || !strcmp(wanted, levels[i].name)) && cpu_has(levels[i].name))
            chosen = &levels[i];
}

const char *bnnumba_isa(void)
{
    return chosen ? chosen->name : "none";
}

bnnumba_status bnnumba_init(void)
{
    if (chosen)
        return BNNUMBA_OK;
    const char *wanted = getenv("BNNUMBA_ISA");
    return bn_fail(BNNUMBA_ERROR_UNSUPPORTED,
                   "BNNUMBA_ISA: expected nothing or a level between %s and that of this CPU, got "
                   "%s%s",
                   levels[0].name, wanted ? wanted : "nothing",
                   cpu_has(levels[0].name) ? "" : ", and this CPU has none");
}

bnnumba_status bn_kernel(kernel_id id, kernel **kernel_out)
{
    if (!chosen)
        return bnnumba_init();
    *kernel_out = chosen->table[id];
    return BNNUMBA_OK;
}
