"""Codecs refuse values that no encoder writes, and bytes behind the end of a section."""

from __future__ import annotations

import numpy as np
import pytest

from niblick.codecs import CODECS, nearest, plain
from niblick.errors import ArtifactError
from niblick.plan import make_plan
from training_runs import tiny_recipe

RECIPE = tiny_recipe()
PLAN = make_plan(RECIPE.model)


def payload(scale: float = 0.01, value: float = 0.5) -> bytes:
    """int-zlib's payload of zeros, with one scale and one float16 value given."""
    codec, chunks = CODECS["int-zlib"], []
    specs = codec.rounding(RECIPE, PLAN)
    for name in specs:
        parameter = next(p for p in PLAN.exported if p.name == name)
        scales = np.full(parameter.shape[0], 0.01, "<f2")
        scales[-1] = scale
        chunks += [nearest._stream(bytes(parameter.size)), nearest._stream(scales.tobytes())]
    values = np.zeros(sum(p.size for p in PLAN.exported if p.name not in specs), "<f2")
    values[-1] = value
    return b"".join([*chunks, nearest._stream(values.tobytes())])


def test_a_payload_of_finite_numbers_decodes() -> None:
    assert set(CODECS["int-zlib"].decode(payload(), RECIPE, PLAN)) == {
        p.name for p in PLAN.exported
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["scale", "value"])
def test_infinities_and_nan_are_refused_wherever_they_are(place: str, bad: float) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        CODECS["int-zlib"].decode(payload(**{place: bad}), RECIPE, PLAN)


@pytest.mark.parametrize("number", range(len(plain._PACKERS)))
def test_a_plain_section_is_one_whole_stream(number: int) -> None:
    raw = bytes(range(256)) * 8
    packed = plain._PACKERS[number](raw)
    assert plain._UNPACKERS[number](packed, len(raw)) == raw
    for damaged in (packed + b"x", packed + packed, packed[:-1]):
        with pytest.raises(ArtifactError):
            plain._UNPACKERS[number](damaged, len(raw))
