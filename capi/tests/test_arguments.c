/* Bad arguments are named in an error, and nothing has been written then. */

#include "check.h"

enum { N = 2, C = 3, S = 4, SIZE = N * C * S };
#define SHAPE BNNUMBA_FLOAT32, BNNUMBA_NCS, N, C, S

static float x[SIZE], y[SIZE], dy[SIZE], weight[C], mean32[C], var32[C];
static double mean[C], m2[C], saved[3 * C];
static int64_t count;

static void pointers(void)
{
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "x: ", bnnumba_moments(SHAPE, NULL, &count, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "mean_out", bnnumba_moments(SHAPE, x, &count, NULL, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "m2_out", bnnumba_moments(SHAPE, x, &count, mean, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "x: ", bnnumba_forward_training(SHAPE, NULL, NULL, y, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "y_out",
                bnnumba_forward_training(SHAPE, x, NULL, NULL, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "running_mean",
                bnnumba_forward_inference(SHAPE, x, NULL, y));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "dy",
                bnnumba_backward_training(SHAPE, x, NULL, NULL, saved, y, NULL, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "saved",
                bnnumba_backward_training(SHAPE, x, dy, NULL, NULL, y, NULL, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "running_mean",
                bnnumba_backward_inference(SHAPE, x, dy, NULL, y, NULL, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "m2", bnnumba_variance(C, 5, NULL, 0, mean));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "var_out", bnnumba_variance(C, 5, m2, 0, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "count", bnnumba_merge(C, NULL, mean, m2, 1, saved, saved));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "handle_out", bnnumba_running_create(C, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "4 divides",
                bnnumba_moments(SHAPE, (char *)x + 1, &count, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "8 divides",
                bnnumba_moments(SHAPE, x, &count, (double *)((char *)mean + 4), m2));
}

static void extents(void)
{
    float *p = x;
    const bnnumba_dtype f32 = BNNUMBA_FLOAT32;
    const bnnumba_layout ncs = BNNUMBA_NCS;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "n: ", bnnumba_moments(f32, ncs, -1, C, S, p, 0, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "c: ", bnnumba_moments(f32, ncs, N, -1, S, p, 0, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "s: ", bnnumba_moments(f32, ncs, N, C, -1, p, 0, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "2^63",
                bnnumba_moments(f32, ncs, INT64_MAX, C, 2, p, 0, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "2^39",
                bnnumba_moments(f32, ncs, 1, INT64_MAX, 1, p, 0, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "c: ", bnnumba_running_create(-1, (void *)&p));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "threads", bnnumba_set_num_threads(-1));
}

static void kinds(void)
{
    const bnnumba_dtype none = (bnnumba_dtype)0, five = (bnnumba_dtype)5;
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "dtype",
                bnnumba_moments(none, BNNUMBA_NCS, N, C, S, x, &count, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "got 5",
                bnnumba_forward_training(five, BNNUMBA_NCS, N, C, S, x, NULL, y, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "layout",
                bnnumba_moments(BNNUMBA_FLOAT32, (bnnumba_layout)3, N, C, S, x, &count, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "FLOAT64",
                bnnumba_fold(BNNUMBA_FLOAT16, C, 1, x, NULL, NULL, y, y));
    bnnumba_params params = BNNUMBA_PARAMS_INIT;
    params.dtype = BNNUMBA_BFLOAT16;
    CHECK_ERROR(BNNUMBA_ERROR_DTYPE, "params.dtype",
                bnnumba_forward_training(SHAPE, x, &params, y, NULL));
}

static void params(void)
{
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    p.struct_size = 8;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "struct_size",
                bnnumba_forward_training(SHAPE, x, &p, y, NULL));
    p.struct_size = offsetof(bnnumba_params, mean_rest); /* without its last member */
    p.mean_rest = (double *)x; /* not read */
    float out[SIZE];
    CHECK_OK(bnnumba_forward_training(SHAPE, x, &p, out, NULL));
    const double bad_eps[] = {-1e-5, NAN, INFINITY};
    for (int i = 0; i < 3; i++) {
        p = (bnnumba_params)BNNUMBA_PARAMS_INIT;
        p.eps = bad_eps[i];
        CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "eps", bnnumba_forward_training(SHAPE, x, &p, y, NULL));
        p = (bnnumba_params)BNNUMBA_PARAMS_INIT;
        p.momentum = i ? bad_eps[i] : -INFINITY;
        CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "momentum",
                    bnnumba_forward_training(SHAPE, x, &p, y, NULL));
    }
    p = (bnnumba_params)BNNUMBA_PARAMS_INIT;
    p.running_mean = mean32, p.running_var = var32;
    p.correction = N * S;
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "correction",
                bnnumba_forward_training(SHAPE, x, &p, y, saved));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "correction", bnnumba_variance(C, 1, m2, 1, mean));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "correction", bnnumba_update_running(C, 1, mean, m2, &p));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "sum", (count = INT64_MAX,
                bnnumba_merge(C, &count, mean, m2, 1, saved, saved + C)));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "other_count",
                (count = 1, bnnumba_merge(C, &count, mean, m2, -1, saved, saved + C)));
}

static void nothing_was_written(void)
{
    for (int i = 0; i < SIZE; i++)
        CHECK(y[i] == 7);
    for (int i = 0; i < C; i++)
        CHECK(mean[i] == 7 && m2[i] == 7 && mean32[i] == 7 && var32[i] == 7);
    for (int i = 0; i < 3 * C; i++)
        CHECK(saved[i] == 7);
}

int main(void)
{
    fill(x, SIZE, 1);
    fill(dy, SIZE, 2);
    for (int i = 0; i < SIZE; i++)
        y[i] = 7;
    for (int i = 0; i < C; i++)
        mean[i] = m2[i] = 7, mean32[i] = var32[i] = weight[i] = 7;
    for (int i = 0; i < 3 * C; i++)
        saved[i] = 7;
    pointers();
    extents();
    kinds();
    params();
    nothing_was_written();

    /* Every optional pointer is. */
    CHECK_OK(bnnumba_moments(SHAPE, x, NULL, mean, m2));
    CHECK_OK(bnnumba_forward_training(SHAPE, x, NULL, y, NULL));
    CHECK_OK(bnnumba_forward_training(SHAPE, x, NULL, y, saved));
    CHECK_OK(bnnumba_backward_training(SHAPE, x, dy, NULL, saved, NULL, NULL, NULL));
    CHECK_OK(bnnumba_backward_training(SHAPE, x, dy, NULL, saved, y, NULL, NULL));
    CHECK_OK(bnnumba_update_running(C, 4, mean, m2, NULL));
    CHECK_OK(bnnumba_running_destroy(NULL));
    return 0;
}
