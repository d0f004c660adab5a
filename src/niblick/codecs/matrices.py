"""Every parameter as a matrix (R, C) whose columns are coded in turn.

Matrices and embeddings are as they are; a depthwise filter (channels, 1, width) is (channels,
width); control vectors are (channels, rows), so that each of their rows becomes a column with
statistics of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from niblick.codecs.quantized import Floats
from niblick.plan import Parameter, Role

_CONTROLS = (Role.VECTOR, Role.SCALAR)


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """(R, C) of a parameter."""
    shape = parameter.shape or (1,)
    rows = shape[-1] if parameter.role in _CONTROLS else shape[0]
    return rows, parameter.size // max(rows, 1)


def laid_out(parameter: Parameter, tensor: Any) -> Any:
    """`tensor`, of NumPy or torch, in the layout (R, C)."""
    rows, columns = matrix_shape(parameter)
    if parameter.role in _CONTROLS:
        return tensor.reshape(columns, rows).T
    return tensor.reshape(rows, columns)


def as_matrix(parameter: Parameter, tensor: Floats) -> Floats:
    """`tensor` in the layout (R, C), contiguous."""
    return np.ascontiguousarray(laid_out(parameter, tensor))


def from_matrix(parameter: Parameter, matrix: Floats) -> Floats:
    """Undo `as_matrix`."""
    return (matrix.T if parameter.role in _CONTROLS else matrix).reshape(parameter.shape)


def origin(parameter: Parameter) -> Floats:
    """What control vectors and scalars are coded as differences from: about where training began.

    For other roles it is 0. A phase is rounded to 1/64, so that no library's exponential function
    takes part in decoding.
    """
    init = parameter.init
    if parameter.role not in _CONTROLS:
        return np.zeros((), dtype=np.float32)
    value = np.zeros(parameter.shape, dtype=np.float32)
    if init.kind == "constant":
        value[...] = init.value
    elif init.kind == "phase":
        value[0], value[1] = round(init.value * 64) / 64, 1 - round(init.value * 64) / 64
    return value
