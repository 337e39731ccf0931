/* AVX-512 with VNNI: four weights of 16 rows in a register, times the same four numbers of x for all of them. */

#if defined(__x86_64__)
#define FOR_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(FOR_AVX512))), apply_to = function)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("O3,fp-contract=fast") /* what is in an array must be in registers */
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")
#endif

#define QKV_AVX512
#define GROUP 4
#include "body.h"

#include <immintrin.h>

/* The processor's own look ahead ends with the page. */
#define AHEAD(at) _mm_prefetch((const char *)(at) + 2048, _MM_HINT_T0)
#define UNROLLED _Pragma("GCC unroll 32")

INLINE __m512i words(const uint8_t *at) { return _mm512_loadu_si512(at); }
INLINE __m512 halves(const uint8_t *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)at)); }

/* 32 weights of each row, q[0..7], times each row of x: whole numbers, in two sums where there is one row of x, so that
   one needn't wait for the other. */
INLINE __m512i dots(const __m512i *q, int from, int to, const int8_t *x, int m, int M) {
    __m512i a = _mm512_setzero_si512(), b = a;
    for (int j = from; j < to; j += 2) {
        int32_t one, two;
        memcpy(&one, x + (j * M + m) * 4, 4), memcpy(&two, x + ((j + 1) * M + m) * 4, 4);
        a = _mm512_dpbusd_epi32(a, q[j], _mm512_set1_epi32(one));
        if (M == 1) b = _mm512_dpbusd_epi32(b, q[j + 1], _mm512_set1_epi32(two));
        else a = _mm512_dpbusd_epi32(a, q[j + 1], _mm512_set1_epi32(two));
    }
    return M == 1 ? _mm512_add_epi32(a, b) : a;
}

/* The 32 weights `g` of each row where they are wanted: times x, added to `out`; or for M = 0 spread out (`Spread`). */
typedef struct { const X *x; __m512 *out; const Spread *spread; } Into;

INLINE void spread_chunk(const __m512i *q, const Spread *to, int64_t g) {
    for (int j = 0; j < 8; j++) _mm512_storeu_si512(to->q + (g * 8 + j) * 64, q[j]);
}

INLINE void add_chunk(const __m512i *q, __m512 d, __m512 low, const Into *into, int64_t g, int M) {
    const X *x = into->x;
    __m512 *out = into->out;
    if (M == 0) {
        spread_chunk(q, into->spread, g);
        _mm512_storeu_ps(into->spread->d + g * TILE, d), _mm512_storeu_ps(into->spread->low + g * TILE, low);
        return;
    }
    const int8_t *with = x->q + g * 32 * M;
    for (int m = 0; m < M; m++) {
        __m512 whole = _mm512_cvtepi32_ps(dots(q, 0, 8, with, m, M));
        out[m] = _mm512_fmadd_ps(whole, _mm512_mul_ps(d, _mm512_set1_ps(x->s[g * M + m])), out[m]);
        out[m] = _mm512_fmadd_ps(low, _mm512_set1_ps(x->t[g * M + m]), out[m]);
    }
}

INLINE void add_two_halves(const __m512i *q, const __m512 *d, const Into *into, int64_t g, int M) {
    const X *x = into->x;
    __m512 *out = into->out;
    if (M == 0) {
        spread_chunk(q, into->spread, g);
        for (int i = 0; i < 2; i++) _mm512_storeu_ps(into->spread->d + (2 * g + i) * TILE, d[i]);
        return;
    }
    const int8_t *with = x->q + g * 32 * M;
    for (int m = 0; m < M; m++)
        for (int half_ = 0; half_ < 2; half_++) { /* (Σ q x − 32 Σ x) · s · d */
            __m512 whole = _mm512_cvtepi32_ps(dots(q, 4 * half_, 4 * half_ + 4, with, m, M));
            __m512 low = _mm512_set1_ps(-32 * x->t16[(2 * g + half_) * M + m]);
            whole = _mm512_fmadd_ps(whole, _mm512_set1_ps(x->s[g * M + m]), low);
            out[m] = _mm512_fmadd_ps(whole, d[half_], out[m]);
        }
}

INLINE void low_bits(const uint8_t *at, int high_ones, __m512i *q) {
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int j = 0; j < 8; j++) {
        __m512i w = words(at + 64 * j);
        q[j] = _mm512_and_si512(high_ones ? _mm512_srli_epi32(w, 4) : w, nibble);
    }
}

INLINE __m512 byte_of(__m512i words_, int byte, int is_signed) {
    __m512i b = _mm512_slli_epi32(words_, 24 - 8 * byte);
    return _mm512_cvtepi32_ps(is_signed ? _mm512_srai_epi32(b, 24) : _mm512_srli_epi32(b, 24));
}

INLINE void block_of_32(int type, const uint8_t *b, int64_t g, const Into *into, int M) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i q[8];
    __m512 d = halves(b);
    for (int i = 0; i < layout_of(type).bytes * TILE; i += 64) AHEAD(b + i);
    if (type == Q8_0)
        for (int j = 0; j < 8; j++) q[j] = _mm512_xor_si512(words(b + 32 + 64 * j), _mm512_set1_epi8((char)0x80));
    else
        for (int j = 0; j < 4; j++) {
            __m512i w = words(b + (type == Q4_1 ? 64 : 32) + 64 * j);
            q[j] = _mm512_and_si512(w, nibble), q[4 + j] = _mm512_and_si512(_mm512_srli_epi32(w, 4), nibble);
        }
    __m512 low = type == Q4_1 ? halves(b + 32) : _mm512_mul_ps(d, _mm512_set1_ps(type == Q4_0 ? -8 : -128));
    add_chunk(q, d, low, into, g, M);
}

INLINE void block_of_256(int type, const uint8_t *b, int64_t block, const Into *into, int M) {
    const __m512 D = halves(b), least = halves(b + 32);
    const uint8_t *w = b + 64, *bits = w + 64 * (type == Q5_K ? 11 : 3);
    const __m512i a = words(w), c = words(w + 64), e = words(w + 128);
    const __m512i six = _mm512_set1_epi32(0x3f3f3f3f), four = _mm512_set1_epi32(0x0f0f0f0f), top = _mm512_set1_epi32(0x30303030);
    const __m512i scales[2] = {_mm512_and_si512(a, six), _mm512_or_si512(_mm512_and_si512(e, four), _mm512_and_si512(_mm512_srli_epi32(a, 2), top))};
    const __m512i mins[2] = {_mm512_and_si512(c, six), _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(e, 4), four), _mm512_and_si512(_mm512_srli_epi32(c, 2), top))};
    for (int g = 0; g < 8; g++) {
        __m512i q[8];
        for (int i = 0; i < 256; i += 64) AHEAD(bits + 256 * g + i);
        low_bits(bits + g / 2 * 512, g % 2, q);
        if (type == Q5_K)
            for (int j = 0; j < 8; j++) {
                __m512i fifth = _mm512_and_si512(_mm512_srli_epi32(words(w + 192 + 64 * j), g), _mm512_set1_epi8(1));
                q[j] = _mm512_or_si512(q[j], _mm512_slli_epi32(fifth, 4));
            }
        __m512 d = _mm512_mul_ps(D, byte_of(scales[g / 4], g % 4, 0));
        __m512 low = _mm512_xor_ps(_mm512_mul_ps(least, byte_of(mins[g / 4], g % 4, 0)), _mm512_set1_ps(-0.0f));
        add_chunk(q, d, low, into, block * 8 + g, M);
    }
}

INLINE void block_of_6_bits(const uint8_t *b, int64_t block, const Into *into, int M) {
    const __m512 D = halves(b);
    const uint8_t *w = b + 32;
    for (int g = 0; g < 8; g++) { /* 32 weights, in two groups of 16 */
        const int chunk = g % 4, at = g / 4;
        __m512i q[8];
        for (int i = 0; i < 384; i += 64) AHEAD(w + 384 * g + i);
        low_bits(w + (at * 16 + chunk % 2 * 8) * 64, chunk / 2, q);
        for (int j = 0; j < 8; j++) {
            __m512i high = _mm512_srli_epi32(words(w + (32 + at * 8 + j) * 64), 2 * chunk);
            q[j] = _mm512_or_si512(q[j], _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi8(3)), 4));
        }
        __m512i scales = words(w + (48 + g / 2) * 64);
        __m512 d[2] = {_mm512_mul_ps(D, byte_of(scales, g % 2 * 2, 1)), _mm512_mul_ps(D, byte_of(scales, g % 2 * 2 + 1, 1))};
        add_two_halves(q, d, into, block * 8 + g, M);
    }
}

/* `S` neighbouring tiles, block by block in turn: a core reads from memory half as fast again where it follows several
   streams. */
INLINE void any_tiles(int type, const uint8_t *tile, int64_t K, int S, const Into *into, int M) {
    const Layout l = layout_of(type);
    for (int64_t block = 0; block < K / l.weights; block++)
        UNROLLED for (int t = 0; t < S; t++) {
            const uint8_t *b = tile + t * tile_bytes(type, K) + block * l.bytes * TILE;
            if (type == Q6_K) block_of_6_bits(b, block, into + t, M);
            else if (l.weights == 32) block_of_32(type, b, block, into + t, M);
            else block_of_256(type, b, block, into + t, M);
        }
}

INLINE void side_by_side(int type, const uint8_t *tile, int64_t K, const X *x, int S, int M, float *out) {
    __m512 sums[WIDE / TILE * ROWS];
    Into into[WIDE / TILE];
    UNROLLED for (int t = 0; t < S; t++) into[t] = (Into){.x = x, .out = sums + t * M};
    UNROLLED for (int i = 0; i < S * M; i++) sums[i] = _mm512_setzero_ps();
    any_tiles(type, tile, K, S, into, M);
    UNROLLED for (int t = 0; t < S; t++)
        UNROLLED for (int m = 0; m < M; m++) _mm512_storeu_ps(out + m * WIDE + t * TILE, sums[t * M + m]);
}

INLINE void tiles(int type, const uint8_t *tile, int64_t K, const X *x, int M, int count, float *out) {
    if (M == 1 && count > 3 * TILE) side_by_side(type, tile, K, x, 4, 1, out);
    else if (M == 1 && count > 2 * TILE) side_by_side(type, tile, K, x, 3, 1, out);
    else if (M == 1 && count > TILE) side_by_side(type, tile, K, x, 2, 1, out);
    else for (int i = 0; i < count; i += TILE) side_by_side(type, tile + i / TILE * tile_bytes(type, K), K, x, 1, M, out + i);
}

/* The loops over rows of x are unrolled, so that their sums stay in registers. */
#define BY_ROWS(TYPE) \
    static void tiles_##TYPE(const uint8_t *tile, int64_t K, const X *x, int count, float *out) { \
        switch (x->M) { \
        case 1: tiles(TYPE, tile, K, x, 1, count, out); break; \
        case 2: tiles(TYPE, tile, K, x, 2, count, out); break; \
        case 3: tiles(TYPE, tile, K, x, 3, count, out); break; \
        case 4: tiles(TYPE, tile, K, x, 4, count, out); break; \
        case 5: tiles(TYPE, tile, K, x, 5, count, out); break; \
        case 6: tiles(TYPE, tile, K, x, 6, count, out); break; \
        case 7: tiles(TYPE, tile, K, x, 7, count, out); break; \
        default: tiles(TYPE, tile, K, x, 8, count, out); \
        } \
    }
PRODUCT_OF_TILES(BY_ROWS)

#define SPREAD_OF(TYPE) case TYPE: any_tiles(TYPE, tile, K, 1, &into, 0); break;
void qkv_spread(int type, const uint8_t *tile, int64_t K, const Spread *to) {
    const Into into = {.spread = to};
    switch (type) { PACKED_TYPES(SPREAD_OF) }
}

const Body qkv_avx512 = {"avx512", quantize, product, NULL, NULL, NULL, NULL, NULL, norm, activate, attend};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
