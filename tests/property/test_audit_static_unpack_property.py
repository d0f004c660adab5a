"""Unpacking is exact for any nesting of layers and total for any bytes."""

from __future__ import annotations

import base64
import bz2
import lzma
import zlib
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.audit.unpack import unpack

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
}
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64.b64decode": base64.b64encode,
    "base64.b85decode": base64.b85encode,
    "bytes.fromhex": lambda d: d.hex().encode(),
    "base64.a85decode": base64.a85encode,
    "base64.b32decode": base64.b32encode,
}
LAYER = st.tuples(st.sampled_from(sorted(COMPRESSORS)), st.sampled_from(sorted(ENCODERS)))
NAMES = st.from_regex(r"v_[a-z]{1,8}", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(LAYER, min_size=1, max_size=5),
    st.dictionaries(NAMES, st.integers(), min_size=1, max_size=6),
)
def test_any_nesting_of_layers_unpacks_to_the_program(
    layers: list[tuple[str, str]], values: dict[str, int]
) -> None:
    program = "".join(f"{name} = {value}\n" for name, value in values.items())
    text = program
    for compressor, encoder in layers:
        payload = ENCODERS[encoder](COMPRESSORS[compressor](text.encode())).decode()
        text = (
            f"import {compressor}, base64\nexec({compressor}.decompress({encoder}({payload!r})))\n"
        )
    source = unpack(text.encode(), "train.py").source
    assert source.text == program
    assert source.layers.count("exec") == len(layers)


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_source_and_never_an_exception(data: bytes) -> None:
    source = unpack(data, "train.py").source
    assert (source.tree is None) == (source.error is not None)


@settings(max_examples=80, deadline=None)
@given(st.binary(min_size=1, max_size=120), st.sampled_from(sorted(COMPRESSORS)))
def test_a_corrupted_payload_is_an_error_or_text_but_never_an_exception(
    noise: bytes, name: str
) -> None:
    payload = COMPRESSORS[name](b"x = 1\n" * 10)
    damaged = payload[: len(payload) // 2] + noise
    source = unpack(
        f"import {name}\nexec({name}.decompress({damaged!r}))\n".encode(), "train.py"
    ).source
    assert source.error is not None or source.tree is not None
