/* Handles: merging and reading, and every misuse of one is an error. */

#include "check.h"

enum { C = 5, ROWS = 300 };

static float x[ROWS * C];
static double mean[C], m2[C], expected_mean[C], expected_m2[C];
static int64_t count, channels;

static void stale(void)
{
    bnnumba_running *first, *second;
    size_t size;
    CHECK_OK(bnnumba_running_create(C, &first));
    CHECK_OK(bnnumba_running_destroy(first));
    CHECK_OK(bnnumba_running_create(C, &second)); /* may take the place of the first */
    bnnumba_running *wrong[] = {first, NULL, (bnnumba_running *)x, (bnnumba_running *)UINTPTR_MAX};
    for (int i = 0; i < COUNT(wrong); i++) {
        bnnumba_running *bad = wrong[i];
        CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle",
                    bnnumba_running_update(bad, BNNUMBA_FLOAT32, BNNUMBA_NSC, ROWS, C, 1, x));
        CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle", bnnumba_running_add(bad, C, 1, mean, m2));
        CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle", bnnumba_running_merge(bad, second));
        CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "other", bnnumba_running_merge(second, bad));
        CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle",
                    bnnumba_running_read(bad, NULL, &count, mean, m2));
        CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle", bnnumba_running_save(bad, NULL, 0, &size));
        if (bad)
            CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle", bnnumba_running_destroy(bad));
    }
    CHECK_OK(bnnumba_running_destroy(second));
}

/* Errors name the arguments that the function has. */
static void named(void)
{
    bnnumba_running *two;
    CHECK_OK(bnnumba_running_create(2, &two));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "mean: ", bnnumba_running_add(two, 2, 1, NULL, m2));
    CHECK(!strncmp(bnnumba_last_error(), "mean: ", 6));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "m2: ", bnnumba_running_add(two, 2, 1, mean, NULL));
    CHECK(!strncmp(bnnumba_last_error(), "m2: ", 4));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "c: ", bnnumba_running_add(two, C, 1, mean, m2));
    CHECK(!strncmp(bnnumba_last_error(), "c: ", 3));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "c: ", bnnumba_running_add(two, -1, 1, mean, m2));
    CHECK_OK(bnnumba_running_destroy(two));
}

/* Handles that are made and destroyed in any order stay apart, and their places are used again. */
static void many(void)
{
    enum { MANY = 1000, STEP = 389, ROUNDS = 5 }; /* the step leads to all of them, in odd order */
    bnnumba_running *handles[MANY];
    for (int64_t i = 0; i < MANY; i++)
        CHECK_OK(bnnumba_running_create(i, &handles[i]));
    for (int round = 0; round < ROUNDS; round++) {
        for (int64_t k = 0; k < MANY / 2; k++) {
            int64_t i = (round + k * STEP) % MANY;
            CHECK_OK(bnnumba_running_destroy(handles[i]));
            if (k % 3) { /* some at once, the others with many free places around */
                CHECK_OK(bnnumba_running_create(i, &handles[i]));
                continue;
            }
            CHECK_ERROR(BNNUMBA_ERROR_HANDLE, "handle", bnnumba_running_destroy(handles[i]));
            handles[i] = NULL;
        }
        for (int64_t i = MANY - 1; i >= 0; i--)
            if (!handles[i])
                CHECK_OK(bnnumba_running_create(i, &handles[i]));
        for (int64_t i = 0; i < MANY; i++) {
            CHECK_OK(bnnumba_running_read(handles[i], &channels, &count, NULL, NULL));
            CHECK(channels == i && count == 0);
            CHECK(((uintptr_t)handles[i] & 0xffffff) < MANY); /* its place: the lower 24 bits */
        }
    }
    for (int i = 0; i < MANY; i++)
        CHECK_OK(bnnumba_running_destroy(handles[i]));
}

/* A stream far from zero keeps its variance: timestamps in steps of a millisecond, also when saved. */
static void far_from_zero(void)
{
    enum { ROWS = 4000, PIECE = 20 };
    static double x[ROWS];
    unsigned char state[64];
    double mean, m2, once_mean, once_m2;
    size_t size;
    bnnumba_running *stream, *piece, *loaded;
    for (int i = 0; i < ROWS; i++)
        x[i] = 1.7e9 + i * 1e-3;
    CHECK_OK(bnnumba_running_create(1, &stream));
    for (int i = 0; i < ROWS; i += PIECE) {
        CHECK_OK(bnnumba_running_create(1, &piece));
        CHECK_OK(bnnumba_running_update(piece, BNNUMBA_FLOAT64, BNNUMBA_NSC, PIECE, 1, 1, x + i));
        CHECK_OK(bnnumba_running_merge(stream, piece));
        CHECK_OK(bnnumba_running_destroy(piece));
        CHECK_OK(bnnumba_running_save(stream, state, sizeof state, &size));
        CHECK_OK(bnnumba_running_load(state, size, &loaded));
        CHECK_OK(bnnumba_running_destroy(stream));
        stream = loaded;
    }
    CHECK_OK(bnnumba_running_read(stream, NULL, NULL, &mean, &m2));
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT64, BNNUMBA_NSC, ROWS, 1, 1, x, NULL, &once_mean, &once_m2));
    CHECK(mean == once_mean);
    CHECK(fabs(m2 - once_m2) < 1e-13 * once_m2);
    CHECK_OK(bnnumba_running_destroy(stream));
}

int main(void)
{
    far_from_zero();
    bnnumba_running *a, *b;
    fill(x, COUNT(x), 3);
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NSC, ROWS, C, 1, x, &count, expected_mean,
                             expected_m2));
    CHECK_OK(bnnumba_running_create(C, &a));
    CHECK_OK(bnnumba_running_create(C, &b));
    CHECK_OK(bnnumba_running_update(a, BNNUMBA_FLOAT32, BNNUMBA_NSC, 100, C, 1, x));
    CHECK_OK(bnnumba_running_update(b, BNNUMBA_FLOAT32, BNNUMBA_NSC, 7, C, 1, x + 100 * C));
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NSC, 193, C, 1, x + 107 * C, &count, mean, m2));
    CHECK_OK(bnnumba_running_add(b, C, count, mean, m2));
    CHECK_OK(bnnumba_running_merge(a, b));
    CHECK_OK(bnnumba_running_read(a, &channels, &count, mean, m2));
    CHECK(channels == C && count == ROWS);
    for (int i = 0; i < C; i++) {
        CHECK(is_close(mean[i], expected_mean[i], 1e-14));
        CHECK(is_close(m2[i], expected_m2[i], 1e-14));
    }

    /* Merging a handle with itself doubles it. */
    CHECK_OK(bnnumba_running_merge(a, a));
    CHECK_OK(bnnumba_running_read(a, NULL, &count, mean, m2));
    CHECK(count == 2 * ROWS && is_close(mean[0], expected_mean[0], 1e-14));
    CHECK(is_close(m2[0], 2 * expected_m2[0], 1e-13));

    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "expected 5 channels, got 4",
                bnnumba_running_update(a, BNNUMBA_FLOAT32, BNNUMBA_NSC, 10, 4, 1, x));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "channels", bnnumba_running_add(a, 4, 1, mean, m2));
    CHECK_ERROR(BNNUMBA_ERROR_ARGUMENT, "count: ", bnnumba_running_add(a, C, -3, mean, m2));
    CHECK_OK(bnnumba_running_destroy(a));
    CHECK_OK(bnnumba_running_destroy(b));
    named();
    stale();
    many();
    return 0;
}
