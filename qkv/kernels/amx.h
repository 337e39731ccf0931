/* AMX's registers: what they hold is said once, before they are used. */

#ifndef AMX_H
#define AMX_H

typedef struct __attribute__((aligned(64))) {
    uint8_t palette, start, none[14];
    uint16_t bytes[16]; /* of a row of each register */
    uint8_t rows[16];
} Config;

/* Registers 0 to 3: results [16, 16]; 4 and 5: x, 16 rows of so many bytes; 6 and 7: W, four bytes of 16 rows in a row. */
static void configure(int bytes) {
    Config c = {.palette = 1};
    for (int i = 0; i < 4; i++) c.bytes[i] = 64, c.rows[i] = 16;
    for (int i = 4; i < 6; i++) c.bytes[i] = (uint16_t)bytes, c.rows[i] = 16;
    for (int i = 6; i < 8; i++) c.bytes[i] = 64, c.rows[i] = (uint8_t)(bytes / 4);
    __asm__ volatile("" : : "r"(&c) : "memory"); /* GCC's intrinsic says that it reads eight bytes; it reads all 64 */
    _tile_loadconfig(&c);
}

/* What was stored is in memory before a register is filled: GCC's intrinsic does not say that it reads any. */
#define SETTLED() __asm__ volatile("" ::: "memory")

INLINE Spread spread_at(uint8_t *room, int64_t K) { return (Spread){room, (float *)(room + K * TILE), (float *)(room + K * TILE) + K}; }

#endif
