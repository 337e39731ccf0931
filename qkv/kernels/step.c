/* A whole step in one call: every product, attention and norm of all layers, by threads that stay together. */

#include "step.h"
#include "numbers.h"

#include <math.h>
#include <stdlib.h>

#define API __attribute__((visibility("default")))

enum { PHASES = 4, QUERIES = 8, MANY_QUERIES = 64 }; /* queries in a block, and of prompts */

typedef struct {
    const Step *step;
    const Body *body;
    const Op *op;
    int64_t rows, blocks;     /* that this op reads; blocks of `per` rows: ROWS, MANY or BULK */
    const int64_t *from, *to; /* which rows these are of its input, and of its outputs (NULL: all in turn) */
    int per;
    int tiles, ready;         /* in a piece; whether this thread has its x */
    int64_t before[PARTS + 1]; /* pieces before each part */
    int64_t splits, slot;     /* of the longest sequence; floats for one split of a block of queries and a key head */
    int alone;                /* whether a piece is one split */
    uint8_t *mine, *shared;   /* room for x: of each thread, of all */
    uint8_t *spread;
    int64_t block_bytes, attend_bytes, spread_bytes;
    float *partial;           /* [blocks of queries · key heads][splits][slot] */
} Run;

typedef struct { const int64_t *rows; int64_t count; } Rows;
typedef struct {
    const Step *step;
    Phase *phases;
    uint8_t *room;
    int64_t block_bytes, attend_bytes, spread_bytes, partial_at, spread_at;
    Rows prompts, others;
} Whole;

INLINE int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- linear ----------------------------------------------------------------------------------------------------- */

static int64_t bytes_for_x(int64_t K, int per) { /* of many rows only what is multiplied is kept */
    int64_t padded = up(K, 32);
    if (per == BULK) return up(per * padded * 2, 64) + 64;
    return up(per * (padded + padded / 32 * 8 + padded / 16 * 4 + (per == MANY ? 0 : K * 4)), 64) + 64;
}
static int64_t bytes_for_spread(int64_t K) { /* tiles, or rows of x as they are; whichever takes more */
    const int64_t tiles = WIDE / TILE * spread_bytes(K), plain = WIDE / TILE * K * TILE * 2 + spread_bytes(K), x = BULK * K * 4;
    return up(tiles > plain ? (tiles > x ? tiles : x) : plain > x ? plain : x, 64);
}

static X x_at(uint8_t *room, int64_t K, int per) {
    int64_t padded = up(K, 32);
    X x = {.q = (int8_t *)room, .h = (uint16_t *)room, .s = (float *)(room + per * padded)};
    x.t = x.s + per * padded / 32, x.t16 = x.t + per * padded / 32;
    return x;
}

static const float *row_of(const Run *run, int64_t row) {
    const Op *op = run->op;
    return op->in + (run->from ? run->from[row] : row) * op->K;
}

/* Rows of the op's input, normed, in the forms that its weights want. */
static X prepared(const Run *run, int64_t block, uint8_t *room, int thread) {
    const Op *op = run->op;
    const int64_t K = op->K, first = block * run->per;
    const int M = (int)least(run->per, run->rows - first);
    X x = x_at(room, K, run->per);
    float *f = run->per != ROWS ? (float *)(run->spread + thread * run->spread_bytes) : x.t16 + run->per * up(K, 32) / 16;
    for (int m = 0; m < M; m++) {
        const float *row = row_of(run, first + m);
        if (op->norm) run->body->norm(op->norm, row, K, op->norm_w, op->norm_b, op->eps, f + m * K);
        else memcpy(f + m * K, row, K * sizeof(float));
    }
    int whole = 0, halves = 0;
    for (int i = 0; i < op->parts; i++) whole |= is_packed(op->part[i].type), halves |= op->part[i].type == Q6_K;
    x.M = M, x.f = f, x.stride = K;
    if (whole) (run->per == BULK ? run->body->round : run->per == MANY ? run->body->arrange : run->body->quantize)(f, K, M, K, halves, &x);
    return x;
}

static void prepare_piece(void *with, int thread, long at) {
    Run *run = with;
    X x = prepared(run, at, run->shared + at * run->block_bytes, thread);
    memcpy(run->shared + (at + 1) * run->block_bytes - 64, &x, sizeof x);
}
_Static_assert(sizeof(X) <= 64, "an X fits behind its block");

static int64_t output(const Run *run, int64_t row) { return run->to ? run->to[row] : row; }

static void finish(const Run *run, const Part *part, int64_t first, int M, int64_t n, int count, float *y) {
    const Op *op = run->op;
    const int whole = (int)up(count, TILE);
    float padded[WIDE] = {0};
    if (part->bias) memcpy(padded, part->bias + n, count * sizeof(float));
    for (int m = 0; m < M; m++) {
        const int64_t at = output(run, first + m) * part->N + n;
        float *row = y + m * WIDE;
        if (op->scale != 1) for (int i = 0; i < whole; i++) row[i] *= op->scale;
        if (part->bias) for (int i = 0; i < whole; i++) row[i] += padded[i];
        if (op->softcap) {
            for (int i = 0; i < count; i++) row[i] /= op->softcap;
            run->body->activate(TANH, row, whole);
            for (int i = 0; i < count; i++) row[i] *= op->softcap;
        }
        if (part->activation) run->body->activate(part->activation, row, whole);
        if (op->residual) {
            const float *before = op->residual + at;
            for (int i = 0; i < count; i++) row[i] += before[i];
        }
        if (op->gated && part == op->part) { /* the second part came first */
            const float *second = part[1].out + at;
            for (int i = 0; i < count; i++) row[i] *= second[i];
        }
        if (count == WIDE) memcpy(part->out + at, row, WIDE * sizeof(float)); /* of a size that the compiler knows */
        else memcpy(part->out + at, row, count * sizeof(float));
    }
}

typedef struct { const Run *run; const Part *part; int64_t n; int count; } Target;

static Target target_at(const Run *run, long at) { /* of this piece; the first part, where they are gated */
    const int wide = run->tiles * TILE;
    int p = 0;
    while (at >= run->before[p + 1]) p++;
    const Part *part = run->op->part + p;
    const int64_t n = (at - run->before[p]) * wide;
    return (Target){run, part, n, (int)least(wide, part->N - n)};
}

static void product_piece(void *with, int thread, long at) {
    Run *run = with;
    const Op *op = run->op;
    const Target to = target_at(run, at);
    _Alignas(64) float y[ROWS * WIDE] = {0};
    for (int64_t block = 0; block < run->blocks; block++) {
        X x;
        uint8_t *room = run->blocks == 1 ? run->mine + thread * run->block_bytes : run->shared + block * run->block_bytes;
        memcpy(&x, room + run->block_bytes - 64, sizeof x);
        for (int i = op->gated; i >= 0; i--) {
            const Part *part = to.part + i;
            run->body->product(part->type, part->w, op->K, &x, to.n, to.count, y);
            finish(run, part, block * ROWS, x.M, to.n, to.count, y);
        }
    }
}

static const X *target_x(const void *with, int64_t block) {
    const Run *run = ((const Target *)with)->run;
    return (const X *)(run->shared + (block + 1) * run->block_bytes - 64);
}

static void target_done(const void *with, int64_t block, float *out) {
    const Target *to = with;
    const int64_t first = block * to->run->per;
    const int M = (int)least(to->run->per, to->run->rows - first);
    finish(to->run, to->part, first, M, to->n, to->count, out);
}

/* Some tiles of a part (of two, where they are gated) times all rows. */
static void many_piece(void *with, int thread, long at) {
    Run *run = with;
    const Op *op = run->op;
    const Target first = target_at(run, at);
    for (int i = op->gated; i >= 0; i--) {
        Target to = first;
        to.part += i;
        const uint8_t *tiles = to.part->w + to.n / TILE * tile_bytes(to.part->type, op->K);
        const Blocks x = {target_x, target_done, &to, run->blocks};
        (run->per == BULK ? run->body->bulk : run->body->many)(to.part->type, tiles, op->K, (int)up(to.count, TILE) / TILE, &x,
                                                               run->spread + thread * run->spread_bytes);
    }
}

static void own_product_piece(void *with, int thread, long at) { /* few rows: each thread prepares them for itself */
    Run *run = with;
    uint8_t *room = run->mine + thread * run->block_bytes;
    if (!run->ready) {
        X x = prepared(run, 0, room, thread);
        memcpy(room + run->block_bytes - 64, &x, sizeof x);
        run->ready = 1; /* a Run is one thread's */
    }
    product_piece(run, thread, at);
}

/* As many as may be, of those numbers by which the threads get even shares. */
static int tiles_in_piece(const Op *op, int parts, int64_t threads) {
    int64_t best = 0, longest = INT64_MAX;
    for (int64_t tiles = WIDE / TILE; tiles; tiles--) {
        int64_t pieces = 0;
        for (int i = 0; i < parts; i++) pieces += up(op->part[i].N, tiles * TILE) / (tiles * TILE);
        int64_t share = up(pieces, threads) / threads * tiles;
        if (share < longest) best = tiles, longest = share;
    }
    return (int)best;
}

static void linear(Run *run, Phase *phases, int thread) {
    const Op *op = run->op;
    const int parts = op->gated ? 1 : op->parts;
    run->blocks = up(run->rows, run->per) / run->per;
    run->tiles = tiles_in_piece(op, parts, run->step->threads);
    for (int i = 0; i < parts; i++) run->before[i + 1] = run->before[i] + up(op->part[i].N, run->tiles * TILE) / (run->tiles * TILE);
    for (int i = parts; i < PARTS; i++) run->before[i + 1] = run->before[i];
    if (run->per == ROWS && run->blocks == 1) {
        qkv_share(phases, run->before[parts], (int)run->step->threads, own_product_piece, run, thread);
        return;
    }
    run->block_bytes = bytes_for_x(op->K, run->per);
    qkv_share(phases, run->blocks, (int)run->step->threads, prepare_piece, run, thread);
    qkv_share(phases + 1, run->before[parts], (int)run->step->threads, run->per == ROWS ? product_piece : many_piece, run, thread);
}

static int all_packed(const Op *op) {
    int packed = 1;
    for (int i = 0; i < op->parts; i++) packed &= is_packed(op->part[i].type);
    return packed;
}

/* The rows of prompts by their own product, where there is one; the others, and those that are picked, by the other. */
static void linears(Run *run, const Whole *whole, int thread) {
    const Op *op = run->op;
    const Body *body = run->body;
    const int packed = all_packed(op), apart = packed && body->bulk && !op->picked && whole->prompts.count;
    Phase *phases = whole->phases + (op - run->step->ops) * PHASES;
    Run others = *run, bulk = *run;
    if (op->picked) others.from = run->step->picked;
    if (apart) {
        others.rows = whole->others.count, others.from = others.to = whole->others.rows;
        bulk.rows = whole->prompts.count, bulk.from = bulk.to = whole->prompts.rows, bulk.per = BULK;
        linear(&bulk, phases, thread);
    }
    others.per = packed && body->many && others.rows > ROWS ? MANY : ROWS;
    if (others.rows) linear(&others, phases + 2, thread);
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

typedef struct { int64_t sequence, row, position; } Where;

static Where where(const Step *step, int64_t row) { /* of a row of the stream */
    Where at = {0, row, 0};
    while (at.row >= step->lengths[at.sequence]) at.row -= step->lengths[at.sequence++];
    at.position = step->starts[at.sequence] + at.row;
    return at;
}

static void turn(const Op *op, float *x, int heads, int64_t position) {
    const int n = op->turned, half_ = n / 2;
    const float *c = op->cos_ + position * n, *s = op->sin_ + position * n;
    for (; heads; heads--, x += op->D)
        for (int i = 0; i < half_; i++) {
            const int a = op->interleaved ? 2 * i : i, b = op->interleaved ? 2 * i + 1 : i + half_;
            const float one = x[a], two = x[b];
            x[a] = one * c[a] + two * s[a], x[b] = two * c[b] + one * s[b];
        }
}

static void keep(const Op *op, const float *from, uint8_t *to) {
    if (op->cache == F32) memcpy(to, from, op->D * sizeof(float));
    else for (int i = 0; i < op->D; i++) {
        uint16_t h = to_bfloat16(from[i]);
        memcpy(to + 2 * i, &h, 2);
    }
}

/* Where a position of a sequence has its key of head g, and its value: the number of vectors before it. */
static int64_t place(const Run *run, int64_t sequence, int g, int64_t position) {
    const Op *op = run->op;
    const Step *step = run->step;
    int64_t page = sequence;
    if (step->pages) page = step->pages[sequence * step->most_pages + position / op->slots], position %= op->slots;
    return (page * op->kv_heads + g) * op->slots + position;
}

/* A row's queries and keys, normed and turned, and its keys and values into the cache. */
static void turn_piece(void *with, int thread, long at) {
    Run *run = with;
    const Op *op = run->op;
    const int D = op->D, size = op->cache == F32 ? 4 : 2;
    const Where w = where(run->step, at);
    float *q = op->q + at * op->heads * D, *k = op->k + at * op->kv_heads * D, *v = op->v + at * op->kv_heads * D;
    if (op->qk_norm) {
        for (int h = 0; h < op->heads; h++) run->body->norm(op->qk_norm, q + h * D, D, op->q_norm, op->q_bias, op->qk_eps, q + h * D);
        for (int h = 0; h < op->kv_heads; h++) run->body->norm(op->qk_norm, k + h * D, D, op->k_norm, op->k_bias, op->qk_eps, k + h * D);
    }
    if (op->turned) turn(op, q, op->heads, w.position), turn(op, k, op->kv_heads, w.position);
    for (int g = 0; g < op->kv_heads; g++) {
        const int64_t to = place(run, w.sequence, g, w.position) * D * size;
        keep(op, k + g * D, op->keys + to), keep(op, v + g * D, op->values + to);
    }
    (void)thread;
}

/* Queries in blocks, for each key head. The keys are taken in splits of fixed places, so that a row's result does not
   depend on what else is in the step, nor on the number of threads. A piece is a block and a key head, or where these are
   few, one split of it. */
typedef struct { int64_t sequence, row, begin; int queries, g; } Block;

/* The first of a sequence's queries, those of its prompt, are apart from the others where there is an attention for them. */
static int64_t apart(const Step *step, const Op *op, int64_t sequence) {
    const int there = step->prompts && qkv_body()->bulk_attend && op->cache == BF16 && op->D % 32 == 0;
    return there ? step->prompts[sequence] : 0;
}
static int64_t blocks_in(const Step *step, const Op *op, int64_t sequence, int size) {
    const int64_t prompts = apart(step, op, sequence);
    return up(size == QUERIES ? step->lengths[sequence] - prompts : prompts, size) / size;
}
static int64_t blocks_of_queries(const Step *step, const Op *op, int size) {
    int64_t blocks = 0;
    for (int64_t s = 0; s < step->sequences; s++) blocks += blocks_in(step, op, s, size);
    return blocks;
}

static Block block_at(const Run *run, int64_t at, int size) {
    const Step *step = run->step;
    const Op *op = run->op;
    Block b = {.g = (int)(at % op->kv_heads)};
    for (at /= op->kv_heads; at >= blocks_in(step, op, b.sequence, size); b.row += step->lengths[b.sequence++])
        at -= blocks_in(step, op, b.sequence, size);
    const int64_t prompts = apart(step, op, b.sequence), end = size == QUERIES ? step->lengths[b.sequence] : prompts;
    b.begin = at * size + (size == QUERIES ? prompts : 0), b.queries = (int)least(size, end - b.begin);
    return b;
}

static float *splits_of(const Run *run, int thread, long at) {
    if (run->alone) return run->partial + at * run->splits * run->slot;
    return (float *)(run->mine + thread * run->attend_bytes) + 32 * run->op->D;
}

static void attend_split(const Run *run, const Block *b, int thread, int64_t split, float *to, int most, void (*body)(const Attend *)) {
    const Op *op = run->op;
    const int D = op->D, group = op->heads / op->kv_heads, size = op->cache == F32 ? 4 : 2;
    const int64_t first = run->step->starts[b->sequence] + b->begin + 1, keys = first + b->queries - 1;
    Attend a = {.D = D, .heads = group, .queries = b->queries, .type = op->cache, .row = op->heads * D, .scale = op->scale,
                .softcap = op->softcap, .first = first, .out = to};
    a.room = (float *)(run->mine + thread * run->attend_bytes);
    a.from = least(split * SPLIT, keys), a.to = least(a.from + SPLIT, keys);
    a.q = op->q + (b->row + b->begin) * a.row + b->g * group * D;
    int64_t runs[SPLIT / RUN];
    for (int i = 0; a.from + i * RUN < a.to; i++) runs[i] = place(run, b->sequence, b->g, a.from + i * RUN) * D * size;
    a.k = op->keys, a.v = op->values, a.runs = runs;
    a.slopes = op->slopes ? op->slopes + b->g * group : NULL;
    a.sums = to + (int64_t)most * group * D, a.most = a.sums + most * group;
    body(&a);
}

static void join(const Run *run, const Block *b, const float *splits) {
    const Op *op = run->op;
    const int D = op->D, group = op->heads / op->kv_heads, n = QUERIES * group;
    for (int i = 0; i < b->queries * group; i++) {
        float *out = op->out + ((b->row + b->begin + i / group) * op->heads + b->g * group + i % group) * D;
        const float *sums = splits + n * D + i, *most = sums + n;
        float top = *most, total = 0;
        for (int64_t s = 1; s < run->splits; s++) top = most[s * run->slot] > top ? most[s * run->slot] : top;
        for (int64_t s = 0; s < run->splits; s++) /* a split without keys has a largest score of −inf */
            total += expf(most[s * run->slot] - top) * sums[s * run->slot];
        memset(out, 0, D * sizeof(float));
        for (int64_t s = 0; s < run->splits; s++) {
            const float weight = expf(most[s * run->slot] - top) / total, *from = splits + s * run->slot + i * D;
            for (int d = 0; d < D; d++) out[d] += weight * from[d];
        }
    }
}

static void attend_piece(void *with, int thread, long at) {
    const Run *run = with;
    const int64_t one = run->alone ? at % run->splits : -1, place = run->alone ? at / run->splits : at;
    const Block b = block_at(run, place, QUERIES);
    float *splits = splits_of(run, thread, place);
    for (int64_t s = one < 0 ? 0 : one; s < (one < 0 ? run->splits : one + 1); s++)
        attend_split(run, &b, thread, s, splits + s * run->slot, QUERIES, run->body->attend);
    if (!run->alone) join(run, &b, splits);
}

static void join_piece(void *with, int thread, long at) {
    const Run *run = with;
    const Block b = block_at(run, at, QUERIES);
    join(run, &b, splits_of(run, thread, at));
}

/* A block of a prompt's queries and a key head: one split after the other is added to the same sums. */
static void prompt_piece(void *with, int thread, long at) {
    const Run *run = with;
    const Op *op = run->op;
    const int D = op->D, group = op->heads / op->kv_heads, n = MANY_QUERIES * group;
    const Block b = block_at(run, at, MANY_QUERIES);
    const int64_t keys = run->step->starts[b.sequence] + b.begin + b.queries;
    float *made = (float *)(run->mine + thread * run->attend_bytes + room_for_prompts(D)), *sums = made + (int64_t)n * D, *most = sums + n;
    memset(made, 0, (int64_t)n * (D + 1) * sizeof(float));
    for (int i = 0; i < n; i++) most[i] = -INFINITY;
    for (int64_t s = 0; s * SPLIT < keys; s++) attend_split(run, &b, thread, s, made, MANY_QUERIES, run->body->bulk_attend);
    for (int i = 0; i < b.queries * group; i++) {
        float *out = op->out + ((b.row + b.begin + i / group) * op->heads + b.g * group + i % group) * D;
        for (int d = 0; d < D; d++) out[d] = made[(int64_t)i * D + d] / sums[i];
    }
}
static int64_t bytes_for_prompts(const Op *op) {
    return room_for_prompts(op->D) + (int64_t)MANY_QUERIES * (op->heads / op->kv_heads) * (op->D + 2) * (int64_t)sizeof(float);
}

static int64_t most_splits(const Step *step) {
    int64_t longest = 1;
    for (int64_t s = 0; s < step->sequences; s++) {
        int64_t end = step->starts[s] + step->lengths[s];
        longest = end > longest ? end : longest;
    }
    return up(longest, SPLIT) / SPLIT;
}
static int is_alone(const Step *step, int64_t pieces) { return pieces < 4 * step->threads; }
static int64_t slot_of(const Op *op) { return QUERIES * (op->heads / op->kv_heads) * (op->D + 2); }

static void attention(Run *run, Phase *phases, int thread) {
    const Step *step = run->step;
    const int64_t pieces = blocks_of_queries(step, run->op, QUERIES) * run->op->kv_heads;
    const int64_t prompts = blocks_of_queries(step, run->op, MANY_QUERIES) * run->op->kv_heads;
    const int threads = (int)step->threads;
    run->splits = most_splits(step), run->slot = slot_of(run->op), run->alone = is_alone(step, pieces);
    qkv_share(phases, step->rows, threads, turn_piece, run, thread);
    if (prompts) qkv_share(phases + 1, prompts, threads, prompt_piece, run, thread);
    qkv_share(phases + 2, run->alone ? pieces * run->splits : pieces, threads, attend_piece, run, thread);
    if (run->alone) qkv_share(phases + 3, pieces, threads, join_piece, run, thread);
}

/* ---- norms ---------------------------------------------------------------------------------------------------------- */

static void norm_piece(void *with, int thread, long at) { /* out = norm(in), or residual + norm(in) */
    Run *run = with;
    const Op *op = run->op;
    const int64_t K = op->K;
    float *out = op->part[0].out + at * K, *made = op->residual ? (float *)(run->mine + thread * run->block_bytes) : out;
    run->body->norm(op->norm, row_of(run, at), K, op->norm_w, op->norm_b, op->eps, made);
    if (op->residual) for (int64_t i = 0; i < K; i++) out[i] = op->residual[at * K + i] + made[i]; /* maybe the same place */
}

/* ---- embedding ------------------------------------------------------------------------------------------------------ */

static void embed_piece(void *with, int thread, long at) {
    const Run *run = with;
    const Op *op = run->op;
    const Part *table = op->part;
    float *out = table->out + at * table->N;
    qkv_plain_row(table->type, table->w, op->K, run->step->ids[at], out);
    if (op->scale != 1) for (int64_t i = 0; i < op->K; i++) out[i] *= op->scale;
    if (op->residual) {
        const float *added = op->residual + where(run->step, at).position * op->K;
        for (int64_t i = 0; i < op->K; i++) out[i] += added[i];
    }
    (void)thread;
}

/* ---- the step --------------------------------------------------------------------------------------------------------- */

static void work(void *with, int thread) {
    Whole *whole = with;
    const Step *step = whole->step;
    for (int64_t i = 0; i < step->count; i++) {
        const Op *op = step->ops + i;
        Run run = {.step = step, .body = qkv_body(), .op = op, .mine = whole->room};
        run.rows = op->picked ? step->picks : step->rows;
        run.spread = whole->room + whole->spread_at, run.spread_bytes = whole->spread_bytes;
        run.block_bytes = whole->block_bytes, run.attend_bytes = whole->attend_bytes;
        run.shared = whole->room, run.partial = (float *)(whole->room + whole->partial_at);
        Phase *phases = whole->phases + i * PHASES;
        if (run.rows == 0) continue;
        if (op->kind == LINEAR) linears(&run, whole, thread);
        else if (op->kind == ATTEND) attention(&run, phases, thread);
        else qkv_share(phases, run.rows, (int)step->threads, op->kind == NORM ? norm_piece : embed_piece, &run, thread);
    }
}

static int64_t prompt_rows(const Step *step) {
    int64_t count = 0;
    for (int64_t s = 0; step->prompts && s < step->sequences; s++) count += step->prompts[s];
    return count;
}

/* Which rows are prompts', and then the others, in `rows`. */
static void tell_apart(Whole *whole, int64_t *rows) {
    const Step *step = whole->step;
    int64_t row = 0, prompts = 0, others = whole->prompts.count;
    if (!whole->prompts.count) return;
    for (int64_t s = 0; s < step->sequences; s++)
        for (int64_t i = 0; i < step->lengths[s]; i++) rows[i < step->prompts[s] ? prompts++ : others++] = row++;
    whole->prompts.rows = rows, whole->others = (Rows){rows + prompts, step->rows - prompts};
}

/* 0, or 1: no memory. */
static int run_step(const Step *step) {
    Whole whole = {.step = step, .prompts.count = prompt_rows(step)};
    const int64_t bulks = up(whole.prompts.count, BULK) / BULK;
    int64_t partial = 0, bulk = 0, blocks = up(step->rows > step->picks ? step->rows : step->picks, ROWS) / ROWS;
    for (int64_t i = 0; i < step->count; i++) {
        const Op *op = step->ops + i;
        int64_t x = op->kind == LINEAR ? bytes_for_x(op->K, ROWS) : op->kind == NORM ? up(op->K * sizeof(float), 64) : 0, a = 0;
        if (op->kind == ATTEND) {
            const int64_t pieces = blocks_of_queries(step, op, QUERIES) * op->kv_heads, splits = most_splits(step) * slot_of(op);
            const int64_t prompts = blocks_of_queries(step, op, MANY_QUERIES) ? bytes_for_prompts(op) : 0;
            const int alone = is_alone(step, pieces);
            a = up((32 * op->D + (alone ? 0 : splits)) * (int64_t)sizeof(float), 64);
            a = up(prompts > a ? prompts : a, 64);
            partial = alone && pieces * splits * (int64_t)sizeof(float) > partial ? pieces * splits * (int64_t)sizeof(float) : partial;
        }
        const int64_t spread = op->kind == LINEAR ? bytes_for_spread(op->K) : 0, prompts = bulks * bytes_for_x(op->K, BULK);
        bulk = op->kind == LINEAR && prompts > bulk ? prompts : bulk;
        whole.spread_bytes = spread > whole.spread_bytes ? spread : whole.spread_bytes;
        whole.block_bytes = x > whole.block_bytes ? x : whole.block_bytes;
        whole.attend_bytes = a > whole.attend_bytes ? a : whole.attend_bytes;
    }
    int64_t places = blocks > step->threads ? blocks : step->threads;
    whole.partial_at = places * whole.block_bytes;
    if (whole.partial_at < bulk) whole.partial_at = bulk;
    if (whole.partial_at < step->threads * whole.attend_bytes) whole.partial_at = step->threads * whole.attend_bytes;
    whole.partial_at = up(whole.partial_at, 64);
    whole.spread_at = up(whole.partial_at + partial, 64);
    const int64_t rows_at = whole.spread_at + step->threads * whole.spread_bytes;
    whole.room = aligned_alloc(64, up(rows_at + step->rows * (int64_t)sizeof(int64_t) + 64, 64));
    whole.phases = aligned_alloc(64, step->count * PHASES * sizeof(Phase));
    if (whole.room && whole.phases) {
        memset(whole.phases, 0, step->count * PHASES * sizeof(Phase));
        tell_apart(&whole, (int64_t *)(whole.room + rows_at));
        qkv_together(work, &whole, (int)step->threads);
    }
    int failed = !whole.room || !whole.phases;
    free(whole.room), free(whole.phases);
    return failed;
}

API int qkv_step(const Step *step) { return run_step(step); }

/* y[M,N] = x[M,K] · Wᵀ, of float32; `prompt`: as a prompt's rows. 0, or 1: no memory. */
API int qkv_linear(int type, const uint8_t *w, int64_t N, int64_t K, const float *x, int64_t M, float *y, int prompt, int threads) {
    const int64_t start = 0, prompts = prompt ? M : 0;
    Op op = {.kind = LINEAR, .parts = 1, .in = x, .K = K, .scale = 1, .part = {{.w = w, .out = y, .N = N, .type = type}}};
    Step step = {.ops = &op, .count = 1, .rows = M, .sequences = 1, .lengths = &M, .starts = &start, .prompts = &prompts, .threads = threads};
    return run_step(&step);
}
API int64_t qkv_size_of_op(void) { return sizeof(Op); }
