"""Rounding a whole model on its grid for one delta: a candidate for packing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from niblick.codecs.base import Sensitivity
from niblick.codecs.contexts import LEVELS, SCALAR_KIND, THRESHOLDS
from niblick.codecs.feedback import round_columns
from niblick.codecs.grid import Grid, code_of, make_grid, paths_of, restore, wider
from niblick.codecs.matrices import as_matrix, matrix_shape, origin
from niblick.codecs.quantized import Floats as Weights
from niblick.codecs.quantized import Tensor
from niblick.codecs.symbols import Tables
from niblick.codecs.tensor_stream import LARGEST_SYMBOL, new_tables
from niblick.codecs.trellis import SCALAR, TRELLIS, TrellisCode
from niblick.plan import Parameter, Plan, Role

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Price of a bit in squared steps.
MULTIPLIER = {TRELLIS.states: 0.04, SCALAR.states: 0.03}
_SAMPLE = 4096
_PRICED = 64


@dataclass(frozen=True)
class Rounded:
    """One tensor rounded: its grid, its symbols (R, C), and what they decode to."""

    parameter: Parameter
    grid: Grid
    symbols: Ints
    tensor: Tensor


@dataclass(frozen=True)
class Candidate:
    """One rounding of the model, in the plan's order, and the loss it predicts in nats."""

    delta: float
    members: tuple[Rounded, ...]
    predicted: float

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors as they decode, by name."""
        return {member.parameter.name: member.tensor for member in self.members}


@dataclass
class _Group:
    """Tensors of one shape, role and trellis code, rounded side by side."""

    code: TrellisCode
    paths: int
    parameters: list[Parameter]
    weight: Floats
    feedback: Floats
    coupling: Floats | None
    grids: list[Grid] = field(default_factory=list)


class Rounder:
    """Holds what does not depend on delta: grids, feedback and weights, grouped by shape."""

    def __init__(
        self, plan: Plan, tensors: Mapping[str, Weights], sensitivities: Mapping[str, Sensitivity]
    ) -> None:
        self.parameters = plan.exported
        self.tables: Tables = new_tables()
        alike: dict[tuple[int, int, int, Role], list[Parameter]] = {}
        for parameter in plan.exported:
            key = (*matrix_shape(parameter), code_of(parameter).states, parameter.role)
            alike.setdefault(key, []).append(parameter)
        self._groups = [_group(members, tensors, sensitivities) for members in alike.values()]
        self._samples = [sample for group in self._groups for sample in _samples(group)]

    def smallest_delta(self) -> float:
        """Below this, symbols would grow beyond what the tables were made for."""
        return max(max(_floor(group, i) for i in range(len(group.grids))) for group in self._groups)

    def largest_delta(self) -> float:
        """Above this, every symbol is zero."""
        found = 1e-12
        for group in self._groups:
            for weight, grid in zip(group.weight, group.grids, strict=True):
                found = max(found, float((np.abs(weight) / grid.steps(1.0)).max()))
        return 4 * found

    def bits(self, delta: float) -> float:
        """A guess at the model's bits: geometric symbols of each row's and column's magnitude."""
        total = 0.0
        for means, stands_for in self._samples:
            mean = means / delta + 1e-9
            each = (1 + mean) * np.log2(1 + mean) - mean * np.log2(mean) + mean / (1 + mean)
            total += float(each.mean()) * stands_for
        return total

    def round(self, delta: float) -> Candidate:
        """Round every tensor; deterministic given `delta` and the tables' prices."""
        delta = float(np.float32(delta))
        found: dict[str, Rounded] = {}
        predicted = 0.0
        for group in self._groups:
            symbols, levels, cost = _round_group(group, delta, self.tables)
            predicted += cost
            for parameter, grid, part, level in zip(
                group.parameters, group.grids, symbols, levels, strict=True
            ):
                tensor = restore(parameter, grid, level, delta)
                found[parameter.name] = Rounded(parameter, grid, part, tensor)
        return Candidate(delta, tuple(found[p.name] for p in self.parameters), predicted)


def _group(
    members: list[Parameter],
    tensors: Mapping[str, Weights],
    sensitivities: Mapping[str, Sensitivity],
) -> _Group:
    code = code_of(members[0])
    weight = np.stack([as_matrix(p, tensors[p.name] - origin(p)) for p in members])
    grids, feedback = zip(*(make_grid(p, sensitivities[p.name]) for p in members), strict=True)
    down = [each.rows for each in feedback if each.rows is not None]
    return _Group(
        code,
        paths_of(members[0]) if code.states > 1 else 1,
        members,
        weight.astype(np.float64),
        np.stack([each.columns for each in feedback]),
        np.stack(down) if len(down) == len(members) else None,
        list(grids),
    )


def _samples(group: _Group) -> list[tuple[Floats, int]]:
    """For each tensor the expected magnitudes of some elements at delta = 1, and its size."""
    found = []
    for weight, grid in zip(group.weight, group.grids, strict=True):
        expected = _expected(weight, grid.steps(1.0) * group.code.stride).ravel()
        found.append((expected[:: expected.size // _SAMPLE + 1].copy(), expected.size))
    return found


def _floor(group: _Group, index: int) -> float:
    """The delta at which a matrix's mean symbol would be 250, or any symbol out of range."""
    steps = group.grids[index].steps(1.0) * group.code.stride
    ratio = np.abs(group.weight[index]) / steps
    mean = float(ratio.mean()) / 250 if group.code.states > 1 else 0.0
    return max(mean, float(ratio.max()) / LARGEST_SYMBOL, 1e-30)


def _expected(weight: Floats, step: Floats) -> Floats:
    """Expected magnitudes (R, C) from the means of rows and columns, in steps."""
    size = np.abs(weight)
    mean = max(float(size.mean()), 1e-30)
    expected: Floats = np.outer(size.mean(axis=1), size.mean(axis=0)) / mean / step
    return expected


def _prices(tables: Tables, code: TrellisCode) -> Floats:
    """Bits (LEVELS, 2, magnitudes) that the tables charge, signs averaged."""
    out = np.zeros((LEVELS, 2, _PRICED + 1))
    for level in range(LEVELS):
        for quantizer in (0, 1):
            kind = level + (SCALAR_KIND if code.states == 1 else quantizer * LEVELS)
            table = tables[kind]
            bits, zero = table.bits, table.limit
            both = (bits[zero : 2 * zero + 1] + bits[zero::-1]) / 2
            count = min(len(both), _PRICED + 1)
            out[level, quantizer, :count] = both[:count]
            out[level, quantizer, count:] = both[-1] + 0.5 * np.arange(1, _PRICED + 2 - count)
    return out


def _round_group(group: _Group, delta: float, tables: Tables) -> tuple[Ints, Ints, float]:
    steps = np.stack([grid.steps(delta) for grid in group.grids])
    expected = np.stack(
        [_expected(w, s * group.code.stride) for w, s in zip(group.weight, steps, strict=True)]
    )
    fixed = np.minimum(expected * 256, 1e9).astype(np.int64)
    kinds = np.searchsorted(THRESHOLDS, fixed, side="right")
    symbols, levels, residual = round_columns(
        group.weight,
        steps,
        group.feedback,
        group.code,
        group.paths,
        _prices(tables, group.code),
        kinds,
        MULTIPLIER[group.code.states],
        group.coupling,
    )
    cost = 0.5 * residual * delta**2 * 2 ** (wider(group.parameters[0]) / 2)
    return symbols, levels, cost
