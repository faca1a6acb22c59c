/*
 * Train one batch-norm layer to shift and scale its channels as a target does, by gradient descent,
 * after checking its gradients against finite differences.
 */

#include <bnnumba.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 16, C = 3, S = 25, SIZE = N * C * S };
#define SHAPE BNNUMBA_FLOAT64, BNNUMBA_NCS, N, C, S

static double x[SIZE], y[SIZE], dy[SIZE], dx[SIZE], target[SIZE], saved[3 * C];
static double weight[C] = {1, 1, 1}, bias[C], dweight[C], dbias[C], running_mean[C], running_var[C];

static void check(bnnumba_status status)
{
    if (status != BNNUMBA_OK) {
        fprintf(stderr, "train: %s\n", bnnumba_last_error());
        exit(1);
    }
}

static double uniform(void)
{
    return 2.0 * rand() / RAND_MAX - 1;
}

/* The mean squared distance of y from the target, and its gradient in dy. */
static double forward(const bnnumba_params *params)
{
    double loss = 0;
    check(bnnumba_forward_training(SHAPE, x, params, y, saved));
    for (int i = 0; i < SIZE; i++) {
        dy[i] = 2 * (y[i] - target[i]) / SIZE;
        loss += (y[i] - target[i]) * (y[i] - target[i]) / SIZE;
    }
    return loss;
}

/* The largest difference between gradients and central differences, over some numbers. */
static double compare(const bnnumba_params *params, double *values, const double *gradient,
                      int count)
{
    const double step = 1e-5;
    double worst = 0;
    for (int i = 0; i < count; i++) {
        double kept = values[i], up, down;
        values[i] = kept + step, up = forward(params);
        values[i] = kept - step, down = forward(params);
        values[i] = kept;
        worst = fmax(worst, fabs((up - down) / (2 * step) - gradient[i]));
    }
    return worst;
}

int main(void)
{
    for (int i = 0; i < SIZE; i++)
        x[i] = 5 + 3 * uniform();
    for (int c = 0; c < C; c++)
        running_var[c] = 1;
    bnnumba_params params = BNNUMBA_PARAMS_INIT;
    params.dtype = BNNUMBA_FLOAT64;
    params.weight = weight;
    params.bias = bias;

    /* The target is what other parameters make of the same data. */
    double wanted_weight[C] = {0.5, 2, -1}, wanted_bias[C] = {1, 0, -3};
    bnnumba_params wanted = params;
    wanted.weight = wanted_weight, wanted.bias = wanted_bias;
    check(bnnumba_forward_training(SHAPE, x, &wanted, target, NULL));

    forward(&params);
    check(bnnumba_backward_training(SHAPE, x, dy, &params, saved, dx, dweight, dbias));
    double worst = fmax(compare(&params, x, dx, 40), fmax(compare(&params, weight, dweight, C),
                                                          compare(&params, bias, dbias, C)));
    printf("gradients differ from finite differences by %.1e at most\n", worst);
    if (worst > 1e-8)
        return 1;

    params.running_mean = running_mean, params.running_var = running_var;
    double loss = 0;
    for (int step = 0; step <= 100; step++) {
        loss = forward(&params);
        check(bnnumba_backward_training(SHAPE, x, dy, &params, saved, NULL, dweight, dbias));
        for (int c = 0; c < C; c++)
            weight[c] -= dweight[c], bias[c] -= dbias[c];
        if (step % 25 == 0)
            printf("step %3d: loss %.6f\n", step, loss);
    }
    printf("weight %.4f %.4f %.4f, running mean %.4f\n", weight[0], weight[1], weight[2],
           running_mean[0]);
    return loss < 1e-6 && fabs(weight[2] + 1) < 1e-3 ? 0 : 1;
}
