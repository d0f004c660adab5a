"""The recipe: data, model, training, artifact and evaluation sections (design.md, "Recipe")."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from niblick.limits import MAX_THREADS
from niblick.recipe.base import (
    FROM_LIST,
    BelowOne,
    Count,
    Fraction,
    Length,
    Names,
    Rate,
    Real,
    Section,
    Text,
    section,
)
from niblick.recipe.checks import check_duration, check_training
from niblick.recipe.model import ModelRecipe

Pair = Annotated[tuple[Real, Real], FROM_LIST]
Decays = Annotated[tuple[BelowOne, BelowOne], FROM_LIST]


class DataRecipe(Section):
    """What is trained on: an embedded corpus, a folder of text, or a folder of shards; and the
    tokenizer.

    `tokenizer`: "train" (BPE with byte fallback on the training split), "train-within-words" (no
    piece holds more than one word), "train-case" (capitals are marks before small letters),
    "train-unigram" and "train-unigram-case" (a unigram model in place of BPE), "bytes",
    "fineweb-1024" (the challenge's), or the path of a SentencePiece `.model`.
    `development`: training documents with h = 2 (`niblick.data.corpus`) are held out and scored in
    place of the validation split, for runs that choose between settings. `share` of the other
    training documents trains. `rows` of batches are cut from the text in its order, or packed of
    whole documents anew every pass.
    """

    corpus: Text = "wiki-vital"
    tokenizer: Text = "train"
    development: bool = False
    share: Annotated[float, Field(gt=0, le=1, strict=False)] = 1.0
    rows: Literal["text", "documents"] = "text"
    workers: Annotated[int, Field(ge=0, le=64)] = 1
    shard_mix: Pair = (8, 32)
    alpha: Pair = (0.9, 0.5)


class OptimizerRecipe(Section):
    """Which optimizer moves matrices, embeddings and control values (vectors and scalars).

    Names are those of registered optimizers, those of plugins included.
    """

    matrix: Text = "muon"
    embedding: Text = "adam"
    control: Text = "adam"


class MuonRecipe(Section):
    """Muon; momentum rises linearly from `momentum[0]` to `[1]` over `momentum_warmup`.

    `momentum_form`: "mean" is lerp(g, 1 - beta), "sum" the published beta * buf + g (section 7).
    `decay_after_update`: section 2's order. `include`: parameters that Muon takes besides the
    matrices, such as section 3's `shared_sparse.site_gate.weight`. With `neuron_beta` the updates
    of a matrix's neurons are made equally long, by averages that forget at that rate (NorMuon).
    """

    lr: Rate = 0.04
    momentum: Decays = (0.92, 0.99)
    momentum_warmup: Text | Fraction = "1500 steps"
    nesterov: bool = True
    newton_schulz_steps: Annotated[int, Field(ge=1, le=12)] = 5
    neuron_beta: BelowOne | None = None
    weight_decay: Rate = 0.04
    momentum_form: Literal["mean", "sum"] = "mean"
    decay_after_update: bool = False
    include: Names = ()


class AdamRecipe(Section):
    """Adam: embeddings at one rate, vectors and scalars at another.

    `decoupled = False` adds the decay to the gradient (L2), as section 1's script does. With
    `head_lr` an untied head leaves Muon for Adam at that rate, without decay (section 7).
    """

    embedding_lr: Rate = 0.05
    scalar_lr: Rate = 0.04
    betas: Decays = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Rate = 0.04
    decoupled: bool = True
    head_lr: Rate | None = None


class ScheduleRecipe(Section):
    """Learning-rate multiplier: linear warm-up, constant, then `kind` of fall to `final`.

    `warmdown` and `warmup` are fractions of the budget or "N steps"; steps are placed by the
    measured step time when the budget is in seconds, so that they always fire.
    """

    kind: Text = "linear"
    warmup: Text | Fraction = 0.0
    warmdown: Text | Fraction = 0.5
    final: Fraction = 0.0


class AveragingRecipe(Section):
    """EMA of the weights each step, or SWA every `every` steps once the multiplier is under
    `start`.

    `decay` is the EMA's; `warmup` lowers it early on ((1+t)/(10+t)) so that a short run is not its
    start. "power" is an average of all steps with weights t^g (Karras et al. 2024), whose memory
    grows with the run: `width` is its standard deviation as a share of the steps so far.
    """

    kind: Literal["none", "ema", "swa", "power"] = "ema"
    decay: Fraction = 0.997
    warmup: bool = True
    width: Annotated[float, Field(ge=0.01, le=0.28)] = 0.1
    every: Count = 200
    start: Fraction = 0.5


class QatRecipe(Section):
    """Straight-through rounding as the codec rounds, late: once the multiplier is under `start`.

    "auto" rounds where the codec can share its rounding with training, and only there. With `true`
    and a codec whose rounding is too slow for that ("rd"), the errors that it makes at `start` are
    added to the weights, the signs of their rows drawn anew for every step (pseudo-quantization
    noise, Defossez et al. 2021). A run of fewer than `min_passes` over the training text goes
    without: there such noise costs more than packing gives back.
    """

    enabled: Literal["auto"] | bool = "auto"
    start: Fraction = 0.15
    min_passes: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0


class DropoutRecipe(Section):
    """Dropout of table rows in training (Srivastava et al. 2014, per position).

    Each number is the probability that a position loses its row; the rows that are kept are scaled
    up accordingly. For corpora that are passed over many times.
    """

    token: BelowOne = 0.0
    bigram: BelowOne = 0.0
    value_embedding: BelowOne = 0.0


class ValidationRecipe(Section):
    """Periodic read-only validation: every `every` of the budget, on the first `tokens` of the
    split.
    """

    every: Fraction = 0.1
    tokens: Count = 32768


class TrainingRecipe(Section):
    """How the weights are found. `batch_tokens` is global per optimizer step, `micro_batch_tokens`
    per pass: as many as memory holds where it is not given. A run also ends, with its schedule, at
    `max_passes` over the training text: a model that sees a text too often learns it by heart.
    `init_from` names the model whose weights the run starts from (a file, a run, a shipped model),
    in the shape of the recipe's; without it they are random.

    `compile`: fused kernels on the CPU, torch.compile on CUDA; "auto" does without where there is
    no compiler, and replays passes as CUDA graphs where the model is small; "graphs" always does,
    "no-graphs" never. `reduce`: the type that gradients have on their way between processes.
    """

    init_from: Text = ""
    duration: Text = "600s"
    max_passes: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    sequence_length: Length = 1024
    batch_tokens: Count = 524288
    micro_batch_tokens: Count | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off", "graphs", "no-graphs"] = "auto"
    compile_warmup_steps: Annotated[int, Field(ge=0, le=10_000)] = 0
    clip: Rate = 0.3
    reduce: Literal["fp32", "bf16"] = "fp32"
    threads: Annotated[int, Field(gt=0, le=MAX_THREADS)] | None = None
    checkpoint_every: Text = "60s"
    optimizer: OptimizerRecipe = section()
    muon: MuonRecipe = section()
    adam: AdamRecipe = section()
    schedule: ScheduleRecipe = section()
    averaging: AveragingRecipe = section()
    qat: QatRecipe = section()
    dropout: DropoutRecipe = section()
    validation: ValidationRecipe = section()

    _durations = field_validator("duration", "checkpoint_every")(check_duration)

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingRecipe:
        check_training(self)
        return self


class ArtifactRecipe(Section):
    """The packed file: a hard cap in bytes (decimal), the codec, and its bits per role."""

    max_bytes: Count = 16_000_000
    codec: Text = "int-zlib"
    matrix_bits: Annotated[int, Field(ge=2, le=8)] = 6
    embedding_bits: Annotated[int, Field(ge=2, le=8)] = 8
    code_bytes: bool = False


class EvaluationRecipe(Section):
    """How the run is scored at its end: split, mode, window length and stride."""

    mode: Literal["chunked", "sliding", "streaming", "document"] = "chunked"
    context: Length | None = None
    stride: Length = 64
    batch_tokens: Count = 16384


class Recipe(Section):
    """One run, whole. `seed` decides initialisation, data order and calibration.

    `plugins` names the modules whose mixers, codecs, optimizers or the like the recipe uses; they
    are never imported because a file says so (`--plugin MODULE`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: Text = ""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    plugins: Names = ()
    data: DataRecipe = section()
    model: ModelRecipe
    training: TrainingRecipe = section()
    artifact: ArtifactRecipe = section()
    evaluation: EvaluationRecipe = section()
