/* Products with GGUF's packed weights, in the layout of the file (ggml's `ggml-common.h`, MIT; little endian).

   y[M,N] = x[M,K] · Wᵀ. Each row of x is quantized once to int8, in blocks of 32 with a float scale; the weights' small
   whole numbers are multiplied with these in integers, and scales and minima are applied in float32. A weight is
   d·(q − o) + m, so a block gives  d·s·Σ q·x  +  (m − d·o)·s·Σ x,  where s·Σ x is known before any weight is read.

   One portable body, compiled for the baseline and for AVX2, and one with AVX-512 VNNI; chosen when the library is
   first asked. A number that isn't finite in x or in a scale gives numbers that aren't finite in y. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#define API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define MOST_ROWS 4 /* of x at a time: each weight block is read once for all of them */

enum { Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 }; /* ggml_type */

INLINE int weights_of(int type) { return type == Q4_0 || type == Q4_1 || type == Q8_0 ? 32 : 256; }
INLINE int bytes_of(int type) {
    return type == Q4_0 ? 18 : type == Q4_1 ? 20 : type == Q8_0 ? 34 : type == Q4_K ? 144 : type == Q5_K ? 176 : 210;
}
INLINE int group_of(int type) { return type == Q6_K ? 16 : 32; } /* weights that share a scale */
INLINE int offset_of(int type) { return type == Q4_0 ? 8 : type == Q8_0 ? 128 : type == Q6_K ? 32 : 0; }
INLINE int has_minimum(int type) { return type == Q4_1 || type == Q4_K || type == Q5_K; }
/* Groups whose scales, and then whose sums, lie side by side in X.s: what one step of the AVX-512 body wants. */
INLINE int side_of(int type) { return type == Q6_K ? 16 : weights_of(type) == 256 ? 8 : 4; }

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

/* ---- one block of weights: whole numbers, and scale and minimum of each group ---------------------------------- */

/* The 6-bit scales of eight groups, then their minima, in 16 bytes: four at a time in a word. */
INLINE void six_bits(const uint8_t *b, uint32_t *to) {
    uint32_t a, c, e;
    memcpy(&a, b, 4), memcpy(&c, b + 4, 4), memcpy(&e, b + 8, 4);
    to[0] = a & 0x3f3f3f3f, to[1] = (e & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    to[2] = c & 0x3f3f3f3f, to[3] = (e >> 4 & 0x0f0f0f0f) | (c >> 2 & 0x30303030);
}

INLINE void unpack(int type, const uint8_t *b, uint8_t *restrict q, float *restrict d, float *restrict m) {
    if (type == Q4_0 || type == Q4_1) {
        const uint8_t *packed = b + bytes_of(type) - 16;
        d[0] = half(b), m[0] = type == Q4_1 ? half(b + 2) : 0;
        for (int i = 0; i < 16; i++) q[i] = packed[i] & 15, q[16 + i] = packed[i] >> 4;
    } else if (type == Q8_0) {
        d[0] = half(b);
        for (int i = 0; i < 32; i++) q[i] = b[2 + i] ^ 0x80;
    } else if (type == Q6_K) {
        float whole = half(b + 208);
        for (int g = 0; g < 16; g++) d[g] = whole * (int8_t)b[192 + g];
        for (int side = 0; side < 2; side++) {
            const uint8_t *low = b + 64 * side, *high = b + 128 + 32 * side;
            uint8_t *to = q + 128 * side;
            for (int i = 0; i < 32; i++) {
                to[i] = (low[i] & 15) | ((high[i] & 3) << 4);
                to[32 + i] = (low[32 + i] & 15) | ((high[i] >> 2 & 3) << 4);
                to[64 + i] = (low[i] >> 4) | ((high[i] >> 4 & 3) << 4);
                to[96 + i] = (low[32 + i] >> 4) | ((high[i] >> 6) << 4);
            }
        }
    } else {
        uint32_t words[4];
        uint8_t six[16];
        float whole = half(b), least = half(b + 2);
        six_bits(b + 4, words);
        memcpy(six, words, 16);
        for (int g = 0; g < 8; g++) d[g] = whole * six[g], m[g] = -(least * six[8 + g]);
        const uint8_t *packed = b + bytes_of(type) - 128, *high = b + 16;
        for (int pair = 0; pair < 4; pair++)
            for (int i = 0; i < 32; i++) {
                uint8_t both = packed[32 * pair + i], fifth = type == Q5_K ? high[i] >> (2 * pair) : 0;
                q[64 * pair + i] = (both & 15) | ((fifth & 1) << 4);
                q[64 * pair + 32 + i] = (both >> 4) | ((fifth >> 1 & 1) << 4);
            }
    }
}

/* ---- activations ------------------------------------------------------------------------------------------------ */

typedef struct {
    int8_t *q;  /* [K, up to a multiple of 256] */
    float *s;   /* for every `side` groups: their scales, then their scale · sum of q */
} X;

INLINE void quantize(int type, const void *x, int bfloat16, int64_t K, X to) {
    const int group = group_of(type), side = side_of(type);
    const int64_t padded = (K + 255) / 256 * 256;
    memset(to.q + K, 0, padded - K);
    memset(to.s, 0, padded / group * 2 * sizeof(float));
    for (int64_t k = 0; k < K; k += 32) {
        float v[32];
        uint32_t most = 0;
        int32_t q[32];
        if (bfloat16) for (int i = 0; i < 32; i++) v[i] = as_float((uint32_t)((const uint16_t *)x)[k + i] << 16);
        else memcpy(v, (const float *)x + k, sizeof v);
        for (int i = 0; i < 32; i++) {
            uint32_t magnitude = as_bits(v[i]) & 0x7fffffff;
            most = magnitude > most ? magnitude : most;
        }
        int finite = most < 0x7f800000;
        float largest = as_float(most);
        /* below 1e-36 the reciprocal would overflow; so small a block counts as zeros */
        float inverse = finite && largest > 1e-36f ? 127 / largest : 0;
        float scale = finite ? largest / 127 : as_float(0x7fc00000);
        for (int i = 0; i < 32; i++) { /* adding 1.5 · 2^23 rounds to a whole number in the low bits */
            float scaled = finite ? v[i] * inverse : 0;
            q[i] = (int32_t)(as_bits(scaled + 12582912.0f) - 0x4b400000u);
        }
        for (int i = 0; i < 32; i++) to.q[k + i] = (int8_t)q[i];
        for (int half_ = 0; half_ < 32; half_ += group) {
            int32_t sum = 0;
            for (int i = 0; i < group; i++) sum += q[half_ + i];
            int64_t g = (k + half_) / group;
            float *s = to.s + g / side * 2 * side + g % side;
            s[0] = scale, s[side] = scale * sum;
        }
    }
}

/* ---- the portable body ------------------------------------------------------------------------------------------ */

INLINE void rows_portable(int type, const uint8_t *w, int64_t K, const X *x, int M, float *y, int64_t stride,
                          int64_t from, int64_t to) {
    const int weights = weights_of(type), bytes = bytes_of(type), group = group_of(type), side = side_of(type);
    const int64_t blocks = K / weights;
    for (int64_t n = from; n < to; n++) {
        const uint8_t *b = w + n * blocks * bytes;
        float total[MOST_ROWS] = {0};
        for (int64_t block = 0; block < blocks; block++, b += bytes) {
            uint8_t q[256];
            float d[16], m[16];
            unpack(type, b, q, d, m);
            for (int i = 0; i < weights / group; i++) {
                int64_t g = block * (weights / group) + i;
                float low = has_minimum(type) ? m[i] : -offset_of(type) * d[i];
                for (int r = 0; r < M; r++) {
                    const int8_t *with = x[r].q + g * group;
                    const float *s = x[r].s + g / side * 2 * side + g % side;
                    int32_t dot = 0;
                    for (int j = 0; j < group; j++) dot += q[i * group + j] * with[j];
                    total[r] += d[i] * s[0] * dot + low * s[side];
                }
            }
        }
        for (int r = 0; r < M; r++) y[r * stride + n] = total[r];
    }
}

INLINE void rows_plain(int type, const uint8_t *w, int64_t K, void *out, int bfloat16, const int64_t *index,
                       int64_t from, int64_t to) {
    const int weights = weights_of(type), bytes = bytes_of(type), group = group_of(type);
    const int64_t blocks = K / weights;
    for (int64_t row = from; row < to; row++) {
        const uint8_t *b = w + (index ? index[row] : row) * blocks * bytes;
        for (int64_t block = 0; block < blocks; block++, b += bytes) {
            uint8_t q[256];
            float d[16], m[16], f[256];
            unpack(type, b, q, d, m);
            for (int i = 0; i < weights / group; i++)
                for (int j = 0; j < group; j++) {
                    float value = d[i] * (float)((int)q[i * group + j] - offset_of(type));
                    f[i * group + j] = has_minimum(type) ? value + m[i] : value;
                }
            int64_t at = row * K + block * weights;
            if (bfloat16) for (int i = 0; i < weights; i++) ((uint16_t *)out)[at + i] = to_bfloat16(f[i]);
            else memcpy((float *)out + at, f, weights * sizeof(float));
        }
    }
}

#define BY_TYPE(CALL) \
    switch (type) { \
    case Q4_0: CALL(Q4_0); break; \
    case Q4_1: CALL(Q4_1); break; \
    case Q8_0: CALL(Q8_0); break; \
    case Q4_K: CALL(Q4_K); break; \
    case Q5_K: CALL(Q5_K); break; \
    case Q6_K: CALL(Q6_K); break; \
    }

#define COMPILED(NAME, TARGET) \
    TARGET static void linear_##NAME(int type, const uint8_t *w, int64_t K, const X *x, int M, float *y, \
                                     int64_t stride, int64_t from, int64_t to) { \
        BY_TYPE(LINEAR_PORTABLE) \
    } \
    TARGET static void plain_##NAME(int type, const uint8_t *w, int64_t K, void *out, int bfloat16, \
                                    const int64_t *index, int64_t from, int64_t to) { \
        BY_TYPE(PLAIN) \
    } \
    TARGET static void quantize_##NAME(int type, const void *x, int bfloat16, int64_t K, X to) { \
        BY_TYPE(QUANTIZE) \
    }
#define LINEAR_PORTABLE(T) rows_portable(T, w, K, x, M, y, stride, from, to)
#define PLAIN(T) (bfloat16 ? rows_plain(T, w, K, out, 1, index, from, to) : rows_plain(T, w, K, out, 0, index, from, to))
#define QUANTIZE(T) (bfloat16 ? quantize(T, x, 1, K, to) : quantize(T, x, 0, K, to))

COMPILED(baseline, )
#if defined(__x86_64__)
COMPILED(avx2, __attribute__((target("avx2,fma"))))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma,f16c,bmi2")))
#define PLAIN_512(T) (bfloat16 ? plain_512(T, w, K, out, 1, index, from, to) : plain_512(T, w, K, out, 0, index, from, to))
#define LINEAR_512(T) rows_512(T, w, K, x, M, y, stride, from, to)
#endif

/* ---- AVX-512 VNNI: 64 weights at a time, in 16 lanes of four ---------------------------------------------------- */

#if defined(__x86_64__)
#define INLINE_512 AVX512 INLINE
/* The processor's own look ahead ends with the page. */
#define AHEAD(at) _mm_prefetch((const char *)(at) + 4096, _MM_HINT_T0)

INLINE_512 __m512 fma_dot(__m512i q, const int8_t *x, __m512 scale, __m512 to) {
    __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, _mm512_loadu_si512(x));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, to);
}

/* Which of the scales each of 16 lanes takes: in runs of eight, or of four. */
#define EIGHTS(a) {a, a, a, a, a, a, a, a, a + 1, a + 1, a + 1, a + 1, a + 1, a + 1, a + 1, a + 1}
#define FOURS(a) {a, a, a, a, a + 1, a + 1, a + 1, a + 1, a + 2, a + 2, a + 2, a + 2, a + 3, a + 3, a + 3, a + 3}
static const int32_t BY_8[4][16] = {EIGHTS(0), EIGHTS(2), EIGHTS(4), EIGHTS(6)};
static const int32_t BY_4[4][16] = {FOURS(0), FOURS(4), FOURS(8), FOURS(12)};

/* Shifts of 16 lanes. */
#define HALVES(a, b) {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b}
static const int32_t QUARTERS_0_4[16] = {0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4};
static const int32_t HALVES_0_4[16] = HALVES(0, 4), HALVES_4_2[16] = HALVES(4, 2), HALVES_0_2[16] = HALVES(0, 2);

/* Where the 16 bytes of two blocks of `n` bytes are, each twice; and the words of scale and minimum of four blocks, two
   in each of two vectors (at `second` the minimum, or the scale again). */
#define BYTES(a) a, a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7, a + 8, a + 9, a + 10, a + 11, a + 12, a + 13, a + 14, a + 15
#define SPREAD(n) {BYTES(n - 16), BYTES(n - 16), BYTES(2 * n - 16), BYTES(2 * n - 16)}
#define WORDS(n, second) {0, n / 2, 32, 32 + n / 2, second, second + n / 2, second + 32, second + 32 + n / 2}
static const uint8_t SPREAD_18[64] = SPREAD(18), SPREAD_20[64] = SPREAD(20);
static const uint16_t WORDS_18[32] = WORDS(18, 0), WORDS_20[32] = WORDS(20, 1);

/* Four blocks of 32 at a time: their numbers as two vectors, their scales and minima (or scales again) as eight. */
INLINE_512 void four_blocks(int type, const uint8_t *b, int64_t left, __m512i *first, __m512i *second, __m256 *scales) {
    const int bytes = bytes_of(type);
    if (type == Q8_0) {
        const uint8_t *at[4];
        static const uint8_t none[34];
        uint16_t d[8];
        for (int i = 0; i < 4; i++) {
            at[i] = i < left ? b + i * bytes : none;
            memcpy(d + i, at[i], 2), d[4 + i] = d[i];
        }
        const __m512i flip = _mm512_set1_epi8((char)0x80);
        __m512i one = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)(at[0] + 2)));
        __m512i two = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)(at[2] + 2)));
        one = _mm512_inserti64x4(one, _mm256_loadu_si256((const void *)(at[1] + 2)), 1);
        two = _mm512_inserti64x4(two, _mm256_loadu_si256((const void *)(at[3] + 2)), 1);
        *first = _mm512_xor_si512(one, flip), *second = _mm512_xor_si512(two, flip);
        *scales = _mm256_cvtph_ps(_mm_loadu_si128((const void *)d));
        return;
    }
    const __m512i spread = _mm512_loadu_si512(type == Q4_0 ? SPREAD_18 : SPREAD_20);
    const __m512i pick = _mm512_loadu_si512(type == Q4_0 ? WORDS_18 : WORDS_20);
    const __m512i by = _mm512_loadu_si512(QUARTERS_0_4), low = _mm512_set1_epi8(15);
    uint32_t all = (uint32_t)(left < 4 ? left : 4) * bytes, front = all < 2u * bytes ? all : 2u * bytes;
    __m512i one = _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, front), b);
    __m512i two = _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, all - front), b + 2 * bytes);
    __m512i halves = _mm512_permutex2var_epi16(one, pick, two);
    *scales = _mm256_cvtph_ps(_mm512_castsi512_si128(halves));
    *first = _mm512_and_si512(_mm512_srlv_epi32(_mm512_permutexvar_epi8(spread, one), by), low);
    *second = _mm512_and_si512(_mm512_srlv_epi32(_mm512_permutexvar_epi8(spread, two), by), low);
}

INLINE_512 void row_of_32s(int type, const uint8_t *b, int64_t blocks, const X *x, int M, float *y) {
    const __m512i left = _mm512_loadu_si512(BY_8[0]), right = _mm512_loadu_si512(BY_8[1]);
    __m512 one[MOST_ROWS], two[MOST_ROWS];
    __m256 lows[MOST_ROWS];
    for (int r = 0; r < M; r++) one[r] = two[r] = _mm512_setzero_ps(), lows[r] = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; block += 4) {
        __m512i first, second;
        __m256 scales;
        if (blocks - block >= 4) four_blocks(type, b, 4, &first, &second, &scales);
        else four_blocks(type, b, blocks - block, &first, &second, &scales);
        AHEAD(b), AHEAD(b + 64);
        for (int r = 0; r < M; r++) {
            __m256 both = _mm256_mul_ps(scales, _mm256_loadu_ps(x[r].s + 2 * block));
            __m512 wide = _mm512_castps256_ps512(both);
            lows[r] = _mm256_add_ps(lows[r], both);
            one[r] = fma_dot(first, x[r].q + 32 * block, _mm512_permutexvar_ps(left, wide), one[r]);
            two[r] = fma_dot(second, x[r].q + 32 * block + 64, _mm512_permutexvar_ps(right, wide), two[r]);
        }
        b += 4 * bytes_of(type);
    }
    for (int r = 0; r < M; r++) {
        __m512 low = _mm512_maskz_mov_ps(0xf0, _mm512_castps256_ps512(lows[r]));
        low = _mm512_mul_ps(low, _mm512_set1_ps(has_minimum(type) ? 1.0f : -(float)offset_of(type)));
        y[r] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(one[r], two[r]), low));
    }
}

/* A block of 256: its numbers as four vectors; its scales, and minima where it has them, as 16 numbers. */
INLINE_512 __m512 block_of_256(int type, const uint8_t *b, __m512i *q) {
    const __m512i nibble = _mm512_set1_epi8(15), two_bits = _mm512_set1_epi8(0x30);
    AHEAD(b), AHEAD(b + 64), AHEAD(b + 128);
    if (type == Q6_K) {
        const __m512i up = _mm512_loadu_si512(HALVES_4_2), down = _mm512_loadu_si512(HALVES_0_2);
        AHEAD(b + 192);
        for (int side = 0; side < 2; side++) {
            __m512i low = _mm512_loadu_si512(b + 64 * side);
            __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(b + 128 + 32 * side)));
            __m512i a = _mm512_sllv_epi32(high, up), c = _mm512_srlv_epi32(high, down); /* to bits 4 and 5 */
            q[2 * side] = _mm512_or_si512(_mm512_and_si512(low, nibble), _mm512_and_si512(a, two_bits));
            low = _mm512_and_si512(_mm512_srli_epi32(low, 4), nibble);
            q[2 * side + 1] = _mm512_or_si512(low, _mm512_and_si512(c, two_bits));
        }
        __m512i scales = _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(b + 192)));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(scales), _mm512_set1_ps(half(b + 208)));
    }
    const __m512i by = _mm512_loadu_si512(HALVES_0_4);
    for (int i = 0; i < 4; i++) {
        __m256i packed = _mm256_loadu_si256((const void *)(b + bytes_of(type) - 128 + 32 * i));
        q[i] = _mm512_and_si512(_mm512_srlv_epi32(_mm512_broadcast_i64x4(packed), by), nibble);
    }
    if (type == Q5_K) {
        __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(b + 16)));
        for (int i = 0; i < 4; i++) {
            __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << 2 * i)), _mm256_set1_epi8((char)(2 << 2 * i)), 1);
            q[i] = _mm512_mask_add_epi8(q[i], _mm512_test_epi8_mask(high, bit), q[i], _mm512_set1_epi8(16));
        }
    }
    uint32_t six[4];
    six_bits(b + 4, six);
    __m512i scales = _mm512_cvtepu8_epi32(_mm_set_epi32(six[3], six[2], six[1], six[0]));
    __m512 d = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(half(b)), _mm512_set1_ps(-half(b + 2)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(scales), d);
}

INLINE_512 void row_of_256s(int type, const uint8_t *b, int64_t blocks, const X *x, int M, float *y) {
    const int32_t(*lanes)[16] = type == Q6_K ? BY_4 : BY_8;
    __m512 one[MOST_ROWS], two[MOST_ROWS], lows[MOST_ROWS];
    for (int r = 0; r < M; r++) one[r] = two[r] = lows[r] = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; block++, b += bytes_of(type)) {
        __m512i q[4];
        __m512 scales = block_of_256(type, b, q);
        for (int r = 0; r < M; r++) {
            const int8_t *with = x[r].q + 256 * block;
            const float *s = x[r].s + 512 / group_of(type) * block;
            __m512 both = _mm512_mul_ps(scales, _mm512_loadu_ps(s));
            if (type == Q6_K) lows[r] = _mm512_fmadd_ps(scales, _mm512_loadu_ps(s + 16), lows[r]);
            else lows[r] = _mm512_add_ps(lows[r], both);
            one[r] = fma_dot(q[0], with, _mm512_permutexvar_ps(_mm512_loadu_si512(lanes[0]), both), one[r]);
            two[r] = fma_dot(q[1], with + 64, _mm512_permutexvar_ps(_mm512_loadu_si512(lanes[1]), both), two[r]);
            one[r] = fma_dot(q[2], with + 128, _mm512_permutexvar_ps(_mm512_loadu_si512(lanes[2]), both), one[r]);
            two[r] = fma_dot(q[3], with + 192, _mm512_permutexvar_ps(_mm512_loadu_si512(lanes[3]), both), two[r]);
        }
    }
    for (int r = 0; r < M; r++) {
        one[r] = _mm512_add_ps(one[r], two[r]);
        if (type == Q6_K) one[r] = _mm512_fmadd_ps(lows[r], _mm512_set1_ps(-32), one[r]);
        else one[r] = _mm512_mask_add_ps(one[r], 0xff00, one[r], lows[r]);
        y[r] = _mm512_reduce_add_ps(one[r]);
    }
}

INLINE_512 void rows_of(int type, const uint8_t *w, int64_t K, const X *x, int M, float *y, int64_t stride,
                        int64_t from, int64_t to) {
    const int64_t blocks = K / weights_of(type), bytes = blocks * bytes_of(type);
    for (int64_t n = from; n < to; n++) {
        float out[MOST_ROWS];
        if (weights_of(type) == 256) row_of_256s(type, w + n * bytes, blocks, x, M, out);
        else row_of_32s(type, w + n * bytes, blocks, x, M, out);
        for (int r = 0; r < M; r++) y[r * stride + n] = out[r];
    }
}

INLINE_512 void rows_512(int type, const uint8_t *w, int64_t K, const X *x, int M, float *y, int64_t stride,
                         int64_t from, int64_t to) {
    switch (M) { /* the loops over rows are unrolled, so that their sums stay in registers */
    case 1: rows_of(type, w, K, x, 1, y, stride, from, to); break;
    case 2: rows_of(type, w, K, x, 2, y, stride, from, to); break;
    case 3: rows_of(type, w, K, x, 3, y, stride, from, to); break;
    default: rows_of(type, w, K, x, 4, y, stride, from, to);
    }
}

AVX512 static void linear_avx512(int type, const uint8_t *w, int64_t K, const X *x, int M, float *y, int64_t stride,
                                 int64_t from, int64_t to) {
    BY_TYPE(LINEAR_512)
}
/* 64 numbers q as d·(q − o) + m, with a scale and minimum for each `group` of them, to `out` at `at`. */
INLINE_512 void plain_64(int type, __m512i q, const float *d, const float *m, void *out, int bfloat16, int64_t at, int count) {
    uint8_t bytes[64];
    _mm512_storeu_si512(bytes, q);
    for (int i = 0; i < count; i += 16) {
        __m512i whole = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(bytes + i)));
        __m512 f = _mm512_cvtepi32_ps(_mm512_sub_epi32(whole, _mm512_set1_epi32(offset_of(type))));
        f = _mm512_mul_ps(f, _mm512_set1_ps(d[i / group_of(type)]));
        if (has_minimum(type)) f = _mm512_add_ps(f, _mm512_set1_ps(m[i / group_of(type)]));
        if (!bfloat16) {
            _mm512_storeu_ps((float *)out + at + i, f);
            continue;
        }
        __m512i bits = _mm512_castps_si512(f), last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
        __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
        rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
        _mm256_storeu_si256((void *)((uint16_t *)out + at + i), _mm512_cvtepi32_epi16(rounded));
    }
}

INLINE_512 void plain_512(int type, const uint8_t *w, int64_t K, void *out, int bfloat16, const int64_t *index,
                          int64_t from, int64_t to) {
    const int64_t blocks = K / weights_of(type);
    for (int64_t row = from; row < to; row++) {
        const uint8_t *b = w + (index ? index[row] : row) * blocks * bytes_of(type);
        for (int64_t k = 0; k < K; k += weights_of(type) == 256 ? 256 : 128) {
            __m512i q[4];
            float d[16];
            if (weights_of(type) == 256) {
                const int groups = 64 / group_of(type);
                _mm512_storeu_ps(d, block_of_256(type, b, q));
                b += bytes_of(type);
                for (int i = 0; i < 4; i++)
                    plain_64(type, q[i], d + groups * i, d + 8 + groups * i, out, bfloat16, row * K + k + 64 * i, 64);
            } else {
                const int64_t left = (K - k) / 32;
                __m256 scales;
                four_blocks(type, b, left, q, q + 1, &scales);
                b += 4 * bytes_of(type);
                _mm256_storeu_ps(d, scales);
                plain_64(type, q[0], d, d + 4, out, bfloat16, row * K + k, left > 1 ? 64 : 32);
                if (left > 2) plain_64(type, q[1], d + 2, d + 6, out, bfloat16, row * K + k + 64, left > 3 ? 64 : 32);
            }
        }
    }
}

AVX512 static void plain_avx512(int type, const uint8_t *w, int64_t K, void *out, int bfloat16, const int64_t *index,
                                int64_t from, int64_t to) {
    BY_TYPE(PLAIN_512)
}
AVX512 static void quantize_avx512(int type, const void *x, int bfloat16, int64_t K, X to) { BY_TYPE(QUANTIZE) }
#endif

/* ---- which body runs --------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*linear)(int, const uint8_t *, int64_t, const X *, int, float *, int64_t, int64_t, int64_t);
    void (*plain)(int, const uint8_t *, int64_t, void *, int, const int64_t *, int64_t, int64_t);
    void (*quantize)(int, const void *, int, int64_t, X);
} Body;

static const Body BODIES[] = {
    {"portable", linear_baseline, plain_baseline, quantize_baseline},
#if defined(__x86_64__)
    {"avx2", linear_avx2, plain_avx2, quantize_avx2},
    {"avx512", linear_avx512, plain_avx512, quantize_avx512},
#endif
};
static const Body *body = BODIES;

static int best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* Take the body of this level (0 portable, 1 AVX2, 2 AVX-512), or the best below it; its name. */
API const char *qkv_use(int level) {
    int most = best();
    body = BODIES + (level < 0 || level > most ? most : level);
    return body->name;
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

/* A job is many pieces; whoever is there takes the next one. The caller works too and never waits for a thread that
   has not begun, so that a busy machine slows it down but can't stop it. Idle threads look for work for a short while
   (in a step the next product comes within microseconds) and then sleep. */

typedef struct {
    void (*piece)(void *, int64_t);
    void *with;
    int64_t pieces;
    int helpers;
    atomic_long next;
} Job;

enum { MOST_THREADS = 64, LOOKS = 2000 };
static Job job;
static atomic_int open_, inside, sleeping;
static atomic_uint ticket;
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER, door = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static int started;

static void work(void) {
    for (long at; (at = atomic_fetch_add(&job.next, 1)) < job.pieces;) job.piece(job.with, at);
}

static void *help(void *number) { /* `number` of this helper */
    unsigned seen = atomic_load(&ticket);
    for (;;) {
        for (int i = 0; i < LOOKS && atomic_load_explicit(&ticket, memory_order_relaxed) == seen; i++) PAUSE();
        if (atomic_load(&ticket) == seen) {
            pthread_mutex_lock(&door);
            atomic_fetch_add(&sleeping, 1);
            while (atomic_load(&ticket) == seen) pthread_cond_wait(&bell, &door);
            atomic_fetch_sub(&sleeping, 1);
            pthread_mutex_unlock(&door);
        }
        seen = atomic_load(&ticket);
        atomic_fetch_add(&inside, 1);
        if (atomic_load(&open_) && (intptr_t)number < job.helpers) work();
        atomic_fetch_sub(&inside, 1);
    }
    return NULL;
}

static void forked(void) { /* a child has none of its parent's threads */
    started = 0;
    atomic_store(&inside, 0), atomic_store(&sleeping, 0), atomic_store(&open_, 0);
    pthread_mutex_init(&running, NULL), pthread_mutex_init(&door, NULL), pthread_cond_init(&bell, NULL);
}

static void start(int helpers) {
    static int registered;
    if (!registered) registered = pthread_atfork(NULL, NULL, forked) == 0;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (started < helpers && pthread_create(&thread, &detached, help, (void *)(intptr_t)started) == 0) started++;
    pthread_attr_destroy(&detached);
}

static void run(void (*piece)(void *, int64_t), void *with, int64_t pieces, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 2 || pieces < 2 || pthread_mutex_trylock(&running)) { /* somebody else's job is on: go alone */
        for (int64_t i = 0; i < pieces; i++) piece(with, i);
        return;
    }
    start(threads - 1);
    job.piece = piece, job.with = with, job.pieces = pieces, job.helpers = threads - 1;
    atomic_store(&job.next, 0);
    atomic_store(&open_, 1);
    atomic_fetch_add(&ticket, 1);
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&door);
        pthread_cond_broadcast(&bell);
        pthread_mutex_unlock(&door);
    }
    work();
    atomic_store(&open_, 0);
    while (atomic_load(&inside)) PAUSE();
    pthread_mutex_unlock(&running);
}

/* ---- what is called ---------------------------------------------------------------------------------------------- */

typedef struct {
    int type, M, bfloat16;
    const uint8_t *w;
    int64_t K, rows, piece;
    const X *x;
    float *y;
    void *out;
    const int64_t *index;
} Call;

enum { PIECE = 16384 }; /* bytes of weights: a microsecond's work */

static int64_t rows_in_piece(int type, int64_t K) {
    int64_t rows = PIECE / (K / weights_of(type) * bytes_of(type));
    return rows < 1 ? 1 : rows;
}

static void linear_piece(void *with, int64_t at) {
    Call *c = with;
    int64_t from = at * c->piece, to = from + c->piece < c->rows ? from + c->piece : c->rows;
    body->linear(c->type, c->w, c->K, c->x, c->M, c->y, c->rows, from, to);
}

static void plain_piece(void *with, int64_t at) {
    Call *c = with;
    int64_t from = at * c->piece, to = from + c->piece < c->rows ? from + c->piece : c->rows;
    body->plain(c->type, c->w, c->K, c->out, c->bfloat16, c->index, from, to);
}

/* y[M,N] (float32) = x[M,K] (float32, or bfloat16) · Wᵀ. 0, or 1: no memory. */
API int qkv_linear(int type, const uint8_t *w, int64_t N, int64_t K, const void *x, int bfloat16, int64_t M, float *y,
                   int threads) {
    const int64_t padded = (K + 255) / 256 * 256, floats = padded / group_of(type) * 2;
    const int64_t row = (padded + floats * (int64_t)sizeof(float) + 63) / 64 * 64;
    uint8_t *room = aligned_alloc(64, row * MOST_ROWS);
    if (!room) return 1;
    for (int64_t m = 0; m < M; m += MOST_ROWS) {
        X rows[MOST_ROWS];
        int count = M - m < MOST_ROWS ? (int)(M - m) : MOST_ROWS;
        for (int r = 0; r < count; r++) {
            rows[r].q = (int8_t *)(room + r * row), rows[r].s = (float *)(room + r * row + padded);
            body->quantize(type, (const uint8_t *)x + (m + r) * K * (bfloat16 ? 2 : 4), bfloat16, K, rows[r]);
        }
        int64_t piece = rows_in_piece(type, K);
        Call call = {.type = type, .M = count, .w = w, .K = K, .rows = N, .piece = piece, .x = rows, .y = y + m * N};
        run(linear_piece, &call, (N + piece - 1) / piece, threads);
    }
    free(room);
    return 0;
}

/* out[count,K] (float32, or bfloat16): rows of W as plain numbers, those of `index`, or the first ones. */
API void qkv_dequantize(int type, const uint8_t *w, int64_t K, const int64_t *index, int64_t count, void *out,
                        int bfloat16, int threads) {
    int64_t piece = rows_in_piece(type, K);
    Call call = {.type = type, .bfloat16 = bfloat16, .w = w, .K = K, .rows = count, .piece = piece, .out = out, .index = index};
    run(plain_piece, &call, (count + piece - 1) / piece, threads);
}
