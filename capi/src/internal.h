/*
 * What the files of the shim share. A public function checks its arguments (check.c), sees its data
 * as a canonical view (api.c, tensor.c), and runs steps on it (steps.c); a step deals the items of
 * a kernel out to threads (threads.c). The kernels are Numba's (dispatch.c, embed.c).
 */

#ifndef BNNUMBA_INTERNAL_H
#define BNNUMBA_INTERNAL_H

#include "bnnumba.h"
#include "kernels.h"

/* --- errors ---------------------------------------------------------------------------------- */

/* Keep the text for bnnumba_last_error() and return the status. */
bnnumba_status bn_fail(bnnumba_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Return from the calling function if a call fails. */
#define TRY(call)                          \
    do {                                   \
        bnnumba_status status_ = (call);   \
        if (status_ != BNNUMBA_OK)         \
            return status_;                \
    } while (0)

/* --- kernels --------------------------------------------------------------------------------- */

#define AS_ENUM(name) KERNEL_##name,
typedef enum kernel_id { KERNELS(AS_ENUM) KERNEL_COUNT } kernel_id;
#undef AS_ENUM

/* The steps that read data, in the order in which kernels.h lists them for each dtype and view. */
typedef enum step { FORWARD, COLLECT, NORMALIZE, BACKWARD, REDUCE, INPUT, STEPS } step;

#define ADDRESS(pointer) ((int64_t)(intptr_t)(pointer))

/* Make sure that `id` can be called and return it, or fail. */
bnnumba_status bn_kernel(kernel_id id, kernel **kernel_out);

/*
 * Leave a call whose data is on a GPU to Python, once its arguments are checked. `params` are then
 * those that the function reads. libbnnumba lets no such data in.
 */
#ifdef BNNUMBA_EMBED
#include "python.h"
/* Between these Python is at work, for which a fork waits. */
bnnumba_status bn_enter_python(void);
bnnumba_status bn_leave_python(bnnumba_status status);
#define ON_DEVICE(x, call)                 \
    do {                                   \
        if ((x)->on_device) {              \
            TRY(bn_enter_python());        \
            return bn_leave_python(call);  \
        }                                  \
    } while (0)
#else
#define ON_DEVICE(x, call) \
    do {                   \
    } while (0)
#endif

/* --- views ----------------------------------------------------------------------------------- */

/* How all data of a call is seen: x[n, c, s], or x[n, c * s] if rc, with contiguous last axes. */
typedef struct batch {
    bnnumba_dtype dtype;
    int rc;
    int64_t itemsize;
    int64_t n, c, s;
} batch;

/*
 * The data of one argument, seen so (maybe a copy). The caller's own stands at `origin`, with its
 * own shape and strides, `rank` of each, and is somewhere in [begin, end).
 */
typedef struct data {
    const char *name;
    char *address;
    int64_t n_stride, c_stride; /* in bytes */
    const char *origin, *begin, *end;
    const int64_t *shape, *strides;
    int rank;
    int written;
    /* What stands on a GPU, as the caller described it, and where its channels are; else NULL. */
    const DLTensor *on_device;
    int axis;
} data;

/* An argument that is no data, or data: bytes that the outputs of a call must not overlap. */
typedef struct span {
    const char *name;
    const char *begin, *end;
    int written;
    const data *same; /* what may be exactly the same memory */
} span;

enum { MAX_SPANS = 16 };
typedef struct spans {
    int count;
    span of[MAX_SPANS];
} spans;

/* --- check.c --------------------------------------------------------------------------------- */

int64_t bn_itemsize(bnnumba_dtype dtype); /* 0 if it is none */
bnnumba_status bn_check_dtype(const char *name, bnnumba_dtype dtype);
bnnumba_status bn_check_statistics(const char *name, bnnumba_dtype dtype);
bnnumba_status bn_check_extents(const batch *b);
/* Check a pointer to `count` elements: not NULL unless optional or count is 0, aligned. */
bnnumba_status bn_check_pointer(const char *name, const void *pointer, int64_t count,
                                int64_t itemsize, int optional);
bnnumba_status bn_check_count(const char *name, int64_t count);
bnnumba_status bn_check_finite(const char *name, double value);
bnnumba_status bn_check_correction(const char *name, int64_t count, double correction);

/* Which members of bnnumba_params a function reads; NEEDED: RUNNING is not optional. */
enum { WEIGHT = 1, BIAS = 2, RUNNING = 4, UPDATE = 8, EPS = 16, NEEDED = 32, REST = 64 };
/* Copy the members in `reads` to `out`, defaults for the rest, after checking them. */
bnnumba_status bn_check_params(const bnnumba_params *params, int reads, int64_t c,
                               bnnumba_params *out);

void bn_add_span(spans *all, const char *name, const void *begin, int64_t bytes, int written);
void bn_add_data(spans *all, const data *one);
void bn_add_params(spans *all, const bnnumba_params *params, int64_t c, int updated);
bnnumba_status bn_check_overlap(const spans *all);

/* --- memory ---------------------------------------------------------------------------------- */

enum { CACHE_LINE = 64, SMALL_WORKSPACE = 480 };

/* A workspace of doubles from one allocation, handed out from front to back. */
typedef struct workspace {
    void *allocated; /* NULL where `small` is enough */
    double *memory;
    int64_t used;
    /* Two allocations took a quarter of the time of a call on 8 values. Where coefficients begin on a
       cache line matters: with two lines to each vector, 12 MB of 64 channels took 1.7 times as long. */
    double small[SMALL_WORKSPACE] __attribute__((aligned(CACHE_LINE)));
} workspace;

bnnumba_status bn_reserve(workspace *w, int64_t doubles);
double *bn_take(workspace *w, int64_t doubles);
void bn_release(workspace *w);
/* Take c doubles and fill them from an array of FLOAT32 or FLOAT64; NULL gives NULL. */
double *bn_widen(workspace *w, bnnumba_dtype dtype, const void *from, int64_t c);
/* Write c doubles to an array of FLOAT32 or FLOAT64; NULL is ignored. */
void bn_narrow(bnnumba_dtype dtype, const double *from, int64_t c, void *to);

/* --- caches.c -------------------------------------------------------------------------------- */

/* What the steps go by, in bytes; see bnnumba/cpu/caches.py. */
typedef struct caches {
    int64_t block, spill, shared, swept, ahead;
} caches;

const caches *bn_caches(void);

/* --- threads.c ------------------------------------------------------------------------------- */

/* Return how many threads to use, and keep others from using several until bn_leave(). */
int bn_enter(int64_t size);
void bn_leave(int threads);
/* Call the kernel for each item; a thread t works in work + t * stride. */
void bn_run(kernel *run, job *j, int64_t items, int threads, double *work, int64_t stride);
/* Lock all handles: also held while a process forks. */
void bn_lock(void);
void bn_unlock(void);

/* --- steps.c: the CPU backend, as bnnumba/cpu/__init__.py ------------------------------------ */

/* weight, bias and rest are c doubles or NULL; stats are the rows mean, m2, invstd, and where they
 * are written the rest of the mean. */
bnnumba_status bn_forward(const batch *b, const data *x, const double *weight, const double *bias,
                          double eps, double *stats, const data *y);
bnnumba_status bn_collect(const batch *b, const data *x, double eps, double *stats);
bnnumba_status bn_normalize(const batch *b, const data *x, const double *weight, const double *bias,
                            const double *mean, const double *rest, const double *invstd,
                            const data *y);
bnnumba_status bn_backward(const batch *b, const data *x, const data *dy, const double *weight,
                           const double *stats, const double *rest, const data *dx, double *dweight,
                           double *dbias);
bnnumba_status bn_reduce(const batch *b, const data *x, const data *dy, const double *mean,
                         const double *rest, const double *invstd, double *dweight, double *dbias);
/* Steps on c doubles; arguments as in the job. */
bnnumba_status bn_shared(kernel_id id, job *j);

/* --- core.c: the public functions, on views -------------------------------------------------- */

bnnumba_status bn_moments_of(const batch *b, const data *x, int64_t *count_out, double *mean_out,
                             double *m2_out, double *rest_out);
bnnumba_status bn_merge(int64_t c, int64_t *count, double *mean, double *m2, double *rest,
                        int64_t other_count, const double *other_mean, const double *other_m2,
                        const double *other_rest);
bnnumba_status bn_forward_training_of(const batch *b, const data *x, const bnnumba_params *params,
                                      const data *y, double *saved_out);
bnnumba_status bn_forward_inference_of(const batch *b, const data *x, const bnnumba_params *params,
                                       const data *y);
bnnumba_status bn_backward_training_of(const batch *b, const data *x, const data *dy,
                                       const bnnumba_params *params, const double *saved,
                                       const data *dx, void *dweight_out, void *dbias_out);
bnnumba_status bn_backward_inference_of(const batch *b, const data *x, const data *dy,
                                        const bnnumba_params *params, const data *dx,
                                        void *dweight_out, void *dbias_out);
/* `channels` is the argument that says how many there are. */
bnnumba_status bn_running_update_of(bnnumba_running *handle, const char *channels, const batch *b,
                                    const data *x);

#endif
