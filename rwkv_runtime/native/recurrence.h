/* The recurrence of one head, token by token:
 *
 *     S' = S diag(w) + (S a) b^T + v k^T and y = S' r with a = -kk, b = kk * rate
 *
 * A sum over keys is taken in their order. It works on a state that was turned, [K, V]: sixteen
 * values are then computed side by side, and nothing is summed across lanes.
 */
#pragma once

#include "vectors.h"

/* [size, size] -> transposed, elsewhere. */
static void turn(const float *from, float *to, int64_t size) {
    for (int64_t row = 0; row < size; row += LANES)
        for (int64_t column = 0; column < size; column += LANES)
            for (int64_t i = 0; i < LANES; i++)
                for (int64_t j = 0; j < LANES; j++)
                    to[(column + i) * size + row + j] = from[(row + j) * size + column + i];
}

/* One token's vectors of a head, [size] each. */
typedef struct {
    const float *r, *w, *k, *v, *kk, *b;
    float *y;
} Heard;

#if defined(__AVX512F__)
enum { ABREAST = 4 };
#else
enum { ABREAST = 1 };
#endif

/* `count` times sixteen values, from `first` on; y only if it is `read`. */
static inline __attribute__((always_inline)) void recur_some(float *turned, int64_t size,
                                                             Heard of, int64_t first,
                                                             const int count, const int read) {
    lanes removed[ABREAST], value[ABREAST], sum[ABREAST];
    float *state = turned + first;
    for (int i = 0; i < count; i++) {
        removed[i] = sum[i] = all(0.0f);
        value[i] = load(of.v + first + i * LANES);
    }
    for (int64_t key = 0; key < size; key++)
        for (int i = 0; i < count; i++)
            removed[i] = fused(load(state + key * size + i * LANES), all(of.kk[key]), removed[i]);
    for (int i = 0; i < count; i++)
        removed[i] = sub(all(0.0f), removed[i]);
    for (int64_t key = 0; key < size; key++, state += size)
        for (int i = 0; i < count; i++) {
            lanes s = mul(load(state + i * LANES), all(of.w[key]));
            s = fused(removed[i], all(of.b[key]), s);
            s = fused(value[i], all(of.k[key]), s);
            store(state + i * LANES, s);
            if (read)
                sum[i] = fused(s, all(of.r[key]), sum[i]);
        }
    for (int i = 0; read && i < count; i++)
        store(of.y + first + i * LANES, sum[i]);
}

static void recur(float *turned, int64_t size, Heard of, int read) {
    int64_t first = 0;
    for (; first + ABREAST * LANES <= size; first += ABREAST * LANES)
        if (read)
            recur_some(turned, size, of, first, ABREAST, 1);
        else
            recur_some(turned, size, of, first, ABREAST, 0);
    for (; first < size; first += LANES)
        recur_some(turned, size, of, first, 1, read);
}
