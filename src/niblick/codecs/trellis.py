"""Dependent (trellis-coded) scalar quantization: what a symbol means depends on its past.

Two quantizers share the multiples n of a step: Q0 has the even ones, n = 2k; Q1 the odd ones and
zero, n = 2k - sgn k. A state machine driven by the parity of k picks one for each symbol, and the
encoder finds the best path with the Viterbi algorithm under distortion + multiplier * bits (as in
ISO/IEC 15938-17 and VVC, here with 8 states of the Ungerboeck kind). At 2.5 bits this needs about
0.11 bit less than uniform scalar quantization for the same error. A scalar quantizer is the code
with one state and n = k.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from niblick.codecs import native

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BLOCK = 64  # rows over which paths carry errors of their own


class TrellisCode(NamedTuple):
    """States with their quantizer (0 or 1), and the next state for an even and an odd symbol."""

    following: Ints
    quantizer: Ints
    stride: int

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.quantizer)

    def level(self, symbols: Ints, quantizer: Ints) -> Ints:
        """The multiple n of the step that `symbols` mean under `quantizer`."""
        if self.stride == 1:
            return symbols
        found: Ints = 2 * symbols - np.sign(symbols).astype(np.int64) * quantizer
        return found

    def branches(self) -> tuple[Ints, Ints]:
        """For each state its two predecessors (2, S), and the subset that each comes by.

        A subset is 2 * quantizer + parity.
        """
        arrivals: list[list[tuple[int, int]]] = [[] for _ in range(self.states)]
        for state, (even, odd) in enumerate(self.following.tolist()):
            arrivals[even].append((state, 0))
            arrivals[odd].append((state, 1))
        before = np.array([[state for state, _ in pair] for pair in arrivals]).T
        parity = np.array([[odd for _, odd in pair] for pair in arrivals]).T
        return before, 2 * self.quantizer[before] + parity


SCALAR = TrellisCode(np.array([[0, 0]]), np.array([0]), 1)
TRELLIS = TrellisCode(
    np.array([[0, 1], [2, 3], [5, 4], [7, 6], [1, 0], [3, 2], [4, 5], [6, 7]]),
    np.array([0, 1, 0, 1, 0, 1, 0, 1]),
    2,
)


def search(
    code: TrellisCode, target: Floats, bits: Floats, kinds: Ints, multiplier: float
) -> tuple[Ints, Ints]:
    """The cheapest symbols (L, N) for `target` (L, N) along N paths, and the levels they mean.

    Targets are in units of the step; `bits` (kinds, 2, K+1) prices each magnitude under each
    quantizer; `kinds` (L, N) chooses the row. Minimises sum (target - level)^2 + multiplier * bits
    along each path. Compiled where it can be, with the same result bit for bit.
    """
    library = native.load_native(build=True) if code.states > 1 else None
    if library is not None:
        subset = code.branches()[1]
        chosen, quantizer = native.search_paths(library, target, bits, kinds, subset, multiplier)
    else:
        chosen, quantizer = reference_search(code, target, bits, kinds, multiplier)
    symbols = np.where(target < 0, -chosen, chosen)
    return symbols, code.level(symbols, quantizer)


def reference_search(
    code: TrellisCode, target: Floats, bits: Floats, kinds: Ints, multiplier: float
) -> tuple[Ints, Ints]:
    """Magnitudes and quantizers (L, N) of the cheapest paths, in plain numpy."""
    cost, magnitude = _candidates(code, np.abs(target), bits, kinds, multiplier)
    if code.states > 1:
        return _viterbi(code, cost, magnitude)
    chosen = np.take_along_axis(magnitude, np.argmin(cost, axis=0)[None], axis=0)[0]
    return chosen, np.zeros_like(chosen)


def search_coupled(
    code: TrellisCode,
    target: Floats,
    bits: Floats,
    kinds: Ints,
    multiplier: float,
    coupling: Floats,
    paths: int,
) -> tuple[Ints, Ints, Floats]:
    """As `search`, for rows whose errors move the targets of those after them: symbols, levels and
    aims (B, R).

    `target` and `kinds` (B, R) hold the rows of B columns in the order of coding, path after path;
    path p of `paths` has the rows p, p + paths, ... An aim is the target and `coupling` (B, R, R),
    strictly upper, times the errors target - level before it; what is minimised is the aim's
    distance from the level. Within a block of 64 rows paths that end in different states carry
    errors of their own; to later rows all carry those of the cheapest by then.
    """
    library = native.load_native(build=True)
    arguments = (bits, kinds, code.branches()[1], multiplier, coupling, paths, _BLOCK)
    if library is None:
        return reference_coupled(target, *arguments)
    return native.search_coupled(library, target, *arguments)


def reference_coupled(
    target: Floats,
    bits: Floats,
    kinds: Ints,
    subset: Ints,
    multiplier: float,
    coupling: Floats,
    paths: int,
    block: int,
) -> tuple[Ints, Ints, Floats]:
    """`search_coupled` in plain numpy, for the trellis of eight states."""
    batch, rows = target.shape
    settled, aims = np.zeros((batch, rows)), np.empty((batch, rows))
    symbols, levels = np.empty((2, batch, rows), dtype=np.int64)

    def trace(steps: list[_Step], total: Floats, end: int) -> None:
        state, row = total.argmin(axis=1), np.arange(batch)
        for r, step in zip(range(end - 1, -1, -1), reversed(steps), strict=False):
            symbols[:, r], levels[:, r] = step.symbol[row, state], step.level[row, state]
            aims[:, r], state = step.aim[row, state], step.before[row, state]

    def carry(begin: int, end: int, to: int) -> None:
        for r in range(begin, end):
            error = target[:, r] - levels[:, r]
            settled[:, end:to] += error[:, None] * coupling[:, r, end:to]

    begin = 0
    for path in range(paths):
        end, steps = begin + len(range(path, rows, paths)), list[_Step]()
        total = np.where(np.arange(subset.shape[1]) == 0, 0.0, 1e30) * np.ones((batch, 1))
        for first in range(begin, end, block):
            last = min(first + block, end)
            carried = np.repeat(settled[:, None, first:last], subset.shape[1], axis=1)
            for i in range(last - first):
                here = target[:, first + i, None]
                aim = here + carried[:, :, i]
                total, step = _advance(
                    aim, bits, kinds[:, first + i, None], subset, multiplier, total
                )
                steps.append(step)
                onward = coupling[:, first + i, None, first:last]
                carried = carried[np.arange(batch)[:, None], step.before]
                carried = carried + (here - step.level)[:, :, None] * onward
            trace(steps[first - begin :], total, last)
            carry(first, last, end)
        trace(steps, total, end)
        carry(begin, end, rows)
        begin = end
    return symbols, levels, aims


class _Step(NamedTuple):
    """Where the cheapest path to each state (B, S) came from, its symbol, level and aim."""

    before: Ints
    symbol: Ints
    level: Ints
    aim: Floats


def _advance(
    aim: Floats, bits: Floats, kinds: Ints, subset: Ints, multiplier: float, total: Floats
) -> tuple[Floats, _Step]:
    """One row more of aims (B, S): what the cheapest way to each state costs, and it."""
    half, column = subset.shape[1] // 2, np.arange(len(aim))[:, None]
    lower, quantizer = np.arange(2 * half) // 2, np.arange(2 * half) % 2
    options = [
        _nearest(np.abs(aim), quantizer, parity, bits, kinds, multiplier) for parity in (0, 1)
    ]
    cost, size = (np.stack([option[k] for option in options], axis=2) for k in (0, 1))
    parity = subset & 1
    one = total[:, lower] + cost[:, lower, parity[0]]
    two = total[:, lower + half] + cost[:, lower + half, parity[1]]
    before = lower + half * (two < one)
    taken = size[column, before, np.where(two < one, parity[1], parity[0])]
    aimed = aim[column, before]
    sign = np.where(aimed < 0, -1, 1)
    level = sign * (2 * taken - quantizer[before] * (taken > 0))
    return np.where(two < one, two, one), _Step(before, sign * taken, level, aimed)


def _candidates(
    code: TrellisCode, size: Floats, bits: Floats, kinds: Ints, multiplier: float
) -> tuple[Floats, Ints]:
    """For each subset the cheaper of its two nearest magnitudes towards zero: (4, L, N)."""
    subsets = 4 if code.states > 1 else 2
    cost = np.empty((subsets, *size.shape))
    magnitude = np.empty((subsets, *size.shape), dtype=np.int64)
    for subset in range(subsets):
        quantizer, parity = divmod(subset, 2)
        cost[subset], magnitude[subset] = _nearest(
            size, quantizer, parity, bits, kinds, multiplier, code.stride
        )
    return cost, magnitude


def _nearest(
    size: Floats,
    quantizer: int | Ints,
    parity: int,
    bits: Floats,
    kinds: Ints,
    multiplier: float,
    stride: int = 2,
) -> tuple[Floats, Ints]:
    """Of a subset's two nearest magnitudes towards zero the cheaper one: its cost, and it."""
    last = bits.shape[2] - 1
    whole = ((size + quantizer) / stride).astype(np.int64)
    near = whole + ((whole ^ parity) & 1)
    below = np.maximum(near - 2, parity)
    options = []
    for symbol in (near, below):
        level = stride * symbol - quantizer * (symbol > 0)
        price = bits[kinds, quantizer, np.minimum(symbol, last)]
        price = price + np.maximum(symbol - last, 0) * 0.01
        options.append((size - level) ** 2 + multiplier * price)
    keep = options[0] <= options[1]
    return np.where(keep, options[0], options[1]), np.where(keep, near, below)


def _viterbi(code: TrellisCode, cost: Floats, magnitude: Ints) -> tuple[Ints, Ints]:
    """Magnitudes and quantizers (L, N) along the cheapest paths from state 0.

    States 2j and 2j + 1 are reached from j and j + S/2 alone, so one step is two additions and a
    minimum on views.
    """
    before, subset = code.branches()
    half = code.states // 2
    assert (
        before == np.stack([np.arange(code.states) // 2, np.arange(code.states) // 2 + half])
    ).all()
    _, length, paths = cost.shape
    total = np.full((code.states, paths), 1e30)
    total[0] = 0.0
    low, high, reached = total[:half, None], total[half:, None], total.reshape(half, 2, paths)
    branch = cost[subset].transpose(0, 2, 1, 3).reshape(2, length, half, 2, paths)
    upper = np.empty((length, half, 2, paths), dtype=bool)
    one, two = np.empty_like(reached), np.empty_like(reached)
    for i in range(length):
        np.add(low, branch[0, i], out=one)
        np.add(high, branch[1, i], out=two)
        np.less(two, one, out=upper[i])
        np.minimum(one, two, out=reached)
    flat = upper.reshape(length, code.states * paths).view(np.uint8)
    column = np.arange(paths)
    state = total.argmin(axis=0)
    states, picks = (
        np.empty((length, paths), dtype=np.int64),
        np.empty((length, paths), dtype=np.int64),
    )
    for i in range(length - 1, -1, -1):
        states[i] = state
        picks[i] = pick = flat[i].take(state * paths + column)
        state = (state >> 1) + half * pick.astype(np.int64)
    taken = subset[picks, states]
    return np.take_along_axis(magnitude, taken[None], axis=0)[0], taken // 2
