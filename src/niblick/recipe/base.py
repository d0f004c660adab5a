"""The strict, frozen base of every recipe section."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A recipe table: immutable; unknown keys and wrong types are refused; numbers must be finite.

    Validators are built when first used, the whole recipe's at once: a third of what building each
    costs.
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
