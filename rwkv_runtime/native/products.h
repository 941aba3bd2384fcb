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

/* Bytes of a block for one input in fp32, for a pair in bf16. */
enum { LINE = 4 * BLOCK };

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
 * apart; and where what becomes of the sums will be written, so many bytes apart. */
typedef struct {
    const char *x;
    float *out;
    char *later;
    int64_t rows, x_apart, out_apart, later_apart;
} Rows;

static Rows without(Rows of, int64_t rows) {
    of.x += rows * of.x_apart;
    of.out += rows * of.out_apart;
    of.later += rows * of.later_apart;
    of.rows -= rows;
    return of;
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

/* Sixteen sums and what sixteen pairs add to them, where the processor does that. */
static inline lanes fused_pairs(lanes x, lanes y, lanes z) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(z, (__m512bh)x, (__m512bh)y);
#else
    (void)x, (void)y;
    return z;
#endif
}

/* In a register from here on: left alone, a compiler may load a weight anew for each row. For one
 * row or two it may: fewer instructions, so the processor looks further ahead. */
#if defined(__AVX512F__)
#define HELD(x) __asm__("" : "+v"(x))
#else
#define HELD(x) (void)0
#endif

/* A line of weights times its input, or pair of them, of a few rows. */
static inline __attribute__((always_inline)) void fuse_line(const char *weights, const char *x,
                                                            int64_t apart, lanes (*sum)[WIDE],
                                                            const int rows, const int is_bf16) {
    const int halves = is_bf16 && !PAIRS; /* pairs are taken apart */
    lanes first[WIDE], second[WIDE];
    for (int q = 0; q < WIDE; q++)
        if (halves) {
            load_pairs((const uint16_t *)weights + q * 2 * LANES, first + q, second + q);
            first[q] = flushed(first[q]), second[q] = flushed(second[q]);
        } else {
            first[q] = load((const float *)weights + q * LANES);
            if (rows > 2)
                HELD(first[q]);
        }
    for (int row = 0; row < rows; row++, x += apart) {
        float two[2];
        memcpy(two, x, halves ? 8 : 4);
        for (int q = 0; q < WIDE; q++)
            if (halves) {
                sum[row][q] = fused_flushed(second[q], flushed(all(two[1])), sum[row][q]);
                sum[row][q] = fused_flushed(first[q], flushed(all(two[0])), sum[row][q]);
            } else {
                sum[row][q] = is_bf16 ? fused_pairs(first[q], all(two[0]), sum[row][q])
                                      : fused(first[q], all(two[0]), sum[row][q]);
            }
    }
}

/* WIDE times sixteen of a block's outputs for some rows; `rows` is a constant to the compiler, so
 * that every sum has a register of its own. */
static inline __attribute__((always_inline)) void tile(const char *weights, int64_t lines, Rows of,
                                                       int first, const int rows,
                                                       const int is_bf16) {
    const int64_t step = is_bf16 && !PAIRS ? 8 : 4;
    const char *x = of.x;
    lanes sum[MOST_ROWS][WIDE];
    weights += first * LANES * 4;
    for (int row = 0; row < rows; row++)
        for (int q = 0; q < WIDE; q++) {
            sum[row][q] = all(0.0f);
            __builtin_prefetch(of.later + row * of.later_apart + (first + q) * LANES * 4, 1);
        }
    for (int64_t line = 0; line < lines; line++, weights += LINE, x += step) {
        for (int q = 0; rows < MOST_ROWS && q < WIDE; q++)
            __builtin_prefetch(weights + AHEAD + q * LANES * 4);
        fuse_line(weights, x, of.x_apart, sum, rows, is_bf16);
    }
    for (int row = 0; row < rows; row++)
        for (int q = 0; q < WIDE; q++)
            store(of.out + row * of.out_apart + (first + q) * LANES, sum[row][q]);
}

static inline __attribute__((always_inline)) void tiles(const char *block, int64_t lines, Rows of,
                                                        const int is_bf16) {
#if defined(__AVX2__) && defined(__FMA__)
    for (; of.rows >= 6; of = without(of, 6))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, lines, of, first, 6, is_bf16);
    for (; of.rows >= 4; of = without(of, 4))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, lines, of, first, 4, is_bf16);
    for (; of.rows >= 2; of = without(of, 2))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, lines, of, first, 2, is_bf16);
#endif
    for (; of.rows; of = without(of, 1))
        for (int first = 0; first < QUARTERS; first += WIDE)
            tile(block, lines, of, first, 1, is_bf16);
}

/* A call of its own, so that no arithmetic is moved out of where the processor flushes. */
static __attribute__((noinline)) void bf16_tiles(const char *block, int64_t lines, Rows of) {
    tiles(block, lines, of, 1);
}

/* One block of outputs for all rows, `of.out` being that block's. */
static void product(const Matrix *m, int64_t block, Rows of, int is_bf16) {
    int64_t lines = is_bf16 ? m->in / 2 : m->in;
    const char *weights = (const char *)m->blocks + block * lines * LINE;
    if (!is_bf16) {
        tiles(weights, lines, of, 0);
    } else if (PAIRS) {
        bf16_tiles(weights, lines, of);
    } else {
        unsigned before = begin_flushing();
        bf16_tiles(weights, lines, of);
        end_flushing(before);
    }
}

/* For pairs.py: 64 sums over the pairs of up to 64 inputs, as this library computes them. */
void rwkv7_sums(int64_t in, const uint16_t *x, const uint16_t *block, float *sums) {
    float fed[BLOCK];
    for (int64_t i = 0; i < in; i += LANES)
        feed(fed, i, load_halves(x + i), 1);
    product(&(Matrix){block, in, BLOCK}, 0,
            (Rows){.x = (const char *)fed, .out = sums, .later = (char *)sums, .rows = 1}, 1);
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
