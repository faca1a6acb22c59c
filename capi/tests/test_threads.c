/* Many threads at once, from the first call on; a handle shared by them; one with a small stack. */

#include <limits.h>
#include <pthread.h>

#include "check.h"

enum { THREADS = 16, C = 7, ROWS = 20000 };

static float *x;
static double expected[2 * C];
static bnnumba_running *shared;
static pthread_barrier_t together;

static void *work(void *argument)
{
    int me = (int)(intptr_t)argument;
    double moments[2 * C];
    int64_t count;
    char text[32];
    pthread_barrier_wait(&together);
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NSC, ROWS, C, 1, x, &count, moments,
                             moments + C));
    if (!me)
        memcpy(expected, moments, sizeof expected);

    /* The text of an error belongs to its thread. */
    CHECK(bnnumba_variance(-me - 1, 1, NULL, 0, NULL) == BNNUMBA_ERROR_ARGUMENT);
    snprintf(text, sizeof text, "got %d", -me - 1);
    pthread_barrier_wait(&together);
    CHECK(strstr(bnnumba_last_error(), text));
    CHECK(!memcmp(expected, moments, sizeof expected));

    for (int i = 0; i < 20; i++) {
        CHECK_OK(bnnumba_running_update(shared, BNNUMBA_FLOAT32, BNNUMBA_NSC, 100, C, 1, x));
        CHECK_OK(bnnumba_running_read(shared, NULL, &count, moments, NULL));
        CHECK(count % 100 == 0);
        bnnumba_running *own;
        CHECK_OK(bnnumba_running_create(C, &own));
        CHECK_OK(bnnumba_running_merge(own, shared));
        CHECK_OK(bnnumba_running_destroy(own));
    }
    return NULL;
}

static void *large_call(void *moments_out)
{
    double *moments = moments_out;
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NSC, ROWS, C, 1, x, NULL, moments,
                             moments + C));
    return NULL;
}

/* The kernels have been called before: those of libbnnumba_embed are compiled on a larger stack. */
static void small_stack(void)
{
    enum { SMALL = 64 * 1024 };
    pthread_attr_t attributes;
    pthread_t thread;
    double moments[2 * C] = {0};
    CHECK(!pthread_attr_init(&attributes));
    CHECK(!pthread_attr_setstacksize(&attributes,
                                     SMALL < PTHREAD_STACK_MIN ? PTHREAD_STACK_MIN : SMALL));
    CHECK_OK(bnnumba_set_num_threads(2));
    CHECK(!pthread_create(&thread, &attributes, large_call, moments));
    CHECK(!pthread_join(thread, NULL));
    CHECK(!memcmp(moments, expected, sizeof moments));
    CHECK_OK(bnnumba_set_num_threads(0));
    pthread_attr_destroy(&attributes);
}

int main(void)
{
    pthread_t threads[THREADS];
    int64_t count;
    double mean[C], once[C], m2[C];
    x = allocate(ROWS * C * 4);
    fill(x, ROWS * C, 9);
    CHECK_OK(bnnumba_running_create(C, &shared));
    pthread_barrier_init(&together, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i));
    for (int i = 0; i < THREADS; i++)
        CHECK(!pthread_join(threads[i], NULL));
    CHECK_OK(bnnumba_running_read(shared, NULL, &count, mean, m2));
    CHECK(count == THREADS * 20 * 100);
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NSC, 100, C, 1, x, NULL, once, m2));
    for (int i = 0; i < C; i++)
        CHECK(is_close(mean[i], once[i], 1e-13));

    CHECK(bnnumba_get_num_threads() >= 1);
    CHECK_OK(bnnumba_set_num_threads(3));
    CHECK(bnnumba_get_num_threads() == 3);
    CHECK_OK(bnnumba_set_num_threads(INT32_MAX)); /* no limit, as some put it */
    CHECK(bnnumba_get_num_threads() <= 1024);
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NSC, ROWS, C, 1, x, NULL, once, m2));
    CHECK(!memcmp(once, expected, sizeof once));
    CHECK_OK(bnnumba_set_num_threads(0));
    small_stack();
    CHECK_OK(bnnumba_running_destroy(shared));
    free(x);
    return 0;
}
