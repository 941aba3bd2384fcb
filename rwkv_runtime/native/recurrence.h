/* The recurrence of one head, token by token:
 *
 *     S' = S diag(w) + (S a) b^T + v k^T and y = S' r with a = -kk, b = kk * rate
 *
 * A sum over keys is taken in their order. It works on a state that was turned, [K, V]: sixteen
 * values are then computed side by side, and nothing is summed across lanes.
 */
#pragma once

#include "vectors.h"

/* Sixteen rows of sixteen, `size` apart. */
#if defined(__AVX512F__)
static void turn_sixteen(const float *from, float *to, int64_t size) {
    lanes r[LANES], t[LANES];
    for (int i = 0; i < LANES; i++)
        r[i] = load(from + i * size);
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i++) { /* r[4 i + j] now holds the columns j, 4 + j, ... of four rows */
        __m512d one = _mm512_castps_pd(t[i / 4 * 4 + i % 4 / 2]);
        __m512d other = _mm512_castps_pd(t[i / 4 * 4 + i % 4 / 2 + 2]);
        r[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(one, other)
                                      : _mm512_unpacklo_pd(one, other));
    }
    for (int j = 0; j < 4; j++) {
        lanes even = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
        lanes more_even = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
        lanes odd = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
        lanes more_odd = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
        store(to + j * size, _mm512_shuffle_f32x4(even, more_even, 0x88));
        store(to + (4 + j) * size, _mm512_shuffle_f32x4(odd, more_odd, 0x88));
        store(to + (8 + j) * size, _mm512_shuffle_f32x4(even, more_even, 0xdd));
        store(to + (12 + j) * size, _mm512_shuffle_f32x4(odd, more_odd, 0xdd));
    }
}
#else
static void turn_sixteen(const float *from, float *to, int64_t size) {
    for (int64_t i = 0; i < LANES; i++)
        for (int64_t j = 0; j < LANES; j++)
            to[i * size + j] = from[j * size + i];
}
#endif

/* [size, size] -> transposed, elsewhere. */
static void turn(const float *from, float *to, int64_t size) {
    for (int64_t row = 0; row < size; row += LANES)
        for (int64_t column = 0; column < size; column += LANES)
            turn_sixteen(from + row * size + column, to + column * size + row, size);
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

/* States that come next, as large as this one and somewhere else in memory; null if there are none. */
typedef struct {
    const float *read;
    float *written;
} Next;

/* `count` times sixteen values, from `first` on; y only if it is `read`. */
static inline __attribute__((always_inline)) void recur_some(float *turned, int64_t size,
                                                             Heard of, Next next, int64_t first,
                                                             const int count, const int read,
                                                             const int many) {
    lanes removed[ABREAST], value[ABREAST], sum[ABREAST];
    float *state = turned + first;
    for (int i = 0; i < count; i++) {
        removed[i] = sum[i] = all(0.0f);
        value[i] = load(of.v + first + i * LANES);
    }
    for (int64_t key = 0; key < size; key++)
        for (int i = 0; i < count; i++) {
            if (many)
                __builtin_prefetch(next.read + first + key * size + i * LANES);
            removed[i] = fused(load(state + key * size + i * LANES), all(of.kk[key]), removed[i]);
        }
    for (int i = 0; i < count; i++)
        removed[i] = sub(all(0.0f), removed[i]);
    for (int64_t key = 0; key < size; key++, state += size)
        for (int i = 0; i < count; i++) {
            if (many)
                __builtin_prefetch(next.written + first + key * size + i * LANES, 1);
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

static void recur(float *turned, int64_t size, Heard of, Next next, int read) {
    int64_t first = 0;
    for (; first + ABREAST * LANES <= size; first += ABREAST * LANES)
        if (next.read)
            recur_some(turned, size, of, next, first, ABREAST, 1, 1);
        else if (read)
            recur_some(turned, size, of, next, first, ABREAST, 1, 0);
        else
            recur_some(turned, size, of, next, first, ABREAST, 0, 0);
    for (; first < size; first += LANES)
        recur_some(turned, size, of, next, first, 1, read, 0);
}
