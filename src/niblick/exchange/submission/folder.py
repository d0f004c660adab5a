"""The submission folder of a run: README, submission.json, one log a seed, requirements, artifact
and script.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from niblick.artifact.load import shipped_file, shipped_models
from niblick.errors import CapacityError, DataError, NiblickError, NiblickWarning
from niblick.exchange.submission import texts
from niblick.exchange.submission.bundle import bundle_script
from niblick.exchange.submission.verify import record_folder
from niblick.exchange.target import check_folder, new_folder
from niblick.files import MALFORMED, parse_json, read_json, sha256_file
from niblick.limits import cut
from niblick.recipe import load_recipe
from niblick.text.learning import TRAINED
from niblick.text.tokenizer import CHALLENGE

ENTRY = "niblick.exchange.standalone"
LIMIT = 16_000_000
_TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class Run:
    """A finished run: its artifact, its recipe's file, its card, and the lines of its metrics (none
    of a shipped model).
    """

    artifact: Path
    recipe: Path
    card: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Exported:
    """A written submission: its folder, the bytes of code and artifact, and the claimed bits per
    byte.
    """

    folder: Path
    code_bytes: int
    artifact_bytes: int
    bpb: float


def export_submission(
    run: Path, out: Path, *, author: str, name: str | None = None, force: bool = False
) -> Exported:
    """Write the run (or several seeds' folder, or shipped model) `run` as a submission into the new
    folder `out`; `force` replaces an earlier one.

    Raises `NiblickError` where the run is not finished or not valid, `CapacityError` where code and
    artifact together exceed the challenge's 16,000,000 bytes.
    """
    runs = _read_runs(run)
    check_folder(out, force=force, mark="submission.json")
    invalid = [str(r.artifact.parent) for r in runs if not r.card.get("valid")]
    if invalid:
        raise NiblickError(f"{invalid[0]!r} holds a score that is not valid; nothing to submit")
    started = [r for r in runs if r.card.get("init_from")]
    if started:
        raise NiblickError(
            f"{str(started[0].artifact.parent)!r} started from another model's weights; a"
            " submission's script trains from nothing"
        )
    try:
        with new_folder(out) as work:
            exported = _fill(work, runs, author, name or str(runs[0].card["recipe"]))
    except MALFORMED as error:
        raise NiblickError(
            f"the card of {str(run)!r} is damaged: {cut(repr(error), 120)}"
        ) from None
    except OSError as error:
        raise NiblickError(f"cannot export to {str(out)!r}: {error.strerror}") from None
    try:
        record_folder(out)
    except (OSError, DataError) as error:
        warnings.warn(
            f"{str(out)!r} is written, but not on record as this machine's: {cut(error, 120)};"
            " `niblick verify` will ask for --trust",
            NiblickWarning,
            stacklevel=2,
        )
    return Exported(out, exported.code_bytes, exported.artifact_bytes, exported.bpb)


def _fill(work: Path, runs: list[Run], author: str, name: str) -> Exported:
    best = min(runs, key=lambda r: float(r.card["packed_bpb"]))
    artifact = best.artifact
    if sha256_file(artifact) != best.card["artifact_sha256"]:
        raise NiblickError(
            f"{str(artifact)!r} is not the file that the card scored; run niblick train again"
        )
    shutil.copyfile(artifact, work / "artifact.nib")
    settings = _settings(best.recipe, work)
    script, needed = bundle_script(ENTRY, settings, f"{name}: generated from the niblick library.")
    (work / "train_gpt.py").write_text(script, "utf-8")
    code = (work / "train_gpt.py").stat().st_size + _size(work / _TOKENIZER)
    size = max(r.artifact.stat().st_size for r in runs)
    if code + size > LIMIT:
        raise CapacityError(
            f"code of {code:,} B and artifact of {size:,} B exceed the limit of {LIMIT:,} B by"
            f" {code + size - LIMIT:,} B"
        )
    bpb = sum(float(r.card["packed_bpb"]) for r in runs) / len(runs)
    facts = texts.Facts(
        name=name,
        author=author,
        day=date.today().isoformat(),
        code_bytes=code,
        artifact_bytes=size,
        bpb=bpb,
        cards=[r.card for r in runs],
        best=best.card,
    )
    (work / "requirements.txt").write_text(texts.requirements_text(needed, facts), "utf-8")
    (work / "submission.json").write_text(
        json.dumps(texts.submission(facts), indent=2) + "\n", "utf-8"
    )
    (work / "README.md").write_text(texts.readme(facts), "utf-8")
    for r in runs:
        log = texts.log_lines(r.card, r.metrics, code)
        (work / f"train_seed{r.card['seed']}.log").write_text("\n".join(log) + "\n", "utf-8")
    return Exported(work, code, size, bpb)


def _settings(file: Path, work: Path) -> dict[str, Any]:
    """The recipe as plain values; a tokenizer file it names goes into the folder."""
    recipe = load_recipe(file)
    values = recipe.model_dump(mode="json")
    if recipe.data.tokenizer not in {*TRAINED, "bytes"}:
        from niblick.text.tokenizer import load_tokenizer

        source = recipe.data.tokenizer
        tokenizer = load_tokenizer(source)
        (work / _TOKENIZER).write_bytes(
            Path(source).read_bytes() if source != CHALLENGE else tokenizer.to_bytes()
        )
        values["data"]["tokenizer"] = _TOKENIZER
    return values


def _read_runs(run: Path) -> list[Run]:
    if (shipped := shipped_file(run)) is not None:
        card = read_json(shipped.with_suffix(".card.json"))
        return [Run(shipped, shipped.with_suffix(".toml"), card, [])]
    if not run.exists():
        names = ", ".join(shipped_models())
        raise NiblickError(
            f"no run at {str(run)!r}; give a run folder, or the name of a shipped model: {names}"
        )
    seeds = sorted(
        run.glob("seed-*"), key=lambda p: int(p.name[5:]) if p.name[5:].isdecimal() else -1
    )
    return [_read_run(folder) for folder in seeds or [run]]


def _read_run(folder: Path) -> Run:
    try:
        card = read_json(folder / "card.json")
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
        artifact, recipe = folder / "artifact.nib", folder / "recipe.toml"
        return Run(artifact, recipe, card, [parse_json(line) for line in lines])
    except OSError as error:
        raise NiblickError(
            f"{str(folder)!r} is not a finished run: {error.strerror} ({error.filename})"
        ) from None
    except ValueError as error:
        raise NiblickError(
            f"{str(folder)!r} holds a damaged card or metrics file: {cut(error, 120)}"
        ) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
