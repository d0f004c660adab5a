"""Repetitive symbols: never larger than general compressors make them, and refused where
damaged.
"""

from __future__ import annotations

import lzma

import brotli
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from decoded import floats, quantizers
from niblick.codecs.grid import Grid, code_of, restore
from niblick.codecs.matrices import matrix_shape
from niblick.codecs.payload import HEAD_BYTES, read_payload, write_payload
from niblick.codecs.plain import as_bytes, read_plain, write_plain
from niblick.codecs.rounder import Candidate, Rounded
from niblick.codecs.symbols import Decoder, Encoder
from niblick.codecs.tensor_stream import new_tables, read_tensor, write_tensor
from niblick.errors import ArtifactError
from niblick.plan import ComponentSpec, Init, Parameter, Plan, Role
from niblick.recipe import load_recipe

SHAPES = ((64, 24), (64, 24), (40, 64), (1, 300), (7, 1))


def plan_of(members: tuple[Parameter, ...]) -> Plan:
    """A plan of bare tensors: the codec reads nothing else of it."""
    return Plan(load_recipe("pocket").model, (), (ComponentSpec(parameters=members),))


def parameters(shapes: tuple[tuple[int, int], ...] = SHAPES) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name=f"w{i}", shape=shape, role=Role.MATRIX, init=Init(kind="normal"), component="test"
        )
        for i, shape in enumerate(shapes)
    )


def candidate(symbols: list[np.ndarray]) -> Candidate:
    """Symbols on a flat grid, as the rounder would hand them on."""
    members = parameters(tuple(entry.shape for entry in symbols))
    grids = {
        p.name: Grid(0, np.zeros(p.shape[0], dtype=np.int64), np.zeros(p.shape[1], dtype=np.int64))
        for p in members
    }
    made = []
    for p, entry in zip(members, symbols, strict=True):
        code, paths = code_of(p), -(-p.shape[0] // 256)
        quantizer = np.zeros_like(entry) if paths > 1 else quantizers(code, entry)
        tensor = restore(p, grids[p.name], code.level(entry, quantizer), 1.0)
        made.append(Rounded(p, grids[p.name], entry, tensor))
    return Candidate(1.0, tuple(made), 0.0)


def regular(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows, columns = shape
    if kind == "constant":
        return np.full(shape, generator.integers(-3, 4))
    if kind == "rows":
        return np.tile(generator.integers(-9, 10, columns), (rows, 1))
    if kind == "periodic":
        return np.resize(generator.integers(-60, 61, generator.integers(1, 40)), shape)
    if kind == "blocks":
        return np.repeat(generator.integers(-5, 6, (rows, -(-columns // 8))), 8, axis=1)[
            :, :columns
        ]
    return np.rint(generator.normal(size=shape) * 2).astype(np.int64)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from(["constant", "rows", "periodic", "blocks", "noise"]), min_size=5, max_size=5
    ),
    st.integers(0, 999),
    st.booleans(),
)
def test_no_general_compressor_makes_the_same_codes_smaller(
    kinds: list[str], seed: int, tied: bool
) -> None:
    symbols = [
        regular(kind, shape, seed + i).astype(np.int64)
        for i, (kind, shape) in enumerate(zip(kinds, SHAPES, strict=True))
    ]
    if tied:
        symbols[1] = symbols[0].copy()
    made = candidate(symbols)
    written = write_payload(made)
    side = sum(bits.scales + bits.models for bits in written.bits.values()) / 8
    raw = b"".join(as_bytes(entry)[1] for entry in symbols)
    rivals = (
        brotli.compress(raw, quality=11, lgwin=24),
        lzma.compress(raw, preset=9),
        zstandard.compress(raw, 22),
    )
    # The stream's last word, the list of plain tensors and their widths are side information too.
    assert len(written.payload) - HEAD_BYTES - side <= min(map(len, rivals)) + 12 + 1 + len(symbols)
    decoded = read_payload(written.payload, plan_of(parameters(SHAPES)))
    one, two = floats(decoded), floats(made.tensors)
    assert all(torch.equal(one[name], two[name]) for name in made.tensors)


def test_a_tensor_that_repeats_another_costs_next_to_nothing() -> None:
    noise = regular("noise", (64, 200), 1)
    one, two = (
        len(write_payload(candidate(symbols)).payload) for symbols in ([noise], [noise, noise])
    )
    assert two < 1.4 * one


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_plain_symbols_come_back_exactly(data: st.DataObject) -> None:
    largest = data.draw(st.sampled_from([0, 3, 127, 128, 40_000, 1 << 20]))
    shapes = data.draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=4)
    )
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    symbols = [generator.integers(-largest, largest + 1, shape) for shape in shapes]
    found = read_plain(write_plain(symbols), shapes)
    assert all(
        (one == two).all() and one.shape == two.shape
        for one, two in zip(symbols, found, strict=True)
    )


@pytest.mark.parametrize("kind", ["constant", "periodic", "noise"])
def test_damaged_plain_symbols_are_refused_or_have_the_declared_size(kind: str) -> None:
    shape = (64, 24)
    section = write_plain([regular(kind, shape, 4).astype(np.int64)])
    generator = np.random.default_rng(0)
    cases = [
        section[:0],
        section[:1],
        section[:-1],
        section + b"x",
        bytes([9]) + section[1:],
        section[:1] + b"\x09" + section[2:],
    ]
    for place in generator.integers(0, len(section), 60).tolist():
        cases.append(section[:place] + bytes([section[place] ^ 0x55]) + section[place + 1 :])
    for case in cases:
        try:
            assert read_plain(case, [shape])[0].shape == shape
        except ArtifactError:
            continue


def test_a_section_that_expands_without_end_is_refused() -> None:
    bomb = brotli.compress(bytes(1 << 24), quality=9)
    with pytest.raises(ArtifactError, match="expand"):
        read_plain(b"\x01\x02" + bomb, [(4, 4)])


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 40), (33, 1)])
def test_empty_and_thin_tensors_are_coded(shape: tuple[int, int]) -> None:
    tensor = parameters((shape,))[0]
    rows, columns = matrix_shape(tensor)
    symbols = np.zeros((rows, columns), dtype=np.int64)
    grid = Grid(3, np.zeros(rows, dtype=np.int64), np.zeros(columns, dtype=np.int64))
    encoder = Encoder(new_tables())
    write_tensor(encoder, tensor, grid, symbols)
    decoder = Decoder(new_tables(), *encoder.finish())
    _, levels = read_tensor(decoder, tensor)
    decoder.finish()
    assert levels.shape == (rows, columns) and not levels.any()
