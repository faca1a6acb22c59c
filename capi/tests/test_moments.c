/* Moments are exact where sums of squares fail, and running updates and folding follow them. */

#include "check.h"

static void hard_data(void)
{
    enum { N = 100000 };
    static float far[N];
    static double wide[N];
    int64_t count;
    double mean, m2;
    for (int i = 0; i < N; i++)
        far[i] = 16777000.0f + (float)(i % 2), wide[i] = 1e8 + (i % 3);
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, 1, N, far, &count, &mean, &m2));
    CHECK(count == N && mean == 16777000.5 && is_close(m2, 0.25 * N, 1e-12));
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT64, BNNUMBA_NCS, N, 1, 1, wide, &count, &mean, &m2));
    CHECK(is_close(mean, 1e8 + 99999.0 / N, 1e-15));
    CHECK(is_close(m2, 33333 * 5 - 99999.0 * 99999.0 / N, 1e-9));
    for (int i = 0; i < N; i++)
        far[i] = 0.1f;
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, 1, N, far, &count, &mean, &m2));
    CHECK(mean == (double)0.1f && m2 == 0);
}

static void nan_stays_in_its_channel(void)
{
    double x[4][3] = {{1, 2, 3}, {4, NAN, 6}, {7, 8, INFINITY}, {10, 11, 12}};
    double mean[3], m2[3];
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT64, BNNUMBA_NSC, 4, 3, 1, x, NULL, mean, m2));
    CHECK(mean[0] == 5.5 && is_close(m2[0], 45, 1e-15));
    CHECK(isnan(mean[1]) && isnan(m2[1]) && !isfinite(mean[2]) && isnan(m2[2]));
}

static void merging(void)
{
    double x[6] = {1, 2, 4, 8, 16, 32}, mean, m2, whole_mean, whole_m2, other_mean, other_m2;
    int64_t count = 0, other_count;
    mean = m2 = 99; /* what stands in moments of no values does not matter */
    for (int i = 0; i < 6; i += 2) {
        CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT64, BNNUMBA_NSC, 2, 1, 1, x + i, &other_count,
                                 &other_mean, &other_m2));
        CHECK_OK(bnnumba_merge(1, &count, &mean, &m2, other_count, &other_mean, &other_m2));
        CHECK_OK(bnnumba_merge(1, &count, &mean, &m2, 0, &other_mean, &other_m2));
    }
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT64, BNNUMBA_NSC, 6, 1, 1, x, NULL, &whole_mean,
                             &whole_m2));
    CHECK(count == 6 && is_close(mean, whole_mean, 1e-15) && is_close(m2, whole_m2, 1e-15));
    CHECK_OK(bnnumba_variance(1, count, &m2, 1, &m2));
    CHECK(is_close(m2, whole_m2 / 5, 1e-15));
}

static void running_update(void)
{
    const double mean[2] = {4, -8}, m2[2] = {30, 60};
    float mean32[2] = {0, 1}, var32[2] = {1, 1};
    double mean64[2] = {0, 1};
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    p.momentum = 0.25;
    p.running_mean = mean32, p.running_var = var32;
    CHECK_OK(bnnumba_update_running(2, 11, mean, m2, &p));
    CHECK(mean32[0] == 1 && mean32[1] == -1.25f && var32[0] == 1.5f && var32[1] == 2.25f);
    CHECK_OK(bnnumba_update_running(2, 0, mean, m2, &p));
    CHECK(mean32[0] == 1 && var32[0] == 1.5f);
    /* Without a variance to update, one value is enough. */
    p.dtype = BNNUMBA_FLOAT64;
    p.running_mean = mean64, p.running_var = NULL;
    CHECK_OK(bnnumba_update_running(2, 1, mean, m2, &p));
    CHECK(mean64[0] == 1 && mean64[1] == -1.25);
}

static void folding(void)
{
    const float kernel[4] = {2, 3, 4, 5}, conv_bias[2] = {1, 2}, in[2] = {0.5f, -1};
    float mean[2] = {1, -1}, var[2] = {4, 16}, weight[2] = {3, 4}, bias[2] = {0.25f, 0.5f};
    float folded[4], folded_bias[2];
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    p.running_mean = mean, p.running_var = var, p.weight = weight, p.bias = bias, p.eps = 0;
    CHECK_OK(bnnumba_fold(BNNUMBA_FLOAT32, 2, 2, kernel, conv_bias, &p, folded, folded_bias));
    float out[2], expected[2];
    for (int c = 0; c < 2; c++) {
        float dot = kernel[2 * c] * in[0] + kernel[2 * c + 1] * in[1] + conv_bias[c];
        expected[c] = (dot - mean[c]) / sqrtf(var[c]) * weight[c] + bias[c];
        out[c] = folded[2 * c] * in[0] + folded[2 * c + 1] * in[1] + folded_bias[c];
        CHECK(is_close(out[c], expected[c], 1e-6));
    }
    /* In place, and with nothing but statistics. */
    memcpy(folded, kernel, sizeof folded);
    p.weight = p.bias = NULL;
    CHECK_OK(bnnumba_fold(BNNUMBA_FLOAT32, 2, 2, folded, NULL, &p, folded, folded_bias));
    CHECK(folded[0] == 1 && folded[3] == 1.25f && folded_bias[0] == -0.5f && folded_bias[1] == .25f);
    CHECK_ERROR(BNNUMBA_ERROR_OVERLAP, "conv_weight_out",
                bnnumba_fold(BNNUMBA_FLOAT32, 2, 1, folded, NULL, &p, folded + 1, folded_bias));
}

int main(void)
{
    hard_data();
    nan_stays_in_its_channel();
    merging();
    running_update();
    folding();
    return 0;
}
