"""Rounding a whole model on its grid for one delta: a candidate for packing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niblick.codecs.contexts import LEVELS, SCALAR_KIND, THRESHOLDS
from niblick.codecs.feedback import round_columns
from niblick.codecs.grid import Grid, machine_of, make_grid, paths_of
from niblick.codecs.matrices import as_matrix, from_matrix, matrix_shape, start
from niblick.codecs.symbols import Tables
from niblick.codecs.tensor_stream import new_tables
from niblick.codecs.trellis import SCALAR, TRELLIS, Machine
from niblick.compression.sensitivity import Sensitivity
from niblick.plan import Parameter, Plan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Price of a bit in squared steps. A scalar step is as wide as 1.75 trellis steps at equal slope.
MULTIPLIER = {TRELLIS.states: 0.04, SCALAR.states: 0.03}
_SCALAR_QUARTERS = 3
_SAMPLE = 4096
_PRICED, LARGEST_SYMBOL = 64, 1 << 20


@dataclass(frozen=True)
class Candidate:
    """One rounding of the model: grids, symbols (R, C) and tensors by name, and the loss predicted
    in nats.
    """

    delta: float
    parameters: tuple[Parameter, ...]
    grids: dict[str, Grid]
    symbols: dict[str, Ints]
    tensors: dict[str, Tensor]
    predicted: float


@dataclass
class _Group:
    """Tensors of one shape and machine, rounded side by side."""

    machine: Machine
    paths: int
    parameters: list[Parameter]
    weight: Floats
    feedback: Floats
    grids: list[Grid] = field(default_factory=list)


class Rounder:
    """Holds what does not depend on delta: grids, feedback and weights, grouped by shape."""

    def __init__(
        self, plan: Plan, tensors: dict[str, Tensor], sensitivities: dict[str, Sensitivity]
    ) -> None:
        self.parameters = plan.exported
        self.tables: Tables = new_tables()
        self._groups: dict[tuple[int, int, int], list[Parameter]] = {}
        for parameter in plan.exported:
            key = (*matrix_shape(parameter), machine_of(parameter).states)
            self._groups.setdefault(key, []).append(parameter)
        self._made = [_group(members, tensors, sensitivities) for members in self._groups.values()]
        self._samples = [sample for group in self._made for sample in _samples(group)]

    def smallest_delta(self) -> float:
        """Below this, symbols would grow beyond what the tables were made for."""
        return max(max(_floor(group, i) for i in range(len(group.grids))) for group in self._made)

    def largest_delta(self) -> float:
        """Above this, every symbol is zero."""
        found = 1e-12
        for group in self._made:
            for weight, grid in zip(group.weight, group.grids, strict=True):
                found = max(found, float((np.abs(weight) / grid.steps(1.0)).max()))
        return 4 * found

    def bits(self, delta: float) -> float:
        """A closed-form guess at the model's bits: geometric symbols of each row's and column's
        magnitude.
        """
        total = 0.0
        for means, stands_for in self._samples:
            mean = means / delta + 1e-9
            each = (1 + mean) * np.log2(1 + mean) - mean * np.log2(mean) + mean / (1 + mean)
            total += float(each.mean()) * stands_for
        return total

    def round(self, delta: float) -> Candidate:
        """Round every tensor; deterministic given `delta` and the tables' prices."""
        delta = float(np.float32(delta))
        grids: dict[str, Grid] = {}
        symbols: dict[str, Ints] = {}
        decoded: dict[str, Tensor] = {}
        predicted = 0.0
        for group in self._made:
            found, levels, cost = _round_group(group, delta, self.tables)
            predicted += cost
            for i, parameter in enumerate(group.parameters):
                grids[parameter.name], symbols[parameter.name] = group.grids[i], found[i]
                values = (levels[i] * group.grids[i].steps(delta)).astype(np.float32)
                decoded[parameter.name] = start(parameter) + from_matrix(
                    parameter, torch.from_numpy(values)
                )
        order = [p.name for p in self.parameters]
        return Candidate(
            delta,
            self.parameters,
            {n: grids[n] for n in order},
            {n: symbols[n] for n in order},
            {n: decoded[n] for n in order},
            predicted,
        )


def _group(
    members: list[Parameter], tensors: dict[str, Tensor], sensitivities: dict[str, Sensitivity]
) -> _Group:
    machine = machine_of(members[0])
    weight = np.stack([as_matrix(p, tensors[p.name] - start(p)).double().numpy() for p in members])
    made = [make_grid(p, sensitivities[p.name]) for p in members]
    widen = _SCALAR_QUARTERS if machine.states == 1 else 0
    grids = [Grid(grid.tensor + widen, grid.rows, grid.columns) for grid, _ in made]
    feedback = np.stack([matrix for _, matrix in made])
    paths = paths_of(members[0]) if machine.states > 1 else 1
    return _Group(machine, paths, members, weight, feedback, grids)


def _samples(group: _Group) -> list[tuple[Floats, int]]:
    """For each tensor the expected magnitudes at delta = 1 of some of its elements, and how many
    they stand for.
    """
    found = []
    for weight, grid in zip(group.weight, group.grids, strict=True):
        expected = _expected(weight, grid.steps(1.0) * group.machine.stride).ravel()
        found.append((expected[:: expected.size // _SAMPLE + 1].copy(), expected.size))
    return found


def _floor(group: _Group, index: int) -> float:
    """The delta at which a matrix's mean magnitude would be 250 symbols, or any largest magnitude
    beyond reach.
    """
    steps = group.grids[index].steps(1.0) * group.machine.stride
    ratio = np.abs(group.weight[index]) / steps
    mean = float(ratio.mean()) / 250 if group.machine.states > 1 else 0.0
    return max(mean, float(ratio.max()) / LARGEST_SYMBOL, 1e-30)


def _expected(weight: Floats, step: Floats) -> Floats:
    """Expected magnitudes (R, C) from the means of rows and columns, in steps."""
    size = np.abs(weight)
    mean = max(float(size.mean()), 1e-30)
    expected: Floats = np.outer(size.mean(axis=1), size.mean(axis=0)) / mean / step
    return expected


def _prices(tables: Tables, machine: Machine) -> Floats:
    """Bits (LEVELS, 2, magnitudes) that the tables charge, signs averaged."""
    out = np.zeros((LEVELS, 2, _PRICED + 1))
    for level in range(LEVELS):
        for quantizer in (0, 1):
            kind = level + (SCALAR_KIND if machine.states == 1 else quantizer * LEVELS)
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
        [_expected(w, s * group.machine.stride) for w, s in zip(group.weight, steps, strict=True)]
    )
    fixed = np.minimum(expected * 256, 1e9).astype(np.int64)
    kinds = np.searchsorted(THRESHOLDS, fixed, side="right")
    symbols, levels, residual = round_columns(
        group.weight,
        steps,
        group.feedback,
        group.machine,
        group.paths,
        _prices(tables, group.machine),
        kinds,
        MULTIPLIER[group.machine.states],
    )
    widen = 2 ** (_SCALAR_QUARTERS / 2) if group.machine.states == 1 else 1.0
    return symbols, levels, 0.5 * residual * widen * delta**2
