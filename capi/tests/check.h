/* What the conformance programs share: checks that name the line, and a reference in plain C. */

#ifndef CHECK_H
#define CHECK_H

#include <bnnumba.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s:%d: failed: %s (last error: %s)\n", __FILE__, __LINE__,         \
                    #condition, bnnumba_last_error());                                          \
            exit(1);                                                                            \
        }                                                                                       \
    } while (0)

#define CHECK_OK(call) CHECK((call) == BNNUMBA_OK)

/* The call returns this status, and bnnumba_last_error() holds this text. */
#define CHECK_ERROR(status, text, call)                                                         \
    do {                                                                                        \
        CHECK((call) == (status));                                                              \
        CHECK(strstr(bnnumba_last_error(), text));                                              \
    } while (0)

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof *(array)))

/* The same pseudo-random numbers on every machine, between -1 and 1. */
static inline double noise(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(int32_t)(*state >> 32) / 2147483648.0;
}

static inline void fill(float *to, int64_t count, uint64_t seed)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = (float)noise(&seed);
}

static inline void *allocate(int64_t bytes)
{
    void *memory = malloc((size_t)(bytes ? bytes : 1));
    CHECK(memory);
    return memory;
}

static inline int is_close(double a, double b, double tolerance)
{
    return fabs(a - b) <= tolerance * (1 + fabs(b));
}

/* Where element (i, c, k) of x[n][c][s] or x[n][s][c] is. */
static inline int64_t at(bnnumba_layout layout, int64_t channels, int64_t s, int64_t i, int64_t c,
                         int64_t k)
{
    return layout == BNNUMBA_NCS ? (i * channels + c) * s + k : (i * s + k) * channels + c;
}

#endif
