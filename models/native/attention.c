/* Attention over the block cache, for decodes and prefill chunks alike.
 *
 * The cache of a layer: keys [blocks, heads, key_dim / STEP, LANES, STEP], so that one step of the inner dimension is a vector
 * of LANES tokens; values [blocks, heads, LANES, value_dim], and LANES elements after the last, since whole vectors are read.
 * A block holds LANES tokens. key_dim is a multiple of STEP.
 *
 * Each query goes over its keys in spans of SPAN tokens that start at position 0, with a running maximum (online softmax,
 * arXiv 1805.02867), all in float32. Which queries share a tile changes none of its numbers.
 */
#include "common.h"

#define SPAN_BLOCKS 4
#define SPAN (SPAN_BLOCKS * LANES)
#define MOST_QUERIES 12
#define MOST_DIM 512 /* a multiple of LANES; larger heads are refused */

typedef struct {
    int64_t first, count; /* consecutive tokens of one sequence in the packed step */
    int64_t position;     /* of the first */
    const int64_t *table; /* the sequence's blocks */
} Chunk;

typedef struct {
    const elem *query, *key, *value; /* a step's tokens; each with a stride per token and per head */
    int64_t query_strides[2], key_strides[2], value_strides[2];
    elem *keys, *values; /* the layer's cache */
    elem *out;           /* [tokens, query_heads, value_dim], dense */
    const Chunk *chunks;
    int64_t chunk_count, heads, group, key_dim, value_dim;
    int64_t window; /* a token sees itself and window − 1 before it; 0: all before it */
    float scaling;
} Step;

/* Writes the keys and values of a chunk and head to the cache. */
static void write_chunk(const Step *s, const Chunk *chunk, int64_t head) {
    for (int64_t i = 0; i < chunk->count; i++) {
        int64_t token = chunk->first + i, position = chunk->position + i, lane = position % LANES;
        int64_t block = chunk->table[position / LANES] * s->heads + head;
        const elem *key = s->key + token * s->key_strides[0] + head * s->key_strides[1];
        const elem *value = s->value + token * s->value_strides[0] + head * s->value_strides[1];
        elem *keys = s->keys + block * s->key_dim * LANES + lane * STEP;
        for (int64_t d = 0; d < s->key_dim; d++) keys[d / STEP * LANES * STEP + d % STEP] = key[d];
        memcpy(s->values + (block * LANES + lane) * s->value_dim, value, s->value_dim * sizeof(elem));
    }
}

/* A tile: up to MOST_QUERIES queries of one sequence that share a key head. */
typedef struct {
    _Alignas(64) float scores[MOST_QUERIES][SPAN];
    _Alignas(64) float sums[MOST_QUERIES][MOST_DIM];
    _Alignas(64) elem queries[MOST_QUERIES * MOST_DIM]; /* [key_dim / STEP][queries][STEP] */
    float most[MOST_QUERIES], total[MOST_QUERIES];
    int64_t positions[MOST_QUERIES];
} Tile;

/* scores[r] of `blocks` blocks from `first` on; rows and blocks are constants where this is inlined. */
INLINE void score(Tile *t, const elem *const *keys, int64_t steps, int first, const int rows, const int blocks) {
    f32x16 acc[MOST_QUERIES][SPAN_BLOCKS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < blocks; v++) acc[r][v] = (f32x16){0};
    const elem *queries = t->queries;
    for (int64_t k = 0; k < steps; k++) {
        u32x16 b[SPAN_BLOCKS];
#pragma GCC unroll 4
        for (int v = 0; v < blocks; v++) b[v] = load_steps(keys[first + v] + k * LANES * STEP);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            u32x16 a = splat_step(queries + r * STEP);
#pragma GCC unroll 4
            for (int v = 0; v < blocks; v++) acc[r][v] = dot(acc[r][v], a, b[v]);
        }
        queries += rows * STEP;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < blocks; v++) memcpy(t->scores[r] + (first + v) * LANES, &acc[r][v], 64);
}

/* sums[r][dim ...] += Σ_token scores[r][token] · values[token][dim ...], token by token. */
INLINE void weigh(Tile *t, const elem *const *values, int64_t tokens, int64_t value_dim, int64_t dim, const int rows,
                  const int vectors) {
    f32x16 acc[MOST_QUERIES][4];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) memcpy(&acc[r][v], t->sums[r] + dim + v * LANES, 64);
    for (int64_t token = 0; token < tokens; token++) {
        const elem *from = values[token / LANES] + token % LANES * value_dim + dim;
        f32x16 b[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) b[v] = load16(from + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) acc[r][v] += b[v] * t->scores[r][token];
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) memcpy(t->sums[r] + dim + v * LANES, &acc[r][v], 64);
}

/* Few rows take more vectors at once, so that there are always enough independent chains. */
#define FOR_ROWS(rows, BODY) \
    switch (rows) { \
        case 1: BODY(1, 4) break; case 2: BODY(2, 4) break; case 3: BODY(3, 4) break; case 4: BODY(4, 4) break; \
        case 5: BODY(5, 4) break; case 6: BODY(6, 4) break; case 7: BODY(7, 2) break; case 8: BODY(8, 2) break; \
        case 9: BODY(9, 2) break; case 10: BODY(10, 2) break; case 11: BODY(11, 2) break; case 12: BODY(12, 2) break; \
    }

static void score_span(Tile *t, const elem *const *keys, int64_t steps, int rows) {
#define BODY(n, wide) for (int first = 0; first < SPAN_BLOCKS; first += wide) score(t, keys, steps, first, n, wide);
    FOR_ROWS(rows, BODY)
#undef BODY
}

static void weigh_span(Tile *t, const elem *const *values, int64_t tokens, int64_t value_dim, int rows) {
    int64_t dim = 0;
#define BODY(n, wide) \
    for (; dim + wide * LANES <= value_dim; dim += wide * LANES) weigh(t, values, tokens, value_dim, dim, n, wide); \
    for (; dim < value_dim; dim += LANES) weigh(t, values, tokens, value_dim, dim, n, 1);
    FOR_ROWS(rows, BODY)
#undef BODY
}

/* Exponentials of a span's scores beside the running maximum; a token that is not seen gets exactly 0. */
static void soften(Tile *t, int r, int64_t start, int64_t value_dim, int64_t window, float scaling) {
    int64_t last = t->positions[r] - start, first = window ? last - window + 1 : 0;
    int32_t end = last < SPAN ? (int32_t)last : SPAN, begin = first < 0 ? 0 : first < SPAN ? (int32_t)first : SPAN;
    f32x16 most = splat(-INFINITY), scores[SPAN_BLOCKS];
    for (int v = 0; v < SPAN_BLOCKS; v++) {
        i32x16 at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        at += v * LANES;
        memcpy(&scores[v], t->scores[r] + v * LANES, 64);
        scores[v] = select16((at <= end) & (at >= begin), scores[v] * scaling, splat(-INFINITY));
        most = max16(most, scores[v]);
    }
    float now = max_lanes(most);
    if (now == -INFINITY) {
        memset(t->scores[r], 0, sizeof t->scores[r]);
        return;
    }
    if (now > t->most[r]) {
        float shrink = exp16(splat(t->most[r] - now))[0];
        for (int64_t d = 0; d < value_dim; d++) t->sums[r][d] *= shrink;
        t->total[r] *= shrink;
        t->most[r] = now;
    }
    f32x16 sum = {0};
    for (int v = 0; v < SPAN_BLOCKS; v++) {
        f32x16 p = exp16(scores[v] - t->most[r]);
        sum += p;
        memcpy(t->scores[r] + v * LANES, &p, 64);
    }
    t->total[r] += sum_lanes(sum);
}

/* A tile's work: queries first..first+rows−1 of a chunk and key head, where a chunk's queries go token by token, head by
 * head. */
typedef struct {
    const Chunk *chunk; /* NULL: there is no tile */
    int64_t head, first;
    int rows;
} Work;

/* The tile of a chunk with this number. */
INLINE Work work_of(const Step *s, const Chunk *chunk, int64_t number) {
    int64_t first = number / s->heads * MOST_QUERIES, left = chunk->count * s->group - first;
    return (Work){chunk, number % s->heads, first, left < MOST_QUERIES ? (int)left : MOST_QUERIES};
}

/* Where the span of the first token starts that a tile sees. */
INLINE int64_t first_span(const Step *s, const Work *w) {
    int64_t seen = s->window ? w->chunk->position + w->first / s->group - s->window + 1 : 0;
    return seen > 0 ? seen / SPAN * SPAN : 0;
}

INLINE int64_t end_of(const Step *s, const Work *w) {
    return w->chunk->position + (w->first + w->rows - 1) / s->group + 1;
}

/* Asks memory for a head's keys or values in a span, `size` elements a block: blocks lie apart, so that the hardware does not
 * foresee the next one. */
static void prefetch_span(const Step *s, const Work *w, const elem *layer, int64_t size, int64_t start) {
    int64_t end = end_of(s, w);
    for (int64_t at = start; at < end && at < start + SPAN; at += LANES) {
        const elem *from = layer + (w->chunk->table[at / LANES] * s->heads + w->head) * size;
        for (int64_t d = 0; d < size; d += 64 / sizeof(elem)) __builtin_prefetch(from + d);
    }
}

static void attend_tile(const Step *s, const Work *w, Tile *t) {
    const Chunk *chunk = w->chunk;
    int64_t key_dim = s->key_dim, value_dim = s->value_dim, head = w->head, first = w->first;
    int rows = w->rows;
    for (int r = 0; r < rows; r++) {
        int64_t token = (first + r) / s->group, query_head = head * s->group + (first + r) % s->group;
        const elem *query =
            s->query + (chunk->first + token) * s->query_strides[0] + query_head * s->query_strides[1];
        for (int64_t d = 0; d < key_dim; d++)
            t->queries[d / STEP * rows * STEP + r * STEP + d % STEP] = query[d];
        memset(t->sums[r], 0, sizeof t->sums[r]);
        t->total[r] = 0;
        t->most[r] = -INFINITY;
        t->positions[r] = chunk->position + token;
    }
    int64_t end = end_of(s, w);
    for (int64_t start = first_span(s, w); start < end; start += SPAN) {
        const elem *keys[SPAN_BLOCKS], *values[SPAN_BLOCKS];
        for (int v = 0; v < SPAN_BLOCKS; v++) {
            int64_t at = start / LANES + v; /* past the end any block will do: its tokens are not seen */
            int64_t block = chunk->table[at * LANES < end ? at : 0] * s->heads + head;
            keys[v] = s->keys + block * key_dim * LANES;
            values[v] = s->values + block * value_dim * LANES;
        }
        prefetch_span(s, w, s->values, value_dim * LANES, start);
        prefetch_span(s, w, s->keys, key_dim * LANES, start + SPAN);
        score_span(t, keys, key_dim / STEP, rows);
        for (int r = 0; r < rows; r++) soften(t, r, start, value_dim, s->window, s->scaling);
        weigh_span(t, values, end - start < SPAN ? end - start : SPAN, value_dim, rows);
    }
    for (int r = 0; r < rows; r++) {
        int64_t token = chunk->first + (first + r) / s->group, query_head = head * s->group + (first + r) % s->group;
        elem *out = s->out + (token * s->heads * s->group + query_head) * s->value_dim;
        for (int64_t d = 0; d < s->value_dim; d += LANES) {
            f32x16 sum;
            memcpy(&sum, t->sums[r] + d, 64);
            int64_t left = s->value_dim - d;
            store_some(out + d, sum / t->total[r], left < LANES ? (int)left : LANES);
        }
    }
}

/* Writes the step's keys and values to the cache, then attends. */
void attend(const Step *s, int threads) {
    int64_t taken = 0; /* tiles */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < s->chunk_count * s->heads; i++) write_chunk(s, s->chunks + i / s->heads, i % s->heads);
        Tile tile;
        Work now, next = {0};
        int64_t chunk = 0, before = 0; /* tiles before the chunk */
        do { /* a tile's first keys come while the one before it is computed */
            int64_t mine, tiles = 0;
#pragma omp atomic capture
            mine = taken++;
            for (; chunk < s->chunk_count; chunk++, before += tiles) {
                tiles = s->heads * ((s->chunks[chunk].count * s->group + MOST_QUERIES - 1) / MOST_QUERIES);
                if (mine < before + tiles) break;
            }
            now = next;
            next = chunk < s->chunk_count ? work_of(s, s->chunks + chunk, mine - before) : (Work){0};
            if (next.chunk) prefetch_span(s, &next, s->keys, s->key_dim * LANES, first_span(s, &next));
            if (now.chunk) attend_tile(s, &now, &tile);
        } while (next.chunk);
    }
}
