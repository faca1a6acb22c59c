/*
 * The steps of the CPU backend: workspace, the choices that bnnumba/cpu/choices.py makes, and the
 * kernels in the order of bnnumba/cpu/parallel.py.
 */

#include <stdlib.h>

#include "internal.h"

bnnumba_status bn_reserve(workspace *w, int64_t doubles)
{
    w->used = 0;
    w->allocated = NULL;
    w->memory = w->small;
    if (doubles <= SMALL_WORKSPACE)
        return BNNUMBA_OK;
    w->allocated = malloc((size_t)doubles * sizeof(double) + CACHE_LINE);
    if (!w->allocated)
        return bn_fail(BNNUMBA_ERROR_MEMORY, "cannot allocate a workspace of %lld bytes",
                       (long long)doubles * 8);
    uintptr_t line = ((uintptr_t)w->allocated + CACHE_LINE - 1) / CACHE_LINE;
    w->memory = (double *)(line * CACHE_LINE);
    return BNNUMBA_OK;
}

double *bn_take(workspace *w, int64_t doubles)
{
    double *taken = w->memory + w->used;
    w->used += doubles;
    return taken;
}

void bn_release(workspace *w)
{
    free(w->allocated);
}

double *bn_widen(workspace *w, bnnumba_dtype dtype, const void *from, int64_t c)
{
    if (!from)
        return NULL;
    double *wide = bn_take(w, c);
    for (int64_t i = 0; i < c; i++)
        wide[i] = dtype == BNNUMBA_FLOAT64 ? ((const double *)from)[i] : ((const float *)from)[i];
    return wide;
}

void bn_narrow(bnnumba_dtype dtype, const double *from, int64_t c, void *to)
{
    for (int64_t i = 0; to && i < c; i++) {
        if (dtype == BNNUMBA_FLOAT64)
            ((double *)to)[i] = from[i];
        else
            ((float *)to)[i] = (float)from[i];
    }
}

/* --- one step -------------------------------------------------------------------------------- */

/* A step in progress: what to run, on which job, by how many threads, in which memory. */
typedef struct running_step {
    kernel *run;
    job j;
    int threads;
    workspace memory;
    double *work;
} running_step;

static int dtype_index(const batch *b)
{
    return b->dtype - BNNUMBA_FLOAT32;
}

static kernel_id step_kernel(const batch *b, step what)
{
    return (kernel_id)(KERNEL_forward_ncs_f32 + (2 * dtype_index(b) + b->rc) * STEPS + what);
}

static kernel_id coefficients_kernel(const batch *b)
{
    return b->dtype == BNNUMBA_FLOAT64 ? KERNEL_coefficients_f64 : KERNEL_coefficients_f32;
}

static kernel_id input_coefficients_kernel(const batch *b)
{
    return b->dtype == BNNUMBA_FLOAT64 ? KERNEL_input_coefficients_f64
                                       : KERNEL_input_coefficients_f32;
}

bnnumba_status bn_shared(kernel_id id, job *j)
{
    kernel *run;
    TRY(bn_kernel(id, &run));
    run(0, j->c, j, NULL);
    return BNNUMBA_OK;
}

static int64_t columns(const batch *b)
{
    return b->rc ? b->c * b->s : b->c;
}

/* Begin a step with `x` and maybe `dy` and `y`. */
static void begin(running_step *r, const batch *b, const data *x, const data *dy, const data *y)
{
    r->j = (job){.n = b->n, .c = b->c, .s = b->s, .columns = columns(b)};
    r->j.ndim = b->rc ? 2 : 3, r->j.itemsize = b->itemsize;
    r->j.count = b->n * b->s, r->j.inputs = dy ? 2 : 1;
    r->j.x = ADDRESS(x->address), r->j.x_n = x->n_stride, r->j.x_c = x->c_stride;
    if (dy)
        r->j.dy = ADDRESS(dy->address), r->j.dy_n = dy->n_stride, r->j.dy_c = dy->c_stride;
    if (y)
        r->j.y = ADDRESS(y->address), r->j.y_n = y->n_stride, r->j.y_c = y->c_stride;
}

/* The kinds of steps, as in bnnumba/cpu/choices.py. */
typedef enum kind { FUSED, SUMS, WRITES } kind;

/* Cut the work of a step and choose its threads; block 0 says that it is better not fused. */
static bnnumba_status choose(running_step *r, const batch *b, step what, kind how)
{
    kernel *decide;
    int64_t size = b->n * b->c * b->s;
    TRY(bn_kernel(KERNEL_choose, &decide));
    TRY(bn_kernel(step_kernel(b, what), &r->run));
    r->threads = bn_enter(size);
    const caches *here = bn_caches();
    r->j.block_bytes = here->block, r->j.spill_bytes = here->spill;
    r->j.shared_bytes = here->shared, r->j.swept_bytes = here->swept;
    r->j.fetches_ahead = here->ahead;
    decide(how, r->threads, &r->j, NULL);
    return BNNUMBA_OK;
}

/* How many doubles the coefficients take, with room to begin anywhere on a cache line. */
#define COEFS(b) (4 * (columns(b) + REPEATED) + CACHE_LINE / 8)

/*
 * Take memory for coefficients, behind nothing but scratch of whole cache lines. They stand as far
 * from a cache line as the output that they are for, so that those of a vector that fills a line
 * fill a line too.
 */
static int64_t take_coefs(running_step *r, const batch *b, const data *out)
{
    uintptr_t size = b->dtype == BNNUMBA_FLOAT64 ? sizeof(double) : sizeof(float);
    uintptr_t lead = (uintptr_t)out->address / (uintptr_t)b->itemsize * size % CACHE_LINE;
    return ADDRESS((char *)bn_take(&r->memory, COEFS(b)) + lead);
}

/* How many doubles the partial results of all slabs take. */
static int64_t partial_size(const running_step *r)
{
    return r->j.slabs * PARTIAL_ROWS * r->j.c;
}

/* Allocate `doubles`, and scratch for each thread. */
static bnnumba_status reserve(running_step *r, int64_t doubles)
{
    bnnumba_status status = bn_reserve(&r->memory, doubles + r->threads * r->j.scratch);
    if (status != BNNUMBA_OK)
        bn_leave(r->threads);
    else
        r->work = bn_take(&r->memory, r->threads * r->j.scratch);
    return status;
}

static void run(running_step *r)
{
    bn_run(r->run, &r->j, r->j.items, r->threads, r->work, r->j.scratch);
}

static void finish(running_step *r)
{
    bn_release(&r->memory);
    bn_leave(r->threads);
}

/* --- the steps ------------------------------------------------------------------------------- */

bnnumba_status bn_collect(const batch *b, const data *x, double eps, double *stats)
{
    running_step r;
    begin(&r, b, x, NULL, NULL);
    TRY(choose(&r, b, COLLECT, SUMS));
    TRY(reserve(&r, partial_size(&r)));
    r.j.partial = ADDRESS(bn_take(&r.memory, partial_size(&r)));
    r.j.stats = ADDRESS(stats);
    r.j.eps = eps;
    run(&r);
    bnnumba_status status = bn_shared(KERNEL_merge, &r.j);
    finish(&r);
    return status;
}

bnnumba_status bn_normalize(const batch *b, const data *x, const double *weight, const double *bias,
                            const double *mean, const double *rest, const double *invstd,
                            const data *y)
{
    running_step r;
    begin(&r, b, x, NULL, y);
    TRY(choose(&r, b, NORMALIZE, WRITES));
    TRY(reserve(&r, COEFS(b)));
    r.j.coefs = take_coefs(&r, b, y);
    r.j.mean = ADDRESS(mean), r.j.rest = ADDRESS(rest), r.j.invstd = ADDRESS(invstd);
    r.j.weight = ADDRESS(weight), r.j.bias = ADDRESS(bias);
    bnnumba_status status = bn_shared(coefficients_kernel(b), &r.j);
    if (status == BNNUMBA_OK)
        run(&r);
    finish(&r);
    return status;
}

bnnumba_status bn_forward(const batch *b, const data *x, const double *weight, const double *bias,
                          double eps, double *stats, const data *y)
{
    running_step r;
    begin(&r, b, x, NULL, y);
    TRY(choose(&r, b, FORWARD, FUSED));
    if (!r.j.block) {
        bn_leave(r.threads);
        TRY(bn_collect(b, x, eps, stats));
        return bn_normalize(b, x, weight, bias, stats, stats + 3 * b->c, stats + 2 * b->c, y);
    }
    TRY(reserve(&r, COEFS(b) + partial_size(&r)));
    r.j.coefs = take_coefs(&r, b, y);
    r.j.partial = ADDRESS(bn_take(&r.memory, partial_size(&r)));
    r.j.weight = ADDRESS(weight), r.j.bias = ADDRESS(bias);
    r.j.stats = ADDRESS(stats);
    r.j.eps = eps;
    run(&r);
    finish(&r);
    return BNNUMBA_OK;
}

/* Write the sums over the batch (2 * c doubles), and dweight and dbias. */
static bnnumba_status reduce(const batch *b, const data *x, const data *dy, const double *mean,
                             const double *rest, const double *invstd, double *sums,
                             double *dweight, double *dbias)
{
    running_step r;
    begin(&r, b, x, dy, NULL);
    TRY(choose(&r, b, REDUCE, SUMS));
    TRY(reserve(&r, partial_size(&r)));
    r.j.partial = ADDRESS(bn_take(&r.memory, partial_size(&r)));
    r.j.mean = ADDRESS(mean), r.j.rest = ADDRESS(rest), r.j.invstd = ADDRESS(invstd);
    r.j.sums = ADDRESS(sums), r.j.dweight = ADDRESS(dweight), r.j.dbias = ADDRESS(dbias);
    run(&r);
    bnnumba_status status = bn_shared(KERNEL_sums, &r.j);
    finish(&r);
    return status;
}

bnnumba_status bn_reduce(const batch *b, const data *x, const data *dy, const double *mean,
                         const double *rest, const double *invstd, double *dweight, double *dbias)
{
    workspace w;
    TRY(bn_reserve(&w, 2 * b->c));
    bnnumba_status status =
        reduce(b, x, dy, mean, rest, invstd, bn_take(&w, 2 * b->c), dweight, dbias);
    bn_release(&w);
    return status;
}

static bnnumba_status input(const batch *b, const data *x, const data *dy, const double *weight,
                            const double *mean, const double *rest, const double *invstd,
                            const double *sums, const data *dx)
{
    running_step r;
    begin(&r, b, x, dy, dx);
    TRY(choose(&r, b, INPUT, WRITES));
    TRY(reserve(&r, COEFS(b)));
    r.j.coefs = take_coefs(&r, b, dx);
    r.j.mean = ADDRESS(mean), r.j.rest = ADDRESS(rest), r.j.invstd = ADDRESS(invstd);
    r.j.sums = ADDRESS(sums);
    r.j.weight = ADDRESS(weight);
    bnnumba_status status = bn_shared(input_coefficients_kernel(b), &r.j);
    if (status == BNNUMBA_OK)
        run(&r);
    finish(&r);
    return status;
}

static bnnumba_status backward_in_two(const batch *b, const data *x, const data *dy,
                                      const double *weight, const double *stats,
                                      const double *rest, const data *dx, double *dweight,
                                      double *dbias)
{
    const double *mean = stats, *invstd = stats + 2 * b->c;
    workspace w;
    TRY(bn_reserve(&w, 2 * b->c));
    double *sums = bn_take(&w, 2 * b->c);
    bnnumba_status status = reduce(b, x, dy, mean, rest, invstd, sums, dweight, dbias);
    if (status == BNNUMBA_OK)
        status = input(b, x, dy, weight, mean, rest, invstd, sums, dx);
    bn_release(&w);
    return status;
}

bnnumba_status bn_backward(const batch *b, const data *x, const data *dy, const double *weight,
                           const double *stats, const double *rest, const data *dx, double *dweight,
                           double *dbias)
{
    running_step r;
    begin(&r, b, x, dy, dx);
    TRY(choose(&r, b, BACKWARD, FUSED));
    if (!r.j.block) {
        bn_leave(r.threads);
        return backward_in_two(b, x, dy, weight, stats, rest, dx, dweight, dbias);
    }
    TRY(reserve(&r, COEFS(b) + partial_size(&r) + 2 * b->c));
    r.j.coefs = take_coefs(&r, b, dx);
    r.j.partial = ADDRESS(bn_take(&r.memory, partial_size(&r)));
    r.j.sums = ADDRESS(bn_take(&r.memory, 2 * b->c));
    r.j.stats = ADDRESS(stats), r.j.rest = ADDRESS(rest);
    r.j.weight = ADDRESS(weight), r.j.dweight = ADDRESS(dweight), r.j.dbias = ADDRESS(dbias);
    run(&r);
    finish(&r);
    return BNNUMBA_OK;
}
