/* What kernel.py hands over: a model, its states, and the threads that compute. Each struct has a
 * twin there. Nothing is checked here: kernel.py does, before it calls.
 *
 * A matrix [out, in] lies in blocks of 64 outputs, as oneDNN packs it for AVX-512: fp32 as
 * [out / 64, in, 64], bf16 as [out / 64, in / 2, 64, 2], filled up with zeros.
 */
#pragma once

#include <stdint.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

enum { BLOCK = 64 };

typedef struct {
    const void *blocks;
    int64_t in; /* even */
    int64_t out; /* a multiple of BLOCK */
} Matrix;

typedef struct {
    const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias, *ln_x_weight, *ln_x_bias;
    const float *mix; /* [6, width] for r, w, k, v, a, g */
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ffn_mix;
    Matrix w1, a1, v1, g1, w2, a2, v2, g2; /* layer 0 has no v0, v1, v2 */
    Matrix receptance, key, value, output, ffn_key, ffn_value;
} Layer;

/* Widths are multiples of 16. */
typedef struct {
    int64_t layers, width, heads, rank, ffn_width; /* rank: the largest, filled up to blocks */
    int64_t is_bf16;
    const void *emb; /* [vocabulary, width] */
    const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias;
    const Layer *layer;
    Matrix head;
} Model;

typedef struct {
    void *att_x_prev; /* [width] */
    float *att_kv; /* [heads, V, K] */
    void *ffn_x_prev; /* [width] */
} LayerState;

/* Of the OpenMP that the process has anyway, so that there is one pool of threads, not two. */
typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);
    void (*barrier)(void);
    int (*number)(void);
    int (*count)(void);
} Team;

typedef struct {
    int64_t number, count, phase; /* how many phases it has done */
} Thread;

typedef struct {
    int64_t from, to;
} Range;

/* What is smaller than a normal number is a number too, whatever another library told the processor
 * in this thread. */
static unsigned begin_exact(void) {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
#else
    return 0;
#endif
}

static void end_exact(unsigned before) {
#if defined(__SSE__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

static void run(const Team *team, void (*part)(void *), void *work, int64_t threads) {
    if (team->parallel)
        team->parallel(part, work, (unsigned)threads, 0);
    else
        part(work);
}

static Thread thread_of(const Team *team) {
    return team->parallel ? (Thread){team->number(), team->count(), 0} : (Thread){0, 1, 0};
}

/* No further until every thread is here. */
static void meet(const Team *team, Thread thread) {
    if (thread.count > 1)
        team->barrier();
}

/* The part of `count` things that one thread does. */
static Range share(Thread thread, int64_t count) {
    return (Range){count * thread.number / thread.count, count * (thread.number + 1) / thread.count};
}
