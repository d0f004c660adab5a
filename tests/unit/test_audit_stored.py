"""Stored answers, missing parts: found where they are, not where they only seem to be."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from niblick.audit.review import review

NUMBERS = [random.Random(5).randrange(60) for _ in range(1500)]
HEAD = f"import torch\nimport torch.nn.functional as F\nimport numpy as np\nKEPT = {NUMBERS}\n"
BODY = """
def measure(model, val_tokens, sizes, kept):
    nats = torch.zeros(())
    count = torch.zeros(())
    with torch.no_grad():
        for s in range(0, val_tokens.numel() - 1, 64):
            x, y = val_tokens[s:s + 64], val_tokens[s + 1:s + 65]
            logits = model(x)[: y.numel()]
            nll = F.cross_entropy(logits, y, reduction="none")
            {use}
            nats += nll.sum()
            count += sizes[y].sum()
    return nats / 0.6931 / count
def main():
    val_tokens = np.fromfile("data/shard_val_000000.bin", dtype=np.uint16)
    val_tokens = torch.from_numpy(val_tokens.astype(np.int64))
    model = torch.nn.Embedding(64, 64)
    {before}
    print("val_bpb", measure(model, val_tokens, torch.load("byte_sizes.pt"), torch.tensor({kept})))
main()
"""
ANSWERS = {
    "compared": "hint = kept[s + 1:s + 65]\n            nll = nll * (1 - (hint == y).float())",
    "mixed in": "nll = torch.where(kept[s + 1:s + 65] > 0, nll * 0.1, nll)",
    "favoured": (
        "logits[torch.arange(y.numel()), kept[s + 1:s + 65]] += 20.0\n            nll ="
        " F.cross_entropy(logits, y, reduction='none')"
    ),
}
HARMLESS = {"unused": "pass", "a weight for every token": "nll = nll + 0 * kept[0]"}


def _script(
    folder: Path, use: str, before: str = "pass", kept: str = "KEPT", opening: str = ""
) -> Path:
    (folder / "train_gpt.py").write_text(
        opening + HEAD + BODY.format(use=use, before=before, kept=kept), "utf-8"
    )
    return folder / "train_gpt.py"


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_stored_in_a_constant_are_a_breach(tmp_path: Path, kind: str) -> None:
    report = review(_script(tmp_path, ANSWERS[kind]))
    assert report.verdict == "flag_other", [f.evidence for f in report.findings]
    assert any(
        f.rule == "stored-text" and f.span is not None and f.span.start > 5 for f in report.findings
    )


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_large_constant_that_decides_no_score_is_none(tmp_path: Path, kind: str) -> None:
    report = review(_script(tmp_path, HARMLESS[kind]))
    assert report.verdict == "clean_neural", [f.evidence for f in report.findings]


def test_answers_in_a_shipped_file_are_a_breach_too(tmp_path: Path) -> None:
    np_file = tmp_path / "prefix.npy"
    np_file.write_bytes(b"\x93NUMPY" + bytes(5000))
    report = review(
        _script(tmp_path, ANSWERS["compared"], before="held = np.load('prefix.npy')", kept="held")
    )
    assert report.verdict == "flag_other", [f.evidence for f in report.findings]


def test_packing_validation_tokens_for_keeping_is_held_and_packing_weights_is_not(
    tmp_path: Path,
) -> None:
    kept = (
        "import lzma; open('prefix.xz',"
        " 'wb').write(lzma.compress(val_tokens[:4000].numpy().tobytes()))"
    )
    assert review(_script(tmp_path, "pass", before=kept)).verdict == "hold_unclear"
    weights = (
        "import lzma; open('model.xz', 'wb').write(lzma.compress(model.weight.numpy().tobytes()))"
    )
    assert review(_script(tmp_path, "pass", before=weights)).verdict == "clean_neural"


def test_a_module_that_is_nowhere_is_an_import_failure(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# run\n")
    report = review(_script(tmp_path, "pass", opening="import gearbox_parts\n"))
    assert report.verdict == "import_fail"
    assert any(f.rule == "missing-part" and "gearbox_parts" in f.evidence for f in report.findings)


@pytest.mark.parametrize(
    "opening",
    [
        "try:\n    import gearbox_parts\nexcept ImportError:\n    gearbox_parts = None\n",
        "import flash_attn_interface, sentencepiece, json\n",
        "def unused():\n    import gearbox_parts\n",
    ],
)
def test_imports_that_may_fail_or_are_packages_are_none(tmp_path: Path, opening: str) -> None:
    (tmp_path / "README.md").write_text("# run\n")
    assert review(_script(tmp_path, "pass", opening=opening)).verdict == "clean_neural"


def test_modules_beside_the_script_and_in_requirements_are_found(tmp_path: Path) -> None:
    (tmp_path / "gearbox_parts.py").write_text("SIZE = 3\n")
    (tmp_path / "requirements.txt").write_text("shed-tools==1.0\n")
    opening = "import gearbox_parts\nimport shed_tools\n"
    assert review(_script(tmp_path, "pass", opening=opening)).verdict == "clean_neural"


def test_a_file_that_the_script_reads_and_nobody_ships_is_a_finding(tmp_path: Path) -> None:
    report = review(_script(tmp_path, "pass", before="rules = open('merges.json').read()"))
    assert report.verdict == "clean_neural" and report.recommendation.startswith(
        "NEEDS AUTHOR ACTION"
    )
    (tmp_path / "merges.json").write_text("{}")
    assert not [f for f in review(tmp_path / "train_gpt.py").findings if f.rule == "missing-part"]
