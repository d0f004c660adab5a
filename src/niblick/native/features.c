/* What this processor has of that which our builds differ by; the bits are those of
 * niblick.toolchain.FEATURES. A feature counts where the system saves its registers, too. */
#if defined(__x86_64__)
#include <cpuid.h>

static unsigned saved(void) {
    unsigned low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int all(unsigned word, unsigned bits) { return (word & bits) == bits; }

/* Bits: FMA 12, MOVBE 22, OSXSAVE 27, AVX 28, F16C 29 of leaf 1; BMI 3, AVX2 5, BMI2 8, and
 * AVX-512 F 16, DQ 17, CD 28, BW 30, VL 31 and VNNI 11 of leaf 7; BF16 5 of 7.1; LZCNT 5. */
int niblick_features(void) {
    unsigned a, b, c, d, b7, c7, a71 = 0, extended;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    unsigned first = 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29;
    if (!all(c, first) || !all(saved(), 6)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return 0;
    if (a) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    if (!__get_cpuid(0x80000001u, &a, &b, &extended, &d) || !all(extended, 1u << 5)) return 0;
    if (!all(b7, 1u << 3 | 1u << 5 | 1u << 8)) return 0;
    unsigned wide = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
    if (!all(saved(), 0xe6) || !all(b7, wide)) return 1;
    return 1 | 2 | (int)(c7 >> 11 & 1) << 2 | (int)(a71 >> 5 & 1) << 3;
}
#else
int niblick_features(void) { return 0; }
#endif
