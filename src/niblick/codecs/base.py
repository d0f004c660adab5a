"""What every codec of an artifact's tensors offers, and the registry of codecs.

A codec turns the exported tensors of a plan into one self-delimiting payload. It accounts for every
byte of it, by part and by tensor, and returns the tensors exactly as decoding will give them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from niblick.errors import ArtifactError
from niblick.model import Steps
from niblick.plan import Plan
from niblick.recipe import Recipe
from niblick.registry import Registry

if TYPE_CHECKING:
    from niblick.compression.calibration import Calibration


@dataclass(frozen=True)
class TensorRow:
    """One tensor's line of the ledger: its bytes of the payload and the order-0 entropy of its
    symbols.
    """

    bytes: int
    parameters: int
    entropy_bits: float | None = None

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the file per element."""
        return 8 * self.bytes / max(self.parameters, 1)


@dataclass(frozen=True)
class Encoded:
    """A payload, its bytes by part (they sum to its length) and by tensor, and the tensors as
    decoded.
    """

    payload: bytes
    parts: dict[str, int]
    tensors: dict[str, TensorRow]
    decoded: dict[str, Tensor]
    choice: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a codec is asked to encode, and within which limits.

    `tensors` are float32 on the CPU, one for each exported parameter of the plan. `budget` is the
    most bytes the payload may take, None for the codec's default quality; `target_tax` asks for the
    smallest payload within that loss in bits per byte instead. Codecs whose rounding depends on
    data need `calibration`.
    """

    tensors: dict[str, Tensor]
    recipe: Recipe
    plan: Plan
    budget: int | None = None
    target_tax: float | None = None
    calibration: Calibration | None = None


class Codec(Protocol):
    """Encodes a job's tensors; decodes them from the payload, the recipe and its plan alone."""

    @property
    def name(self) -> str:
        """What recipes and headers call it."""
        ...

    @property
    def needs_calibration(self) -> bool:
        """Whether its rounding depends on batches of training text."""
        ...

    def encode(self, job: Job) -> Encoded:
        """The payload for `job`; deterministic."""
        ...

    def decode(
        self, payload: bytes, recipe: Recipe, plan: Plan, steps: Steps | None = None
    ) -> dict[str, Tensor]:
        """Exactly `Encoded.decoded`; `ArtifactError` for a payload that is no such thing.

        `steps`, where given, receives what the matrices are whole multiples of, if the payload says
        so.
        """
        ...


CODECS: Registry[Codec] = Registry("codec")


def get_codec(name: str) -> Codec:
    """The codec called `name`; the error for an unknown one lists those there are."""
    return CODECS[name]


def exported_tensors(tensors: dict[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """The plan's exported parameters out of `tensors`, float32 and contiguous on the CPU; heads are
    dropped.

    Raises `ArtifactError` naming the first missing, extra, misshapen or non-finite tensor.
    """
    known = {p.name for p in plan.parameters}
    extra = sorted(set(tensors) - known)
    if extra:
        raise ArtifactError(
            f"tensor {extra[0]!r} is no parameter of this recipe ({len(extra)} such)"
        )
    found: dict[str, Tensor] = {}
    for parameter in plan.exported:
        tensor = tensors.get(parameter.name)
        if tensor is None:
            raise ArtifactError(f"tensor {parameter.name!r} {parameter.shape} is missing")
        if tuple(tensor.shape) != parameter.shape:
            raise ArtifactError(
                f"tensor {parameter.name!r} has shape {tuple(tensor.shape)}, not {parameter.shape}"
            )
        tensor = tensor.detach().to("cpu", torch.float32).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(
                f"tensor {parameter.name!r} holds infinities or NaN and cannot be packed"
            )
        found[parameter.name] = tensor
    return found


def share(total: int, weights: list[int]) -> list[int]:
    """Split `total` bytes in proportion to `weights` into whole numbers that sum to it."""
    whole = max(sum(weights), 1)
    ends = [0]
    for weight in weights:
        ends.append(ends[-1] + weight)
    marks = [total * end // whole for end in ends]
    if weights:
        marks[-1] = total
    return [after - before for before, after in pairwise(marks)]
