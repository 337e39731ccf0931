/* Rows of the file's blocks to tiles, back, and to plain numbers; and which body runs. */

#include "numbers.h"

#include <stdlib.h>

#define API __attribute__((visibility("default")))

typedef struct {
    Phase phase;
    int type, bfloat16;
    uint8_t *rows, *tiles;
    int64_t N, K, count;
    const int64_t *index;
    void *out;
    float *room; /* [threads, K] */
    long pieces;
    int threads;
    void (*piece)(void *, int, long);
} Job;

static void work(void *with, int thread) {
    Job *job = with;
    qkv_share(&job->phase, job->pieces, job->threads, job->piece, job, thread);
}

/* Moves the halves and words of a tile's rows; `back`: from the tile to the rows. */
INLINE void move(const Job *job, long tile, int back) {
    const Layout l = layout_of(job->type);
    const int64_t blocks = job->K / l.weights, row_bytes = blocks * l.bytes;
    uint8_t *to = job->tiles + tile * tile_bytes(job->type, job->K);
    for (int64_t block = 0; block < blocks; block++, to += l.bytes * TILE)
        for (int r = 0; r < TILE && tile * TILE + r < job->N; r++) {
            uint8_t *row = job->rows + (tile * TILE + r) * row_bytes + block * l.bytes;
            for (int h = 0; h < l.halves; h++) {
                uint8_t *a = row + l.at_halves + 2 * h, *b = to + (h * TILE + r) * 2;
                memcpy(back ? a : b, back ? b : a, 2);
            }
            for (int w = 0; w < l.words; w++) {
                uint8_t *a = row + l.at_words + 4 * w, *b = to + l.halves * TILE * 2 + (w * TILE + r) * 4;
                memcpy(back ? a : b, back ? b : a, 4);
            }
        }
}
static void pack_piece(void *with, int thread, long at) { move(with, at, 0), (void)thread; }
static void unpack_piece(void *with, int thread, long at) { move(with, at, 1), (void)thread; }

API void qkv_pack(int type, uint8_t *rows, int64_t N, int64_t K, uint8_t *tiles, int back, int threads) {
    Job job = {.type = type, .rows = rows, .N = N, .K = K, .tiles = tiles, .pieces = (N + TILE - 1) / TILE,
               .piece = back ? unpack_piece : pack_piece, .threads = threads};
    qkv_together(work, &job, threads);
}

void qkv_plain_row(int type, const uint8_t *w, int64_t K, int64_t row, float *out) {
    const Layout l = layout_of(type);
    if (!l.weights) {
        const int size = type == F32 ? 4 : 2;
        for (int64_t k = 0; k < K; k++) out[k] = plain_one(type, w + (row * K + k) * size);
        return;
    }
    const uint8_t *block = w + row / TILE * tile_bytes(type, K);
    const float offset = type == Q4_0 ? 8 : type == Q8_0 ? 128 : type == Q6_K ? 32 : 0;
    for (int64_t k = 0; k < K; k += l.weights, block += l.bytes * TILE) {
        Numbers n;
        numbers(type, block, row % TILE, &n);
        for (int j = 0; j < l.weights; j++) { /* rounded as the format says: d · (q − o), or d · q + m */
            float f = n.d[j / n.group] * ((float)n.q[j] - offset);
            out[k + j] = offset ? f : f + n.m[j / n.group];
        }
    }
}

static void plain_piece(void *with, int thread, long at) { /* 16 rows */
    const Job *job = with;
    for (int64_t i = at * TILE; i < job->count && i < (at + 1) * TILE; i++) {
        const int64_t row = job->index ? job->index[i] : i;
        float *out = job->bfloat16 ? job->room + thread * job->K : (float *)job->out + i * job->K;
        qkv_plain_row(job->type, job->tiles, job->K, row, out);
        if (job->bfloat16)
            for (int64_t k = 0; k < job->K; k++) ((uint16_t *)job->out)[i * job->K + k] = to_bfloat16(out[k]);
    }
}

/* out[count,K] (float32, or bfloat16): rows of W as plain numbers, those of `index`, or the first ones. 0, or 1: no
   memory. */
API int qkv_dequantize(int type, uint8_t *tiles, int64_t K, const int64_t *index, int64_t count, void *out, int bfloat16,
                       int threads) {
    if (count <= TILE) threads = 1;
    Job job = {.type = type, .tiles = tiles, .K = K, .index = index, .count = count, .out = out, .bfloat16 = bfloat16,
               .pieces = (count + TILE - 1) / TILE, .piece = plain_piece, .threads = threads};
    job.room = bfloat16 ? malloc(threads * K * sizeof(float)) : NULL;
    if (bfloat16 && !job.room) return 1;
    qkv_together(work, &job, threads);
    free(job.room);
    return 0;
}

/* ---- which body runs ------------------------------------------------------------------------------------------------ */

static Body with_amx;
static const Body *const BODIES[] = {
    &qkv_portable,
#if defined(__x86_64__)
    &qkv_avx2, &qkv_avx512, &with_amx,
#endif
};
static const Body *body = &qkv_portable;

const Body *qkv_body(void) { return body; }

static int best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2"))
        return with_amx = qkv_avx512, qkv_with_amx(&with_amx) ? 3 : 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 1;
#endif
    return 0;
}

/* Whether this body has a product of its own for the rows of prompts. */
API int qkv_bulk(void) { return body->bulk != NULL; }

/* Take the body of this level (0 portable, 1 AVX2, 2 AVX-512, 3 AMX), or the best below it; its name. */
API const char *qkv_use(int level) {
    int most = best();
    body = BODIES[level < 0 || level > most ? most : level];
    return body->name;
}
