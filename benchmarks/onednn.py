"""oneDNN's batch normalization through its C API, loaded by cffi in ABI mode.

The declarations follow ``oneapi/dnnl/dnnl.h`` and ``dnnl_types.h`` of oneDNN 3.2; the values of the
constants are the same in 3.2, 3.5 and 3.9. A primitive is made once and executed many times, as a
framework does, so a timed call is one ``dnnl_primitive_execute``.
"""

import functools
import importlib.metadata

import numpy as np

_DECLARATIONS = """
typedef struct { int major, minor, patch; const char *hash; unsigned cpu_runtime, gpu_runtime; }
    dnnl_version_t;
typedef struct { int arg; void *memory; } dnnl_exec_arg_t;
const dnnl_version_t *dnnl_version(void);
int dnnl_engine_create(void **engine, int kind, size_t index);
int dnnl_stream_create(void **stream, void *engine, unsigned flags);
int dnnl_stream_wait(void *stream);
int dnnl_memory_desc_create_with_tag(void **md, int ndims, const int64_t *dims, int type, int tag);
int dnnl_memory_desc_destroy(void *md);
int dnnl_memory_create(void **memory, const void *md, void *engine, void *handle);
int dnnl_memory_destroy(void *memory);
int dnnl_batch_normalization_forward_primitive_desc_create(void **pd, void *engine, int prop_kind,
    const void *src, const void *dst, float epsilon, unsigned flags, const void *attr);
int dnnl_batch_normalization_backward_primitive_desc_create(void **pd, void *engine, int prop_kind,
    const void *diff_src, const void *diff_dst, const void *src, float epsilon, unsigned flags,
    const void *hint_fwd_pd, const void *attr);
int dnnl_primitive_desc_query(const void *pd, int what, int index, void *result);
int dnnl_primitive_desc_destroy(void *pd);
int dnnl_primitive_create(void **primitive, const void *pd);
int dnnl_primitive_execute(const void *primitive, void *stream, int nargs,
    const dnnl_exec_arg_t *args);
int dnnl_primitive_destroy(void *primitive);
"""

_CPU, _DEFAULT_FLAGS, _F32, _IMPLEMENTATION = 1, 1, 3, 8
_TRAINING, _INFERENCE, _BACKWARD = 64, 96, 128
_GLOBAL_STATS, _SCALE, _SHIFT = 1, 2, 4
_TAGS = {"a": 2, "nchw": 5, "nhwc": 22, "nChw16c": 78, "nChw8c": 102}
_ARGUMENTS = {
    "src": 1, "dst": 17, "mean": 49, "variance": 50, "scale": 51, "shift": 52,
    "diff_src": 129, "diff_dst": 145, "diff_scale": 255, "diff_shift": 256,
}  # fmt: skip


class OneDnnError(RuntimeError):
    """A call of oneDNN's C API failed."""


def _check(status, what):
    if status:
        msg = f"{what} returned status {status}"
        raise OneDnnError(msg)


@functools.cache
def _library():
    """The ffi, the library, a CPU engine and a stream; ImportError where it is not installed."""
    import cffi

    try:
        files = importlib.metadata.files("onednn-cpu-gomp") or ()
    except importlib.metadata.PackageNotFoundError as error:
        msg = "onednn-cpu-gomp is not installed"
        raise ImportError(msg) from error
    path = next(f.locate() for f in files if f.name == "libdnnl.so.3")
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    try:
        lib = ffi.dlopen(str(path.resolve()))
    except OSError as error:  # it needs the system's libgomp
        raise ImportError(str(error)) from error
    engine, stream = ffi.new("void **"), ffi.new("void **")
    _check(lib.dnnl_engine_create(engine, _CPU, 0), "dnnl_engine_create")
    _check(lib.dnnl_stream_create(stream, engine[0], _DEFAULT_FLAGS), "dnnl_stream_create")
    return ffi, lib, engine[0], stream[0]


def version():
    """The version of the library that is loaded, such as ``3.2.0``."""
    ffi, lib, _, _ = _library()
    v = lib.dnnl_version()
    return f"{v.major}.{v.minor}.{v.patch} ({ffi.string(v.hash).decode()[:9]})"


def _make(function, destroy, *args):
    """Call a function that makes an object, and let the object die with the last reference."""
    ffi, lib, _, _ = _library()
    handle = ffi.new("void **")
    _check(getattr(lib, function)(handle, *args), function)
    return ffi.gc(handle[0], getattr(lib, destroy))


def _descriptor(dims, tag):
    ffi, _, _, _ = _library()
    return _make(
        "dnnl_memory_desc_create_with_tag",
        "dnnl_memory_desc_destroy",
        len(dims), ffi.new("int64_t[]", dims), _F32, _TAGS[tag],
    )  # fmt: skip


class Primitive:
    """A primitive with its buffers: call it to execute."""

    def __init__(self, primitive_desc, tensors, vectors, dims, tag):
        ffi, lib, engine, stream = _library()
        held = {name: (array, dims, tag) for name, array in tensors.items()}
        held |= {name: (array, (array.size,), "a") for name, array in vectors.items()}
        self._memories = []
        self._arrays = [array for array, _, _ in held.values()]
        arguments = ffi.new("dnnl_exec_arg_t[]", len(held))
        for slot, (name, (array, extents, layout)) in zip(arguments, held.items(), strict=True):
            md = _descriptor(extents, layout)
            pointer = ffi.cast("void *", array.ctypes.data)
            memory = _make("dnnl_memory_create", "dnnl_memory_destroy", md, engine, pointer)
            self._memories += [md, memory]
            slot.arg, slot.memory = _ARGUMENTS[name], memory
        self._primitive = _make("dnnl_primitive_create", "dnnl_primitive_destroy", primitive_desc)
        name = ffi.new("char **")
        lib.dnnl_primitive_desc_query(primitive_desc, _IMPLEMENTATION, 0, name)
        self.implementation = ffi.string(name[0]).decode()
        self._call = functools.partial(
            lib.dnnl_primitive_execute, self._primitive, stream, len(held), arguments
        )
        self._wait = functools.partial(lib.dnnl_stream_wait, stream)

    def __call__(self):
        _check(self._call() or self._wait(), "dnnl_primitive_execute")


def _forward_desc(kind, md, eps, flags):
    ffi, _, engine, _ = _library()
    return _make(
        "dnnl_batch_normalization_forward_primitive_desc_create",
        "dnnl_primitive_desc_destroy",
        engine, kind, md, md, eps, flags, ffi.NULL,
    )  # fmt: skip


def forward(dims, tag, x, y, mean, var, weight, bias, eps, training):
    """Normalize x into y; `mean` and `var` are written where `training`, else read."""
    kind, flags = (_TRAINING, 0) if training else (_INFERENCE, _GLOBAL_STATS)
    desc = _forward_desc(kind, _descriptor(dims, tag), eps, flags | _SCALE | _SHIFT)
    vectors = {"mean": mean, "variance": var, "scale": weight, "shift": bias}
    return Primitive(desc, {"src": x, "dst": y}, vectors, dims, tag)


def backward(dims, tag, x, dy, mean, var, weight, dx, dweight, dbias, eps):
    """Gradients of the training forward pass whose statistics are `mean` and `var`."""
    ffi, _, engine, _ = _library()
    md, flags = _descriptor(dims, tag), _SCALE | _SHIFT
    desc = _make(
        "dnnl_batch_normalization_backward_primitive_desc_create",
        "dnnl_primitive_desc_destroy",
        engine, _BACKWARD, md, md, md, eps, flags, _forward_desc(_TRAINING, md, eps, flags),
        ffi.NULL,
    )  # fmt: skip
    tensors = {"src": x, "diff_dst": dy, "diff_src": dx}
    vectors = {"mean": mean, "variance": var, "scale": weight}
    vectors |= {"diff_scale": dweight, "diff_shift": dbias}
    return Primitive(desc, tensors, vectors, dims, tag)


def block_size(channels):
    """Channels in a block of oneDNN's own layout here: 16, 8 (no AVX-512), or None."""
    with open("/proc/cpuinfo") as info:
        widest = 16 if "avx512f" in info.read() else 8
    return next((b for b in (widest, 8) if channels % b == 0), None)


def to_blocked(x, block):
    """(N, C, H, W) to (N, C / block, H, W, block), contiguous."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2))


def from_blocked(x):
    """The inverse of `to_blocked`."""
    n, blocks, h, w, block = x.shape
    return x.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, h, w)
