/* The products for any processor: the meaning of a tile, read one number after the other. */

#include "body.h"

#include "numbers.h"

INLINE void tile_portable(int type, const uint8_t *tile, int64_t K, const X *x, float *out) {
    const Layout l = layout_of(type);
    const int M = x->M;
    for (int m = 0; m < M; m++) memset(out + m * WIDE, 0, TILE * sizeof(float));
    for (int64_t block = 0; block < K / l.weights; block++, tile += l.bytes * TILE)
        for (int r = 0; r < TILE; r++) {
            Numbers w;
            numbers(type, tile, r, &w);
            for (int g = 0; g < l.weights / w.group; g++) {
                const int64_t k = block * l.weights + g * w.group;
                for (int m = 0; m < M; m++) {
                    int32_t whole = 0;
                    for (int i = 0; i < w.group; i++) whole += w.q[g * w.group + i] * x->q[((k + i) / 4 * M + m) * 4 + (k + i) % 4];
                    float low = w.group == 16 ? x->t16[k / 16 * M + m] : x->t[k / 32 * M + m];
                    out[m * WIDE + r] += w.d[g] * x->s[k / 32 * M + m] * (float)whole + w.m[g] * low;
                }
            }
        }
}

static void product(int type, const uint8_t *w, int64_t K, const X *x, int64_t n, int count, float *out) {
    if (!is_packed(type)) {
        plain_product(type, w, K, x, n, count, out);
        return;
    }
    const uint8_t *tile = w + n / TILE * tile_bytes(type, K);
    for (int i = 0; i < count; i += TILE, tile += tile_bytes(type, K)) tile_portable(type, tile, K, x, out + i);
}

#ifndef QKV_NAME
#define QKV_NAME "portable"
#endif
const Body qkv_portable = {QKV_NAME, quantize, product, NULL, NULL, NULL, NULL, NULL, norm, activate, attend};
