/* The element type of weights, activations and KV cache, for which the library is compiled: -DBFLOAT16, or float32.
 *
 * Sums are float32. Where the CPU multiplies pairs of bfloat16, the factors of matrix products are such pairs; elsewhere they are
 * float32, to which bfloat16 is widened (exactly) as it is read. STEP elements of the inner dimension are one factor of 32 bits.
 */
#pragma once
#include "vector.h"

#ifdef BFLOAT16
typedef uint16_t elem;

INLINE float to_float(elem value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* To the nearest, ties to even; not-a-number stays one. */
INLINE vword bf16_bits(vfloat v) {
    vword bits = (vword)v;
    vword rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vint is_nan = v != v;
    return (rounded & ~(vword)is_nan) | (((bits >> 16) | 0x40) & (vword)is_nan);
}

INLINE vfloat load_elems(const elem *from) {
    return (vfloat)(__builtin_convertvector((vhalf)*(const vhalf_at *)from, vword) << 16);
}

INLINE vfloat rounded(vfloat v) { return (vfloat)(bf16_bits(v) << 16); }

INLINE void store_elems(elem *to, vfloat v) {
    *(vhalf_at *)to = __builtin_convertvector(bf16_bits(v), vhalf);
}
#else
typedef float elem;

INLINE float to_float(elem value) { return value; }
INLINE vfloat load_elems(const elem *from) { return load(from); }
INLINE vfloat rounded(vfloat v) { return v; }
INLINE void store_elems(elem *to, vfloat v) { store(to, v); }
#endif

/* The first n <= LANES elements; the other lanes are 0. */
INLINE vfloat load_some(const elem *from, int n) {
    if (n == LANES) return load_elems(from);
    elem full[LANES] = {0};
    memcpy(full, from, n * sizeof(elem));
    return load_elems(full);
}

INLINE void store_some(elem *to, vfloat v, int n) {
    if (n == LANES) {
        store_elems(to, v);
        return;
    }
    elem full[LANES];
    store_elems(full, v);
    memcpy(to, full, n * sizeof(elem));
}

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#define STEP 2
typedef struct {
    elem of[STEP];
} factor;
typedef vword vfactor;

INLINE factor to_factor(const elem *from) { return (factor){{from[0], from[1]}}; }

INLINE vfactor load_factors(const factor *from) { return *(const vword_at *)from; }
INLINE void store_factors(factor *to, vfactor v) { *(vword_at *)to = v; }

INLINE vfactor widen_factors(const elem *from) { return load_factors((const factor *)from); }

INLINE vfactor splat_factor(const factor *from) {
    uint32_t bits;
    memcpy(&bits, from, 4);
    return bits - (vword){0};
}

/* acc + a0·b0 + a1·b1 in each lane. */
INLINE vfloat dot(vfloat acc, vfactor a, vfactor b) {
    /* Not the intrinsic: with it GCC 12 keeps to half of the registers, spills, and halves the speed. */
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
#else
#define STEP 1
typedef float factor;
typedef vfloat vfactor;

INLINE factor to_factor(const elem *from) { return to_float(*from); }
INLINE vfactor load_factors(const factor *from) { return load(from); }
INLINE void store_factors(factor *to, vfactor v) { store(to, v); }
INLINE vfactor widen_factors(const elem *from) { return load_elems(from); }
INLINE vfactor splat_factor(const factor *from) { return splat(*from); }
INLINE vfloat dot(vfloat acc, vfactor a, vfactor b) { return acc + a * b; }
#endif

#define WIDENS (sizeof(factor) != STEP * sizeof(elem)) /* whether factors are not what is stored */
