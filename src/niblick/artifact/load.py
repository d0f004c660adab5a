"""Opening a model: an artifact, a checkpoint or a run folder becomes its tensors, plan and recipe.

Everything comes from the one file. Sizes are bounded by what the file can hold before anything is
allocated. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from niblick.artifact import container
from niblick.codecs import CODECS
from niblick.codecs.base import exported_tensors
from niblick.codecs.quantized import Tensor
from niblick.errors import ArtifactError, NiblickError
from niblick.files import package_folder, sha256_file
from niblick.limits import cut, did_you_mean, quoted
from niblick.plan import Plan, make_plan
from niblick.recipe.stored import made_recipe, stored_recipe
from niblick.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from niblick.recipe import Recipe

ARTIFACT_FILE = "artifact.nib"
_FREE_PARAMETERS, _PARAMETERS_PER_BYTE = 1 << 22, 1024
_Content = tuple["Recipe", Tokenizer | None, dict[str, Tensor], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a model's file says: its tensors by name, in the order of `plan`, and all about them.

    `plan` is that of the exported model, without training-only heads. An artifact's matrices and
    embeddings are quantized, a checkpoint's tensors float32; `sha256` is the file's.
    """

    recipe_as_read: Recipe
    plan: Plan
    tokenizer: Tokenizer | None
    tensors: dict[str, Tensor]
    kind: Literal["artifact", "checkpoint"]
    path: Path
    sha256: str
    meta: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """Everything that decided the model."""
        return made_recipe(self.recipe_as_read)


def open_file(path: Path | str) -> Opened:
    """Open an artifact, a checkpoint (file or folder) or a run folder.

    Of a run folder its artifact, else its newest checkpoint. Raises `ArtifactError` for a file that
    is missing, damaged or foreign.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(
            f"no model at {str(path)!r}; give an artifact, a checkpoint or a run folder"
        )
    if path.is_dir():
        path = _inside(path)
    kind: Literal["artifact", "checkpoint"]
    kind, read = "artifact", _read_artifact
    if _is_safetensors(path):
        kind, read = "checkpoint", _read_checkpoint
    recipe, tokenizer, tensors, meta = read(path)
    return Opened(
        recipe_as_read=recipe,
        plan=make_plan(exported_recipe(recipe).model),
        tokenizer=tokenizer,
        tensors=tensors,
        kind=kind,
        path=path,
        sha256=sha256_file(path),
        meta=meta,
    )


def shipped_models() -> dict[str, Path]:
    """The files of the models that ship with niblick, by name."""
    folder = package_folder() / "models"
    return {path.stem: path for path in sorted(folder.glob("*.nib"))}


def shipped_file(name: str | Path) -> Path | None:
    """The file of the shipped model of that name; None where there is none, or such a path."""
    return None if Path(name).exists() else shipped_models().get(str(name))


def find_model(model: str | Path) -> Path:
    """An existing path as it is, else the file of the shipped model of that name."""
    path = Path(model)
    if not str(model):
        raise ArtifactError("no model is named")
    if path.exists() or len(path.parts) != 1 or path.suffix:
        return path
    shipped = shipped_file(path)
    if shipped is None:
        names = ", ".join(shipped_models())
        raise ArtifactError(
            f"no model at {quoted(str(model))}{did_you_mean(path.name, shipped_models())}; give an"
            f" artifact, a checkpoint, a run folder, or the name of a shipped model: {names}"
        )
    return shipped


def open_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer inside a model (artifact, checkpoint, run folder, shipped name) or prepared
    data, else the one that `load_tokenizer` finds.
    """
    path = shipped_file(spec) or Path(spec)
    if path.is_dir() and (path / "manifest.json").is_file():
        from niblick.data.dataset import open_dataset

        return open_dataset(path).tokenizer
    if path.is_dir() or (path.is_file() and (path.suffix == ".safetensors" or _packed(path))):
        found = open_file(path).tokenizer
        if found is None:
            raise ArtifactError(f"{spec!r} brings no tokenizer")
        return found
    return load_tokenizer(spec)


def _packed(path: Path) -> bool:
    try:
        return container.is_artifact(path)
    except OSError:
        return False


def exported_recipe(recipe: Recipe) -> Recipe:
    """`recipe` without training-only heads: what a packed or loaded model is built from."""
    if not recipe.model.mtp.heads:
        return recipe
    model = recipe.model.model_copy(
        update={"mtp": recipe.model.mtp.model_copy(update={"heads": 0})}
    )
    return recipe.model_copy(update={"model": model})


def capacity(payload: int) -> int:
    """The most parameters that a payload of so many bytes may declare."""
    return _FREE_PARAMETERS + _PARAMETERS_PER_BYTE * payload


def _inside(folder: Path) -> Path:
    if (folder / ARTIFACT_FILE).is_file():
        return folder / ARTIFACT_FILE
    from niblick.artifact.checkpoint import find_weights

    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir() and (seeds := sorted(folder.glob("seed-*/recipe.toml"))):
        raise ArtifactError(
            f"{str(folder)!r} is a folder of seeds; give one of them, as {str(seeds[0].parent)!r}"
        )
    return find_weights(checkpoints if checkpoints.is_dir() else folder)


def _is_safetensors(path: Path) -> bool:
    """Artifacts are told by their first bytes; of the rest, the suffix promises a checkpoint."""
    try:
        return not container.is_artifact(path) and path.suffix == ".safetensors"
    except OSError as error:
        raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _read_checkpoint(path: Path) -> _Content:
    from niblick.artifact.checkpoint import read_checkpoint

    found = read_checkpoint(path)
    tensors = exported_tensors(found.tensors, make_plan(found.recipe.model))
    return found.recipe, found.tokenizer, dict(tensors), found.meta


def _read_artifact(path: Path) -> _Content:
    found = container.read(path)
    recipe = _recipe(path, found.header)
    try:
        plan = _bounded_plan(recipe, len(found.payload))
        tokenizer = load_tokenizer(found.tokenizer) if found.tokenizer else None
        if tokenizer is not None and tokenizer.vocab_size > recipe.model.vocab_size:
            size = recipe.model.vocab_size
            raise ArtifactError(
                f"a tokenizer of {tokenizer.vocab_size} pieces with a model of {size}"
            )
        codec = found.header.get("codec")
        if not isinstance(codec, str) or codec not in CODECS:
            raise ArtifactError(
                f"unknown codec {quoted(codec)}; this build reads {', '.join(CODECS)}"
            )
        tensors = CODECS[codec].decode(found.payload, recipe, plan)
    except NiblickError as error:
        raise ArtifactError(f"artifact {str(path)!r} is refused: {cut(error, 150)}") from None
    meta = found.header.get("meta")
    return recipe, tokenizer, tensors, meta if isinstance(meta, dict) else {}


def _recipe(path: Path, header: dict[str, Any]) -> Recipe:
    values = header.get("recipe")
    if not isinstance(values, dict):
        raise ArtifactError(f"artifact {str(path)!r} holds no recipe")
    try:
        return stored_recipe(values)
    except NiblickError as error:
        raise ArtifactError(
            f"artifact {str(path)!r} holds no usable recipe: {cut(error, 150)}"
        ) from None


def _bounded_plan(recipe: Recipe, payload: int) -> Plan:
    """The exported model's plan; refused where the payload cannot hold that many parameters."""
    plan = make_plan(exported_recipe(recipe).model)
    if plan.parameter_count > capacity(payload):
        raise ArtifactError(
            f"{plan.parameter_count:,} parameters declared for a payload of {payload:,} bytes"
        )
    return plan
