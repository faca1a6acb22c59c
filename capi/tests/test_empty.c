/* Data without values, or without channels, gives empty results and moves nothing. */

#include "check.h"

static void one(int64_t n, int64_t c, int64_t s)
{
    float weight[4] = {1, 2, 3, 4}, mean32[4] = {5, 5, 5, 5}, var32[4] = {6, 6, 6, 6};
    float dweight[4] = {9, 9, 9, 9}, dbias[4] = {9, 9, 9, 9};
    double mean[4] = {9, 9, 9, 9}, m2[4] = {9, 9, 9, 9}, saved[12];
    int64_t count = -1;
    bnnumba_running *handle;
    bnnumba_params p = BNNUMBA_PARAMS_INIT;
    p.weight = weight, p.running_mean = mean32, p.running_var = var32;
    for (int i = 0; i < 12; i++)
        saved[i] = 9;
    for (int layout = BNNUMBA_NCS; layout <= BNNUMBA_NSC; layout++) {
        const bnnumba_dtype f32 = BNNUMBA_FLOAT32;
        const bnnumba_layout l = (bnnumba_layout)layout;
        CHECK_OK(bnnumba_moments(f32, l, n, c, s, NULL, &count, mean, m2));
        CHECK(count == n * s);
        CHECK_OK(bnnumba_forward_training(f32, l, n, c, s, NULL, &p, NULL, saved));
        CHECK_OK(bnnumba_forward_inference(f32, l, n, c, s, NULL, &p, NULL));
        CHECK_OK(bnnumba_backward_training(f32, l, n, c, s, NULL, NULL, &p, saved, NULL, dweight,
                                           dbias));
        CHECK_OK(bnnumba_backward_inference(f32, l, n, c, s, NULL, NULL, &p, NULL, dweight, dbias));
    }
    for (int64_t i = 0; i < 4; i++) {
        double expected = i < c ? 0 : 9;
        CHECK(mean[i] == expected && m2[i] == expected);
        CHECK(dweight[i] == (float)expected && dbias[i] == (float)expected);
        CHECK(mean32[i] == 5 && var32[i] == 6);
    }
    for (int64_t i = 0; i < 12; i++)
        CHECK(saved[i] == (i < 3 * c ? 0 : 9));

    CHECK_OK(bnnumba_running_create(c, &handle));
    CHECK_OK(bnnumba_running_update(handle, BNNUMBA_FLOAT32, BNNUMBA_NCS, n, c, s, NULL));
    CHECK_OK(bnnumba_running_read(handle, NULL, &count, mean, m2));
    CHECK(count == (c ? 0 : n * s));
    CHECK_OK(bnnumba_running_destroy(handle));
}

int main(void)
{
    one(0, 3, 5);
    one(2, 3, 0);
    one(0, 3, 0);
    one(0, 0, 0);
    one(2, 0, 5);
    CHECK_OK(bnnumba_merge(0, &(int64_t){3}, NULL, NULL, 4, NULL, NULL));
    CHECK_OK(bnnumba_variance(0, 3, NULL, 0, NULL));
    return 0;
}
