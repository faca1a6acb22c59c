/* No function divides by zero, overflows or makes a NaN on plain data: programs may trap that. */

#include <fenv.h>

#include "check.h"

enum { N = 3, MOST_CHANNELS = 40, S = 7, SIZE = N * MOST_CHANNELS * S };
enum { RAISED = FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW };

static float x[SIZE], dy[SIZE], y[SIZE];
static float weight[MOST_CHANNELS], mean32[MOST_CHANNELS], var32[MOST_CHANNELS];
static double wide[SIZE], saved[3 * MOST_CHANNELS], mean[MOST_CHANNELS], m2[MOST_CHANNELS];

/* In libbnnumba_embed the first round compiles, by code that is not ours. */
#define CHECK_QUIET(call)                              \
    do {                                               \
        for (int round = 0; round < 2; round++) {      \
            feclearexcept(FE_ALL_EXCEPT);              \
            CHECK_OK(call);                            \
        }                                              \
        CHECK(!fetestexcept(RAISED));                  \
    } while (0)

/* Vectors have lanes without a channel, and one channel is constant. */
static void quiet(bnnumba_layout layout, int64_t c, double eps)
{
    bnnumba_running *handle;
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    int64_t count = 5;
    for (int64_t i = 0; i < N; i++)
        for (int64_t k = 0; k < S; k++)
            x[at(layout, c, S, i, c / 2, k)] = 3;
    for (int64_t i = 0; i < N * c * S; i++)
        wide[i] = x[i];

    CHECK_QUIET(bnnumba_moments(BNNUMBA_FLOAT64, layout, N, c, S, wide, NULL, mean, m2));
    CHECK_QUIET(bnnumba_moments(BNNUMBA_FLOAT32, layout, N, c, S, x, NULL, mean, m2));
    CHECK_OK(bnnumba_running_create(c, &handle));
    CHECK_QUIET(bnnumba_running_update(handle, BNNUMBA_FLOAT32, layout, N, c, S, x));
    CHECK_OK(bnnumba_running_destroy(handle));
    CHECK_QUIET(bnnumba_merge(c, &count, mean, m2, 4, saved, saved + c));

    p.weight = weight, p.running_mean = mean32, p.running_var = var32, p.eps = eps;
    var32[c / 2] = eps > 0; /* else 1 / sqrt of it is 0 */
    CHECK_QUIET(bnnumba_forward_training(BNNUMBA_FLOAT32, layout, N, c, S, x, &p, y, saved));
    CHECK_QUIET(bnnumba_backward_training(BNNUMBA_FLOAT32, layout, N, c, S, x, dy, &p, saved, y,
                                          NULL, NULL));
    CHECK_QUIET(bnnumba_forward_inference(BNNUMBA_FLOAT32, layout, N, c, S, x, &p, y));
    CHECK_QUIET(bnnumba_backward_inference(BNNUMBA_FLOAT32, layout, N, c, S, x, dy, &p, y, NULL,
                                           NULL));
}

int main(void)
{
    for (int64_t c = 1; c <= MOST_CHANNELS; c++) {
        fill(x, SIZE, 13);
        fill(dy, SIZE, 14);
        for (int i = 0; i < MOST_CHANNELS; i++)
            weight[i] = 1, mean32[i] = 0, var32[i] = 1;
        quiet(BNNUMBA_NCS, c, 1e-5);
        quiet(BNNUMBA_NSC, c, 1e-5);
        quiet(BNNUMBA_NCS, c, 0);
        quiet(BNNUMBA_NSC, c, 0);
    }
    return 0;
}
