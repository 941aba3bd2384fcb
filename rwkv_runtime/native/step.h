/* The tokens that are read in one call, and what is known of them on the way.
 *
 * A row is a token of a stream.
 */
#pragma once

#include "lanes.h"
#include "turns.h"

/* One kind of vectors, one for each row. */
typedef struct {
    float *at;
    int64_t apart; /* in floats */
} Vectors;

static float *row_of(Vectors of, int64_t row) { return of.at + row * of.apart; }

/* So many cache lines that rows do not push each other out: an odd number. */
static int64_t apart(int64_t length) { return (length / LANES | 1) * LANES; }

/* Shared by all threads. Either one stream with `length` tokens, or `streams` with one. */
typedef struct {
    const Model *model;
    const Team *team;
    int64_t streams, length, rows;
    const int64_t *token; /* [rows] */
    const LayerState *before, *after; /* [streams, layers] */
    void *const *hidden; /* [streams], of the last token each */
    Vectors x, v_first, r, k, v, w, a, g, y, found; /* [width], filled up to blocks */
    Vectors mixed[6]; /* [width], as they are fed */
    Vectors inner[4]; /* [rank], as they are fed, of w, a, v, g */
    Vectors wide; /* [ffn_width], as they are fed */
    Stretch *stretches; /* [threads] */
    float *turned; /* [heads, K, V] */
    float *own; /* [heads, TOGETHER, OWN_VECTORS, size] */
} Step;

static const LayerState *state_of(const Step *at, const LayerState *states, int64_t row,
                                  int64_t layer) {
    return states + row / at->length * at->model->layers + layer;
}

static int is_first(const Step *at, int64_t row) { return row % at->length == 0; }
static int is_last(const Step *at, int64_t row) { return (row + 1) % at->length == 0; }

/* The first row whose value matters here: of the last layer only the last `count` of a stream. */
static int64_t wanted(const Step *at, int64_t layer, int64_t count) {
    int64_t early = at->length - count;
    return layer + 1 < at->model->layers || early < 0 ? 0 : early;
}

/* The rows and, where there are fewer than threads, the part of each that one thread does. */
typedef struct {
    Range rows, lanes;
} Part;

static Part part_of(const Step *at, Thread thread, int64_t first) {
    int64_t rows = at->rows - first, width = at->model->width;
    if (rows >= thread.count) {
        Range some = share(thread, rows);
        return (Part){{first + some.from, first + some.to}, {0, width}};
    }
    Range some = share(thread, width / LANES);
    return (Part){{first, at->rows}, {some.from * LANES, some.to * LANES}};
}
