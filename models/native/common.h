/* Vectors of 16 lanes, the element type, and rounding: what all kernels share.
 *
 * The library is compiled once for each element type of weights, activations and KV cache: -DBFLOAT16 or float32.
 * Accumulation is always float32. GCC's and clang's vector extensions map a 16-lane vector to whatever the CPU has.
 *
 * Every kernel computes a row's numbers in an order that depends on that row alone, never on the rows beside it or on the
 * number of threads: a row's output is the same bit for bit in every batch.
 */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2)));

INLINE f32x16 splat(float value) { return value - (f32x16){0}; }

INLINE f32x16 select16(i32x16 mask, f32x16 yes, f32x16 no) {
    return (f32x16)((mask & (i32x16)yes) | (~mask & (i32x16)no));
}

INLINE f32x16 max16(f32x16 a, f32x16 b) { return select16(a > b, a, b); }

INLINE float sum_lanes(f32x16 v) {
    float sum[8];
    for (int i = 0; i < 8; i++) sum[i] = v[i] + v[i + 8];
    for (int width = 4; width; width /= 2)
        for (int i = 0; i < width; i++) sum[i] += sum[i + width];
    return sum[0];
}

INLINE float max_lanes(f32x16 v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* e^x within 2 units in the last place; 0 below −87, e^88 above 88, NaN of NaN. Cody-Waite reduction and a minimax polynomial. */
INLINE f32x16 exp16(f32x16 x) {
    const float magic = 12582912.0f; /* 1.5 · 2^23: adding it rounds to an integer */
    x = select16(x > 88.0f, splat(88.0f), x);
    f32x16 shifted = x * 1.44269504088896341f + magic;
    f32x16 n = shifted - magic;
    f32x16 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    i32x16 power = ((i32x16)shifted - (i32x16)splat(magic)) << 23;
    f32x16 result = (f32x16)((i32x16)p + power);
    return select16(x == x, select16(x > -87.0f, result, (f32x16){0}), x);
}

#ifdef BFLOAT16
typedef uint16_t elem;
#define STEP 2 /* elements of the inner dimension that one dot instruction takes */

INLINE float to_float(elem value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* To the nearest, ties to even; not-a-number stays one. */
INLINE u32x16 bf16_bits(f32x16 v) {
    u32x16 bits = (u32x16)v;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    i32x16 is_nan = v != v;
    return (rounded & ~(u32x16)is_nan) | (((bits >> 16) | 0x40) & (u32x16)is_nan);
}

INLINE f32x16 load16(const elem *from) {
    u16x16 raw;
    memcpy(&raw, from, 32);
    return (f32x16)(__builtin_convertvector(raw, u32x16) << 16);
}

INLINE f32x16 rounded16(f32x16 v) { return (f32x16)(bf16_bits(v) << 16); }

INLINE void store16(elem *to, f32x16 v) {
    u16x16 raw = __builtin_convertvector(bf16_bits(v), u16x16);
    memcpy(to, &raw, 32);
}

/* acc + a0·b0 + a1·b1 in each lane: `a` holds one pair, b a pair in each lane. */
INLINE f32x16 dot(f32x16 acc, u32x16 a, u32x16 b) {
#ifdef __AVX512BF16__
    /* Not the intrinsic: with it GCC 12 keeps to half of the registers, spills, and halves the speed. */
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
#else
    acc += (f32x16)(a << 16) * (f32x16)(b << 16);
    return acc + (f32x16)(a & 0xffff0000u) * (f32x16)(b & 0xffff0000u);
#endif
}
#else
typedef float elem;
#define STEP 1

INLINE float to_float(elem value) { return value; }
INLINE f32x16 load16(const elem *from) {
    f32x16 v;
    memcpy(&v, from, 64);
    return v;
}
INLINE f32x16 rounded16(f32x16 v) { return v; }
INLINE void store16(elem *to, f32x16 v) { memcpy(to, &v, 64); }
INLINE f32x16 dot(f32x16 acc, u32x16 a, u32x16 b) { return acc + (f32x16)a * (f32x16)b; }
#endif

/* The first n <= 16 elements; the other lanes are 0. */
INLINE f32x16 load_some(const elem *from, int n) {
    if (n == LANES) return load16(from);
    elem full[LANES] = {0};
    memcpy(full, from, n * sizeof(elem));
    return load16(full);
}

INLINE void store_some(elem *to, f32x16 v, int n) {
    if (n == LANES) {
        store16(to, v);
        return;
    }
    elem full[LANES];
    store16(full, v);
    memcpy(to, full, n * sizeof(elem));
}

/* One step of the inner dimension (32 bits) in all lanes. */
INLINE u32x16 splat_step(const elem *from) {
    uint32_t bits;
    memcpy(&bits, from, 4);
    return bits - (u32x16){0};
}

INLINE u32x16 load_steps(const elem *from) {
    u32x16 v;
    memcpy(&v, from, 64);
    return v;
}
