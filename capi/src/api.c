/* The public functions on explicit extents: they see contiguous data as a canonical view. */

#include "internal.h"

static bnnumba_status open_batch(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n, int64_t c,
                                 int64_t s, batch *b)
{
    TRY(bn_check_dtype("dtype", dtype));
    if (layout != BNNUMBA_NCS && layout != BNNUMBA_NSC)
        return bn_fail(BNNUMBA_ERROR_DTYPE, "layout: expected BNNUMBA_NCS or BNNUMBA_NSC, got %d",
                       (int)layout);
    *b = (batch){dtype, 0, bn_itemsize(dtype), n, c, s};
    TRY(bn_check_extents(b));
    /* The same choice as for a contiguous array of the Python package. */
    if (c == 1) {
        b->n = 1, b->s = n * s;
    } else if (layout == BNNUMBA_NSC || s == 1) {
        b->rc = 1, b->n = n * s, b->s = 1;
    } else {
        b->rc = s <= SHORT_ROW;
    }
    return BNNUMBA_OK;
}

static bnnumba_status open_data(const batch *b, const char *name, const void *pointer, int written,
                                data *out)
{
    int64_t size = b->n * b->s * b->c; /* in this order it is known not to overflow */
    TRY(bn_check_pointer(name, pointer, size, b->itemsize, 0));
    out->name = name;
    out->address = (char *)(uintptr_t)pointer;
    out->c_stride = size ? b->s * b->itemsize : 0; /* an extent beside one of 0 may be too large */
    out->n_stride = b->c * out->c_stride;
    out->origin = out->begin = out->address;
    out->end = pointer ? out->begin + size * b->itemsize : out->begin;
    out->shape = out->strides = NULL; /* contiguous: the same if it begins at the same address */
    out->rank = 0;
    out->written = written;
    out->on_device = NULL;
    return BNNUMBA_OK;
}

bnnumba_status bnnumba_moments(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n, int64_t c,
                               int64_t s, const void *x, int64_t *count_out, double *mean_out,
                               double *m2_out)
{
    batch b;
    data x_data;
    TRY(open_batch(dtype, layout, n, c, s, &b));
    TRY(open_data(&b, "x", x, 0, &x_data));
    return bn_moments_of(&b, &x_data, count_out, mean_out, m2_out, NULL);
}

bnnumba_status bnnumba_forward_training(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                        int64_t c, int64_t s, const void *x,
                                        const bnnumba_params *params, void *y_out,
                                        double *saved_out)
{
    batch b;
    data x_data, y_data;
    TRY(open_batch(dtype, layout, n, c, s, &b));
    TRY(open_data(&b, "x", x, 0, &x_data));
    TRY(open_data(&b, "y_out", y_out, 1, &y_data));
    return bn_forward_training_of(&b, &x_data, params, &y_data, saved_out);
}

bnnumba_status bnnumba_forward_inference(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                         int64_t c, int64_t s, const void *x,
                                         const bnnumba_params *params, void *y_out)
{
    batch b;
    data x_data, y_data;
    TRY(open_batch(dtype, layout, n, c, s, &b));
    TRY(open_data(&b, "x", x, 0, &x_data));
    TRY(open_data(&b, "y_out", y_out, 1, &y_data));
    return bn_forward_inference_of(&b, &x_data, params, &y_data);
}

bnnumba_status bnnumba_backward_training(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                         int64_t c, int64_t s, const void *x, const void *dy,
                                         const bnnumba_params *params, const double *saved,
                                         void *dx_out, void *dweight_out, void *dbias_out)
{
    batch b;
    data x_data, dy_data, dx_data;
    TRY(open_batch(dtype, layout, n, c, s, &b));
    TRY(open_data(&b, "x", x, 0, &x_data));
    TRY(open_data(&b, "dy", dy, 0, &dy_data));
    if (dx_out)
        TRY(open_data(&b, "dx_out", dx_out, 1, &dx_data));
    return bn_backward_training_of(&b, &x_data, &dy_data, params, saved, dx_out ? &dx_data : NULL,
                                   dweight_out, dbias_out);
}

bnnumba_status bnnumba_backward_inference(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                          int64_t c, int64_t s, const void *x, const void *dy,
                                          const bnnumba_params *params, void *dx_out,
                                          void *dweight_out, void *dbias_out)
{
    batch b;
    data x_data, dy_data, dx_data;
    TRY(open_batch(dtype, layout, n, c, s, &b));
    TRY(open_data(&b, "x", x, 0, &x_data));
    TRY(open_data(&b, "dy", dy, 0, &dy_data));
    if (dx_out)
        TRY(open_data(&b, "dx_out", dx_out, 1, &dx_data));
    return bn_backward_inference_of(&b, &x_data, &dy_data, params, dx_out ? &dx_data : NULL,
                                    dweight_out, dbias_out);
}

bnnumba_status bnnumba_running_update(bnnumba_running *handle, bnnumba_dtype dtype,
                                      bnnumba_layout layout, int64_t n, int64_t c, int64_t s,
                                      const void *x)
{
    batch b;
    data x_data;
    TRY(open_batch(dtype, layout, n, c, s, &b));
    TRY(open_data(&b, "x", x, 0, &x_data));
    return bn_running_update_of(handle, "c", &b, &x_data);
}

bnnumba_status bnnumba_merge(int64_t c, int64_t *count, double *mean, double *m2,
                             int64_t other_count, const double *other_mean, const double *other_m2)
{
    return bn_merge(c, count, mean, m2, NULL, other_count, other_mean, other_m2, NULL);
}

bnnumba_status bn_merge(int64_t c, int64_t *count, double *mean, double *m2, double *rest,
                        int64_t other_count, const double *other_mean, const double *other_m2,
                        const double *other_rest)
{
    batch b = {BNNUMBA_FLOAT64, 1, 8, 1, c, 1};
    spans all = {.count = 0};
    int64_t total;
    TRY(bn_check_extents(&b));
    TRY(bn_check_pointer("count", count, 1, 8, 0));
    TRY(bn_check_count("*count", *count));
    TRY(bn_check_count("other_count", other_count));
    if (__builtin_add_overflow(*count, other_count, &total))
        return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                       "count: the sum must be less than 2^63, got %lld and %lld",
                       (long long)*count, (long long)other_count);
    TRY(bn_check_pointer("mean", mean, c, 8, 0));
    TRY(bn_check_pointer("m2", m2, c, 8, 0));
    TRY(bn_check_pointer("other_mean", other_mean, c, 8, 0));
    TRY(bn_check_pointer("other_m2", other_m2, c, 8, 0));
    bn_add_span(&all, "count", count, 8, 1);
    bn_add_span(&all, "mean", mean, 8 * c, 1);
    bn_add_span(&all, "m2", m2, 8 * c, 1);
    bn_add_span(&all, "other_mean", other_mean, 8 * c, 0);
    bn_add_span(&all, "other_m2", other_m2, 8 * c, 0);
    TRY(bn_check_overlap(&all));
    if (!other_count)
        return BNNUMBA_OK;
    job j = {.c = c, .count = *count, .other_count = other_count};
    j.mean = ADDRESS(mean), j.m2 = ADDRESS(m2);
    j.rest = ADDRESS(rest), j.other_rest = ADDRESS(other_rest);
    j.other_mean = ADDRESS(other_mean), j.other_m2 = ADDRESS(other_m2);
    TRY(bn_shared(KERNEL_join, &j));
    *count = total;
    return BNNUMBA_OK;
}

bnnumba_status bnnumba_variance(int64_t c, int64_t count, const double *m2, double correction,
                                double *var_out)
{
    batch b = {BNNUMBA_FLOAT64, 1, 8, 1, c, 1};
    spans all = {.count = 0};
    TRY(bn_check_extents(&b));
    TRY(bn_check_count("count", count));
    TRY(bn_check_correction("correction", count, correction));
    TRY(bn_check_pointer("m2", m2, c, 8, 0));
    TRY(bn_check_pointer("var_out", var_out, c, 8, 0));
    if (m2 != var_out)
        bn_add_span(&all, "m2", m2, 8 * c, 0);
    bn_add_span(&all, "var_out", var_out, 8 * c, 1);
    TRY(bn_check_overlap(&all));
    for (int64_t i = 0; i < c; i++)
        var_out[i] = m2[i] / ((double)count - correction);
    return BNNUMBA_OK;
}
