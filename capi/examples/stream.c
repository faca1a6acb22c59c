/*
 * Normalize a file that does not fit in memory: one pass to learn the mean and the variance of each
 * column, one to write the normalized file.
 *
 *     stream COLUMNS INPUT OUTPUT     (both files are rows of COLUMNS native floats)
 */

#include <bnnumba.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 8192 }; /* at a time */

static void check(bnnumba_status status)
{
    if (status != BNNUMBA_OK) {
        fprintf(stderr, "stream: %s\n", bnnumba_last_error());
        exit(1);
    }
}

static FILE *open_file(const char *path, const char *mode)
{
    FILE *file = fopen(path, mode);
    if (!file) {
        perror(path);
        exit(1);
    }
    return file;
}

int main(int argc, char **argv)
{
    int64_t columns = argc == 4 ? atoll(argv[1]) : 0;
    if (columns < 1) {
        fprintf(stderr, "usage: %s COLUMNS INPUT OUTPUT\n", argv[0]);
        return 2;
    }
    const size_t row = (size_t)columns * sizeof(float);
    float *rows = malloc(ROWS * row);
    double *mean = malloc((size_t)columns * sizeof(double));
    double *var = malloc((size_t)columns * sizeof(double));
    if (!rows || !mean || !var)
        return 1;
    FILE *in = open_file(argv[2], "rb"), *out = open_file(argv[3], "wb");

    bnnumba_running *moments;
    check(bnnumba_running_create(columns, &moments));
    for (size_t got; (got = fread(rows, row, ROWS, in)) > 0;)
        check(bnnumba_running_update(moments, BNNUMBA_FLOAT32, BNNUMBA_NSC, (int64_t)got, columns,
                                     1, rows));
    int64_t count;
    check(bnnumba_running_read(moments, NULL, &count, mean, var));
    check(bnnumba_running_destroy(moments));
    check(bnnumba_variance(columns, count, var, 0, var)); /* m2 becomes the variance */

    bnnumba_params params = BNNUMBA_PARAMS_INIT;
    params.dtype = BNNUMBA_FLOAT64;
    params.running_mean = mean;
    params.running_var = var;
    rewind(in);
    for (size_t got; (got = fread(rows, row, ROWS, in)) > 0;) {
        check(bnnumba_forward_inference(BNNUMBA_FLOAT32, BNNUMBA_NSC, (int64_t)got, columns, 1,
                                        rows, &params, rows));
        if (fwrite(rows, row, got, out) != got) {
            perror(argv[3]);
            return 1;
        }
    }
    printf("%lld rows, column 0: mean %g, variance %g\n", (long long)count, mean[0], var[0]);
    free(rows), free(mean), free(var);
    fclose(in);
    return fclose(out) ? 1 : 0;
}
