/* Matrices times vectors, a few vectors at once; each output by itself, in an order of its own.
 *
 * In fp32 an output is one sum over the inputs, in their order, by fused multiply-adds.
 *
 * In bf16 the inputs are bf16 too, and the sum is what the processors' instruction for pairs of
 * bf16 (vdpbf16ps) makes of them: of each pair the second and then the first product are added to
 * an fp32 sum by fused multiply-adds, rounded to nearest; what is smaller than the least normal
 * number counts as zero, whether read or (after rounding) written. Where there is no such
 * instruction the same is computed without it.
 */
#pragma once

#include <float.h>

#include "model.h"
#include "vectors.h"

enum { QUARTERS = BLOCK / LANES };

/* Bytes that are asked for ahead of their use: the processor itself does not look beyond a page. */
enum { AHEAD = 4096 };

/* Vectors whose sums fit into the registers together with some weights. */
#if defined(__AVX512F__)
enum { MOST_ROWS = 6, WIDE = QUARTERS };
#elif defined(__AVX2__) && defined(__FMA__)
enum { MOST_ROWS = 6, WIDE = 1 };
#else
enum { MOST_ROWS = 1, WIDE = 1 };
#endif

/* What a product reads and writes: a vector of each row, as it was fed, so many bytes and floats
 * apart. */
typedef struct {
    const void *x;
    float *out;
    int64_t rows, x_apart, out_apart;
} Rows;

static Rows without(Rows of, int64_t rows) {
    return (Rows){(const char *)of.x + rows * of.x_apart, of.out + rows * of.out_apart,
                  of.rows - rows, of.x_apart, of.out_apart};
}

/* x y + z, with numbers below the normal ones as zeros. */
static inline float one_fused_flushed(float x, float y, float z) {
    double exact = (double)x * (double)y + (double)z; /* as exact as it needs to be near FLT_MIN */
    if (fabs(exact) < 0x1.ffffffp-127) /* rounded to 24 bits, less than FLT_MIN */
        return copysignf(0.0f, (float)exact);
    return fmaf(x, y, z);
}

static inline float one_flushed(float x) { return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x; }

/* A bf16 as a float; what is smaller than normal is zero. */
static inline float one_wide(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return one_flushed(x);
}

#if defined(__AVX2__) && defined(__FMA__)

/* x86 processors can be told to. */
static unsigned begin_flushing(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static void end_flushing(unsigned before) { _mm_setcsr(before); }
static inline lanes fused_flushed(lanes x, lanes y, lanes z) { return fused(x, y, z); }
static inline lanes flushed(lanes x) { return x; }

#else

static unsigned begin_flushing(void) { return 0; }
static void end_flushing(unsigned before) { (void)before; }
static inline lanes fused_flushed(lanes x, lanes y, lanes z) {
    lanes sum = fused(x, y, z);
    int small = 0;
    for (int i = 0; i < LANES; i++)
        small |= fabsf(sum.at[i]) <= FLT_MIN;
    for (int i = 0; small && i < LANES; i++)
        sum.at[i] = one_fused_flushed(x.at[i], y.at[i], z.at[i]);
    return sum;
}
static inline lanes flushed(lanes x) {
    for (int i = 0; i < LANES; i++)
        x.at[i] = one_flushed(x.at[i]);
    return x;
}

#endif

/* Two inputs' parts of sixteen outputs of a few rows. */
static inline __attribute__((always_inline)) void fuse_two(const void *weights, const char *x,
                                                           int64_t apart, lanes (*sum)[WIDE],
                                                           const int q, const int rows,
                                                           const int is_bf16) {
#if defined(__AVX512BF16__)
    if (is_bf16) {
        __m512i pairs = _mm512_loadu_si512(weights);
        for (int row = 0; row < rows; row++) {
            int32_t two;
            memcpy(&two, x + row * apart, sizeof two);
            sum[row][q] = _mm512_dpbf16_ps(sum[row][q], (__m512bh)_mm512_set1_epi32(two),
                                           (__m512bh)pairs);
        }
        return;
    }
#endif
    lanes first, second;
    if (is_bf16) {
        load_pairs(weights, &first, &second);
        first = flushed(first), second = flushed(second);
    } else {
        first = load(weights), second = load((const float *)weights + BLOCK);
    }
    for (int row = 0; row < rows; row++) {
        const float *two = (const float *)(x + row * apart);
        if (is_bf16) {
            sum[row][q] = fused_flushed(second, flushed(all(two[1])), sum[row][q]);
            sum[row][q] = fused_flushed(first, flushed(all(two[0])), sum[row][q]);
        } else {
            sum[row][q] = fused(second, all(two[1]), fused(first, all(two[0]), sum[row][q]));
        }
    }
}

/* WIDE times sixteen of a block's outputs for some rows; `rows` is a constant to the compiler, so
 * that every sum has a register of its own. */
static inline __attribute__((always_inline)) void tile(const void *block, int64_t in, Rows of,
                                                       int first, const int rows,
                                                       const int is_bf16) {
    const int64_t size = is_bf16 ? 2 : 4, line = 2 * BLOCK * size;
    const int64_t quarter = LANES * (is_bf16 ? 2 * size : size);
    const int64_t two = is_bf16 && PAIRS ? 4 : 8;
    const char *x = of.x, *weights = (const char *)block + first * quarter;
    lanes sum[MOST_ROWS][WIDE];
    for (int row = 0; row < rows; row++)
        for (int q = 0; q < WIDE; q++)
            sum[row][q] = all(0.0f);
    for (int64_t i = 0; i < in; i += 2, weights += line, x += two) {
        for (int64_t ahead = 0; rows < MOST_ROWS && ahead < line; ahead += 64)
            __builtin_prefetch(weights + AHEAD + ahead);
        for (int q = 0; q < WIDE; q++)
            fuse_two(weights + q * quarter, x, of.x_apart, sum, q, rows, is_bf16);
    }
    for (int row = 0; row < rows; row++)
        for (int q = 0; q < WIDE; q++)
            store(of.out + row * of.out_apart + (first + q) * LANES, sum[row][q]);
}

static inline __attribute__((always_inline)) void tiles(const void *block, int64_t in, Rows of,
                                                        const int is_bf16) {
#if defined(__AVX2__) && defined(__FMA__)
    for (; of.rows >= 6; of = without(of, 6))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, in, of, first, 6, is_bf16);
    for (; of.rows >= 4; of = without(of, 4))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, in, of, first, 4, is_bf16);
    for (; of.rows >= 2; of = without(of, 2))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, in, of, first, 2, is_bf16);
#endif
    for (; of.rows; of = without(of, 1))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, in, of, first, 1, is_bf16);
}

/* A call of its own, so that no arithmetic is moved out of where the processor flushes. */
static __attribute__((noinline)) void bf16_tiles(const void *block, int64_t in, Rows of) {
    tiles(block, in, of, 1);
}

/* One block of outputs for all rows, `of.out` being that block's. */
static void product(const Matrix *m, int64_t block, Rows of, int is_bf16) {
    int64_t place = block * BLOCK * m->in;
    if (!is_bf16) {
        tiles((const float *)m->blocks + place, m->in, of, 0);
    } else if (PAIRS) {
        bf16_tiles((const uint16_t *)m->blocks + place, m->in, of);
    } else {
        unsigned before = begin_flushing();
        bf16_tiles((const uint16_t *)m->blocks + place, m->in, of);
        end_flushing(before);
    }
}

/* For pairs.py: 64 sums over the pairs of up to 64 inputs, as this library computes them. */
void rwkv7_sums(int64_t in, const uint16_t *x, const uint16_t *block, float *sums) {
    float fed[BLOCK];
    for (int64_t i = 0; i < in; i += LANES)
        feed(fed, i, load_halves(x + i), 1);
    product(&(Matrix){block, in, BLOCK}, 0, (Rows){fed, sums, 1, 0, 0}, 1);
}

/* And as they are described above. */
void rwkv7_described_sums(int64_t in, const uint16_t *x, const uint16_t *block, float *sums) {
    for (int64_t out = 0; out < BLOCK; out++) {
        float sum = 0.0f;
        for (int64_t i = 0; i < in; i += 2) {
            const uint16_t *pair = block + i * BLOCK + 2 * out;
            sum = one_fused_flushed(one_wide(x[i + 1]), one_wide(pair[1]), sum);
            sum = one_fused_flushed(one_wide(x[i]), one_wide(pair[0]), sum);
        }
        sums[out] = sum;
    }
}
