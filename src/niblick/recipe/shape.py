"""What follows from a model section's numbers, and its stack notation: segments of layers, each a
list like ["token-shift*4", "window:128", "full"]. No pydantic.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from niblick.components import MIXERS
from niblick.limits import MAX_SEGMENT_LAYERS, quoted


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


def check_segment_name(name: str) -> str:
    """The name of a segment, which prefixes its parameters; ValueError for one that cannot."""
    if re.fullmatch(r"([a-z][a-z0-9]*_)*blocks", name) is None:
        raise ValueError(
            'a stack segment is named "blocks" or ends in "_blocks", as in "entry_blocks"'
        )
    return name


def check_segment_layers(layers: tuple[str, ...]) -> tuple[str, ...]:
    """A segment's entries; ValueError where they cannot be read or are too many."""
    total = sum(len(parse_layers(entry)) for entry in layers)
    if not 1 <= total <= MAX_SEGMENT_LAYERS:
        raise ValueError(f"a stack segment holds 1 to {MAX_SEGMENT_LAYERS} layers, not {total}")
    return layers


class SegmentShape:
    """What a segment's entries mean."""

    if TYPE_CHECKING:
        layers: tuple[str, ...]

    @property
    def blocks(self) -> list[LayerSpec]:
        """The segment's weight blocks in order."""
        return [spec for entry in self.layers for spec in parse_layers(entry)]


class ModelShape:
    """Sizes that follow from a model section."""

    if TYPE_CHECKING:
        dim: int
        stack: Any
        attention: Any
        mlp: Any

    @property
    def depth(self) -> int:
        """Number of virtual layers."""
        return sum(segment.loops * len(segment.blocks) for segment in self.stack)

    @property
    def head_dim(self) -> int:
        """Width E of one head."""
        return int(self.dim // self.attention.heads)

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the channel mixer."""
        hidden: int = round(self.dim * self.mlp.width)
        return hidden

    @property
    def rope_dims(self) -> int:
        """Number R of rotated dimensions of a head."""
        dims, head = self.attention.rope.dims, self.head_dim
        if dims == "full":
            return head
        if dims == "adaptive":
            return head if head <= 32 else (3 * head // 4) // 2 * 2
        return int(dims)

    @property
    def rope_frequency_dims(self) -> int:
        """The F of the rotary frequencies base^(-2j/F)."""
        choice = self.attention.rope.frequency_dims
        if isinstance(choice, str):
            return {"head": self.head_dim, "rotary": max(self.rope_dims, 1)}[choice]
        return int(choice)
