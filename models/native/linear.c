/* Linear layers over packed weights.
 *
 * A packed weight is [panels][inner / STEP][PANEL][STEP]: PANEL output features side by side, so that one step of the
 * inner dimension is two vectors. Each output is one chain of additions over the inner dimension, in order, however the
 * rows, the panels and the inner dimension are cut into blocks.
 */
#include "element.h"

#define VECTORS 2 /* of a panel */
#define PANEL (VECTORS * LANES)
#define MOST_PANELS 4               /* of a tile */
#define DEPTH (24576 / (PANEL * 4)) /* steps of a panel that stay in the first cache while the rows go by */
#define MOST_ROWS 144               /* that stay in the second cache while the panels go by; a multiple of TILE_ROWS */

/* The layout of a packed weight, for those who make room for it. */
int64_t panel_features(void) { return PANEL; }
int64_t inner_step(void) { return STEP; }

enum { ELEMS, FLOATS, FACTORS };

typedef struct {
    const factor *input; /* [rows, inner / STEP] */
    const elem *weight;  /* packed by pack */
    const float *bias;   /* [features], or NULL */
    void *out;           /* [rows, features] */
    int64_t rows, inner, features;
    int form; /* of the output: elements, float32, or factors, which are rounded to elements */
} Product;

/* A part of the product: rows by some panels, over some steps of the inner dimension. */
typedef struct {
    int64_t row, first, steps; /* of the inner dimension: the first step, and how many */
    const factor *weight;      /* the first panel's first step */
    int64_t stride;            /* from panel to panel */
    float *sums;               /* [rows][panels · PANEL]: those of the steps before are added to */
    const char *ahead;         /* what to ask memory for meanwhile: so many bytes a step */
    int64_t pace;
} Part;

/* `rows` rows by `panels` panels of a part; both counts are constants where this is inlined. */
INLINE void tile(const Product *p, const Part *part, const int rows, const int panels) {
    vfloat acc[TILE_ROWS][VECTORS * MOST_PANELS];
    const int vectors = VECTORS * panels;
    const int64_t inner = p->inner / STEP, stride = part->stride;
    const factor *weight = part->weight, *input[(TILE_ROWS + 2) / 3]; /* three rows from each address */
    for (int r = 0; r < rows; r += 3) input[r / 3] = p->input + (part->row + r) * inner + part->first;
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            acc[r][v] = part->first ? load(part->sums + (r * vectors + v) * LANES) : (vfloat){0};
    const char *ahead = part->ahead;
#pragma GCC unroll 2
    for (int64_t k = part->steps; k; k--) {
        vfactor b[VECTORS * MOST_PANELS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) b[v] = load_factors(weight + v / VECTORS * stride + v % VECTORS * LANES);
        if (panels == 1) {
            for (int64_t line = 0; line < PANEL * 4; line += 64) __builtin_prefetch(ahead + line, 0, 2);
            ahead += part->pace;
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            vfactor a = splat_factor(input[r / 3] + r % 3 * inner);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] = dot(acc[r][v], a, b[v]);
        }
        weight += PANEL;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r += 3) input[r / 3]++;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) store(part->sums + (r * vectors + v) * LANES, acc[r][v]);
}

/* Few rows take several panels at once, so that there are always enough independent chains. */
INLINE int panels_for(int64_t rows) {
    return rows * VECTORS * 4 <= ACCUMULATORS ? 4 : rows * VECTORS * 2 <= ACCUMULATORS ? 2 : 1;
}

#define ROWS(n, panels) \
    case n: \
        if (n * VECTORS * panels <= ACCUMULATORS) tile(p, part, n, panels); \
        return;

static void tile4(const Product *p, const Part *part, int rows) {
    switch (rows) { ROWS(1, 4) ROWS(2, 4) ROWS(3, 4) }
}
static void tile2(const Product *p, const Part *part, int rows) {
    switch (rows) { ROWS(1, 2) ROWS(2, 2) ROWS(3, 2) ROWS(4, 2) ROWS(5, 2) ROWS(6, 2) }
}
static void tile1(const Product *p, const Part *part, int rows) {
    switch (rows) {
        ROWS(1, 1) ROWS(2, 1) ROWS(3, 1) ROWS(4, 1) ROWS(5, 1) ROWS(6, 1)
        ROWS(7, 1) ROWS(8, 1) ROWS(9, 1) ROWS(10, 1) ROWS(11, 1) ROWS(12, 1)
    }
}

/* `total` in blocks of nearly equal size, at most `most` each: how many, and where block b of them starts. */
INLINE int64_t block_count(int64_t total, int64_t most) { return (total + most - 1) / most; }
INLINE int64_t block_start(int64_t total, int64_t count, int64_t b) { return total * b / count; }

/* `count` factors from elements; used where these differ. */
static void widen(factor *to, const elem *from, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) store_factors(to + i, widen_factors(from + i * STEP));
}

/* Writes the sums of some rows and panels, with the bias. */
static void finish(const Product *p, int64_t row, int64_t rows, int64_t panel, int panels, const float *sums) {
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t feature = panel * PANEL; feature < (panel + panels) * PANEL; feature += LANES, sums += LANES) {
            int64_t left = p->features - feature, at = r * p->features + feature;
            int n = left < LANES ? (int)left : LANES;
            if (n <= 0) continue;
            vfloat sum = load(sums);
            if (p->bias) sum += load_part(p->bias + feature, n);
            if (p->form == FACTORS) sum = rounded(sum);
            if (p->form == ELEMS || (p->form == FACTORS && STEP > 1)) store_some((elem *)p->out + at, sum, n);
            else store_part((float *)p->out + at, sum, n);
        }
}

/* The rows first..end−1, which stay in the cache, by `panels` panels from `panel` on. */
static void multiply_panels(const Product *p, int64_t first, int64_t end, int64_t panel, int panels) {
    float sums[MOST_ROWS * PANEL];
    factor wide[WIDENS ? MOST_PANELS * DEPTH * PANEL : 1];
    int64_t inner = p->inner / STEP, rows = end - first, blocks = block_count(rows, TILE_ROWS);
    int64_t depths = WIDENS || blocks > 1 ? block_count(inner, DEPTH) : 1;
    for (int64_t d = 0; d < depths; d++) {
        int64_t k = block_start(inner, depths, d), k_end = block_start(inner, depths, d + 1);
        const elem *weight = p->weight + (panel * inner + k) * PANEL * STEP;
        int64_t pace = (int64_t)(PANEL * STEP * sizeof(elem)) / blocks;
        const char *ahead = (const char *)(weight + (k_end - k) * PANEL * STEP); /* past the last weight it does no harm */
        Part part = {0, k, k_end - k, (const factor *)weight, inner * PANEL, sums, ahead, pace};
        if (WIDENS) {
            part.weight = wide;
            part.stride = part.steps * PANEL;
            for (int v = 0; v < panels; v++)
                widen(wide + v * part.stride, weight + v * inner * PANEL * STEP, part.steps * PANEL);
        }
        for (int64_t b = 0; b < blocks; b++) {
            int64_t row = block_start(rows, blocks, b);
            part.row = first + row;
            part.sums = sums + row * panels * PANEL;
            part.ahead = ahead + b * pace * part.steps;
            (panels == 4 ? tile4 : panels == 2 ? tile2 : tile1)(p, &part, (int)(block_start(rows, blocks, b + 1) - row));
        }
    }
    finish(p, first, rows, panel, panels, sums);
}

/* All rows by the panels first..end−1. */
static void multiply(const Product *p, int64_t first, int64_t end) {
    int64_t chunks = block_count(p->rows, MOST_ROWS);
    int most = panels_for(p->rows);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t row = block_start(p->rows, chunks, chunk), row_end = block_start(p->rows, chunks, chunk + 1);
        for (int64_t panel = first; panel < end;) {
            int panels = most;
            while (panels > end - panel) panels /= 2;
            multiply_panels(p, row, row_end, panel, panels);
            panel += panels;
        }
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

/* out = input · weightᵀ + bias; `wide`: the output is float32. */
void linear(const factor *input, const elem *weight, const float *bias, void *out, int64_t rows, int64_t inner,
            int64_t features, int wide, int threads) {
    Product p = {input, weight, bias, out, rows, inner, features, wide ? FLOATS : ELEMS};
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
void low_rank(const factor *input, elem *out, factor *low, elem *delta, const Update *updates, int64_t count,
              int64_t most_rank, int64_t inner, int64_t features, int threads) {
    int64_t panels = (features + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t u = 0; u < count; u++) {
            const Update *up = updates + u;
            Product p = {input + up->first * (inner / STEP), up->a, NULL, low + up->first * (most_rank / STEP),
                         up->rows, inner, up->rank, FACTORS};
            multiply(&p, 0, (up->rank + PANEL - 1) / PANEL);
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < count * panels; task++) {
            const Update *up = updates + task / panels;
            int64_t panel = task % panels, feature = panel * PANEL;
            int64_t width = features - feature < PANEL ? features - feature : PANEL;
            Product p = {low + up->first * (most_rank / STEP), up->b, NULL, delta + up->first * features,
                         up->rows, up->rank, features, ELEMS};
            multiply(&p, panel, panel + 1);
            for (int64_t row = up->first; row < up->first + up->rows; row++)
                for (int64_t v = 0; v < width; v += LANES) {
                    int n = width - v < LANES ? (int)(width - v) : LANES;
                    int64_t at = row * features + feature + v;
                    vfloat scaled = rounded(load_some(delta + at, n) * up->scaling);
                    store_some(out + at, load_some(out + at, n) + scaled, n);
                }
        }
    }
}
