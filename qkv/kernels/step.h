/* One step of a decoder: what Python fills in (`qkv/kernels/plan.py` mirrors these), and what runs it. */

#ifndef QKV_STEP_H
#define QKV_STEP_H

#include "qkv.h"

enum { PARTS = 3 };
enum { LINEAR, ATTEND, NORM, EMBED }; /* kinds of Op */

typedef struct { /* y = act(W x + b) · scale */
    const uint8_t *w;
    const float *bias;
    float *out; /* [rows, N] */
    int64_t N;
    int32_t type, activation;
} Part;

typedef struct {
    int32_t kind, parts;
    /* EMBED: rows of part[0] · scale + rows of `residual` [positions, N], to its `out`.
       LINEAR and NORM: the input's rows [rows, K], and its norm; what is added to the results */
    const float *in, *residual, *norm_w, *norm_b;
    int64_t K;
    int32_t norm, gated; /* gated: the first part's output ⊙ the second's, in the first's place */
    float eps, scale, softcap;
    int32_t picked; /* only the rows that are asked for */
    Part part[PARTS];
    /* ATTEND */
    float *q, *k, *v, *out; /* [rows, H · D], [rows, G · D] twice, [rows, H · D] */
    const float *cos_, *sin_, *slopes, *q_norm, *q_bias, *k_norm, *k_bias;
    uint8_t *keys, *values; /* [sequences, G, slots, D], position p in slot p; or [pages, G, slots of a page, D] */
    int64_t slots;
    int32_t heads, kv_heads, D, turned, interleaved, cache, qk_norm;
    float qk_eps;
} Op;

typedef struct {
    const Op *ops;
    int64_t count, rows, sequences, picks;
    const int64_t *lengths, *starts; /* of each sequence's new tokens */
    const int64_t *prompts;          /* how many of these, its first ones, are read as a prompt's */
    const int64_t *ids;              /* of each row */
    const int64_t *picked;           /* the rows that `picked` ops read */
    int64_t threads;
    const int64_t *pages; /* [sequences, most pages], position p in slot p mod slots of page p // slots (slots a multiple */
    int64_t most_pages;   /* of RUN); or NULL: keys are held by sequence */
} Step;

#endif
