/* AVX2: four weights of eight rows in a register, times the same four numbers of x for all of them.

   maddubs multiplies unsigned bytes by signed ones and adds two products in 16 bits, saturated. So many of its results
   may be added in 16 bits: |q·x| ≤ 127·q, two of them ≤ 3,810 for four bits (eight fit), 7,874 for five (four fit),
   16,002 for six (two fit). Q8_0's weights have a sign: |q| times x with q's sign, ≤ 2·128·127 = 32,512 (one). */

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("O2,fp-contract=fast") /* GCC 12 takes twice as long with -O3, and the products are no faster */
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#include "body.h"

#include <immintrin.h>

#define UNROLLED _Pragma("GCC unroll 8") /* what is in an array must be in registers, at -O2 too */
/* The processor's own look ahead ends with the page. */
#define AHEAD(at) _mm_prefetch((const char *)(at) + 3072, _MM_HINT_T0)

INLINE __m256i words(const uint8_t *at) { return _mm256_loadu_si256((const void *)at); }
INLINE __m256 halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)at)); }
INLINE __m256i bytes(int b) { return _mm256_set1_epi8((char)b); }
INLINE __m256i nibbles(__m256i w, int high_ones) {
    return _mm256_and_si256(high_ones ? _mm256_srli_epi32(w, 4) : w, bytes(15));
}
INLINE __m256i four_of(const int8_t *x, int at) {
    int32_t four;
    memcpy(&four, x + at * 4, 4);
    return _mm256_set1_epi32(four);
}

/* Σ q x of eight rows, over 4 · count columns (M words apart in x): `fit` sums of two in 16 bits, then times `by` (ones, or whole scales). */
INLINE __m256i dots(const __m256i *q, int count, int fit, const int8_t *x, int M, __m256i by) {
    __m256i total = _mm256_setzero_si256();
    UNROLLED for (int j = 0; j < count; j += fit) {
        __m256i some = _mm256_maddubs_epi16(q[j], four_of(x, j * M));
        UNROLLED for (int i = 1; i < fit; i++)
            some = _mm256_add_epi16(some, _mm256_maddubs_epi16(q[j + i], four_of(x, (j + i) * M)));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(some, by));
    }
    return total;
}

INLINE __m256i dots_with_sign(const __m256i *q, const int8_t *x, int M) {
    __m256i total = _mm256_setzero_si256();
    UNROLLED for (int j = 0; j < 8; j++) {
        __m256i with = _mm256_sign_epi8(four_of(x, j * M), q[j]);
        __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(q[j]), with);
        total = _mm256_add_epi32(total, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
    }
    return total;
}

/* Rows of x: so many, from this one. */
typedef struct { const X *of; int from, count; } Some;

INLINE __m256 scaled(__m256i whole, __m256 d, float s, __m256 to) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(d, _mm256_set1_ps(s)), to);
}

/* 32 columns `g` of eight rows: d · s · Σ q x + low · s · Σ x. */
INLINE void add_chunk(const __m256i *q, int fit, __m256 d, __m256 low, Some x, int64_t g, __m256 *out) {
    const int64_t at = g * x.of->M + x.from;
    UNROLLED for (int m = 0; m < x.count; m++) {
        __m256i whole = dots(q, 8, fit, x.of->q + g * 32 * x.of->M + (x.from + m) * 4, x.of->M, _mm256_set1_epi16(1));
        out[m] = scaled(whole, d, x.of->s[at + m], out[m]);
        out[m] = _mm256_fmadd_ps(low, _mm256_set1_ps(x.of->t[at + m]), out[m]);
    }
}

/* Rows 8 · side … of a tile; so the others. b: a tile's blocks. */
INLINE void block_of_32(int type, const uint8_t *b, int side, Some x, int64_t g, __m256 *out) {
    const __m256 d = halves(b + 16 * side);
    const uint8_t *w = b + (type == Q4_1 ? 64 : 32) + 32 * side;
    __m256i q[8];
    if (type == Q8_0) {
        UNROLLED for (int j = 0; j < 8; j++) q[j] = words(w + 64 * j);
        UNROLLED for (int m = 0; m < x.count; m++) {
            __m256i whole = dots_with_sign(q, x.of->q + g * 32 * x.of->M + (x.from + m) * 4, x.of->M);
            out[m] = scaled(whole, d, x.of->s[g * x.of->M + x.from + m], out[m]);
        }
        return;
    }
    UNROLLED for (int j = 0; j < 8; j++) q[j] = nibbles(words(w + 64 * (j % 4)), j >= 4);
    __m256 low = type == Q4_1 ? halves(b + 32 + 16 * side) : _mm256_mul_ps(d, _mm256_set1_ps(-8));
    add_chunk(q, 8, d, low, x, g, out);
}

INLINE __m256 byte_of(__m256i w, int byte) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(w, _mm_cvtsi32_si128(8 * byte)), _mm256_set1_epi32(255)));
}

INLINE void block_of_256(int type, const uint8_t *b, int side, Some x, int64_t block, __m256 *out) {
    const __m256 D = halves(b + 16 * side), least = _mm256_sub_ps(_mm256_setzero_ps(), halves(b + 32 + 16 * side));
    const uint8_t *w = b + 64 + 32 * side, *high = w + 192, *low_bits = w + 64 * (type == Q5_K ? 11 : 3);
    const __m256i a = words(w), c = words(w + 64), e = words(w + 128), top = bytes(0x30);
    const __m256i scales[2] = {_mm256_and_si256(a, bytes(0x3f)),
                               _mm256_or_si256(nibbles(e, 0), _mm256_and_si256(_mm256_srli_epi32(a, 2), top))};
    const __m256i minima[2] = {_mm256_and_si256(c, bytes(0x3f)),
                               _mm256_or_si256(nibbles(e, 1), _mm256_and_si256(_mm256_srli_epi32(c, 2), top))};
    for (int pair = 0; pair < 4; pair++)
        UNROLLED for (int odd = 0; odd < 2; odd++) {
            const int g = 2 * pair + odd;
            const __m256i bit = bytes(1 << g);
            __m256i q[8];
            UNROLLED for (int j = 0; j < 8; j++) {
                q[j] = nibbles(words(low_bits + 512 * pair + 64 * j), odd);
                if (type == Q5_K) {
                    __m256i there = _mm256_cmpeq_epi8(_mm256_and_si256(words(high + 64 * j), bit), bit);
                    q[j] = _mm256_or_si256(q[j], _mm256_and_si256(there, bytes(16)));
                }
            }
            __m256 d = _mm256_mul_ps(D, byte_of(scales[g / 4], g % 4)), low = _mm256_mul_ps(least, byte_of(minima[g / 4], g % 4));
            add_chunk(q, type == Q5_K ? 4 : 8, d, low, x, block * 8 + g, out);
        }
}

/* One byte of each word as two numbers of 16 bits. */
INLINE __m256i twice(__m256i w, int byte) {
    __m256i at = _mm256_add_epi8(_mm256_set1_epi32(byte * 0x01010101),
                                 _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12)));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(w, at), 8);
}

INLINE void block_of_6_bits(const uint8_t *b, int side, Some x, int64_t block, __m256 *out) {
    const __m256 D = halves(b + 16 * side);
    const uint8_t *w = b + 32 + 32 * side;
    for (int at = 0; at < 2; at++)
        UNROLLED for (int chunk = 0; chunk < 4; chunk++) { /* 32 columns, in two groups of 16 */
            const int64_t g = block * 8 + at * 4 + chunk;
            __m256i q[8];
            UNROLLED for (int j = 0; j < 8; j++) {
                __m256i high = words(w + (32 + at * 8 + j) * 64);
                high = chunk < 2 ? _mm256_slli_epi32(high, 4 - 2 * chunk) : _mm256_srli_epi32(high, 2 * chunk - 4);
                q[j] = nibbles(words(w + (at * 16 + chunk % 2 * 8 + j) * 64), chunk / 2);
                q[j] = _mm256_or_si256(q[j], _mm256_and_si256(high, bytes(0x30)));
            }
            const __m256i scales = words(w + (48 + at * 2 + chunk / 2) * 64);
            const __m256i one = twice(scales, chunk % 2 * 2), two = twice(scales, chunk % 2 * 2 + 1);
            const __m256 lower = _mm256_mul_ps(D, _mm256_set1_ps(-32));
            const __m256 low_one = _mm256_mul_ps(lower, _mm256_cvtepi32_ps(_mm256_srai_epi32(one, 16)));
            const __m256 low_two = _mm256_mul_ps(lower, _mm256_cvtepi32_ps(_mm256_srai_epi32(two, 16)));
            const int M = x.of->M;
            UNROLLED for (int m = 0; m < x.count; m++) {
                const int8_t *with = x.of->q + g * 32 * M + (x.from + m) * 4;
                const float *low = x.of->t16 + 2 * g * M + x.from + m;
                __m256i whole = _mm256_add_epi32(dots(q, 4, 2, with, M, one), dots(q + 4, 4, 2, with + 16 * M, M, two));
                out[m] = scaled(whole, D, x.of->s[g * M + x.from + m], out[m]);
                out[m] = _mm256_fmadd_ps(low_one, _mm256_set1_ps(low[0]), out[m]);
                out[m] = _mm256_fmadd_ps(low_two, _mm256_set1_ps(low[M]), out[m]);
            }
        }
}

INLINE void block_of(int type, const uint8_t *b, int side, Some x, int64_t block, __m256 *out) {
    if (type == Q6_K) block_of_6_bits(b, side, x, block, out);
    else if (layout_of(type).weights == 32) block_of_32(type, b, side, x, block, out);
    else block_of_256(type, b, side, x, block, out);
}

/* Tiles times 1, 2 or 4 rows of x: for more, the sums of both sides wouldn't stay in registers. */
INLINE void tiles(int type, const uint8_t *b, int64_t K, Some x, int count, float *out) {
    const int size = layout_of(type).bytes * TILE;
    const int64_t blocks = K / layout_of(type).weights;
    for (int i = 0; i < count; i += TILE) {
        __m256 sums[2][4];
        for (int m = 0; m < x.count; m++) sums[0][m] = sums[1][m] = _mm256_setzero_ps();
        for (int64_t block = 0; block < blocks; block++, b += size) {
            for (int at = 0; at < size; at += 64) AHEAD(b + at);
            for (int side = 0; side < 2; side++) block_of(type, b, side, x, block, sums[side]);
        }
        for (int m = 0; m < x.count; m++) {
            float *to = out + (x.from + m) * WIDE + i;
            _mm256_storeu_ps(to, sums[0][m]), _mm256_storeu_ps(to + 8, sums[1][m]);
        }
    }
}

#define BY_ROWS(TYPE) \
    static void tiles_##TYPE(const uint8_t *w, int64_t K, const X *x, int count, float *out) { \
        int m = 0; \
        for (; m + 4 <= x->M; m += 4) tiles(TYPE, w, K, (Some){x, m, 4}, count, out); \
        if (m + 2 <= x->M) tiles(TYPE, w, K, (Some){x, m, 2}, count, out), m += 2; \
        if (m < x->M) tiles(TYPE, w, K, (Some){x, m, 1}, count, out); \
    }
PRODUCT_OF_TILES(BY_ROWS)

const Body qkv_avx2 = {"avx2", quantize, product, NULL, NULL, NULL, NULL, NULL, norm, activate, attend};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
