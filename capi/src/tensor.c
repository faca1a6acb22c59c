/* The public functions on DLPack tensors: they find a canonical view, or copy to one. */

#include <stdlib.h>
#include <string.h>

#include "layout.h"

enum { CPU = 1, CUDA = 2, CUDA_HOST = 3, ROCM_HOST = 11, CUDA_MANAGED = 13 };

/* Only Python reaches a GPU. */
#ifdef BNNUMBA_EMBED
enum { TAKES_CUDA = 1 };
#else
enum { TAKES_CUDA = 0 };
#endif

enum { CODE_FLOAT = 2, CODE_BFLOAT = 4 };

/* The tensors of a call: their view, and the copies where strides need one. */
typedef struct opened {
    batch b;
    int axis, count;
    tensor tensors[3];
    data views[3];
    char *copies[3];
    layout how;
} opened;

static bnnumba_status check_tensor(const char *name, const DLTensor *from, tensor *to,
                                   bnnumba_dtype *dtype_out)
{
    if (!from)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected a tensor, got NULL", name);
    int32_t device = (int32_t)from->device.device_type;
    if (device != CPU && device != CUDA_HOST && device != ROCM_HOST && device != CUDA_MANAGED &&
        !(TAKES_CUDA && device == CUDA))
        return bn_fail(BNNUMBA_ERROR_UNSUPPORTED,
                       "%s: expected a tensor on the CPU%s, got one on DLPack device type %d", name,
                       TAKES_CUDA ? " or a CUDA device" : "", (int)device);
    if (from->ndim < 2 || from->ndim > MAX_RANK)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected 2 to %d dimensions, got %d", name,
                       MAX_RANK, (int)from->ndim);
    int code = from->dtype.code, bits = from->dtype.bits;
    if (from->dtype.lanes == 1 && code == CODE_FLOAT && bits == 32)
        *dtype_out = BNNUMBA_FLOAT32;
    else if (from->dtype.lanes == 1 && code == CODE_FLOAT && bits == 64)
        *dtype_out = BNNUMBA_FLOAT64;
    else if (from->dtype.lanes == 1 && code == CODE_FLOAT && bits == 16)
        *dtype_out = BNNUMBA_FLOAT16;
    else if (from->dtype.lanes == 1 && code == CODE_BFLOAT && bits == 16)
        *dtype_out = BNNUMBA_BFLOAT16;
    else
        return bn_fail(BNNUMBA_ERROR_DTYPE,
                       "%s: expected float32, float64, float16 or bfloat16, got DLPack code %d, %d "
                       "bits, %d lanes",
                       name, code, bits, from->dtype.lanes);
    if (!from->shape)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected a shape, got NULL", name);
    to->name = name;
    to->rank = from->ndim;
    to->itemsize = bits / 8;
    int64_t dense = to->itemsize;
    int empty = 0;
    for (int a = to->rank - 1; a >= 0; a--) {
        to->shape[a] = from->shape[a];
        TRY(bn_check_count(name, to->shape[a]));
        if (!from->strides) {
            to->strides[a] = dense;
        } else if (__builtin_mul_overflow(from->strides[a], to->itemsize, &to->strides[a]) ||
                   to->strides[a] == INT64_MIN) {
            return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: a stride of %lld elements is too large",
                           name, (long long)from->strides[a]);
        }
        empty |= !to->shape[a];
        if (__builtin_mul_overflow(dense, to->shape[a] ? to->shape[a] : 1, &dense))
            return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: the tensor is too large", name);
    }
    if (!from->data && !empty)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected data, got NULL", name);
    uintptr_t address;
    if (from->byte_offset > INT64_MAX ||
        __builtin_add_overflow((uintptr_t)from->data, from->byte_offset, &address))
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: a byte_offset of %llu is too large", name,
                       (unsigned long long)from->byte_offset);
    to->address = from->data ? (char *)address : NULL;
    return BNNUMBA_OK;
}

/* Find the bytes between which the elements of a tensor are. */
static bnnumba_status bounds(const tensor *t, data *out)
{
    int64_t low = 0, high = t->itemsize, size;
    for (int a = 0; a < t->rank; a++) {
        int64_t reach;
        if (!t->shape[a]) {
            out->begin = out->end = t->address;
            return BNNUMBA_OK;
        }
        if (__builtin_mul_overflow(t->shape[a] - 1, t->strides[a], &reach) ||
            __builtin_add_overflow(reach < 0 ? low : high, reach, reach < 0 ? &low : &high))
            return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: the strides reach too far", t->name);
    }
    if (__builtin_sub_overflow(high, low, &size))
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: the strides reach too far", t->name);
    out->begin = (const char *)((uintptr_t)t->address + (uintptr_t)low);
    out->end = (const char *)((uintptr_t)t->address + (uintptr_t)high);
    if ((uintptr_t)out->begin > (uintptr_t)t->address || (uintptr_t)out->end < (uintptr_t)t->address)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: the strides reach too far", t->name);
    return BNNUMBA_OK;
}

/* Check that no elements overlap: each axis steps over all of those that take smaller steps. */
static bnnumba_status check_spread_out(const tensor *t)
{
    int64_t reach = t->itemsize;
    uint64_t done = 0;
    for (;;) {
        int next = -1;
        for (int a = 0; a < t->rank; a++)
            if (t->shape[a] > 1 && !(done >> a & 1) &&
                (next < 0 || llabs(t->strides[a]) < llabs(t->strides[next])))
                next = a;
        if (next < 0)
            return BNNUMBA_OK;
        if (llabs(t->strides[next]) < reach)
            return bn_fail(BNNUMBA_ERROR_OVERLAP,
                           "%s: its elements must not overlap, got a stride of %lld at axis %d",
                           t->name, (long long)(t->strides[next] / t->itemsize), next);
        reach += llabs(t->strides[next]) * (t->shape[next] - 1);
        done |= UINT64_C(1) << next;
    }
}

static int is_aligned(const tensor *t)
{
    if ((uintptr_t)t->address % (uintptr_t)t->itemsize)
        return 0;
    return 1; /* strides are whole elements */
}

/* Copy all elements between two tensors of one shape, along the axes in `order`. */
static void copy_elements(const tensor *t, const int *order, const char *from,
                          const int64_t *from_strides, char *to, const int64_t *to_strides)
{
    int64_t at[MAX_RANK] = {0};
    /* Unsigned: a step past the last element of an axis may be too large for an address. */
    uint64_t source = 0, target = 0;
    int last = order[t->rank - 1];
    size_t size = (size_t)t->itemsize;
    for (;;) {
        for (int64_t i = 0; i < t->shape[last]; i++)
            memcpy(to + (int64_t)(target + (uint64_t)(i * to_strides[last])),
                   from + (int64_t)(source + (uint64_t)(i * from_strides[last])), size);
        int k = t->rank - 2;
        for (; k >= 0; k--) {
            int a = order[k];
            source += (uint64_t)from_strides[a], target += (uint64_t)to_strides[a];
            if (++at[k] < t->shape[a])
                break;
            source -= (uint64_t)at[k] * (uint64_t)from_strides[a];
            target -= (uint64_t)at[k] * (uint64_t)to_strides[a];
            at[k] = 0;
        }
        if (k < 0)
            return;
    }
}

/* The strides of a contiguous copy, stored in the order of the layout. */
static void dense_strides(const tensor *t, const int *order, int64_t *strides)
{
    int64_t dense = t->itemsize;
    for (int k = t->rank - 1; k >= 0; k--) {
        strides[order[k]] = dense;
        dense *= t->shape[order[k]];
    }
}

static bnnumba_status view(opened *o, int i, int fits)
{
    tensor seen = o->tensors[i];
    data *out = &o->views[i];
    if (!fits) {
        dense_strides(&seen, o->how.order, seen.strides);
        o->copies[i] = malloc((size_t)(o->b.n * o->b.c * o->b.s * o->b.itemsize));
        if (!o->copies[i])
            return bn_fail(BNNUMBA_ERROR_MEMORY, "%s: cannot allocate a copy", seen.name);
        seen.address = o->copies[i];
        if (!out->written)
            copy_elements(&seen, o->how.order, o->tensors[i].address, o->tensors[i].strides,
                          seen.address, seen.strides);
    }
    layout_strides(&o->how, &seen, o->axis, &out->n_stride, &out->c_stride);
    out->address = seen.address;
    return BNNUMBA_OK;
}

static void close_tensors(opened *o)
{
    for (int i = 0; i < o->count; i++)
        free(o->copies[i]);
}

/* Copy results that could not be written in place to where they belong. */
static bnnumba_status finish(opened *o, bnnumba_status status)
{
    for (int i = 0; i < o->count && status == BNNUMBA_OK; i++)
        if (o->copies[i] && o->views[i].written) {
            int64_t strides[MAX_RANK];
            dense_strides(&o->tensors[i], o->how.order, strides);
            copy_elements(&o->tensors[i], o->how.order, o->copies[i], strides,
                          o->tensors[i].address, o->tensors[i].strides);
        }
    close_tensors(o);
    return status;
}

/* See tensors alike: the layout is one that all of them have, or that of the first. */
static bnnumba_status choose_layout(opened *o)
{
    layout found[2];
    int count = layout_candidates(&o->tensors[0], o->axis, found);
    int shared = -1, aligned = 1;
    for (int i = 0; i < o->count; i++)
        aligned &= is_aligned(&o->tensors[i]);
    for (int k = 0; k < count && shared < 0; k++) {
        shared = k;
        for (int i = 1; i < o->count; i++)
            if (!layout_fits(&found[k], &o->tensors[i], o->axis))
                shared = -1;
    }
    if (shared >= 0)
        o->how = found[shared];
    else
        o->how = count ? found[0] : layout_nearest(&o->tensors[0], o->axis);
    o->b.rc = o->how.rc, o->b.n = o->how.n, o->b.s = o->how.s;
    for (int i = 0; i < o->count; i++)
        TRY(view(o, i, (shared >= 0 && aligned) || (is_aligned(&o->tensors[i]) &&
                                                    layout_fits(&o->how, &o->tensors[i], o->axis))));
    return BNNUMBA_OK;
}

/* Memory is the CPU's wherever CUDA has pinned or mapped it; a GPU's is that of one GPU. */
static bnnumba_status check_device(const char *name, const DLTensor *one, const char *first_name,
                                   const DLTensor *first)
{
    int type = (int)one->device.device_type, first_type = (int)first->device.device_type;
    if (type == CUDA ? first_type == CUDA && one->device.device_id == first->device.device_id
                     : first_type != CUDA)
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                   "%s: expected a tensor on the device of %s (type %d, id %d), got one on type "
                   "%d, id %d",
                   name, first_name, first_type, (int)first->device.device_id, type,
                   (int)one->device.device_id);
}

/* Check `count` tensors, the last of which is written if `writes`, and see them alike. */
static bnnumba_status open_tensors(opened *o, int axis, int count, const DLTensor *const *from,
                                   const char *const *names, int writes)
{
    memset(o, 0, sizeof *o);
    o->count = count;
    for (int i = 0; i < count; i++) {
        tensor *t = &o->tensors[i], *first = &o->tensors[0];
        bnnumba_dtype dtype = BNNUMBA_FLOAT32;
        TRY(check_tensor(names[i], from[i], t, &dtype));
        if (i && dtype != o->b.dtype)
            return bn_fail(BNNUMBA_ERROR_DTYPE, "%s: expected the dtype of %s", names[i], names[0]);
        if (i && (t->rank != first->rank ||
                  memcmp(t->shape, first->shape, (size_t)t->rank * sizeof *t->shape)))
            return bn_fail(BNNUMBA_ERROR_ARGUMENT, "%s: expected the shape of %s", names[i],
                           names[0]);
        o->b.dtype = dtype;
        TRY(check_device(names[i], from[i], names[0], from[0]));
        data *d = &o->views[i];
        d->name = names[i];
        d->origin = d->address = t->address;
        d->shape = t->shape;
        d->strides = t->strides;
        d->rank = t->rank;
        d->written = writes && i == count - 1;
        d->on_device = (int32_t)from[i]->device.device_type == CUDA ? from[i] : NULL;
        TRY(bounds(t, d));
        if (d->written && d->begin < d->end)
            TRY(check_spread_out(t));
    }
    const tensor *x = &o->tensors[0];
    if (axis < -x->rank || axis >= x->rank)
        return bn_fail(BNNUMBA_ERROR_ARGUMENT,
                       "axis: expected %d to %d for a tensor of %d dimensions, got %d", -x->rank,
                       x->rank - 1, x->rank, axis);
    o->axis = axis < 0 ? axis + x->rank : axis;
    for (int i = 0; i < count; i++)
        o->views[i].axis = o->axis;
    o->b.itemsize = x->itemsize;
    o->b.n = o->b.s = 1, o->b.c = x->shape[o->axis];
    for (int a = 0; a < x->rank; a++)
        if (a != o->axis)
            o->b.n *= x->shape[a];
    TRY(bn_check_extents(&o->b));
    if (o->b.n == 0 || o->b.c == 0 || o->views[0].on_device)
        return BNNUMBA_OK;
    bnnumba_status status = choose_layout(o);
    if (status != BNNUMBA_OK)
        close_tensors(o);
    return status;
}

bnnumba_status bnnumba_moments_dl(const DLTensor *x, int axis, int64_t *count_out, double *mean_out,
                                 double *m2_out)
{
    opened o;
    TRY(open_tensors(&o, axis, 1, (const DLTensor *[]){x}, (const char *[]){"x"}, 0));
    return finish(&o, bn_moments_of(&o.b, &o.views[0], count_out, mean_out, m2_out, NULL));
}

bnnumba_status bnnumba_forward_training_dl(const DLTensor *x, int axis, const bnnumba_params *params,
                                          const DLTensor *y_out, double *saved_out)
{
    opened o;
    TRY(open_tensors(&o, axis, 2, (const DLTensor *[]){x, y_out}, (const char *[]){"x", "y_out"},
                     1));
    return finish(&o,
                  bn_forward_training_of(&o.b, &o.views[0], params, &o.views[1], saved_out));
}

bnnumba_status bnnumba_forward_inference_dl(const DLTensor *x, int axis,
                                           const bnnumba_params *params, const DLTensor *y_out)
{
    opened o;
    TRY(open_tensors(&o, axis, 2, (const DLTensor *[]){x, y_out}, (const char *[]){"x", "y_out"},
                     1));
    return finish(&o, bn_forward_inference_of(&o.b, &o.views[0], params, &o.views[1]));
}

bnnumba_status bnnumba_backward_training_dl(const DLTensor *x, const DLTensor *dy, int axis,
                                           const bnnumba_params *params, const double *saved,
                                           const DLTensor *dx_out, void *dweight_out,
                                           void *dbias_out)
{
    opened o;
    TRY(open_tensors(&o, axis, dx_out ? 3 : 2, (const DLTensor *[]){x, dy, dx_out},
                     (const char *[]){"x", "dy", "dx_out"}, dx_out != NULL));
    return finish(&o, bn_backward_training_of(&o.b, &o.views[0], &o.views[1], params, saved,
                                              dx_out ? &o.views[2] : NULL, dweight_out, dbias_out));
}

bnnumba_status bnnumba_backward_inference_dl(const DLTensor *x, const DLTensor *dy, int axis,
                                            const bnnumba_params *params, const DLTensor *dx_out,
                                            void *dweight_out, void *dbias_out)
{
    opened o;
    TRY(open_tensors(&o, axis, dx_out ? 3 : 2, (const DLTensor *[]){x, dy, dx_out},
                     (const char *[]){"x", "dy", "dx_out"}, dx_out != NULL));
    return finish(&o, bn_backward_inference_of(&o.b, &o.views[0], &o.views[1], params,
                                               dx_out ? &o.views[2] : NULL, dweight_out,
                                               dbias_out));
}

bnnumba_status bnnumba_running_update_dl(bnnumba_running *handle, const DLTensor *x, int axis)
{
    opened o;
    TRY(open_tensors(&o, axis, 1, (const DLTensor *[]){x}, (const char *[]){"x"}, 0));
    return finish(&o, bn_running_update_of(handle, "x", &o.b, &o.views[0]));
}
