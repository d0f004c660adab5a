"""The stack notation: segments of layers, each a list like ["token-shift*4", "window:128",
"full"].
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import Field, field_validator

from niblick.components import MIXERS
from niblick.limits import MAX_LOOPS, MAX_SEGMENT_LAYERS, quoted
from niblick.recipe.base import FROM_LIST, Section


class LayerSpec(NamedTuple):
    """One weight block: the mixer's name and, where it has one, its window of earlier positions."""

    mixer: str
    window: int | None = None

    @property
    def attends(self) -> bool:
        """Whether the mixer is attention; false for one that is not registered."""
        return self.mixer in MIXERS and MIXERS[self.mixer].attends


def parse_layers(text: str) -> list[LayerSpec]:
    """Read one entry: MIXER, MIXER:WINDOW, or either with *COUNT behind it.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"([a-z][a-z0-9-]*)(?::([0-9]{1,7}))?(?:\*([0-9]{1,3}))?", text)
    if match is None:
        raise ValueError(
            f'layer {quoted(text)} is not like "token-shift*4", "window:128" or "full"'
        )
    name, window, count = match[1], match[2], int(match[3] or 1)
    if name in MIXERS and MIXERS[name].windowed != (window is not None):
        takers = " or ".join(f'"{each}"' for each in MIXERS if MIXERS[each].windowed)
        raise ValueError(
            f'layer {quoted(text)}: a window goes with {takers} alone, as in "window:128"'
        )
    if (window is not None and int(window) == 0) or count == 0:
        raise ValueError(f"layer {quoted(text)}: window and count must be at least 1")
    return [LayerSpec(name, int(window) if window else None)] * count


class StackRecipe(Section):
    """A segment of weight blocks, visited in order, `loops` times over; `name` prefixes its
    parameters.
    """

    name: Annotated[str, Field(max_length=32)] = "blocks"
    loops: Annotated[int, Field(ge=1, le=MAX_LOOPS)] = 1
    layers: Annotated[tuple[str, ...], Field(max_length=MAX_SEGMENT_LAYERS), FROM_LIST]

    @field_validator("name")
    @classmethod
    def _is_free(cls, value: str) -> str:
        if re.fullmatch(r"([a-z][a-z0-9]*_)*blocks", value) is None:
            raise ValueError(
                'a stack segment is named "blocks" or ends in "_blocks", as in "entry_blocks"'
            )
        return value

    @field_validator("layers")
    @classmethod
    def _parses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        total = sum(len(parse_layers(entry)) for entry in value)
        if not 1 <= total <= MAX_SEGMENT_LAYERS:
            raise ValueError(f"a stack segment holds 1 to {MAX_SEGMENT_LAYERS} layers, not {total}")
        return value

    @property
    def blocks(self) -> list[LayerSpec]:
        """The segment's weight blocks in order."""
        return [spec for entry in self.layers for spec in parse_layers(entry)]
