/* The native library without Python, for a sanitizer: several callers at once, each with threads, then in a child.
   Every buffer is exactly as large as it must be; random blocks, so scales are infinite and NaN too. */

#include "qkv.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

const char *qkv_use(int level);
void qkv_pack(int type, uint8_t *blocks, int64_t N, int64_t K, uint8_t *tiles, int back, int threads);
int qkv_linear(int type, const uint8_t *w, int64_t N, int64_t K, const float *x, int64_t M, float *y, int prompt, int threads);
void qkv_dequantize(int type, const uint8_t *w, int64_t K, const int64_t *index, int64_t count, void *out, int bfloat16, int threads);

static const int TYPES[] = {Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K};

static uint32_t next(uint32_t *seed) {
    *seed ^= *seed << 13, *seed ^= *seed >> 17, *seed ^= *seed << 5;
    return *seed;
}

static int once(int type, int64_t N, int64_t K, int64_t M, int threads, uint32_t seed) {
    const Layout l = layout_of(type);
    const int64_t row = K / l.weights * l.bytes, tiles = (N + TILE - 1) / TILE * TILE * row;
    uint8_t *blocks = malloc(N * row), *again = malloc(N * row), *w = calloc(1, tiles);
    float *x = malloc(M * K * sizeof(float)), *y = malloc(M * N * sizeof(float)), *z = malloc(M * N * sizeof(float));
    float *plain = malloc(N * K * sizeof(float));
    for (int64_t i = 0; i < N * row; i++) blocks[i] = (uint8_t)next(&seed);
    for (int64_t i = 0; i < M * K; i++) x[i] = (float)(int32_t)next(&seed) * 1e-9f;
    qkv_pack(type, blocks, N, K, w, 0, threads);
    qkv_pack(type, again, N, K, w, 1, threads);
    qkv_dequantize(type, w, K, NULL, N, plain, 0, threads);
    int wrong = memcmp(blocks, again, N * row) != 0;
    for (int prompt = 0; prompt < 2; prompt++) {
        wrong |= qkv_linear(type, w, N, K, x, M, y, prompt, threads) | qkv_linear(type, w, N, K, x, M, z, prompt, 1);
        wrong |= memcmp(y, z, M * N * sizeof(float)) != 0;
    }
    free(blocks), free(again), free(w), free(x), free(y), free(z), free(plain);
    return wrong;
}

static void *caller(void *number) {
    uint32_t seed = 17 + (uint32_t)(intptr_t)number;
    intptr_t wrong = 0;
    for (int i = 0; i < 60; i++) {
        int type = TYPES[next(&seed) % 6];
        int64_t K = (type >= Q4_K && type != BF16 ? 256 : 32) * (int64_t)(1 + next(&seed) % 4), N = 1 + next(&seed) % 150;
        wrong |= once(type, N, K, 1 + next(&seed) % 10, 1 + next(&seed) % 4, seed);
    }
    return (void *)wrong;
}

static int callers(int count) {
    pthread_t threads[8];
    int wrong = 0;
    for (int i = 0; i < count; i++) pthread_create(threads + i, NULL, caller, (void *)(intptr_t)i);
    for (int i = 0; i < count; i++) {
        void *result;
        pthread_join(threads[i], &result);
        wrong |= result != NULL;
    }
    return wrong;
}

int main(void) {
    int wrong = 0;
    for (int level = 0; level < 3; level++) {
        const char *name = qkv_use(level);
        int bad = callers(3);
        printf("%s: %s\n", name, bad ? "WRONG" : "the same with any number of threads");
        fflush(stdout);
        wrong |= bad;
    }
    pid_t child = fork();
    if (child == 0) _exit(caller((void *)1) != NULL);
    int status;
    waitpid(child, &status, 0);
    printf("forked: %s\n", status ? "WRONG" : "the same");
    return wrong || status;
}
