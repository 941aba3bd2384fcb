/* Products of matrices with all rows, and what becomes of them, shared out among the threads. */
#pragma once

#include "products.h"
#include "step.h"

enum { GROUP = 24 }; /* rows that a thread computes without looking up */

/* A matrix times the rows from `first` on. Sums are stored, added to what is there, or fed: as they
 * are, or by a function of them. */
typedef struct {
    const Matrix *matrix;
    Vectors input, out;
    enum { STORED, ADDED, FED, FED_TANH, FED_SIGMOID, FED_SQUARED } result;
    int64_t first;
} Job;

static inline lanes itself(lanes x) { return x; }

static inline __attribute__((always_inline)) void feed_block(const float *sums, float *out,
                                                             int64_t place, int is_bf16,
                                                             lanes (*activation)(lanes)) {
    for (int64_t i = 0; i < BLOCK; i += LANES)
        feed(out, place + i, activation(load(sums + i)), is_bf16);
}

static void add_block(const float *sums, float *out) {
    for (int64_t i = 0; i < BLOCK; i += LANES)
        store(out + i, add(load(out + i), load(sums + i)));
}

/* What becomes of one row's sums. */
static void finish_row(const Job *job, const float *sums, float *out, int64_t block, int is_bf16) {
    int64_t place = block * BLOCK;
    switch (job->result) {
    case STORED:
        break;
    case ADDED:
        add_block(sums, out + place);
        break;
    case FED:
        feed_block(sums, out, place, is_bf16, itself);
        break;
    case FED_TANH:
        feed_block(sums, out, place, is_bf16, hyperbolic_tangent);
        break;
    case FED_SIGMOID:
        feed_block(sums, out, place, is_bf16, sigmoid);
        break;
    case FED_SQUARED:
        feed_block(sums, out, place, is_bf16, squared_relu);
        break;
    }
}

/* One block of outputs for one group of rows. */
static void compute(const Step *at, const Job *job, int64_t block, int64_t group) {
    float sums[GROUP * BLOCK];
    int is_bf16 = (int)at->model->is_bf16;
    int64_t row = job->first + group * GROUP, size = sizeof(float);
    int64_t rows = at->rows - row < GROUP ? at->rows - row : GROUP;
    int64_t written = job->result >= FED ? fed_size(is_bf16) : size;
    Rows of = {.x = (const char *)row_of(job->input, row),
               .out = sums,
               .later = (char *)row_of(job->out, row) + block * BLOCK * written,
               .rows = rows,
               .x_apart = job->input.apart * size,
               .out_apart = BLOCK,
               .later_apart = job->out.apart * size};
    if (job->result == STORED) {
        of.out = (float *)of.later;
        of.out_apart = job->out.apart;
    }
    product(job->matrix, block, of, is_bf16);
    for (int64_t i = 0; i < rows; i++)
        finish_row(job, sums + i * BLOCK, row_of(job->out, row + i), block, is_bf16);
}

static int64_t groups_of(const Step *at, const Job *job) {
    return (at->rows - job->first - 1) / GROUP + 1;
}

/* All blocks of all jobs for all groups of rows, in a row: each thread has its stretch, and with it
 * its own weights. */
static void multiply(const Step *at, const Job *jobs, int count, Thread thread) {
    int64_t all_units = 0, unit;
    for (int job = 0; job < count; job++)
        all_units += jobs[job].matrix->out / BLOCK * groups_of(at, jobs + job);
    for (Turns turns = turns_of(at->stretches, thread, all_units); (unit = next_unit(&turns)) >= 0;) {
        const Job *job = jobs;
        int64_t groups = groups_of(at, job);
        while (unit >= job->matrix->out / BLOCK * groups) {
            unit -= job->matrix->out / BLOCK * groups;
            groups = groups_of(at, ++job);
        }
        compute(at, job, unit / groups, unit % groups);
    }
}
