// What this processor can run, asked of the baseline build.
#include "common.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// 2: AVX-512, 1: AVX2, 0: neither.
EXPORT int level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned a = 0, b = 0, c = 0, d = 0;  // halves are widened by F16C, which every processor with AVX2 that was sold has
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

// Of the functions' arguments: raised with every change, so that a stale build is refused.
EXPORT int version() { return 10; }
