/* Normalisation, activation and rotation, each in one pass, rounded where transformers' separate operations round: products
 * are not fused with sums here. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include "element.h"

/* Root mean square normalisation (arXiv 1910.07467): out = weight · round(input / √(mean(input²) + ε)). */
void rms_norm(const elem *input, const elem *weight, elem *out, int64_t rows, int64_t dim, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const elem *from = input + row * dim;
        elem *to = out + row * dim;
        vfloat squares = {0};
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) {
            vfloat v = load_elems(from + d);
            squares += v * v;
        }
        float sum = sum_lanes(squares);
        for (; d < dim; d++) sum += to_float(from[d]) * to_float(from[d]);
        float scale = 1.0f / sqrtf(sum / (float)dim + epsilon);
        for (d = 0; d < dim; d += LANES) {
            int n = dim - d < LANES ? (int)(dim - d) : LANES;
            store_some(to + d, load_some(weight + d, n) * rounded(load_some(from + d, n) * scale), n);
        }
    }
}

/* SwiGLU (arXiv 2002.05202): out = round(gate · σ(gate)) · up, over `count` elements. */
void silu_mul(const elem *gate, const elem *up, elem *out, int64_t count, int threads) {
    int64_t vectors = (count + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t v = 0; v < vectors; v++) {
        int64_t at = v * LANES;
        int n = count - at < LANES ? (int)(count - at) : LANES;
        vfloat g = load_some(gate + at, n), u = load_some(up + at, n);
        vfloat active = rounded(g / (1.0f + exp_of(-g)));
        store_some(out + at, active * u, n);
    }
}

typedef struct {
    const elem *states;
    int64_t strides[2]; /* per token and per head */
    elem *out;          /* [tokens, heads, dim], dense */
    int64_t heads;
} Rotated;

/* Rotary positions (arXiv 2104.09864), the halves of a head against each other, for `count` tensors of the same tokens.
 * cos and sin are [tokens, dim]. */
void rotate(const Rotated *tensors, int64_t count, const elem *cos, const elem *sin, int64_t tokens, int64_t dim,
            int threads) {
    int64_t half = dim / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t token = 0; token < tokens; token++) {
        const elem *c = cos + token * dim, *s = sin + token * dim;
        for (const Rotated *t = tensors; t < tensors + count; t++)
            for (int64_t head = 0; head < t->heads; head++) {
                const elem *from = t->states + token * t->strides[0] + head * t->strides[1];
                elem *to = t->out + (token * t->heads + head) * dim;
                for (int64_t d = 0; d < half; d += LANES) {
                    int n = half - d < LANES ? (int)(half - d) : LANES;
                    vfloat a = load_some(from + d, n), b = load_some(from + half + d, n);
                    vfloat ca = load_some(c + d, n), cb = load_some(c + half + d, n);
                    vfloat sa = load_some(s + d, n), sb = load_some(s + half + d, n);
                    store_some(to + d, rounded(a * ca) + rounded(-b * sa), n);
                    store_some(to + half + d, rounded(b * cb) + rounded(a * sb), n);
                }
            }
    }
}
