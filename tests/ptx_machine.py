"""Runs PTX as a GPU would, for tests where there is none.

The threads of a block go through a kernel together, each at its own place in the code, those that
are furthest behind first. What a GPU leaves undefined, or nobody sees there, is an error here: an
access out of bounds or not aligned, a race in shared memory between two barriers, reading shared
memory that nobody wrote, a barrier or a shuffle that only a part of the threads comes to. Blocks
run one after the other, or mixed if a generator of random numbers says how. The order in which
memory is seen by other blocks is not modelled, nor what ptxas makes of PTX.
"""

import ctypes
import re
import struct

import ml_dtypes
import numpy as np

WARP = 32
MOST_STEPS = 3_000_000  # of a block: a kernel that takes more does not end

TYPES = {
    "f32": np.float32, "f64": np.float64, "pred": np.bool_,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
}  # fmt: skip
REGISTERS = {
    "rd": np.uint64, "rs": np.uint16, "h": np.uint16, "r": np.uint32, "fd": np.float64,
    "f": np.float32, "p": np.bool_,
}  # fmt: skip
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
ARITHMETIC = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.fmin, "max": np.fmax,
}  # fmt: skip
UNARY = {
    "not": np.invert, "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt,
    "rcp": lambda x: x.dtype.type(1) / x,
}  # fmt: skip
# How `struct` has what a parameter of a kernel is.
PARAMETERS = {
    "u64": ("q", np.int64), "b64": ("qd", np.float64), "f64": ("d", np.float64),
    "f32": ("f", np.float32), "b32": ("f", np.float32),
}  # fmt: skip
# Two float16 of a register, as the inline assembly of `bnnumba.gpu.simd` unpacks them.
HALVES = re.compile(
    r"\{\s*\.reg \.b16 a, b; mov\.b32 \{a, b\}, (%r\d+); cvt\.f32\.f16 (%[fr]\d+), a; "
    r"cvt\.f32\.f16 (%[fr]\d+), b;\}"
)
OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,{\[]+)")


class Fault(Exception):
    """What a GPU would not do, or must not be asked to."""


def _parse(ptx):
    """Return the parameters, the instructions and the labels of the kernel in a module."""
    text = ptx[ptx.index(".visible .entry") :]
    parameters = re.findall(r"\.param \.(\w+) (\w+)", text[: text.index(")")])
    body = re.sub(r"//.*", "", text[text.index("{") + 1 : text.rindex("}")])
    body = HALVES.sub(r"halves.b32 \2, \3, \1;", body)
    body = re.sub(r"\.reg [^;]*;", "", body)
    code, labels = [], {}
    for statement in map(str.strip, body.split(";")):
        rest = statement
        while found := re.match(r"(\$?\w+):\s*", rest):
            labels[found[1]] = len(code)
            rest = rest[found.end() :]
        if not rest:
            continue
        guard = None
        if found := re.match(r"@(!?)(%p\d+)\s+", rest):
            guard = (found[1] == "!", found[2])
            rest = rest[found.end() :]
        name, operands = re.match(r"(\S+)\s*(.*)$", rest, re.S).groups()
        listed = [operand.strip() for operand in OPERAND.findall(operands)]
        code.append((name, [operand for operand in listed if operand], guard))
    return parameters, code, labels


class Program:
    """A kernel that was compiled to PTX."""

    def __init__(self, ptx, form):
        self.parameters, self.code, self.labels = _parse(ptx)
        assert len(self.parameters) == len(form)
        for (kind, _), letter in zip(self.parameters, form, strict=True):
            assert letter in PARAMETERS[kind][0], (kind, letter)
        self.form = form
        # Where threads that took different ways may meet, or part.
        self.joints = set(self.labels.values()) | {
            at + 1
            for at, (name, _, _) in enumerate(self.code)
            if name.startswith(("bra", "bar", "ret", "exit"))
        }

    def run(self, memory, grid, threads, shared, arguments, mixed=None):
        """Run all blocks; `memory` has the size of each allocation by its address."""
        values = struct.unpack(self.form, struct.pack(self.form, *arguments))
        given = {
            name: np.full(threads, value, np.int64 if letter == "q" else PARAMETERS[kind][1])
            for (kind, name), value, letter in zip(self.parameters, values, self.form, strict=True)
        }
        with np.errstate(all="ignore"):
            blocks = [Block(self, memory, b, threads, shared, given) for b in range(grid)]
            if mixed is None:
                for block in blocks:
                    for _ in block.steps():
                        pass
                return
            going = [block.steps() for block in blocks]
            while going:
                at = int(mixed.integers(min(24, len(going))))
                for _ in range(int(mixed.integers(1, 30))):
                    if next(going[at], None) is None:
                        going.pop(at)
                        break


class Shared:
    """The shared memory of a block, and who touched each two bytes of it since the last barrier."""

    def __init__(self, size):
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.writer, self.written = np.full(size // 2 + 1, -1), np.full(size // 2 + 1, -1)
        self.reader, self.read_at = np.full(size // 2 + 1, -1), np.full(size // 2 + 1, -1)
        self.barriers = 0

    def access(self, addresses, width, threads, values=None):
        """Read, or write `values`, `width` bytes for each thread."""
        if (addresses < 0).any() or (addresses + width > len(self.bytes)).any():
            raise Fault(f"shared memory of {len(self.bytes)} bytes: access at {addresses.max()}")
        cells = (addresses[:, None] + np.arange(0, width, 2)) // 2
        mine = np.broadcast_to(threads[:, None], cells.shape)
        of_another = (self.written[cells] == self.barriers) & (self.writer[cells] != mine)
        if of_another.any():
            raise Fault("shared memory: a race with a thread that wrote")
        where = addresses[:, None] + np.arange(width)
        if values is None:
            if (self.written[cells] < 0).any():
                raise Fault("shared memory: read before anybody wrote")
            again = (self.read_at[cells] == self.barriers) & (self.reader[cells] != mine)
            flat = cells.ravel()
            self.reader[flat] = np.where(again, -2, mine).ravel()  # -2: several
            self.read_at[flat] = self.barriers
            cell, count = np.unique(flat, return_counts=True)
            self.reader[cell[count > 1]] = -2
            return self.bytes[where]
        if ((self.read_at[cells] == self.barriers) & (self.reader[cells] != mine)).any():
            raise Fault("shared memory: a race with a thread that read")
        if len(np.unique(cells)) != cells.size:
            raise Fault("shared memory: two threads write at once")
        self.writer[cells], self.written[cells] = mine, self.barriers
        self.bytes[where] = values
        return None


class Block:
    """The threads of one block: their registers, and where each is."""

    def __init__(self, program, memory, number, threads, shared, given):
        self.program, self.memory, self.number, self.given = program, memory, number, given
        self.count = threads
        self.thread = np.arange(threads)
        self.shared = Shared(shared)
        self.registers = {}
        self.at = np.zeros(threads, np.int64)
        self.ended = np.zeros(threads, bool)
        self.at_barrier = np.zeros(threads, bool)
        self.at_shuffle = np.zeros(threads, bool)
        self.last = None  # the allocation that was used last

    # --- threads ---------------------------------------------------------------------------

    def steps(self):
        """Run, and yield now and then."""
        steps = 0
        while not self.ended.all():
            able = ~(self.ended | self.at_barrier | self.at_shuffle)
            if not able.any():
                self._release()
                continue
            at = int(self.at[able].min())
            active = able & (self.at == at)
            yield True
            while active is not None:
                steps += 1
                if steps > MOST_STEPS:
                    raise Fault("the kernel does not end")
                at, active = self._step(at, active)

    def _release(self):
        if self.at_shuffle.any():
            raise Fault("a shuffle that a part of a warp never comes to")
        if self.ended.any() or len(np.unique(self.at)) != 1:
            raise Fault("a barrier that a part of the threads never comes to")
        self.at_barrier[:] = False
        self.shared.barriers += 1

    def _step(self, at, active):
        """Do one instruction; return where these threads go on, None if they part or stop."""
        name, operands, guard = self.program.code[at]
        doing = active
        if guard is not None:
            holds = self.register(guard[1])
            doing = active & (~holds if guard[0] else holds)
        kind = name.partition(".")[0]
        if kind in ("bra", "ret", "exit"):
            self.at[active] = at + 1
            if kind == "bra":
                self.at[doing] = self.program.labels[operands[0]]
            else:
                self.ended |= doing
            return at, None
        if kind in ("bar", "shfl"):
            assert guard is None
            assert name in ("bar.sync", "shfl.sync.down.b32"), name
            if kind == "bar":
                self.at[active] = at + 1
                self.at_barrier |= active
            else:
                self.at[active] = at
                self.at_shuffle |= active
                whole = self.at_shuffle & (self.at == at)
                whole = whole.reshape(-1, WARP).all(1).repeat(WARP)
                if whole.any():
                    self.shuffle(operands, whole)
                    self.at[whole] = at + 1
                    self.at_shuffle &= ~whole
            return at, None
        self.execute(name, operands, doing)
        if at + 1 in self.program.joints:
            self.at[active] = at + 1
            return at, None
        return at + 1, active

    def shuffle(self, operands, whole):
        """Give each thread of whole warps the value of one further on in its warp."""
        target, source, distance, clamp, members = operands
        assert int(clamp, 0) == WARP - 1
        assert int(members, 0) == -1
        steps = self.value(distance, np.uint32).astype(np.int64)
        inside = self.thread % WARP + steps < WARP
        values = self.value(source, np.uint32)[np.where(inside, self.thread + steps, self.thread)]
        names = target.split("|")
        self.put(names[0], values, whole)
        if len(names) > 1:
            self.put(names[1], inside, whole)

    # --- registers -------------------------------------------------------------------------

    def register(self, name):
        """Return the values of a register, one for each thread."""
        found = self.registers.get(name)
        if found is None:
            prefix = re.match(r"%(rd|rs|r|fd|f|p|h)\d+$", name)[1]
            found = self.registers[name] = np.zeros(self.count, REGISTERS[prefix])
        return found

    def value(self, operand, kind):
        """Return an operand, one for each thread, its bits seen as a type."""
        special = {"%tid.x": self.thread, "%ntid.x": self.count, "%ctaid.x": self.number}
        if operand in special:
            return np.broadcast_to(special[operand], self.count).astype(kind)
        if operand.startswith("%"):
            found = self.register(operand)
            if found.dtype.itemsize != np.dtype(kind).itemsize:
                raise Fault(f"{operand}: expected a register of {np.dtype(kind)}")
            return found.view(kind)
        size = np.dtype(kind).itemsize
        if operand == "bnnumba_shared":
            bits = 0
        elif operand.startswith(("0f", "0d")):
            bits = int(operand[2:], 16)
        else:
            bits = int(operand, 0) & ((1 << 8 * size) - 1)
        return np.full(self.count, np.array([bits], f"u{size}").view(kind)[0])

    def put(self, name, values, doing):
        """Write a register of the threads that are at it."""
        target = self.register(name)
        values = np.ascontiguousarray(values)
        if values.dtype.itemsize != target.dtype.itemsize:
            raise Fault(f"{name}: cannot hold {values.dtype}")
        np.copyto(target, values.view(target.dtype), where=doing)

    # --- memory ----------------------------------------------------------------------------

    def addresses(self, operand):
        """Return the address of an operand in brackets, one for each thread."""
        base, offset = re.match(
            r"\[(%rd\d+|%r\d+|bnnumba_shared)(?:\+(-?\d+))?\]", operand
        ).groups()
        start = 0 if base == "bnnumba_shared" else self.register(base).astype(np.int64)
        return np.broadcast_to(start + int(offset or 0), self.count)

    def allocation(self, first, end):
        """Return the bytes of the allocation that has all of a range, and its address."""
        if self.last is None or not self.last[1] <= first <= end <= self.last[2]:
            for start, size in self.memory.items():
                if start <= first and end <= start + size:
                    data = np.frombuffer((ctypes.c_ubyte * size).from_address(start), np.uint8)
                    self.last = data, start, start + size
                    break
            else:
                return None
        return self.last[:2]

    def access(self, space, operand, width, doing, values=None):
        """Read, or write `values`, `width` bytes for each thread."""
        addresses = self.addresses(operand)[doing]
        if (addresses % width).any():
            raise Fault(f"{space} memory: {width} bytes at an address that is not aligned")
        if space == "shared":
            return self.shared.access(addresses, width, self.thread[doing], values)
        found = np.zeros((len(addresses), width), np.uint8)
        if not len(addresses):
            return found
        whole = self.allocation(int(addresses.min()), int(addresses.max()) + width)
        pieces = [(slice(None), whole)] if whole else [
            (slice(k, k + 1), self.allocation(int(a), int(a) + width))
            for k, a in enumerate(addresses)
        ]  # fmt: skip
        for piece, place in pieces:
            if place is None:
                raise Fault(f"global memory: {width} bytes out of bounds")
            data, start = place
            where = (addresses[piece] - start)[:, None] + np.arange(width)
            if values is None:
                found[piece] = data[where]
            else:
                data[where] = values[piece]
        return found

    # --- instructions ----------------------------------------------------------------------

    def execute(self, name, operands, doing):
        """Do an instruction that is none of control."""
        kind, *modifiers = name.split(".")
        special = getattr(self, f"do_{kind}", None)
        if special is not None:
            special(modifiers, operands, doing)
        elif kind and modifiers[-1] == "f32x2":
            pairs = [np.ascontiguousarray(self.value(o, np.uint64)) for o in operands[1:]]
            a, b = (pair.view(np.float32) for pair in pairs)
            self.put(operands[0], ARITHMETIC[kind](a, b).view(np.uint64), doing)
        elif kind in UNARY:
            values = self.value(operands[1], TYPES[modifiers[-1]])
            self.put(operands[0], UNARY[kind](values), doing)
        elif kind:  # else a directive
            a, b = (self.value(operand, TYPES[modifiers[-1]]) for operand in operands[1:])
            self.put(operands[0], _arithmetic(kind, modifiers, a, b), doing)

    def do_ld(self, modifiers, operands, doing):
        if modifiers[0] == "param":
            self.put(operands[0], self.given[operands[1][1:-1]], doing)
            return
        kind = np.dtype(TYPES[modifiers[-1]])
        names = [name.strip() for name in operands[0].strip("{}").split(",")]
        space = next(m for m in modifiers if m in ("global", "shared"))
        raw = self.access(space, operands[1], kind.itemsize * len(names), doing)
        for number, name in enumerate(names):
            part = raw[:, number * kind.itemsize : (number + 1) * kind.itemsize]
            values = np.ascontiguousarray(part).view(kind).reshape(-1)
            target = self.register(name)
            if target.dtype.itemsize == kind.itemsize:
                target = target.view(kind)
            target[doing] = values  # a wider register of integers is filled with zeros

    def do_st(self, modifiers, operands, doing):
        kind = np.dtype(TYPES[modifiers[-1]])
        parts = []
        for name in (name.strip() for name in operands[1].strip("{}").split(",")):
            wide = self.register(name)
            narrow = wide.dtype.itemsize > kind.itemsize
            values = wide.astype(kind) if narrow else self.value(name, kind.type)
            values = np.ascontiguousarray(values[doing])
            parts.append(values.view(np.uint8).reshape(len(values), kind.itemsize))
        values = np.concatenate(parts, 1)
        self.access(modifiers[0], operands[0], values.shape[1], doing, values)

    def do_atom(self, modifiers, operands, doing):
        assert doing.sum() == 1
        address = int(self.addresses(operands[1])[doing][0])
        if self.allocation(address, address + 4) is None:
            raise Fault("global memory: an atomic out of bounds")
        place = ctypes.c_int32.from_address(address)
        self.put(operands[0], np.full(self.count, place.value, np.int32), doing)
        place.value += int(self.value(operands[2], np.int32)[doing][0])

    def do_nanosleep(self, modifiers, operands, doing):
        pass

    def do_popc(self, modifiers, operands, doing):
        kind = np.dtype(TYPES[modifiers[-1].replace("b", "u")])
        bits = np.ascontiguousarray(self.value(operands[1], kind.type)).view(np.uint8)
        counts = np.unpackbits(bits.reshape(self.count, -1), axis=1).sum(1)
        self.put(operands[0], counts.astype(np.uint32), doing)

    def do_halves(self, modifiers, operands, doing):
        bits = np.ascontiguousarray(self.value(operands[2], np.uint32)).view(np.float16)
        for name, values in zip(operands[:2], bits.reshape(-1, 2).T, strict=True):
            self.put(name, values.astype(np.float32), doing)

    def do_cvt(self, modifiers, operands, doing):
        rounded = next((m for m in modifiers if m.startswith(("bf16", "f16"))), None)
        if rounded and modifiers[-1] == "f32":
            kind = np.float16 if rounded.startswith("f16") else ml_dtypes.bfloat16
            halves = [self.value(o, np.float32).astype(kind).view(np.uint16) for o in operands[1:]]
            if rounded.endswith("x2"):
                high, low = (half.astype(np.uint32) for half in halves)
                self.put(operands[0], high << 16 | low, doing)
            else:
                self.put(operands[0], halves[0], doing)
            return
        to, source = modifiers[-2:]
        if source == "f16":
            values = self.value(operands[1], np.uint16).view(np.float16)
            self.put(operands[0], values.astype(np.float32), doing)
            return
        kind = np.dtype(TYPES[source])
        wide = self.register(operands[1]) if re.match(r"%[a-z]+\d", operands[1]) else None
        if wide is not None and wide.dtype.itemsize > kind.itemsize:  # its lower part is meant
            values = wide.astype(f"u{kind.itemsize}").view(kind)
        else:
            values = self.value(operands[1], kind.type)
        assert np.dtype(TYPES[to]).kind == "f" or kind.kind in "iu", modifiers
        self.put(operands[0], values.astype(TYPES[to]), doing)

    def do_mov(self, modifiers, operands, doing):
        kind = np.dtype(TYPES[modifiers[-1]])
        target, source = operands
        if target.startswith("{"):
            names = [name.strip() for name in target.strip("{}").split(",")]
            size = kind.itemsize // len(names)
            parts = np.ascontiguousarray(self.value(source, kind.type)).view(f"u{size}")
            for name, values in zip(names, parts.reshape(self.count, -1).T, strict=True):
                if name != "_":
                    self.put(name, values, doing)
        elif source.startswith("{"):
            names = [name.strip() for name in source.strip("{}").split(",")]
            part = np.dtype(f"u{kind.itemsize // len(names)}")
            parts = np.stack([self.value(name, part.type) for name in names], 1)
            self.put(target, np.ascontiguousarray(parts).view(kind).reshape(-1), doing)
        else:
            self.put(target, self.value(source, kind.type), doing)

    def do_selp(self, modifiers, operands, doing):
        kind = TYPES[modifiers[-1]]
        a, b = self.value(operands[1], kind), self.value(operands[2], kind)
        self.put(operands[0], np.where(self.register(operands[3]), a, b), doing)

    def do_setp(self, modifiers, operands, doing):
        kind = np.dtype(TYPES[modifiers[-1]])
        a, b = (self.value(operand, kind.type) for operand in operands[1:])
        name = modifiers[0]
        unordered = np.isnan(a) | np.isnan(b) if kind.kind == "f" else np.zeros(self.count, bool)
        if name in COMPARISONS:
            found = COMPARISONS[name](a, b) & ~unordered
        else:
            found = COMPARISONS[name.removesuffix("u")](a, b) | unordered
        self.put(operands[0], found, doing)

    def _shifted(self, left, modifiers, operands, doing):
        kind = np.dtype(TYPES[modifiers[-1]])
        bits = 8 * kind.itemsize
        value = self.value(operands[1], kind.type)
        by = self.value(operands[2], np.uint32).astype(np.int64)
        within = np.minimum(by, bits - 1).astype(kind)
        found = value << within if left else value >> within
        if left or kind.kind == "u":
            found = np.where(by >= bits, 0, found).astype(kind)
        self.put(operands[0], found, doing)

    def do_shl(self, modifiers, operands, doing):
        self._shifted(True, modifiers, operands, doing)

    def do_shr(self, modifiers, operands, doing):
        self._shifted(False, modifiers, operands, doing)

    def do_fma(self, modifiers, operands, doing):
        kind = TYPES[modifiers[-1]]
        a, b, c = (self.value(operand, kind) for operand in operands[1:])
        wider = {np.float32: np.float64, np.float64: np.longdouble}.get(kind, kind)
        self.put(operands[0], (a.astype(wider) * b + c).astype(kind), doing)

    do_mad = do_fma


def _arithmetic(kind, modifiers, a, b):
    """Return what an instruction of two operands makes of them."""
    if kind == "mul" and modifiers[0] == "wide":
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return a.astype(wide) * b.astype(wide)
    if kind in ("div", "rem") and a.dtype.kind in "iu":
        divisor = np.where(b == 0, 1, b).astype(b.dtype)
        rest = np.fmod(a, divisor)
        return rest if kind == "rem" else ((a - rest) // divisor).astype(a.dtype)
    return ARITHMETIC[kind](a, b).astype(a.dtype)
