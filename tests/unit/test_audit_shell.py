"""Launches in shell scripts: which variables a run is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niblick.audit.command import find_command
from niblick.audit.shell import launches_of

SCRIPT = "train_gpt.py"


def _given(text: str, **outer: str) -> dict[str, str]:
    (launch,) = launches_of(text, SCRIPT, "run.sh", outer)
    return launch.environment


@pytest.mark.parametrize(
    "start",
    [
        'PY="$ROOT/.venv/bin/python3"\nA=1 "$PY" "$HERE/train_gpt.py"',
        'A=1 \\\n"$PYTHON_BIN" "$HERE/train_gpt.py"',
        'A=1 $LAUNCHER records/train_gpt.py 2>&1 | tee "$LOG"',
        "export A=1; torchrun --nproc_per_node=8 train_gpt.py",
        "A=1 exec python3 -u train_gpt.py",
    ],
)
def test_a_launcher_may_be_a_variable(start: str) -> None:
    assert _given(start)["A"] == "1"


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ('[ "${DRY:-0}" = "1" ]', False),
        ('[ "${DRY:-1}" = "1" ]', True),
        ('[[ "$MODE" == fast ]]', False),
        ('[[ "$MODE" != fast ]]', True),
        ('[ -z "$MODE" ]', False),
        ('[ -n "$MODE" ]', True),
        ('[ "$COUNT" -gt 1 ]', True),
        ('[ "$COUNT" -le 1 ] 2>/dev/null', False),
        ("test $COUNT -eq 8", True),
    ],
)
def test_plain_comparisons_decide_which_branch_counts(condition: str, taken: bool) -> None:
    text = f"""
    MODE=slow
    COUNT=8
    TTT=default
    if {condition}; then
        TTT=taken
    else
        TTT=other
    fi
    python train_gpt.py
    """
    assert _given(text)["TTT"] == ("taken" if taken else "other")


def test_of_what_is_not_known_both_branches_are_read() -> None:
    text = """
    if [ "$(nvidia-smi | wc -l)" -gt 1 ]; then
        RUN="torchrun --nproc_per_node=8"
        A=1
    else
        RUN="python3 -u"
        B=2
    fi
    $RUN train_gpt.py
    """
    found = _given(text)
    assert (found["A"], found["B"]) == ("1", "2")


def test_nested_and_chained_branches_end_where_they_end() -> None:
    text = """
    MODE=b
    if [ $MODE = a ]; then
        if [ $MODE = b ]; then X=inner; fi
        X=a
    elif [ $MODE = b ]; then
        X=b
    elif [ $MODE = b ]; then
        X=late
    else
        X=rest
    fi
    Y=after
    python train_gpt.py
    """
    found = _given(text)
    assert (found["X"], found["Y"]) == ("b", "after")


def test_what_a_script_is_started_with_comes_before_its_defaults() -> None:
    text = 'TTT="${TTT:-0}"\nEPOCHS=3\npython train_gpt.py'
    assert _given(text, TTT="1", EPOCHS="9") == {"TTT": "1", "EPOCHS": "3"}


def test_a_readme_that_starts_the_run_script_sets_its_variables(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text('TTT="${TTT:-0}" python train_gpt.py\n')
    for readme, value in (("```bash\nTTT=1 bash run.sh\n```", "1"), ("Use run.sh.", "0")):
        command = find_command(tmp_path, SCRIPT, readme, None)
        assert command is not None and command.environment["TTT"] == value


HIDDEN = "A=1 python train_gpt.py"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat > note <<EOF\nif [ 1 = 2 ]; then\nEOF\n" + HIDDEN, {"A": "1"}),
        ("cat > note <<'EOF'\nexport X=1\nfi\nEOF\n" + HIDDEN, {"A": "1", "X": None}),
        ("B='\nif [ 1 = 2 ]; then\n'\n" + HIDDEN, {"A": "1"}),
        ("# a\u2028if [ 1 = 2 ]; then\n" + HIDDEN, {"A": "1"}),
        ("( if [ 1 = 2 ]; then X=1; fi)\n" + HIDDEN, {"A": "1", "X": None}),
        ("if [ 1 = 2 ]; then\n" + HIDDEN, {"A": "1"}),
        ("# comment \\\nexport X=1\n" + HIDDEN, {"A": "1", "X": "1"}),
        ("export A=1;python train_gpt.py", {"A": "1"}),
        ("X=1&&A=1 python train_gpt.py", {"A": "1", "X": "1"}),
        ("Y=1; if [ $Y = 1 ]; then if [ 2 = 1 ]; then B=1; else B=2; fi; else B=3; fi\n" + HIDDEN,
         {"B": "2"}),
        ("if [ 1 = 1 ];then B=1;else B=2;fi\n" + HIDDEN, {"B": "1"}),
        ("if [ 1 = 2 ] ||\n   [ 1 = 1 ]; then X=1; fi\n" + HIDDEN, {"X": "1"}),
        ("Y=xy; if [[ $Y == x* ]]; then B=1; fi\n" + HIDDEN, {"B": "1"}),
        ("if [ -f x ]; then Y=1; else Y=2; fi\nif [ $Y = 1 ]; then export X=1; fi\n" + HIDDEN,
         {"X": "1"}),
        ("Y=0\n[ -f x ] && Y=1\nif [ $Y = 1 ]; then export X=1; fi\n" + HIDDEN, {"X": "1"}),
        ("Y=0\nfor Y in 1 2; do if [ $Y = 1 ]; then export X=1; fi; done\n" + HIDDEN, {"X": "1"}),
        ("Y=0\nread Y\nif [ $Y = 1 ]; then export X=1; fi\n" + HIDDEN, {"X": "1"}),
        ("Y=0\n. ./env\nif [ $Y = 1 ]; then export X=1; fi\n" + HIDDEN, {"X": "1"}),
        ("Y=1\nY+=2\nif [ $Y = 12 ]; then export X=1; fi\n" + HIDDEN, {"X": "1"}),
        ("Y=0\nunset Y\n" + HIDDEN, {"Y": None}),
        ("declare -x X=1\n" + HIDDEN, {"X": "1"}),
        ("Y=\nif [ \"${Y:-x}\" = x ]; then export X=1; fi\n" + HIDDEN, {"X": "1"}),
        (HIDDEN + "\nexit 0\nA=2 python train_gpt.py", {"A": "1"}),
        ("usage() {\n  echo how\n  exit 1\n}\n" + HIDDEN, {"A": "1"}),
        ("case $1 in\n  -h) exit 0 ;;\nesac\n" + HIDDEN, {"A": "1"}),
    ],
)  # fmt: skip
def test_what_bash_would_do_is_neither_hidden_nor_invented(
    text: str, found: dict[str, str | None]
) -> None:
    environment = _given(text)
    assert {name: environment.get(name) for name in found} == found


@pytest.mark.parametrize(
    "text", ["echo A=1 python train_gpt.py", "A=1 python train_gpt.py.bak", "cat train_gpt.py"]
)
def test_what_only_names_a_script_does_not_start_it(text: str) -> None:
    assert launches_of(text, SCRIPT, "run.sh") == []


@pytest.mark.parametrize(
    ("block", "value"),
    [
        ("chmod +x run.sh\nTTT=1 bash run.sh", "1"),
        ("TTT=1 cat run.sh\nbash run.sh", "0"),
        ("TTT=1 bash prerun.sh\nTTT=2 ./run.sh", "2"),
        ("export TTT=1\nsource run.sh", "1"),
    ],
)
def test_only_a_start_of_the_run_script_sets_its_variables(
    tmp_path: Path, block: str, value: str
) -> None:
    (tmp_path / "run.sh").write_text('TTT="${TTT:-0}" python train_gpt.py\n')
    command = find_command(tmp_path, SCRIPT, f"```bash\n{block}\n```", None)
    assert command is not None and command.environment["TTT"] == value


@given(
    st.lists(
        st.sampled_from(
            [
                "if [ a = b ]; then",
                "else",
                "fi",
                "elif [ a = a ]; then",
                "A=1",
                "python train_gpt.py",
                "if grep x y; then",
                "done",
                "; ;",
                "'",
            ]
        )
    )
)
def test_any_order_of_words_is_read(lines: list[str]) -> None:
    found = launches_of("\n".join(lines), SCRIPT, "run.sh")
    assert len(found) <= lines.count("python train_gpt.py")
