"""The strict, frozen base of every recipe section."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from niblick.limits import MAX_CONTEXT, MAX_COUNT, MAX_REAL, MAX_TEXT, MAX_WIDTH


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character, which no name or path can")
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FROM_LIST = BeforeValidator(_as_tuple)  # TOML and JSON have lists where recipes have tuples
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Width = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
Length = Annotated[int, Field(gt=0, le=MAX_CONTEXT)]
Real = Annotated[float, Field(ge=-MAX_REAL, le=MAX_REAL, strict=False)]
Scale = Annotated[float, Field(gt=0, le=MAX_REAL, strict=False)]
Rate = Annotated[float, Field(ge=0, le=MAX_REAL, strict=False)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, strict=False)]
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_without_nul)]
Names = Annotated[tuple[Text, ...], Field(max_length=256), FROM_LIST]


class Section(BaseModel):
    """A recipe table: immutable; unknown keys and wrong types are refused; numbers are finite.

    Validators are built when first used, the whole recipe's at once, at a third of the cost.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,
    )


def section() -> Any:
    """A nested section's default: an empty table, which validation fills without a validator of its
    own.
    """
    return Field(default_factory=dict)
