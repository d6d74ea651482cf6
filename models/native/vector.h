/* Vectors as wide as the machine's registers: what all kernels share.
 *
 * GCC's and clang's vector extensions compile the same code for any CPU, but well only if a vector is one register: wider ones
 * go through memory, and are compared lane by lane. So the width and the number of registers are chosen here, and nowhere else
 * does a kernel know which CPU it is for: loops over lanes use LANES, and tiles use ACCUMULATORS.
 *
 * Every kernel computes a row's numbers in an order that depends on that row alone, never on the rows beside it or on the
 * number of threads: a row's output is the same bit for bit in every batch.
 */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define REGISTERS 16
#elif defined(__aarch64__)
#define LANES 4
#define REGISTERS 32
#else
#define LANES 4
#define REGISTERS 16
#endif

#define ACCUMULATORS (REGISTERS * 3 / 4) /* registers of a tile's sums; the others hold what is multiplied */
#define TILE_ROWS (ACCUMULATORS / 2)     /* the most rows of a tile, which then is two vectors wide */
#define INLINE static inline __attribute__((always_inline))

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vword __attribute__((vector_size(4 * LANES)));
typedef uint16_t vhalf __attribute__((vector_size(2 * LANES)));

/* The same in memory, wherever that begins. (memcpy would go through the stack in pieces.) */
typedef vfloat vfloat_at __attribute__((aligned(1), may_alias));
typedef vword vword_at __attribute__((aligned(1), may_alias));
typedef vhalf vhalf_at __attribute__((aligned(1), may_alias));

INLINE vfloat splat(float value) { return value - (vfloat){0}; }
INLINE vfloat load(const float *from) { return *(const vfloat_at *)from; }
INLINE void store(float *to, vfloat v) { *(vfloat_at *)to = v; }

/* The first n <= LANES numbers; the other lanes are 0. */
INLINE vfloat load_part(const float *from, int n) {
    if (n == LANES) return load(from);
    float full[LANES] = {0};
    memcpy(full, from, n * sizeof(float));
    return load(full);
}

INLINE void store_part(float *to, vfloat v, int n) {
    if (n == LANES) store(to, v);
    else memcpy(to, &v, n * sizeof(float));
}

INLINE vfloat select_lanes(vint mask, vfloat yes, vfloat no) {
    return (vfloat)((mask & (vint)yes) | (~mask & (vint)no));
}

INLINE vfloat max_of(vfloat a, vfloat b) { return select_lanes(a > b, a, b); }

INLINE float sum_lanes(vfloat v) {
    float sum[LANES];
    store(sum, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) sum[i] += sum[i + width];
    return sum[0];
}

INLINE float max_lanes(vfloat v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* e^x within 2 units in the last place; 0 below −87, e^88 above 88, NaN of NaN. Cody-Waite reduction and a minimax polynomial. */
INLINE vfloat exp_of(vfloat x) {
    const float magic = 12582912.0f; /* 1.5 · 2^23: adding it rounds to an integer */
    x = select_lanes(x > 88.0f, splat(88.0f), x);
    vfloat shifted = x * 1.44269504088896341f + magic;
    vfloat n = shifted - magic;
    vfloat r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vfloat p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vint power = ((vint)shifted - (vint)splat(magic)) << 23;
    vfloat result = (vfloat)((vint)p + power);
    return select_lanes(x == x, select_lanes(x > -87.0f, result, (vfloat){0}), x);
}
