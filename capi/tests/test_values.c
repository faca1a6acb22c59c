/* Results agree with formulas in plain C, for every dtype and layout and any number of threads. */

#include "check.h"

static const int64_t shapes[][3] = {{1, 1, 1}, {5, 3, 7},   {2, 17, 1},    {64, 2, 9},
                                    {1, 8, 1}, {3, 1, 100}, {6, 5, 4096}, {9000, 33, 1}};

static uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* Normal numbers only. */
static uint16_t to_float16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest < 0x38800000)
        return (uint16_t)sign; /* too small: 0 */
    return (uint16_t)(sign | (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13);
}

static double from_16(bnnumba_dtype dtype, uint16_t stored)
{
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    if (dtype == BNNUMBA_FLOAT16) {
        int exponent = stored >> 10 & 31, fraction = stored & 1023;
        double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        return stored & 0x8000 ? -size : size;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int64_t itemsize(bnnumba_dtype dtype)
{
    return dtype == BNNUMBA_FLOAT64 ? 8 : dtype == BNNUMBA_FLOAT32 ? 4 : 2;
}

static double get(bnnumba_dtype dtype, const void *array, int64_t i)
{
    if (dtype == BNNUMBA_FLOAT32)
        return ((const float *)array)[i];
    if (dtype == BNNUMBA_FLOAT64)
        return ((const double *)array)[i];
    return from_16(dtype, ((const uint16_t *)array)[i]);
}

static void set(bnnumba_dtype dtype, void *array, int64_t i, double value)
{
    if (dtype == BNNUMBA_FLOAT32)
        ((float *)array)[i] = (float)value;
    else if (dtype == BNNUMBA_FLOAT64)
        ((double *)array)[i] = value;
    else if (dtype == BNNUMBA_FLOAT16)
        ((uint16_t *)array)[i] = to_float16((float)value);
    else
        ((uint16_t *)array)[i] = to_bfloat16((float)value);
}

typedef struct results {
    void *y, *dx, *dx_inference;
    double *saved;
    float *dweight, *dbias, *running_mean, *running_var;
} results;

static void one(bnnumba_dtype dtype, bnnumba_layout l, int64_t n, int64_t c, int64_t s)
{
    const int64_t size = n * c * s, m = n * s;
    const double tolerance = dtype == BNNUMBA_FLOAT64   ? 1e-11
                             : dtype == BNNUMBA_FLOAT32 ? 2e-5
                             : dtype == BNNUMBA_FLOAT16 ? 4e-3
                                                        : 3e-2;
    uint64_t seed = 42;
    void *x = allocate(size * 8), *dy = allocate(size * 8);
    float *weight = allocate(c * 4), *bias = allocate(c * 4);
    for (int64_t i = 0; i < size; i++) {
        set(dtype, x, i, 3 * noise(&seed) + 5);
        set(dtype, dy, i, noise(&seed));
    }
    for (int64_t i = 0; i < c; i++)
        weight[i] = (float)noise(&seed) + 2, bias[i] = (float)noise(&seed);

    /* The same calls on 1, 2, 3 and 7 threads. */
    results r[4];
    for (int t = 0; t < 4; t++) {
        r[t].y = allocate(size * 8), r[t].dx = allocate(size * 8);
        r[t].dx_inference = allocate(size * 8), r[t].saved = allocate(3 * c * 8);
        r[t].dweight = allocate(c * 4), r[t].dbias = allocate(c * 4);
        r[t].running_mean = allocate(c * 4), r[t].running_var = allocate(c * 4);
        for (int64_t i = 0; i < c; i++)
            r[t].running_mean[i] = 1, r[t].running_var[i] = 2;
        bnnumba_params p = BNNUMBA_PARAMS_INIT;
        p.weight = weight, p.bias = bias;
        p.running_mean = r[t].running_mean, p.running_var = r[t].running_var;
        p.correction = m > 1 ? 1 : 0;
        CHECK_OK(bnnumba_set_num_threads((int[]){1, 2, 3, 7}[t]));
        CHECK_OK(bnnumba_forward_training(dtype, l, n, c, s, x, &p, r[t].y, r[t].saved));
        CHECK_OK(bnnumba_backward_training(dtype, l, n, c, s, x, dy, &p, r[t].saved, r[t].dx,
                                           r[t].dweight, r[t].dbias));
        CHECK_OK(bnnumba_backward_inference(dtype, l, n, c, s, x, dy, &p, r[t].dx_inference, NULL,
                                            NULL));
        CHECK(!memcmp(r[0].y, r[t].y, (size_t)(size * itemsize(dtype))));
        CHECK(!memcmp(r[0].dx, r[t].dx, (size_t)(size * itemsize(dtype))));
        CHECK(!memcmp(r[0].saved, r[t].saved, (size_t)(3 * c * 8)));
        CHECK(!memcmp(r[0].dweight, r[t].dweight, (size_t)(c * 4)));
        CHECK(!memcmp(r[0].running_var, r[t].running_var, (size_t)(c * 4)));
    }

    for (int64_t ch = 0; ch < c; ch++) {
        double sum = 0, squares = 0, sum_dy = 0, sum_dy_xhat = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < s; k++)
                sum += get(dtype, x, at(l, c, s, i, ch, k));
        double mean = sum / (double)m;
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < s; k++)
                squares += pow(get(dtype, x, at(l, c, s, i, ch, k)) - mean, 2);
        double invstd = 1 / sqrt(squares / (double)m + 1e-5);
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < s; k++) {
                int64_t j = at(l, c, s, i, ch, k);
                sum_dy += get(dtype, dy, j);
                sum_dy_xhat += get(dtype, dy, j) * (get(dtype, x, j) - mean) * invstd;
            }
        CHECK(is_close(r[0].saved[ch], mean, 1e-12));
        CHECK(is_close(r[0].saved[c + ch], squares, 1e-9));
        CHECK(is_close(r[0].saved[2 * c + ch], invstd, 1e-9));
        CHECK(is_close(r[0].dbias[ch], sum_dy, 1e-5));
        CHECK(is_close(r[0].dweight[ch], sum_dy_xhat, 1e-5));
        double divisor = (double)(m > 1 ? m - 1 : m);
        CHECK(is_close(r[0].running_mean[ch], 0.9 + 0.1 * mean, 1e-6));
        CHECK(is_close(r[0].running_var[ch], 1.8 + 0.1 * squares / divisor, 1e-6));
        double constant = 1 / sqrt(r[0].running_var[ch] + 1e-5) * weight[ch];
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k < s; k++) {
                int64_t j = at(l, c, s, i, ch, k);
                double xhat = (get(dtype, x, j) - mean) * invstd, g = get(dtype, dy, j);
                double dx = (g - sum_dy / (double)m - xhat * sum_dy_xhat / (double)m) * invstd *
                            weight[ch];
                CHECK(is_close(get(dtype, r[0].y, j), xhat * weight[ch] + bias[ch], tolerance));
                CHECK(fabs(get(dtype, r[0].dx, j) - dx) <= tolerance * (1 + fabs(invstd)));
                CHECK(is_close(get(dtype, r[0].dx_inference, j), g * constant, tolerance));
            }
    }
    for (int t = 0; t < 4; t++) {
        free(r[t].y), free(r[t].dx), free(r[t].dx_inference), free(r[t].saved);
        free(r[t].dweight), free(r[t].dbias), free(r[t].running_mean), free(r[t].running_var);
    }
    free(x), free(dy), free(weight), free(bias);
}

int main(void)
{
    for (int64_t i = 0; i < COUNT(shapes); i++)
        for (int dtype = BNNUMBA_FLOAT32; dtype <= BNNUMBA_BFLOAT16; dtype++)
            for (int layout = BNNUMBA_NCS; layout <= BNNUMBA_NSC; layout++)
                one((bnnumba_dtype)dtype, (bnnumba_layout)layout, shapes[i][0], shapes[i][1],
                    shapes[i][2]);
    return 0;
}
