/* A stand-in for the CUDA driver, as far as bnnumba calls it: device memory is host memory, and a
   launch is written down instead of run. The numbers are those of cuda.h. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int result;
enum { OK = 0, INVALID = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

static _Thread_local void *current, *below;
static int context, module, function, event;

static result cuInit(unsigned flags) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    return flags ? INVALID : OK;
}
static result cuGetErrorString(result error, const char **text) { *text = "stand-in"; return OK; }
static result cuDeviceGet(int *device, int number) { *device = number; return number ? INVALID : OK; }
static result cuDevicePrimaryCtxRetain(void **found, int device) { *found = &context; return OK; }
static result cuCtxGetCurrent(void **found) { *found = current; return OK; }
static result cuCtxSetCurrent(void *new) { printf("set\n"); current = new; return OK; }
static result cuCtxPushCurrent(void *new) {
    printf("push\n");
    below = current;
    current = new;
    return OK;
}
static result cuCtxPopCurrent(void **old) {
    printf("pop\n");
    *old = current;
    current = below;
    return OK;
}

static result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 75: *value = getenv("FAKE_OLD") ? 7 : 9; return OK; /* compute capability, major */
    case 76: *value = 0; return OK;
    case 16: *value = 132; return OK;     /* multiprocessors */
    case 97: *value = 232448; return OK;  /* shared memory per block, opt-in */
    case 38: *value = 50 << 20; return OK; /* L2 cache */
    }
    return INVALID;
}

static result cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
    if (attribute != 9) return INVALID;   /* device ordinal */
    *(int *)value = 0;
    return OK;
}

static result cuModuleLoadData(void **found, const void *image) {
    if (memcmp(image, "\177ELF", 4)) return INVALID;
    *found = &module;
    return OK;
}

static result cuModuleGetFunction(void **found, void *from, const char *name) {
    if (from != &module || !strstr(name, "kernels")) return NOT_FOUND;
    printf("load\n");
    *found = &function;
    return OK;
}

static result cuFuncSetAttribute(void *f, int attribute, int value) {
    printf("attribute %d %d\n", attribute, value);
    return f == &function ? OK : INVALID;
}

static result cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                             unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
    if (f != &function || gy != 1 || gz != 1 || by != 1 || bz != 1 || extra) return INVALID;
    if (current != &context) return INVALID_CONTEXT;
    int count = atoi(getenv("FAKE_INTEGERS")), reals = atoi(getenv("FAKE_REALS"));
    printf("launch grid %u threads %u shared %u stream %p", gx, bx, shared, stream);
    for (int i = 0; i < count; i++) printf(" %lld", *(long long *)params[i]);
    for (int i = 0; i < reals; i++) printf(" %.9g", *(float *)params[count + i]);
    printf("\n");
    return OK;
}

static result cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void *stream) {
    memset((void *)address, value, size);
    return OK;
}

static result cuMemcpyDtoHAsync(void *to, uint64_t from, size_t size, void *stream) {
    memcpy(to, (void *)from, size);
    return OK;
}

static result cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t size, void *stream) {
    memcpy((void *)to, from, size);
    return OK;
}

static result cuEventCreate(void **found, unsigned flags) {
    if (flags != 2) return INVALID; /* no times */
    *found = &event;
    return OK;
}
static result cuEventRecord(void *e, void *stream) {
    printf("record %p\n", stream);
    return e == &event ? OK : INVALID;
}
static result cuStreamWaitEvent(void *stream, void *e, unsigned flags) {
    printf("follow %p\n", stream);
    return e == &event && !flags ? OK : INVALID;
}
static result cuEventDestroy(void *e) { return e == &event ? OK : INVALID; }

static result cuStreamSynchronize(void *stream) { printf("wait\n"); return OK; }

#define ENTRY(name) { #name, (void *)name }
static const struct { const char *name; void *function; } entries[] = {
    ENTRY(cuInit), ENTRY(cuGetErrorString), ENTRY(cuDeviceGet), ENTRY(cuDevicePrimaryCtxRetain),
    ENTRY(cuCtxGetCurrent), ENTRY(cuCtxSetCurrent), ENTRY(cuCtxPushCurrent), ENTRY(cuCtxPopCurrent),
    ENTRY(cuDeviceGetAttribute), ENTRY(cuPointerGetAttribute), ENTRY(cuModuleLoadData),
    ENTRY(cuModuleGetFunction), ENTRY(cuFuncSetAttribute), ENTRY(cuLaunchKernel),
    ENTRY(cuMemsetD8Async), ENTRY(cuMemcpyDtoHAsync), ENTRY(cuMemcpyHtoDAsync),
    ENTRY(cuEventCreate), ENTRY(cuEventRecord), ENTRY(cuStreamWaitEvent), ENTRY(cuEventDestroy),
    ENTRY(cuStreamSynchronize),
};

result cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status) {
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (!strcmp(symbol, entries[i].name)) {
            *found = entries[i].function;
            if (status) *status = 0;
            return OK;
        }
    *found = NULL;
    if (status) *status = 1;
    return NOT_FOUND;
}
result cuGetProcAddress(const char *symbol, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, found, version, flags, NULL);
}
