/* AMX: for many rows, 16 of x times a tile of 16 of W in one instruction. It gives whole numbers, group by group, and is
   followed by the same floating point operations in the same order as with AVX-512, so the results are the same. */

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2"))), apply_to = function)
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("O3,fp-contract=fast")
#pragma GCC target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")
#endif

#define QKV_AVX512
#include "body.h"
#include "amx.h"

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
long syscall(long number, ...);
#endif

static void arrange(const float *x, int64_t stride, int M, int64_t K, int halves, X *to) {
    to->M = M;
    if (M < MANY) memset(to->q, 0, MANY * K); /* the other rows are multiplied too, and nobody reads the result */
    for (int m = 0; m < M; m++, x += stride)
        for (int64_t k = 0; k < K; k += 32) {
            Chunk c = whole_numbers(x + k);
            memcpy(to->q + k * MANY + m * 32, c.q, 32);
            to->s[k / 32 * MANY + m] = c.scale, to->t[k / 32 * MANY + m] = c.first + c.second;
            if (halves) to->t16[k / 16 * MANY + m] = c.first, to->t16[(k / 16 + 1) * MANY + m] = c.second;
        }
}

#define DOTS(c, a, b, at) \
    do { \
        _tile_zero(c); \
        _tile_loadd(a, x->q + (at) / per * 512 + (at) % per * group, 32); \
        _tile_loadd(b, w->q + (at) * group * TILE, 64); \
        _tile_dpbsud(c, a, b); \
        _tile_stored(c, whole + c * 256, 64); \
    } while (0)

/* out[m][..] += d · s · Σ q x + low · s · Σ x of `groups` groups from g. */
INLINE void add_groups(int group, const X *x, const Spread *w, int64_t g, int groups, float *out) {
    const int per = 32 / group;
    _Alignas(64) int32_t whole[4 * 256];
    DOTS(0, 4, 6, g);
    if (groups > 1) DOTS(1, 5, 7, g + 1);
    if (groups > 2) DOTS(2, 4, 6, g + 2);
    if (groups > 3) DOTS(3, 5, 7, g + 3);
    for (int m = 0; m < x->M; m++) {
        __m512 sum = _mm512_load_ps(out + m * WIDE);
        for (int i = 0; i < groups; i++) {
            __m512 dots = _mm512_cvtepi32_ps(_mm512_load_si512(whole + i * 256 + m * 16));
            __m512 d = _mm512_loadu_ps(w->d + (g + i) * TILE), s = _mm512_set1_ps(x->s[(g + i) / per * MANY + m]);
            if (group == 16) {
                dots = _mm512_fmadd_ps(dots, s, _mm512_set1_ps(-32 * x->t16[(g + i) * MANY + m]));
                sum = _mm512_fmadd_ps(dots, d, sum);
            } else {
                sum = _mm512_fmadd_ps(dots, _mm512_mul_ps(d, s), sum);
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(w->low + (g + i) * TILE), _mm512_set1_ps(x->t[(g + i) * MANY + m]), sum);
            }
        }
        _mm512_store_ps(out + m * WIDE, sum);
    }
}

INLINE void row_block(int group, int64_t groups, const X *x, const Spread *w, float *out) {
    int64_t g = 0;
    for (int m = 0; m < x->M; m++) memset(out + m * WIDE, 0, TILE * sizeof(float));
    for (; g + 4 <= groups; g += 4) add_groups(group, x, w, g, 4, out);
    if (groups - g == 1) add_groups(group, x, w, g, 1, out);
    if (groups - g == 2) add_groups(group, x, w, g, 2, out);
    if (groups - g == 3) add_groups(group, x, w, g, 3, out);
}

static void many(int type, const uint8_t *w, int64_t K, int tiles, const Blocks *rows, uint8_t *room) {
    const int group = type == Q6_K ? 16 : 32;
    _Alignas(64) float out[MANY * WIDE];
    Spread spread[WIDE / TILE];
    for (int t = 0; t < tiles; t++, room += spread_bytes(K)) {
        spread[t] = spread_at(room, K);
        qkv_spread(type, w + t * tile_bytes(type, K), K, spread + t);
    }
    SETTLED();
    configure(group);
    for (int64_t i = 0; i < rows->blocks; i++) {
        const X *x = rows->block(rows->with, i);
        for (int t = 0; t < tiles; t++) {
            if (group == 16) row_block(16, K / 16, x, spread + t, out + t * TILE);
            else row_block(32, K / 32, x, spread + t, out + t * TILE);
        }
        rows->done(rows->with, i, out);
    }
    _tile_release();
}

/* If the processor has it and the system lets this process use it. */
int qkv_with_amx(Body *body) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return 0;
#if defined(__linux__) && defined(SYS_arch_prctl)
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* the registers' number */)) return 0;
    const int halves = d >> 22 & 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1;
    body->name = "amx", body->arrange = arrange, body->many = many;
    if (halves) qkv_with_bulk(body);
    return 1;
#else
    return 0;
#endif
}

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
