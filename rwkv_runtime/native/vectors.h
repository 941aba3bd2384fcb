/* Vectors of one token: as they are kept, as they are fed to products, and their norms.
 *
 * A sum over a vector is taken in sixteen lanes, lane i over the elements i, i + 16, ...
 */
#pragma once

#include "lanes.h"

/* Whether the processor multiplies pairs of bf16: then they are fed to products as bf16, and else
 * as floats that were rounded to bf16. */
#if defined(__AVX512BF16__)
enum { PAIRS = 1 };
#else
enum { PAIRS = 0 };
#endif

static inline lanes load_kept(const void *from, int64_t place, int is_bf16) {
    return is_bf16 ? load_halves((const uint16_t *)from + place) : load((const float *)from + place);
}

static inline void keep(void *to, int64_t place, lanes x, int is_bf16) {
    if (is_bf16)
        store_halves((uint16_t *)to + place, rounded(x));
    else
        store((float *)to + place, x);
}

/* Sixteen inputs of a product; `keep`, but for how they lie. */
static inline void feed(void *to, int64_t place, lanes x, int is_bf16) {
    if (is_bf16 && PAIRS)
        store_halves((uint16_t *)to + place, rounded(x));
    else
        store((float *)to + place, is_bf16 ? rounded(x) : x);
}

/* Bytes of an input as it is fed. */
static int64_t fed_size(int is_bf16) { return is_bf16 && PAIRS ? 2 : 4; }

static float dot(const float *x, const float *y, int64_t length) {
    lanes sum = all(0.0f);
    for (int64_t i = 0; i < length; i += LANES)
        sum = fused(load(x + i), load(y + i), sum);
    return total(sum);
}

/* What a norm needs of a vector. */
typedef struct {
    lanes mean, scale;
} Moments;

static Moments moments(const float *x, int64_t length, float eps) {
    lanes sum = all(0.0f), squares = all(0.0f);
    for (int64_t i = 0; i < length; i += LANES)
        sum = add(sum, load(x + i));
    lanes mean = all(total(sum) / (float)length);
    for (int64_t i = 0; i < length; i += LANES) {
        lanes distance = sub(load(x + i), mean);
        squares = fused(distance, distance, squares);
    }
    return (Moments){mean, all(1.0f / sqrtf(total(squares) / (float)length + eps))};
}

static inline lanes normed(Moments m, lanes x, lanes weight, lanes bias) {
    return fused(mul(sub(x, m.mean), m.scale), weight, bias);
}

static inline lanes squared_relu(lanes x) {
    x = most(all(0.0f), x);
    return mul(x, x);
}
