/* From r, w, k, v and the rest of a layer's rows to what its output matrix reads, head by head. */
#pragma once

#include "recurrence.h"
#include "step.h"

static const float GROUP_NORM_EPS = 64e-5f;
static const float DECAY_SCALE = -0.60653066f; /* -exp(-0.5) */

/* Rows of a head that are prepared, and concluded, one after the other: so no row's square roots and
 * quotients wait for another's sums. */
enum { TOGETHER = 4 };

/* A row's vectors of a head as they are used; they are few, so they stay near. */
enum { OWN_VECTORS = 6 };

/* w, k, v of a head as they are used, its unit key and the key's rate, and room for y: in `own`. */
static Heard prepare(const Step *at, const Layer *of, int64_t layer, int64_t row, Range head,
                     float *own) {
    const float *w = row_of(at->w, row) + head.from, *a = row_of(at->a, row) + head.from;
    const float *k = row_of(at->k, row) + head.from, *v = row_of(at->v, row) + head.from;
    const float *found = row_of(at->found, row) + head.from;
    const float *w0 = of->w0 + head.from, *a0 = of->a0 + head.from, *k_k = of->k_k + head.from;
    const float *k_a = of->k_a + head.from;
    float *v_first = row_of(at->v_first, row) + head.from;
    int64_t size = head.to - head.from;
    float *decay = own, *key = own + size, *value = own + 2 * size, *kk = own + 3 * size;
    float *b = own + 4 * size, *y = own + 5 * size;
    for (int64_t i = 0; i < size; i += LANES) {
        lanes rate = sigmoid(add(load(w0 + i), load(w + i)));
        store(decay + i, exponential(mul(all(DECAY_SCALE), rate)));
        store(b + i, sigmoid(add(load(a0 + i), load(a + i))));
        store(kk + i, mul(load(k + i), load(k_k + i)));
        if (layer) {
            lanes portion = sigmoid(add(load(of->v0 + head.from + i), load(found + i)));
            store(value + i, fused(sub(load(v_first + i), load(v + i)), portion, load(v + i)));
        } else {
            store(value + i, load(v + i));
            store(v_first + i, load(v + i));
        }
    }
    lanes length = most(all(1e-12f), all(sqrtf(dot(kk, kk, size))));
    for (int64_t i = 0; i < size; i += LANES) {
        lanes rate = load(b + i), unit = quotient(load(kk + i), length);
        lanes factor = fused(sub(rate, all(1.0f)), load(k_a + i), all(1.0f));
        store(key + i, mul(load(k + i), factor));
        store(kk + i, unit);
        store(b + i, mul(unit, rate));
    }
    return (Heard){row_of(at->r, row) + head.from, decay, key, value, kk, b, y};
}

/* The norm of a head's y, its bonus and its gate; fed. */
static void conclude(const Step *at, const Layer *of, int64_t row, Range head, Heard heard) {
    const float *g = row_of(at->g, row) + head.from;
    const float *r_k = of->r_k + head.from;
    const float *weight = of->ln_x_weight + head.from, *bias = of->ln_x_bias + head.from;
    int64_t size = head.to - head.from;
    Moments m = moments(heard.y, size, GROUP_NORM_EPS);
    lanes bonus = all(0.0f);
    for (int64_t i = 0; i < size; i += LANES)
        bonus = fused(mul(load(heard.r + i), load(heard.k + i)), load(r_k + i), bonus);
    bonus = all(total(bonus));
    for (int64_t i = 0; i < size; i += LANES) {
        lanes y = normed(m, load(heard.y + i), load(weight + i), load(bias + i));
        y = fused(bonus, load(heard.v + i), y);
        feed(row_of(at->mixed[2], row), head.from + i, mul(y, load(g + i)),
             (int)at->model->is_bf16);
    }
}

/* Rows of one head, at most TOGETHER. `turned`: [K, V]; `own`: [TOGETHER, OWN_VECTORS, size]. */
static void attend_rows(const Step *at, int64_t layer, Range head, Range rows, Next next,
                        float *turned, float *own) {
    const Layer *of = at->model->layer + layer;
    int64_t size = head.to - head.from, late = wanted(at, layer, 2), place = head.from * size;
    Heard heard[TOGETHER];
    for (int64_t i = 0; i < rows.to - rows.from; i++)
        heard[i] = prepare(at, of, layer, rows.from + i, head, own + i * OWN_VECTORS * size);
    for (int64_t row = rows.from; row < rows.to; row++) {
        if (is_first(at, row))
            turn(state_of(at, at->before, row, layer)->att_kv + place, turned, size);
        recur(turned, size, heard[row - rows.from], next, row >= late);
        if (is_last(at, row))
            turn(turned, state_of(at, at->after, row, layer)->att_kv + place, size);
    }
    for (int64_t row = rows.from > late ? rows.from : late; row < rows.to; row++)
        conclude(at, of, row, head, heard[row - rows.from]);
}

/* A stream's tokens, of one head. */
static void attend_stream(const Step *at, int64_t layer, int64_t number, float *turned, float *own) {
    int64_t size = at->model->width / at->model->heads;
    Range head = {number * size, (number + 1) * size}, rows = {0, 0};
    for (; rows.from < at->rows; rows.from = rows.to) {
        rows.to = rows.from + TOGETHER < at->rows ? rows.from + TOGETHER : at->rows;
        attend_rows(at, layer, head, rows, (Next){0, 0}, turned, own);
    }
}

/* Streams one after the other, each as its state lies in memory; the next head's is asked for. */
static void attend_streams(const Step *at, int64_t layer, Range heads, float *turned, float *own) {
    int64_t size = at->model->width / at->model->heads, count = heads.to - heads.from;
    for (int64_t i = 0; i < at->rows * count; i++) {
        int64_t row = i / count, number = heads.from + i % count;
        int64_t next_row = (i + 1) / count, next_number = heads.from + (i + 1) % count;
        Next next = {0, 0};
        if (next_row < at->rows) {
            int64_t place = next_number * size * size;
            next.read = state_of(at, at->before, next_row, layer)->att_kv + place;
            next.written = state_of(at, at->after, next_row, layer)->att_kv + place;
        }
        attend_rows(at, layer, (Range){number * size, (number + 1) * size}, (Range){row, row + 1},
                    next, turned, own);
    }
}

static void attend(const Step *at, int64_t layer, Thread thread) {
    int64_t size = at->model->width / at->model->heads, head;
    int64_t own_size = size * TOGETHER * OWN_VECTORS;
    if (at->length == 1) {
        Range heads = share(thread, at->model->heads);
        attend_streams(at, layer, heads, at->turned + heads.from * size * size,
                       at->own + heads.from * own_size);
        return;
    }
    Turns turns = turns_of(at->stretches, thread, at->model->heads);
    while ((head = next_unit(&turns)) >= 0)
        attend_stream(at, layer, head, at->turned + head * size * size, at->own + head * own_size);
}
