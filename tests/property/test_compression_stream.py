"""Entropy coding and the trellis are exact for any integers, and no larger than general
compressors.
"""

from __future__ import annotations

import lzma

import brotli
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from decoded import quantizers
from niblick.codecs.contexts import table_limits, table_means
from niblick.codecs.feedback import deinterleave, factor, interleave, path_order, round_columns
from niblick.codecs.fixed import fixed_power, power_of_two, prior
from niblick.codecs.grid import Grid
from niblick.codecs.native import load_native, search_coupled, search_paths
from niblick.codecs.symbols import Decoder, Encoder
from niblick.codecs.tensor_stream import new_tables, read_tensor, write_tensor
from niblick.codecs.trellis import (
    SCALAR,
    TRELLIS,
    TrellisCode,
    reference_coupled,
    reference_search,
    search,
)
from niblick.errors import ArtifactError
from niblick.plan import Init, Parameter, Role


def parameter(rows: int, columns: int, role: Role = Role.MATRIX) -> Parameter:
    return Parameter(
        name="w", shape=(rows, columns), role=role, init=Init(kind="normal"), component="test"
    )


def grid_for(rows: int, columns: int, seed: int) -> Grid:
    generator = np.random.default_rng(seed)
    return Grid(
        int(generator.integers(-300, 300)),
        4 * generator.integers(-4, 5, rows) if rows > 1 else np.zeros(1, int),
        4 * generator.integers(-4, 5, columns) if columns > 1 else np.zeros(1, int),
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_symbols_come_back_exactly(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 9))
    largest = data.draw(st.sampled_from([0, 1, 3, 40, 1 << 19]))
    symbols = data.draw(
        npst.arrays(np.int64, (rows, columns), elements=st.integers(-largest, largest))
    )
    grid, tensor = grid_for(rows, columns, data.draw(st.integers(0, 99))), parameter(rows, columns)
    encoder = Encoder(new_tables())
    write_tensor(encoder, tensor, grid, symbols)
    stream, escapes = encoder.finish()
    decoder = Decoder(new_tables(), stream, escapes)
    found, levels = read_tensor(decoder, tensor)
    decoder.finish()
    assert (
        found.tensor == grid.tensor
        and (found.rows == grid.rows).all()
        and (found.columns == grid.columns).all()
    )
    code = TRELLIS if rows >= 32 else SCALAR
    assert (levels == code.level(symbols, quantizers(code, symbols))).all()


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=8))
def test_noise_never_decodes_into_anything_but_an_error_or_integers(
    stream: bytes, escapes: bytes
) -> None:
    try:
        decoder = Decoder(new_tables(), stream, escapes)
        _, levels = read_tensor(decoder, parameter(6, 5))
        decoder.finish()
    except ArtifactError:
        return
    assert levels.shape == (6, 5)


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "wide", "columns"])
def test_coded_symbols_are_near_their_entropy_and_smaller_than_general_compressors(
    kind: str,
) -> None:
    generator = np.random.default_rng(3)
    scale = {
        "gaussian": 1.0,
        "sparse": 0.3,
        "wide": 9.0,
        "columns": 2.0 ** generator.uniform(-3, 2, 64),
    }[kind]
    symbols = np.rint(generator.normal(size=(512, 64)) * scale).astype(np.int64)
    encoder = Encoder(new_tables())
    grid = Grid(0, np.zeros(512, dtype=np.int64), np.zeros(64, dtype=np.int64))
    bits = write_tensor(encoder, parameter(512, 64), grid, symbols)
    stream, escapes = encoder.finish()
    size = len(stream) + len(escapes)
    assert 8 * size < 1.001 * encoder.bits + 64 and abs(bits.total - encoder.bits) < 1
    raw = symbols.astype(np.int8).tobytes()
    rivals = (
        brotli.compress(raw, quality=11),
        lzma.compress(raw, preset=9),
        zstandard.compress(raw, 22),
    )
    assert bits.symbols / 8 < min(map(len, rivals))


@pytest.mark.parametrize("code", [SCALAR, TRELLIS])
def test_the_search_finds_the_cheapest_path(code: TrellisCode) -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(size=(4, 3)) * 2
    bits = np.abs(np.arange(20))[None, None, :].repeat(2, axis=1) * 0.7
    symbols, levels = search(code, target, bits, np.zeros((4, 3), dtype=np.int64), 0.3)
    assert (levels == code.level(symbols, quantizers(code, symbols))).all()
    options = (
        np.stack(np.meshgrid(*[np.arange(-6, 7)] * 4, indexing="ij"), axis=-1).reshape(-1, 4).T
    )
    reached = code.level(options, quantizers(code, options))
    for path in range(3):
        cost = ((target[:, path, None] - reached) ** 2 + 0.3 * 0.7 * np.abs(options)).sum(axis=0)
        own = (
            (target[:, path] - levels[:, path]) ** 2 + 0.3 * 0.7 * np.abs(symbols[:, path])
        ).sum()
        assert own <= cost.min() + 1e-9


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([0.1, 1.0, 7.0, 500.0]),
    st.integers(0, 999),
)
def test_the_compiled_search_equals_the_reference_bit_for_bit(
    length: int, paths: int, scale: float, seed: int
) -> None:
    library = load_native(build=True)
    if library is None:
        pytest.skip("no C compiler")
    generator = np.random.default_rng(seed)
    target = np.round(generator.normal(size=(length, paths)) * scale, int(generator.integers(0, 9)))
    bits, kinds = (
        np.abs(generator.normal(size=(5, 2, 12))) * 3,
        generator.integers(0, 5, (length, paths)),
    )
    one = search_paths(library, target, bits, kinds, TRELLIS.branches()[1], 0.04)
    two = reference_search(TRELLIS, target, bits, kinds, 0.04)
    assert (one[0] == two[0]).all() and (one[1] == two[1]).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 5, 64]),
    st.sampled_from([0.1, 1.0, 7.0, 500.0]),
    st.integers(0, 999),
)
def test_coupled_rows_are_searched_alike_compiled_and_not(
    rows: int, batch: int, paths: int, block: int, scale: float, seed: int
) -> None:
    library = load_native(build=True)
    if library is None:
        pytest.skip("no C compiler")
    generator, paths = np.random.default_rng(seed), min(paths, rows)
    target = np.round(generator.normal(size=(batch, rows)) * scale, int(generator.integers(0, 9)))
    bits, kinds = (
        np.abs(generator.normal(size=(5, 2, 12))) * 3,
        generator.integers(0, 5, (batch, rows)),
    )
    coupling = np.triu(generator.normal(size=(batch, rows, rows)) * 0.3, 1)
    arguments = (target, bits, kinds, TRELLIS.branches()[1], 0.04, coupling, paths, block)
    for one, two in zip(
        search_coupled(library, *arguments), reference_coupled(*arguments), strict=True
    ):
        assert (one == two).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.integers(0, 999))
def test_rows_whose_errors_go_nowhere_are_searched_as_paths_apart(
    rows: int, batch: int, paths: int, seed: int
) -> None:
    generator, paths = np.random.default_rng(seed), min(paths, rows)
    weight, bits = generator.normal(size=(batch, rows, 2)) * 3, np.abs(np.arange(24.0) % 12)
    arguments = (
        *(np.ones((batch, rows, 2)), np.zeros((batch, 2, 2)), TRELLIS, paths),
        *(bits.reshape(1, 2, 12), np.zeros((batch, rows, 2), dtype=np.int64), 0.04),
    )
    apart = round_columns(weight, *arguments)
    coupled = round_columns(weight, *arguments, np.zeros((batch, rows, rows)))
    assert (apart[0] == coupled[0]).all() and (apart[1] == coupled[1]).all()
    assert apart[2] == pytest.approx(coupled[2])


@pytest.mark.parametrize(("rows", "paths"), [(64, 1), (300, 2)])
def test_rows_that_absorb_errors_lower_the_cost_on_both_sides(rows: int, paths: int) -> None:
    generator = np.random.default_rng(3)
    left = np.cov(generator.normal(size=(rows, 3 * rows)) + 2 * generator.normal(size=3 * rows))
    across = np.cov(generator.normal(size=(16, 60)) + generator.normal(size=60))
    weight = generator.normal(size=(1, rows, 16))
    step, kinds = np.full((1, rows, 16), 0.4), np.zeros((1, rows, 16), dtype=np.int64)
    feedback, _ = factor(across, 1e-6, 1e-6)
    order = path_order(rows, paths)
    coupling, conditional = factor(left[np.ix_(order, order)], 1e-6, 1e-6)
    costs = []
    for down in (None, coupling[None]):
        _, levels, _ = round_columns(
            weight, step, feedback[None], TRELLIS, paths, np.zeros((1, 2, 50)), kinds, 0.0, down
        )
        error = weight[0] - levels[0] * 0.4
        costs.append(float(np.trace(left @ error @ across @ error.T)))
    # What is left of an independent error's cost is what rows cost once those after them may move.
    assert costs[1] < 1.2 * costs[0] * conditional.sum() / left.trace() < 0.6 * costs[0]


def test_a_trellis_needs_fewer_bits_than_plain_rounding_for_the_same_error() -> None:
    target = np.random.default_rng(1).normal(size=(256, 40))

    def bits_and_error(code: TrellisCode, step: float) -> tuple[float, float]:
        free = np.zeros((1, 2, 50))
        symbols, levels = search(
            code, target / step, free, np.zeros(target.shape, dtype=np.int64), 0.0
        )
        kinds, total = quantizers(code, symbols), 0.0
        for kind in np.unique(kinds):
            _, counts = np.unique(symbols[kinds == kind], return_counts=True)
            total -= float((counts * np.log2(counts / counts.sum())).sum())
        return total / symbols.size, float(((levels * step - target) ** 2).mean())

    plain, trellis = bits_and_error(SCALAR, 0.5), bits_and_error(TRELLIS, 0.28)
    saved = plain[0] - trellis[0] + 0.5 * np.log2(plain[1] / trellis[1])
    assert saved > 0.08


def test_error_feedback_lowers_the_cost_it_is_made_for() -> None:
    generator = np.random.default_rng(2)
    mix = generator.normal(size=(16, 16))
    cost = mix @ mix.T
    weight = generator.normal(size=(1, 64, 16))
    step, kinds = np.full((1, 64, 16), 0.4), np.zeros((1, 64, 16), dtype=np.int64)
    feedback, conditional = factor(cost, 1e-6, 1e-6)
    losses = []
    for upper in (np.zeros((16, 16)), feedback):
        _, levels, _ = round_columns(
            weight, step, upper[None], SCALAR, 1, np.zeros((1, 2, 50)), kinds, 0.0
        )
        error = weight[0] - levels[0] * 0.4
        losses.append(float(np.trace(error @ cost @ error.T)))
    assert losses[1] < 0.6 * losses[0]
    rebuilt = (feedback + np.eye(16)) @ np.diag(conditional) @ (feedback + np.eye(16)).T
    assert np.allclose(rebuilt, cost, rtol=1e-4, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 5))
def test_interleaving_is_undone(batch: int, rows: int, paths: int) -> None:
    values = np.arange(batch * rows).reshape(batch, rows)
    assert (deinterleave(interleave(values, paths), batch, rows, paths) == values).all()


def test_tables_are_made_of_exact_integers() -> None:
    assert [power_of_two(4 * k) for k in (-3, 0, 5)] == [0.125, 1.0, 32.0]
    assert all(abs(power_of_two(k) / 2 ** (k / 4) - 1) < 1e-15 for k in range(-400, 401))
    assert fixed_power(2, 12) == 5792
    for mean, limit in zip(table_means().tolist(), table_limits().tolist(), strict=True):
        counts = prior(mean, limit, 100_000)
        assert counts.min() >= 1 and (counts == counts[::-1]).all()
        expected = (np.abs(np.arange(-limit, limit + 1)) * counts).sum() / counts.sum() * 256
        assert abs(expected / mean - 1) < 0.2
