"""Figures: the bytes they are divided by, the pass they come from, the command that gave them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from niblick.audit.command import documented_commands, find_command
from niblick.audit.review import review
from niblick.audit.types import Report, Severity
from unit.audit_programs import PLAIN, SCORE_FIRST, TRAIN_FIRST, program

CLEAN = program(PLAIN, main="evaluate(net, held, s)")


def _review(folder: Path, text: str, readme: str | None = None) -> Report:
    (folder / "train_gpt.py").write_text(text)
    if readme is not None:
        (folder / "README.md").write_text(readme)
    return review(folder)


def _found(report: Report) -> dict[str, Severity]:
    return {f.rule: f.severity for f in report.findings}


@pytest.mark.parametrize(("tokens", "million", "flagged"), [(62_021_632, 151.08, False), (62_363_648, 182.8, True), (9_000_000, 33.0, False)])
def test_a_log_that_implies_more_bytes_than_the_text_has_shows_a_miscount(
    tmp_path: Path, tokens: int, million: float, flagged: bool
) -> None:
    lines = [f"val_loader:shards pattern=fineweb_val_*.bin tokens:{tokens}"]
    for loss in (4.1, 2.9, 2.6, 2.55):
        lines.append(f"step:10/99 val_loss:{loss:.4f} val_bpb:{loss / math.log(2) * tokens / million / 1e6:.4f}")
    (tmp_path / "train.log").write_text("\n".join(lines))
    report = _review(tmp_path, CLEAN)
    assert ("byte-total" in _found(report)) is flagged
    assert report.verdict == ("flag_other" if flagged else "clean_neural")


TABLE = '''
def stored_table(path):
    with np.load(path) as table:
        return torch.from_numpy(np.asarray(table["bytes_of_token"]))
'''


@pytest.mark.parametrize(("vocabulary", "verdict"), [("TokenMonster", "flag_other"), ("SentencePiece", "clean_neural")])
def test_a_fixed_byte_table_does_not_fit_a_vocabulary_that_rewrites_the_text(
    tmp_path: Path, vocabulary: str, verdict: str
) -> None:
    text = program(TABLE, PLAIN.replace("byte_table()", "stored_table('table.npz')"), main="evaluate(net, held, s)")
    assert _review(tmp_path, text, f"# Run\n\nA {vocabulary} vocabulary of 998 tokens.\n").verdict == verdict


@pytest.mark.parametrize(
    ("words", "verdict"),
    [("on casefolded text", "hold_unclear"), ("on case-folded text with lossless marks", "clean_neural"), ("on text", "clean_neural")],
)
def test_text_that_is_changed_for_good_before_it_is_scored_is_held(tmp_path: Path, words: str, verdict: str) -> None:
    assert _review(tmp_path, CLEAN, f"# Run\n\nTrained and scored {words}.\n").verdict == verdict


TWICE = 'first = adapt(net, held, s)\nprint(f"adapted figure:{first:.5f}")\nsecond = evaluate(net, held, s)\nprint(f"last figure:{second:.5f}")'


@pytest.mark.parametrize(
    ("claim", "logged", "verdict"),
    [
        (1.08765, True, "clean_ttt_score_first"),
        (1.01234, True, "flag_prequant_ttt"),
        (1.08765, False, "flag_prequant_ttt"),
    ],
)
def test_a_second_pass_with_adapted_weights_counts_unless_the_claim_is_the_first(
    tmp_path: Path, claim: float, logged: bool, verdict: str
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps({"name": "x", "val_bpb": claim}))
    if logged:
        (tmp_path / "train.log").write_text("adapted figure:1.08765\nlast figure:1.01234\n")
    assert _review(tmp_path, program(PLAIN, SCORE_FIRST, main=TWICE)).verdict == verdict


def test_every_way_to_a_place_must_share_a_condition_before_a_log_line_proves_it(tmp_path: Path) -> None:
    saved = '\ndef save(net):\n    print("saving the small artifact")\n    torch.save(net.state_dict(), "m.pt")\n'
    main = "if s.adapt:\n    fit_held(net, held, s)\n    save(net)\nelse:\n    save(net)\nevaluate(net, held, s)"
    (tmp_path / "train.log").write_text("saving the small artifact\n")
    assert _review(tmp_path, program(PLAIN, TRAIN_FIRST, saved, main=main)).verdict == "clean_neural"


def test_where_the_first_command_scores_nothing_another_documented_one_is_followed(tmp_path: Path) -> None:
    main = 'if os.environ.get("MODE") == "score":\n    fit_held(net, held, s)\n    evaluate(net, held, s)'
    (tmp_path / "run.sh").write_text("MODE=score torchrun --nproc_per_node=8 train_gpt.py\n")
    readme = "# Run\n\n```bash\nSELF_TEST=1 torchrun --nproc_per_node=8 train_gpt.py\n```\n"
    assert _review(tmp_path, program(PLAIN, TRAIN_FIRST, main=main), readme).verdict == "flag_prequant_ttt"


def test_a_command_after_another_on_one_line_keeps_its_variables(tmp_path: Path) -> None:
    readme = "```bash\ncd /w && A=1 B=2 torchrun --nproc_per_node=8 train_gpt.py; echo done\n```\n"
    command = find_command(tmp_path, "train_gpt.py", readme, None)
    assert command is not None
    assert (command.environment, command.world_size) == ({"A": "1", "B": "2"}, 8)


def test_documented_commands_come_with_the_most_telling_first(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("C=3 python train_gpt.py\n")
    readme = "```bash\npython train_gpt.py\n```\n```bash\nA=1 torchrun --nproc_per_node=8 train_gpt.py\n```\n"
    found = list(documented_commands(tmp_path, "train_gpt.py", readme, None))
    assert [c.environment for c in found] == [{"A": "1"}, {}, {"C": "3"}]


@pytest.mark.parametrize(("default", "verdict"), [("False", "import_fail"), ("0", "clean_neural")])
def test_a_setting_that_its_own_conversion_refuses_is_an_import_failure(tmp_path: Path, default: str, verdict: str) -> None:
    setting = f'''
def setting(name, default, kind):
    text = os.environ.get(name, str(default))
    if kind == bool:
        return bool(int(text))
    return kind(text)

class More:
    width = setting("WIDTH", 64, int)
    wide = setting("WIDE", {default}, bool)
'''
    assert _review(tmp_path, program(setting, PLAIN, main="evaluate(net, held, s)")).verdict == verdict


def test_a_refused_setting_that_is_caught_or_never_reached_is_none(tmp_path: Path) -> None:
    caught = '\ntry:\n    width = int("wide")\nexcept ValueError:\n    width = 3\n\ndef never():\n    return int("x")\n'
    assert _review(tmp_path, program(caught, PLAIN, main="evaluate(net, held, s)")).verdict == "clean_neural"
