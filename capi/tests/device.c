/*
 * libbnnumba_embed on a GPU gives what it gives on the CPU, and refuses what is not on that GPU.
 *
 * With the argument "cuda" memory is that of GPU 0, through the driver's own functions. With
 * "simulator" it is the host's, and Numba must simulate (NUMBA_ENABLE_CUDASIM=1). With "none" there
 * is no GPU, or the library is libbnnumba: all calls must say so.
 */

#include <dlfcn.h>
#include <stdlib.h>

#include "check.h"

enum { N = 3, C = 5, H = 4, W = 6, SIZE = N * C * H * W };

static int64_t shape[4] = {N, C, H, W}, empty_shape[4] = {0, C, H, W};
static int on_cuda;

/* --- memory of the GPU ----------------------------------------------------------------------- */

typedef unsigned long long address;
static int (*memory_allocate)(address *, size_t);
static int (*memory_write)(address, const void *, size_t);
static int (*memory_read)(void *, address, size_t);

static void symbol(void *library, const char *name, void *to)
{
    void *found = dlsym(library, name);
    CHECK(found != NULL);
    memcpy(to, &found, sizeof found);
}

static void open_cuda(void)
{
    int (*start)(unsigned), (*retain)(void **, int), (*set)(void *);
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *context;
    CHECK(library != NULL);
    symbol(library, "cuInit", &start);
    symbol(library, "cuDevicePrimaryCtxRetain", &retain);
    symbol(library, "cuCtxSetCurrent", &set);
    symbol(library, "cuMemAlloc_v2", &memory_allocate);
    symbol(library, "cuMemcpyHtoD_v2", &memory_write);
    symbol(library, "cuMemcpyDtoH_v2", &memory_read);
    CHECK(start(0) == 0 && retain(&context, 0) == 0 && set(context) == 0);
}

static void to_device(void *to, const void *from, size_t bytes)
{
    if (on_cuda)
        CHECK(memory_write((address)(uintptr_t)to, from, bytes) == 0);
    else
        memcpy(to, from, bytes);
}

static void from_device(void *to, const void *from, size_t bytes)
{
    if (on_cuda)
        CHECK(memory_read(to, (address)(uintptr_t)from, bytes) == 0);
    else
        memcpy(to, from, bytes);
}

/* Return a copy on the device, which lives as long as the program. */
static void *copy(const void *from, size_t bytes)
{
    address made = 0;
    void *to;
    if (on_cuda) {
        CHECK(memory_allocate(&made, bytes) == 0);
        to = (void *)(uintptr_t)made;
    } else {
        to = malloc(bytes);
    }
    CHECK(to != NULL);
    to_device(to, from, bytes);
    return to;
}

/* --- data ------------------------------------------------------------------------------------ */

static float filled[SIZE], filled_too[SIZE];
static float weight[C] = {1, 2, 3, 4, 5}, bias[C] = {5, 4, 3, 2, 1};
static float running_mean[C] = {0, 1, 2, 3, 4}, running_var[C] = {1, 2, 3, 4, 5};

typedef union values {
    float f32[SIZE];
    double f64[SIZE];
} values;

static double value(const values *v, bnnumba_dtype dtype, int i)
{
    return dtype == BNNUMBA_FLOAT64 ? v->f64[i] : v->f32[i];
}

static void set(values *v, bnnumba_dtype dtype, const float *from, double offset)
{
    for (int i = 0; i < SIZE; i++) {
        if (dtype == BNNUMBA_FLOAT64)
            v->f64[i] = from[i] + offset;
        else
            v->f32[i] = (float)(from[i] + offset);
    }
}

static DLTensor tensor(void *data, bnnumba_dtype dtype, int64_t *strides, int device)
{
    DLTensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.device.device_type = device;
    t.ndim = 4;
    t.dtype.code = 2, t.dtype.bits = dtype == BNNUMBA_FLOAT64 ? 64 : 32, t.dtype.lanes = 1;
    t.shape = shape;
    t.strides = strides;
    return t;
}

static void same(const values *found, const values *expected, bnnumba_dtype dtype, double scale)
{
    double tolerance = (dtype == BNNUMBA_FLOAT64 ? 1e-12 : 2e-6) * scale;
    for (int i = 0; i < SIZE; i++)
        CHECK(fabs(value(found, dtype, i) - value(expected, dtype, i)) <= tolerance);
}

static void same_rows(const float *found, const float *expected)
{
    for (int c = 0; c < C; c++)
        CHECK(is_close(found[c], expected[c], 2e-5));
}

/* --- the calls, on the CPU and on the device ------------------------------------------------- */

typedef struct results {
    values y, dx, y_inference, dx_inference;
    double saved[3 * C];
    float mean[C], var[C], dweight[C], dbias[C], dweight_inference[C], dbias_alone[C];
} results;

typedef void *copier(const void *from, size_t bytes);

static void *as_it_is(const void *from, size_t bytes)
{
    void *to = malloc(bytes);
    CHECK(to != NULL);
    return memcpy(to, from, bytes);
}

static void compute(int device, copier *place, bnnumba_dtype dtype, int64_t *strides, double offset,
                    results *out)
{
    static const results zeros;
    values x, dy;
    set(&x, dtype, filled, offset);
    set(&dy, dtype, filled_too, 0);
    DLTensor tx = tensor(place(&x, sizeof x), dtype, strides, device);
    DLTensor tdy = tensor(place(&dy, sizeof dy), dtype, strides, device);
    results *r = place(&zeros, sizeof zeros);
    DLTensor y = tensor(&r->y, dtype, strides, device), dx = tensor(&r->dx, dtype, strides, device);
    DLTensor y2 = tensor(&r->y_inference, dtype, strides, device);
    DLTensor dx2 = tensor(&r->dx_inference, dtype, strides, device);

    bnnumba_params p = BNNUMBA_PARAMS_INIT, constants = p;
    p.weight = place(weight, sizeof weight), p.bias = place(bias, sizeof bias);
    constants = p;
    p.running_mean = place(running_mean, sizeof running_mean);
    p.running_var = place(running_var, sizeof running_var);
    constants.running_mean = place(running_mean, sizeof running_mean);
    constants.running_var = place(running_var, sizeof running_var);

    CHECK_OK(bnnumba_forward_training_dl(&tx, 1, &p, &y, r->saved));
    CHECK_OK(bnnumba_backward_training_dl(&tx, &tdy, -3, &p, r->saved, &dx, r->dweight, r->dbias));
    CHECK_OK(bnnumba_backward_training_dl(&tx, &tdy, 1, &p, r->saved, NULL, NULL, r->dbias_alone));
    CHECK_OK(bnnumba_forward_inference_dl(&tx, 1, &constants, &y2));
    CHECK_OK(bnnumba_backward_inference_dl(&tx, &tdy, 1, &constants, &dx2, r->dweight_inference,
                                           NULL));
    if (device == 1) {
        memcpy(r->mean, p.running_mean, sizeof r->mean);
        memcpy(r->var, p.running_var, sizeof r->var);
        *out = *r;
    } else {
        from_device(out, r, sizeof *out);
        from_device(out->mean, p.running_mean, sizeof out->mean);
        from_device(out->var, p.running_var, sizeof out->var);
    }
}

static void compare(bnnumba_dtype dtype, int64_t *strides, double offset)
{
    static results cpu, gpu;
    compute(1, as_it_is, dtype, strides, offset, &cpu);
    compute(2, copy, dtype, strides, offset, &gpu);
    same(&gpu.y, &cpu.y, dtype, 5);
    same(&gpu.dx, &cpu.dx, dtype, 5);
    same(&gpu.y_inference, &cpu.y_inference, dtype, 5 + fabs(offset)); /* by statistics near 0 */
    same(&gpu.dx_inference, &cpu.dx_inference, dtype, 5);
    for (int i = 0; i < 3 * C; i++)
        CHECK(is_close(gpu.saved[i], cpu.saved[i], dtype == BNNUMBA_FLOAT64 ? 1e-12 : 1e-5));
    /* The mean has more digits than a float: it is what x - mean is computed with. */
    for (int c = 0; c < C; c++)
        CHECK(fabs(gpu.saved[c] - cpu.saved[c]) <= 2e-7);
    same_rows(gpu.mean, cpu.mean);
    same_rows(gpu.var, cpu.var);
    same_rows(gpu.dweight, cpu.dweight);
    same_rows(gpu.dbias, cpu.dbias);
    same_rows(gpu.dweight_inference, cpu.dweight_inference);
    same_rows(gpu.dbias_alone, gpu.dbias);
}

static void moments(void)
{
    double mean[C], m2[C], mean_too[C], m2_too[C];
    int64_t count;
    bnnumba_running *handle;
    DLTensor host = tensor(filled, BNNUMBA_FLOAT32, NULL, 1);
    DLTensor t = tensor(copy(filled, sizeof filled), BNNUMBA_FLOAT32, NULL, 2);
    CHECK_OK(bnnumba_moments_dl(&host, 1, NULL, mean, m2));
    CHECK_OK(bnnumba_moments_dl(&t, 1, &count, mean_too, m2_too));
    CHECK(count == N * H * W);
    for (int c = 0; c < C; c++)
        CHECK(fabs(mean[c] - mean_too[c]) <= 1e-7 && is_close(m2[c], m2_too[c], 1e-5));
    CHECK_OK(bnnumba_running_create(C, &handle));
    CHECK_OK(bnnumba_running_update_dl(handle, &t, 1));
    CHECK_OK(bnnumba_running_update_dl(handle, &t, 1));
    CHECK_OK(bnnumba_running_read(handle, NULL, &count, mean, m2));
    CHECK(count == 2 * N * H * W && is_close(m2[1], 2 * m2_too[1], 1e-12));
    CHECK_OK(bnnumba_running_destroy(handle));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "mean_out", bnnumba_moments_dl(&t, 1, NULL, NULL, m2));
}

static void refused(void)
{
    double mean[C], m2[C];
    DLTensor host = tensor(filled, BNNUMBA_FLOAT32, NULL, 1);
    DLTensor t = tensor(copy(filled, sizeof filled), BNNUMBA_FLOAT32, NULL, 2), other = t;
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "y_out: expected a tensor on the device of x",
                bnnumba_forward_training_dl(&t, 1, NULL, &host, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "y_out: expected a tensor on the device of x",
                bnnumba_forward_training_dl(&host, 1, NULL, &t, NULL));
    other.device.device_id = 1;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "id 1",
                bnnumba_forward_training_dl(&t, 1, NULL, &other, NULL));
    other = t, other.byte_offset = 4;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "y_out",
                bnnumba_forward_training_dl(&t, 1, NULL, &other, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "params.running_mean",
                bnnumba_forward_inference_dl(&t, 1, &p, &t));
    other = t, other.byte_offset = 1;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "x: expected an array that is aligned",
                bnnumba_moments_dl(&other, 1, NULL, mean, m2));
    p.eps = -1;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "eps", bnnumba_forward_training_dl(&t, 1, &p, &t, NULL));
    if (on_cuda) {
        p.eps = 1e-5, p.weight = weight;
        CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "params.weight: expected memory of GPU 0",
                    bnnumba_forward_training_dl(&t, 1, &p, &t, NULL));
    }
}

static void nothing(void)
{
    float seven[C] = {7, 7, 7, 7, 7}, *dweight = copy(seven, sizeof seven);
    double saved[3 * C], *rows;
    for (int i = 0; i < 3 * C; i++)
        saved[i] = 7;
    rows = copy(saved, sizeof saved);
    DLTensor t = tensor(NULL, BNNUMBA_FLOAT32, NULL, 2);
    t.shape = empty_shape;
    CHECK_OK(bnnumba_forward_training_dl(&t, 1, NULL, &t, rows));
    CHECK_OK(bnnumba_backward_training_dl(&t, &t, 1, NULL, rows, NULL, dweight, NULL));
    from_device(saved, rows, sizeof saved);
    from_device(seven, dweight, sizeof seven);
    for (int c = 0; c < C; c++)
        CHECK(saved[c] == 0 && saved[2 * C + c] == 0 && seven[c] == 0);
}

static void no_device(void)
{
    double rows[3 * C];
    float mean[C] = {0}, var[C] = {0};
    DLTensor t = tensor(filled, BNNUMBA_FLOAT32, NULL, 2);
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    p.running_mean = mean, p.running_var = var;
    CHECK(bnnumba_moments_dl(&t, 1, NULL, rows, rows + C) == BNNUMBA_ERROR_UNSUPPORTED);
    CHECK(strstr(bnnumba_last_error(), "x: "));
    CHECK(bnnumba_forward_training_dl(&t, 1, &p, &t, rows) == BNNUMBA_ERROR_UNSUPPORTED);
    CHECK(bnnumba_forward_inference_dl(&t, 1, &p, &t) == BNNUMBA_ERROR_UNSUPPORTED);
    CHECK(bnnumba_backward_training_dl(&t, &t, 1, NULL, rows, &t, mean, var) ==
          BNNUMBA_ERROR_UNSUPPORTED);
    CHECK(bnnumba_backward_inference_dl(&t, &t, 1, &p, &t, NULL, NULL) ==
          BNNUMBA_ERROR_UNSUPPORTED);
}

int main(int count, char **arguments)
{
    int64_t last[4] = {C * H * W, 1, W * C, C}, turned[4] = {1, N, N * C * W, N * C};
    on_cuda = count > 1 && !strcmp(arguments[1], "cuda");
    if (on_cuda)
        open_cuda();
    fill(filled, SIZE, 1);
    fill(filled_too, SIZE, 2);
    if (count > 1 && !strcmp(arguments[1], "none")) {
        no_device();
        return 0;
    }
    compare(BNNUMBA_FLOAT32, NULL, 1e4);
    compare(BNNUMBA_FLOAT32, last, 0);
    compare(BNNUMBA_FLOAT32, turned, 0); /* no canonical view: copied */
    compare(BNNUMBA_FLOAT64, last, 1e4);
    moments();
    refused();
    nothing();
    return 0;
}
