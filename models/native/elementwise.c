/* Normalisation and activation, each in one pass, rounded where transformers' separate operations round. */
#include "common.h"

/* Root mean square normalisation (arXiv 1910.07467): out = weight · round(input / √(mean(input²) + ε)). */
void rms_norm(const elem *input, const elem *weight, elem *out, int64_t rows, int64_t dim, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const elem *from = input + row * dim;
        elem *to = out + row * dim;
        f32x16 squares = {0};
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) {
            f32x16 v = load16(from + d);
            squares += v * v;
        }
        float sum = sum_lanes(squares);
        for (; d < dim; d++) sum += to_float(from[d]) * to_float(from[d]);
        float scale = 1.0f / sqrtf(sum / (float)dim + epsilon);
        for (d = 0; d < dim; d += LANES) {
            int n = dim - d < LANES ? (int)(dim - d) : LANES;
            if (n == LANES) store16(to + d, load16(weight + d) * rounded16(load16(from + d) * scale));
            else store_some(to + d, load_some(weight + d, n) * rounded16(load_some(from + d, n) * scale), n);
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
        f32x16 g = n == LANES ? load16(gate + at) : load_some(gate + at, n);
        f32x16 u = n == LANES ? load16(up + at) : load_some(up + at, n);
        f32x16 active = rounded16(g / (1.0f + exp16(-g)));
        if (n == LANES) store16(out + at, active * u);
        else store_some(out + at, active * u, n);
    }
}
