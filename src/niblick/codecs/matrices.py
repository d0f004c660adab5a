"""Every parameter as a matrix (R, C) whose columns are coded in turn: the one view that the codec
works on.

Matrices and embeddings are as they are; a depthwise filter (channels, 1, width) is (channels,
width); control vectors are (channels, rows), so that each of their rows becomes a column with
statistics of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niblick.plan import Parameter, Role


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """(R, C) of a parameter."""
    shape = parameter.shape or (1,)
    if parameter.role in (Role.VECTOR, Role.SCALAR):
        columns = parameter.size // max(shape[-1], 1)
        return shape[-1], columns
    return shape[0], parameter.size // max(shape[0], 1)


def as_matrix(parameter: Parameter, tensor: Tensor) -> Tensor:
    """`tensor` in the layout (R, C), contiguous."""
    rows, columns = matrix_shape(parameter)
    if parameter.role in (Role.VECTOR, Role.SCALAR):
        return tensor.reshape(columns, rows).T.contiguous()
    return tensor.reshape(rows, columns).contiguous()


def from_matrix(parameter: Parameter, matrix: Tensor) -> Tensor:
    """Undo `as_matrix`."""
    if parameter.role in (Role.VECTOR, Role.SCALAR):
        return matrix.T.reshape(parameter.shape).contiguous()
    return matrix.reshape(parameter.shape).contiguous()


def start(parameter: Parameter) -> Tensor:
    """What control vectors and scalars are coded as differences from: about where training began;
    for others a 0.

    A phase is rounded to 1/64, so that no library's exponential function takes part in decoding.
    """
    if parameter.role not in (Role.VECTOR, Role.SCALAR):
        return torch.zeros(())
    init, value = parameter.init, torch.zeros(parameter.shape)
    if init.kind == "constant":
        return value.fill_(init.value)
    if init.kind == "phase":
        value[0], value[1] = round(init.value * 64) / 64, 1 - round(init.value * 64) / 64
    return value
