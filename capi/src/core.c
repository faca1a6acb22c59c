/* The public functions, on data that is seen as a canonical view already. */

#include <string.h>

#include "internal.h"

/* A check of what is not data, then of overlap, then work: nothing is written before. */

static int64_t values(const batch *b)
{
    return b->n * b->s;
}

static int is_empty(const batch *b)
{
    return b->n == 0 || b->c == 0 || b->s == 0;
}

bnnumba_status bn_moments_of(const batch *b, const data *x, int64_t *count_out, double *mean_out,
                             double *m2_out, double *rest_out)
{
    int64_t c = b->c;
    spans all = {.count = 0};
    workspace w;
    TRY(bn_check_pointer("count_out", count_out, 1, 8, 1));
    TRY(bn_check_pointer("mean_out", mean_out, c, 8, 0));
    TRY(bn_check_pointer("m2_out", m2_out, c, 8, 0));
    bn_add_data(&all, x);
    bn_add_span(&all, "count_out", count_out, 8, 1);
    bn_add_span(&all, "mean_out", mean_out, 8 * c, 1);
    bn_add_span(&all, "m2_out", m2_out, 8 * c, 1);
    TRY(bn_check_overlap(&all));
    for (int64_t i = 0; rest_out && i < c; i++)
        rest_out[i] = 0.0;
    ON_DEVICE(x, bn_python_moments_dl(x->on_device, x->axis, count_out, mean_out, m2_out));
    if (is_empty(b)) {
        for (int64_t i = 0; i < c; i++)
            mean_out[i] = m2_out[i] = 0.0;
    } else {
        TRY(bn_reserve(&w, 4 * c));
        double *stats = bn_take(&w, 4 * c);
        /* Nobody sees invstd. An eps of 0 would divide by zero, in constant channels and in lanes
           of vectors behind the last channel, and end programs that trap that. */
        bnnumba_status status = bn_collect(b, x, 1.0, stats);
        if (status == BNNUMBA_OK) {
            memcpy(mean_out, stats, (size_t)c * 8);
            memcpy(m2_out, stats + c, (size_t)c * 8);
            if (rest_out)
                memcpy(rest_out, stats + 3 * c, (size_t)c * 8);
        }
        bn_release(&w);
        TRY(status);
    }
    if (count_out)
        *count_out = values(b);
    return BNNUMBA_OK;
}

/* Move running statistics; arguments are checked. `w` has room for 2 * c doubles. */
static bnnumba_status update(workspace *w, int64_t c, int64_t count, const double *mean,
                             const double *m2, const bnnumba_params *params)
{
    double *running_mean = bn_widen(w, params->dtype, params->running_mean, c);
    double *running_var = bn_widen(w, params->dtype, params->running_var, c);
    job j = {.c = c, .count = count, .momentum = params->momentum};
    j.correction = params->correction;
    j.mean = ADDRESS(mean), j.m2 = ADDRESS(m2);
    j.running_mean = ADDRESS(running_mean);
    j.running_var = ADDRESS(running_var);
    TRY(bn_shared(KERNEL_update_running, &j));
    bn_narrow(params->dtype, running_mean, c, params->running_mean);
    bn_narrow(params->dtype, running_var, c, params->running_var);
    return BNNUMBA_OK;
}

/* Write the rows mean, variance and invstd of running statistics; takes 5 * c doubles. */
static bnnumba_status constant_stats(workspace *w, int64_t c, const bnnumba_params *params,
                                     double **stats_out)
{
    *stats_out = bn_take(w, 3 * c);
    job j = {.c = c, .eps = params->eps};
    j.running_mean = ADDRESS(bn_widen(w, params->dtype, params->running_mean, c));
    j.running_var = ADDRESS(bn_widen(w, params->dtype, params->running_var, c));
    j.stats = ADDRESS(*stats_out);
    return bn_shared(KERNEL_constant_stats, &j);
}

bnnumba_status bnnumba_update_running(int64_t c, int64_t count, const double *mean,
                                      const double *m2, const bnnumba_params *params)
{
    batch b = {BNNUMBA_FLOAT64, 1, 8, 1, c, 1};
    bnnumba_params p;
    spans all = {.count = 0};
    workspace w;
    TRY(bn_check_extents(&b));
    TRY(bn_check_count("count", count));
    TRY(bn_check_pointer("mean", mean, c, 8, 0));
    TRY(bn_check_pointer("m2", m2, c, 8, 0));
    TRY(bn_check_params(params, RUNNING | UPDATE, c, &p));
    if (p.running_var && count)
        TRY(bn_check_correction("params.correction", count, p.correction));
    bn_add_span(&all, "mean", mean, 8 * c, 0);
    bn_add_span(&all, "m2", m2, 8 * c, 0);
    bn_add_params(&all, &p, c, 1);
    TRY(bn_check_overlap(&all));
    if (!count || !c)
        return BNNUMBA_OK;
    TRY(bn_reserve(&w, 2 * c));
    bnnumba_status status = update(&w, c, count, mean, m2, &p);
    bn_release(&w);
    return status;
}

static bnnumba_status check_rest(const data *x, const bnnumba_params *params)
{
    if (x->on_device && params->mean_rest)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                       "params.mean_rest: expected NULL for data on a GPU, got a pointer");
    return BNNUMBA_OK;
}

bnnumba_status bn_forward_training_of(const batch *b, const data *x, const bnnumba_params *params,
                                      const data *y, double *saved_out)
{
    int64_t c = b->c;
    bnnumba_params p;
    spans all = {.count = 0};
    workspace w;
    TRY(bn_check_params(params, WEIGHT | BIAS | RUNNING | UPDATE | EPS | REST, c, &p));
    TRY(check_rest(x, &p));
    TRY(bn_check_pointer("saved_out", saved_out, 3 * c, 8, 1));
    if (p.running_var && !is_empty(b))
        TRY(bn_check_correction("params.correction", values(b), p.correction));
    bn_add_data(&all, x);
    bn_add_data(&all, y);
    bn_add_params(&all, &p, c, 1);
    bn_add_span(&all, "saved_out", saved_out, 24 * c, 1);
    TRY(bn_check_overlap(&all));
    ON_DEVICE(x, bn_python_forward_training_dl(x->on_device, x->axis, &p, y->on_device, saved_out));
    if (is_empty(b)) {
        for (int64_t i = 0; saved_out && i < 3 * c; i++)
            saved_out[i] = 0.0;
        for (int64_t i = 0; p.mean_rest && i < c; i++)
            p.mean_rest[i] = 0.0;
        return BNNUMBA_OK;
    }
    TRY(bn_reserve(&w, 8 * c));
    double *weight = bn_widen(&w, p.dtype, p.weight, c);
    double *bias = bn_widen(&w, p.dtype, p.bias, c);
    double *stats = bn_take(&w, 4 * c);
    bnnumba_status status = bn_forward(b, x, weight, bias, p.eps, stats, y);
    if (status == BNNUMBA_OK && saved_out)
        memcpy(saved_out, stats, (size_t)c * 24);
    if (status == BNNUMBA_OK && p.mean_rest)
        memcpy(p.mean_rest, stats + 3 * c, (size_t)c * 8);
    if (status == BNNUMBA_OK && (p.running_mean || p.running_var))
        status = update(&w, c, values(b), stats, stats + c, &p);
    bn_release(&w);
    return status;
}

bnnumba_status bn_forward_inference_of(const batch *b, const data *x, const bnnumba_params *params,
                                       const data *y)
{
    int64_t c = b->c;
    bnnumba_params p;
    spans all = {.count = 0};
    workspace w;
    double *stats;
    TRY(bn_check_params(params, WEIGHT | BIAS | RUNNING | EPS | NEEDED, c, &p));
    bn_add_data(&all, x);
    bn_add_data(&all, y);
    bn_add_params(&all, &p, c, 0);
    TRY(bn_check_overlap(&all));
    ON_DEVICE(x, bn_python_forward_inference_dl(x->on_device, x->axis, &p, y->on_device));
    if (is_empty(b))
        return BNNUMBA_OK;
    TRY(bn_reserve(&w, 7 * c));
    double *weight = bn_widen(&w, p.dtype, p.weight, c);
    double *bias = bn_widen(&w, p.dtype, p.bias, c);
    bnnumba_status status = constant_stats(&w, c, &p, &stats);
    if (status == BNNUMBA_OK)
        status = bn_normalize(b, x, weight, bias, stats, NULL, stats + 2 * c, y);
    bn_release(&w);
    return status;
}

/* Check what the two backward passes share, and answer for an empty batch: then *done is 1. */
static bnnumba_status open_backward(const batch *b, const data *x, const data *dy,
                                    const bnnumba_params *p, const double *saved, const data *dx,
                                    void *dweight_out, void *dbias_out, int *done)
{
    int64_t c = b->c, size = bn_itemsize(p->dtype);
    spans all = {.count = 0};
    TRY(bn_check_pointer("dweight_out", dweight_out, c, size, 1));
    TRY(bn_check_pointer("dbias_out", dbias_out, c, size, 1));
    bn_add_data(&all, x);
    bn_add_data(&all, dy);
    bn_add_data(&all, dx);
    bn_add_params(&all, p, c, 0);
    bn_add_span(&all, "saved", saved, 24 * c, 0);
    bn_add_span(&all, "dweight_out", dweight_out, size * c, 1);
    bn_add_span(&all, "dbias_out", dbias_out, size * c, 1);
    TRY(bn_check_overlap(&all));
    *done = is_empty(b) && !x->on_device;
    if (*done && dweight_out)
        memset(dweight_out, 0, (size_t)(size * c));
    if (*done && dbias_out)
        memset(dbias_out, 0, (size_t)(size * c));
    return BNNUMBA_OK;
}

bnnumba_status bn_backward_training_of(const batch *b, const data *x, const data *dy,
                                       const bnnumba_params *params, const double *saved,
                                       const data *dx, void *dweight_out, void *dbias_out)
{
    int64_t c = b->c;
    int done;
    bnnumba_params p;
    workspace w;
    TRY(bn_check_params(params, WEIGHT | REST, c, &p));
    TRY(check_rest(x, &p));
    TRY(bn_check_pointer("saved", saved, 3 * c, 8, 0));
    TRY(open_backward(b, x, dy, &p, saved, dx, dweight_out, dbias_out, &done));
    ON_DEVICE(x, bn_python_backward_training_dl(x->on_device, dy->on_device, x->axis, &p, saved,
                                                dx ? dx->on_device : NULL, dweight_out, dbias_out));
    if (done)
        return BNNUMBA_OK;
    TRY(bn_reserve(&w, 3 * c));
    double *weight = bn_widen(&w, p.dtype, p.weight, c);
    double *dweight = bn_take(&w, c), *dbias = bn_take(&w, c);
    bnnumba_status status =
        dx ? bn_backward(b, x, dy, weight, saved, p.mean_rest, dx, dweight, dbias)
           : bn_reduce(b, x, dy, saved, p.mean_rest, saved + 2 * c, dweight, dbias);
    if (status == BNNUMBA_OK) {
        bn_narrow(p.dtype, dweight, c, dweight_out);
        bn_narrow(p.dtype, dbias, c, dbias_out);
    }
    bn_release(&w);
    return status;
}

bnnumba_status bn_backward_inference_of(const batch *b, const data *x, const data *dy,
                                        const bnnumba_params *params, const data *dx,
                                        void *dweight_out, void *dbias_out)
{
    int64_t c = b->c;
    int done;
    bnnumba_params p;
    workspace w;
    double *stats;
    TRY(bn_check_params(params, WEIGHT | RUNNING | EPS | NEEDED, c, &p));
    TRY(open_backward(b, x, dy, &p, NULL, dx, dweight_out, dbias_out, &done));
    ON_DEVICE(x, bn_python_backward_inference_dl(x->on_device, dy->on_device, x->axis, &p,
                                                 dx ? dx->on_device : NULL, dweight_out,
                                                 dbias_out));
    if (done)
        return BNNUMBA_OK;
    TRY(bn_reserve(&w, 9 * c));
    double *weight = bn_widen(&w, p.dtype, p.weight, c);
    double *dweight = bn_take(&w, c), *dbias = bn_take(&w, c), *zeros = bn_take(&w, c);
    memset(zeros, 0, (size_t)c * 8);
    bnnumba_status status = constant_stats(&w, c, &p, &stats);
    if (status == BNNUMBA_OK && (dweight_out || dbias_out))
        status = bn_reduce(b, x, dy, stats, NULL, stats + 2 * c, dweight, dbias);
    /* Constant statistics: dx = dy * invstd * weight, whatever stands in x. */
    if (status == BNNUMBA_OK && dx)
        status = bn_normalize(b, dy, weight, NULL, zeros, NULL, stats + 2 * c, dx);
    if (status == BNNUMBA_OK) {
        bn_narrow(p.dtype, dweight, c, dweight_out);
        bn_narrow(p.dtype, dbias, c, dbias_out);
    }
    bn_release(&w);
    return status;
}

static double element(bnnumba_dtype dtype, const void *array, int64_t i)
{
    return dtype == BNNUMBA_FLOAT64 ? ((const double *)array)[i] : ((const float *)array)[i];
}

static void set_element(bnnumba_dtype dtype, void *array, int64_t i, double value)
{
    if (dtype == BNNUMBA_FLOAT64)
        ((double *)array)[i] = value;
    else
        ((float *)array)[i] = (float)value;
}

bnnumba_status bnnumba_fold(bnnumba_dtype dtype, int64_t c, int64_t k, const void *conv_weight,
                            const void *conv_bias, const bnnumba_params *params,
                            void *conv_weight_out, void *conv_bias_out)
{
    bnnumba_params p;
    spans all = {.count = 0};
    workspace w;
    double *stats;
    TRY(bn_check_statistics("dtype", dtype));
    batch b = {dtype, 1, bn_itemsize(dtype), k, c, 1};
    int64_t whole = c && k ? 1 : 0, size = b.itemsize, bytes;
    TRY(bn_check_count("c", c));
    TRY(bn_check_count("k", k));
    if (__builtin_mul_overflow(c, k, &bytes) || __builtin_mul_overflow(bytes, size, &bytes))
        return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                       "c, k: expected less than 2^63 bytes, got %lld x %lld elements",
                       (long long)c, (long long)k);
    TRY(bn_check_extents(&b));
    TRY(bn_check_pointer("conv_weight", conv_weight, whole, size, 0));
    TRY(bn_check_pointer("conv_bias", conv_bias, c, size, 1));
    TRY(bn_check_pointer("conv_weight_out", conv_weight_out, whole, size, 0));
    TRY(bn_check_pointer("conv_bias_out", conv_bias_out, c, size, 0));
    TRY(bn_check_params(params, WEIGHT | BIAS | RUNNING | EPS | NEEDED, c, &p));
    if (conv_weight != conv_weight_out)
        bn_add_span(&all, "conv_weight", conv_weight, size * c * k, 0);
    if (conv_bias != conv_bias_out)
        bn_add_span(&all, "conv_bias", conv_bias, size * c, 0);
    bn_add_params(&all, &p, c, 0);
    bn_add_span(&all, "conv_weight_out", conv_weight_out, size * c * k, 1);
    bn_add_span(&all, "conv_bias_out", conv_bias_out, size * c, 1);
    TRY(bn_check_overlap(&all));
    TRY(bn_reserve(&w, 5 * c));
    bnnumba_status status = constant_stats(&w, c, &p, &stats);
    for (int64_t i = 0; status == BNNUMBA_OK && i < c; i++) {
        double factor = stats[2 * c + i], offset = -stats[i];
        if (conv_bias)
            offset += element(dtype, conv_bias, i);
        if (p.weight)
            factor *= element(p.dtype, p.weight, i);
        offset *= factor;
        if (p.bias)
            offset += element(p.dtype, p.bias, i);
        for (int64_t at = i * k; at < (i + 1) * k; at++)
            set_element(dtype, conv_weight_out, at, element(dtype, conv_weight, at) * factor);
        set_element(dtype, conv_bias_out, i, offset);
    }
    bn_release(&w);
    return status;
}
