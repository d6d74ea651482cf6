/* The combined distribution of GenARM, and a draw from it, in one pass over the logits of a row; and scores of given tokens.
 *
 * log π(y) = −log Z + log π_base(y) + Σ_i w_i · log π_r,i(y); every log-softmax subtracts a constant from its row, so logits
 * are added, and only reported values are normalised. Logits are float32 in both builds of the library.
 */
#include "common.h"
#include <stdlib.h>

#define BLOCK 256 /* tokens whose weights are summed in float32; blocks are summed in double */

typedef struct {
    int64_t top_k; /* 0: off */
    float temperature, min_p;
    double top_p, uniform; /* uniform in [0, 1) */
} Sampling;

typedef struct {
    const float *const *logits; /* [rows · models]: the base's, then each ARM's */
    const float *weights;       /* [rows · models]: that of a base is 1 */
    const int64_t *sizes;       /* [models]: the vocabulary of each */
    const int64_t *excluded;    /* ids below `shared` that some model lacks */
    const Sampling *sampling;   /* [rows] */
    int64_t rows, models, shared, excluded_count;
    int64_t *tokens;  /* [rows]; −1: the logits are not finite */
    double *logprobs; /* [rows · (1 + models)]: log π, then log-softmax of each model's logits, at the token */
    float *scratch;   /* for each thread twice `shared`, rounded up to whole vectors */
} Draws;

INLINE f32x16 load_floats(const float *from, int64_t left, float rest) {
    f32x16 v = splat(rest);
    memcpy(&v, from, left < LANES ? left * sizeof(float) : 64);
    return v;
}

static float maximum(const float *values, int64_t count) {
    f32x16 most = splat(-INFINITY);
    for (int64_t i = 0; i < count; i += LANES) most = max16(most, load_floats(values + i, count - i, -INFINITY));
    return max_lanes(most);
}

/* Σ exp(values − most) block by block, in double; weights, if wanted, go to `out` (padded with zeros). */
static double sum_exp(const float *values, int64_t count, float most, float rate, float *out) {
    double sum = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        f32x16 part = {0};
        int64_t end = start + BLOCK < count ? start + BLOCK : count;
        for (int64_t i = start; i < end; i += LANES) {
            f32x16 e = exp16((load_floats(values + i, end - i, -INFINITY) - most) * rate);
            if (out) memcpy(out + i, &e, 64);
            part += e;
        }
        sum += sum_lanes(part);
    }
    return sum;
}

static double log_softmax_at(const float *logits, int64_t size, int64_t token) {
    float most = maximum(logits, size);
    return (double)logits[token] - most - log(sum_exp(logits, size, most, 1.0f, NULL));
}

/* Scores of a row, unnormalised log π; −inf where a model lacks the token. */
static void combine(const Draws *d, int64_t row, float *scores) {
    const float *const *logits = d->logits + row * d->models;
    const float *weights = d->weights + row * d->models;
    for (int64_t i = 0; i < d->shared; i += LANES) {
        int64_t left = d->shared - i;
        f32x16 sum = load_floats(logits[0] + i, left, 0);
        for (int64_t m = 1; m < d->models; m++) sum += load_floats(logits[m] + i, left, 0) * weights[m];
        memcpy(scores + i, &sum, left < LANES ? left * sizeof(float) : 64);
    }
    for (int64_t e = 0; e < d->excluded_count; e++) scores[d->excluded[e]] = -INFINITY;
}

static int64_t first_at_maximum(const float *values, int64_t count, float most) {
    for (int64_t i = 0; i < count; i++)
        if (values[i] == most) return i;
    return -1;
}

typedef struct {
    float weight;
    int32_t token;
} Candidate;

static int heavier_then_lower(const void *left, const void *right) {
    const Candidate *a = left, *b = right;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return (a->token > b->token) - (a->token < b->token);
}

#define BINS 4096
INLINE uint32_t bin_of(float weight) { /* positive floats sort like their bits */
    uint32_t bits;
    memcpy(&bits, &weight, 4);
    return bits >> 19;
}

/* Keeps the heaviest tokens (the lower id first among equals): at most `most` of them, and no more than reach `mass`.
 *
 * A histogram over the leading bits of the weights finds the bin where the limit falls; only that bin is sorted.
 */
static void keep_heaviest(float *weights, int64_t count, int64_t most, double mass) {
    int32_t *counts = calloc(BINS, sizeof *counts);
    double *sums = calloc(BINS, sizeof *sums);
    for (int64_t i = 0; i < count; i++) {
        uint32_t bin = bin_of(weights[i]);
        counts[bin]++;
        sums[bin] += weights[i];
    }
    int64_t kept = 0, edge = BINS - 1;
    double sum = 0;
    while (edge > 0 && kept + counts[edge] <= most && sum + sums[edge] < mass) {
        kept += counts[edge];
        sum += sums[edge];
        edge--;
    }
    Candidate *candidates = malloc((counts[edge] + 1) * sizeof *candidates);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bin = bin_of(weights[i]);
        if (bin == edge) candidates[found++] = (Candidate){weights[i], (int32_t)i};
        if (bin <= edge) weights[i] = 0;
    }
    qsort(candidates, found, sizeof *candidates, heavier_then_lower);
    for (int64_t i = 0; i < found && kept < most && (sum < mass || kept == 0); i++) {
        weights[candidates[i].token] = candidates[i].weight;
        sum += candidates[i].weight;
        kept++;
    }
    free(candidates);
    free(sums);
    free(counts);
}

/* Of up to BLOCK weights, or of all of them block by block. */
static double sum_of(const float *weights, int64_t count) {
    double sum = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        f32x16 part = {0};
        int64_t end = start + BLOCK < count ? start + BLOCK : count;
        for (int64_t i = start; i < end; i += LANES) part += load_floats(weights + i, end - i, 0);
        sum += sum_lanes(part);
    }
    return sum;
}

/* Top-k, then top-p of what that left, then min-p; the heaviest weight is 1. */
static void filter(float *weights, int64_t count, const Sampling *s) {
    if (s->top_k && s->top_k < count) keep_heaviest(weights, count, s->top_k, INFINITY);
    if (s->top_p < 1) keep_heaviest(weights, count, count, s->top_p * sum_of(weights, count));
    if (s->min_p > 0)
        for (int64_t i = 0; i < count; i++)
            if (weights[i] < s->min_p) weights[i] = 0;
}

/* The first token at which the cumulative weight exceeds uniform · total; with rounding, the last that has a weight. */
static int64_t inverse_cdf(const float *weights, int64_t count, double uniform) {
    double target = uniform * sum_of(weights, count), before = 0;
    int64_t start = 0, last = -1;
    for (; start + BLOCK < count; start += BLOCK) {
        double sum = sum_of(weights + start, BLOCK);
        if (before + sum > target) break;
        before += sum;
    }
    for (int64_t i = start; i < count; i++) {
        before += weights[i];
        if (weights[i] > 0) last = i;
        if (before > target && last == i) return i;
    }
    while (last < 0 && start > 0) last = weights[--start] > 0 ? start : -1;
    return last;
}

static int64_t draw_row(const float *scores, int64_t count, float most, const Sampling *s, float *weights) {
    if (s->temperature == 0) return first_at_maximum(scores, count, most);
    /* after the subtraction, so that a temperature near 0 gives 0 and −inf */
    float rate = 1.0f / (s->temperature < 1.17549435e-38f ? 1.17549435e-38f : s->temperature);
    sum_exp(scores, count, most, rate, weights);
    filter(weights, count, s);
    return inverse_cdf(weights, count, s->uniform);
}

/* Draws a token for every row. */
void draw(const Draws *d, int threads) {
    int64_t width = (d->shared + LANES - 1) / LANES * LANES;
#pragma omp parallel num_threads(threads)
    {
        int thread = 0;
#ifdef _OPENMP
        extern int omp_get_thread_num(void);
        thread = omp_get_thread_num();
#endif
        float *own = d->scratch + thread * 2 * width;
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < d->rows; row++) {
            const float *const *logits = d->logits + row * d->models;
            const float *scores = logits[0];
            if (d->models > 1 || d->excluded_count) {
                combine(d, row, own);
                scores = own;
            }
            float most = maximum(scores, d->shared);
            double sum = sum_exp(scores, d->shared, most, 1.0f, NULL);
            double *logprobs = d->logprobs + row * (1 + d->models);
            d->tokens[row] = -1;
            if (!isfinite(most) || !isfinite(sum)) continue;
            int64_t token = draw_row(scores, d->shared, most, d->sampling + row, own + width);
            d->tokens[row] = token;
            logprobs[0] = (double)scores[token] - most - log(sum);
            for (int64_t m = 0; m < d->models; m++) logprobs[1 + m] = log_softmax_at(logits[m], d->sizes[m], token);
        }
    }
}

/* Log-softmax of each row of logits, `stride` floats apart, at one token. */
void score(const float *logits, int64_t stride, int64_t size, const int64_t *tokens, int64_t rows, double *logprobs,
           int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) logprobs[row] = log_softmax_at(logits + row * stride, size, tokens[row]);
}
