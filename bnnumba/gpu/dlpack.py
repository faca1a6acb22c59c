"""What a DLPack capsule says of an array on a GPU, for libraries that offer nothing else.

The structures are those of DLPack 1.0 and before [1]_.

References
----------
.. [1] https://dmlc.github.io/dlpack/latest/c_api.html
"""

import ctypes

import ml_dtypes
import numpy as np

from ..errors import BnnumbaTypeError

__all__ = ["CUDA", "describe", "look"]

CUDA = 2  # kDLCUDA
_LEGACY_STREAM = 1
_BFLOAT = 4


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def look(argument, array):
    """Return an array's capsule, and address, shape, strides in bytes and dtype of its memory."""
    capsule = array.__dlpack__(stream=_LEGACY_STREAM)
    return capsule, *describe(argument, _pointer(capsule, b"dltensor"))[:4]


def describe(argument, pointer):
    """Return address, shape, strides in bytes, dtype and device of a DLTensor."""
    tensor = _Tensor.from_address(pointer)
    code, bits = tensor.code, tensor.bits
    if tensor.lanes != 1 or (code, bits) not in {(2, 16), (2, 32), (2, 64), (_BFLOAT, 16)}:
        msg = (
            f"{argument}: expected dtype float32, float64, float16 or bfloat16, got DLPack type "
            f"code {code} of {bits} bits and {tensor.lanes} lane(s)"
        )
        raise BnnumbaTypeError(msg)
    dtype = np.dtype(ml_dtypes.bfloat16 if code == _BFLOAT else f"f{bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim))
    address = (tensor.data or 0) + tensor.byte_offset
    return address, shape, strides, dtype, tensor.device_id
