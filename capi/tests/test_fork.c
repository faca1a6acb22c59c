/* A forked child computes, whatever the parent was doing, and gets the same bits. */

#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { C = 64, S = 5000 };

static float *x;
static double expected[2 * C], found[2 * C];
static bnnumba_running *handle;
static int done;

static void moments(double *out)
{
    CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, C, S, x, NULL, out, out + C));
}

/* Keep threads and the lock of the handles busy while the main thread forks. */
static void *busy(void *unused)
{
    double mine[2 * C];
    while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
        moments(mine);
        CHECK_OK(bnnumba_running_update(handle, BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, C, 10, x));
    }
    return unused;
}

static void *first_call(void *unused)
{
    moments(expected);
    return unused;
}

/* Run a child that is forked now; its exit status tells whether all went well. */
static void run_child(int (*child)(void))
{
    int status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
        alarm(60); /* a hang is a failure */
        _exit(child());
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int child_of_first_call(void)
{
    moments(found);
    return 0;
}

static int child(void)
{
    int64_t count;
    CHECK(bnnumba_get_num_threads() == 1);
    moments(found);
    CHECK(!memcmp(found, expected, sizeof found));
    CHECK_OK(bnnumba_running_update(handle, BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, C, 10, x));
    CHECK_OK(bnnumba_running_read(handle, NULL, &count, NULL, NULL));
    CHECK(count > 0 && count % 10 == 0);
    return 0;
}

int main(void)
{
    pthread_t thread;
    x = allocate(C * S * 4);
    fill(x, C * S, 11);
    CHECK_OK(bnnumba_set_num_threads(4));
    CHECK(!pthread_create(&thread, NULL, first_call, NULL));
    for (int i = 0; i < 5; i++) {
        const struct timespec pause = {.tv_nsec = i ? 50000000 : 0};
        nanosleep(&pause, NULL);
        run_child(child_of_first_call);
    }
    CHECK(!pthread_join(thread, NULL));
    CHECK_OK(bnnumba_running_create(C, &handle));
    CHECK(!pthread_create(&thread, NULL, busy, NULL));
    for (int i = 0; i < 20; i++) {
        run_child(child);
        moments(found);
        CHECK(!memcmp(found, expected, sizeof found));
    }
    __atomic_store_n(&done, 1, __ATOMIC_RELEASE);
    CHECK(!pthread_join(thread, NULL));
    CHECK(bnnumba_get_num_threads() == 4);
    CHECK_OK(bnnumba_running_destroy(handle));
    free(x);
    return 0;
}
