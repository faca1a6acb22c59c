"""Time the CUDA backend beside its peers: ``python -m benchmarks.gpu``.

PyTorch is needed; CuPy and Triton take part where they are installed. Every result is compared with
float64 before it is timed. ``--dry-run`` goes through the same code on the CPU and in Numba's CUDA
simulator, on tiny arrays, and times nothing worth reading.
"""

import argparse
import collections
import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import statistics
import sys
import time

_ROOT = pathlib.Path(__file__).resolve().parent.parent
EPS, MOMENTUM = 1e-5, 0.1
BATCH = 128
RESNET50 = (
    (64, 112, 112), (64, 56, 56), (256, 56, 56), (128, 56, 56), (128, 28, 28), (512, 28, 28),
    (256, 28, 28), (256, 14, 14), (1024, 14, 14), (512, 14, 14), (512, 7, 7), (2048, 7, 7),
)  # fmt: skip
SMALL = (8, 32, 16, 16)
OPS = ("training", "backward", "inference", "moments")
# The unavoidable traffic in units of that of a copy, one read and one write.
TRAFFIC = {"training": 1.0, "backward": 1.5, "inference": 1.0, "moments": 0.5}
GOALS = {"training": 0.85, "backward": 0.85, "inference": 0.9, "moments": 0.9}
SPEEDUP = 1.2


class Machine:
    """The GPU, or what stands for one in a dry run."""

    def __init__(self, dry):
        import torch

        self.dry, self.torch = dry, torch
        self.device = "cpu" if dry else "cuda"
        if dry:
            self.name, self.l2 = "dry run", 1 << 16
        else:
            found = torch.cuda.get_device_properties(0)
            self.name, self.l2 = found.name, found.L2_cache_size

    def sync(self):
        if not self.dry:
            self.torch.cuda.synchronize()

    def time(self, function, sets, seconds):
        """Median seconds of a call on one of the copies, taken in turns, in about `seconds`."""
        calls = [functools.partial(function, *arrays) for arrays in sets]
        return statistics.median(self._times(calls, seconds))

    def _times(self, calls, seconds):
        for call in calls[:2]:
            call()
        self.sync()
        start = time.perf_counter()
        calls[0]()
        queued = time.perf_counter() - start
        self.sync()
        once = max(time.perf_counter() - start, 1e-5)
        # As many as the driver queues without waiting, also where a call is a dozen launches.
        count = 2 if self.dry else min(60, max(8, int(seconds / once)))
        turns = itertools.islice(itertools.cycle(calls), count)
        if self.dry:
            found = []
            for call in turns:
                start = time.perf_counter()
                call()
                found.append(time.perf_counter() - start)
            return found
        marks = []
        # Results are kept in turns as well: memory that is used at once again stays in the cache.
        kept = collections.deque(maxlen=len(calls))
        # All are queued before the first one begins: else what takes longer on the host than on the
        # GPU would be timed there. No GPU makes more cycles a second.
        self.torch.cuda._sleep(int(3e9 * (count * 2 * queued + 1e-3)))
        for call in turns:
            pair = [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            kept.append(call())
            pair[1].record()
            marks.append(pair)
        self.sync()
        return [begin.elapsed_time(end) * 1e-3 for begin, end in marks]


class Data:
    """Inputs and outputs of one case, in so many copies that none of them stays in the L2 cache."""

    def __init__(self, machine, shape, layout, dtype):
        torch = machine.torch
        form = torch.channels_last if layout == "rc" else torch.contiguous_format
        self.dims = [d for d in range(len(shape)) if d != 1]
        generator = torch.Generator(machine.device).manual_seed(0)

        def new(fill=True):
            made = torch.empty(shape, dtype=dtype, device=machine.device, memory_format=form)
            return made.normal_(0.5, 1.0, generator=generator) if fill else made

        nbytes = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        copies = 2 if machine.dry else min(16, max(2, -(-4 * machine.l2 // (3 * nbytes))))
        self.sets = [(new(), new(), new(fill=False)) for _ in range(copies)]
        self.nbytes = nbytes
        channel = {"device": machine.device, "dtype": torch.float32}
        self.weight, self.bias = torch.rand(shape[1], **channel), torch.rand(shape[1], **channel)
        self.mean, self.var = torch.zeros(shape[1], **channel), torch.ones(shape[1], **channel)


def expected(machine, data, op):
    """The results of an operation on the first copy, in float64."""
    x, dy, _ = (a.double() for a in data.sets[0])
    shape = [1, -1] + [1] * (x.ndim - 2)
    weight, bias = data.weight.double().view(shape), data.bias.double().view(shape)
    mean, var = x.mean(data.dims, keepdim=True), x.var(data.dims, correction=0, keepdim=True)
    if op == "moments":
        return var.flatten()
    if op == "inference":
        mean, var = data.mean.double().view(shape), data.var.double().view(shape)
    invstd = (var + EPS).rsqrt()
    xhat = (x - mean) * invstd
    if op != "backward":
        return xhat * weight + bias
    inner = dy - dy.mean(data.dims, keepdim=True)
    return (inner - xhat * (dy * xhat).mean(data.dims, keepdim=True)) * invstd * weight


def own(data, op):
    """What bnnumba does, as a function of one copy."""
    import bnnumba as bn

    d = data
    if op == "training":
        return lambda x, dy, y: bn.batch_norm_training(
            x, d.weight, d.bias, running_mean=d.mean, running_var=d.var, out=y
        )[0]
    if op == "inference":
        return lambda x, dy, y: bn.batch_norm_inference(x, d.mean, d.var, d.weight, d.bias, out=y)
    if op == "backward":
        kept = {x.data_ptr(): bn.batch_norm_training(x, d.weight, d.bias)[1] for x, *_ in d.sets}
        return lambda x, dy, y: bn.batch_norm_backward(dy, kept[x.data_ptr()], out=y).x
    return _collect


def _collect(x, dy, y):
    """Queue what `bnnumba.moments` would wait for; return what gives the variance."""
    from bnnumba import on_device
    from bnnumba.gpu.arrays import library_of
    from bnnumba.gpu.driver import device
    from bnnumba.gpu.launch import Call

    library = library_of(x)
    array = library.enter("x", x)
    call = Call(device(array.device), library.stream(array), library)
    with call.device:
        stats, work = on_device.collect(call, array, 1)
    count = array.size // array.shape[1]
    return lambda: (stats.owner[2] / count, work)[0]


def native(machine, data, op):
    """What PyTorch's own kernels do."""
    aten, d = machine.torch.ops.aten, data
    stats = d.weight, d.bias, d.mean, d.var
    if op in ("training", "inference"):
        training = op == "training"
        return lambda x, dy, y: aten.native_batch_norm(x, *stats, training, MOMENTUM, EPS)[0]
    if op == "backward":
        kept = {
            x.data_ptr(): aten.native_batch_norm(x, *stats, True, MOMENTUM, EPS)[1:]
            for x, *_ in d.sets
        }
        return lambda x, dy, y: aten.native_batch_norm_backward(
            dy, x, d.weight, d.mean, d.var, *kept[x.data_ptr()], True, EPS, [True] * 3
        )[0]
    return lambda x, dy, y: machine.torch.var_mean(x.float(), d.dims, correction=0)[0]


def cudnn(machine, data, op):
    """What cuDNN does, called by PyTorch; it has no moments."""
    aten, d = machine.torch.ops.aten, data
    stats = d.weight, d.bias, d.mean, d.var
    if op == "moments":
        return None
    if op != "backward":
        training = op == "training"
        return lambda x, dy, y: aten.cudnn_batch_norm(x, *stats, training, MOMENTUM, EPS)[0]
    kept = {
        x.data_ptr(): aten.cudnn_batch_norm(x, *stats, True, MOMENTUM, EPS)[1:] for x, *_ in d.sets
    }

    def backward(x, dy, y):
        mean, var, reserve = kept[x.data_ptr()]
        return aten.cudnn_batch_norm_backward(
            x, dy, d.weight, d.mean, d.var, mean, var, EPS, reserve
        )[0]

    return backward


def compiled(machine, data, op):
    """What torch.compile makes of plain formulas, where it has Triton."""
    if machine.dry or op not in ("training", "inference"):
        return None
    import triton  # noqa: F401

    torch, d = machine.torch, data
    shape = [1, -1] + [1] * (len(data.dims) - 1)

    def formula(x, weight, bias, mean, var):
        if op == "training":
            var, mean = torch.var_mean(x.float(), d.dims, correction=0, keepdim=True)
        else:
            mean, var = mean.view(shape), var.view(shape)
        y = (x - mean) * torch.rsqrt(var + EPS) * weight.view(shape) + bias.view(shape)
        return y.to(x.dtype)

    made = torch.compile(formula, dynamic=False)
    return lambda x, dy, y: made(x, d.weight, d.bias, d.mean, d.var)


def cupy(machine, data, op):
    """What one writes in CuPy."""
    if machine.dry or op != "training" or data.weight.dtype != data.sets[0][0].dtype:
        return None
    import cupy as cp

    torch, d = machine.torch, data
    weight, bias = (
        cp.from_dlpack(a.view([1, -1] + [1] * (len(d.dims) - 1))) for a in (d.weight, d.bias)
    )
    axes = tuple(d.dims)

    def formula(x, dy, y):
        with cp.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            x = cp.from_dlpack(x)
            mean = x.mean(axes, keepdims=True)
            scale = weight / cp.sqrt(x.var(axes, keepdims=True) + EPS)
            return torch.from_dlpack((x - mean) * scale + bias)

    return formula


ENTRANTS = {
    "bnnumba": lambda machine, data, op: own(data, op),
    "PyTorch native": native,
    "cuDNN": cudnn,
}
EXTRA = {"torch.compile": compiled, "CuPy": cupy}


def error(machine, got, right, dtype):
    """The largest error, in units of the last place at the largest value."""
    if callable(got):
        got = got()
    unit = machine.torch.finfo(dtype).eps
    return float((got.double() - right).abs().max() / (unit * right.abs().max()))


def race(machine, shape, layout, dtype, op, seconds, extra):
    """Times of everyone on one case."""
    torch = machine.torch
    data = Data(machine, shape, layout, dtype)
    right = expected(machine, data, op)
    row = {
        "op": op, "layout": layout, "shape": shape, "dtype": str(dtype).removeprefix("torch."),
        "bytes": data.nbytes, "seconds": {}, "wrong": {}, "failed": {},
    }  # fmt: skip
    row["copy"] = machine.time(lambda x, dy, y: y.copy_(x), data.sets, seconds)
    for name, entrant in {**ENTRANTS, **(EXTRA if extra else {})}.items():
        try:
            function = entrant(machine, data, op)
            if function is None:
                continue
            data.mean.zero_()
            data.var.fill_(1)
            unit = torch.float32 if op == "moments" else dtype
            off = error(machine, function(*data.sets[0]), right, unit)
            if off < 64:
                row["seconds"][name] = machine.time(function, data.sets, seconds)
            else:
                row["wrong"][name] = off
        except Exception as problem:  # a peer that cannot do a case must not end the run
            row["failed"][name] = f"{type(problem).__name__}: {str(problem)[:120]}"
    return row


def overhead(machine):
    """Microseconds of host time that one call takes which does not wait for the device."""
    found = {}
    shape = (2, 3, 4, 4) if machine.dry else SMALL
    data = Data(machine, shape, "ncs", machine.torch.float32)
    for op in ("training", "backward", "inference"):
        for name, entrant in ENTRANTS.items():
            with contextlib.suppress(Exception):
                function, first = entrant(machine, data, op), data.sets[0]
                count = 1 if machine.dry else 500
                rounds = []
                for _ in range(1 if machine.dry else 5):
                    machine.sync()
                    start = time.perf_counter()
                    for _ in range(count):
                        function(*first)
                    rounds.append((time.perf_counter() - start) / count * 1e6)
                found[f"{op}, {name}"] = round(min(rounds), 2)
    return found


@contextlib.contextmanager
def forced(regime):
    """Have plans made of one kind where they can be: "resident", "swept" or "passes".

    What a device has is left as it is but for what forbids a kind: groups of swept tiles are as
    large as ever.
    """
    from bnnumba.gpu import driver

    device = driver.device(0)
    true = device.traits
    without = {"resident": {}, "swept": {"shared": 0}, "passes": {"shared": 0, "l2": 0}}
    device.traits = true._replace(**without[regime])
    try:
        with cut({} if regime == "passes" else {"TILE_SHARE": 1e-9}):  # tiles of any size
            yield
    finally:
        device.traits = true


def plans(machine, shapes, seconds):
    """Times of each kind of kernel on each shape, for the thresholds of `bnnumba.gpu.plan`."""
    for shape, layout, op in itertools.product(shapes, ("ncs", "rc"), ("training", "backward")):
        data = Data(machine, shape, layout, machine.torch.float32)
        row = []
        for regime in ("resident", "swept", "passes"):
            with forced(regime):
                function = own(data, op)
                names = launched(function, data.sets[0])  # others where a tile does not fit
                taken = machine.time(function, data.sets, seconds)
            row.append(f"{regime} {taken * 1e6:9.1f} us ({', '.join(names)})")
        print(f"{op:9} {layout:3} {'x'.join(map(str, shape)):18}", *row, flush=True)


def launched(function, arrays):
    """The names of the kernels that a call launches."""
    from bnnumba.gpu import driver

    device, names = type(driver.device(0)), []
    launch = device.launch

    def noting(self, kernel, *arguments):
        names.append(kernel.name)
        return launch(self, kernel, *arguments)

    device.launch = noting
    try:
        function(*arrays)
    finally:
        device.launch = launch
    return names


@contextlib.contextmanager
def cut(constants):
    """Have plans made with other constants of `bnnumba.gpu.plan`."""
    from bnnumba.gpu import plan

    def put(values):
        for name, value in values.items():
            setattr(plan, name, value)
        for function in (plan.plan_passes, plan.plan_sweeps, plan.plan_merge):
            function.cache_clear()

    usual = {name: getattr(plan, name) for name in constants}
    put(constants)
    try:
        yield
    finally:
        put(usual)


def cuts(machine, shapes, seconds):
    """Times of larger and smaller blocks, and groups, in units of those of the usual ones."""
    kib, threads, shares = (8, 16, 32, 64, 128), (64, 128, 256, 512), (4, 8, 16)
    if machine.dry:
        kib, threads, shares = (8,), (64,), (4, 8)
    tried = {
        f"{most:3} threads, {size:2} KiB a block, 1/{share} of L2 a group": {
            "THREADS": most, "PASS_BYTES": size << 10, "SWEEP_BYTES": size << 10,
            "LEAST_JOB_BYTES": min(8, size) << 10, "GROUP_SHARE": share,
        }
        for most, size, share in itertools.product(threads, kib, shares)
    }  # fmt: skip
    for layout, op in itertools.product(("ncs", "rc"), OPS):
        found = {name: [] for name in tried}
        for shape in shapes:
            data = Data(machine, shape, layout, machine.torch.float32)
            function = own(data, op)
            usual = machine.time(function, data.sets, seconds)
            for name, constants in tried.items():
                with cut(constants):
                    found[name].append(machine.time(function, data.sets, seconds) / usual)
        best = sorted(found, key=lambda name: geometric_mean(found[name]))[:5]
        for name in best:
            print(f"{op:9} {layout:3} {geometric_mean(found[name]):.3f}  {name}", flush=True)


def geometric_mean(values):
    return statistics.geometric_mean(values) if values else None


def summary(rows):
    """What the goals speak of: speed beside PyTorch's best, and share of the copy ceiling."""
    found = {}
    for op in OPS:
        mine = [r for r in rows if r["op"] == op and "bnnumba" in r["seconds"]]
        peers = ("PyTorch native", "cuDNN")
        ratios = [
            min(r["seconds"][p] for p in peers if p in r["seconds"]) / r["seconds"]["bnnumba"]
            for r in mine
            if any(p in r["seconds"] for p in peers)
        ]
        shares = [TRAFFIC[op] * r["copy"] / r["seconds"]["bnnumba"] for r in mine]
        found[op] = {
            "speedup": geometric_mean(ratios), "least_speedup": min(ratios, default=None),
            "share": geometric_mean(shares), "least_share": min(shares, default=None),
        }  # fmt: skip
    return found


def _number(value, form="{:.2f}"):
    return "-" if value is None else form.format(value)


def markdown(result):
    """The report."""
    names = [*ENTRANTS, *EXTRA]
    lines = [
        f"# {result['device']}", "",
        "Medians of CUDA events, in microseconds; inputs rotate through copies larger than the L2",
        "cache. Each result was compared with float64 before it was timed. *Of a copy* is the time",
        "that a device-to-device copy of the same bytes would take (one read and one write for",
        "forward and inference, two reads and one write for backward, one read for moments), over",
        "the time of bnnumba. PyTorch's moments of bfloat16 are those of a copy in float32.", "",
        *(f"- {name}: {version}" for name, version in result["versions"].items()), "",
        "| operation | beside PyTorch's best | least | of a copy | least | goals |",
        "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for op, s in result["summary"].items():
        goal = f"{SPEEDUP} x, " if op in ("training", "backward") else ""
        lines.append(
            f"| {op} | {_number(s['speedup'])} | {_number(s['least_speedup'])} | "
            f"{_number(s['share'])} | {_number(s['least_share'])} | {goal}{GOALS[op]} |"
        )
    lines += ["", "## Host time of a small call", "", "| call | us |", "|---|---:|"]
    lines += [f"| {call} | {us} |" for call, us in result["overhead"].items()]
    head = ["case", "copy", *names, "of a copy"]
    lines += ["", "## All cases", "", f"| {' | '.join(head)} |"]
    lines.append("|---|" + "---:|" * (len(head) - 1))
    for r in result["rows"]:
        case = f"{r['op']} {r['layout']} {r['dtype']} {'x'.join(map(str, r['shape']))}"
        own_seconds = r["seconds"].get("bnnumba")
        share = own_seconds and TRAFFIC[r["op"]] * r["copy"] / own_seconds
        cells = [_cell(r, name) for name in names]
        copy = f"{r['copy'] * 1e6:.1f}"
        lines.append(f"| {' | '.join([case, copy, *cells, _number(share)])} |")
    return "\n".join(lines) + "\n"


def _cell(row, name):
    if name in row["seconds"]:
        return f"{row['seconds'][name] * 1e6:.1f}"
    return "wrong" if name in row["wrong"] else "-"


def versions(machine):
    """What took part."""
    import numba

    import bnnumba

    torch = machine.torch
    found = {"bnnumba": bnnumba.__version__, "Numba": numba.__version__}
    found["PyTorch"] = torch.__version__
    if not machine.dry:
        found["CUDA of PyTorch"] = torch.version.cuda
        found["cuDNN"] = torch.backends.cudnn.version()
    for name in ("numba_cuda", "cupy", "triton"):
        with contextlib.suppress(Exception):
            found[name] = __import__(name).__version__
    return found


def save(machine, rows, host, into):
    """Write what there is to a directory, unless that is None, and return the report."""
    result = {
        "device": machine.name, "versions": versions(machine), "summary": summary(rows),
        "overhead": host, "rows": rows,
    }  # fmt: skip
    report = markdown(result)
    if into is not None:
        into.mkdir(parents=True, exist_ok=True)
        (into / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (into / "gpu.md").write_text(report)
    return report


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--into", type=pathlib.Path, help="directory of the report")
    parser.add_argument("--seconds", type=float, default=150, help="time for everything")
    parser.add_argument("--plans", action="store_true", help="time other plans instead")
    parser.add_argument("--dry-run", action="store_true", help="the same code without a GPU")
    arguments = parser.parse_args()
    if arguments.dry_run:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        sys.path.insert(0, str(_ROOT / "tests"))
        from device_standins import SimulatedTorch

        SimulatedTorch()
    machine = Machine(arguments.dry_run)
    torch = machine.torch
    batch, shapes = BATCH, RESNET50
    if machine.dry:
        batch, shapes = 2, ((3, 4, 4), (4, 5, 3))
    cases = [(batch, *shape) for shape in shapes]
    if arguments.plans:
        plans(machine, cases, 0.05)
        cuts(machine, cases[::4], 0.01)
        return 0
    into = arguments.into or (None if machine.dry else _ROOT / "docs" / "benchmarks")
    rows, end = [], time.monotonic() + arguments.seconds
    todo = list(itertools.product(cases, ("ncs", "rc"), (torch.float32, torch.bfloat16), OPS))

    def has_extra(case):  # compiling those takes long, so that they come last
        return case[0] == cases[1] and case[2] == torch.float32

    todo.sort(key=has_extra)
    for number, (shape, layout, dtype, op) in enumerate(todo):
        if time.monotonic() > end:
            print(f"{len(todo) - number} of {len(todo)} cases are left out: no time")
            break
        extra = has_extra((shape, layout, dtype, op))
        try:
            row = race(machine, shape, layout, dtype, op, 0.03, extra)
        except Exception as problem:  # most likely no memory
            print(f"left out: {op} {layout} {dtype} {shape}: {problem}", flush=True)
            continue
        rows.append(row)
        print(json.dumps(row), flush=True)
        save(machine, rows, {}, into)  # lest all is lost if the time runs out
    report = save(machine, rows, overhead(machine), into)
    print(report)
    lacking = [row for row in rows if "bnnumba" not in row["seconds"]]
    for row in lacking:
        print("bnnumba has no time:", json.dumps(row))
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
