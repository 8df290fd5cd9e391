"""Reads the text of a compiled TPU program: what it sends, and how long its parts are to take.

Bodies of loops count as often as they run. XLA's own cost analysis counts them once, so its sums
are multiplied by `Program.loop_factors`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = {
    "fusion": re.compile(r"calls=%?([\w.\-]+)"),
    "async-start": re.compile(r"calls=%?([\w.\-]+)"),
    "call": re.compile(r"to_apply=%?([\w.\-]+)"),
    "conditional": re.compile(r"(?:_computation=|branch_computations=\{|, )%([\w.\-]+)"),
    "while": re.compile(r"body=%?([\w.\-]+)"),
}
COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
# A gather that goes on beside other work is written once in each fusion that takes it a step on.
_STEP = re.compile(r'channel_id=(\d+),.*\bchain_id="(\d+)"')
BETWEEN_SLICES = "between-slices"  # By hosts, over their network.
# What the kinds of operations in `Program.cycles` mean.
KINDS = {
    "convolutions": "convolutions of both networks, forward and backward",
    "power_iteration": "u, v and sigma of spectral norm, and the gradient through sigma",
    "attention": "products, softmax and pooling of attention, without its 1x1 convolutions",
    "resampling": "up- and down-sampling outside convolutions, and gradients of biases",
    "reductions": "sums of batch norm and other sums in the networks",
    "orthogonal": "products of orthogonal regularisation",
    "optimizer_ema": "Adam, EMA, sums of gradients and norms of all weights",
    "other": "random numbers, elementwise work and copies",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = shape opcode(operands), rest`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


class Program:
    """A compiled module: its computations and how often each is run.

    Attributes:
      computations: {name: instructions}.
      runs: {name: how often it runs in one call of the program}, 0 for those not reached.
      unknown_loops: names of loops whose length the text does not tell; they count once.
    """

    def __init__(self, text: str):
        """Reads the text that `compiled.as_text()` gives."""
        self.computations, self._entry = _parse(text)
        self._shapes = {
            name: {line.name: line.shape for line in lines}
            for name, lines in self.computations.items()
        }
        self.unknown_loops: list[str] = []
        self.runs = dict.fromkeys(self.computations, 0)
        # Those that run by themselves; what is inside a fusion is timed with the fusion.
        self._timed = {self._entry}
        self.runs[self._entry] = 1
        # A computation stands before those that call it.
        for name in reversed(self.computations):
            if self.runs[name]:
                for line in self.computations[name]:
                    self._follow(name, line)

    def collectives(self) -> dict[str, dict[str, float]]:
        """Returns {kind: {"count", "bytes"}} of one device and one call of the program.

        Bytes are what an all-gather makes, and what all others take. Of several slices the program
        has collectives within a slice, and what a device hands to its host for the other slices.
        """
        found: dict[str, dict[str, float]] = {}
        chains: set[tuple[str, ...]] = set()
        for runs, name, line in self._lines():
            kind = line.opcode.removesuffix("-start")
            if kind == "send" and "megascale" in line.rest:
                kind = BETWEEN_SLICES
            elif kind not in COLLECTIVES:
                continue
            if step := _STEP.search(line.rest):
                if step.groups() in chains:
                    continue
                chains.add(step.groups())
            size = self._operand_bytes(name, line)
            if kind == "all-gather":  # The shape of a start has both sides.
                size = shape_bytes(line.shape) - (size if line.opcode != kind else 0)
            entry = found.setdefault(kind, {"count": 0, "bytes": 0})
            entry["count"] += runs
            entry["bytes"] += runs * size
        return found

    def cycles(self) -> dict[str, int]:
        """Returns {kind: the compiler's estimated cycles}; see `KINDS`. Links cost none here."""
        parts = dict.fromkeys(KINDS, 0)
        for runs, name, line in self._lines():
            match = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
            if match and name in self._timed:
                parts[self._kind(line)] += runs * int(match[1])
        return parts

    def loop_factors(self) -> tuple[float, float]:
        """Returns how many times larger FLOPs and bytes are than with each loop run once.

        FLOPs are those of products and convolutions; of bytes, operands and results of whatever
        runs by itself.
        """
        once, all_runs = [0.0, 0.0], [0.0, 0.0]
        for runs, name, line in self._lines():
            flops = self._product_flops(name, line)
            moved = 0.0
            if name in self._timed and line.opcode in ("fusion", "convolution", "copy"):
                moved = shape_bytes(line.shape) + self._operand_bytes(name, line)
            for i, value in enumerate((flops, moved)):
                once[i] += min(runs, 1) * value
                all_runs[i] += runs * value
        flops, moved = (a / o if o else 1.0 for a, o in zip(all_runs, once, strict=True))
        return flops, moved

    def _lines(self) -> Iterator[tuple[int, str, Instruction]]:
        for name, lines in self.computations.items():
            for line in lines if self.runs[name] else ():
                yield self.runs[name], name, line

    def _follow(self, name, line):
        pattern = _CALLS.get(line.opcode)
        times = self._trips(line) if line.opcode == "while" else 1
        for called in pattern.findall(line.rest) if pattern else ():
            if called in self.runs:
                self.runs[called] += times * self.runs[name]
                if line.opcode not in ("fusion", "async-start") and name in self._timed:
                    self._timed.add(called)

    def _trips(self, line):
        match = re.search(r"known_trip_count\D*(\d+)", line.rest)
        if match:
            return int(match[1])
        condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
        lines = self.computations.get(condition[1], []) if condition else []
        # JAX's loops count from 0 by 1 while below a constant.
        bounds = [x.rest for x in lines if x.opcode == "constant" and x.shape.startswith("s32[]")]
        below = any(x.opcode == "compare" and "direction=LT" in x.rest for x in lines)
        if below and len(bounds) == 1 and (number := re.match(r"\((\d+)\)", bounds[0])):
            return int(number[1])
        self.unknown_loops.append(line.name)
        return 1

    def _operand_bytes(self, name, line):
        shapes = self._shapes[name]
        return sum(shape_bytes(shapes.get(operand, "")) for operand in line.operands)

    def _product_flops(self, name, line):
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
        if line.opcode != "convolution" or labels is None:
            return 0.0
        given, kernel = (
            dict(zip(letters, dimensions(self._shapes[name][operand]), strict=True))
            for letters, operand in zip(labels.groups(), line.operands, strict=False)
        )
        made = dict(zip(labels[3], dimensions(line.shape), strict=True))
        # A product with a vector lacks one of them.
        flops = 2.0 * made.get("b", 1) * made.get("f", 1) * kernel.get("i", 1)
        for axis in filter(str.isdigit, made):
            flops *= _products(line.rest, int(axis), given[axis], kernel[axis], made[axis])
        return flops

    def _kind(self, line):
        """The kind of a line; a fusion around a product is named by the product."""
        names = [_op_name(line)]
        if line.opcode == "fusion" and (called := _CALLS["fusion"].search(line.rest)):
            inner = self.computations.get(called[1], [])
            products = [_op_name(x) for x in inner if x.opcode == "convolution"]
            names = sorted(products, key=lambda n: "conv_general_dilated" not in n) or names
        return kind_of(names[0])


def kind_of(op_name: str) -> str:
    """Returns which of `KINDS` an operation is, by the name JAX gave it ("jit(step)/...")."""
    network = "Generator" in op_name or "Discriminator" in op_name
    last = op_name.rsplit("/", 1)[-1]
    if ".normalized" in op_name or "/sigmas/" in op_name:
        return "power_iteration"
    if last == "conv_general_dilated":
        return "convolutions"
    if not network:
        if last == "dot_general":
            return "orthogonal"
        random = any(w in op_name for w in ("_normal", "_randint", "threefry", "_uniform", "_keys"))
        known = op_name.startswith("jit(") and last not in ("stack", "reshape")
        return "optimizer_ema" if known and not random else "other"
    if re.search(r"/attention\d*/", op_name):
        return "attention"
    convolved = re.search(r"/(\w*conv\w*)/", op_name) is not None
    if convolved and last in ("reduce_sum", "broadcast_in_dim", "reduce_window_sum"):
        return "resampling"
    if last.startswith("reduce"):
        return "reductions"
    return "other"


def _products(text, axis, given, kernel, made):
    """How many products of an input and a kernel entry a convolution takes along an axis.

    Those with padding and with the holes of dilation are none: the TPU compiler makes a product of
    batches a convolution over them, whose window is as large as the batch and nearly all holes.
    """

    def option(name, default):
        match = re.search(rf"window=\{{[^}}]*\b{name}=([\d_x-]+)", text)
        return match[1].split("x")[axis] if match else default

    stride, holes, spread = (
        int(option(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    before = int(option("pad", "0_0").split("_")[0])
    places = (o * stride + k * spread - before for o in range(made) for k in range(kernel))
    return sum(0 <= p <= (given - 1) * holes and p % holes == 0 for p in places)


def shape_bytes(shape: str) -> float:
    """Returns the bytes of an array or a tuple of arrays, without the padding of its layout."""
    total = 0.0
    for kind, sizes in _SHAPE.findall(shape):
        total += math.prod(int(n) for n in sizes.split(",") if n) * _item_bytes(kind)
    return total


def dimensions(shape: str) -> list[int]:
    """Returns the sizes of the first array in a shape."""
    match = _SHAPE.search(shape)
    return [int(n) for n in match[2].split(",") if n] if match else []


def _item_bytes(kind):
    if kind in _BYTES:
        return _BYTES[kind]
    bits = re.search(r"\d+", kind)  # f8e4m3fn is of 8 bits.
    return int(bits[0]) / 8 if bits else 0  # A token has none.


def _op_name(line):
    match = re.search(r'op_name="([^"]*)"', line.rest)
    return match[1] if match else ""


def _parse(text):
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (match := _LINE.match(line)):
            current.append(_instruction(match[1], match[2]))
    return computations, entry


def _instruction(name, text):
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, call = text[:end], text[end:].lstrip()
    opcode, _, _ = call.partition("(")
    rest = call[len(opcode) :]
    inside = rest[1 : _closing(rest, 0)] if rest else ""
    return Instruction(name, shape, opcode, tuple(_NAME.findall(inside)), rest)


def _closing(text, start):
    """Returns where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)
