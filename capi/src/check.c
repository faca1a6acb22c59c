/* Checks of arguments: each error names the argument, what was expected and what came. */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "internal.h"

typedef long long ll;

int64_t bn_itemsize(bnnumba_dtype dtype)
{
    switch (dtype) {
    case BNNUMBA_FLOAT32: return 4;
    case BNNUMBA_FLOAT64: return 8;
    case BNNUMBA_FLOAT16:
    case BNNUMBA_BFLOAT16: return 2;
    }
    return 0;
}

bnnumba_status bn_check_dtype(const char *name, bnnumba_dtype dtype)
{
    if (bn_itemsize(dtype))
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_DTYPE, "%s: expected one of enum bnnumba_dtype, 1 to 4, got %d",
                   name, (int)dtype);
}

bnnumba_status bn_check_statistics(const char *name, bnnumba_dtype dtype)
{
    if (dtype == BNNUMBA_FLOAT32 || dtype == BNNUMBA_FLOAT64)
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_DTYPE, "%s: expected BNNUMBA_FLOAT32 or BNNUMBA_FLOAT64, got %d",
                   name, (int)dtype);
}

bnnumba_status bn_check_count(const char *name, int64_t count)
{
    if (count >= 0)
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected a number that is not negative, got %lld",
                   name, (ll)count);
}

bnnumba_status bn_check_extents(const batch *b)
{
    int64_t size;
    TRY(bn_check_count("n", b->n));
    TRY(bn_check_count("c", b->c));
    TRY(bn_check_count("s", b->s));
    /* A workspace of some hundred bytes per channel must not overflow either. */
    if (b->c > INT64_MAX >> 24)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "c: expected less than 2^39 channels, got %lld",
                       (ll)b->c);
    /* With an extent of 0 the others may be anything, but their product must be a number. */
    if (__builtin_mul_overflow(b->n, b->s, &size) || __builtin_mul_overflow(size, b->c, &size) ||
        __builtin_mul_overflow(size, b->itemsize, &size))
        return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                       "n, c, s: expected less than 2^63 bytes, got %lld x %lld x %lld elements",
                       (ll)b->n, (ll)b->c, (ll)b->s);
    return BNNUMBA_OK;
}

bnnumba_status bn_check_pointer(const char *name, const void *pointer, int64_t count,
                                int64_t itemsize, int optional)
{
    if (!pointer) {
        if (optional || !count)
            return BNNUMBA_OK;
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected a pointer to %lld element(s), got NULL",
                       name, (ll)count);
    }
    if ((uintptr_t)pointer % (uintptr_t)itemsize)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected an address that %lld divides, got %p",
                       name, (ll)itemsize, pointer);
    return BNNUMBA_OK;
}

bnnumba_status bn_check_finite(const char *name, double value)
{
    if (isfinite(value))
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected a finite number, got %g", name, value);
}

bnnumba_status bn_check_correction(const char *name, int64_t count, double correction)
{
    TRY(bn_check_finite(name, correction));
    if ((double)count > correction)
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                   "%s: expected less than the %lld value(s) per channel, got %g; there is no variance",
                   name, (ll)count, correction);
}

bnnumba_status bn_check_params(const bnnumba_params *params, int reads, int64_t c,
                               bnnumba_params *out)
{
    *out = (bnnumba_params)BNNUMBA_PARAMS_INIT;
    if (params) {
        size_t shorter = offsetof(bnnumba_params, mean_rest);
        if (params->struct_size != sizeof *params && params->struct_size != shorter)
            return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                           "params: expected struct_size %zu, got %zu; begin with "
                           "BNNUMBA_PARAMS_INIT",
                           sizeof *params, params->struct_size);
        memcpy(out, params, params->struct_size);
    }
    TRY(bn_check_statistics("params.dtype", out->dtype));
    int64_t size = bn_itemsize(out->dtype);
    int running_is_optional = !(reads & NEEDED);
    if (!(reads & WEIGHT))
        out->weight = NULL;
    if (!(reads & BIAS))
        out->bias = NULL;
    if (!(reads & RUNNING))
        out->running_mean = out->running_var = NULL;
    if (!(reads & REST))
        out->mean_rest = NULL;
    TRY(bn_check_pointer("params.mean_rest", out->mean_rest, c, 8, 1));
    TRY(bn_check_pointer("params.weight", out->weight, c, size, 1));
    TRY(bn_check_pointer("params.bias", out->bias, c, size, 1));
    TRY(bn_check_pointer("params.running_mean", out->running_mean, c, size, running_is_optional));
    TRY(bn_check_pointer("params.running_var", out->running_var, c, size, running_is_optional));
    if (reads & UPDATE) {
        TRY(bn_check_finite("params.momentum", out->momentum));
        TRY(bn_check_finite("params.correction", out->correction));
    }
    if (reads & EPS) {
        TRY(bn_check_finite("params.eps", out->eps));
        if (out->eps < 0)
            return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                           "params.eps: expected a number that is not negative, got %g", out->eps);
    }
    return BNNUMBA_OK;
}

/* --- overlap --------------------------------------------------------------------------------- */

static void add(spans *all, span one)
{
    if (one.begin && one.end > one.begin && all->count < MAX_SPANS)
        all->of[all->count++] = one;
}

void bn_add_span(spans *all, const char *name, const void *begin, int64_t bytes, int written)
{
    add(all, (span){name, begin, begin ? (const char *)begin + bytes : NULL, written, NULL});
}

void bn_add_data(spans *all, const data *one)
{
    if (one)
        add(all, (span){one->name, one->begin, one->end, one->written, one});
}

void bn_add_params(spans *all, const bnnumba_params *params, int64_t c, int updated)
{
    int64_t bytes = c * bn_itemsize(params->dtype);
    bn_add_span(all, "params.weight", params->weight, bytes, 0);
    bn_add_span(all, "params.bias", params->bias, bytes, 0);
    bn_add_span(all, "params.running_mean", params->running_mean, bytes, updated);
    bn_add_span(all, "params.running_var", params->running_var, bytes, updated);
    bn_add_span(all, "params.mean_rest", params->mean_rest, 8 * c, updated);
}

static int exactly_the_same(const data *a, const data *b)
{
    if (!a || !b || a->origin != b->origin)
        return 0;
    for (int axis = 0; axis < a->rank; axis++) /* the stride of a single element leads nowhere */
        if (a->shape[axis] != 1 && a->strides[axis] != b->strides[axis])
            return 0;
    return 1;
}

bnnumba_status bn_check_overlap(const spans *all)
{
    for (int i = 0; i < all->count; i++) {
        const span *out = &all->of[i];
        if (!out->written)
            continue;
        for (int k = 0; k < all->count; k++) {
            const span *other = &all->of[k];
            if (k == i || (other->written && k > i) || out->begin >= other->end ||
                other->begin >= out->end)
                continue;
            if (!other->written && exactly_the_same(out->same, other->same))
                continue;
            return bn_fail(BNNUMBA_ERROR_OVERLAP,
                           out->same && other->same && !other->written
                               ? "%s: must not overlap %s unless it is the same array"
                               : "%s: must not overlap %s",
                           out->name, other->name);
        }
    }
    return BNNUMBA_OK;
}
