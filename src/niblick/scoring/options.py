"""How to score: the mode, its sizes, and what may be learnt from tokens that are already scored.

Frozen; impossible values are refused here, with one line that names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from niblick.errors import ScoreError
from niblick.limits import MAX_CONTEXT, quoted
from niblick.recipe import Recipe

Mode = Literal["chunked", "sliding", "streaming", "document", "leaky-ttt"]
Method = Literal["sgd", "adamw", "rms", "lora"]
Precision = Literal["auto", "fp32", "bf16"]
MODES: tuple[str, ...] = get_args(Mode)
METHODS: tuple[str, ...] = get_args(Method)


class OptionsError(ScoreError):
    """Evaluation options that cannot be used (exit code 2: the request is wrong, not the score)."""

    exit_code = 2


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value <= MAX_CONTEXT:
            raise OptionsError(
                f"{name} {quoted(value)} must be more than 0 and at most {MAX_CONTEXT:,}"
            )


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Score-first test-time training.

    `sgd`, `adamw` and `rms` train the weights themselves (`freeze`: names or dotted prefixes that
    stay as they are) on each chunk of `chunk_tokens` once it is scored, `epochs` times over in rows
    of `sequence_length`, `batch_rows` rows a step; the rate follows a cosine over chunks. `rms`
    divides gradients by their root mean square so far. `lora` gives each document its own adapters
    of `rank` on the linear maps whose last name is in `targets` (`head`: on the final state), reset
    at each BOS and trained after each `chunk_tokens` of the document. `phases` > 1 splits the
    stream: for the others the phase is the chunk; with `lora` the weights below the adapters also
    train by SGD (`base_lr`) on each phase once all of it is scored. After `seconds` of evaluation
    nothing more is learnt and the rest is only scored.
    """

    method: Method
    lr: float | None = None
    base_lr: float = 0.3
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 1
    chunk_tokens: int | None = None
    sequence_length: int | None = None
    batch_rows: int = 4
    documents: int = 64
    clip: float = 1.0
    cosine: bool = True
    freeze: tuple[str, ...] = ()
    phases: int = 1
    seconds: float | None = None
    rank: int = 4
    targets: tuple[str, ...] = ("c_v", "W_v", "fc", "proj", "head")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionsError(
                f"test-time training {self.method!r} is unknown; accepted: {', '.join(METHODS)}"
            )
        _positive(
            epochs=self.epochs,
            chunk_tokens=self.chunk_tokens,
            sequence_length=self.sequence_length,
            batch_rows=self.batch_rows,
            documents=self.documents,
            phases=self.phases,
            rank=self.rank,
        )
        if self.phases > 1 and self.method != "lora" and self.chunk_tokens is not None:
            raise OptionsError(
                f"give phases ({self.phases}) or chunk_tokens ({self.chunk_tokens}), not both"
            )
        for name, value in (
            ("lr", self.lr),
            ("base_lr", self.base_lr),
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
            ("clip", self.clip),
            ("seconds", self.seconds),
        ):
            if value is not None and not 0 <= value < float("inf"):
                raise OptionsError(f"{name} {value} must be 0 or more")

    @property
    def mode(self) -> Mode:
        """The evaluation mode this goes with."""
        return "document" if self.method == "lora" else "streaming"

    def settings(self) -> dict[str, Any]:
        """What decides the result, for scores and cards: the fields that this method uses, defaults
        filled in.
        """
        common = {
            "method": self.method,
            "lr": self.rate,
            "epochs": self.epochs,
            "phases": self.phases,
            "weight_decay": self.weight_decay,
            "seconds": self.seconds,
        }
        weights = {
            "sequence_length": self.sequence_length,
            "batch_rows": self.batch_rows,
            "clip": self.clip,
            "cosine": self.cosine,
            "freeze": list(self.freeze),
            "momentum": self.momentum,
        }
        if self.method == "lora":
            base = {"base_lr": self.base_lr, **weights} if self.phases > 1 else {}
            return {
                **common,
                "chunk_tokens": self.chunk,
                "rank": self.rank,
                "targets": list(self.targets),
                **base,
            }
        if self.method == "adamw":
            del weights["momentum"]
        if self.method == "rms":
            del weights["momentum"], common["weight_decay"]
        return {**common, **weights, "chunk_tokens": None if self.phases > 1 else self.chunk}

    @property
    def rate(self) -> float:
        """The peak learning rate: `lr`, or the method's default."""
        rates = {"sgd": 0.02, "adamw": 5e-5, "rms": 1e-4, "lora": 0.01}
        return rates[self.method] if self.lr is None else self.lr

    @property
    def chunk(self) -> int:
        """Tokens scored before each update: `chunk_tokens`, or the method's default."""
        return self.chunk_tokens or (32 if self.method == "lora" else 1024)


@dataclass(frozen=True, kw_only=True)
class LeakyTraining:
    """The published full test-time training, which learns the validation set before scoring it:
    never valid.
    """

    lr: float = 5e-4
    final_lr: float = 2e-5
    weight_decay: float = 0.01
    epochs: int = 20
    warmup_epochs: float = 1.0
    batch_rows: int = 32
    clip: float = 1.0

    def __post_init__(self) -> None:
        _positive(lr=self.lr, epochs=self.epochs, batch_rows=self.batch_rows)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What `evaluate` does. `context` and `stride` are in tokens; None for context takes the
    recipe's.

    `batch_tokens` bounds the tokens of one forward pass (and is the piece in which `streaming`
    reads); on a CPU passes are never longer than suits its caches. `precision`: "auto" is bf16 for
    torch on a GPU that multiplies it, where nothing is learnt, else fp32.
    """

    mode: Mode = "streaming"
    context: int | None = None
    stride: int = 64
    batch_tokens: int = 16384
    precision: Precision = "auto"
    ttt: Adaptation | None = None
    leaky: LeakyTraining = LeakyTraining()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionsError(
                f"evaluation mode {self.mode!r} is unknown; accepted: {', '.join(MODES)}"
            )
        if self.precision not in get_args(Precision):
            raise OptionsError(
                f"precision {self.precision!r} is unknown; accepted:"
                f" {', '.join(get_args(Precision))}"
            )
        _positive(context=self.context, stride=self.stride, batch_tokens=self.batch_tokens)
        if self.ttt is not None and not isinstance(self.ttt, Adaptation):
            raise OptionsError(
                f"ttt must be an Adaptation, such as Adaptation(method='rms'), not {self.ttt!r}"
            )
        if self.ttt is not None and self.mode != self.ttt.mode:
            raise OptionsError(
                f"test-time training by {self.ttt.method} goes with mode {self.ttt.mode}, not"
                f" {self.mode}"
            )

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> EvaluationOptions:
        """The options that a recipe's `evaluation` section asks for; keyword arguments win."""
        return cls(**{**recipe.evaluation.model_dump(), **changes})

    def settings(self, context: int, engine: str = "torch") -> dict[str, Any]:
        """What decides a score beside model, data and mode, JSON-ready; `context` is the model's.

        `stride` is None where windows do not overlap, `document` says that the state is reset at
        each BOS. Sizes that only bound memory are left out.
        """
        adaptation = self.ttt.settings() if self.ttt is not None else None
        if self.mode == "leaky-ttt":
            adaptation = asdict(self.leaky)
        return {
            "context": self.context or context,
            "stride": self.stride if self.mode in ("sliding", "leaky-ttt") else None,
            "precision": "fp32" if self.precision == "auto" else self.precision,
            "document": self.mode == "document",
            "adaptation": adaptation,
            "engine": engine,
        }

    def on_device(self, bf16: bool) -> EvaluationOptions:
        """The options with the precision of a device that multiplies bfloat16, or does not."""
        learns = self.ttt is not None or self.mode == "leaky-ttt"
        chosen: Precision = "bf16" if bf16 and not learns else "fp32"
        return replace(self, precision=chosen) if self.precision == "auto" else self

    def check_sizes(self, context: int) -> None:
        """Refuse a stride longer than the context: tokens between two windows would have no
        window.
        """
        if self.mode in ("sliding", "leaky-ttt") and self.stride > context:
            raise OptionsError(
                f"stride {self.stride} is longer than the context {context}; accepted: 1 to"
                f" {context} (--stride, evaluation.stride)"
            )


def parse_settings(
    kind: type[Adaptation | LeakyTraining], settings: Sequence[str]
) -> dict[str, Any]:
    """`key=value` settings of an adaptation, in the types of its fields; lists are written with
    commas.
    """
    kinds = {field.name: str(field.type) for field in fields(kind) if field.name != "method"}
    found: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in kinds:
            raise OptionsError(
                f"setting {setting!r} is not key=value with a key of: {', '.join(kinds)}"
            )
        found[key] = _parse(kinds[key], text, setting)
    return found


def _parse(kind: str, text: str, setting: str) -> Any:
    if kind.startswith("tuple"):
        return tuple(filter(None, text.split(",")))
    if kind == "bool":
        if text not in ("true", "false"):
            raise OptionsError(f"setting {setting!r}: accepted are true and false")
        return text == "true"
    try:
        return int(text) if kind.startswith("int") else float(text)
    except ValueError:
        raise OptionsError(
            f"setting {setting!r}: {text!r} is not a number of kind {kind.partition(' ')[0]}"
        ) from None
