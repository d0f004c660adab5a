"""The stack section: segments of layers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from niblick.limits import MAX_LOOPS, MAX_SEGMENT_LAYERS
from niblick.recipe.base import FROM_LIST, Section
from niblick.recipe.shape import SegmentShape, check_segment_layers, check_segment_name


class StackRecipe(SegmentShape, Section):
    """A segment of weight blocks, visited in order, `loops` times over; `name` prefixes its
    parameters.
    """

    name: Annotated[str, Field(max_length=32)] = "blocks"
    loops: Annotated[int, Field(ge=1, le=MAX_LOOPS)] = 1
    layers: Annotated[tuple[str, ...], Field(max_length=MAX_SEGMENT_LAYERS), FROM_LIST]

    _is_free = field_validator("name")(check_segment_name)
    _parses = field_validator("layers")(check_segment_layers)
