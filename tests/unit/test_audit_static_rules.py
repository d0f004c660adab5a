"""Each static rule in both directions, on small programs that show the pattern."""

from __future__ import annotations

import base64
import lzma
import re
from pathlib import Path

import pytest

from niblick.audit.review import review
from niblick.audit.types import Report, Severity
from unit.audit_hostile import SPACED
from unit.audit_programs import (
    COUNTS,
    DENSE,
    HASHED,
    LAST_EPOCH,
    PLAIN,
    SCORE_FIRST,
    SLOT,
    TRAIN_FIRST,
    program,
)


def _review(folder: Path, text: str, readme: str | None = None) -> Report:
    (folder / "train_gpt.py").write_text(text)
    if readme is not None:
        (folder / "README.md").write_text(readme)
    return review(folder)


def _breaches(report: Report) -> set[str]:
    return {f.rule for f in report.findings if f.severity is Severity.BREACH}


def test_a_program_that_only_evaluates_on_validation_data_is_clean(tmp_path: Path) -> None:
    report = _review(tmp_path, program(PLAIN, main="evaluate(net, held, s)"))
    assert report.verdict == "clean_neural"


def test_training_on_validation_tokens_before_scoring_them_is_flagged(tmp_path: Path) -> None:
    report = _review(
        tmp_path, program(PLAIN, TRAIN_FIRST, main="fit_held(net, held, s)\nevaluate(net, held, s)")
    )
    assert report.verdict == "flag_prequant_ttt"
    finding = next(f for f in report.findings if f.rule == "train-before-score")
    assert finding.span is not None and finding.span.file == "train_gpt.py"
    assert "fit_held" in finding.evidence


def test_the_same_training_inlined_into_main_is_flagged(tmp_path: Path) -> None:
    inlined = re.sub(r"^    ", "", TRAIN_FIRST.split("\n", 2)[2], flags=re.MULTILINE)
    report = _review(tmp_path, program(PLAIN, main=inlined + "\nevaluate(net, held, s)"))
    assert report.verdict == "flag_prequant_ttt"


def test_training_before_the_weights_are_saved_and_loaded_again_is_flagged(tmp_path: Path) -> None:
    main = (
        "fit_held(net, held, s)\ntorch.save(net.state_dict(), 'm.pt')\nother = Net(64)\n"
        "other.load_state_dict(torch.load('m.pt'))\nevaluate(other, held, s)"
    )
    assert _review(tmp_path, program(PLAIN, TRAIN_FIRST, main=main)).verdict == "flag_prequant_ttt"


def test_training_a_copy_that_is_never_scored_is_clean(tmp_path: Path) -> None:
    main = (
        "import copy\nother = copy.deepcopy(net)\nfit_held(other, held, s)\nevaluate(net, held, s)"
    )
    report = _review(tmp_path, program(PLAIN, TRAIN_FIRST, main=main))
    assert "train-before-score" not in _breaches(report)


def test_scoring_each_chunk_before_training_on_it_is_legal(tmp_path: Path) -> None:
    report = _review(tmp_path, program(SCORE_FIRST, main="adapt(net, held, s)"))
    assert report.verdict == "clean_ttt_score_first"
    assert not _breaches(report)


def test_scoring_only_in_the_last_epoch_is_flagged(tmp_path: Path) -> None:
    assert (
        _review(tmp_path, program(LAST_EPOCH, main="adapt(net, held, s)")).verdict
        == "flag_prequant_ttt"
    )


def test_a_bias_fitted_to_the_window_it_scores_is_flagged(tmp_path: Path) -> None:
    text = program(SLOT.format(stride=128, fit=":", skip="pass"), main="shifted(net, held, s)")
    assert _review(tmp_path, text).verdict == "flag_slot"


def test_a_bias_fitted_only_to_tokens_already_scored_is_not_flagged(tmp_path: Path) -> None:
    causal = SLOT.format(stride=128, fit=":s.context - 128", skip="if a == 0: continue")
    report = _review(tmp_path, program(causal, main="shifted(net, held, s)"))
    assert "slot" not in _breaches(report)


def test_a_count_keyed_by_context_and_target_is_flagged(tmp_path: Path) -> None:
    assert (
        _review(tmp_path, program(COUNTS.format(**HASHED), main="counted(net, held, s)")).verdict
        == "flag_ngram"
    )


def test_a_row_of_counts_normalised_over_the_vocabulary_is_not_flagged(tmp_path: Path) -> None:
    report = _review(tmp_path, program(COUNTS.format(**DENSE), main="counted(net, held, s)"))
    assert "ngram-key" not in _breaches(report)


def test_a_count_table_that_the_run_never_reaches_is_not_flagged(tmp_path: Path) -> None:
    report = _review(
        tmp_path, program(PLAIN, COUNTS.format(**HASHED), main="evaluate(net, held, s)")
    )
    assert report.verdict == "clean_neural"


SWITCHED = "if s.adapt:\n    fit_held(net, held, s)\nevaluate(net, held, s)"


@pytest.mark.parametrize(
    ("default", "command", "expected"),
    [
        (0, None, "clean_neural"),
        (1, None, "flag_prequant_ttt"),
        (0, "ADAPT=1 torchrun --nproc_per_node=8 train_gpt.py", "flag_prequant_ttt"),
        (1, "ADAPT=0 torchrun --nproc_per_node=8 train_gpt.py", "clean_neural"),
    ],
)
def test_a_switch_counts_as_the_documented_command_sets_it(
    tmp_path: Path, default: int, command: str | None, expected: str
) -> None:
    readme = f"# Run\n\n```bash\n{command}\n```\n" if command else None
    text = program(PLAIN, TRAIN_FIRST, main=SWITCHED, adapt=default)
    assert _review(tmp_path, text, readme).verdict == expected


def test_a_log_that_only_the_switched_part_can_have_written_turns_the_switch_on(
    tmp_path: Path,
) -> None:
    noisy = TRAIN_FIRST.replace(
        "    opt =", '    print(f"fitting held-out text of {held.numel()} tokens")\n    opt =', 1
    )
    (tmp_path / "train.log").write_text(
        "step 1\nfitting held-out text of 62021846 tokens\nval_bpb:1.01\n"
    )
    assert _review(tmp_path, program(PLAIN, noisy, main=SWITCHED)).verdict == "flag_prequant_ttt"


@pytest.mark.parametrize("test", ["s.level >= 2", "s.level > 1", "s.level != 0"])
def test_a_log_proves_a_comparison_that_the_default_fails(tmp_path: Path, test: str) -> None:
    text = program(
        PLAIN,
        TRAIN_FIRST,
        main=f"if {test}:\n    print(f'fitting at a depth of {{s.level}}')\n"
        f"if {test}:\n    fit_held(net, held, s)\nevaluate(net, held, s)",
    ).replace("    adapt =", '    level = int(os.environ.get("LEVEL", 0))\n    adapt =')
    assert _review(tmp_path, text).verdict == "clean_neural"
    (tmp_path / "train.log").write_text("fitting at a depth of 7\nval_bpb:1.01\n")
    assert _review(tmp_path, text).verdict == "flag_prequant_ttt"


def test_a_file_that_a_cache_hands_on_is_no_state_of_tokens(tmp_path: Path) -> None:
    cached = (
        program(PLAIN, main="evaluate(net, held, s)")
        .replace(
            "def load(pattern):",
            "KEPT = {}\n\ndef read(name):\n    if name not in KEPT:\n"
            '        KEPT[name] = np.memmap(name, dtype="<u2", offset=1024)\n'
            "    return KEPT[name]\n\ndef load(pattern):",
        )
        .replace('np.fromfile(f, dtype="<u2", offset=1024)', "read(f)")
    )
    assert "KEPT[name]" in cached and "read(f)" in cached
    assert _review(tmp_path, cached).verdict == "clean_neural"


@pytest.mark.parametrize(
    "kind", ["flag_prequant_ttt", "clean_ttt_score_first", "flag_slot", "flag_ngram"]
)
def test_renamed_variables_and_functions_make_no_difference(tmp_path: Path, kind: str) -> None:
    text = {
        "flag_prequant_ttt": program(
            PLAIN, TRAIN_FIRST, main="fit_held(net, held, s)\nevaluate(net, held, s)"
        ),
        "clean_ttt_score_first": program(SCORE_FIRST, main="adapt(net, held, s)"),
        "flag_slot": program(
            SLOT.format(stride=128, fit=":", skip="pass"), main="shifted(net, held, s)"
        ),
        "flag_ngram": program(COUNTS.format(**HASHED), main="counted(net, held, s)"),
    }[kind]
    for i, name in enumerate(
        (
            "held",
            "evaluate",
            "fit_held",
            "adapt",
            "shifted",
            "counted",
            "nll",
            "opt",
            "bias",
            "ctx_key",
            "pair_key",
            "now",
            "past",
            "total",
            "size",
            "sizes",
            "net",
            "words",
            "pair_seen",
            "ctx_seen",
        )
    ):
        text = re.sub(rf"(?<![\w.]){name}\b(?!\s*=\s*bool)", f"q{i}z", text)
    assert _review(tmp_path, text).verdict == kind


def test_a_packed_script_gets_the_verdict_of_what_it_holds(tmp_path: Path) -> None:
    inner = program(PLAIN, TRAIN_FIRST, main="fit_held(net, held, s)\nevaluate(net, held, s)")
    payload = base64.b85encode(lzma.compress(inner.encode())).decode()
    report = _review(
        tmp_path, f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({payload!r})))\n"
    )
    assert report.verdict == "flag_prequant_ttt"
    finding = next(f for f in report.findings if f.rule == "train-before-score")
    assert finding.span is not None and finding.span.unpacked


def test_calibrating_on_validation_tokens_is_flagged_and_on_training_tokens_is_not(
    tmp_path: Path,
) -> None:
    collect = """
def calibrate(net, stream, s):
    seen = []
    net.register_forward_hook(lambda m, a, b: seen.append(b))
    for a in range(0, 4 * s.context, s.context):
        net.hidden(stream[a:a + s.context][None])
"""
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    assert (
        _review(
            bad, program(PLAIN, collect, main="calibrate(net, held, s)\nevaluate(net, held, s)")
        ).verdict
        == "flag_other"
    )
    text = program(
        PLAIN, collect, main="calibrate(net, load(s.train_files), s)\nevaluate(net, held, s)"
    )
    assert _review(good, text).verdict == "clean_neural"


def test_a_hook_that_looks_at_weights_alone_is_no_calibration(tmp_path: Path) -> None:
    round_weights = """
def rounded(module, inputs):
    module.weight.data = module.weight.data.round()

def late(net):
    return [net.register_forward_pre_hook(rounded)]
"""
    text = program(PLAIN, round_weights, main="late(net)\nevaluate(net, held, s)")
    assert _review(tmp_path, text).verdict == "clean_neural"


def test_a_training_pattern_that_matches_validation_shards_is_flagged(tmp_path: Path) -> None:
    text = program(PLAIN, main="evaluate(net, held, s)").replace(
        "fineweb_train_*.bin", "fineweb_*.bin"
    )
    assert _review(tmp_path, text).verdict.startswith("flag_")


def test_an_assumed_number_of_bytes_per_token_is_flagged(tmp_path: Path) -> None:
    text = program(PLAIN, main="evaluate(net, held, s)").replace(
        "bpb = total / math.log(2.0) / size", "bpb = total / (math.log(2.0) * 2.44)"
    )
    report = _review(tmp_path, text)
    assert report.verdict == "flag_other"
    assert "byte-accounting" in _breaches(report)


def test_a_script_that_does_not_parse_is_an_import_failure(tmp_path: Path) -> None:
    assert _review(tmp_path, "def broken(:\n    pass\n").verdict == "import_fail"


@pytest.mark.parametrize(("more", "verdict"), [(" + 1", "flag_other"), ("", "clean_neural")])
def test_a_leading_space_counted_twice_is_seen_across_modules(
    tmp_path: Path, more: str, verdict: str
) -> None:
    (tmp_path / "scoring.py").write_text(
        program(SPACED.format(more=more), main="pass").partition("def main")[0]
    )
    (tmp_path / "train_gpt.py").write_text(
        "from scoring import *\nfrom scoring import with_spaces\n"
        "s = Settings()\nnet = Net(64)\ntrain(net, load(s.train_files), s)\n"
        "with_spaces(net, load(s.val_files), s)\n"
    )
    assert review(tmp_path).verdict == verdict


def test_a_module_outside_the_record_is_not_at_hand(tmp_path: Path) -> None:
    entry = tmp_path / "records" / "track" / "entry"
    entry.mkdir(parents=True)
    (tmp_path / "beyond.py").write_text("x = 1\n")
    (entry / "README.md").write_text("# An entry\n")
    text = "import beyond\n" + program(PLAIN, main="evaluate(net, held, s)")
    assert _review(entry, text).verdict == "import_fail"
    (entry / "beyond.py").write_text("x = 1\n")
    assert _review(entry, text).verdict == "clean_neural"
