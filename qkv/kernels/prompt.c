/* The rows of prompts, by AMX in bfloat16: W, and the keys and values, are rounded to it (they may be already) and put in
   order once for many rows of x, or queries. What AMX's whole numbers need (amx.c), a scale for every group, takes longer
   than the product itself. A row's result does not depend on the others there, nor on how a prompt is cut: each row is a
   row of the registers, and meets W's columns, and its keys, in one order. */

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2"))), apply_to = function)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("O3,fp-contract=fast")
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#endif

#define QKV_AVX512
#include "body.h"
#include "amx.h"

/* ---- products ----------------------------------------------------------------------------------------------------- */

static void round_(const float *x, int64_t stride, int M, int64_t K, int halves, X *to) {
    to->M = M;
    for (int64_t k = 0; k < K; k += 32)
        for (int m = 0; m < BULK; m++) {
            __m512bh h = {0}; /* the rows that aren't there are multiplied too, and nobody reads the result */
            if (m < M) h = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + m * stride + k + 16), _mm512_loadu_ps(x + m * stride + k));
            memcpy(to->h + (k / 32 * BULK + m) * 32, &h, sizeof h);
        }
    (void)halves;
}

/* A tile of W as bfloat16 h[k/2][row][2]. */
static void to_half(int type, const Spread *w, int64_t K, uint16_t *h) {
    const int group = type == Q6_K ? 16 : 32;
    uint16_t turn[32]; /* two rows of 16 to pairs */
    for (int i = 0; i < 32; i++) turn[i] = (uint16_t)(i / 2 + i % 2 * 16);
    const __m512i pairs = _mm512_loadu_si512(turn);
    for (int64_t g = 0; g < K / group; g++) {
        const __m512 d = _mm512_loadu_ps(w->d + g * TILE);
        const __m512 low = group == 16 ? _mm512_mul_ps(d, _mm512_set1_ps(-32)) : _mm512_loadu_ps(w->low + g * TILE);
        for (int64_t k = g * group; k < (g + 1) * group; k += 4) {
            const __m512i q = _mm512_loadu_si512(w->q + k * TILE), byte = _mm512_set1_epi32(255); /* four weights of each row */
            for (int pair = 0; pair < 2; pair++) {
                __m512 a = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(q, 16 * pair), byte));
                __m512 b = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(q, 16 * pair + 8), byte));
                __m512bh both = _mm512_cvtne2ps_pbh(_mm512_fmadd_ps(b, d, low), _mm512_fmadd_ps(a, d, low));
                _mm512_storeu_si512(h + (k + 2 * pair) * TILE, _mm512_permutexvar_epi16(pairs, (__m512i)both));
            }
        }
    }
}

/* out[..][0..16 · B] of 16 · A rows. */
INLINE void bulk_block(int A, int B, int64_t K, const uint16_t *x, const uint16_t *w, float *out) {
    _tile_zero(0);
    if (B > 1) _tile_zero(1);
    if (A > 1) _tile_zero(2);
    if (A > 1 && B > 1) _tile_zero(3);
    for (int64_t k = 0; k < K; k += 32) {
        _tile_loadd(4, x + k * BULK, 64);
        _tile_loadd(6, w + k * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (B > 1) {
            _tile_loadd(7, w + (K + k) * TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (A > 1) {
            _tile_loadd(5, x + k * BULK + 16 * 32, 64);
            _tile_dpbf16ps(2, 5, 6);
            if (B > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, WIDE * 4);
    if (B > 1) _tile_stored(1, out + TILE, WIDE * 4);
    if (A > 1) _tile_stored(2, out + 16 * WIDE, WIDE * 4);
    if (A > 1 && B > 1) _tile_stored(3, out + 16 * WIDE + TILE, WIDE * 4);
}

static void bulk(int type, const uint8_t *w, int64_t K, int tiles, const Blocks *rows, uint8_t *room) {
    _Alignas(64) float out[BULK * WIDE];
    uint16_t *h = (uint16_t *)room;
    const Spread spread = spread_at(room + tiles * K * TILE * 2, K);
    for (int t = 0; t < tiles; t++) {
        qkv_spread(type, w + t * tile_bytes(type, K), K, &spread);
        to_half(type, &spread, K, h + t * K * TILE);
    }
    SETTLED();
    configure(64);
    for (int64_t i = 0; i < rows->blocks; i++) {
        const X *x = rows->block(rows->with, i);
        for (int t = 0; t < tiles; t += 2) {
            const uint16_t *tile = h + t * K * TILE;
            if (x->M > 16 && t + 1 < tiles) bulk_block(2, 2, K, x->h, tile, out + t * TILE);
            else if (x->M > 16) bulk_block(2, 1, K, x->h, tile, out + t * TILE);
            else if (t + 1 < tiles) bulk_block(1, 2, K, x->h, tile, out + t * TILE);
            else bulk_block(1, 1, K, x->h, tile, out + t * TILE);
        }
        rows->done(rows->with, i, out);
    }
    _tile_release();
}

/* ---- attention ---------------------------------------------------------------------------------------------------- */

enum { KEYS_AT_ONCE = 64 };
INLINE int upto(int n, int to) { return (n + to - 1) / to * to; }

/* How the room of an attention is used. */
typedef struct { uint16_t *keys, *values, *queries, *weights; float *scores; } Room;
INLINE Room room_of(const Attend *a) {
    Room r = {.keys = (uint16_t *)a->room};
    r.values = r.keys + SPLIT * a->D, r.queries = r.values + SPLIT * a->D, r.weights = r.queries + 16 * a->D;
    r.scores = (float *)(r.weights + 16 * SPLIT);
    return r;
}

/* 16 keys as [D/32][pair of 32][key][2], 32 values as [D/16][pair of keys][16][2]; zero where there is none. */
static void order(const Attend *a, int count, const Room *to) {
    const int D = a->D;
    for (int j = 0; j < count; j += 16)
        for (int d = 0; d < D; d += 32) {
            const uint8_t *from = a->k + a->runs[j / RUN] + d * 2;
            V r[16];
            for (int i = 0; i < 16; i++) {
                r[i] = all(0);
                if (j + i < count) memcpy(r + i, from + (int64_t)i * D * 2, sizeof *r);
            }
            turn_square(r);
            memcpy(to->keys + j * D + d * 16, r, sizeof r);
        }
    memset(to->keys + upto(count, 16) * D, 0, (upto(count, KEYS_AT_ONCE) - upto(count, 16)) * D * 2);
    for (int j = 0; j < upto(count, KEYS_AT_ONCE); j += 2) {
        const uint8_t *first = j < count ? a->v + a->runs[j / RUN] + j % RUN * D * 2 : NULL, *second = j + 1 < count ? first + D * 2 : NULL;
        for (int d = 0; d < D; d += 16) {
            __m256i x = first ? _mm256_loadu_si256((const void *)(first + d * 2)) : _mm256_setzero_si256();
            __m256i y = second ? _mm256_loadu_si256((const void *)(second + d * 2)) : _mm256_setzero_si256();
            __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(x), _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16));
            _mm512_storeu_si512(to->values + j / 32 * 32 * D + d * 32 + j % 32 * 16, both);
        }
    }
}

/* scores[m][j] of 16 queries at `count` keys, a multiple of KEYS_AT_ONCE. */
static void dots_of(int D, const Room *r, int count) {
    for (int j = 0; j < count; j += KEYS_AT_ONCE) {
        const uint16_t *k = r->keys + j * D;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int d = 0; d < D; d += 32) {
            _tile_loadd(4, r->queries + d * 16, 64);
            _tile_loadd(6, k + d * 16, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, k + 16 * D + d * 16, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, k + 32 * D + d * 16, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, k + 48 * D + d * 16, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
        _tile_stored(0, r->scores + j, SPLIT * 4);
        _tile_stored(1, r->scores + j + 16, SPLIT * 4);
        _tile_stored(2, r->scores + j + 32, SPLIT * 4);
        _tile_stored(3, r->scores + j + 48, SPLIT * 4);
    }
}

/* A query's scores at the `seen` keys before it become weights e^(score − top), of `count`; what was summed before, with
   another top, shrinks. `slope` · (key − query) is added. */
static void weigh(const Attend *a, const Room *r, int m, int row, int seen, int count, float slope, int to_query) {
    float *scores = r->scores + m * SPLIT, *out = a->out + (int64_t)row * a->D;
    V most_ = all(-__builtin_inff()), total = all(0);
    for (int j = 0; j < seen; j += 16) {
        V s = load(scores + j) * all(a->scale);
        if (a->softcap) s = all(a->softcap) * hyperbolic(s / all(a->softcap));
        if (slope) s += all(slope) * count_up((float)(j - to_query));
        s = pick(count_up((float)j) < all((float)seen), s, all(-__builtin_inff()));
        most_ = larger(most_, s);
        store(scores + j, s);
    }
    const float now = most(most_), before = a->most[row], top = now <= before ? before : now;
    if (seen > 0 && top != before) {
        const float shrink = before == -__builtin_inff() ? 0 : exponential(all(before - top))[0];
        a->most[row] = top, a->sums[row] *= shrink;
        for (int d = 0; d < a->D; d += 16) store(out + d, load(out + d) * all(shrink));
    }
    for (int j = 0; j < count; j += 32) {
        V p[2] = {all(0), all(0)};
        for (int i = 0; i < 2; i++)
            if (j + 16 * i < seen) p[i] = exponential(load(scores + j + 16 * i) - all(top)), total += p[i];
        __m512bh both = _mm512_cvtne2ps_pbh((__m512)p[1], (__m512)p[0]);
        memcpy(r->weights + (j / 32 * 16 + m) * 32, &both, sizeof both);
    }
    if (seen > 0) a->sums[row] += sum(total);
}

/* out[m][..] += Σ weight · value of 16 rows over `count` keys, T tiles of 16 numbers. */
INLINE void add_tiles(int T, int D, const Room *r, int count, int d, float *out) {
    _tile_loadd(0, out + d, D * 4);
    _tile_loadd(1, out + d + 16, D * 4);
    if (T > 2) {
        _tile_loadd(2, out + d + 32, D * 4);
        _tile_loadd(3, out + d + 48, D * 4);
    }
    for (int j = 0; j < count; j += 32) {
        const uint16_t *v = r->values + j * D + d * 32;
        _tile_loadd(4, r->weights + j * 16, 64);
        _tile_loadd(6, v, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, v + 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (T > 2) {
            _tile_loadd(6, v + 1024, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, v + 1536, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
    }
    _tile_stored(0, out + d, D * 4);
    _tile_stored(1, out + d + 16, D * 4);
    if (T > 2) {
        _tile_stored(2, out + d + 32, D * 4);
        _tile_stored(3, out + d + 48, D * 4);
    }
}

/* Adds the keys of a split to what those before it have left in out, sums and most. */
static void bulk_attend(const Attend *a) {
    const Room r = room_of(a);
    const int n = a->queries * a->heads, there = (int)(a->to - a->from), D = a->D;
    order(a, there, &r);
    configure(64);
    for (int i = 0; i < n; i += 16) {
        const int rows = n - i < 16 ? n - i : 16;
        const int64_t last = a->first + (i + rows - 1) / a->heads - a->from;
        if (last <= 0) continue; /* they stand before these keys */
        const int count = upto(last < there ? (int)last : there, KEYS_AT_ONCE);
        for (int m = 0; m < 16; m++)
            for (int d = 0; d < D; d += 32) {
                const float *q = a->q + (i + m) / a->heads * a->row + (i + m) % a->heads * D + d;
                __m512bh h = {0};
                if (m < rows) h = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(q + 16), _mm512_loadu_ps(q));
                memcpy(r.queries + d * 16 + m * 32, &h, sizeof h);
            }
        SETTLED();
        dots_of(D, &r, count);
        for (int m = 0; m < 16; m++) {
            const int64_t sees = a->first + (i + m) / a->heads - a->from;
            const int seen = m < rows ? (sees < there ? (int)sees : there) : 0;
            weigh(a, &r, m, i + m, seen, count, a->slopes && m < rows ? a->slopes[(i + m) % a->heads] : 0, (int)sees - 1);
        }
        SETTLED();
        int d = 0;
        for (; d + 64 <= D; d += 64) add_tiles(4, D, &r, count, d, a->out + (int64_t)i * D);
        if (d < D) add_tiles(2, D, &r, count, d, a->out + (int64_t)i * D);
    }
    _tile_release();
}

void qkv_with_bulk(Body *body) { body->round = round_, body->bulk = bulk, body->bulk_attend = bulk_attend; }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
