/* Splitting words into planes and merging them again, in one pass; `planes.py` says what the planes
   are, and does the same by whole arrays.

   Words are little-endian and may lie anywhere; what is written overlaps nothing. `q` is the number
   of words in a lane: lanes [lanes - 1, q], tops [q], words [lanes * q]. */

#include <stdint.h>

typedef uint32_t __attribute__((aligned(1), may_alias)) word32;
typedef uint16_t __attribute__((aligned(1), may_alias)) word16;

#define M24 UINT32_C(0x00ffffff)
#define TOP32 UINT32_C(0xff000000)

void split32(const word32 *restrict words, word32 *restrict low, word32 *restrict top, int64_t q)
{
    for (int64_t i = 0; i < q; i++) {
        uint32_t w0 = words[i], w1 = words[q + i], w2 = words[2 * q + i], w3 = words[3 * q + i];
        uint32_t tops = w0 >> 24 | w1 >> 24 << 8 | w2 >> 24 << 16 | (w3 & TOP32);
        uint32_t rest = w3 ^ tops;
        uint32_t p2 = ((tops << 8 ^ w2) & M24) | rest >> 16 << 24;
        rest ^= p2 >> 8;
        uint32_t p1 = ((tops << 16 ^ w1) & M24) | rest >> 8 << 24;
        rest ^= p1 >> 16;
        low[i] = (w0 & M24) | rest << 24;
        low[q + i] = p1;
        low[2 * q + i] = p2;
        top[i] = tops;
    }
}

void merge32(const word32 *restrict low, const word32 *restrict top, word32 *restrict out, int64_t q)
{
    for (int64_t i = 0; i < q; i++) {
        uint32_t p0 = low[i], p1 = low[q + i], p2 = low[2 * q + i], tops = top[i];
        out[i] = (p0 & M24) ^ tops << 24;
        out[q + i] = (p1 & M24) ^ tops << 16;
        out[2 * q + i] = (p2 & M24) ^ tops << 8;
        out[3 * q + i] = tops ^ p0 >> 24 ^ p1 >> 16 ^ p2 >> 8;
    }
}

void split16(const word16 *restrict words, word16 *restrict low, word16 *restrict top, int64_t q)
{
    for (int64_t i = 0; i < q; i++) {
        uint16_t w0 = words[i], w1 = words[q + i];
        uint16_t tops = (uint16_t)((w1 & 0xff00) | w0 >> 8);
        low[i] = (uint16_t)((w0 & 0x00ff) | (w1 ^ tops) << 8);
        top[i] = tops;
    }
}

void merge16(const word16 *restrict low, const word16 *restrict top, word16 *restrict out, int64_t q)
{
    for (int64_t i = 0; i < q; i++) {
        uint16_t p = low[i], tops = top[i];
        out[i] = (uint16_t)((p & 0x00ff) ^ tops << 8);
        out[q + i] = (uint16_t)(tops ^ p >> 8);
    }
}
