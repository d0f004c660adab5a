"""What every codec of an artifact's tensors offers, and the registry of codecs.

A codec turns the exported tensors of a plan into one self-delimiting payload. It accounts for every
byte of it, by part and by tensor, and returns the tensors exactly as decoding will give them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from niblick.errors import ArtifactError, RecipeError
from niblick.plan import Plan, Role
from niblick.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from niblick.codecs.quantized import Floats, Tensor, Tensors
    from niblick.recipe import Recipe

Sizes = tuple[int, int]
QUANTIZED_ROLES = (Role.MATRIX, Role.EMBEDDING)


class TensorRow(NamedTuple):
    """One tensor's line of the ledger: bytes of the payload, order-0 entropy of its symbols."""

    bytes: int
    parameters: int
    entropy_bits: float | None = None

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the file per element."""
        return 8 * self.bytes / max(self.parameters, 1)


@dataclass(frozen=True)
class Encoded:
    """A payload, its bytes by part and by tensor, and the tensors as `Codec.decode` gives them.

    The bytes by part sum to the payload's length.
    """

    payload: bytes
    parts: dict[str, int]
    tensors: dict[str, TensorRow]
    decoded: dict[str, Tensor]
    choice: dict[str, Any] = field(default_factory=dict)


class Sensitivity(NamedTuple):
    """Fisher factors of one tensor in its (R, C) layout, per token, in nats per squared weight.

    The cost of an error E is about 1/2 tr(L E A E^T) / t with t = tr L = tr A; `rows` is L's
    diagonal (R,), `columns` is A (C, C), `left` all of L (R, R) where it was measured.
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    left: NDArray[np.float64] | None = None

    @property
    def trace(self) -> float:
        """tr A, the Fisher information of the whole tensor."""
        return float(self.columns.trace())


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a codec is asked to encode, and within which limits.

    `tensors` are float32, one for each exported parameter of the plan. `budget` is the most bytes
    the payload may take, None for the codec's default quality; `target_tax` asks for the smallest
    payload within that loss in bits per byte instead, which `tax` measures. `sensitivities` and
    `tax` are there for codecs that need calibration. `on_progress` is told the share of the work
    that is done, as far as a codec can tell.
    """

    tensors: Mapping[str, Floats]
    recipe: Recipe
    plan: Plan
    budget: int | None = None
    target_tax: float | None = None
    sensitivities: Mapping[str, Sensitivity] = field(default_factory=dict)
    tax: Callable[[Tensors], float] | None = None
    on_progress: Callable[[float], None] | None = None


class RoundingSpec(NamedTuple):
    """How one parameter is rounded: signed codes of `bits` bits, one scale per row."""

    bits: int

    @property
    def limit(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1


class Codec(ABC):
    """Encodes a job's tensors; decodes them from the payload, the recipe and its plan alone."""

    name: str
    needs_calibration: bool = False  # whether `encode` wants the job's sensitivities and tax
    fills_cap: bool = False  # whether it finds the quality that fills the recipe's cap
    tells_errors: bool = False  # whether `errors` says what late QAT can train under

    @abstractmethod
    def encode(self, job: Job) -> Encoded:
        """The payload for `job`; deterministic."""

    @abstractmethod
    def decode(self, payload: bytes, recipe: Recipe, plan: Plan) -> dict[str, Tensor]:
        """The plan's exported tensors in its order: matrices and embeddings quantized, others not.

        Equals `Encoded.decoded`; `ArtifactError` for a payload that `encode` cannot have written.
        """

    @abstractmethod
    def sizes(self, recipe: Recipe, plan: Plan, other: int) -> Sizes:
        """(bound, estimate) of the payload in bytes before anything is trained.

        The bound holds for any weights; the estimate supposes trained, roughly Gaussian ones.
        `other` bytes of the recipe's cap are taken by header and tokenizer.
        """

    def rounding(self, recipe: Recipe, plan: Plan) -> dict[str, RoundingSpec]:
        """How late quantization-aware training rounds parameters by name; none where it cannot."""
        return {}

    def errors(self, job: Job) -> dict[str, Floats]:
        """What encoding would add to each matrix and embedding: noise that late QAT trains under,
        where the codec's rounding is too slow to be done at every step.
        """
        raise NotImplementedError

    def describe(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """A card's entries under "quantization" and "compression": a name and its settings."""
        return {"quantization": {"name": f"{self.name} codec"}, "compression": {"name": self.name}}


CODECS: Registry[Codec] = Registry("codec")


def rounding_specs(recipe: Recipe, plan: Plan, *, refuse: bool = True) -> dict[str, RoundingSpec]:
    """The parameters that late quantization-aware training rounds, as the recipe's codec will.

    Where the recipe asks for it with a codec that cannot use it, `RecipeError`; none without
    `refuse`, for runs that were begun when this had no effect.
    """
    if not recipe.training.qat.enabled:
        return {}
    name = recipe.artifact.codec
    specs = CODECS[name].rounding(recipe, plan)
    if not specs and refuse and recipe.training.qat.enabled is True and not noisy(recipe):
        raise RecipeError(
            f"training.qat.enabled is true, but artifact.codec {name!r} does not round as training"
            " could; set training.qat.enabled=false or choose another codec"
        )
    return specs


def noisy(recipe: Recipe) -> bool:
    """Whether late quantization-aware training adds the codec's errors to the weights as noise."""
    return recipe.training.qat.enabled is True and CODECS[recipe.artifact.codec].tells_errors


def exported_tensors(tensors: Mapping[str, ArrayLike], plan: Plan) -> dict[str, Floats]:
    """The plan's exported parameters out of `tensors` as contiguous float32; heads are dropped.

    Raises `ArtifactError` naming the first missing, extra, misshapen or non-finite tensor.
    """
    import numpy as np

    known = {p.name for p in plan.parameters}
    extra = sorted(set(tensors) - known)
    if extra:
        raise ArtifactError(
            f"tensor {extra[0]!r} is no parameter of this recipe ({len(extra)} such)"
        )
    found: dict[str, Floats] = {}
    for parameter in plan.exported:
        name, shape = parameter.name, parameter.shape
        if name not in tensors:
            raise ArtifactError(f"tensor {name!r} {shape} is missing")
        tensor = np.require(tensors[name], np.float32, "C")
        if tensor.shape != shape:
            raise ArtifactError(f"tensor {name!r} has shape {tensor.shape}, not {shape}")
        if not np.isfinite(tensor).all():
            raise ArtifactError(f"tensor {name!r} holds infinities or NaN and cannot be packed")
        found[name] = tensor
    return found


def apportion(total: int, weights: list[int]) -> list[int]:
    """Split `total` bytes in proportion to `weights` into whole numbers that sum to it."""
    whole = max(sum(weights), 1)
    ends = [0]
    for weight in weights:
        ends.append(ends[-1] + weight)
    marks = [total * end // whole for end in ends]
    if weights:
        marks[-1] = total
    return [after - before for before, after in pairwise(marks)]


def order0_bits(symbols: NDArray[Any]) -> float:
    """Total bits of integer `symbols` (any shape) under their own histogram."""
    import numpy as np

    if symbols.size == 0:
        return 0.0
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / symbols.size)).sum())
