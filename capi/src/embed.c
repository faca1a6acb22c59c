/* libbnnumba_embed: kernels that Python compiles for this very CPU, fetched once each. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "internal.h"
#include "interpreter.h"
#include "python.h"

static const char *const names[] = {
#define NAME(name) #name,
    KERNELS(NAME)
#undef NAME
};

static kernel *table[KERNEL_COUNT];
static char cpu[64] = "none";
static int started;
/* Held by the thread that has Python at work: it starts, compiles, or serves a GPU. */
static pthread_mutex_t python = PTHREAD_MUTEX_INITIALIZER;
/* Whether this thread holds it for a fork. */
static __thread int held;
/* This is a child that was forked while another thread started Python. */
static int broken;
/* What Python said when it failed; "" if it did not get that far. */
static __thread char said[400];

void bn_python_failed(bnnumba_status status, const char *text)
{
    snprintf(said, sizeof said, "%s", text);
    bn_fail(status, "%s", text);
}

static const char *environment(void)
{
    const char *named = getenv("BNNUMBA_PYTHON_ENV");
    return named && *named ? named : BUILT_IN;
}

/*
 * A fork waits for the thread that has Python at work, whose locks nobody would release in the child.
 * But who has the interpreter's lock would wait for good: the other one may need it. In a process
 * that is Python itself os.fork waits for the compiler anyway (bnnumba/compiling.py).
 */
static void before_fork(void)
{
    if (bn_interpreter_held())
        held = pthread_mutex_trylock(&python) == 0;
    else
        held = pthread_mutex_lock(&python) == 0;
}

static void after_fork_in_parent(void)
{
    if (held)
        pthread_mutex_unlock(&python);
}

static void after_fork_in_child(void)
{
    broken |= !held && !started;
    python = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

__attribute__((constructor)) static void prepare_for_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static bnnumba_status start(void)
{
    char path[4096];
    struct stat found;
    snprintf(path, sizeof path, "%s/%s", environment(), SITE_PACKAGES);
    if (stat(path, &found) || !S_ISDIR(found.st_mode))
        return bn_fail(BNNUMBA_ERROR_PYTHON,
                       "there is no Python environment at %s; name the virtual environment that "
                       "has bnnumba in BNNUMBA_PYTHON_ENV",
                       path);
    snprintf(path, sizeof path, "%s/bin/python", environment());
    const char *why = bn_interpreter_start(path);
    if (why)
        return bn_fail(BNNUMBA_ERROR_PYTHON, "%s does not start: %s", path, why);
    said[0] = 0;
    if (bn_python_start(PACKAGE_VERSION, AGREEMENT, cpu, sizeof cpu))
        return BNNUMBA_OK;
    return bn_fail(BNNUMBA_ERROR_PYTHON, "bnnumba does not start in the Python environment %s: %s",
                   environment(), said[0] ? said : "see the traceback on stderr (does it have cffi? bnnumba[capi])");
}

bnnumba_status bnnumba_init(void)
{
    if (__atomic_load_n(&started, __ATOMIC_ACQUIRE))
        return BNNUMBA_OK;
    if (broken)
        return bn_fail(BNNUMBA_ERROR_PYTHON,
                       "this process was forked while another thread started Python; call "
                       "bnnumba_init() before a fork");
    pthread_mutex_lock(&python);
    bnnumba_status status = started ? BNNUMBA_OK : start();
    if (status == BNNUMBA_OK)
        __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&python);
    return status;
}

bnnumba_status bn_enter_python(void)
{
    TRY(bnnumba_init());
    pthread_mutex_lock(&python);
    return BNNUMBA_OK;
}

bnnumba_status bn_leave_python(bnnumba_status status)
{
    pthread_mutex_unlock(&python);
    return status;
}

const char *bnnumba_isa(void)
{
    return __atomic_load_n(&started, __ATOMIC_ACQUIRE) ? cpu : "none";
}

bnnumba_status bn_kernel(kernel_id id, kernel **kernel_out)
{
    kernel *found = __atomic_load_n(&table[id], __ATOMIC_ACQUIRE);
    if (!found) {
        TRY(bn_enter_python());
        intptr_t address = bn_python_kernel(names[id]);
        bn_leave_python(BNNUMBA_OK);
        if (!address)
            return BNNUMBA_ERROR_PYTHON;
        memcpy(&found, &address, sizeof found);
        __atomic_store_n(&table[id], found, __ATOMIC_RELEASE);
    }
    *kernel_out = found;
    return BNNUMBA_OK;
}
