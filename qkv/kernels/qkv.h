/* What the sources of the native library share. T rows of x, K columns, N outputs.

   A packed matrix W [N, K] is held in tiles of 16 rows. The file's block of a row (ggml's `ggml-common.h`, MIT; little
   endian) is a few halves (float16 scales) and some 32-bit words; a tile holds, for each block, each half of its 16 rows
   side by side and then each word of its 16 rows side by side. So one vector register takes four weights of all 16 rows,
   nothing needs to be shuffled, and the bytes are the file's, to the last one. The rows of a last, partial tile that
   aren't there are zero bytes. Plain matrices (float32, float16, bfloat16) stay row by row. */

#ifndef QKV_H
#define QKV_H

#include <stdint.h>
#include <string.h>

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 }; /* ggml_type */
enum { TILE = 16, WIDE = 4 * TILE };    /* rows of W in a tile; most outputs at a time */
enum { ROWS = 8, MANY = 16, BULK = 32 }; /* rows of x at a time: of few, of many, of a prompt's */
enum { RUN = 16, SPLIT = 256 };         /* keys that lie side by side, wherever the next ones are; and that are weighed together */
enum { AS_IS, RELU, GELU, GELU_TANH, SILU, RELU2, TANH };
enum { NO_NORM, RMS, LAYER };

#define INLINE static inline __attribute__((always_inline))

/* How a block of each type lies in the file and in a tile. */
typedef struct { int weights, bytes, halves, at_halves, words, at_words; } Layout;
INLINE Layout layout_of(int type) {
    switch (type) {
    case Q4_0: return (Layout){32, 18, 1, 0, 4, 2};
    case Q4_1: return (Layout){32, 20, 2, 0, 4, 4};
    case Q8_0: return (Layout){32, 34, 1, 0, 8, 2};
    case Q4_K: return (Layout){256, 144, 2, 0, 35, 4}; /* words: 3 of scales, 32 of low bits */
    case Q5_K: return (Layout){256, 176, 2, 0, 43, 4}; /* 3 of scales, 8 of fifth bits, 32 of low bits */
    case Q6_K: return (Layout){256, 210, 1, 208, 52, 0}; /* 32 of low bits, 16 of high bits, 4 of scales */
    default: return (Layout){0};
    }
}
INLINE int is_packed(int type) { return layout_of(type).weights != 0; }
INLINE int64_t tile_bytes(int type, int64_t K) {
    Layout l = layout_of(type);
    return K / l.weights * l.bytes * TILE;
}

/* Up to ROWS rows of x, as the products want them. Of whole numbers: q[k/4][m][4], each 32 of them with a scale
   s[k/32][m]; t[k/32][m] is s · Σ q, and t16[k/16][m] the same for each half. A prompt's: BULK rows of bfloat16
   h[k/32][m][32]. */
typedef struct {
    int M;
    int8_t *q;
    uint16_t *h;
    float *s, *t, *t16;
    const float *f; /* as they are */
    int64_t stride; /* floats from one row of f to the next */
} X;

/* One attention of some queries over some keys: `heads` query heads that share keys of `D` numbers. */
typedef struct {
    int D, heads, queries, type; /* type: of the cache, F32 or BF16 */
    const float *q; /* query r, head h: q + r · row + h · D */
    int64_t row;
    int64_t from, to; /* which keys */
    const uint8_t *k, *v;
    const int64_t *runs; /* bytes from k, and from v, to key from, from + RUN, …; the keys of a run are D numbers apart */
    int64_t first; /* query r sees the keys before first + r (all, where that is beyond) */
    float scale, softcap; /* softcap 0: none */
    const float *slopes; /* for each head, or NULL: ALiBi's */
    float *out; /* [queries, heads, D]: Σ p v, not divided; then in `sums` Σ p, in `most` the largest score */
    float *sums, *most;
    float *room; /* 32 · D floats, aligned; of prompts: room_for_prompts */
} Attend;
INLINE int64_t room_for_prompts(int D) { return (int64_t)2 * SPLIT * D * 2 + 16 * D * 2 + 16 * SPLIT * (2 + 4); } /* bytes */

/* A tile of W one byte a weight, as q[k/4][row][4], and the scale d and minimum of each row's groups. */
typedef struct { uint8_t *q; float *d, *low; } Spread;
INLINE int64_t spread_bytes(int64_t K) { return K * TILE + 2 * K * (int64_t)sizeof(float); }

/* Rows of x, block by block, and what becomes of each block's products out[m][WIDE]. */
typedef struct {
    const X *(*block)(const void *with, int64_t at);
    void (*done)(const void *with, int64_t at, float *out);
    const void *with;
    int64_t blocks;
} Blocks;

typedef struct {
    const char *name;
    /* Rows of x as whole numbers; `halves`: t16 too. */
    void (*quantize)(const float *x, int64_t stride, int M, int64_t K, int halves, X *to);
    /* out[m][n] = Σ x w for `count` ≤ WIDE outputs from `n`, a multiple of WIDE; rows of out are WIDE apart. */
    void (*product)(int type, const uint8_t *w, int64_t K, const X *x, int64_t n, int count, float *out);
    /* The same for many rows, or NULL: MANY rows of x as whole numbers q[k/32][m][32]; and `tiles` (≤ WIDE / TILE) tiles
       of W, spread out once into `room`, times these. */
    void (*arrange)(const float *x, int64_t stride, int M, int64_t K, int halves, X *to);
    void (*many)(int type, const uint8_t *w, int64_t K, int tiles, const Blocks *x, uint8_t *room);
    /* The same for the rows of prompts, in bfloat16, or NULL: other numbers, and several times as fast. */
    void (*round)(const float *x, int64_t stride, int M, int64_t K, int halves, X *to);
    void (*bulk)(int type, const uint8_t *w, int64_t K, int tiles, const Blocks *x, uint8_t *room);
    /* Adds a split of at most SPLIT keys in bfloat16 to out [rows up to the next 16, D], sums and most of a prompt's
       queries; D: a multiple of 32. NULL where `bulk` is. */
    void (*bulk_attend)(const Attend *a);
    void (*norm)(int kind, const float *x, int64_t width, const float *w, const float *b, float eps, float *out);
    void (*activate)(int activation, float *x, int count);
    void (*attend)(const Attend *a);
} Body;

extern const Body qkv_portable;
#if defined(__x86_64__)
extern const Body qkv_avx2, qkv_avx512;
int qkv_with_amx(Body *body); /* adds what there is of it to a body; 0: nothing */
void qkv_with_bulk(Body *body); /* of prompt.c */
void qkv_spread(int type, const uint8_t *tile, int64_t K, const Spread *to); /* of avx512.c */
#endif

INLINE float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

INLINE float half(const uint8_t *at) {
    uint16_t h;
    memcpy(&h, at, 2);
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
    float f = as_float(magnitude) * 0x1p112f;
    if ((h & 0x7c00) == 0x7c00) f = as_float(magnitude | 0x7f800000);
    return as_float(as_bits(f) | (uint32_t)(h & 0x8000) << 16);
}

INLINE uint16_t to_bfloat16(float f) { /* to the nearest, ties to even; a NaN stays one */
    uint32_t bits = as_bits(f);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

INLINE float plain_one(int type, const uint8_t *at) {
    uint16_t h;
    if (type == F32) { float f; memcpy(&f, at, 4); return f; }
    if (type == F16) return half(at);
    memcpy(&h, at, 2);
    return as_float((uint32_t)h << 16);
}

/* pack.c: a row of W [.., K] as plain numbers */
void qkv_plain_row(int type, const uint8_t *w, int64_t K, int64_t row, float *out);

/* pool.c */
typedef struct { _Alignas(64) volatile long next; _Alignas(64) volatile long done; } Phase;
void qkv_together(void (*work)(void *with, int thread), void *with, int threads);
void qkv_share(Phase *phase, long pieces, int threads, void (*piece)(void *with, int thread, long at), void *with, int thread);
const Body *qkv_body(void);

#endif
