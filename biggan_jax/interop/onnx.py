"""ONNX: the graph written node by node, with nothing but operations that every runtime has."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from biggan_jax.interop import graph
from biggan_jax.interop.frozen import Frozen

NAME = "onnx"
PACKAGES = ("onnx", "onnxruntime")
PROGRAM, OUTPUT = "generator.onnx", "images"
USE = """import onnxruntime

session = onnxruntime.InferenceSession("generator.onnx", providers=["CPUExecutionProvider"])
images = session.run(["images"], {"z": z, "y": y, "truncation": truncation})[0]"""
# Old ones, which runtimes of 2022 and later read; newer ones would bring nothing here.
_OPSET, _IR = 17, 8


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The name of a value in the graph.

    Attributes:
      ops: that make more of it.
      name: unique.
      shape: (C, H, W) of a map, else empty: nobody asks.
    """

    ops: "OnnxOps"
    name: str
    shape: tuple[int, ...] = ()

    def __add__(self, other: "Tensor") -> "Tensor":
        """Adds; a map is on the left."""
        return self.ops.node("Add", self, other, shape=self.shape)

    def __sub__(self, other: "Tensor") -> "Tensor":
        """Subtracts; a map is on the left."""
        return self.ops.node("Sub", self, other, shape=self.shape)

    def __mul__(self, other: "Tensor") -> "Tensor":
        """Multiplies; a map is on the left."""
        return self.ops.node("Mul", self, other, shape=self.shape)


class OnnxOps:
    """`graph.Ops` as nodes of ONNX; maps are NCHW.

    Attributes:
      nodes: in the order of the computation.
      initializers: the arrays, by name.
    """

    def __init__(self, frozen: Frozen):
        """Takes the generator."""
        self._arrays = frozen.arrays
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}

    def node(
        self, kind: str, *inputs: Tensor, shape: tuple[int, ...] = (), **attributes: Any
    ) -> Tensor:
        """Adds a node and returns its result."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        names = [tensor.name for tensor in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], name, **attributes))
        return Tensor(self, name, shape)

    def _initializer(self, name, value):
        self.initializers[name] = value
        return Tensor(self, name)

    def weight(self, name: str) -> Tensor:
        """Returns a frozen array."""
        return self._initializer(name, self._arrays[name])

    def constant(self, value: np.ndarray | np.floating) -> Tensor:
        """Returns an array that is part of the graph; equal ones are there once."""
        value = np.asarray(value)
        for name, have in self.initializers.items():
            same = name.startswith("constant_") and have.dtype == value.dtype
            if same and np.array_equal(have, value):
                return Tensor(self, name)
        return self._initializer(f"constant_{len(self.initializers)}", value)

    def _integers(self, *values):
        return self.constant(np.array(values, np.int64))

    def _reshape(self, x, target, shape=()):
        """0 keeps an axis, -1 takes the rest."""
        return self.node("Reshape", x, self._integers(*target), shape=shape)

    def matmul(self, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
        """Multiplies."""
        b = self.node("Transpose", b, perm=[0, 2, 1]) if transpose_b else b
        return self.node("MatMul", a, b)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Puts columns beside each other."""
        return self.node("Concat", *parts, axis=1)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Returns some columns."""
        return self.node("Slice", x, *(self._integers(i) for i in (start, stop, 1)))

    def unit(self, x: Tensor) -> Tensor:
        """Limits to [0, 1]."""
        return self.node("Clip", x, *(self.constant(np.float32(i)) for i in (0, 1)))

    def rsqrt(self, x: Tensor) -> Tensor:
        """Returns 1 / sqrt(x)."""
        return self.node("Reciprocal", self.node("Sqrt", x))

    def relu(self, x: Tensor) -> Tensor:
        """Returns max(x, 0)."""
        return self.node("Relu", x, shape=x.shape)

    def softmax(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        return self.node("Softmax", x, axis=-1)

    def first_map(self, x: Tensor, channels: int) -> Tensor:
        """Makes the map that the blocks start from."""
        x = self._reshape(x, (-1, 4, 4, channels))
        return self.node("Transpose", x, perm=[0, 3, 1, 2], shape=(channels, 4, 4))

    def spread(self, x: Tensor, channels: int) -> Tensor:
        """Makes numbers a channel fit a map."""
        return self._reshape(x, (-1, channels, 1, 1))

    def conv(self, x: Tensor, place: str) -> Tensor:
        """Convolves; the kernel is stored as [out, in, height, width]."""
        name = f"{place}/kernel"
        kernel = np.ascontiguousarray(self._arrays[name].transpose(3, 2, 0, 1))
        inputs = [self._initializer(name, kernel)]
        if f"{place}/bias" in self._arrays:
            inputs.append(self.weight(f"{place}/bias"))
        size = kernel.shape[2]
        return self.node(
            "Conv",
            x,
            *inputs,
            shape=(kernel.shape[0], *x.shape[1:]),
            kernel_shape=[size, size],
            pads=[size // 2] * 4,
        )

    def up(self, x: Tensor) -> Tensor:
        """Repeats each pixel 2x2."""
        c, h, w = x.shape
        nothing = Tensor(self, "")
        return self.node(
            "Resize",
            x,
            nothing,
            self.constant(np.array([1, 1, 2, 2], np.float32)),
            shape=(c, 2 * h, 2 * w),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def unpool(self, x: Tensor) -> Tensor:
        """Puts zeros between pixels."""
        c, h, w = x.shape
        y = self._reshape(x, (-1, c, h, 1, w, 1))
        pads = self._integers(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1)  # Before all axes, then behind.
        y = self.node("Pad", y, pads, mode="constant")
        return self._reshape(y, (-1, c, 2 * h, 2 * w), (c, 2 * h, 2 * w))

    def first_channels(self, x: Tensor, count: int) -> Tensor:
        """Drops the other channels."""
        shape = (count, *x.shape[1:])
        return self.node("Slice", x, *(self._integers(i) for i in (0, count, 1)), shape=shape)

    def max_pool(self, x: Tensor) -> Tensor:
        """Takes the largest of 2x2 pixels."""
        c, h, w = x.shape
        shape = (c, h // 2, w // 2)
        return self.node("MaxPool", x, shape=shape, kernel_shape=[2, 2], strides=[2, 2])

    def pixels(self, x: Tensor) -> Tensor:
        """Makes a row of pixels."""
        c, h, w = x.shape
        return self.node("Transpose", self._reshape(x, (-1, c, h * w)), perm=[0, 2, 1])

    def as_map(self, x: Tensor, size: int) -> Tensor:
        """The inverse of `pixels`."""
        x = self.node("Transpose", x, perm=[0, 2, 1])
        return self._reshape(x, (0, -1, size, size), (0, size, size))

    def images(self, x: Tensor) -> Tensor:
        """Returns tanh, NHWC as in all our exports."""
        return self.node("Transpose", self.node("Tanh", x), perm=[0, 2, 3, 1])


def write(frozen: Frozen, folder: str) -> None:
    """Writes `generator.onnx`, checked by onnx.

    Args:
      frozen: the generator.
      folder: is there and empty.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model, ops = frozen.model, OnnxOps(frozen)
    shapes = {
        "z": ["batch", model["z_dim"]],
        "y": ["batch", model["num_classes"]],
        "truncation": [],
        OUTPUT: ["batch", model["resolution"], model["resolution"], 3],
    }
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    z, y, truncation = (Tensor(ops, name) for name in list(shapes)[:-1])
    images = graph.generator(ops, frozen, z, y, truncation)
    ops.nodes.append(helper.make_node("Identity", [images.name], [OUTPUT], OUTPUT))
    arrays = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in ops.initializers.items()
    ]
    made = helper.make_model(
        helper.make_graph(ops.nodes, "generator", values[:-1], values[-1:], arrays),
        producer_name="biggan-jax",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
    )
    onnx.checker.check_model(made)
    onnx.save(made, os.path.join(folder, PROGRAM))


def load(folder: str) -> Callable[..., np.ndarray]:
    """Returns `generate(z, y, truncation)` of a folder, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.path.join(folder, PROGRAM), providers=["CPUExecutionProvider"]
    )

    def generate(z, y, truncation):
        inputs = {"z": z, "y": y, "truncation": truncation}
        return session.run([OUTPUT], {k: np.asarray(v, np.float32) for k, v in inputs.items()})[0]

    return generate
