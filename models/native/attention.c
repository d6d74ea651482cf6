/* Attention over the block cache, for decodes and prefill chunks alike.
 *
 * The cache of a layer: keys [blocks, heads, key_dim / STEP, BLOCK, STEP], so that one step of the inner dimension of BLOCK
 * tokens is a few whole vectors; values [blocks, heads, BLOCK, value_dim], and BLOCK elements after the last, since whole vectors
 * are read. key_dim is a multiple of STEP.
 *
 * Each query goes over its keys in spans of SPAN tokens that start at position 0, with a running maximum (online softmax,
 * arXiv 1805.02867), all in float32. Which queries share a tile changes none of its numbers.
 */
#include "element.h"

#define BLOCK 16 /* tokens */
#define SPAN_BLOCKS 4
#define SPAN (SPAN_BLOCKS * BLOCK)
#define SPAN_VECTORS (SPAN / LANES)
#define WIDE 4       /* vectors of a tile, at most */
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
        int64_t token = chunk->first + i, position = chunk->position + i, place = position % BLOCK;
        int64_t block = chunk->table[position / BLOCK] * s->heads + head;
        const elem *key = s->key + token * s->key_strides[0] + head * s->key_strides[1];
        const elem *value = s->value + token * s->value_strides[0] + head * s->value_strides[1];
        elem *keys = s->keys + block * s->key_dim * BLOCK + place * STEP;
        for (int64_t d = 0; d < s->key_dim; d++) keys[d / STEP * BLOCK * STEP + d % STEP] = key[d];
        memcpy(s->values + (block * BLOCK + place) * s->value_dim, value, s->value_dim * sizeof(elem));
    }
}

/* A tile: up to TILE_ROWS queries of one sequence that share a key head. */
typedef struct {
    _Alignas(64) float scores[TILE_ROWS][SPAN];
    _Alignas(64) float sums[TILE_ROWS][MOST_DIM];
    _Alignas(64) factor queries[TILE_ROWS * MOST_DIM / STEP]; /* [key_dim / STEP][queries] */
    float most[TILE_ROWS], total[TILE_ROWS];
    int64_t positions[TILE_ROWS];
} Tile;

/* scores[r] of `vectors` vectors of tokens from `first` on; rows and vectors are constants where this is inlined. */
INLINE void score(Tile *t, const elem *const *keys, int64_t steps, int first, const int rows, const int vectors) {
    vfloat acc[TILE_ROWS][WIDE];
    const elem *from[WIDE];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[r][v] = (vfloat){0};
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
        from[v] = keys[(first + v) * LANES / BLOCK] + (first + v) * LANES % BLOCK * STEP;
    const factor *queries = t->queries;
    for (int64_t k = 0; k < steps; k++) {
        vfactor b[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) b[v] = widen_factors(from[v] + k * BLOCK * STEP);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            vfactor a = splat_factor(queries + r);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) acc[r][v] = dot(acc[r][v], a, b[v]);
        }
        queries += rows;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store(t->scores[r] + (first + v) * LANES, acc[r][v]);
}

/* sums[r][dim ...] += Σ_token scores[r][token] · values[token][dim ...], token by token. */
INLINE void weigh(Tile *t, const elem *const *values, int64_t tokens, int64_t value_dim, int64_t dim, const int rows,
                  const int vectors) {
    vfloat acc[TILE_ROWS][WIDE];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[r][v] = load(t->sums[r] + dim + v * LANES);
    for (int64_t token = 0; token < tokens; token++) {
        const elem *from = values[token / BLOCK] + token % BLOCK * value_dim + dim;
        vfloat b[WIDE];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) b[v] = load_elems(from + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) acc[r][v] += b[v] * t->scores[r][token];
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) store(t->sums[r] + dim + v * LANES, acc[r][v]);
}

/* Few rows take more vectors at once, so that there are always enough independent chains. */
#define VECTORS_FOR(rows) ((rows) * WIDE <= ACCUMULATORS ? WIDE : 2)
#define ROWS(rows, BODY) \
    case rows: \
        if (rows <= TILE_ROWS) { BODY(rows, VECTORS_FOR(rows)) } \
        break;
#define FOR_ROWS(rows, BODY) \
    switch (rows) { \
        ROWS(1, BODY) ROWS(2, BODY) ROWS(3, BODY) ROWS(4, BODY) ROWS(5, BODY) ROWS(6, BODY) \
        ROWS(7, BODY) ROWS(8, BODY) ROWS(9, BODY) ROWS(10, BODY) ROWS(11, BODY) ROWS(12, BODY) \
    }

/* The scores of a span's first tokens; those after them are not written. */
static void score_span(Tile *t, const elem *const *keys, int64_t steps, int tokens, int rows) {
#define BODY(n, wide) for (int first = 0; first * LANES < tokens; first += wide) score(t, keys, steps, first, n, wide);
    FOR_ROWS(rows, BODY)
#undef BODY
}

static void weigh_span(Tile *t, const elem *const *values, int tokens, int64_t value_dim, int rows) {
    int64_t dim = 0;
#define BODY(n, wide) \
    for (; dim + wide * LANES <= value_dim; dim += wide * LANES) weigh(t, values, tokens, value_dim, dim, n, wide); \
    for (; dim < value_dim; dim += LANES) weigh(t, values, tokens, value_dim, dim, n, 1);
    FOR_ROWS(rows, BODY)
#undef BODY
}

/* Exponentials of the scores of a span's first tokens beside the running maximum; a token that is not seen gets exactly 0. */
static void soften(Tile *t, int r, int64_t start, int tokens, int64_t value_dim, int64_t window, float scaling) {
    int64_t last = t->positions[r] - start, first = window ? last - window + 1 : 0;
    int32_t end = last < SPAN ? (int32_t)last : SPAN, begin = first < 0 ? 0 : first < SPAN ? (int32_t)first : SPAN;
    int vectors = (tokens + LANES - 1) / LANES;
    vint at;
    for (int i = 0; i < LANES; i++) at[i] = i;
    vfloat most = splat(-INFINITY);
    for (int v = 0; v < vectors; v++) {
        vint seen = (at + v * LANES <= end) & (at + v * LANES >= begin);
        vfloat scores = select_lanes(seen, load(t->scores[r] + v * LANES) * scaling, splat(-INFINITY));
        most = max_of(most, scores);
        store(t->scores[r] + v * LANES, scores);
    }
    float now = max_lanes(most);
    if (now == -INFINITY) {
        memset(t->scores[r], 0, sizeof t->scores[r]);
        return;
    }
    if (now > t->most[r]) {
        float shrink = exp_of(splat(t->most[r] - now))[0];
        for (int64_t d = 0; d < value_dim; d++) t->sums[r][d] *= shrink;
        t->total[r] *= shrink;
        t->most[r] = now;
    }
    vfloat sum = {0};
    for (int v = 0; v < vectors; v++) {
        vfloat p = exp_of(load(t->scores[r] + v * LANES) - t->most[r]);
        sum += p;
        store(t->scores[r] + v * LANES, p);
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
    int64_t first = number / s->heads * TILE_ROWS, left = chunk->count * s->group - first;
    return (Work){chunk, number % s->heads, first, left < TILE_ROWS ? (int)left : TILE_ROWS};
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
    for (int64_t at = start; at < end && at < start + SPAN; at += BLOCK) {
        const elem *from = layer + (w->chunk->table[at / BLOCK] * s->heads + w->head) * size;
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
        for (int64_t d = 0; d < key_dim; d += STEP) t->queries[d / STEP * rows + r] = to_factor(query + d);
        memset(t->sums[r], 0, sizeof t->sums[r]);
        t->total[r] = 0;
        t->most[r] = -INFINITY;
        t->positions[r] = chunk->position + token;
    }
    int64_t end = end_of(s, w);
    for (int64_t start = first_span(s, w); start < end; start += SPAN) {
        const elem *keys[SPAN_BLOCKS], *values[SPAN_BLOCKS];
        for (int v = 0; v < SPAN_BLOCKS; v++) {
            int64_t at = start / BLOCK + v; /* past the end any block will do: its tokens are not seen */
            int64_t block = chunk->table[at * BLOCK < end ? at : 0] * s->heads + head;
            keys[v] = s->keys + block * key_dim * BLOCK;
            values[v] = s->values + block * value_dim * BLOCK;
        }
        prefetch_span(s, w, s->values, value_dim * BLOCK, start);
        prefetch_span(s, w, s->keys, key_dim * BLOCK, start + SPAN);
        int tokens = end - start < SPAN ? (int)(end - start) : SPAN;
        score_span(t, keys, key_dim / STEP, tokens, rows);
        for (int r = 0; r < rows; r++) soften(t, r, start, tokens, value_dim, s->window, s->scaling);
        weigh_span(t, values, tokens, value_dim, rows);
    }
    for (int r = 0; r < rows; r++) {
        int64_t token = chunk->first + (first + r) / s->group, query_head = head * s->group + (first + r) % s->group;
        elem *out = s->out + (token * s->heads * s->group + query_head) * s->value_dim;
        for (int64_t d = 0; d < s->value_dim; d += LANES) {
            int64_t left = s->value_dim - d;
            store_some(out + d, load(t->sums[r] + d) / t->total[r], left < LANES ? (int)left : LANES);
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
                tiles = s->heads * ((s->chunks[chunk].count * s->group + TILE_ROWS - 1) / TILE_ROWS);
                if (mine < before + tiles) break;
            }
            now = next;
            next = chunk < s->chunk_count ? work_of(s, s->chunks + chunk, mine - before) : (Work){0};
            if (next.chunk) prefetch_span(s, &next, s->keys, s->key_dim * BLOCK, first_span(s, &next));
            if (now.chunk) attend_tile(s, &now, &tile);
        } while (next.chunk);
    }
}
