/* RWKV-7: one stream's next tokens, or the next token in each of several streams, from embeddings
 * to the last hidden vectors; and the logits.
 *
 * The formulas are those of rwkv_runtime/model.py. What is computed is specified to the last bit,
 * by this file and those that it includes, and depends neither on the processor nor on the number
 * of threads:
 *
 *   - everything is fp32; where the model is bf16, what enters a product is rounded to bf16, and so
 *     is what leaves (the state's vectors, the hidden vector) and what a token sees of the one
 *     before it;
 *   - nothing depends on how many rows are computed together: a token has the bits that it has
 *     alone, whatever is read with it, before it or beside it.
 *
 * A change of bits is a change of REVISION in rwkv_runtime/native/kernel.py.
 *
 * Phases work on all rows; between two of them the threads wait for each other, and in the long ones
 * they help each other.
 */
#include "attention.h"
#include "jobs.h"

static const float LAYER_NORM_EPS = 1e-5f;

static void embed(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    Part part = part_of(at, thread, 0);
    (void)layer;
    for (int64_t row = part.rows.from; row < part.rows.to; row++)
        for (int64_t i = part.lanes.from; i < part.lanes.to; i += LANES)
            store(row_of(at->y, row) + i,
                  load_kept(model->emb, at->token[row] * model->width + i, model->is_bf16));
}

/* The sums of a norm are taken by every thread alone: cheaper than to wait for each other. */
static void norm_embedding(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    Part part = part_of(at, thread, 0);
    (void)layer;
    for (int64_t row = part.rows.from; row < part.rows.to; row++) {
        const float *y = row_of(at->y, row);
        Moments m = moments(y, model->width, LAYER_NORM_EPS);
        for (int64_t i = part.lanes.from; i < part.lanes.to; i += LANES)
            store(row_of(at->x, row) + i, normed(m, load(y + i), load(model->ln0_weight + i),
                                                 load(model->ln0_bias + i)));
    }
}

/* A norm, and its mixes with the token before. */
typedef struct {
    const float *weight, *bias, *mix; /* mix: [mixes, width] */
    int64_t mixes;
    int is_channels;
} Shift;

static void *kept_of(const LayerState *state, Shift of) {
    return of.is_channels ? state->ffn_x_prev : state->att_x_prev;
}

static void shift(const Step *at, int64_t layer, Part part, Shift of) {
    const Model *model = at->model;
    int64_t width = model->width;
    int is_bf16 = (int)model->is_bf16;
    Moments earlier = {all(0.0f), all(0.0f)};
    for (int64_t row = part.rows.from; row < part.rows.to; row++) {
        const float *x = row_of(at->x, row), *x_before = is_first(at, row) ? x : x - at->x.apart;
        const void *before = kept_of(state_of(at, at->before, row, layer), of);
        void *after = kept_of(state_of(at, at->after, row, layer), of);
        if (row == part.rows.from)
            earlier = moments(x_before, width, LAYER_NORM_EPS);
        Moments m = moments(x, width, LAYER_NORM_EPS);
        for (int64_t i = part.lanes.from; i < part.lanes.to; i += LANES) {
            lanes weight = load(of.weight + i), bias = load(of.bias + i), prev;
            lanes xn = normed(m, load(x + i), weight, bias);
            if (is_first(at, row)) {
                prev = load_kept(before, i, is_bf16);
            } else {
                prev = normed(earlier, load(x_before + i), weight, bias);
                prev = is_bf16 ? rounded(prev) : prev;
            }
            if (is_last(at, row))
                keep(after, i, xn, is_bf16);
            lanes delta = sub(prev, xn);
            for (int64_t kind = 0; kind < of.mixes; kind++) {
                lanes mixed = fused(delta, load(of.mix + kind * width + i), xn);
                feed(row_of(at->mixed[kind], row), i, mixed, is_bf16);
            }
        }
        earlier = m;
    }
}

static void mix_time(const Step *at, int64_t layer, Thread thread) {
    const Layer *of = at->model->layer + layer;
    shift(at, layer, part_of(at, thread, 0),
          (Shift){of->ln1_weight, of->ln1_bias, of->mix, 6, 0});
}

static void mix_channels(const Step *at, int64_t layer, Thread thread) {
    const Layer *of = at->model->layer + layer;
    shift(at, layer, part_of(at, thread, wanted(at, layer, 1)),
          (Shift){of->ln2_weight, of->ln2_bias, of->ffn_mix, 1, 1});
}

static void norm_hidden(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    Part part = part_of(at, thread, at->length - 1);
    (void)layer;
    for (int64_t row = part.rows.from; row < part.rows.to; row++) {
        const float *x = row_of(at->x, row);
        Moments m = moments(x, model->width, LAYER_NORM_EPS);
        for (int64_t i = part.lanes.from; i < part.lanes.to; i += LANES)
            keep(at->hidden[row / at->length], i,
                 normed(m, load(x + i), load(model->ln_out_weight + i),
                        load(model->ln_out_bias + i)),
                 (int)model->is_bf16);
    }
}

/* All matrices that read the mixed vectors. */
static void project(const Step *at, int64_t layer, Thread thread) {
    const Layer *of = at->model->layer + layer;
    const Vectors *mixed = at->mixed, *inner = at->inner;
    int64_t late = wanted(at, layer, 2);
    const Job jobs[] = {
        {&of->receptance, mixed[0], at->r, STORED, late},
        {&of->key, mixed[2], at->k, STORED, 0},
        {&of->value, mixed[3], at->v, STORED, 0},
        {&of->w1, mixed[1], inner[0], FED_TANH, 0},
        {&of->a1, mixed[4], inner[1], FED, 0},
        {&of->v1, mixed[3], inner[2], FED, 0},
        {&of->g1, mixed[5], inner[3], FED_SIGMOID, late},
    };
    multiply(at, jobs, sizeof jobs / sizeof *jobs, thread);
}

/* From the low ranks to the width. */
static void expand(const Step *at, int64_t layer, Thread thread) {
    const Layer *of = at->model->layer + layer;
    const Vectors *inner = at->inner;
    const Job jobs[] = {
        {&of->w2, inner[0], at->w, STORED, 0},
        {&of->a2, inner[1], at->a, STORED, 0},
        {&of->g2, inner[3], at->g, STORED, wanted(at, layer, 2)},
        {&of->v2, inner[2], at->found, STORED, 0},
    };
    multiply(at, jobs, layer ? 4 : 3, thread);
}

static void add_attention(const Step *at, int64_t layer, Thread thread) {
    const Matrix *matrix = &at->model->layer[layer].output;
    Job job = {matrix, at->mixed[2], at->x, ADDED, wanted(at, layer, 2)};
    multiply(at, &job, 1, thread);
}

static void widen(const Step *at, int64_t layer, Thread thread) {
    const Matrix *matrix = &at->model->layer[layer].ffn_key;
    Job job = {matrix, at->mixed[0], at->wide, FED_SQUARED, wanted(at, layer, 1)};
    multiply(at, &job, 1, thread);
}

static void add_channels(const Step *at, int64_t layer, Thread thread) {
    const Matrix *matrix = &at->model->layer[layer].ffn_value;
    Job job = {matrix, at->wide, at->x, ADDED, wanted(at, layer, 1)};
    multiply(at, &job, 1, thread);
}

/* --- calls ------------------------------------------------------------------------------------ */

typedef void Phase(const Step *, int64_t layer, Thread);

static Phase *const OF_A_LAYER[] = {
    mix_time, project, expand, attend, add_attention, mix_channels, widen, add_channels,
};
enum { PHASES = sizeof OF_A_LAYER / sizeof *OF_A_LAYER };

static void pass(const Step *at, Phase *phase, int64_t layer, Thread *thread) {
    set_back(at->stretches, *thread);
    phase(at, layer, *thread);
    meet(at->team, *thread);
    thread->phase++;
}

static __attribute__((noinline)) void read_rows(const Step *at) {
    Thread thread = thread_of(at->team);
    pass(at, embed, 0, &thread);
    pass(at, norm_embedding, 0, &thread);
    for (int64_t layer = 0; layer < at->model->layers; layer++)
        for (int phase = 0; phase < PHASES; phase++)
            pass(at, OF_A_LAYER[phase], layer, &thread);
    pass(at, norm_hidden, 0, &thread);
}

static void read_part(void *work) {
    unsigned before = begin_exact();
    read_rows(work);
    end_exact(before);
}

static Stretch *set_out(float *scratch, int64_t threads) {
    memset(scratch, 0, (size_t)threads * sizeof(Stretch));
    return (Stretch *)scratch;
}

/* How many floats `rwkv7_read` works in. */
int64_t rwkv7_scratch(const Model *model, int64_t threads, int64_t rows) {
    int64_t width = apart(model->layer->w2.out), size = model->width / model->heads;
    int64_t row = 16 * width + 4 * apart(model->rank) + apart(model->ffn_width);
    int64_t shared = threads * (int64_t)(sizeof(Stretch) / sizeof(float));
    return shared + rows * row + model->width * (size + TOGETHER * OWN_VECTORS);
}

/* Read tokens: `before` -> `after`, and the hidden vectors of the last token of each stream. `streams`
 * or `length` is 1; `after` may lie where `before` does if `length` is, and else lies elsewhere;
 * `scratch` is memory to work in. */
void rwkv7_read(const Model *model, const Team *team, int64_t threads, int64_t streams,
                int64_t length, const int64_t *token, const LayerState *before,
                const LayerState *after, void *const *hidden, float *scratch) {
    Step step = {.model = model, .team = team, .streams = streams, .length = length,
                 .rows = streams * length, .token = token, .before = before, .after = after,
                 .hidden = hidden, .stretches = set_out(scratch, threads)};
    step.turned = (float *)(step.stretches + threads);
    step.own = step.turned + model->width * (model->width / model->heads);
    float *next = step.own + model->width * TOGETHER * OWN_VECTORS;
    int64_t width = apart(model->layer->w2.out);
    Vectors *all_wide[] = {&step.x, &step.v_first, &step.r, &step.k, &step.v,
                           &step.w, &step.a,       &step.g, &step.y, &step.found};
    for (int i = 0; i < 10; i++, next += step.rows * width)
        *all_wide[i] = (Vectors){next, width};
    for (int i = 0; i < 6; i++, next += step.rows * width)
        step.mixed[i] = (Vectors){next, width};
    for (int i = 0; i < 4; i++, next += step.rows * apart(model->rank))
        step.inner[i] = (Vectors){next, apart(model->rank)};
    step.wide = (Vectors){next, apart(model->ffn_width)};
    run(team, read_part, &step, threads);
}

typedef struct {
    Step step;
    const void *hidden; /* [rows, width], as they are kept */
    Vectors logits;
} Scoring;

static __attribute__((noinline)) void score_rows(const Scoring *at) {
    const Step *step = &at->step;
    const Model *model = step->model;
    Thread thread = thread_of(step->team);
    Part part = part_of(step, thread, 0);
    for (int64_t row = part.rows.from; row < part.rows.to; row++)
        for (int64_t i = part.lanes.from; i < part.lanes.to; i += LANES)
            feed(row_of(step->x, row), i,
                 load_kept(at->hidden, row * model->width + i, (int)model->is_bf16),
                 (int)model->is_bf16);
    meet(step->team, thread);
    Job job = {&model->head, step->x, at->logits, STORED, 0};
    multiply(step, &job, 1, thread);
}

static void score_part(void *work) {
    unsigned before = begin_exact();
    score_rows(work);
    end_exact(before);
}

/* `hidden` [count, width] -> fp32 `logits` [count, vocabulary filled up to blocks]; `scratch` as
 * for so many rows, one at least. */
void rwkv7_logits(const Model *model, const Team *team, int64_t threads, int64_t count,
                  const void *hidden, float *logits, float *scratch) {
    Stretch *stretches = set_out(scratch, threads);
    Scoring at = {{.model = model, .team = team, .streams = count, .length = 1, .rows = count,
                   .stretches = stretches,
                   .x = {(float *)(stretches + threads), apart(model->width)}},
                  hidden, {logits, model->head.out}};
    run(team, score_part, &at, threads);
}
