"""What is measured: operations, layouts, shapes, and the data for each."""

import functools
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from . import oracle

EPS = 1e-5
LARGE = 32e6  # bytes of float32 above which a goal speaks of "large" inputs

RESNET50 = (
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 256, 28, 28),
    (32, 256, 14, 14),
    (32, 1024, 14, 14),
    (32, 512, 14, 14),
    (32, 512, 7, 7),
    (32, 2048, 7, 7),
)
IMAGES = (*RESNET50, (64, 64, 32, 32), (8, 32, 16, 16), (4, 8, 4, 4))
TABLES = ((65536, 256), (128, 1024))
# Beyond what the goals speak of: wide rows, rows that no number of threads divides, few rows of
# many channels (genes), and short rows of one channel (series), also of few (patches of images).
WIDE_TABLES = ((8192, 4096), (50001, 300), (100, 50000))
SHORT_ROWS = ((16384, 64, 2, 2), (32768, 3, 7, 7))
BEYOND = (*WIDE_TABLES, *SHORT_ROWS)
STREAM = (200000, 128)
SMALLEST = (4, 8, 4, 4)
SMOKE = ((8, 32, 16, 16), SMALLEST, (3, 20, 5, 7), (64, 24))
# Small enough that what a call costs shows, of which running statistics are a part.
TRACKED_SHAPES = ((8, 32, 16, 16), SMALLEST)
# Of a module, under autograd.
STEP_SHAPES = (RESNET50[1], RESNET50[2], RESNET50[6], RESNET50[7], RESNET50[10], *TRACKED_SHAPES)

OPS = ("training", "backward", "inference", "moments")
TRACKED = "tracked"  # training that updates running statistics
STEP = "step"  # that, and its backward pass
MOMENTUM = 0.1
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Case:
    """One operation on one shape, held as ``ncs`` (contiguous) or ``rc`` (channels last, 2-D).

    `shape` is always written N, C, H, W (or N, C).
    """

    op: str
    layout: str
    shape: tuple[int, ...]
    halves: bool  # whether float16 and bfloat16 run too

    @property
    def nbytes(self):
        """Size of x in float32."""
        return 4 * math.prod(self.shape)

    @property
    def traffic(self):
        """Bytes that cannot be avoided: each input read once, each output written once."""
        return self.nbytes * {"backward": 3, "moments": 1, STEP: 5}.get(self.op, 2)

    @property
    def name(self):
        return f"{self.op} {self.layout} {'x'.join(map(str, self.shape))}"


def cases(smoke=False):
    """Every case, ordered so that those which share their data are neighbours."""
    images = [s for s in SMOKE if len(s) == 4] if smoke else IMAGES
    tables = [s for s in SMOKE if len(s) == 2] if smoke else (*TABLES, *WIDE_TABLES)
    short = [] if smoke else SHORT_ROWS
    held = [("ncs", s) for s in (*images, *short)] + [("rc", s) for s in (*images, *tables)]
    found = [
        Case(op, layout, shape, smoke or 4 * math.prod(shape) > LARGE)
        for layout, shape in held
        for op in (*OPS, *_more(layout, shape))
    ]
    return found if smoke else [*found, Case("moments", "rc", STREAM, halves=False)]


def _more(layout, shape):
    """Operations that few cases have."""
    if layout == "ncs" and shape in TRACKED_SHAPES:
        yield TRACKED
    if shape in STEP_SHAPES:
        yield STEP


class Data:
    """Inputs of one layout, shape and dtype, and what each operation should make of them."""

    def __init__(self, layout, shape, x, dy, weight, bias, mean, var):
        self.layout, self.shape = layout, shape
        self.x, self.dy = x, dy
        self.weight, self.bias, self.mean, self.var = weight, bias, mean, var
        self.axis = 1 if layout == "ncs" else -1
        self._typed = {}
        self._expected = {}

    @property
    def axes(self):
        """All axes but the channel's."""
        return tuple(i for i in range(self.x.ndim) if i != self.axis % self.x.ndim)

    def per_channel(self, values):
        """`values` (C,), shaped to broadcast against x."""
        shape = [1] * self.x.ndim
        shape[self.axis] = -1
        return values.reshape(shape)

    def view(self, array):
        """`array`, shaped as x, as the (A, C, S) that the oracle works on."""
        channels = self.shape[1]
        if self.layout == "ncs":
            return array.reshape(array.shape[0], channels, -1)
        return array.reshape(-1, channels, 1)

    @functools.cached_property
    def out(self):
        """An array like x whose pages exist already, which all write to: pages differ in speed."""
        return np.ones_like(self.x)

    def typed(self, dtype):
        """The same data rounded to another dtype."""
        if dtype == self.x.dtype.name:
            return self
        if dtype not in self._typed:
            x, dy = (a.astype(DTYPES[dtype]) for a in (self.x, self.dy))
            rest = self.weight, self.bias, self.mean, self.var
            self._typed[dtype] = Data(self.layout, self.shape, x, dy, *rest)
        return self._typed[dtype]

    def expected(self, op):
        """The right results in float64, by name."""
        if op not in self._expected:
            # One operation at a time: a large case's results take 200 MB.
            x, dy = self.view(self.x), self.view(self.dy)
            parameters = self.weight, self.bias, self.mean, self.var
            if op == TRACKED:
                found = oracle.tracked(x, *parameters, EPS, MOMENTUM)
            elif op == STEP:
                found = oracle.step(x, dy, *parameters, EPS, MOMENTUM)
            else:
                found = oracle.expected(op, x, dy, *parameters, EPS)
            self._expected = {op: found}
        return self._expected[op]


@functools.lru_cache(maxsize=1)
def data(layout, shape):
    """Normal data with a mean, in float32."""
    rng = np.random.default_rng(0)
    n, channels, *spatial = shape
    held = shape if layout == "ncs" else (n, *spatial, channels)
    x, dy = (rng.standard_normal(held, dtype=np.float32) for _ in range(2))
    x += np.float32(0.5)
    weight, bias, mean = (rng.standard_normal(channels, dtype=np.float32) for _ in range(3))
    var = rng.uniform(0.5, 2, channels).astype(np.float32)
    return Data(layout, shape, x, dy, weight, bias, mean, var)
