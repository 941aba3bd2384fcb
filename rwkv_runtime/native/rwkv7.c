/* One token of RWKV-7, from its embedding to the last hidden vector; and the logits.
 *
 * The formulas are those of rwkv_runtime/model.py. What is computed is specified to the last bit,
 * by this file and lanes.h, and depends neither on the processor nor on the number of threads:
 *
 *   - everything is fp32, whatever the matrices are kept in; a product of bf16 is exact in it;
 *   - an output of a matrix is two sums, over the even and the odd inputs, each in the inputs'
 *     order by fused multiply-adds, and then their sum;
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

/* One block of outputs. Eight sums, each in a register of its own. */
static void product_fp32(const float *row, int64_t in, const float *x, float *out) {
    lanes even[QUARTERS], odd[QUARTERS];
    for (int q = 0; q < QUARTERS; q++)
        even[q] = odd[q] = all(0.0f);
    for (int64_t i = 0; i < in; i += 2, row += 2 * BLOCK) {
        lanes first = all(x[i]), second = all(x[i + 1]);
        for (int q = 0; q < QUARTERS; q++) {
            __builtin_prefetch((const char *)(row + q * LANES) + AHEAD);
            __builtin_prefetch((const char *)(row + BLOCK + q * LANES) + AHEAD);
            even[q] = fused(load(row + q * LANES), first, even[q]);
            odd[q] = fused(load(row + BLOCK + q * LANES), second, odd[q]);
        }
    }
    for (int q = 0; q < QUARTERS; q++)
        store(out + q * LANES, add(even[q], odd[q]));
}

static void product_bf16(const uint16_t *row, int64_t in, const float *x, float *out) {
    lanes even[QUARTERS], odd[QUARTERS];
    for (int q = 0; q < QUARTERS; q++)
        even[q] = odd[q] = all(0.0f);
    for (int64_t i = 0; i < in; i += 2, row += 2 * BLOCK) {
        lanes first = all(x[i]), second = all(x[i + 1]);
        for (int q = 0; q < QUARTERS; q++) {
            lanes left, right;
            __builtin_prefetch((const char *)(row + 2 * q * LANES) + AHEAD);
            load_pairs(row + 2 * q * LANES, &left, &right);
            even[q] = fused(left, first, even[q]);
            odd[q] = fused(right, second, odd[q]);
        }
    }
    for (int q = 0; q < QUARTERS; q++)
        store(out + q * LANES, add(even[q], odd[q]));
}

static void product(const Matrix *m, int64_t block, const float *x, float *out, int is_bf16) {
    int64_t place = block * BLOCK * m->in;
    if (is_bf16)
        product_bf16((const uint16_t *)m->blocks + place, m->in, x, out);
    else
        product_fp32((const float *)m->blocks + place, m->in, x, out);
}

/* --- phases ----------------------------------------------------------------------------------- */

/* Shared by all threads. Each phase reads what earlier ones wrote; a barrier lies between. */
typedef struct {
    const Model *model;
    const Team *team;
    const LayerState *before, *after; /* [layers] */
    int64_t token;
    void *hidden;
    float *x, *v_first, *r, *k, *v, *w, *a, *g, *y; /* [width] */
    float *mixed; /* [6, width] */
    float *inner; /* [4, rank], of w, a, v, g */
    float *wide; /* [ffn_width] */
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

static void embed(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    Range part = share_of_lanes(thread, model->width);
    (void)layer;
    for (int64_t i = part.from; i < part.to; i += LANES)
        store(at->y + i, load_kept(model->emb, at->token * model->width + i, model->is_bf16));
}

/* The sums of a norm are taken by every thread alone: cheaper than to wait for each other. */
static void norm_embedding(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    Moments m = moments(at->y, model->width, LAYER_NORM_EPS);
    Range part = share_of_lanes(thread, model->width);
    (void)layer;
    for (int64_t i = part.from; i < part.to; i += LANES)
        store(at->x + i, normed(m, load(at->y + i), load(model->ln0_weight + i),
                                load(model->ln0_bias + i)));
}

static void mix_time(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
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

static void activate(float *block, lanes (*function)(lanes)) {
    for (int64_t i = 0; i < BLOCK; i += LANES)
        store(block + i, function(load(block + i)));
}

/* All matrices that read the mixed vectors, as one row of blocks. */
static void project(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    const Layer *of = model->layer + layer;
    const float *mixed = at->mixed;
    int64_t width = model->width, rank = model->rank;
    const struct {
        const Matrix *matrix;
        const float *input;
        float *out;
        lanes (*activation)(lanes);
    } jobs[] = {
        {&of->receptance, mixed, at->r, 0},
        {&of->key, mixed + 2 * width, at->k, 0},
        {&of->value, mixed + 3 * width, at->v, 0},
        {&of->w1, mixed + width, at->inner, hyperbolic_tangent},
        {&of->a1, mixed + 4 * width, at->inner + rank, 0},
        {&of->v1, mixed + 3 * width, at->inner + 2 * rank, 0},
        {&of->g1, mixed + 5 * width, at->inner + 3 * rank, sigmoid},
    };
    enum { JOBS = sizeof jobs / sizeof *jobs };
    int64_t blocks = 0;
    for (int job = 0; job < JOBS; job++)
        blocks += jobs[job].matrix->out / BLOCK;
    Range part = share(thread, blocks);
    int64_t first = 0;
    for (int job = 0; job < JOBS; job++) {
        int64_t count = jobs[job].matrix->out / BLOCK;
        for (int64_t block = 0; block < count; block++) {
            if (first + block < part.from || first + block >= part.to)
                continue;
            float *out = jobs[job].out + block * BLOCK;
            product(jobs[job].matrix, block, jobs[job].input, out, model->is_bf16);
            if (jobs[job].activation)
                activate(out, jobs[job].activation);
        }
        first += count;
    }
}

/* w, a, g from their low ranks, and v's blend with the first layer's. */
static void expand(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    const Layer *of = model->layer + layer;
    int64_t rank = model->rank;
    int is_bf16 = model->is_bf16;
    Range part = share(thread, of->w2.out / BLOCK);
    for (int64_t block = part.from; block < part.to; block++) {
        int64_t first = block * BLOCK;
        float blend[BLOCK];
        product(&of->w2, block, at->inner, at->w + first, is_bf16);
        product(&of->a2, block, at->inner + rank, at->a + first, is_bf16);
        product(&of->g2, block, at->inner + 3 * rank, at->g + first, is_bf16);
        if (layer)
            product(&of->v2, block, at->inner + 2 * rank, blend, is_bf16);
        for (int64_t lane = 0; lane < BLOCK; lane += LANES) {
            int64_t i = first + lane;
            if (i >= model->width)
                break;
            lanes decay = sigmoid(add(load(of->w0 + i), load(at->w + i)));
            store(at->w + i, exponential(mul(all(DECAY_SCALE), decay)));
            store(at->a + i, sigmoid(add(load(of->a0 + i), load(at->a + i))));
            if (!layer) {
                store(at->v_first + i, load(at->v + i));
                continue;
            }
            lanes v = load(at->v + i), rate = sigmoid(add(load(of->v0 + i), load(blend + lane)));
            store(at->v + i, fused(sub(load(at->v_first + i), v), rate, v));
        }
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

static void attend(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
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
        float found[BLOCK];
        product(m, block, input, found, at->model->is_bf16);
        for (int64_t lane = 0; lane < BLOCK; lane += LANES) {
            float *x = at->x + block * BLOCK + lane;
            store(x, add(load(x), load(found + lane)));
        }
    }
}

static void add_attention(const Step *at, int64_t layer, Thread thread) {
    project_back(at, &at->model->layer[layer].output, at->y, thread);
}

static void mix_channels(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
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
        product(m, block, at->mixed, at->wide + block * BLOCK, at->model->is_bf16);
        activate(at->wide + block * BLOCK, squared_relu);
    }
}

static void add_channels(const Step *at, int64_t layer, Thread thread) {
    project_back(at, &at->model->layer[layer].ffn_value, at->wide, thread);
}

static void norm_hidden(const Step *at, int64_t layer, Thread thread) {
    const Model *model = at->model;
    Moments m = moments(at->x, model->width, LAYER_NORM_EPS);
    Range part = share_of_lanes(thread, model->width);
    (void)layer;
    for (int64_t i = part.from; i < part.to; i += LANES)
        keep(at->hidden, i, normed(m, load(at->x + i), load(model->ln_out_weight + i),
                                   load(model->ln_out_bias + i)), model->is_bf16);
}

typedef void Phase(const Step *, int64_t layer, Thread);

static Phase *const OF_A_LAYER[] = {mix_time, project, expand, attend, add_attention,
                                    mix_channels, widen, add_channels};
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

static void step_part(void *work) {
    const Step *at = work;
    Thread thread = thread_of(at->team);
#define THEN(phase, layer)                             \
    phase(at, layer, thread);                          \
    if (thread.count > 1)                              \
        at->team->barrier()
    THEN(embed, 0);
    THEN(norm_embedding, 0);
    for (int64_t layer = 0; layer < at->model->layers; layer++)
        for (int phase = 0; phase < PHASES; phase++) {
            THEN(OF_A_LAYER[phase], layer);
        }
#undef THEN
    norm_hidden(at, 0, thread);
}

/* How many floats `rwkv7_step` works in. */
int64_t rwkv7_scratch(const Model *model) {
    int64_t padded = model->layer->w2.out;
    return 9 * padded + 6 * model->width + 4 * model->rank + model->ffn_width;
}

/* Read `token`: `before` -> `after`, which lies elsewhere, and the hidden vector [width]. */
void rwkv7_step(const Model *model, const Team *team, int64_t threads, int64_t token,
                const LayerState *before, const LayerState *after, void *hidden, float *scratch) {
    int64_t padded = model->layer->w2.out;
    Step at = {.model = model, .team = team, .before = before, .after = after, .token = token,
               .hidden = hidden};
    float **vectors[] = {&at.x, &at.v_first, &at.r, &at.k, &at.v, &at.w, &at.a, &at.g, &at.y};
    for (int i = 0; i < 9; i++, scratch += padded)
        *vectors[i] = scratch;
    at.mixed = scratch;
    at.inner = at.mixed + 6 * model->width;
    at.wide = at.inner + 4 * model->rank;
    run(team, step_part, &at, threads);
}

typedef struct {
    const Model *model;
    const Team *team;
    const float *hidden;
    float *logits;
} Scoring;

static void score_part(void *work) {
    const Scoring *at = work;
    Thread thread = thread_of(at->team);
    Range part = share(thread, at->model->head.out / BLOCK);
    for (int64_t block = part.from; block < part.to; block++)
        product(&at->model->head, block, at->hidden, at->logits + block * BLOCK,
                at->model->is_bf16);
}

/* fp32 `hidden` [width] -> fp32 `logits` [vocabulary, filled up to whole blocks]. */
void rwkv7_logits(const Model *model, const Team *team, int64_t threads, const float *hidden,
                  float *logits) {
    Scoring at = {model, team, hidden, logits};
    run(team, score_part, &at, threads);
}
