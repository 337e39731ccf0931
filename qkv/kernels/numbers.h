/* What a block of a tile means, row by row: a weight is d·q + m, with a scale d and a minimum m for each group. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include "qkv.h"

typedef struct { int group; uint8_t q[256]; float d[16], m[16]; } Numbers;

INLINE uint32_t word_of(const uint8_t *words, int word, int row) {
    uint32_t w;
    memcpy(&w, words + (word * TILE + row) * 4, 4);
    return w;
}

/* The 6-bit scales of eight groups, then their minima: four in a word. */
INLINE void six_bits(uint32_t a, uint32_t c, uint32_t e, uint32_t *to) {
    to[0] = a & 0x3f3f3f3f, to[1] = (e & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
    to[2] = c & 0x3f3f3f3f, to[3] = (e >> 4 & 0x0f0f0f0f) | (c >> 2 & 0x30303030);
}

INLINE void numbers(int type, const uint8_t *block, int row, Numbers *to) {
    const Layout l = layout_of(type);
    const uint8_t *words = block + l.halves * TILE * 2;
    const float first = half(block + row * 2), second = l.halves == 2 ? half(block + TILE * 2 + row * 2) : 0;
    to->group = type == Q6_K ? 16 : 32;
    if (l.weights == 32) {
        to->d[0] = first, to->m[0] = type == Q4_1 ? second : (type == Q4_0 ? -8 : -128) * first;
        for (int j = 0; j < 8; j++) {
            uint32_t four = type == Q8_0 ? word_of(words, j, row) ^ 0x80808080 : word_of(words, j % 4, row) >> (j / 4 * 4) & 0x0f0f0f0f;
            memcpy(to->q + 4 * j, &four, 4);
        }
    } else if (type == Q6_K) {
        for (int g = 0; g < 16; g++) {
            to->d[g] = first * (int8_t)(word_of(words, 48 + g / 4, row) >> (g % 4 * 8)), to->m[g] = -32 * to->d[g];
            for (int j = 0; j < 4; j++) {
                const int chunk = g / 2 % 4, at = g / 8, word = g % 2 * 4 + j; /* of 32 weights; half of the block */
                uint32_t low = word_of(words, at * 16 + chunk % 2 * 8 + word, row) >> (chunk / 2 * 4) & 0x0f0f0f0f;
                uint32_t high = word_of(words, 32 + at * 8 + word, row) >> (2 * chunk) & 0x03030303;
                low |= high << 4;
                memcpy(to->q + g * 16 + 4 * j, &low, 4);
            }
        }
    } else {
        const int bits = type == Q5_K ? 11 : 3; /* where the low bits begin */
        uint32_t six[4];
        six_bits(word_of(words, 0, row), word_of(words, 1, row), word_of(words, 2, row), six);
        for (int g = 0; g < 8; g++) {
            to->d[g] = first * (float)(six[g / 4] >> (g % 4 * 8) & 0xff), to->m[g] = -(second * (float)(six[2 + g / 4] >> (g % 4 * 8) & 0xff));
            for (int j = 0; j < 8; j++) {
                uint32_t low = word_of(words, bits + g / 2 * 8 + j, row) >> (g % 2 * 4) & 0x0f0f0f0f;
                if (type == Q5_K) low |= (word_of(words, 3 + j, row) >> g & 0x01010101) << 4;
                memcpy(to->q + g * 32 + 4 * j, &low, 4);
            }
        }
    }
}

#endif
