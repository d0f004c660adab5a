"""An ONNX graph as it is written down: operators named by what they give. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPS = float(np.finfo(np.float32).eps)  # of the RMS norm


class Graph:
    """Nodes and constants in order; each method gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """One operator; the name of its output, or a list of them."""
        from onnx import helper

        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def named(self, name: str, kind: str, *inputs: str, **attributes: Any) -> None:
        """One operator whose output is the graph's own, `name`."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))

    def constant(self, name: str, value: ArrayLike) -> str:
        """A tensor of the file; one that is named twice is stored once."""
        self.constants.setdefault(name, np.asarray(value))
        return name

    def number(self, value: float, dtype: Any = np.float32) -> str:
        """A scalar."""
        kind = np.dtype(dtype)
        return self.constant(f"{kind.name}:{value!r}", np.array(value, kind))

    def ints(self, *values: int) -> str:
        """A vector of int64, as shapes and axes are."""
        return self.constant(f"ints:{values}", np.array(values, np.int64))

    def cast(self, x: str, dtype: Any) -> str:
        """`x` in another type."""
        from onnx import helper

        return str(self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def reshape(self, x: str, *shape: int) -> str:
        """`x` with another shape; 0 keeps an axis, -1 is what is left."""
        return str(self.op("Reshape", x, self.ints(*shape)))

    def slice(self, x: str, start: int, end: int, axis: int) -> str:
        """x[start:end] along an axis."""
        cut = (self.ints(start), self.ints(end), self.ints(axis))
        return str(self.op("Slice", x, *cut))

    def concat(self, *parts: str, axis: int) -> str:
        """Parts one after another along an axis."""
        return str(self.op("Concat", *parts, axis=axis))

    def mul(self, x: str, y: str) -> str:
        """x * y."""
        return str(self.op("Mul", x, y))

    def add(self, x: str, y: str) -> str:
        """x + y."""
        return str(self.op("Add", x, y))

    def rms(self, x: str) -> str:
        """x over its root mean square along the last axis."""
        mean = self.op("ReduceMean", self.mul(x, x), self.ints(-1), keepdims=1)
        return str(self.op("Div", x, self.op("Sqrt", self.add(mean, self.number(EPS)))))

    def lerp(self, x: str, y: str, weight: str) -> str:
        """x + weight * (y - x)."""
        return self.add(x, self.mul(weight, self.op("Sub", y, x)))
