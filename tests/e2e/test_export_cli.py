"""Exported submissions: whole folders whose script works where this package cannot be imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands import run
from leaving import saved
from niblick.artifact.checkpoint import read_checkpoint
from niblick.errors import NiblickWarning
from niblick.exchange.submission import verify
from niblick.exchange.submission.bundle import reachable
from niblick.exchange.submission.folder import export_submission


@pytest.fixture
def folder(exported: Path, recipe: Path) -> Path:
    """An exported submission of a two-step run, which lies beside it as `run`."""
    for name in ("run", "submission"):
        shutil.copytree(exported / name, recipe.parent / name)
    known = Path("cache", "niblick", "exports.json")  # that it was exported here
    shutil.copy(exported / known, recipe.parent / known)
    return recipe.parent / "submission"


def test_an_exported_folder_holds_what_reviewers_ask_for(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    expected = {
        "README.md",
        "submission.json",
        "requirements.txt",
        "artifact.nib",
        "train_gpt.py",
        "train_seed0.log",
    }
    assert names == expected
    claims = json.loads((folder / "submission.json").read_text())
    code, model = (folder / "train_gpt.py").stat().st_size, (folder / "artifact.nib").stat().st_size
    assert (claims["bytes_code"], claims["bytes_model"], claims["bytes_total"]) == (
        code,
        model,
        code + model,
    )
    assert sum(claims["ledger"].values()) == code + model
    assert claims["author"] == "Ada"


def test_the_audit_follows_the_script_to_its_score_and_finds_it_clean(folder: Path) -> None:
    from niblick.audit.review import build_case, review
    from niblick.audit.rules.case import scored
    from niblick.audit.submission import read

    report = review(folder)
    assert report.verdict == "clean_neural", [finding.evidence for finding in report.findings]
    assert any(event.targets for event in scored(build_case(read(folder)).trace))


def test_a_shipped_model_goes_out_as_a_submission_that_the_audit_finds_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from niblick.audit.review import review

    monkeypatch.chdir(tmp_path)
    assert run("export", "pocket", "--to", "submission", "--out", "pocket-submission") == 0
    folder = tmp_path / "pocket-submission"
    report = review(folder)
    assert report.verdict == "clean_neural", [finding.evidence for finding in report.findings]
    claims = json.loads((folder / "submission.json").read_text())
    assert claims["bytes_model"] == (folder / "artifact.nib").stat().st_size


def test_the_script_scores_the_artifact_to_six_digits_without_this_package(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", str(folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"] and found["found"] == pytest.approx(found["claimed"], abs=5e-7)


def test_the_script_trains_packs_and_scores_without_this_package(folder: Path) -> None:
    places = "|".join(p for p in sys.path if p.endswith("site-packages"))
    wrapper = verify._WITHOUT_PACKAGE.replace('"--eval-only", ', "")
    arguments = [str(folder / "train_gpt.py"), places, "--duration", "3 steps", "--out", "again"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", wrapper, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (
        result["bpb"] > 0
        and result["artifact_bytes"] == (folder / "again" / "artifact.nib").stat().st_size
    )


def test_a_folder_that_was_changed_or_is_foreign_is_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "train_gpt.py").open("a") as script:
        script.write("\n# changed\n")
    assert run("verify", str(folder)) == 2
    assert "--trust" in capsys.readouterr().err


def test_a_claim_that_the_artifact_does_not_keep_is_found_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = json.loads((folder / "submission.json").read_text())
    (folder / "submission.json").write_text(
        json.dumps({**claims, "artifact_bpb": claims["artifact_bpb"] - 0.01})
    )
    assert run("verify", str(folder), "--trust") == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("claim", "said"), [("1" + "0" * 400, "claims no val_bpb"), ("true", "claims no val_bpb")]
)
def test_a_claim_that_is_no_number_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], claim: str, said: str
) -> None:
    (folder / "submission.json").write_text(f'{{"val_bpb": {claim}}}')
    assert run("verify", str(folder), "--trust") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("printed", [rb"{\"bpb\": NaN}", rb"\xff\xfe", rb"{\"bpb\": true}"])
def test_a_script_that_prints_no_score_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], printed: bytes
) -> None:
    source = b'import sys\nsys.stdout.buffer.write(b"' + printed + b'\\n")\n'
    (folder / "train_gpt.py").write_bytes(source)
    assert run("verify", str(folder), "--trust") == 1
    assert "printed no score" in capsys.readouterr().err


def test_unfinished_runs_and_occupied_folders_are_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "half").mkdir()
    assert run("export", "half", "--out", "new") == 2
    assert run("export", "half", "--to", "gguf") == 2
    assert capsys.readouterr().err.count("niblick: ") == 2


@pytest.mark.parametrize("to", ["hf", "onnx", "gguf", "tokenizer", "html"])
def test_no_format_replaces_what_is_there_unless_it_is_forced(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "there"
    out.write_text("mine")
    assert run("export", "pocket", "--to", to, "--out", str(out)) == 2
    told = capsys.readouterr().err
    assert "--force" in told and told.count("\n") == 1 and out.read_text() == "mine"


@pytest.mark.parametrize("to", ["hf", "onnx", "tokenizer", "html"])
def test_force_replaces_an_earlier_export_by_the_same_bytes(to: str, tmp_path: Path) -> None:
    model, out = str(saved(tmp_path, "token-shift").path), tmp_path / "out"
    arguments = ["export", model, "--to", to, "--out", str(out)]
    found = []
    for more in ([], ["--force"]):
        assert run(*arguments, *more) == 0
        files = sorted(out.iterdir()) if out.is_dir() else [out]
        found.append({path.name: path.read_bytes() for path in files})
        if out.is_dir():
            (out / "stale.safetensors").write_text("")
    assert found[0] == found[1]
    assert {path.name for path in tmp_path.iterdir()} == {"out", Path(model).name}


@pytest.mark.parametrize("to", ["hf", "submission"])
def test_force_keeps_a_folder_that_is_no_export(
    to: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, notes = "run" if to == "submission" else "pocket", folder.parent / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    (notes / "config.json").write_text('{"model_type": "llama"}')  # of another model
    assert run("export", model, "--to", to, "--out", "notes", "--force") == 2
    assert "no earlier export" in capsys.readouterr().err
    assert (notes / "mine.txt").read_text() == "mine"


def test_a_submission_is_replaced_only_if_it_is_forced(folder: Path) -> None:
    (folder / "stale").write_text("")
    assert run("export", "run", "--out", "submission") == 2
    assert (folder / "stale").exists()
    assert run("export", "run", "--out", "submission", "--force") == 0
    assert not (folder / "stale").exists()


def test_a_bundle_holds_only_what_its_entry_reaches() -> None:
    names = set(reachable("niblick.exchange.standalone"))
    assert "niblick.training.trainer" in names and "niblick" in names
    assert not any(
        name.startswith(("niblick.audit", "niblick.cli", "niblick.engine")) for name in names
    )


def test_a_folder_comes_back_in_bfloat16_too_and_is_not_written_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    hf = tmp_path / "hf"
    assert run("export", "pocket", "--to", "hf", "--out", str(hf)) == 0
    weights = load_file(hf / "model.safetensors")
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(halves, hf / "model.safetensors", metadata={"format": "pt"})
    before = (hf / "model.safetensors").read_bytes()
    assert run("import", str(hf), "--out", str(hf / "model.safetensors")) == 2
    assert "lies in the folder that is read" in capsys.readouterr().err
    assert (hf / "model.safetensors").read_bytes() == before
    assert run("import", str(hf), "--out", str(tmp_path / "back.safetensors")) == 0
    back = read_checkpoint(tmp_path / "back.safetensors").tensors
    name = "blocks.0.mlp.fc.weight"
    assert (back[name] == halves[name].float().numpy()).all()
    assert run("import", str(tmp_path / "none"), "--out", str(tmp_path / "x.safetensors")) == 2
    assert "there is no file or folder" in capsys.readouterr().err


def test_a_submission_that_cannot_be_put_on_record_is_written_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = folder.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(NiblickWarning, match="not on record.*--trust"):
        export_submission(folder.parent / "run", folder.parent / "new", author="me")
    assert (folder.parent / "new" / "submission.json").is_file()
