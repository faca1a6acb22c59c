/*
 * bnnumba.h - batch normalization and streaming mean/variance
 *
 * Quick start:
 *
 *     #include <bnnumba.h>
 *
 *     bnnumba_params params = BNNUMBA_PARAMS_INIT;
 *     params.weight = weight;               // c floats, or NULL
 *     params.running_mean = running_mean;   // c floats, or NULL
 *     params.running_var = running_var;
 *     if (bnnumba_forward_training(BNNUMBA_FLOAT32, BNNUMBA_NCS, n, c, h * w, x, &params, y, NULL))
 *         fprintf(stderr, "%s\n", bnnumba_last_error());
 *
 *     cc app.c $(pkg-config --cflags --libs bnnumba)
 *
 * What holds for every function:
 *
 * - It returns BNNUMBA_OK (0), or an error that bnnumba_last_error() puts into words. After an
 *   error in its arguments nothing has been written.
 * - The caller owns every buffer. The library keeps no pointer after a call returns.
 * - Outputs come last and are named *_out. A pointer that may be NULL is said to be optional.
 * - Sizes are int64_t, count elements, and may be 0 or larger than 2^31. Data has less than 2^63
 *   bytes, and at most 2^39 - 1 channels.
 * - Statistics are double, accumulated in double, whatever the type of the data. What the data is
 *   multiplied and shifted by has the precision of the arithmetic: double for FLOAT64, float for
 *   the others, whose 1 / sqrt(variance + eps) must be in the range of float.
 * - Results have the same bits for any number of threads, and the same bits as those of the Python
 *   package bnnumba on a CPU of the same level, see bnnumba_isa(), for tensors of the same strides,
 *   outputs included, in the default floating-point environment. Another one (rounding, denormals
 *   as zeros) holds for the threads that have it when they start.
 * - All functions may be called from any number of threads at once, on different outputs. Those
 *   that take a handle may share it, see "Streaming moments". None may be called in the handler of
 *   a signal. A thread that calls needs 32 KiB of stack, and 320 bytes more for each thread that a
 *   call may use; with libbnnumba_embed 1 MiB, as a first call of a kind runs Python.
 * - NaN and infinity in a channel of the data reach the results of that channel, and no other.
 * - A library stays in memory after dlclose(), as its threads do.
 *
 * Two libraries implement this header: libbnnumba, which needs the C library, libm and OpenMP's
 * runtime, and libbnnumba_embed, which starts a Python interpreter, see bnnumba_init().
 */

#ifndef BNNUMBA_H
#define BNNUMBA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

/* ================================================================================================
 *                                      Version and errors
 * ============================================================================================== */

/* The version of this header. Versions of one major number are compatible with each other. */
#define BNNUMBA_VERSION_MAJOR 0
#define BNNUMBA_VERSION_MINOR 1
#define BNNUMBA_VERSION_PATCH 0
#define BNNUMBA_VERSION \
    (BNNUMBA_VERSION_MAJOR * 10000 + BNNUMBA_VERSION_MINOR * 100 + BNNUMBA_VERSION_PATCH)

/* cffi: types */
/* What a function returns. New values may be added; all but BNNUMBA_OK are errors. */
typedef enum bnnumba_status {
    /* The call did what it says. */
    BNNUMBA_OK = 0,
    /* A pointer is NULL or not aligned, an extent negative, a number out of range, ... */
    BNNUMBA_ERROR_ARGUMENT = 1,
    /* A dtype or layout is not one of this header's, or not allowed here. */
    BNNUMBA_ERROR_DTYPE = 2,
    /* An output overlaps an input or another output in a way that is not allowed. */
    BNNUMBA_ERROR_OVERLAP = 3,
    /* There is not enough memory for the workspace or the handle. */
    BNNUMBA_ERROR_MEMORY = 4,
    /* A handle is NULL, was destroyed, or was never one. */
    BNNUMBA_ERROR_HANDLE = 5,
    /* Saved state is truncated, corrupted, or of another format. */
    BNNUMBA_ERROR_STATE = 6,
    /* The CPU, the value of BNNUMBA_ISA, or the device of a tensor is not supported. */
    BNNUMBA_ERROR_UNSUPPORTED = 7,
    /* libbnnumba_embed only: Python or its package bnnumba does not start, or raised. */
    BNNUMBA_ERROR_PYTHON = 8
} bnnumba_status;
/* cffi: end */

/* cffi: functions */
/*
 * The version of the library at run time, as BNNUMBA_VERSION is that of the header: 10203 for
 * 1.2.3. Never fails.
 */
int bnnumba_version(void);

/* The same as text, "1.2.3". The string is static. */
const char *bnnumba_version_string(void);

/*
 * A few words for a status, "invalid argument". Never NULL, also for numbers that are no status.
 * The string is static.
 */
const char *bnnumba_status_string(bnnumba_status status);

/*
 * What went wrong in the last call that failed in this thread: which argument, what was expected,
 * what came. "" if none has failed. The string belongs to the library and changes with the next
 * failure in this thread.
 */
const char *bnnumba_last_error(void);
/* cffi: end */

/* ================================================================================================
 *                                      CPU and threads
 * ============================================================================================== */

/* cffi: functions */
/*
 * The level of the CPU whose kernels run: "x86-64-v2", "x86-64-v3", "x86-64-v4" or "generic". The
 * highest that the CPU has is chosen when the library is loaded. The environment variable
 * BNNUMBA_ISA, read then, names a lower one. If the CPU has none of them, or not the one that is
 * named, this is "none", and all functions that need a kernel return BNNUMBA_ERROR_UNSUPPORTED.
 *
 * In libbnnumba_embed it is the name of the CPU that Numba compiles for, once it has started.
 */
const char *bnnumba_isa(void);

/*
 * Get ready to compute. Calling it is optional.
 *
 * libbnnumba does nothing here. libbnnumba_embed starts Python, which takes a second and otherwise
 * happens in the first call that needs it; that may be in any thread, and in several at once. The
 * interpreter is that of the environment, whatever PYTHONHOME, PYTHONPATH and PATH say. A fork waits
 * while another thread starts Python, or compiles; it cannot where it has the interpreter's lock, as
 * os.fork has: a child that was forked so while another thread started gets BNNUMBA_ERROR_PYTHON.
 * In a process that is Python itself, let go of that lock before calls into the library, as
 * ctypes.CDLL and cffi do.
 *
 * Returns BNNUMBA_OK, BNNUMBA_ERROR_UNSUPPORTED or BNNUMBA_ERROR_PYTHON.
 */
bnnumba_status bnnumba_init(void);

/*
 * Use at most `threads` threads in a call, or OpenMP's own default (OMP_NUM_THREADS, else the
 * number of CPUs) for 0. Holds for the whole process, from the next call on. More than 1024, or
 * than OMP_THREAD_LIMIT, are never used.
 *
 * A call uses one thread whatever the setting: for small data, while another thread's call is using
 * several, inside an OpenMP parallel region, and in a child that was forked after the library had
 * been loaded (OpenMP's runtime does not survive a fork; exec brings it back).
 *
 * For each thread that has made a large call, OpenMP keeps `threads` - 1 others until it ends.
 * Where many threads call, let them use 1, or make large calls from one of them: if a thread cannot
 * be started, GNU's OpenMP ends the process.
 *
 * Returns BNNUMBA_OK, or BNNUMBA_ERROR_ARGUMENT if `threads` is negative.
 */
bnnumba_status bnnumba_set_num_threads(int threads);

/* How many threads the next large call would use, at least 1. */
int bnnumba_get_num_threads(void);
/* cffi: end */

/* ================================================================================================
 *                                      Data
 * ============================================================================================== */

/* cffi: types */
/* The type of one element. 16-bit floats are passed as they stand in memory. */
typedef enum bnnumba_dtype {
    BNNUMBA_FLOAT32 = 1,
    BNNUMBA_FLOAT64 = 2,
    /* IEEE 754 binary16 */
    BNNUMBA_FLOAT16 = 3,
    /* the upper half of a float32 */
    BNNUMBA_BFLOAT16 = 4
} bnnumba_dtype;

/*
 * How n * c * s elements stand in memory, without gaps. Each has one channel out of c.
 * For anything else (strides, other axes) see "DLPack tensors".
 */
typedef enum bnnumba_layout {
    /* x[n][c][s], channels first: an (N, C, H, W) image batch has s = h * w. */
    BNNUMBA_NCS = 1,
    /* x[n][s][c], channels last: (N, H, W, C); a table of r rows has n = r and s = 1. */
    BNNUMBA_NSC = 2
} bnnumba_layout;

/*
 * Parameters of a batch normalization, one value per channel each. Begin with
 *
 *     bnnumba_params params = BNNUMBA_PARAMS_INIT;
 *
 * and set what is needed. A function reads the members that its description names. Where a function
 * takes a pointer to this struct, NULL stands for the initial values.
 */
typedef struct bnnumba_params {
    /*
     * sizeof(bnnumba_params): tells the library which version of this struct it is given. What a
     * shorter one lacks at its end has the initial value; a longer one, of a newer header, is an
     * error.
     */
    size_t struct_size;
    /* Type of the four arrays below and of the gradients of weight and bias: FLOAT32 or FLOAT64. */
    bnnumba_dtype dtype;
    /* Scale and shift, c elements. NULL stands for ones and zeros. */
    const void *weight;
    const void *bias;
    /* Running statistics, c elements: updated by training, read by inference. */
    void *running_mean;
    void *running_var;
    /* The weight of the new value in the running update, as in PyTorch and cuDNN. */
    double momentum;
    /* Added to the variance; finite and not negative. */
    double eps;
    /* The variance that moves running_var is m2 / (count - correction): 1 for an unbiased one. */
    double correction;
    /*
     * What rounding takes from the means that are saved, c doubles, or NULL: written by training,
     * read by its backward pass, whose gradients else lose digits where data are far from zero in
     * units of their standard deviation. NULL for data on a GPU.
     */
    double *mean_rest;
} bnnumba_params;
/* cffi: end */

#define BNNUMBA_PARAMS_INIT \
    { sizeof(bnnumba_params), BNNUMBA_FLOAT32, NULL, NULL, NULL, NULL, 0.1, 1e-5, 1.0, NULL }

/* ================================================================================================
 *                                      Moments
 *
 * The moments of a channel are the number of its values, their mean, and m2, the sum of squared
 * deviations from the mean. They can be merged in any order, which shows in the last digits only, and
 * are free of the cancellation that sums of squares suffer.
 * ============================================================================================== */

/* cffi: functions */
/*
 * Compute the moments of each channel of x.
 *
 *     x           n * c * s elements
 *     count_out   optional: n * s
 *     mean_out    c elements; zeros if there are no values
 *     m2_out      c elements; zeros if there are no values
 */
bnnumba_status bnnumba_moments(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n, int64_t c,
                               int64_t s, const void *x, int64_t *count_out, double *mean_out,
                               double *m2_out);

/*
 * Merge other moments into `count`, `mean` and `m2`, as if all values had been seen together (Chan,
 * Golub & LeVeque 1983). Either count may be 0.
 *
 *     count, mean, m2      1, c and c elements, updated
 *     other_mean, other_m2   c elements, which must not overlap the former
 */
bnnumba_status bnnumba_merge(int64_t c, int64_t *count, double *mean, double *m2,
                             int64_t other_count, const double *other_mean, const double *other_m2);

/*
 * Compute var_out = m2 / (count - correction): the variance for correction 0, the unbiased one for
 * 1. `correction` must be less than `count`. `var_out` may be `m2` itself.
 */
bnnumba_status bnnumba_variance(int64_t c, int64_t count, const double *m2, double correction,
                                double *var_out);

/*
 * Move running statistics towards moments, running = (1 - momentum) * running + momentum * new: for
 * those who look at a batch's moments before they commit them.
 *
 * Reads dtype, momentum and correction of `params`; updates running_mean and running_var, each of
 * which is optional. If running_var is given, `correction` must be less than `count`, unless
 * `count` is 0: then nothing changes.
 */
bnnumba_status bnnumba_update_running(int64_t c, int64_t count, const double *mean,
                                      const double *m2, const bnnumba_params *params);
/* cffi: end */

/* ================================================================================================
 *                                      Batch normalization
 *
 * In place: y_out may be x itself, and dx_out may be dy or x itself. No output may overlap anything
 * else, from its first byte to its last, nor its own elements each other: each axis of a tensor
 * steps over all that is within the axes of smaller steps.
 *
 * 1 / sqrt(variance + eps) is taken as 0 where variance + eps is 0: y is then the bias.
 * ============================================================================================== */

/* cffi: functions */
/*
 * Normalize a batch by its own statistics, channel by channel:
 *
 *     y = (x - mean) / sqrt(m2 / count + eps) * weight + bias
 *
 * Reads all members of `params`. Running statistics that are given are updated as by
 * bnnumba_update_running(), after all else has succeeded; an empty batch leaves them alone.
 *
 *     x           n * c * s elements
 *     params      optional
 *     y_out       n * c * s elements; may be x, but the backward pass needs x as it was
 *     saved_out   optional: 3 * c elements for bnnumba_backward_training(): the mean of each
 *                 channel, then m2 of each channel, then 1 / sqrt(m2 / count + eps) of each;
 *                 zeros for an empty batch
 */
bnnumba_status bnnumba_forward_training(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                        int64_t c, int64_t s, const void *x,
                                        const bnnumba_params *params, void *y_out,
                                        double *saved_out);

/*
 * Normalize by the running statistics, y = (x - running_mean) / sqrt(running_var + eps) * weight +
 * bias.
 *
 * Reads dtype, weight, bias, running_mean, running_var (both needed) and eps of `params`.
 */
bnnumba_status bnnumba_forward_inference(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                         int64_t c, int64_t s, const void *x,
                                         const bnnumba_params *params, void *y_out);

/*
 * Compute the gradients of bnnumba_forward_training(), given dy, that of y. With M = n * s and xhat
 * = (x - mean) * invstd:
 *
 *     dbias = sum(dy),  dweight = sum(dy * xhat)
 *     dx = (dy - dbias / M - xhat * dweight / M) * invstd * weight
 *
 * Reads dtype, weight and mean_rest of `params`.
 *
 *     x, dy                    n * c * s elements; x is what the forward pass read
 *     params                   optional
 *     saved                    what the forward pass wrote to saved_out
 *     dx_out                   optional: n * c * s elements
 *     dweight_out, dbias_out   optional: c elements of params->dtype
 */
bnnumba_status bnnumba_backward_training(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                         int64_t c, int64_t s, const void *x, const void *dy,
                                         const bnnumba_params *params, const double *saved,
                                         void *dx_out, void *dweight_out, void *dbias_out);

/*
 * Compute the gradients of bnnumba_forward_inference(), whose statistics are constants: dx = dy *
 * invstd * weight, and dweight and dbias as above.
 *
 * Reads dtype, weight, running_mean, running_var (both needed) and eps of `params`.
 */
bnnumba_status bnnumba_backward_inference(bnnumba_dtype dtype, bnnumba_layout layout, int64_t n,
                                          int64_t c, int64_t s, const void *x, const void *dy,
                                          const bnnumba_params *params, void *dx_out,
                                          void *dweight_out, void *dbias_out);

/*
 * Fold an inference batch norm into the convolution (or dense layer) before it: the folded layer
 * computes batch_norm(conv(x)).
 *
 * Reads all members of `params` but momentum, correction and mean_rest; running_mean and running_var
 * are needed.
 *
 *     dtype             FLOAT32 or FLOAT64: type of the four arrays
 *     c, k              output channels, and weights per output channel
 *     conv_weight       c * k elements, the output channel first
 *     conv_bias         optional: c elements
 *     conv_weight_out   c * k elements; may be conv_weight
 *     conv_bias_out     c elements; may be conv_bias
 */
bnnumba_status bnnumba_fold(bnnumba_dtype dtype, int64_t c, int64_t k, const void *conv_weight,
                            const void *conv_bias, const bnnumba_params *params,
                            void *conv_weight_out, void *conv_bias_out);
/* cffi: end */

/* ================================================================================================
 *                                      Streaming moments
 *
 * A handle that takes in any number of batches and merges, in any order. Every value weighs the
 * same.
 *
 * Thread safety: threads may share a handle; each call sees it before or after another, never in
 * between. An update reads its data before it locks the handle, so that updates from several
 * threads run side by side. The order in which they merge shows in the last digits.
 *
 * A handle that was destroyed is recognized as such: using it again is BNNUMBA_ERROR_HANDLE.
 * ============================================================================================== */

/* cffi: types */
/* A handle. The pointer is a name for the library and must not be dereferenced. */
typedef struct bnnumba_running bnnumba_running;
/* cffi: end */

/* cffi: functions */
/* Make a handle for c channels that has seen no values. Free it with bnnumba_running_destroy(). */
bnnumba_status bnnumba_running_create(int64_t c, bnnumba_running **handle_out);

/* Free a handle. NULL is allowed and ignored. */
bnnumba_status bnnumba_running_destroy(bnnumba_running *handle);

/* Take in a batch, as bnnumba_moments() reads it. c must be that of the handle. */
bnnumba_status bnnumba_running_update(bnnumba_running *handle, bnnumba_dtype dtype,
                                      bnnumba_layout layout, int64_t n, int64_t c, int64_t s,
                                      const void *x);

/* Take in moments from elsewhere: another process, bnnumba_moments(), saved_out of a forward pass. */
bnnumba_status bnnumba_running_add(bnnumba_running *handle, int64_t c, int64_t count,
                                   const double *mean, const double *m2);

/* Take in all that `other` has seen, which does not change. Both may be the same handle. */
bnnumba_status bnnumba_running_merge(bnnumba_running *handle, bnnumba_running *other);

/*
 * Read the moments so far. All outputs are optional and must not overlap each other; the last two
 * have as many elements as the handle has channels.
 */
bnnumba_status bnnumba_running_read(bnnumba_running *handle, int64_t *channels_out,
                                    int64_t *count_out, double *mean_out, double *m2_out);

/*
 * Write the moments to a buffer, to be loaded by any later version on any machine. The format has a
 * version and a checksum.
 *
 *     buffer     optional: NULL asks for the size only
 *     capacity   bytes in `buffer`
 *     size_out   bytes written, or needed: also where `capacity` is too small; not in `buffer`
 */
bnnumba_status bnnumba_running_save(bnnumba_running *handle, void *buffer, size_t capacity,
                                    size_t *size_out);

/*
 * Make a handle from what bnnumba_running_save() wrote. `size` must be exact. Anything that was
 * truncated or changed is BNNUMBA_ERROR_STATE.
 */
bnnumba_status bnnumba_running_load(const void *buffer, size_t size, bnnumba_running **handle_out);
/* cffi: end */

/* ================================================================================================
 *                                      DLPack tensors
 *
 * The same functions for tensors of rank 2 to 64 and any strides (NULL stands for contiguous,
 * negative ones are allowed), with the channels on `axis` (negative counts from the end). Data is
 * read and written where it stands if a row of a channel or the channels of a row are contiguous,
 * and else copied once.
 *
 * All tensors of a call have the same shape and dtype. Devices: the CPU (also memory that CUDA has
 * pinned); libbnnumba_embed also takes CUDA tensors where the Python package does. Then all tensors
 * are on one GPU, and so is what `params`, `saved`, `saved_out`, `dweight_out` and `dbias_out` point
 * to. Work is put on CUDA's default stream and not waited for; `saved` has the precision of the
 * kernels, which is float32 for data of 16 and 32 bits. Only moments are numbers on the host, as
 * everywhere: bnnumba_moments_dl() and bnnumba_running_update_dl() wait for them.
 *
 * The structs are those of DLPack 1.x. If you use dlpack.h, include it before this header.
 * ============================================================================================== */

#ifndef DLPACK_DLPACK_H_
/* cffi: types */
/* Where a tensor is: device_type is 1 for the CPU, 2 for CUDA, 3 for pinned memory. */
typedef struct DLDevice {
    int32_t device_type;
    int32_t device_id;
} DLDevice;

/* Type of an element: code 2 is an IEEE float, 4 a bfloat16. lanes is 1. */
typedef struct DLDataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} DLDataType;

/* A tensor that someone else owns. Strides count elements. */
typedef struct DLTensor {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} DLTensor;
/* cffi: end */
#endif

/* cffi: functions tensors */
/* bnnumba_moments() of a tensor; mean_out and m2_out have shape[axis] elements. */
bnnumba_status bnnumba_moments_dl(const DLTensor *x, int axis, int64_t *count_out, double *mean_out,
                                  double *m2_out);

/* bnnumba_forward_training() of a tensor. */
bnnumba_status bnnumba_forward_training_dl(const DLTensor *x, int axis,
                                           const bnnumba_params *params, const DLTensor *y_out,
                                           double *saved_out);

/* bnnumba_forward_inference() of a tensor. */
bnnumba_status bnnumba_forward_inference_dl(const DLTensor *x, int axis,
                                            const bnnumba_params *params, const DLTensor *y_out);

/* bnnumba_backward_training() of tensors. */
bnnumba_status bnnumba_backward_training_dl(const DLTensor *x, const DLTensor *dy, int axis,
                                            const bnnumba_params *params, const double *saved,
                                            const DLTensor *dx_out, void *dweight_out,
                                            void *dbias_out);

/* bnnumba_backward_inference() of tensors. */
bnnumba_status bnnumba_backward_inference_dl(const DLTensor *x, const DLTensor *dy, int axis,
                                             const bnnumba_params *params, const DLTensor *dx_out,
                                             void *dweight_out, void *dbias_out);
/* cffi: end */

/* cffi: functions */
/* bnnumba_running_update() by a tensor. */
bnnumba_status bnnumba_running_update_dl(bnnumba_running *handle, const DLTensor *x, int axis);
/* cffi: end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif /* BNNUMBA_H */
