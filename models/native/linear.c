/* Linear layers over packed weights.
 *
 * A packed weight is [panels][inner / STEP][PANEL][STEP]: PANEL output features side by side, so that one step of the
 * inner dimension is two vectors. Each output is one chain of additions over the inner dimension, in order, however the
 * rows and panels are tiled.
 */
#include "common.h"

#define PANEL 32
#define MOST_ROWS 12

typedef struct {
    const elem *input;  /* [rows, inner] */
    const elem *weight; /* packed by pack */
    const float *bias;  /* [features], or NULL */
    void *out;          /* [rows, features] of elem, or of float32 where `wide` */
    int64_t rows, inner, features;
    int wide;
} Product;

/* Rows go in blocks of nearly equal height: where block `b` of all starts. */
INLINE int64_t block_count(int64_t rows) { return (rows + MOST_ROWS - 1) / MOST_ROWS; }
INLINE int64_t block_start(int64_t rows, int64_t block) { return rows * block / block_count(rows); }

INLINE void store_panel(const Product *p, int64_t row, int64_t feature, f32x16 acc) {
    int64_t left = p->features - feature;
    int n = left < LANES ? (int)left : LANES;
    if (n <= 0) return;
    if (p->bias) {
        f32x16 bias = {0};
        memcpy(&bias, p->bias + feature, n * sizeof(float));
        acc += bias;
    }
    int64_t at = row * p->features + feature;
    if (p->wide) memcpy((float *)p->out + at, &acc, n * sizeof(float));
    else if (n == LANES) store16((elem *)p->out + at, acc);
    else store_some((elem *)p->out + at, acc, n);
}

/* The block of `rows` rows from `row` on by `panels` panels from `panel` on; both counts are constants where inlined. */
INLINE void tile(const Product *p, int64_t row, int64_t panel, const int rows, const int panels) {
    f32x16 acc[MOST_ROWS][8];
    const int64_t panel_size = p->inner * PANEL;
    const elem *weight = p->weight + panel * panel_size, *input[MOST_ROWS / 3];
    for (int r = 0; r < rows; r += 3) input[r / 3] = p->input + (row + r) * p->inner; /* three rows from each address */
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < 2 * panels; v++) acc[r][v] = (f32x16){0};
    for (int64_t k = p->inner / STEP; k; k--) {
        u32x16 b[8];
#pragma GCC unroll 8
        for (int v = 0; v < 2 * panels; v++) b[v] = load_steps(weight + v / 2 * panel_size + v % 2 * LANES * STEP);
        /* While several rows use this panel, memory can bring the next one. Asking past the last one is harmless. */
        if (panels == 1)
            for (int v = 0; v < 2; v++) __builtin_prefetch(weight + panel_size + v * LANES * STEP, 0, 2);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            u32x16 a = splat_step(input[r / 3] + r % 3 * p->inner);
#pragma GCC unroll 8
            for (int v = 0; v < 2 * panels; v++) acc[r][v] = dot(acc[r][v], a, b[v]);
        }
        weight += PANEL * STEP;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r += 3) input[r / 3] += STEP;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < 2 * panels; v++) store_panel(p, row + r, panel * PANEL + v * LANES, acc[r][v]);
}

#define ROWS(n, panels) case n: tile(p, row, panel, n, panels); return;

/* Few rows take several panels at once, so that there are always enough independent chains. */
static void tile4(const Product *p, int64_t row, int64_t panel, int rows) {
    switch (rows) { ROWS(1, 4) ROWS(2, 4) ROWS(3, 4) }
}
static void tile2(const Product *p, int64_t row, int64_t panel, int rows) {
    switch (rows) { ROWS(1, 2) ROWS(2, 2) ROWS(3, 2) ROWS(4, 2) ROWS(5, 2) ROWS(6, 2) }
}
static void tile1(const Product *p, int64_t row, int64_t panel, int rows) {
    switch (rows) {
        ROWS(1, 1) ROWS(2, 1) ROWS(3, 1) ROWS(4, 1) ROWS(5, 1) ROWS(6, 1)
        ROWS(7, 1) ROWS(8, 1) ROWS(9, 1) ROWS(10, 1) ROWS(11, 1) ROWS(12, 1)
    }
}

/* All rows by the panels first..end−1. */
static void multiply(const Product *p, int64_t first, int64_t end) {
    int64_t width = p->rows <= 3 ? 4 : p->rows <= 6 ? 2 : 1;
    for (int64_t panel = first; panel < end;) {
        while (width > end - panel) width /= 2;
        for (int64_t block = 0; block < block_count(p->rows); block++) {
            int64_t row = block_start(p->rows, block);
            int height = (int)(block_start(p->rows, block + 1) - row);
            (width == 4 ? tile4 : width == 2 ? tile2 : tile1)(p, row, panel, height);
        }
        panel += width;
    }
}

/* Packs weight [features, inner] (stride `inner`) into panels; rows past the last feature are zeros. */
void pack(const elem *weight, int64_t features, int64_t inner, elem *packed) {
    int64_t panels = (features + PANEL - 1) / PANEL;
#pragma omp parallel for
    for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t k = 0; k < inner; k++)
            for (int64_t f = 0; f < PANEL; f++) {
                int64_t feature = panel * PANEL + f;
                packed[panel * inner * PANEL + (k / STEP) * PANEL * STEP + f * STEP + k % STEP] =
                    feature < features ? weight[feature * inner + k] : (elem)0;
            }
}

/* out = input · weightᵀ + bias. */
void linear(const elem *input, const elem *weight, const float *bias, void *out, int64_t rows, int64_t inner,
            int64_t features, int wide, int threads) {
    Product p = {input, weight, bias, out, rows, inner, features, wide};
    int64_t panels = (features + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) multiply(&p, panels * t / threads, panels * (t + 1) / threads);
}

typedef struct {
    int64_t first, rows, rank; /* the rows that an adapter acts on; its rank, a multiple of STEP */
    const elem *a, *b;         /* packed [rank, inner] and [features, rank] */
    float scaling;
} Update;

/* out[rows] += scaling · (input[rows] · Aᵀ) · Bᵀ for each update, rounded where PEFT's separate operations round.
 *
 * `low` and `delta` hold all rows of the step by `most_rank` and by `features` elements.
 */
void low_rank(const elem *input, elem *out, elem *low, elem *delta, const Update *updates, int64_t count,
              int64_t most_rank, int64_t inner, int64_t features, int threads) {
    int64_t panels = (features + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t u = 0; u < count; u++) {
            const Update *up = updates + u;
            Product p = {input + up->first * inner, up->a, NULL, low + up->first * most_rank, up->rows, inner, up->rank, 0};
            multiply(&p, 0, (up->rank + PANEL - 1) / PANEL);
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < count * panels; task++) {
            const Update *up = updates + task / panels;
            int64_t panel = task % panels, feature = panel * PANEL;
            int64_t width = features - feature < PANEL ? features - feature : PANEL;
            Product p = {low + up->first * most_rank, up->b, NULL, delta + up->first * features,
                         up->rows, up->rank, features, 0};
            multiply(&p, panel, panel + 1);
            for (int64_t row = up->first; row < up->first + up->rows; row++)
                for (int64_t v = 0; v < width; v += LANES) {
                    int n = width - v < LANES ? (int)(width - v) : LANES;
                    int64_t at = row * features + feature + v;
                    f32x16 scaled = rounded16(load_some(delta + at, n) * up->scaling);
                    store_some(out + at, load_some(out + at, n) + scaled, n);
                }
        }
    }
}
