/* In place is allowed where the header says so; any other overlap is an error. */

#include "check.h"

enum { N = 4, C = 3, S = 50, SIZE = N * C * S };
#define SHAPE BNNUMBA_FLOAT32, BNNUMBA_NCS, N, C, S

static float memory[2 * SIZE], dy[SIZE], expected[SIZE], weight[C], mean32[C], var32[C];
static double saved[3 * C + 1], mean[C], m2[C];

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
    return 0;
}
