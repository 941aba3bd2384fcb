/* One token of RWKV-7 for each of a few streams, from its embedding to the last hidden vector; and
 * the logits.
 *
 * The formulas are those of rwkv_runtime/model.py. What is computed is specified to the last bit,
 * by this file and lanes.h, and depends neither on the processor nor on the number of threads:
 *
 *   - everything is fp32, whatever the matrices are kept in; a product of bf16 is exact in it;
 *   - an output of a matrix is two sums, over the even and the odd inputs, each in the inputs'
 *     order by fused multiply-adds, and then their sum;
 *   - nothing depends on which other streams are computed beside one, or how many;
 *   - a sum over a vector is taken in sixteen lanes, lane i over the elements i, i + 16, ...;
 *   - what leaves (the state's vectors, the hidden vector) is rounded to the model's dtype.
 *
 * A change of bits is a change of REVISION in rwkv_runtime/native/kernel.py.
 *
 * A matrix [out, in] lies in blocks of 64 outputs, as oneDNN packs it for AVX-512: fp32 as
 * [out / 64, in, 64], bf16 as [out / 64, in / 2, 64, 2], filled up with zeros. One row then streams
 * through it from the first byte to the last, and that is all the time a token takes.
 *
 * Nothing is checked here: kernel.py does, before it calls. Vectors are multiples of 16 floats.
 */
#include "lanes.h"

enum { BLOCK = 64, QUARTERS = BLOCK / LANES };

/* Bytes that are asked for ahead of their use: the processor itself does not look beyond a page. */
enum { AHEAD = 4096 };

static const float LAYER_NORM_EPS = 1e-5f, GROUP_NORM_EPS = 64e-5f;
static const float DECAY_SCALE = -0.60653066f; /* -exp(-0.5) */

typedef struct {
    const void *blocks;
    int64_t in; /* even */
    int64_t out; /* a multiple of BLOCK */
} Matrix;

typedef struct {
    const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias, *ln_x_weight, *ln_x_bias;
    const float *mix; /* [6, width] for r, w, k, v, a, g */
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ffn_mix;
    Matrix w1, a1, v1, g1, w2, a2, v2, g2; /* layer 0 has no v0, v1, v2 */
    Matrix receptance, key, value, output, ffn_key, ffn_value;
} Layer;

typedef struct {
    int64_t layers, width, heads, rank, ffn_width; /* rank: the largest, filled up to blocks */
    int64_t is_bf16;
    const void *emb; /* [vocabulary, width] */
    const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias;
    const Layer *layer;
    Matrix head;
} Model;

typedef struct {
    void *att_x_prev; /* [width] */
    float *att_kv; /* [heads, V, K] */
    void *ffn_x_prev; /* [width] */
} LayerState;

/* Of the OpenMP that the process has anyway, so that there is one pool of threads, not two. */
typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned threads, unsigned flags);
    void (*barrier)(void);
    int (*number)(void);
    int (*count)(void);
} Team;

/* --- vectors ---------------------------------------------------------------------------------- */

static inline lanes load_kept(const void *from, int64_t place, int is_bf16) {
    if (!is_bf16)
        return load((const float *)from + place);
    float wide[LANES];
    for (int i = 0; i < LANES; i++) {
        uint32_t bits = (uint32_t)((const uint16_t *)from)[place + i] << 16;
        memcpy(wide + i, &bits, sizeof bits);
    }
    return load(wide);
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline void keep(void *to, int64_t place, lanes x, int is_bf16) {
    if (!is_bf16) {
        store((float *)to + place, x);
        return;
    }
    float wide[LANES];
    store(wide, x);
    for (int i = 0; i < LANES; i++)
        ((uint16_t *)to)[place + i] = bf16_of(wide[i]);
}

static float dot(const float *x, const float *y, int64_t length) {
    lanes sum = all(0.0f);
    for (int64_t i = 0; i < length; i += LANES)
        sum = fused(load(x + i), load(y + i), sum);
    return total(sum);
}

/* What a norm needs of a vector. */
typedef struct {
    lanes mean, scale;
} Moments;

static Moments moments(const float *x, int64_t length, float eps) {
    lanes sum = all(0.0f), squares = all(0.0f);
    for (int64_t i = 0; i < length; i += LANES)
        sum = add(sum, load(x + i));
    lanes mean = all(total(sum) / (float)length);
    for (int64_t i = 0; i < length; i += LANES) {
        lanes distance = sub(load(x + i), mean);
        squares = fused(distance, distance, squares);
    }
    return (Moments){mean, all(1.0f / sqrtf(total(squares) / (float)length + eps))};
}

static inline lanes normed(Moments m, lanes x, lanes weight, lanes bias) {
    return fused(mul(sub(x, m.mean), m.scale), weight, bias);
}

/* --- matrices --------------------------------------------------------------------------------- */

/* What a product reads and writes: a vector of each stream, so many floats apart. */
typedef struct {
    const float *x;
    float *out;
    int64_t rows, x_apart, out_apart;
} Rows;

static Rows without(Rows of, int64_t rows) {
    return (Rows){of.x + rows * of.x_apart, of.out + rows * of.out_apart, of.rows - rows,
                  of.x_apart, of.out_apart};
}

/* Streams whose sums fit into the registers together: each weight is then loaded once for all. */
#if defined(__AVX512F__)
enum { MOST_ROWS = 4 };
#else
enum { MOST_ROWS = 1 };
#endif

static inline void load_two(const void *at, int64_t place, int is_bf16, lanes *even, lanes *odd) {
    if (is_bf16) {
        load_pairs((const uint16_t *)at + 2 * place, even, odd);
    } else {
        *even = load((const float *)at + place);
        *odd = load((const float *)at + BLOCK + place);
    }
}

/* Some of a block's outputs for some streams; `rows` and `quarters` are constants to the compiler,
 * so that every sum has a register of its own. */
static inline __attribute__((always_inline)) void tile(const void *block, int64_t in, Rows of,
                                                       int first, const int rows,
                                                       const int quarters, const int is_bf16) {
    lanes even[MOST_ROWS][QUARTERS], odd[MOST_ROWS][QUARTERS];
    const int64_t line = 2 * BLOCK * (is_bf16 ? sizeof(uint16_t) : sizeof(float));
    for (int row = 0; row < rows; row++)
        for (int q = 0; q < quarters; q++)
            even[row][q] = odd[row][q] = all(0.0f);
    for (int64_t i = 0; i < in; i += 2, block = (const char *)block + line) {
        for (int64_t ahead = 0; ahead < line; ahead += 64)
            __builtin_prefetch((const char *)block + AHEAD + ahead);
        for (int q = 0; q < quarters; q++) {
            lanes left, right;
            load_two(block, (first + q) * LANES, is_bf16, &left, &right);
            for (int row = 0; row < rows; row++) {
                const float *x = of.x + row * of.x_apart + i;
                even[row][q] = fused(left, all(x[0]), even[row][q]);
                odd[row][q] = fused(right, all(x[1]), odd[row][q]);
            }
        }
    }
    for (int row = 0; row < rows; row++)
        for (int q = 0; q < quarters; q++)
            store(of.out + row * of.out_apart + (first + q) * LANES, add(even[row][q], odd[row][q]));
}

static inline __attribute__((always_inline)) void tiles(const void *block, int64_t in, Rows of,
                                                        const int is_bf16) {
#if defined(__AVX512F__)
    for (; of.rows >= 4; of = without(of, 4))
        for (int first = 0; first < QUARTERS; first += 2)
            tile(block, in, of, first, 4, 2, is_bf16);
    for (; of.rows >= 2; of = without(of, 2))
        tile(block, in, of, 0, 2, QUARTERS, is_bf16);
#endif
    for (; of.rows; of = without(of, 1))
        tile(block, in, of, 0, 1, QUARTERS, is_bf16);
}

/* One block of outputs for all streams, `of.out` being that block's. */
static void product(const Matrix *m, int64_t block, Rows of, int is_bf16) {
    int64_t place = block * BLOCK * m->in;
    if (is_bf16)
        tiles((const uint16_t *)m->blocks + place, m->in, of, 1);
    else
        tiles((const float *)m->blocks + place, m->in, of, 0);
}

/* --- phases ----------------------------------------------------------------------------------- */

/* One stream's. Each phase reads what earlier ones wrote; a barrier lies between. */
typedef struct {
    const LayerState *before, *after; /* [layers] */
    int64_t token;
    void *hidden;
    float *x, *v_first, *r, *k, *v, *w, *a, *g, *y, *found; /* [width], filled up to blocks */
    float *mixed; /* [6, width] */
    float *inner; /* [4, rank], of w, a, v, g */
    float *wide; /* [ffn_width] */
} Stream;

/* Shared by all threads. */
typedef struct {
    const Model *model;
    const Team *team;
    const Stream *stream;
    int64_t count;
    int64_t stride; /* from one stream's vectors to the next one's, in floats */
} Step;

typedef struct {
    int64_t number, count;
} Thread;

typedef struct {
    int64_t from, to;
} Range;

/* The part of `count` things that one thread does. */
static Range share(Thread thread, int64_t count) {
    return (Range){count * thread.number / thread.count, count * (thread.number + 1) / thread.count};
}

static Range share_of_lanes(Thread thread, int64_t length) {
    Range part = share(thread, length / LANES);
    return (Range){part.from * LANES, part.to * LANES};
}

static Rows rows_of(const Step *at, const float *x, float *out) {
    return (Rows){x, out, at->count, at->stride, at->stride};
}

static void embed(const Model *model, const Stream *at, int64_t layer, Thread thread) {
    Range part = share_of_lanes(thread, model->width);
    (void)layer;
    for (int64_t i = part.from; i < part.to; i += LANES)
        store(at->y + i, load_kept(model->emb, at->token * model->width + i, model->is_bf16));
}

/* The sums of a norm are taken by every thread alone: cheaper than to wait for each other. */
static void norm_embedding(const Model *model, const Stream *at, int64_t layer, Thread thread) {
    Moments m = moments(at->y, model->width, LAYER_NORM_EPS);
    Range part = share_of_lanes(thread, model->width);
    (void)layer;
    for (int64_t i = part.from; i < part.to; i += LANES)
        store(at->x + i, normed(m, load(at->y + i), load(model->ln0_weight + i),
                                load(model->ln0_bias + i)));
}

static void mix_time(const Model *model, const Stream *at, int64_t layer, Thread thread) {
    const Layer *of = model->layer + layer;
    int64_t width = model->width;
    Moments m = moments(at->x, width, LAYER_NORM_EPS);
    Range part = share_of_lanes(thread, width);
    for (int64_t i = part.from; i < part.to; i += LANES) {
        lanes xn = normed(m, load(at->x + i), load(of->ln1_weight + i), load(of->ln1_bias + i));
        lanes prev = load_kept(at->before[layer].att_x_prev, i, model->is_bf16);
        lanes delta = sub(prev, xn);
        keep(at->after[layer].att_x_prev, i, xn, model->is_bf16);
        for (int64_t place = i; place < 6 * width; place += width)
            store(at->mixed + place, fused(delta, load(of->mix + place), xn));
    }
}

static void activate(Rows of, lanes (*function)(lanes)) {
    for (; of.rows; of = without(of, 1))
        for (int64_t i = 0; i < BLOCK; i += LANES)
            store(of.out + i, function(load(of.out + i)));
}

/* All matrices that read the mixed vectors, as one row of blocks. */
static void project(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    const Layer *of = model->layer + layer;
    const Stream *first = at->stream;
    const float *mixed = first->mixed;
    int64_t width = model->width, rank = model->rank;
    const struct {
        const Matrix *matrix;
        const float *input;
        float *out;
        lanes (*activation)(lanes);
    } jobs[] = {
        {&of->receptance, mixed, first->r, 0},
        {&of->key, mixed + 2 * width, first->k, 0},
        {&of->value, mixed + 3 * width, first->v, 0},
        {&of->w1, mixed + width, first->inner, hyperbolic_tangent},
        {&of->a1, mixed + 4 * width, first->inner + rank, 0},
        {&of->v1, mixed + 3 * width, first->inner + 2 * rank, 0},
        {&of->g1, mixed + 5 * width, first->inner + 3 * rank, sigmoid},
    };
    enum { JOBS = sizeof jobs / sizeof *jobs };
    int64_t blocks = 0;
    for (int job = 0; job < JOBS; job++)
        blocks += jobs[job].matrix->out / BLOCK;
    Range part = share(thread, blocks);
    int64_t before = 0;
    for (int job = 0; job < JOBS; job++) {
        int64_t count = jobs[job].matrix->out / BLOCK;
        for (int64_t block = 0; block < count; block++) {
            if (before + block < part.from || before + block >= part.to)
                continue;
            Rows rows = rows_of(at, jobs[job].input, jobs[job].out + block * BLOCK);
            product(jobs[job].matrix, block, rows, model->is_bf16);
            if (jobs[job].activation)
                activate(rows, jobs[job].activation);
        }
        before += count;
    }
}

/* One block of w, a, g as they are used, and v's blend with the first layer's. */
static void finish(const Model *model, const Stream *at, int64_t layer, int64_t from) {
    const Layer *of = model->layer + layer;
    for (int64_t i = from; i < from + BLOCK && i < model->width; i += LANES) {
        lanes decay = sigmoid(add(load(of->w0 + i), load(at->w + i)));
        store(at->w + i, exponential(mul(all(DECAY_SCALE), decay)));
        store(at->a + i, sigmoid(add(load(of->a0 + i), load(at->a + i))));
        lanes v = load(at->v + i);
        if (layer) {
            lanes rate = sigmoid(add(load(of->v0 + i), load(at->found + i)));
            store(at->v + i, fused(sub(load(at->v_first + i), v), rate, v));
        } else {
            store(at->v_first + i, v);
        }
    }
}

/* From the low ranks to the width. */
static void expand(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    const Layer *of = model->layer + layer;
    const Stream *first = at->stream;
    const float *inner = first->inner;
    int64_t rank = model->rank;
    int is_bf16 = model->is_bf16;
    Range part = share(thread, of->w2.out / BLOCK);
    for (int64_t block = part.from; block < part.to; block++) {
        int64_t i = block * BLOCK;
        product(&of->w2, block, rows_of(at, inner, first->w + i), is_bf16);
        product(&of->a2, block, rows_of(at, inner + rank, first->a + i), is_bf16);
        product(&of->g2, block, rows_of(at, inner + 3 * rank, first->g + i), is_bf16);
        if (layer)
            product(&of->v2, block, rows_of(at, inner + 2 * rank, first->found + i), is_bf16);
        for (int64_t number = 0; number < at->count; number++)
            finish(model, at->stream + number, layer, i);
    }
}

/* S' = S diag(w) + (S a) b^T + v k^T and y = S' r with a = -kk, b = kk * rate; one head. */
static void recur(const float *before, float *after, int64_t size, const float *r, const float *w,
                  const float *k, const float *v, const float *kk, const float *b, float *y) {
    for (int64_t row = 0; row < size; row++, before += size, after += size) {
        lanes removed = all(-dot(before, kk, size)), value = all(v[row]), sum = all(0.0f);
        for (int64_t i = 0; i < size; i += LANES) {
            lanes s = mul(load(before + i), load(w + i));
            s = fused(removed, load(b + i), s);
            s = fused(value, load(k + i), s);
            store(after + i, s);
            sum = fused(s, load(r + i), sum);
        }
        y[row] = total(sum);
    }
}

static void attend(const Model *model, const Stream *at, int64_t layer, Thread thread) {
    const Layer *of = model->layer + layer;
    int64_t size = model->width / model->heads;
    Range part = share(thread, model->heads);
    for (int64_t head = part.from; head < part.to; head++) {
        int64_t first = head * size, end = first + size;
        /* What the mixed vectors are needed no more for. */
        float *kk = at->mixed, *b = at->mixed + model->width;
        for (int64_t i = first; i < end; i += LANES)
            store(kk + i, mul(load(at->k + i), load(of->k_k + i)));
        lanes length = most(all(1e-12f), all(sqrtf(dot(kk + first, kk + first, size))));
        lanes bonus = all(0.0f);
        for (int64_t i = first; i < end; i += LANES) {
            lanes a = load(at->a + i), unit = quotient(load(kk + i), length);
            lanes factor = fused(sub(a, all(1.0f)), load(of->k_a + i), all(1.0f));
            lanes k = mul(load(at->k + i), factor);
            store(kk + i, unit);
            store(b + i, mul(unit, a));
            store(at->k + i, k);
            bonus = fused(mul(load(at->r + i), k), load(of->r_k + i), bonus);
        }
        recur(at->before[layer].att_kv + first * size, at->after[layer].att_kv + first * size, size,
              at->r + first, at->w + first, at->k + first, at->v + first, kk + first, b + first,
              at->y + first);
        Moments m = moments(at->y + first, size, GROUP_NORM_EPS);
        lanes own = all(total(bonus));
        for (int64_t i = first; i < end; i += LANES) {
            lanes y = normed(m, load(at->y + i), load(of->ln_x_weight + i), load(of->ln_x_bias + i));
            y = fused(own, load(at->v + i), y);
            store(at->y + i, mul(y, load(at->g + i)));
        }
    }
}

/* x += m input */
static void project_back(const Step *at, const Matrix *m, const float *input, Thread thread) {
    Range part = share(thread, m->out / BLOCK);
    for (int64_t block = part.from; block < part.to; block++) {
        int64_t from = block * BLOCK;
        product(m, block, rows_of(at, input, at->stream->found + from), at->model->is_bf16);
        for (int64_t number = 0; number < at->count; number++)
            for (int64_t i = from; i < from + BLOCK; i += LANES) {
                const Stream *of = at->stream + number;
                store(of->x + i, add(load(of->x + i), load(of->found + i)));
            }
    }
}

static void add_attention(const Step *at, int64_t layer, Thread thread) {
    project_back(at, &at->model->layer[layer].output, at->stream->y, thread);
}

static void mix_channels(const Model *model, const Stream *at, int64_t layer, Thread thread) {
    const Layer *of = model->layer + layer;
    Moments m = moments(at->x, model->width, LAYER_NORM_EPS);
    Range part = share_of_lanes(thread, model->width);
    for (int64_t i = part.from; i < part.to; i += LANES) {
        lanes xn = normed(m, load(at->x + i), load(of->ln2_weight + i), load(of->ln2_bias + i));
        lanes prev = load_kept(at->before[layer].ffn_x_prev, i, model->is_bf16);
        keep(at->after[layer].ffn_x_prev, i, xn, model->is_bf16);
        store(at->mixed + i, fused(sub(prev, xn), load(of->ffn_mix + i), xn));
    }
}

static lanes squared_relu(lanes x) {
    x = most(all(0.0f), x);
    return mul(x, x);
}

static void widen(const Step *at, int64_t layer, Thread thread) {
    const Matrix *m = &at->model->layer[layer].ffn_key;
    Range part = share(thread, m->out / BLOCK);
    for (int64_t block = part.from; block < part.to; block++) {
        Rows rows = rows_of(at, at->stream->mixed, at->stream->wide + block * BLOCK);
        product(m, block, rows, at->model->is_bf16);
        activate(rows, squared_relu);
    }
}

static void add_channels(const Step *at, int64_t layer, Thread thread) {
    project_back(at, &at->model->layer[layer].ffn_value, at->stream->wide, thread);
}

static void norm_hidden(const Model *model, const Stream *at, int64_t layer, Thread thread) {
    Moments m = moments(at->x, model->width, LAYER_NORM_EPS);
    Range part = share_of_lanes(thread, model->width);
    (void)layer;
    for (int64_t i = part.from; i < part.to; i += LANES)
        keep(at->hidden, i, normed(m, load(at->x + i), load(model->ln_out_weight + i),
                                   load(model->ln_out_bias + i)), model->is_bf16);
}

typedef void OfAll(const Step *, int64_t layer, Thread);
typedef void OfOne(const Model *, const Stream *, int64_t layer, Thread);

/* What is computed for all streams at once, or for one after the other. */
typedef struct {
    OfAll *all;
    OfOne *one;
} Phase;

static const Phase OF_A_LAYER[] = {
    {.one = mix_time}, {.all = project},       {.all = expand}, {.one = attend},
    {.all = add_attention}, {.one = mix_channels}, {.all = widen},  {.all = add_channels},
};
enum { PHASES = sizeof OF_A_LAYER / sizeof *OF_A_LAYER };

/* --- calls ------------------------------------------------------------------------------------ */

static Thread thread_of(const Team *team) {
    return team->parallel ? (Thread){team->number(), team->count()} : (Thread){0, 1};
}

static void run(const Team *team, void (*part)(void *), void *work, int64_t threads) {
    if (team->parallel)
        team->parallel(part, work, (unsigned)threads, 0);
    else
        part(work);
}

/* A phase, and no further until every thread has done its part. */
static void pass(const Step *at, Phase phase, int64_t layer, Thread thread) {
    if (phase.all)
        phase.all(at, layer, thread);
    else
        for (int64_t number = 0; number < at->count; number++)
            phase.one(at->model, at->stream + number, layer, thread);
    if (thread.count > 1)
        at->team->barrier();
}

static void step_part(void *work) {
    const Step *at = work;
    Thread thread = thread_of(at->team);
    pass(at, (Phase){.one = embed}, 0, thread);
    pass(at, (Phase){.one = norm_embedding}, 0, thread);
    for (int64_t layer = 0; layer < at->model->layers; layer++)
        for (int phase = 0; phase < PHASES; phase++)
            pass(at, OF_A_LAYER[phase], layer, thread);
    pass(at, (Phase){.one = norm_hidden}, 0, thread);
}

/* How many floats `rwkv7_step` works in for each stream. */
int64_t rwkv7_scratch(const Model *model) {
    int64_t padded = model->layer->w2.out;
    return 10 * padded + 6 * model->width + 4 * model->rank + model->ffn_width;
}

/* Read a token in each of `count` streams, one at least: `before` -> `after`, which lies elsewhere,
 * and the hidden vectors. `before` and `after` are [count, layers]; `streams` and `scratch` are
 * memory to work in. */
void rwkv7_step(const Model *model, const Team *team, int64_t threads, int64_t count,
                const int64_t *token, const LayerState *before, const LayerState *after,
                void *const *hidden, Stream *streams, float *scratch) {
    int64_t padded = model->layer->w2.out;
    Step step = {model, team, streams, count, rwkv7_scratch(model)};
    for (int64_t number = 0; number < count; number++) {
        Stream *at = streams + number;
        float *next = scratch + number * step.stride;
        float **vectors[] = {&at->x, &at->v_first, &at->r, &at->k, &at->v,
                             &at->w, &at->a,       &at->g, &at->y, &at->found};
        for (int i = 0; i < 10; i++, next += padded)
            *vectors[i] = next;
        at->mixed = next;
        at->inner = at->mixed + 6 * model->width;
        at->wide = at->inner + 4 * model->rank;
        at->before = before + number * model->layers;
        at->after = after + number * model->layers;
        at->token = token[number];
        at->hidden = hidden[number];
    }
    run(team, step_part, &step, threads);
}

/* Bytes of a `Stream`. */
int64_t rwkv7_stream_bytes(void) { return sizeof(Stream); }

typedef struct {
    const Model *model;
    const Team *team;
    Rows rows; /* of the first block */
} Scoring;

static void score_part(void *work) {
    const Scoring *at = work;
    const Matrix *head = &at->model->head;
    Range part = share(thread_of(at->team), head->out / BLOCK);
    for (int64_t block = part.from; block < part.to; block++) {
        Rows rows = at->rows;
        rows.out += block * BLOCK;
        product(head, block, rows, at->model->is_bf16);
    }
}

/* fp32 `hidden` [count, width] -> fp32 `logits` [count, vocabulary filled up to blocks]. */
void rwkv7_logits(const Model *model, const Team *team, int64_t threads, int64_t count,
                  const float *hidden, float *logits) {
    Scoring at = {model, team, {hidden, logits, count, model->width, model->head.out}};
    run(team, score_part, &at, threads);
}
