/* In place is allowed where the header says so; any other overlap is an error. */

#include "check.h"

enum { N = 4, C = 3, S = 50, SIZE = N * C * S };
#define SHAPE BNNUMBA_FLOAT32, BNNUMBA_NCS, N, C, S

static float memory[2 * SIZE], dy[SIZE], expected[SIZE], weight[C], mean32[C], var32[C];
static double saved[3 * C + 1], mean[C], m2[C];

/* Of several outputs none may overlap another, or it would be lost. */
static void several_outputs(void)
{
    float *x = memory, *y = memory + SIZE;
    double out[4 * C];
    int64_t *count = (int64_t *)(void *)(out + 1);
    bnnumba_params p = BNNUMBA_PARAMS_INIT;

    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "mean_out: must not overlap count_out",
                bnnumba_moments(SHAPE, x, count, out, m2));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out: must not overlap count_out",
                bnnumba_moments(SHAPE, x, count, mean, out));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out: must not overlap mean_out",
                bnnumba_moments(SHAPE, x, NULL, out, out + C - 1));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "mean: must not overlap count",
                bnnumba_merge(C, memset(count, 0, 8), out, m2, 1, saved, saved + C));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2: must not overlap mean",
                bnnumba_merge(C, &(int64_t){0}, mean, mean, 1, saved, saved + C));

    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "saved_out: must not overlap y_out",
                bnnumba_forward_training(SHAPE, x, NULL, y, (double *)(void *)y));
    p.running_mean = y;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "running_mean: must not overlap y_out",
                bnnumba_forward_training(SHAPE, x, &p, y, saved));
    p.running_mean = saved;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "saved_out: must not overlap params.running_mean",
                bnnumba_forward_training(SHAPE, x, &p, y, saved));
    p.running_mean = NULL, p.mean_rest = saved + 2 * C;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "saved_out: must not overlap params.mean_rest",
                bnnumba_forward_training(SHAPE, x, &p, y, saved));
    p.mean_rest = NULL, p.running_mean = mean32, p.running_var = mean32 + C - 1;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "running_var: must not overlap params.running_mean",
                bnnumba_update_running(C, 5, mean, m2, &p));

    p.running_var = var32;
    for (int training = 0; training < 2; training++) {
        float *outputs[][3] = {{y, y, weight}, {y, weight, y + SIZE - 1}, {y, weight, weight}};
        const char *texts[] = {"dweight_out: must not overlap dx_out",
                               "dbias_out: must not overlap dx_out",
                               "dbias_out: must not overlap dweight_out"};
        for (int i = 0; i < 3; i++) {
            float **to = outputs[i];
            CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, texts[i],
                        training ? bnnumba_backward_training(SHAPE, x, dy, NULL, saved, to[0],
                                                             to[1], to[2])
                                 : bnnumba_backward_inference(SHAPE, x, dy, &p, to[0], to[1],
                                                              to[2]));
        }
    }
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "conv_bias_out: must not overlap conv_weight_out",
                bnnumba_fold(BNNUMBA_FLOAT32, C, S, x, NULL, &p, y, y + C));
}

static void outputs_of_a_handle(void)
{
    enum { STATE = 32 + 24 * C, BYTES = 8 * (2 * C + 2) };
    bnnumba_running *handle;
    double *before = allocate(BYTES), *out = allocate(BYTES);
    int64_t *numbers = (int64_t *)(void *)out;
    size_t *size = (size_t *)(void *)out;
    unsigned char state[STATE];
    CHECK_OK(bnnumba_running_create(C, &handle));
    CHECK_OK(bnnumba_running_update(handle, SHAPE, memory));
    CHECK_OK(bnnumba_running_read(handle, numbers, numbers + 1, out + 2, out + 2 + C));
    CHECK(numbers[0] == C && numbers[1] == N * S);
    memcpy(before, out, BYTES);

    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "count_out: must not overlap channels_out",
                bnnumba_running_read(handle, numbers, numbers, NULL, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "mean_out: must not overlap channels_out",
                bnnumba_running_read(handle, numbers + C - 1, NULL, out, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "mean_out: must not overlap count_out",
                bnnumba_running_read(handle, NULL, numbers + 1, out, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out: must not overlap channels_out",
                bnnumba_running_read(handle, numbers, NULL, NULL, out));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out: must not overlap count_out",
                bnnumba_running_read(handle, NULL, numbers + C, NULL, out + 1));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out: must not overlap mean_out",
                bnnumba_running_read(handle, NULL, NULL, out, out + C - 1));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "size_out: must not overlap buffer",
                bnnumba_running_save(handle, out, STATE, size + 1));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "size_out: must not overlap buffer",
                bnnumba_running_save(handle, out, 16, size + 1));
    CHECK(!memcmp(out, before, BYTES)); /* nothing is written */

    /* Behind one another is not over one another. */
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "capacity",
                bnnumba_running_save(handle, out, 16, size + 2));
    CHECK(size[2] == STATE);
    CHECK_OK(bnnumba_running_save(handle, state, sizeof state, size));
    CHECK_OK(bnnumba_running_destroy(handle));
    free(before);
    free(out);
}

int main(void)
{
    float *x = memory;
    float *shifted = memory + 1;
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    fill(x, SIZE, 1);
    fill(dy, SIZE, 2);

    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "y_out",
                bnnumba_forward_training(SHAPE, x, NULL, shifted, saved));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "y_out",
                bnnumba_forward_training(SHAPE, shifted, NULL, x, saved));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "dx_out",
                bnnumba_backward_training(SHAPE, x, dy, NULL, saved, shifted, NULL, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "dweight_out",
                bnnumba_backward_training(SHAPE, x, dy, NULL, saved, NULL, x, NULL));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "dbias_out",
                bnnumba_backward_training(SHAPE, x, dy, NULL, saved, NULL, weight, weight));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "saved_out",
                bnnumba_forward_training(SHAPE, x, NULL, memory + SIZE, (double *)(void *)x));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out", bnnumba_moments(SHAPE, x, NULL, mean, mean));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "m2_out",
                bnnumba_moments(SHAPE, x, NULL, mean, (double *)(void *)x));
    p.weight = weight;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "params.weight",
                bnnumba_backward_training(SHAPE, x, dy, &p, saved, NULL, weight, NULL));
    p.weight = NULL;
    p.running_mean = p.running_var = mean32;
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "running_var",
                bnnumba_forward_training(SHAPE, x, &p, memory + SIZE, saved));
    p.running_mean = mean32, p.running_var = var32;
    CHECK_OK(bnnumba_forward_training(SHAPE, x, &p, memory + SIZE, saved));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "other_mean",
                bnnumba_merge(C, &(int64_t){1}, mean, m2, 1, mean, saved));
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "var_out", bnnumba_variance(C, 5, saved, 0, saved + 1));

    /* Inputs may overlap each other. */
    CHECK_OK(bnnumba_backward_training(SHAPE, x, shifted, NULL, saved, expected, NULL, NULL));
    CHECK_OK(bnnumba_backward_training(SHAPE, x, x, NULL, saved, expected, NULL, NULL));

    CHECK_OK(bnnumba_backward_training(SHAPE, x, dy, NULL, saved, expected, NULL, NULL));
    memcpy(memory + SIZE, dy, sizeof dy);
    CHECK_OK(bnnumba_backward_training(SHAPE, x, memory + SIZE, NULL, saved, memory + SIZE, NULL,
                                       NULL));
    CHECK(!memcmp(memory + SIZE, expected, sizeof expected));
    memcpy(memory + SIZE, x, sizeof dy);
    CHECK_OK(bnnumba_backward_training(SHAPE, memory + SIZE, dy, NULL, saved, memory + SIZE, NULL,
                                       NULL));
    CHECK(!memcmp(memory + SIZE, expected, sizeof expected));

    CHECK_OK(bnnumba_forward_training(SHAPE, x, NULL, expected, NULL));
    CHECK_OK(bnnumba_forward_training(SHAPE, x, NULL, x, NULL));
    CHECK(!memcmp(x, expected, sizeof expected));
    CHECK_OK(bnnumba_variance(C, 5, saved, 0, saved));
    several_outputs();
    outputs_of_a_handle();
    return 0;
}
