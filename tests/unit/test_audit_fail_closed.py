"""Nothing that was not understood, and no breach among the hostile programs, comes out clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from niblick.audit.flow import run as follow
from niblick.audit.review import review
from niblick.audit.rules import RULES, apply
from niblick.audit.rules.registry import Rule
from niblick.audit.submission import read
from niblick.audit.types import Report, Severity
from niblick.audit.unpack import parse
from unit.audit_hostile import EVALUATE, FIT, PAIRS
from unit.audit_programs import (
    COUNTS,
    DENSE,
    HASHED,
    PLAIN,
    SCORE_FIRST,
    SLOT,
    TRAIN_FIRST,
    program,
)

CLEAN = program(PLAIN, main=EVALUATE)
BREACH = program(PLAIN, TRAIN_FIRST, main=f"{FIT}\n{EVALUATE}")


def _review(folder: Path, text: str, **files: str) -> Report:
    (folder / "train_gpt.py").write_text(text)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return review(folder)


@pytest.mark.parametrize("name", PAIRS)
def test_a_breach_that_reading_can_see_is_never_clean(tmp_path: Path, name: str) -> None:
    assert not _review(tmp_path, PAIRS[name][0]).verdict.startswith("clean")


@pytest.mark.parametrize("name", PAIRS)
def test_the_honest_twin_of_a_breach_is_clean(tmp_path: Path, name: str) -> None:
    assert _review(tmp_path, PAIRS[name][1]).verdict.startswith("clean")


def test_training_hidden_behind_a_coding_cookie_is_seen_as_python_sees_it(tmp_path: Path) -> None:
    hidden = CLEAN.replace(f"    {EVALUATE}", f"    pass #+AAo-    {FIT}\n    {EVALUATE}")
    hidden = hidden.replace("\ndef main", f"{TRAIN_FIRST}\ndef main")
    coded = "# coding: utf-7\n" + hidden.replace("+", "+-").replace("+-AAo-", "+AAo-")
    assert _review(tmp_path, coded).verdict == "flag_prequant_ttt"


@pytest.mark.parametrize(
    ("coding", "verdict"),
    [("utf-8", "clean_neural"), ("latin-1", "clean_neural"), ("utf-7", "hold_unclear")],
)
def test_only_the_usual_codings_pass_without_a_finding(
    tmp_path: Path, coding: str, verdict: str
) -> None:
    text = CLEAN.replace("+", "+-") if coding == "utf-7" else CLEAN
    assert _review(tmp_path, f"# -*- coding: {coding} -*-\n{text}").verdict == verdict


@pytest.mark.parametrize("text", ["val_loss = 0\n", "import torch\nprint('val_bpb:0.9')\n", ""])
def test_a_script_that_scores_nothing_is_held(tmp_path: Path, text: str) -> None:
    assert _review(tmp_path, text).verdict == "hold_unclear"


def test_a_folder_without_a_script_is_held(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Notes\n")
    assert review(tmp_path).verdict == "hold_unclear"


def test_a_program_that_outruns_the_steps_of_work_is_held_with_what_was_found(
    tmp_path: Path,
) -> None:
    endless = "\nfor i in range(100000):\n    for j in range(100000):\n        k = i * j\n"
    report = _review(tmp_path, "import os\n" + endless * 40 + CLEAN)
    assert report.verdict == "hold_unclear"
    assert any("steps of work" in f.evidence for f in report.findings)
    late = BREACH + endless * 40
    assert _review(tmp_path, late).verdict == "flag_prequant_ttt"


def test_a_program_that_nests_too_deeply_is_held(tmp_path: Path) -> None:
    deep = "x = " + "(" * 80 + "1" + ")" * 80 + "\ny = " + "+".join(["1"] * 3000) + "\n"
    assert not _review(tmp_path, CLEAN + deep).verdict.startswith("clean")


def test_a_rule_that_breaks_down_holds_and_leaves_the_others_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(case: object) -> list[object]:
        raise ZeroDivisionError("hostile")

    monkeypatch.setitem(RULES._entries, "seeds", Rule(check=breaks, of_text=False))  # type: ignore[arg-type]
    assert _review(tmp_path, CLEAN).verdict == "hold_unclear"
    assert _review(tmp_path, BREACH).verdict == "flag_prequant_ttt"


def test_work_is_counted_and_not_timed() -> None:
    traces = [follow(parse(CLEAN), file="t.py", environment={}) for _ in range(2)]
    assert traces[0].steps == traces[1].steps > 0


@pytest.mark.parametrize(
    "readme",
    [
        "```\ncp interval.py train_gpt.py\n```\n",
        "```\ncp validate.py train_gpt.py\n```\n",
        "```\nmv retrieval_notes train_notes\n```\n",
    ],
)
def test_copies_of_scripts_are_no_aliases_of_data(tmp_path: Path, readme: str) -> None:
    assert _review(tmp_path, CLEAN, README__md=readme).verdict == "clean_neural"


def test_an_alias_of_a_validation_shard_is_a_breach(tmp_path: Path) -> None:
    readme = "```\nln -s data/fineweb_val_000000.bin data/fineweb_train_000000.bin\n```\n"
    assert _review(tmp_path, CLEAN, README__md=readme).verdict == "flag_other"


def test_a_sum_over_entries_near_a_logarithm_is_no_byte_mixture(tmp_path: Path) -> None:
    near = PLAIN.replace(
        "            size += sizes[y].sum()\n",
        "            size += sizes[y].sum()\n            seen = np.zeros(256)\n"
        "            seen[0] += float(a)\n            w = 0.5\n"
        "            curve = math.log(2.0) * w + (1 - w)\n",
    )
    assert _review(tmp_path, program(near, main=EVALUATE)).verdict == "clean_neural"


@pytest.mark.parametrize("name", ["evaluate", "fit_lora", "reset_all", "run_ngram_ttt_slot"])
def test_names_of_functions_decide_nothing(tmp_path: Path, name: str) -> None:
    text = program(PLAIN.replace("evaluate", name), main=EVALUATE.replace("evaluate", name))
    assert _review(tmp_path, text).verdict == "clean_neural"


COUNTED = program(
    COUNTS.format(**HASHED),
    PLAIN,
    main="order = int(os.environ.get('NGRAM_EVAL_ORDER', '{default}'))\n"
    "if order >= 2:\n    counted(net, held, s)\nelse:\n    evaluate(net, held, s)",
)


@pytest.mark.parametrize(
    ("default", "files", "verdict"),
    [
        ("0", {}, "clean_neural"),
        ("5", {}, "flag_ngram"),
        ("5", {"run__sh": "NGRAM_EVAL_ORDER=0 python train_gpt.py\n"}, "clean_neural"),
        ("0", {"run__sh": "NGRAM_EVAL_ORDER=5 python train_gpt.py\n"}, "flag_ngram"),
        ("0", {"README__md": "```\nNGRAM_EVAL_ORDER=5 python train_gpt.py\n```\n"}, "flag_ngram"),
        (
            "5",
            {
                "README__md": "```\ntorchrun --nproc_per_node=8 train_gpt.py\n```\n",
                "run__sh": "export NGRAM_EVAL_ORDER=0\npython train_gpt.py\n",
            },
            "clean_neural",
        ),
        (
            "5",
            {
                "README__md": "```\nNGRAM_EVAL_ORDER=0 python train_gpt.py\n```\n",
                "run__sh": "NGRAM_EVAL_ORDER=5 python train_gpt.py\n",
            },
            "clean_neural",
        ),
        ("0", {"README__md": "Run with `NGRAM_EVAL_ORDER=5`.\n"}, "flag_ngram"),
        ("0", {"train__log": "NGRAM_EVAL_ORDER=5\n"}, "clean_neural"),
    ],
)
def test_defaults_commands_scripts_and_prose_decide_in_their_order(
    tmp_path: Path, default: str, files: dict[str, str], verdict: str
) -> None:
    assert _review(tmp_path, COUNTED.replace("{default}", default), **files).verdict == verdict


def test_counts_of_scored_tokens_are_named_score_first(tmp_path: Path) -> None:
    report = _review(tmp_path, program(COUNTS.format(**DENSE), main="counted(net, held, s)"))
    assert report.verdict == "clean_ttt_score_first"
    assert any(f.rule == "held-state" and f.severity is Severity.INFO for f in report.findings)


def test_slot_that_only_the_documented_settings_switch_on_is_flagged(tmp_path: Path) -> None:
    slot = SLOT.format(stride="s.context", fit=":", skip="pass")
    main = (
        "if int(os.environ.get('STEPS', '0')) > 0:\n    shifted(net, held, s)\n"
        "else:\n    evaluate(net, held, s)"
    )
    text = program(slot, PLAIN, main=main)
    assert _review(tmp_path, text).verdict == "clean_neural"
    readme = "```bash\nSTEPS=8 python train_gpt.py\n```\n"
    assert _review(tmp_path, text, README__md=readme).verdict == "flag_slot"


def test_a_suspicion_of_reading_stays_whatever_a_run_reports(tmp_path: Path) -> None:
    text = PAIRS["training in an except body behind a failing call"][0]
    report = _review(tmp_path, text)
    assert report.verdict in {"hold_unclear", "flag_prequant_ttt"}


def test_every_rule_is_registered_under_one_name_and_runs(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text(CLEAN)
    from niblick.audit.review import build_case

    case = build_case(read(tmp_path / "train_gpt.py"))
    assert all(f.rule != "audit-failure" for f in apply(case))
    with pytest.raises(ValueError, match="twice"):
        RULES.register("slot")(RULES["slot"])


def test_score_first_training_stays_clean(tmp_path: Path) -> None:
    text = program(SCORE_FIRST, main="adapt(net, held, s)")
    assert _review(tmp_path, text).verdict == "clean_ttt_score_first"
