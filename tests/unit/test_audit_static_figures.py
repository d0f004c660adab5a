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


@pytest.mark.parametrize(
    ("tokens", "million", "flagged"),
    [(62_021_632, 151.08, False), (62_363_648, 182.8, True), (9_000_000, 33.0, False)],
)
def test_a_log_that_implies_more_bytes_than_the_text_has_shows_a_miscount(
    tmp_path: Path, tokens: int, million: float, flagged: bool
) -> None:
    lines = [f"val_loader:shards pattern=fineweb_val_*.bin tokens:{tokens}"]
    for loss in (4.1, 2.9, 2.6, 2.55):
        lines.append(
            f"step:10/99 val_loss:{loss:.4f}"
            f" val_bpb:{loss / math.log(2) * tokens / million / 1e6:.4f}"
        )
    (tmp_path / "train.log").write_text("\n".join(lines))
    report = _review(tmp_path, CLEAN)
    assert ("byte-total" in _found(report)) is flagged
    assert report.verdict == ("flag_other" if flagged else "clean_neural")


TABLE = """
def stored_table(path):
    with np.load(path) as table:
        return torch.from_numpy(np.asarray(table["bytes_of_token"]))
"""


@pytest.mark.parametrize(
    ("vocabulary", "verdict"), [("TokenMonster", "flag_other"), ("SentencePiece", "clean_neural")]
)
def test_a_fixed_byte_table_does_not_fit_a_vocabulary_that_rewrites_the_text(
    tmp_path: Path, vocabulary: str, verdict: str
) -> None:
    text = program(
        TABLE,
        PLAIN.replace("byte_table()", "stored_table('table.npz')"),
        main="evaluate(net, held, s)",
    )
    assert (
        _review(tmp_path, text, f"# Run\n\nA {vocabulary} vocabulary of 998 tokens.\n").verdict
        == verdict
    )


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("on casefolded text", "hold_unclear"),
        ("on case-folded text with lossless marks", "clean_neural"),
        ("on text", "clean_neural"),
    ],
)
def test_text_that_is_changed_for_good_before_it_is_scored_is_held(
    tmp_path: Path, words: str, verdict: str
) -> None:
    assert _review(tmp_path, CLEAN, f"# Run\n\nTrained and scored {words}.\n").verdict == verdict


TWICE = (
    'first = adapt(net, held, s)\nprint(f"adapted figure:{first:.5f}")\nsecond = evaluate(net,'
    ' held, s)\nprint(f"last figure:{second:.5f}")'
)


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


def test_every_way_to_a_place_must_share_a_condition_before_a_log_line_proves_it(
    tmp_path: Path,
) -> None:
    saved = (
        '\ndef save(net):\n    print("saving the small artifact")\n    torch.save(net.state_dict(),'
        ' "m.pt")\n'
    )
    main = (
        "if s.adapt:\n    fit_held(net, held, s)\n    save(net)\nelse:\n   "
        " save(net)\nevaluate(net, held, s)"
    )
    (tmp_path / "train.log").write_text("saving the small artifact\n")
    assert (
        _review(tmp_path, program(PLAIN, TRAIN_FIRST, saved, main=main)).verdict == "clean_neural"
    )


def test_where_the_first_command_scores_nothing_another_documented_one_is_followed(
    tmp_path: Path,
) -> None:
    main = (
        'if os.environ.get("MODE") == "score":\n    fit_held(net, held, s)\n    evaluate(net,'
        " held, s)"
    )
    (tmp_path / "run.sh").write_text("MODE=score torchrun --nproc_per_node=8 train_gpt.py\n")
    readme = "# Run\n\n```bash\nSELF_TEST=1 torchrun --nproc_per_node=8 train_gpt.py\n```\n"
    assert (
        _review(tmp_path, program(PLAIN, TRAIN_FIRST, main=main), readme).verdict
        == "flag_prequant_ttt"
    )


def test_a_command_after_another_on_one_line_keeps_its_variables(tmp_path: Path) -> None:
    readme = "```bash\ncd /w && A=1 B=2 torchrun --nproc_per_node=8 train_gpt.py; echo done\n```\n"
    command = find_command(tmp_path, "train_gpt.py", readme, None)
    assert command is not None
    assert (command.environment, command.world_size) == ({"A": "1", "B": "2"}, 8)


def test_documented_commands_come_with_the_most_telling_first(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("C=3 python train_gpt.py\n")
    readme = (
        "```bash\npython train_gpt.py\n```\n```bash\nA=1 torchrun --nproc_per_node=8"
        " train_gpt.py\n```\n"
    )
    found = list(documented_commands(tmp_path, "train_gpt.py", readme, None))
    assert [c.environment for c in found] == [{"A": "1"}, {}, {"C": "3"}]


@pytest.mark.parametrize(("default", "verdict"), [("False", "import_fail"), ("0", "clean_neural")])
def test_a_setting_that_its_own_conversion_refuses_is_an_import_failure(
    tmp_path: Path, default: str, verdict: str
) -> None:
    setting = f"""
def setting(name, default, kind):
    text = os.environ.get(name, str(default))
    if kind == bool:
        return bool(int(text))
    return kind(text)

class More:
    width = setting("WIDTH", 64, int)
    wide = setting("WIDE", {default}, bool)
"""
    assert (
        _review(tmp_path, program(setting, PLAIN, main="evaluate(net, held, s)")).verdict == verdict
    )


def test_a_refused_setting_that_is_caught_or_never_reached_is_none(tmp_path: Path) -> None:
    caught = (
        '\ntry:\n    width = int("wide")\nexcept ValueError:\n    width = 3\n\ndef never():\n   '
        ' return int("x")\n'
    )
    assert (
        _review(tmp_path, program(caught, PLAIN, main="evaluate(net, held, s)")).verdict
        == "clean_neural"
    )


EXTRA = """
def hang(net):
    net.low = nn.Parameter(torch.zeros(4, 64))

def take_off(net):
    del net.low

def adapt_low(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    hang(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - s.context, s.context):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        with torch.no_grad():
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
        total += nll.sum()
        size += sizes[y].sum()
        opt.zero_grad()
        net(x[None], y[None]).backward()
        opt.step()
    {after}
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("", "take_off(net)", "clean_ttt_score_first"),
        ("", "pass", "flag_prequant_ttt"),
        ("fit_held(net, held, s)\n", "take_off(net)", "flag_prequant_ttt"),
    ],
)
def test_what_adapters_have_learnt_goes_when_they_are_taken_off(
    tmp_path: Path, before: str, after: str, verdict: str
) -> None:
    main = before + "adapt_low(net, held, s)\nevaluate(net, held, s)"
    assert (
        _review(tmp_path, program(PLAIN, TRAIN_FIRST, EXTRA.format(after=after), main=main)).verdict
        == verdict
    )


CHOSEN = """
def adapt_hard(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - s.context, s.context):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        {score}
        places = [None]
        torch.distributed.all_gather_object(places, [a])
        b = places[0][0]
        opt.zero_grad()
        net(held[b:b + s.context][None], held[b + 1:b + s.context + 1][None]).backward()
        opt.step()
    return total, size
"""
SCORED = """with torch.no_grad():
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
        total += nll.sum()
        size += sizes[y].sum()"""


def test_learning_at_places_nothing_is_known_of_is_judged_by_its_order(tmp_path: Path) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    first.mkdir()
    later.mkdir()
    text = program(CHOSEN.format(score=SCORED), main="figure(*adapt_hard(net, held, s))")
    assert _review(first, text).verdict == "clean_ttt_score_first"
    text = program(
        PLAIN, CHOSEN.format(score="pass"), main="adapt_hard(net, held, s)\nevaluate(net, held, s)"
    )
    assert _review(later, text).verdict == "flag_prequant_ttt"


def test_byte_weights_in_a_training_loss_are_no_figure(tmp_path: Path) -> None:
    weighted = SCORE_FIRST.replace(
        "net(x[None], y[None]).backward()",
        '(F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none") *'
        " sizes[y]).mean().backward()",
    )
    assert (
        _review(tmp_path, program(weighted, main="adapt(net, held, s)")).verdict
        == "clean_ttt_score_first"
    )


@pytest.mark.parametrize("name", ["held_tokens", "chunk"])
def test_where_no_score_could_be_followed_a_script_is_held_whatever_its_names(
    tmp_path: Path, name: str
) -> None:
    text = f"""
def step_a(net, {name}):
    net.loss({name}).backward()

def step_b(net, batch):
    net.loss(batch).backward()

table = build()
table["run"](step_a, step_b)
"""
    assert _review(tmp_path, text).verdict == "hold_unclear"
