/* Products of matrices with all rows, and what becomes of them, shared out among the threads. */
#pragma once

#include "products.h"
#include "step.h"

enum { GROUP = 24 }; /* rows that a thread computes without looking up */

/* A matrix times the rows from `first` on. */
typedef struct {
    const Matrix *matrix;
    Vectors input, out;
    enum { STORED, ADDED, FED } result;
    lanes (*activation)(lanes); /* before it is fed */
    int64_t first;
} Job;

static void finish_row(const Job *job, const float *sums, float *out, int64_t block, int is_bf16) {
    for (int64_t i = 0; i < BLOCK; i += LANES) {
        lanes x = load(sums + i);
        if (job->result == FED)
            feed(out, block * BLOCK + i, job->activation ? job->activation(x) : x, is_bf16);
        else
            store(out + block * BLOCK + i, add(load(out + block * BLOCK + i), x));
    }
}

/* One block of outputs for one group of rows. */
static void compute(const Step *at, const Job *job, int64_t block, int64_t group) {
    float sums[GROUP * BLOCK];
    int is_bf16 = (int)at->model->is_bf16;
    int64_t row = job->first + group * GROUP;
    int64_t rows = at->rows - row < GROUP ? at->rows - row : GROUP;
    Rows of = {row_of(job->input, row), sums, rows,
               job->input.apart * (int64_t)sizeof(float), BLOCK};
    if (job->result == STORED) {
        of.out = row_of(job->out, row) + block * BLOCK;
        of.out_apart = job->out.apart;
    }
    product(job->matrix, block, of, is_bf16);
    for (int64_t i = 0; job->result != STORED && i < rows; i++)
        finish_row(job, sums + i * BLOCK, row_of(job->out, row + i), block, is_bf16);
}

/* All blocks of all jobs for all groups of rows, in a row: each thread has its stretch, and with it
 * its own weights. */
static void multiply(const Step *at, const Job *jobs, int count, Thread thread) {
    int64_t all_units = 0, before = 0;
    for (int job = 0; job < count; job++)
        all_units += jobs[job].matrix->out / BLOCK * ((at->rows - jobs[job].first - 1) / GROUP + 1);
    Range part = share(thread, all_units);
    for (int job = 0; job < count; job++) {
        int64_t groups = (at->rows - jobs[job].first - 1) / GROUP + 1;
        int64_t units = jobs[job].matrix->out / BLOCK * groups;
        int64_t from = part.from > before ? part.from - before : 0;
        int64_t to = part.to - before < units ? part.to - before : units;
        for (int64_t unit = from; unit < to; unit++)
            compute(at, jobs + job, unit / groups, unit % groups);
        before += units;
    }
}
