"""The compiled decoder gives the reference's numbers bit for bit, and its errors, for sound and for
damaged streams.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from niblick.codecs.grid import Grid, restore, unit
from niblick.codecs.native import NativeDecoder, decoder_struct, load_native, put_table, start_table
from niblick.codecs.quantized import dequantized
from niblick.codecs.symbols import Decoder, Encoder, Tables
from niblick.codecs.tensor_stream import new_tables, read_tensor, write_tensor
from niblick.errors import ArtifactError
from niblick.plan import Init, Parameter, Role

LIBRARY = load_native(build=True)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no C compiler")
SHAPES = st.sampled_from(
    [(1, 1), (1, 9), (7, 1), (3, 4), (31, 5), (32, 3), (70, 9), (257, 2), (600, 3), (0, 4), (4, 0)]
)
ROLES = st.sampled_from([Role.MATRIX, Role.EMBEDDING, Role.VECTOR])


def parameter(rows: int, columns: int, role: Role) -> Parameter:
    shape = (columns, rows) if role is Role.VECTOR else (rows, columns)
    return Parameter(name="w", shape=shape, role=role, init=Init(kind="normal"), component="test")


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Parameter, Grid, Any]:
    rows, columns = draw(SHAPES)
    role = draw(ROLES) if rows and columns else Role.MATRIX
    largest = draw(st.sampled_from([0, 1, 3, 40, 2000, 1 << 20]))
    symbols = draw(
        npst.arrays(
            np.int64, (rows, columns), elements=st.integers(-largest, largest), fill=st.nothing()
        )
    )
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    reach = draw(st.sampled_from([0, 2, 15]))

    def exponents(count: int, length: int) -> Any:
        step = unit(length)
        found = generator.integers(-4 * reach // step, 4 * reach // step + 1, count) * step
        return found if count > 1 else np.zeros(count, dtype=np.int64)

    grid = Grid(
        int(generator.integers(-400, 400)), exponents(rows, columns), exponents(columns, rows)
    )
    return parameter(rows, columns, role), grid, symbols


def outcome(decoder: Decoder | NativeDecoder, members: list[Parameter], delta: float) -> list[Any]:
    """What a decoder gives for tensors in turn: bytes of levels and values, or an error's text."""
    found: list[Any] = []
    try:
        for member in members:
            grid, levels = read_tensor(decoder, member)
            tensor = restore(member, grid, levels, delta)
            values = decoder.dequantized(tensor)
            assert values.tobytes() == dequantized(tensor).tobytes()
            found.append((levels.astype(np.int32).tobytes(), values.tobytes()))
        decoder.finish()
    except ArtifactError as error:
        found.append(str(error))
    return found


def both(members: list[Parameter], stream: bytes, escapes: bytes, delta: float) -> list[Any]:
    """The outcome on which both decoders agree."""
    found = []
    for native in (False, True):
        try:
            decoder: Decoder | NativeDecoder
            if native:
                assert LIBRARY is not None
                decoder = NativeDecoder(LIBRARY, new_tables(), stream, escapes)
            else:
                decoder = Decoder(new_tables(), stream, escapes)
            found.append(outcome(decoder, members, delta))
        except ArtifactError as error:
            found.append([str(error)])
    assert found[0] == found[1]
    return found[0]


def coded(members: list[tuple[Parameter, Grid, Any]]) -> tuple[bytes, bytes]:
    encoder = Encoder(new_tables())
    for member, grid, symbols in members:
        write_tensor(encoder, member, grid, symbols)
    return encoder.finish()


@settings(max_examples=40, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=3), st.sampled_from([1e-3, 1.0, 1e30]))
def test_both_decoders_give_the_same_bits(
    members: list[tuple[Parameter, Grid, Any]], delta: float
) -> None:
    stream, escapes = coded(members)
    found = both([member for member, _, _ in members], stream, escapes, delta)
    assert len(found) == len(members) and not isinstance(found[-1], str)


@settings(max_examples=40, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=2), st.data())
def test_both_decoders_refuse_damaged_streams_with_the_same_words(
    members: list[tuple[Parameter, Grid, Any]], data: st.DataObject
) -> None:
    streams = [bytearray(part) for part in coded(members)]
    for part in streams:
        for _ in range(data.draw(st.integers(0, 2)) if part else 0):
            part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
        del part[len(part) - data.draw(st.sampled_from([0, 0, 1, 4, 8])) if part else 0 :]
        part += data.draw(st.binary(max_size=5))
    both([member for member, _, _ in members], bytes(streams[0]), bytes(streams[1]), 0.5)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=12), tensors())
def test_noise_gives_both_decoders_the_same_numbers_or_error(
    stream: bytes, escapes: bytes, member: tuple[Parameter, Grid, Any]
) -> None:
    both([member[0]], stream[: len(stream) // 4 * 4], escapes, 1e20)


def test_long_tables_are_halved_alike() -> None:
    generator = np.random.default_rng(0)
    symbols = np.rint(generator.normal(size=(300, 900))).astype(np.int64)
    grid = Grid(0, np.zeros(300, dtype=np.int64), np.zeros(900, dtype=np.int64))
    member = parameter(300, 900, Role.VECTOR)
    found = both([member], *coded([(member, grid, symbols)]), 1.0)
    assert found[0][0] == symbols.astype(np.int32).tobytes()


def test_tables_start_from_the_same_counts() -> None:
    means = np.array([1, 2, 7, 100, 255, 256, 257, 1000, 20_000, 131_072], dtype=np.int64)
    for tables in (new_tables(), Tables(means, np.array([1, 2, 6, 7, 9, 12, 30, 400, 900, 1500]))):
        memory = [decoder_struct(tables, b"", b"")[1] for _ in range(2)]
        for kind in range(len(tables.limits)):
            put_table(memory[0], tables, kind)
            start_table(LIBRARY, memory[1], tables, kind)
        assert all(
            np.array_equal(memory[0][name], memory[1][name]) for name in ("counts", "totals")
        )
