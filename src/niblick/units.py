"""Quantities with a unit: durations of training, decimal byte counts, bits and nats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import log
from typing import Literal

from niblick.errors import NiblickError, RecipeError
from niblick.limits import MAX_AMOUNT, quoted

LN2 = log(2.0)  # nats of a bit
_SIZE = re.compile(r"(\d[\d,_]*(?:\.\d+)?)\s*([kmg])?(i(?=b|$))?b?", re.IGNORECASE)
Unit = Literal["seconds", "steps", "tokens"]
_SUFFIXES: dict[str, tuple[Unit, float]] = {
    "s": ("seconds", 1),
    "sec": ("seconds", 1),
    "seconds": ("seconds", 1),
    "m": ("seconds", 60),
    "min": ("seconds", 60),
    "minutes": ("seconds", 60),
    "h": ("seconds", 3600),
    "hours": ("seconds", 3600),
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "token": ("tokens", 1),
    "tokens": ("tokens", 1),
}


@dataclass(frozen=True)
class Duration:
    """How long to train: an amount of seconds, optimizer steps or training tokens."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read "600s", "10 min", "3500 steps" or "2e6 tokens"; raises `RecipeError` on anything
        else.
        """
        match = re.fullmatch(
            r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)\s*([a-z]+)\s*", text
        )
        if match is None or match[2] not in _SUFFIXES:
            raise RecipeError(
                f"duration {quoted(text)} is not like"
                ' "600s", "10 min", "3500 steps" or "2e6 tokens"'
            )
        unit, factor = _SUFFIXES[match[2]]
        amount = float(match[1].replace("_", "")) * factor
        if not 0 < amount <= MAX_AMOUNT:
            raise RecipeError(
                f"duration {quoted(text)} must be more than zero and at most {MAX_AMOUNT:g} {unit}"
            )
        if unit != "seconds" and amount != int(amount):
            raise RecipeError(f"duration {quoted(text)} must be a whole number of {unit}")
        return cls(amount, unit)

    def fraction(self, *, seconds: float, steps: int, tokens: int) -> float:
        """Share of the budget that is spent, 0 at the start; 1 or more when it is used up."""
        return {"seconds": seconds, "steps": steps, "tokens": tokens}[self.unit] / self.amount

    def __str__(self) -> str:
        if self.unit == "seconds":
            return f"{self.amount:g}s"
        return f"{int(self.amount)} {self.unit}"


def format_bytes(count: int) -> str:
    """A decimal byte count with thin grouping, such as `1,000,000 B`."""
    return f"{count:,} B"


def parse_size(text: str) -> int:
    """Bytes from "1000000", "300k", "1.5MB" or "16MiB": k, M and G are decimal, Ki, Mi and Gi
    binary. Raises `NiblickError` for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise NiblickError(f"{text!r} is no size in bytes, such as 1000000, 300k, 1MB or 16MiB")
    power = " kmg".index(found[2].lower()) if found[2] else 0
    unit: int = (1024 if found[3] else 1000) ** power
    return round(float(found[1].replace(",", "").replace("_", "")) * unit)


def format_seconds(seconds: float) -> str:
    """A time as people read it: `0.42 s`, `59 s`, `12 min 22 s`, `3 h 5 min`, `2 d 1 h`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    if minutes < 1440:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    hours = round(seconds / 3600)
    return f"{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")
