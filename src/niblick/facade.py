"""`niblick.Model`: what `niblick.load` returns. It runs without torch, numpy in and out.

Texts and tokens are computed by the fastest engine that runs here. `Model.torch()` alone needs the
lab, as does a model whose mixer is a plugin's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niblick.artifact.load import Opened, find_model, open_file, open_tokenizer, shipped_models
from niblick.codecs.quantized import Tensors
from niblick.engine import Engine, Sampling, open_engine, start_text, write_texts
from niblick.engine.choice import Build, check_sizes
from niblick.errors import NiblickError
from niblick.extras import needs
from niblick.files import read_json, run_of
from niblick.limits import quoted
from niblick.plan import Plan
from niblick.runtime import has_lab
from niblick.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from niblick.model import LanguageModel
    from niblick.recipe import Recipe
    from niblick.scoring.score import Score

EngineName = Literal["native", "numpy", "torch"]
Floats = NDArray[np.float32]
_AT_ONCE = 32  # texts


def load(model: str | Path, *, tokenizer: str | Path | None = None) -> Model:
    """The model in an artifact, a checkpoint or a run directory, or a shipped model by its name.

    `tokenizer` is a .model file, another model, `fineweb-1024` or `bytes`, in place of the one in
    the file. Raises `niblick.errors.ArtifactError` for a file that is missing, damaged or foreign.
    """
    opened = open_file(find_model(model))
    if tokenizer is None:
        return Model(opened)
    own, given = opened.tokenizer, open_tokenizer(str(tokenizer))
    if own is not None and (own.vocab_size, own.bos_id) != (given.vocab_size, given.bos_id):
        raise NiblickError(
            f"tokenizer {given.name} has {given.vocab_size:,} ids and BOS {given.bos_id}; the one"
            f" that {quoted(str(model))} brings has {own.vocab_size:,} and BOS {own.bos_id}"
        )
    return Model(replace(opened, tokenizer=given))


class Model:
    """A language model and its tokenizer, ready to use; `Model(...)` comes from `niblick.load`."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._engines: dict[int, Engine] = {}  # by declared context, for logits and likelihoods
        self._idle: list[Engine] = []  # for texts: each that is being written has one of its own

    @property
    def recipe(self) -> Recipe:
        """Everything that decided the model."""
        return self._opened.recipe

    @property
    def plan(self) -> Plan:
        """Its virtual layers, parameters and sizes."""
        return self._opened.plan

    @property
    def tensors(self) -> Tensors:
        """Its weights by name, quantized as the file holds them."""
        return self._opened.tensors

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._opened.path

    @property
    def is_shipped(self) -> bool:
        """Whether it is one of the models that ship with niblick."""
        return self.path in shipped_models().values()

    @property
    def sha256(self) -> str:
        """The file's SHA-256 in hex."""
        return self._opened.sha256

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file brings; `NiblickError` where it brings none."""
        if self._opened.tokenizer is None:
            raise NiblickError(
                f"{str(self.path)!r} brings no tokenizer; give one with --tokenizer FILE, or"
                " niblick.load(model, tokenizer=FILE)"
            )
        return self._opened.tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether texts can be read and written."""
        return self._opened.tokenizer is not None

    @property
    def card(self) -> dict[str, Any] | None:
        """The card of this very file, where one lies beside it; None elsewhere."""
        path = self.path.absolute()
        folders = [path if path.is_dir() else path.parent, *filter(None, [run_of(path)])]
        for place in [path.with_suffix(".card.json"), *(each / "card.json" for each in folders)]:
            with suppress(NiblickError):
                card = read_json(place)
                if card.get("artifact_sha256") == self.sha256:
                    return card
        return None

    def __repr__(self) -> str:
        own, shape = self._opened.tokenizer, self.recipe.model
        card = self.card or {}
        bpb = card.get("packed_bpb")
        score = f", {bpb:.4f} bits per byte" if isinstance(bpb, float) and card["valid"] else ""
        size = (
            f"{self.path.stat().st_size:,} bytes" if self.path.exists() else "a file that is gone"
        )
        return (
            f"<niblick.Model {self.recipe.name!r}: {self.plan.depth} layers of width"
            f" {shape.dim}, context {shape.context:,}, {shape.vocab_size:,} tokens"
            f" ({own.name if own else 'no tokenizer'}), {self.plan.parameter_count:,} parameters in"
            f" {size}{score}; {self._opened.kind} {str(self.path)!r}>"
        )

    def __call__(self, *tokens: object, **options: object) -> NoReturn:
        """A `Model` is not called: `logits` takes arrays, `torch()` gives what takes tensors."""
        raise NiblickError(
            "a niblick.Model is not called; model.logits(tokens) takes and gives numpy arrays,"
            " model.torch() is the LanguageModel that takes torch tensors"
        )

    @overload
    def generate(self, prompt: str = "", *, max_tokens: int = 256, **options: Any) -> str: ...

    @overload
    def generate(
        self, prompt: Sequence[str], *, max_tokens: int = 256, **options: Any
    ) -> list[str]: ...

    def generate(
        self, prompt: str | Sequence[str] = "", *, max_tokens: int = 256, **options: Any
    ) -> str | list[str]:
        """The text that follows `prompt`; `options` as for `stream`.

        Of several prompts all are written at once: a list, whose text i is that of `seed` + i.
        """
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, max_tokens=max_tokens, **options))
        return self._write_all(list(prompt), max_tokens, **options)

    def _write_all(
        self,
        prompts: list[str],
        max_tokens: int,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        across_documents: bool = False,
    ) -> list[str]:
        if not prompts:
            return []
        return write_texts(
            self.open_engine(slots=min(len(prompts), _AT_ONCE)),
            self.tokenizer,
            prompts,
            Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else stop,
            across_documents=across_documents,
        )

    def stream(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        across_documents: bool = False,
    ) -> Iterator[str]:
        """Pieces of the text that follows `prompt`, each of whole characters, as they are written.

        Temperature 0 takes the likeliest token; the same seed gives the same text. It ends after
        `max_tokens`, before a `stop` string, or with the document.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        engine = self._idle.pop() if self._idle else self.open_engine()
        text = start_text(
            engine,
            self.tokenizer,
            prompt,
            sampling,
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else stop,
            across_documents=across_documents,
        )

        def pieces() -> Iterator[str]:
            try:
                yield from text
            finally:
                self._idle.append(engine)

        return pieces()

    def logits(self, tokens: ArrayLike, *, context: int | None = None) -> Floats:
        """Logits (T, V) after each of tokens (T,), or (B, T, V) of (B, T).

        `context` is declared: how far full attention sees, and what rotary positions are scaled
        for; the larger of T and the recipe's unless given.
        """
        return self._each(tokens, context, lambda engine, ids: engine.rows(len(ids)).copy())

    def nll(self, tokens: ArrayLike, *, context: int | None = None) -> Floats:
        """Nats (T - 1,) of tokens 1 .. T - 1 after those before, or (B, T - 1) of (B, T)."""
        ids = np.asarray(tokens)
        if ids.ndim not in (1, 2):
            raise _no_tokens(ids)
        following = np.concatenate([ids[..., 1:], ids[..., :1]], axis=-1)
        if ids.ndim == 2 and len(ids):
            return np.stack([self.nll(row, context=context) for row in ids])
        at = 0

        def take(engine: Engine, part: NDArray[np.int64]) -> Floats:
            nonlocal at
            found = engine.nll(following[at : at + len(part), None])[:, 0]
            at += len(part)
            return found

        return self._each(ids, context, take)[:-1]

    def score(self, text: str | Path, **options: Any) -> Score:
        """The Score of a text, or of a text file or folder given as a Path.

        `options` are fields of `EvaluationOptions`, the recipe's unless given, and `engine`.
        """
        from niblick.data.textfiles import read_texts
        from niblick.scoring.data import text_target

        texts = read_texts(text) if isinstance(text, Path) else [text]
        model = self.recipe.model
        target = text_target(
            text.name if isinstance(text, Path) else "text",
            texts,
            self.tokenizer,
            vocab_size=model.vocab_size,
            bos_id=model.bos_id,
        )
        return self.score_target(target, **options)

    def score_target(
        self,
        target: Any,
        *,
        engine: EngineName | None = None,
        threads: int | None = None,
        prove: bool = False,
        on_progress: Any = None,
        **options: Any,
    ) -> Score:
        """The Score of a checked text, on an engine; `options` as for `score`."""
        from niblick.scoring.options import EvaluationOptions, OptionsError
        from niblick.scoring.passes import evaluate_on_engine

        chosen = EvaluationOptions.from_recipe(self.recipe, **options)
        if chosen.precision == "bf16" or chosen.ttt is not None or chosen.mode == "leaky-ttt":
            raise OptionsError("bf16 and test-time training are for niblick.evaluate")
        return evaluate_on_engine(
            self.plan,
            lambda slots: self.open_engine(
                slots=slots, threads=threads, context=chosen.context, kind=engine
            ),
            target,
            chosen,
            artifact_sha256=self.sha256,
            prove=prove,
            on_progress=on_progress,
        )

    def open_engine(
        self,
        *,
        slots: int = 1,
        threads: int | None = None,
        context: int | None = None,
        build: Build = "now",
        kind: EngineName | None = None,
        device: str | None = None,
    ) -> Engine:
        """An engine of this model with `slots` sequences: the fastest here, or the `kind` given.

        A plan that no engine of the runtime can run takes torch, where it is installed, as does
        another `device` than the CPU ("auto" asks for none: one text alone is fastest there).
        """
        check_sizes(slots, threads, context)
        if kind not in (None, *get_args(EngineName)):
            known = ", ".join(get_args(EngineName))
            raise NiblickError(f"engine {quoted(kind)} is unknown; accepted: {known}")
        on_device = device not in (None, "auto", "cpu")
        if on_device and kind not in (None, "torch"):
            raise NiblickError(f"--device {device} needs the torch engine, not {kind}")
        if kind != "torch" and not on_device:
            try:
                return open_engine(
                    self.plan,
                    self._opened.tensors,
                    slots=slots,
                    threads=threads,
                    context=context,
                    build=build,
                    kind=kind,
                )
            except NiblickError:
                if kind is not None or not has_lab():
                    raise
        with needs("the torch engine"):
            from niblick.evaluation.torch_engine import TorchEngine
            from niblick.runtime import choose_device, read_world
        place = choose_device(read_world(device if on_device else "cpu"))
        return TorchEngine(self.torch().to(place), slots=slots, context=context)

    def torch(self, *, gradients: bool = False) -> LanguageModel:
        """The lab's LanguageModel with these weights, float32 on the CPU, in evaluation mode.

        `logits, state = model(tokens, state=None)`: tokens (B, T) int64, logits (B, T, V) float32.
        Its parameters take gradients only where they are asked for, so that logits otherwise keep
        no graph. Raises `NiblickError` that names the command which installs torch where it is
        missing.
        """
        with needs("Model.torch()"):
            from niblick.model import build_model
        return build_model(self.recipe, self._opened.tensors).requires_grad_(gradients)

    def _each(self, tokens: ArrayLike, context: int | None, take: Any) -> Floats:
        """What `take(engine, ids)` gives of each piece, one after the other."""
        ids = np.asarray(tokens)
        if ids.ndim == 2 and len(ids):
            return np.stack([self._each(row, context, take) for row in ids])
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise _no_tokens(ids)
        declared = context or max(len(ids), self.plan.model.context)
        # taken out while it computes, so that threads never share one; only the newest is kept
        engine = self._engines.pop(declared, None) or self.open_engine(context=declared)
        try:
            checked = engine.check(0, ids)
            engine.reset(0)
            found = []
            for start in range(0, len(checked), engine.columns):
                part = checked[start : start + engine.columns]
                engine.advance(np.zeros(len(part), dtype=np.int32), part, "all")
                found.append(take(engine, part))
            return np.concatenate(found)
        finally:
            self._engines = {declared: engine}


def _no_tokens(ids: NDArray[Any]) -> NiblickError:
    return NiblickError(f"tokens must be whole numbers (T,) or (B, T), not {ids.dtype} {ids.shape}")
