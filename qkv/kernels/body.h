/* What is the same for every processor, written with the compiler's vectors of 16 floats, which it cuts to the size of
   the processor's own: products with plain matrices, norms, activations, attention, and x as whole numbers.
   Included once for each instruction set. */

#include "qkv.h"

#if defined(QKV_AVX512)
#include <immintrin.h>
#endif

#define OWN static __attribute__((unused)) /* amx.c takes little of this */

typedef float V __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));
typedef int32_t VI4 __attribute__((vector_size(16)));
typedef int8_t B16 __attribute__((vector_size(16)));
typedef uint16_t H16 __attribute__((vector_size(32)));

INLINE V load(const float *at) { V v; memcpy(&v, at, sizeof v); return v; }
INLINE void store(float *at, V v) { memcpy(at, &v, sizeof v); }
INLINE V all(float f) { return (V){f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f}; }
INLINE V pick(VI mask, V a, V b) { return (V)((mask & (VI)a) | (~mask & (VI)b)); }
#if defined(QKV_AVX512)
INLINE V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE V larger(V a, V b) { return pick(a > b, a, b); }
#endif
INLINE V count_up(float from) { return all(from) + (V){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
INLINE V with_sign(V magnitude, V of) { return (V)((VI)magnitude | ((VI)of & (int32_t)0x80000000)); }
INLINE V magnitude(V v) { return (V)((VI)v & 0x7fffffff); }

INLINE V4 folded_sum(V v) {
    V8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
}
INLINE float sum(V v) {
    V4 a = folded_sum(v);
    a = a + __builtin_shufflevector(a, a, 2, 3, 0, 1);
    return a[0] + a[1];
}
#if defined(QKV_AVX512)
INLINE float most(V v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE int32_t sum_of_whole(VI v) { return _mm512_reduce_add_epi32((__m512i)v); }
#else
INLINE float most(V v) {
    V8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), b = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    float top = a[0];
    for (int i = 0; i < 8; i++) top = a[i] > top ? a[i] : top, top = b[i] > top ? b[i] : top;
    return top;
}
INLINE int32_t sum_of_whole(VI v) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += v[i];
    return total;
}
#endif

/* 16 numbers of a plain type. */
INLINE V plain(int type, const uint8_t *at) {
    if (type == F32) return load((const float *)at);
    H16 h;
    memcpy(&h, at, sizeof h);
    VI bits = __builtin_convertvector(h, VI);
    if (type == BF16) return (V)(bits << 16);
#if defined(QKV_AVX512)
    return (V)_mm512_cvtph_ps((__m256i)h);
#endif
    V f = (V)((bits & 0x7fff) << 13) * all(0x1p112f);
    f = pick((bits & 0x7c00) == 0x7c00, (V)((bits & 0x7fff) << 13 | 0x7f800000), f);
    return (V)((VI)f | (bits & 0x8000) << 16);
}
/* eˣ to 2 ulp: 2ⁿ · a polynomial of what is left (Cephes, expf). Below −87 it is zero, NaN stays NaN. */
INLINE V exponential(V x) {
    V kept = pick(x > all(88.0f), all(88.0f), x);
    V n = (kept * all(1.44269504f) + all(12582912.0f)) - all(12582912.0f);
    V r = kept - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    V p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f), p = p * r + all(8.3334519073e-3f), p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f), p = p * r + all(5.0000001201e-1f), p = p * (r * r) + r + all(1);
    V power = (V)((__builtin_convertvector(n, VI) + 127) << 23);
    V y = p * power;
    y = pick(x < all(-87.0f), all(0), y);
    return pick(x == x, y, x);
}
INLINE V hyperbolic(V x) { /* tanh; for small x the odd series, as 1 − … would cancel */
    V a = magnitude(x), e = exponential(all(-2) * a), large = (all(1) - e) / (all(1) + e), s = x * x;
    V small = a * (all(1) + s * (all(-0.333333333f) + s * (all(0.133333333f) + s * all(-0.053968254f))));
    return with_sign(pick(a < all(0.1f), small, large), x);
}
INLINE V error_function(V x) { /* erf: Abramowitz and Stegun 7.1.26, within 1.5e-7 */
    V a = magnitude(x), t = all(1) / (all(1) + all(0.3275911f) * a);
    V p = all(1.061405429f);
    p = p * t + all(-1.453152027f), p = p * t + all(1.421413741f), p = p * t + all(-0.284496736f), p = p * t + all(0.254829592f);
    return with_sign(all(1) - p * t * exponential(-a * a), x);
}
INLINE V activated(int activation, V x) {
    switch (activation) {
    case RELU: return larger(x, all(0));
    case RELU2: { V r = larger(x, all(0)); return r * r; }
    case GELU: return all(0.5f) * x * (all(1) + error_function(x * all(0.70710678f)));
    case GELU_TANH: return all(0.5f) * x * (all(1) + hyperbolic(all(0.79788456f) * (x + all(0.044715f) * x * x * x)));
    case SILU: return x / (all(1) + exponential(-x));
    case TANH: return hyperbolic(x);
    default: return x;
    }
}
OWN void activate(int activation, float *x, int count) { /* count: a multiple of 16 */
    for (int i = 0; i < count; i += 16) store(x + i, activated(activation, load(x + i)));
}

OWN void norm(int kind, const float *x, int64_t width, const float *w, const float *b, float eps, float *out) {
    float total = 0, mean = 0;
    V sums = all(0);
    int64_t i, whole = width / 16 * 16;
    if (kind == LAYER) {
        for (i = 0; i < whole; i += 16) sums += load(x + i);
        for (total = sum(sums); i < width; i++) total += x[i];
        mean = total / (float)width, sums = all(0);
    }
    for (i = 0; i < whole; i += 16) sums += (load(x + i) - all(mean)) * (load(x + i) - all(mean));
    for (total = sum(sums); i < width; i++) total += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / __builtin_sqrtf(total / (float)width + eps);
    for (i = 0; i < whole; i += 16) {
        V y = (load(x + i) - all(mean)) * all(scale) * load(w + i);
        store(out + i, b ? y + load(b + i) : y);
    }
    for (; i < width; i++) out[i] = (x[i] - mean) * scale * w[i] + (b ? b[i] : 0);
}

/* ---- x as whole numbers ----------------------------------------------------------------------------------------- */

typedef struct { int32_t q[8]; float scale, first, second; } Chunk; /* 32 numbers; scale · the sum of each half */

INLINE Chunk whole_numbers(const float *x) {
    V a = load(x), b = load(x + 16);
    float largest = most(larger(magnitude(a), magnitude(b)));
    /* `larger` drops a NaN, this keeps it */
    int finite = !(sum_of_whole(((VI)magnitude(a) >= 0x7f800000) | ((VI)magnitude(b) >= 0x7f800000)));
    /* below 1e-36 the reciprocal would overflow; so small a block counts as zeros */
    V inverse = all(finite && largest > 1e-36f ? 127 / largest : 0);
    float scale = finite ? largest / 127 : as_float(0x7fc00000);
    if (!finite) a = b = all(0);
    /* adding 1.5 · 2^23 rounds to a whole number in the low bits */
    VI p = (VI)(a * inverse + all(12582912.0f)) - 0x4b400000, q = (VI)(b * inverse + all(12582912.0f)) - 0x4b400000;
    B16 low = __builtin_convertvector(p, B16), high = __builtin_convertvector(q, B16);
    Chunk c = {.scale = scale, .first = scale * (float)sum_of_whole(p), .second = scale * (float)sum_of_whole(q)};
    memcpy(c.q, &low, 16), memcpy(c.q + 4, &high, 16);
    return c;
}

OWN void quantize(const float *x, int64_t stride, int M, int64_t K, int halves, X *to) {
    to->M = M;
    for (int m = 0; m < M; m++, x += stride)
        for (int64_t k = 0; k < K; k += 32) {
            Chunk c = whole_numbers(x + k);
            for (int j = 0; j < 8; j++) memcpy(to->q + ((k / 4 + j) * M + m) * 4, c.q + j, 4);
            to->s[k / 32 * M + m] = c.scale, to->t[k / 32 * M + m] = c.first + c.second;
            if (halves) to->t16[k / 16 * M + m] = c.first, to->t16[(k / 16 + 1) * M + m] = c.second;
        }
}

/* ---- products with plain matrices --------------------------------------------------------------------------------- */

INLINE void plain_rows(int type, int size, const uint8_t *w, int64_t K, const X *x, int M, int64_t n, int count, float *out) {
    const int64_t whole = K / 16 * 16;
    for (int i = 0; i < count; i++) {
        const uint8_t *row = w + (n + i) * K * size;
        V a[ROWS], b[ROWS];
        for (int m = 0; m < M; m++) a[m] = b[m] = all(0);
        int64_t k = 0;
        for (; k + 32 <= whole; k += 32) {
            V one = plain(type, row + k * size), two = plain(type, row + (k + 16) * size);
            for (int m = 0; m < M; m++) {
                a[m] += one * load(x->f + m * x->stride + k);
                b[m] += two * load(x->f + m * x->stride + k + 16);
            }
        }
        for (; k < whole; k += 16)
            for (int m = 0; m < M; m++) a[m] += plain(type, row + k * size) * load(x->f + m * x->stride + k);
        for (int m = 0; m < M; m++) {
            float total = sum(a[m] + b[m]);
            for (k = whole; k < K; k++) total += plain_one(type, row + k * size) * x->f[m * x->stride + k];
            out[m * WIDE + i] = total;
        }
    }
}

OWN void plain_product(int type, const uint8_t *w, int64_t K, const X *x, int64_t n, int count, float *out) {
    /* one row of x by far most often; the others share a body, in which the compiler keeps what it can in registers */
#define PLAIN_ROWS(T, SIZE) \
    (x->M == 1 ? plain_rows(T, SIZE, w, K, x, 1, n, count, out) : x->M == 8 ? plain_rows(T, SIZE, w, K, x, 8, n, count, out) \
                                                                : plain_rows(T, SIZE, w, K, x, x->M, n, count, out))
    if (type == F32) PLAIN_ROWS(F32, 4);
    else if (type == BF16) PLAIN_ROWS(BF16, 2);
    else PLAIN_ROWS(F16, 2);
}

/* ---- products with tiles ------------------------------------------------------------------------------------------ */

#define PACKED_TYPES(DO) DO(Q4_0) DO(Q4_1) DO(Q8_0) DO(Q4_K) DO(Q5_K) DO(Q6_K)

/* The product of a processor whose BY_ROWS(TYPE) makes the function tiles_TYPE. */
#define TILES_OF(TYPE) case TYPE: tiles_##TYPE(tile, K, x, count, out); break;
#define PRODUCT_OF_TILES(BY_ROWS) \
    PACKED_TYPES(BY_ROWS) \
    static void product(int type, const uint8_t *w, int64_t K, const X *x, int64_t n, int count, float *out) { \
        const uint8_t *tile = is_packed(type) ? w + n / TILE * tile_bytes(type, K) : NULL; \
        switch (type) { \
        PACKED_TYPES(TILES_OF) \
        default: plain_product(type, w, K, x, n, count, out); \
        } \
    }

/* ---- attention ---------------------------------------------------------------------------------------------------- */

enum { KEYS = 2 * RUN }; /* at a time */
#ifndef GROUP
#define GROUP 1 /* queries at a time: what is loaded serves that many times. Four need 32 registers */
#endif

/* 16 rows of 16 lanes to columns KEYS apart. `pairs`: each lane holds two bfloat16, which become two columns. */
#if defined(QKV_AVX512)
/* Lane l of row r and lane r of row l change places: blocks of 8, then of 4, 2 and 1. */
#define MIXED(a, b, s, L) ((L) & (s) ? 16 + (b) : (a))
#define LOW(s, L) MIXED(L, (L) - (s), s, L)
#define HIGH(s, L) MIXED((L) + (s), L, s, L)
#define LANES(WHICH, s) \
    WHICH(s, 0), WHICH(s, 1), WHICH(s, 2), WHICH(s, 3), WHICH(s, 4), WHICH(s, 5), WHICH(s, 6), WHICH(s, 7), WHICH(s, 8), \
        WHICH(s, 9), WHICH(s, 10), WHICH(s, 11), WHICH(s, 12), WHICH(s, 13), WHICH(s, 14), WHICH(s, 15)
#define SWAP(s) \
    for (int i = 0; i < 16; i++) \
        if (!(i & s)) { \
            V low = __builtin_shufflevector(r[i], r[i + s], LANES(LOW, s)); \
            r[i + s] = __builtin_shufflevector(r[i], r[i + s], LANES(HIGH, s)), r[i] = low; \
        }
INLINE void turn_square(V *r) { SWAP(8) SWAP(4) SWAP(2) SWAP(1) }
INLINE void turn_rows(int pairs, V *r, float *turned) {
    turn_square(r);
    for (int i = 0; i < 16; i++) {
        float *to = turned + i * (1 + pairs) * KEYS;
        store(to, pairs ? (V)((VI)r[i] << 16) : r[i]);
        if (pairs) store(to + KEYS, (V)((VI)r[i] & (int32_t)0xffff0000));
    }
}
#else
/* By fours: shuffles of longer vectors are taken apart lane by lane where registers are shorter. */
INLINE void turn_rows(int pairs, V *r, float *turned) {
    for (int row = 0; row < 16; row += 4)
        for (int lane = 0; lane < 16; lane += 4) {
            V4 in[4], out[4];
            for (int i = 0; i < 4; i++) memcpy(in + i, (const float *)(r + row + i) + lane, sizeof *in);
            V4 a = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5), b = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
            V4 c = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5), d = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
            out[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), out[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
            out[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5), out[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
            for (int i = 0; i < 4; i++) {
                float *to = turned + (lane + i) * (1 + pairs) * KEYS + row;
                V4 low = pairs ? (V4)((VI4)out[i] << 16) : out[i], high = (V4)((VI4)out[i] & (int32_t)0xffff0000);
                memcpy(to, &low, sizeof low);
                if (pairs) memcpy(to + KEYS, &high, sizeof high);
            }
        }
}
#endif

/* `count` keys of D numbers to turned[d][KEYS], zero where there is no key. */
INLINE void turn_keys(int type, int size, const Attend *a, const int64_t *runs, int count, float *turned) {
    const int D = a->D;
    for (int from = 0; from < KEYS; from += RUN, runs++, turned += RUN) {
        const int there = count - from;
        const uint8_t *k = there > 0 ? a->k + *runs : NULL;
        V r[16];
        int d = 0;
        for (; type == BF16 && d + 32 <= D; d += 32) { /* half as many to turn */
            for (int i = 0; i < 16; i++) {
                r[i] = all(0);
                if (i < there) memcpy(r + i, k + ((int64_t)i * D + d) * size, sizeof *r);
            }
            turn_rows(1, r, turned + d * KEYS);
        }
        for (; d + 16 <= D; d += 16) {
            for (int i = 0; i < 16; i++) r[i] = i < there ? plain(type, k + ((int64_t)i * D + d) * size) : all(0);
            turn_rows(0, r, turned + d * KEYS);
        }
        for (; d < D; d++)
            for (int i = 0; i < 16; i++) turned[d * KEYS + i] = i < there ? plain_one(type, k + ((int64_t)i * D + d) * size) : 0;
    }
}

/* Scores of Q queries at KEYS keys: each in the one order of operations, whatever else is in the step. */
INLINE void scores(int Q, const Attend *a, const float *const *q, V (*s)[2]) {
    V odd[GROUP][2];
    for (int i = 0; i < Q; i++) s[i][0] = s[i][1] = odd[i][0] = odd[i][1] = all(0);
    int d = 0;
    for (; d + 2 <= a->D; d += 2) {
        V k0 = load(a->room + d * KEYS), k1 = load(a->room + d * KEYS + 16);
        for (int i = 0; i < Q; i++) s[i][0] += all(q[i][d]) * k0, s[i][1] += all(q[i][d]) * k1;
        k0 = load(a->room + (d + 1) * KEYS), k1 = load(a->room + (d + 1) * KEYS + 16);
        for (int i = 0; i < Q; i++) odd[i][0] += all(q[i][d + 1]) * k0, odd[i][1] += all(q[i][d + 1]) * k1;
    }
    if (d < a->D)
        for (int i = 0; i < Q; i++) s[i][0] += all(q[i][d]) * load(a->room + d * KEYS), s[i][1] += all(q[i][d]) * load(a->room + d * KEYS + 16);
    for (int i = 0; i < Q; i++)
        for (int half_ = 0; half_ < 2; half_++) {
            V at = (s[i][half_] + odd[i][half_]) * all(a->scale);
            s[i][half_] = a->softcap ? all(a->softcap) * hyperbolic(at / all(a->softcap)) : at;
        }
}

/* out[i] += Σ weight · value over `count` keys. */
INLINE void add_values(int Q, int type, int size, const Attend *a, const int64_t *runs, float (*weights)[KEYS], int count, float *const *out) {
    /* two runs side by side are as one: a loop of twice the length takes some 5 % less time */
    const int together = count <= RUN || runs[1] - runs[0] == (int64_t)RUN * a->D * size;
    int d = 0;
    for (; d + 32 <= a->D; d += 32) {
        V o[GROUP][2];
        for (int i = 0; i < Q; i++) o[i][0] = load(out[i] + d), o[i][1] = load(out[i] + d + 16);
        for (int from = 0, end; from < count; from = end) {
            const uint8_t *at = a->v + runs[from / RUN] + d * size;
            end = together || from ? count : RUN;
            for (int j = from; j < end; j++, at += a->D * size) {
                V v0 = plain(type, at), v1 = plain(type, at + 16 * size);
                for (int i = 0; i < Q; i++) o[i][0] += all(weights[i][j]) * v0, o[i][1] += all(weights[i][j]) * v1;
            }
        }
        for (int i = 0; i < Q; i++) store(out[i] + d, o[i][0]), store(out[i] + d + 16, o[i][1]);
    }
    for (; d < a->D; d++)
        for (int j = 0; j < count; j++) {
            float one = plain_one(type, a->v + runs[j / RUN] + (j % RUN * a->D + d) * size);
            for (int i = 0; i < Q; i++) out[i][d] += weights[i][j] * one;
        }
}

/* Queries from the `from`-th over the keys from j, in `runs`, of which `there` are there. */
INLINE void attend_group(int Q, int type, int size, const Attend *a, int from, int64_t j, const int64_t *runs, int there) {
    const V none = all(-__builtin_inff());
    const float *q[GROUP];
    float *out[GROUP];
    _Alignas(64) float weights[GROUP][KEYS];
    V s[GROUP][2];
    int widest = 0;
    for (int i = 0; i < Q; i++) {
        const int r = (from + i) / a->heads, h = (from + i) % a->heads;
        q[i] = a->q + r * a->row + (int64_t)h * a->D, out[i] = a->out + (int64_t)(from + i) * a->D;
    }
    scores(Q, a, q, s);
    for (int i = 0; i < Q; i++) {
        const int64_t seen = a->first + (from + i) / a->heads - j;
        const int count = seen < there ? (int)seen : there;
        float *top = a->most + from + i, *total = a->sums + from + i;
        if (count <= 0) { /* it stands before these keys */
            memset(weights[i], 0, sizeof weights[i]);
            continue;
        }
        widest = count > widest ? count : widest;
        if (a->slopes) { /* key − query */
            V slope = all(a->slopes[(from + i) % a->heads]);
            s[i][0] += slope * count_up((float)(1 - seen)), s[i][1] += slope * count_up((float)(17 - seen));
        }
        V limit = all((float)count);
        s[i][0] = pick(count_up(0) < limit, s[i][0], none), s[i][1] = pick(count_up(16) < limit, s[i][1], none);
        const float now = most(larger(s[i][0], s[i][1]));
        if (!(now <= *top)) {
            const float shrink = *top == -__builtin_inff() ? 0 : exponential(all(*top - now))[0];
            *top = now, *total *= shrink;
            for (int d = 0; d < a->D; d++) out[i][d] *= shrink;
        }
        V p0 = exponential(s[i][0] - all(*top)), p1 = exponential(s[i][1] - all(*top));
        *total += sum(p0 + p1);
        store(weights[i], p0), store(weights[i] + 16, p1);
    }
    if (widest) add_values(Q, type, size, a, runs, weights, widest, out);
}

INLINE void attend_typed(int type, int size, const Attend *a) {
    const int n = a->queries * a->heads;
    for (int i = 0; i < n; i++) a->most[i] = -__builtin_inff(), a->sums[i] = 0;
    memset(a->out, 0, sizeof(float) * (size_t)n * a->D);
    const int64_t *runs = a->runs;
    for (int64_t j = a->from; j < a->to; j += KEYS, runs += KEYS / RUN) {
        const int there = a->to - j < KEYS ? (int)(a->to - j) : KEYS;
        turn_keys(type, size, a, runs, there, a->room);
        int i = 0;
        for (; i + GROUP <= n; i += GROUP) attend_group(GROUP, type, size, a, i, j, runs, there);
        if (GROUP > 1 && n - i == 3) attend_group(3, type, size, a, i, j, runs, there);
        else if (GROUP > 1 && n - i == 2) attend_group(2, type, size, a, i, j, runs, there);
        else if (GROUP > 1 && n - i == 1) attend_group(1, type, size, a, i, j, runs, there);
    }
}

OWN void attend(const Attend *a) {
    if (a->type == F32) attend_typed(F32, 4, a);
    else attend_typed(BF16, 2, a);
}
