/* From r, w, k, v and the rest of a layer's rows to what its output matrix reads, head by head. */
#pragma once

#include "recurrence.h"
#include "step.h"

static const float GROUP_NORM_EPS = 64e-5f;
static const float DECAY_SCALE = -0.60653066f; /* -exp(-0.5) */

/* w, a, k, v of a head as they are used, its unit key and the key's rate; in place. */
static Heard prepare(const Step *at, const Layer *of, int64_t layer, int64_t row, Range head) {
    float *r = row_of(at->r, row), *w = row_of(at->w, row), *a = row_of(at->a, row);
    float *k = row_of(at->k, row), *v = row_of(at->v, row), *v_first = row_of(at->v_first, row);
    const float *found = row_of(at->found, row);
    /* What the mixed vectors are needed no more for. */
    float *kk = row_of(at->mixed[0], row), *b = row_of(at->mixed[1], row);
    int64_t first = head.from;
    for (int64_t i = head.from; i < head.to; i += LANES) {
        lanes decay = sigmoid(add(load(of->w0 + i), load(w + i)));
        store(w + i, exponential(mul(all(DECAY_SCALE), decay)));
        store(a + i, sigmoid(add(load(of->a0 + i), load(a + i))));
        store(kk + i, mul(load(k + i), load(of->k_k + i)));
        if (layer) {
            lanes rate = sigmoid(add(load(of->v0 + i), load(found + i)));
            store(v + i, fused(sub(load(v_first + i), load(v + i)), rate, load(v + i)));
        } else {
            store(v_first + i, load(v + i));
        }
    }
    float square = dot(kk + first, kk + first, head.to - head.from);
    lanes length = most(all(1e-12f), all(sqrtf(square)));
    for (int64_t i = head.from; i < head.to; i += LANES) {
        lanes rate = load(a + i), unit = quotient(load(kk + i), length);
        lanes factor = fused(sub(rate, all(1.0f)), load(of->k_a + i), all(1.0f));
        store(k + i, mul(load(k + i), factor));
        store(kk + i, unit);
        store(b + i, mul(unit, rate));
    }
    return (Heard){r + first, w + first, k + first, v + first, kk + first, b + first,
                   row_of(at->y, row) + first};
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

static void attend(const Step *at, int64_t layer, Thread thread) {
    const Layer *of = at->model->layer + layer;
    int64_t size = at->model->width / at->model->heads, late = wanted(at, layer, 2);
    Range part = share(thread, at->model->heads);
    for (int64_t number = part.from; number < part.to; number++) {
        Range head = {number * size, (number + 1) * size};
        float *turned = at->turned + head.from * size;
        for (int64_t row = 0; row < at->rows; row++) {
            if (is_first(at, row))
                turn(state_of(at, at->before, row, layer)->att_kv + head.from * size, turned, size);
            Heard heard = prepare(at, of, layer, row, head);
            recur(turned, size, heard, row >= late);
            if (row >= late)
                conclude(at, of, row, head, heard);
            if (is_last(at, row))
                turn(turned, state_of(at, at->after, row, layer)->att_kv + head.from * size, size);
        }
    }
}
