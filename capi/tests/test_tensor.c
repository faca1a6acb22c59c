/* Tensors of any strides give what their contiguous copies give; what cannot be read is refused. */

#include "check.h"

enum { N = 3, C = 5, H = 4, W = 6, SIZE = N * C * H * W, ROOM = 4 * SIZE };

static const int64_t shape[4] = {N, C, H, W};

static DLTensor tensor(void *data, int64_t *strides)
{
    DLTensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.device.device_type = 1;
    t.ndim = 4;
    t.dtype.code = 2, t.dtype.bits = 32, t.dtype.lanes = 1;
    t.shape = (int64_t *)(uintptr_t)shape;
    t.strides = strides;
    return t;
}

/* Copy contiguous elements to where strides put them. */
static void scatter(const float *from, float *to, const int64_t *strides)
{
    for (int64_t i = 0; i < SIZE; i++)
        to[i / (C * H * W) * strides[0] + i / (H * W) % C * strides[1] + i / W % H * strides[2] +
           i % W * strides[3]] = from[i];
}

static void gather(const float *from, float *to, const int64_t *strides)
{
    for (int64_t i = 0; i < SIZE; i++)
        to[i] = from[i / (C * H * W) * strides[0] + i / (H * W) % C * strides[1] +
                     i / W % H * strides[2] + i % W * strides[3]];
}

typedef struct stored {
    const char *what;
    int64_t strides[4], offset;
} stored;

static const stored ways[] = {
    {"contiguous", {C * H * W, H * W, W, 1}, 0},
    {"channels last", {C * H * W, 1, W * C, C}, 0},
    {"padded rows", {C * H * 8, H * 8, 8, 1}, 3},
    {"padded images", {C * H * W + 7, H * W, W, 1}, 0},
    {"padded channels, last", {(C + 3) * H * W, 1, W * (C + 3), C + 3}, 0},
    {"batch innermost", {1, H * W * N, W * N, N}, 0},
    {"every other", {2 * C * H * W, 2 * H * W, 2 * W, 2}, 1},
    {"reversed batch", {-C * H * W, H * W, W, 1}, (N - 1) * C * H * W},
    {"reversed rows", {C * H * W, H * W, W, -1}, W - 1},
    {"channels first of all", {H * W, N * H * W, W, 1}, 0},
};

static float x[SIZE], dy[SIZE], y[SIZE], dx[SIZE], dx_inference[SIZE], result[SIZE];
static float room_x[ROOM], room_dy[ROOM], room_y[ROOM];
static double saved[3 * C], saved_too[3 * C];
static float weight[C] = {1, 2, 3, 4, 5}, mean32[C] = {0, 1, 2, 3, 4}, var32[C] = {1, 2, 3, 4, 5};
static float dweight[C], dbias[C], dweight_too[C], dbias_too[C];
static bnnumba_params p = BNNUMBA_PARAMS_INIT;

static void compare(float *found, const stored *way, const float *expected, double tolerance)
{
    gather(found, result, way->strides);
    for (int i = 0; i < SIZE; i++)
        if (!is_close(result[i], expected[i], tolerance)) {
            fprintf(stderr, "%s: element %d\n", way->what, i);
            CHECK(result[i] == expected[i]);
        }
}

static void one(const stored *in, const stored *other, const stored *out)
{
    int64_t strides_x[4], strides_dy[4], strides_y[4];
    memcpy(strides_x, in->strides, sizeof strides_x);
    memcpy(strides_dy, other->strides, sizeof strides_dy);
    memcpy(strides_y, out->strides, sizeof strides_y);
    DLTensor tx = tensor(room_x, strides_x), tdy = tensor(room_dy, strides_dy);
    DLTensor ty = tensor(room_y + out->offset, strides_y);
    tx.byte_offset = 4 * (uint64_t)in->offset;
    tdy.byte_offset = 4 * (uint64_t)other->offset;
    scatter(x, room_x + in->offset, in->strides);
    scatter(dy, room_dy + other->offset, other->strides);
    for (int i = 0; i < ROOM; i++)
        room_y[i] = 1e30f;

    double mean[C], m2[C];
    int64_t count;
    CHECK_OK(bnnumba_moments_dl(&tx, -3, &count, mean, m2));
    CHECK(count == N * H * W);
    for (int c = 0; c < C; c++)
        CHECK(is_close(mean[c], saved[c], 1e-14) && is_close(m2[c], saved[C + c], 1e-14));
    CHECK_OK(bnnumba_forward_training_dl(&tx, 1, &p, &ty, saved_too));
    for (int i = 0; i < 3 * C; i++)
        CHECK(is_close(saved_too[i], saved[i], 1e-14));
    compare(room_y + out->offset, out, y, 1e-6);
    CHECK_OK(bnnumba_backward_training_dl(&tx, &tdy, 1, &p, saved, &ty, dweight_too, dbias_too));
    compare(room_y + out->offset, out, dx, 1e-5);
    CHECK(is_close(dweight_too[2], dweight[2], 1e-6) && is_close(dbias_too[2], dbias[2], 1e-6));
    p.running_mean = mean32, p.running_var = var32;
    CHECK_OK(bnnumba_backward_inference_dl(&tx, &tdy, 1, &p, &ty, NULL, NULL));
    compare(room_y + out->offset, out, dx_inference, 1e-6);
    CHECK_OK(bnnumba_backward_inference_dl(&tx, &tdy, 1, &p, NULL, dweight_too, NULL));
    CHECK_OK(bnnumba_forward_inference_dl(&tx, 1, &p, &ty));
    p.running_mean = p.running_var = NULL;
    /* Nothing between the elements was touched. */
    int untouched = 0;
    for (int i = 0; i < ROOM; i++)
        untouched += room_y[i] == 1e30f;
    CHECK(untouched == ROOM - SIZE);
}

static void refused(void)
{
    double mean[C], m2[C];
    int64_t huge[4] = {INT64_MAX, 1, 1, 1}, negative[4] = {N, -1, H, W};
    int64_t repeated[4] = {C * H * W, H * W, 0, 1};
    int64_t windows[4] = {C * H * W, H * W, 1, 1};
    int64_t far[4] = {INT64_MAX / 8, H * W, W, 1};
    int64_t two[4] = {2, 2, 1, 1}, apart[4] = {-(INT64_C(1) << 38), (INT64_MAX - 15) / 4, 1, 1};
    DLTensor t = tensor(x, NULL), u = t, out = tensor(y, NULL);
    CHECK_OK(bnnumba_moments_dl(&t, 1, NULL, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "x: ", bnnumba_moments_dl(NULL, 1, NULL, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "axis", bnnumba_moments_dl(&t, 4, NULL, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "axis", bnnumba_moments_dl(&t, -5, NULL, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "y_out",
                bnnumba_forward_training_dl(&t, 1, NULL, NULL, NULL));
    u.ndim = 1;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "dimensions", bnnumba_moments_dl(&u, 0, NULL, mean, m2));
    u.ndim = 65;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "dimensions", bnnumba_moments_dl(&u, 0, NULL, mean, m2));
    u = t, u.ndim = 3;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "shape",
                bnnumba_forward_training_dl(&u, 1, NULL, &out, NULL));
    u = t, u.dtype.code = 0;
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "code 0", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.dtype.lanes = 4;
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "4 lanes", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.dtype.bits = 16;
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "dtype",
                bnnumba_forward_training_dl(&t, 1, NULL, &u, NULL));
    u = t, u.data = NULL;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "NULL", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.shape = NULL;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "NULL", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.shape = negative;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "-1", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.shape = huge;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "large", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.strides = far;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "far", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u.shape = two, u.strides = apart;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "far", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.byte_offset = UINT64_MAX - 31;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "byte_offset", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.data = (float *)(uintptr_t)(UINTPTR_MAX - 63);
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "far", bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    u = t, u.device.device_type = 4;
    CHECK_ERROR(BNNUMBA_ERROR_UNSUPPORTED, "device type 4",
                bnnumba_moments_dl(&u, 1, NULL, mean, m2));
    out.strides = repeated;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "y_out: its elements must not overlap, got a stride of 0 at axis 2",
                bnnumba_forward_training_dl(&t, 1, NULL, &out, NULL));
    out.strides = windows;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "y_out: its elements must not overlap, got a stride of 1 at axis",
                bnnumba_forward_training_dl(&t, 1, NULL, &out, NULL));
    out.strides = NULL, out.data = x + 1;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "y_out",
                bnnumba_forward_training_dl(&t, 1, NULL, &out, NULL));
}

/* The stride of an axis with one element leads nowhere: tensors that differ in it are the same. */
static void one_element(void)
{
    int64_t short_shape[4] = {1, C, 1, W}, one[4] = {C * W, W, W, 1}, other[4] = {-9, W, 0, 1};
    float memory[C * W], expected[C * W];
    DLTensor t = tensor(memory, one), u = tensor(memory, other), into = tensor(expected, NULL);
    t.shape = u.shape = into.shape = short_shape;
    memcpy(memory, x, sizeof memory);
    CHECK_OK(bnnumba_forward_training_dl(&t, 1, NULL, &into, NULL));
    CHECK_OK(bnnumba_forward_training_dl(&t, 1, NULL, &u, NULL));
    CHECK(!memcmp(memory, expected, sizeof memory));
}

/* A tensor of no particular alignment is copied. */
static void unaligned(void)
{
    static char bytes[SIZE * 4 + 1];
    double mean[C], m2[C];
    memcpy(bytes + 1, x, sizeof x);
    DLTensor t = tensor(bytes, NULL);
    t.byte_offset = 1;
    CHECK_OK(bnnumba_moments_dl(&t, 1, NULL, mean, m2));
    CHECK(!memcmp(mean, saved, sizeof mean) && !memcmp(m2, saved + C, sizeof m2));
}

static void stream(void)
{
    bnnumba_running *handle;
    double mean[C];
    int64_t count;
    DLTensor t = tensor(x, NULL);
    CHECK_OK(bnnumba_running_create(C, &handle));
    CHECK_OK(bnnumba_running_update_dl(handle, &t, 1));
    CHECK_OK(bnnumba_running_update_dl(handle, &t, 1));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "channels", bnnumba_running_update_dl(handle, &t, 2));
    CHECK_OK(bnnumba_running_read(handle, NULL, &count, mean, NULL));
    CHECK(count == 2 * N * H * W && is_close(mean[1], saved[1], 1e-14));
    CHECK_OK(bnnumba_running_destroy(handle));
}

int main(void)
{
    fill(x, SIZE, 1);
    fill(dy, SIZE, 2);
    p.weight = weight;
    const bnnumba_dtype f32 = BNNUMBA_FLOAT32;
    const bnnumba_layout ncs = BNNUMBA_NCS;
    CHECK_OK(bnnumba_forward_training(f32, ncs, N, C, H * W, x, &p, y, saved));
    CHECK_OK(bnnumba_backward_training(f32, ncs, N, C, H * W, x, dy, &p, saved, dx, dweight, dbias));
    p.running_mean = mean32, p.running_var = var32;
    CHECK_OK(bnnumba_backward_inference(f32, ncs, N, C, H * W, x, dy, &p, dx_inference, NULL, NULL));
    p.running_mean = p.running_var = NULL;
    for (int i = 0; i < COUNT(ways); i++)
        for (int k = 0; k < COUNT(ways); k++)
            one(&ways[i], &ways[(i + k) % COUNT(ways)], &ways[k]);
    refused();
    one_element();
    unaligned();
    stream();
    return 0;
}
