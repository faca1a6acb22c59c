/*
 * libFuzzer: bytes become descriptors, extents, parameters and saved state. Whatever they say, the
 * library must answer with a status, touch nothing outside of the buffers, and leak nothing.
 *
 * Extents are made to fit the buffers where the call could reach memory: a library cannot check
 * that a pointer has as many elements behind it as the caller says.
 */

#include <bnnumba.h>
#include <stdlib.h>
#include <string.h>

enum { ROOM = 4096, CHANNELS = 64 };

typedef struct input {
    const uint8_t *bytes;
    size_t left;
} input;

static uint64_t take(input *in, int count)
{
    uint64_t value = 0;
    for (int i = 0; i < count && in->left; i++, in->left--)
        value = value << 8 | *in->bytes++;
    return value;
}

/* Mostly small numbers, now and then any. */
static int64_t number(input *in, int64_t small)
{
    uint64_t kind = take(in, 1);
    if (kind < 240)
        return (int64_t)(kind % (uint64_t)(small + 1));
    return (int64_t)take(in, 8);
}

static double real(input *in)
{
    static const double some[] = {0, 1, 0.1, 1e-5, -1, 1e300};
    uint64_t kind = take(in, 1), bits = 0;
    double value;
    if (kind < 200)
        return some[kind % 6];
    bits = take(in, 8);
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void *maybe(input *in, void *pointer)
{
    uint64_t kind = take(in, 1);
    return kind < 20 ? NULL : kind < 25 ? (char *)pointer + 1 : pointer;
}

static int fits(int64_t n, int64_t c, int64_t s)
{
    int64_t size;
    if (n < 0 || c < 0 || s < 0)
        return 1; /* an error, before memory is reached */
    if (__builtin_mul_overflow(n, s, &size) || __builtin_mul_overflow(size, c, &size))
        return 1;
    return size <= ROOM && c <= CHANNELS;
}

typedef struct buffers {
    double x[ROOM + 1], dy[ROOM + 1], y[ROOM + 1];
    double weight[CHANNELS + 1], bias[CHANNELS + 1], mean[CHANNELS + 1], var[CHANNELS + 1];
    double dweight[CHANNELS + 1], dbias[CHANNELS + 1], m2[CHANNELS + 1], saved[3 * CHANNELS + 1];
} buffers;

static void params(input *in, buffers *b, bnnumba_params *p)
{
    *p = (bnnumba_params)BNNUMBA_PARAMS_INIT;
    p->dtype = (bnnumba_dtype)(take(in, 1) % 6);
    p->weight = maybe(in, b->weight), p->bias = maybe(in, b->bias);
    p->running_mean = maybe(in, b->mean), p->running_var = maybe(in, b->var);
    p->momentum = real(in), p->eps = real(in), p->correction = real(in);
    if (take(in, 1) == 255)
        p->struct_size = (size_t)take(in, 8);
}

static void extents(input *in, buffers *b)
{
    bnnumba_params p;
    bnnumba_dtype dtype = (bnnumba_dtype)(take(in, 1) % 6);
    bnnumba_layout layout = (bnnumba_layout)(take(in, 1) % 4);
    int64_t n = number(in, 20), c = number(in, 64), s = number(in, 20), count = 0;
    if (!fits(n, c, s))
        return;
    params(in, b, &p);
    void *x = maybe(in, b->x), *dy = maybe(in, b->dy), *y = maybe(in, b->y);
    if (take(in, 1) > 200)
        y = x;
    double *saved = maybe(in, b->saved);
    switch (take(in, 1) % 5) {
    case 0: bnnumba_moments(dtype, layout, n, c, s, x, &count, maybe(in, b->mean), b->m2); break;
    case 1: bnnumba_forward_training(dtype, layout, n, c, s, x, &p, y, saved); break;
    case 2: bnnumba_forward_inference(dtype, layout, n, c, s, x, &p, y); break;
    case 3:
        bnnumba_backward_training(dtype, layout, n, c, s, x, dy, &p, saved, y,
                                  maybe(in, b->dweight), maybe(in, b->dbias));
        break;
    case 4:
        bnnumba_backward_inference(dtype, layout, n, c, s, x, dy, &p, y, maybe(in, b->dweight),
                                   maybe(in, b->dbias));
        break;
    }
}

/* Whether all elements of a tensor, as it says, are inside of a buffer that begins at data. */
static int inside(const DLTensor *t, int64_t bytes)
{
    int64_t low = 0, high = 0, dense = 1, size = t->dtype.bits / 8;
    if (t->byte_offset > (uint64_t)bytes || (t->ndim > 4 && t->ndim <= 64))
        return 0;
    if (t->ndim < 2 || t->ndim > 64 || !size)
        return 1; /* an error, before memory is reached */
    for (int a = t->ndim - 1; a >= 0; a--) {
        int64_t stride = t->strides ? t->strides[a] : dense, reach;
        if (t->shape[a] < 0)
            return 1;
        if (t->shape[a] > ROOM || __builtin_mul_overflow(t->shape[a] - 1, stride, &reach) ||
            reach > ROOM || reach < -ROOM)
            return 0;
        dense *= t->shape[a] ? t->shape[a] : 1;
        if (reach < 0)
            low += reach;
        else
            high += reach;
    }
    return low * size + (int64_t)t->byte_offset >= 0 &&
           (high + 1) * size + (int64_t)t->byte_offset <= bytes;
}

static void descriptor(input *in, DLTensor *t, void *data, int64_t *shape, int64_t *strides)
{
    static const uint8_t kinds[4][2] = {{2, 32}, {2, 64}, {2, 16}, {4, 16}};
    uint64_t kind = take(in, 1);
    memset(t, 0, sizeof *t);
    t->data = maybe(in, data);
    t->device.device_type = kind < 250 ? 1 : (int32_t)take(in, 2);
    t->ndim = kind < 245 ? 2 + (int32_t)(kind % 3) : (int32_t)take(in, 4);
    t->dtype.code = kinds[kind % 4][0], t->dtype.bits = kinds[kind % 4][1], t->dtype.lanes = 1;
    if (kind == 255)
        t->dtype.code = (uint8_t)take(in, 1), t->dtype.bits = (uint8_t)take(in, 1);
    t->shape = shape;
    for (int a = 0; a < 4; a++) {
        shape[a] = number(in, 9);
        strides[a] = (int64_t)((uint64_t)number(in, 40) - 10);
    }
    t->strides = take(in, 1) < 100 ? NULL : strides;
    t->byte_offset = take(in, 1) < 128 ? 0 : take(in, 2);
}

static void tensors(input *in, buffers *b)
{
    DLTensor x, dy, y;
    int64_t shape[3][4], strides[3][4];
    bnnumba_params p;
    int axis = (int)(int8_t)take(in, 1) % 5;
    descriptor(in, &x, b->x, shape[0], strides[0]);
    descriptor(in, &dy, b->dy, shape[1], strides[1]);
    descriptor(in, &y, b->y, shape[2], strides[2]);
    if (take(in, 1) < 230) { /* mostly, tensors that belong together */
        memcpy(shape[1], shape[0], sizeof shape[0]), memcpy(shape[2], shape[0], sizeof shape[0]);
        dy.ndim = y.ndim = x.ndim, dy.dtype = y.dtype = x.dtype;
    }
    if (!inside(&x, sizeof b->x - 8) || !inside(&dy, sizeof b->x - 8) ||
        !inside(&y, sizeof b->x - 8))
        return;
    for (int a = 0; a < 4; a++)
        if (shape[0][a] > CHANNELS)
            return;
    params(in, b, &p);
    switch (take(in, 1) % 5) {
    case 0: bnnumba_moments_dl(&x, axis, NULL, b->mean, b->m2); break;
    case 1: bnnumba_forward_training_dl(&x, axis, &p, &y, b->saved); break;
    case 2: bnnumba_forward_inference_dl(&x, axis, &p, &y); break;
    case 3:
        bnnumba_backward_training_dl(&x, &dy, axis, &p, b->saved, &y, b->dweight, b->dbias);
        break;
    case 4: bnnumba_backward_inference_dl(&x, &dy, axis, &p, &y, b->dweight, b->dbias); break;
    }
}

static void states(input *in, buffers *b)
{
    bnnumba_running *handle, *other;
    unsigned char state[32 + 24 * CHANNELS];
    size_t size;
    int64_t count, c = number(in, 4);
    if (!bnnumba_running_load(in->bytes, in->left, &handle)) {
        bnnumba_running_read(handle, &c, &count, NULL, NULL);
        bnnumba_running_merge(handle, handle);
        bnnumba_running_destroy(handle);
    }
    if (c < 0 || c > 4 || bnnumba_running_create(c, &handle))
        return;
    if (fits(3, c, 2))
        bnnumba_running_update(handle, BNNUMBA_FLOAT64, BNNUMBA_NCS, 3, c, 2, b->x);
    if (!bnnumba_running_save(handle, state, sizeof state, &size)) {
        uint64_t at = take(in, 1) % size, flip = take(in, 1);
        state[at] ^= (unsigned char)flip;
        bnnumba_status loaded = bnnumba_running_load(state, size, &other);
        if ((loaded == BNNUMBA_OK) != !flip)
            abort(); /* what was changed must be refused, and nothing else */
        if (!loaded)
            bnnumba_running_destroy(other);
    }
    bnnumba_running_destroy((bnnumba_running *)(uintptr_t)take(in, 8));
    bnnumba_running_destroy(handle);
    if (bnnumba_running_read(handle, &c, NULL, NULL, NULL) != BNNUMBA_ERROR_HANDLE)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static buffers b;
    input in = {bytes, size};
    switch (take(&in, 1) % 3) {
    case 0: extents(&in, &b); break;
    case 1: tensors(&in, &b); break;
    case 2: states(&in, &b); break;
    }
    return 0;
}
