"""bnnumba's own C library, loaded by cffi in ABI mode: a timed call is one call of C."""

import functools
import re

import numpy as np

_FLOAT32, _NCS, _NSC = 1, 1, 2


@functools.cache
def library():
    """The ffi and the library; ImportError where cffi is missing or nobody ran ``make capi``."""
    import cffi

    from bnnumba import BackendError, config

    try:
        root = config.prefix()
    except BackendError as error:
        raise ImportError(str(error)) from error
    header = (root / "include" / "bnnumba.h").read_text()
    ffi = cffi.FFI()
    regions = re.findall(r"/\* cffi: [\w ]+ \*/\n(.*?)/\* cffi: end \*/", header, re.S)
    ffi.cdef("\n".join(regions))
    return ffi, ffi.dlopen(str(root / "lib" / "libbnnumba.so"))


def prepare(case, data, eps):
    """Return a call without arguments, and where its results are, by name."""
    ffi, lib = library()
    if data.x.dtype != np.float32:
        msg = "only float32 is timed"
        raise ValueError(msg)
    n, channels, *spatial = case.shape
    s = int(np.prod(spatial, dtype=np.int64))
    shape = _FLOAT32, _NCS if case.layout == "ncs" else _NSC, n, channels, s
    held = []  # what C borrows must live as long as the call

    def pointer(array, kind="void *"):
        held.append(array)
        return ffi.cast(kind, array.ctypes.data)

    params = ffi.new("bnnumba_params *", {"struct_size": ffi.sizeof("bnnumba_params")})
    params.dtype, params.momentum, params.eps, params.correction = _FLOAT32, 0.1, eps, 1
    params.weight, params.bias = pointer(data.weight), pointer(data.bias)
    saved = np.zeros((3, channels))
    x, rows = pointer(data.x), pointer(saved, "double *")
    out = None if case.op == "moments" else data.out
    statistics = {"mean": saved[0], "m2": saved[1]}

    def forward():
        return lib.bnnumba_forward_training(*shape, x, params, pointer_out, rows)

    if case.op == "moments":
        m2 = ffi.cast("double *", saved[1].ctypes.data)

        def call():
            return lib.bnnumba_moments(*shape, x, ffi.NULL, rows, m2)

        return _checked(call, ffi, lib, held, params), statistics
    pointer_out = pointer(out)
    if case.op == "training":
        return _checked(forward, ffi, lib, held, params), {"y": out, **statistics}
    if case.op == "inference":
        params.running_mean, params.running_var = pointer(data.mean), pointer(data.var)

        def call():
            return lib.bnnumba_forward_inference(*shape, x, params, pointer_out)

        return _checked(call, ffi, lib, held, params), {"y": out}
    _checked(forward, ffi, lib, held, params)()
    dweight, dbias = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    dy, dw, db = pointer(data.dy), pointer(dweight), pointer(dbias)

    def backward():
        return lib.bnnumba_backward_training(*shape, x, dy, params, rows, pointer_out, dw, db)

    results = {"dx": out, "dweight": dweight, "dbias": dbias}
    return _checked(backward, ffi, lib, held, params), results


def _checked(function, ffi, lib, *alive):
    def call():
        if function():
            raise RuntimeError(ffi.string(lib.bnnumba_last_error()).decode())

    call.alive = alive
    return call
