/* The combined distribution of GenARM, and a draw from it; and scores of given tokens.
 *
 * log π(y) = −log Z + log π_base(y) + Σ_i w_i · log π_r,i(y); every log-softmax subtracts a constant from its row, so logits
 * are added, and only reported values are normalised. Logits are float32 in both builds of the library.
 *
 * A row's logits are read twice: to combine them and find the maxima, and for the sums of exponentials. At temperature 1 what
 * these sum are the weights to draw by. A row that has a NaN has no distribution: sums of exponentials keep it.
 */
#include "vector.h"
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

/* The first of `left` numbers; lanes after the last are `rest`. */
INLINE vfloat load_floats(const float *from, int64_t left, float rest) {
    if (left >= LANES) return load(from);
    vfloat v = splat(rest);
    memcpy(&v, from, left * sizeof(float));
    return v;
}

static float maximum(const float *values, int64_t count) {
    vfloat most = splat(-INFINITY);
    for (int64_t i = 0; i < count; i += LANES) most = max_of(most, load_floats(values + i, count - i, -INFINITY));
    return max_lanes(most);
}

/* Σ exp((values − most) · rate) block by block, in double. What is summed goes to `out` (padded with zeros), and each block's
 * sum to `sums`, if they are wanted. */
static double sum_exp(const float *values, int64_t count, float most, float rate, float *out, double *sums) {
    double sum = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        vfloat part = {0};
        int64_t end = start + BLOCK < count ? start + BLOCK : count;
        for (int64_t i = start; i < end; i += LANES) {
            vfloat e = exp_of((load_floats(values + i, end - i, -INFINITY) - most) * rate);
            if (out) store(out + i, e);
            part += e;
        }
        double block = sum_lanes(part);
        if (sums) sums[start / BLOCK] = block;
        sum += block;
    }
    return sum;
}

/* The most of a row's scores and of each model's logits; then the logs of their sums of exponentials. */
typedef struct {
    float most;
    double log_sum;
} Normaliser;

INLINE double log_softmax(const float *logits, Normaliser n, int64_t token) {
    return (double)logits[token] - n.most - n.log_sum;
}

/* Scores of a row, unnormalised log π, −inf where a model lacks the token; and the maxima of them and of the models. */
static void combine(const Draws *d, int64_t row, float *scores, Normaliser *of_scores, Normaliser *of_models) {
    const float *const *logits = d->logits + row * d->models;
    const float *weights = d->weights + row * d->models;
    vfloat most_score = splat(-INFINITY), most[d->models];
    for (int64_t m = 0; m < d->models; m++) most[m] = splat(-INFINITY);
    for (int64_t i = 0; i < d->shared; i += LANES) {
        int64_t left = d->shared - i;
        vfloat sum = load_floats(logits[0] + i, left, -INFINITY);
        most[0] = max_of(most[0], sum);
        for (int64_t m = 1; m < d->models; m++) {
            vfloat v = load_floats(logits[m] + i, left, -INFINITY);
            most[m] = max_of(most[m], v);
            sum += v * weights[m];
        }
        memcpy(scores + i, &sum, left < LANES ? left * sizeof(float) : sizeof sum);
        most_score = max_of(most_score, left < LANES ? load_floats(scores + i, left, -INFINITY) : sum);
    }
    of_scores->most = max_lanes(most_score);
    for (int64_t m = 0; m < d->models; m++) {
        float shared = max_lanes(most[m]), rest = maximum(logits[m] + d->shared, d->sizes[m] - d->shared);
        of_models[m].most = shared > rest ? shared : rest;
    }
    for (int64_t e = 0; e < d->excluded_count; e++) scores[d->excluded[e]] = -INFINITY;
    if (d->excluded_count) of_scores->most = maximum(scores, d->shared);
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

/* Sums of weights by block, and of all. */
static double sum_blocks(const float *weights, int64_t count, double *sums) {
    double sum = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        vfloat part = {0};
        int64_t end = start + BLOCK < count ? start + BLOCK : count;
        for (int64_t i = start; i < end; i += LANES) part += load_floats(weights + i, end - i, 0);
        sum += sums[start / BLOCK] = sum_lanes(part);
    }
    return sum;
}

/* Top-k, then top-p of what that left, then min-p; the heaviest weight is 1. Returns the sum of what is left. */
static double filter(float *weights, int64_t count, const Sampling *s, double sum, double *sums) {
    if (s->top_k && s->top_k < count) {
        keep_heaviest(weights, count, s->top_k, INFINITY);
        sum = sum_blocks(weights, count, sums);
    }
    if (s->top_p < 1) keep_heaviest(weights, count, count, s->top_p * sum);
    if (s->min_p > 0)
        for (int64_t i = 0; i < count; i++)
            if (weights[i] < s->min_p) weights[i] = 0;
    return s->top_p < 1 || s->min_p > 0 ? sum_blocks(weights, count, sums) : sum;
}

/* The first token at which the cumulative weight exceeds uniform · total; with rounding, the last that has a weight. */
static int64_t inverse_cdf(const float *weights, int64_t count, double uniform, double total, const double *sums) {
    double target = uniform * total, before = 0;
    int64_t start = 0, last = -1;
    for (; start + BLOCK < count; start += BLOCK) {
        if (before + sums[start / BLOCK] > target) break;
        before += sums[start / BLOCK];
    }
    for (int64_t i = start; i < count; i++) {
        before += weights[i];
        if (weights[i] > 0) last = i;
        if (before > target && last == i) return i;
    }
    while (last < 0 && start > 0) last = weights[--start] > 0 ? start : -1;
    return last;
}

/* Draws a row's token; `sum`, `weights` and `sums` are those of sum_exp at temperature 1. */
static int64_t draw_token(const float *scores, int64_t count, float most, const Sampling *s, double sum, float *weights,
                          double *sums) {
    if (s->temperature == 0) return first_at_maximum(scores, count, most);
    if (s->temperature != 1) {
        /* after the subtraction, so that a temperature near 0 gives 0 and −inf */
        float rate = 1.0f / (s->temperature < 1.17549435e-38f ? 1.17549435e-38f : s->temperature);
        sum = sum_exp(scores, count, most, rate, weights, sums);
    }
    sum = filter(weights, count, s, sum, sums);
    return inverse_cdf(weights, count, s->uniform, sum, sums);
}

/* Draws a token for one row; `own` holds twice `width` floats. */
static void draw_row(const Draws *d, int64_t row, float *own, int64_t width) {
    const float *const *logits = d->logits + row * d->models, *scores = logits[0];
    double *logprobs = d->logprobs + row * (1 + d->models), sums[width / BLOCK + 1];
    Normaliser of_scores, of_models[d->models];
    int is_base_alone = d->models == 1 && !d->excluded_count && d->shared == d->sizes[0];
    d->tokens[row] = -1;
    if (is_base_alone) of_scores.most = maximum(scores, d->shared);
    else combine(d, row, own, &of_scores, of_models), scores = own;
    double sum = sum_exp(scores, d->shared, of_scores.most, 1.0f, own + width, sums);
    if (!isfinite(of_scores.most) || !isfinite(sum)) return;
    of_scores.log_sum = log(sum);
    if (is_base_alone) of_models[0] = of_scores;
    else
        for (int64_t m = 0; m < d->models; m++) {
            of_models[m].log_sum = log(sum_exp(logits[m], d->sizes[m], of_models[m].most, 1.0f, NULL, NULL));
            if (!isfinite(of_models[m].log_sum)) return;
        }
    int64_t token = draw_token(scores, d->shared, of_scores.most, d->sampling + row, sum, own + width, sums);
    d->tokens[row] = token;
    logprobs[0] = log_softmax(scores, of_scores, token);
    for (int64_t m = 0; m < d->models; m++) logprobs[1 + m] = log_softmax(logits[m], of_models[m], token);
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
        for (int64_t row = 0; row < d->rows; row++) draw_row(d, row, own, width);
    }
}

/* Log-softmax of each row of logits, `stride` floats apart, at one token. */
void score(const float *logits, int64_t stride, int64_t size, const int64_t *tokens, int64_t rows, double *logprobs,
           int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *from = logits + row * stride;
        Normaliser n = {maximum(from, size), 0};
        n.log_sum = log(sum_exp(from, size, n.most, 1.0f, NULL, NULL));
        logprobs[row] = log_softmax(from, n, tokens[row]);
    }
}
