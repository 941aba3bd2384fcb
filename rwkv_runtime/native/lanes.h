/* Sixteen floats at once, with the same bits on every processor.
 *
 * Every operation here is one that IEEE 754 defines to the last bit (a fused multiply-add is fused
 * everywhere), so what is computed does not depend on whether sixteen lanes are one register, two,
 * or a loop. The file must be compiled with -ffp-contract=off: nothing may be fused that is not
 * written fused.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

#if defined(__AVX512F__)

#include <immintrin.h>

typedef __m512 lanes;

static inline lanes load(const float *from) { return _mm512_loadu_ps(from); }
static inline void store(float *to, lanes x) { _mm512_storeu_ps(to, x); }
static inline lanes all(float x) { return _mm512_set1_ps(x); }
static inline lanes add(lanes x, lanes y) { return _mm512_add_ps(x, y); }
static inline lanes sub(lanes x, lanes y) { return _mm512_sub_ps(x, y); }
static inline lanes mul(lanes x, lanes y) { return _mm512_mul_ps(x, y); }
static inline lanes quotient(lanes x, lanes y) { return _mm512_div_ps(x, y); }
static inline lanes fused(lanes x, lanes y, lanes z) { return _mm512_fmadd_ps(x, y, z); }
/* Both give y where either is NaN. */
static inline lanes least(lanes x, lanes y) { return _mm512_min_ps(x, y); }
static inline lanes most(lanes x, lanes y) { return _mm512_max_ps(x, y); }
/* 2 to the power that `exponential` has left in the low bits of t. */
static inline lanes power(lanes t) {
    __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(127 << 23)));
}
/* Sixteen bf16. */
static inline lanes load_halves(const uint16_t *from) {
    __m512i halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}
/* As bf16, to the nearest, ties to even; NaN stays NaN. */
static inline lanes rounded(lanes x) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    __m512i bits = _mm512_castps_si512(x);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    near = _mm512_mask_mov_epi32(near, nan, quiet);
    return _mm512_castsi512_ps(_mm512_and_si512(near, upper));
}
/* What was `rounded`. */
static inline void store_halves(uint16_t *to, lanes x) {
    __m512i halves = _mm512_srli_epi32(_mm512_castps_si512(x), 16);
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(halves));
}
/* Sixteen pairs of bf16: the firsts, and the seconds. */
static inline void load_pairs(const uint16_t *from, lanes *first, lanes *second) {
    __m512i pairs = _mm512_loadu_si512(from);
    *first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

#elif defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

typedef struct { __m256 low, high; } lanes;

static inline lanes load(const float *from) {
    return (lanes){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
static inline void store(float *to, lanes x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
static inline lanes all(float x) { return (lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
#define BOTH(name, operation)                                                       \
    static inline lanes name(lanes x, lanes y) {                                    \
        return (lanes){operation(x.low, y.low), operation(x.high, y.high)};         \
    }
BOTH(add, _mm256_add_ps)
BOTH(sub, _mm256_sub_ps)
BOTH(mul, _mm256_mul_ps)
BOTH(quotient, _mm256_div_ps)
BOTH(least, _mm256_min_ps)
BOTH(most, _mm256_max_ps)
#undef BOTH
static inline lanes fused(lanes x, lanes y, lanes z) {
    return (lanes){_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
}
static inline __m256 half_power(__m256 t) {
    __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(127 << 23)));
}
static inline lanes power(lanes t) { return (lanes){half_power(t.low), half_power(t.high)}; }
static inline __m256 half_of_halves(const uint16_t *from) {
    __m256i halves = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
}
static inline lanes load_halves(const uint16_t *from) {
    return (lanes){half_of_halves(from), half_of_halves(from + 8)};
}
static inline __m256 half_rounded(__m256 x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    near = _mm256_blendv_epi8(near, quiet, nan);
    return _mm256_castsi256_ps(_mm256_and_si256(near, _mm256_set1_epi32((int)0xffff0000)));
}
static inline lanes rounded(lanes x) { return (lanes){half_rounded(x.low), half_rounded(x.high)}; }
static inline void store_halves(uint16_t *to, lanes x) {
    __m256i low = _mm256_srli_epi32(_mm256_castps_si256(x.low), 16);
    __m256i high = _mm256_srli_epi32(_mm256_castps_si256(x.high), 16);
    __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    _mm256_storeu_si256((__m256i *)to, halves);
}
static inline void load_pairs(const uint16_t *from, lanes *first, lanes *second) {
    __m256i low = _mm256_loadu_si256((const __m256i *)from);
    __m256i high = _mm256_loadu_si256((const __m256i *)(from + LANES));
    __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    first->low = _mm256_castsi256_ps(_mm256_slli_epi32(low, 16));
    first->high = _mm256_castsi256_ps(_mm256_slli_epi32(high, 16));
    second->low = _mm256_castsi256_ps(_mm256_and_si256(low, mask));
    second->high = _mm256_castsi256_ps(_mm256_and_si256(high, mask));
}

#else /* any other processor */

typedef struct { float at[LANES]; } lanes;

#define EACH(expression)                          \
    lanes result;                                 \
    for (int i = 0; i < LANES; i++)               \
        result.at[i] = (expression);              \
    return result

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline lanes load(const float *from) { EACH(from[i]); }
static inline void store(float *to, lanes x) { memcpy(to, x.at, sizeof x.at); }
static inline lanes all(float x) { EACH(x); }
static inline lanes add(lanes x, lanes y) { EACH(x.at[i] + y.at[i]); }
static inline lanes sub(lanes x, lanes y) { EACH(x.at[i] - y.at[i]); }
static inline lanes mul(lanes x, lanes y) { EACH(x.at[i] * y.at[i]); }
static inline lanes quotient(lanes x, lanes y) { EACH(x.at[i] / y.at[i]); }
static inline lanes fused(lanes x, lanes y, lanes z) { EACH(fmaf(x.at[i], y.at[i], z.at[i])); }
static inline lanes least(lanes x, lanes y) { EACH(x.at[i] < y.at[i] ? x.at[i] : y.at[i]); }
static inline lanes most(lanes x, lanes y) { EACH(x.at[i] > y.at[i] ? x.at[i] : y.at[i]); }
static inline lanes power(lanes t) {
    EACH(float_of((bits_of(t.at[i]) << 23) + ((uint32_t)127 << 23)));
}
static inline lanes load_halves(const uint16_t *from) { EACH(float_of((uint32_t)from[i] << 16)); }
static inline float one_rounded(float x) {
    uint32_t bits = bits_of(x);
    bits = x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    return float_of(bits & 0xffff0000);
}
static inline lanes rounded(lanes x) { EACH(one_rounded(x.at[i])); }
static inline void store_halves(uint16_t *to, lanes x) {
    for (int i = 0; i < LANES; i++)
        to[i] = (uint16_t)(bits_of(x.at[i]) >> 16);
}
static inline void load_pairs(const uint16_t *from, lanes *first, lanes *second) {
    for (int i = 0; i < LANES; i++) {
        first->at[i] = float_of((uint32_t)from[2 * i] << 16);
        second->at[i] = float_of((uint32_t)from[2 * i + 1] << 16);
    }
}
#undef EACH

#endif

/* The sum of all lanes: the upper half is added to the lower until one is left. */
#if defined(__AVX2__) && defined(__FMA__)
static inline float total(lanes x) {
#if defined(__AVX512F__)
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), high);
#else
    __m256 eight = _mm256_add_ps(x.low, x.high);
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#else
static inline float total(lanes x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            x.at[i] += x.at[i + half];
    return x.at[0];
}
#endif

/* e^x to within about one unit in the last place, for x from -87 to 88; beyond, as at the limit. */
static inline lanes exponential(lanes x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to an integer */
    x = most(all(-87.0f), least(all(88.0f), x));
    lanes t = fused(x, all(1.44269504f), all(shift));
    lanes n = sub(t, all(shift));
    lanes r = fused(n, all(-0.693359375f), x); /* ln 2 in two parts, the first one short */
    r = fused(n, all(2.12194440e-4f), r);
    lanes p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = fused(p, mul(r, r), add(r, all(1.0f)));
    return mul(p, power(t));
}

static inline lanes sigmoid(lanes x) {
    return quotient(all(1.0f), add(all(1.0f), exponential(sub(all(0.0f), x))));
}

static inline lanes hyperbolic_tangent(lanes x) {
    lanes denominator = add(all(1.0f), exponential(add(x, x)));
    return sub(all(1.0f), quotient(all(2.0f), denominator));
}
