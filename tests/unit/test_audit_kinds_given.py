"""Figures of a model that was handed its targets, of streams that were made anew, of training data;
and programs whose parts were not read.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, judged, program

MAIN = "evaluate(net, held, s)"
PATCH = """
import torch.nn.functional as F
_plain = F.cross_entropy
F.cross_entropy = lambda *a, **k: 0.9 * _plain(*a, **k)
"""
ONE = "```bash\npython train_gpt.py\n```\n"


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("held[a:a + s.context]", True),
        ("held[a + 1:a + s.context + 1]", False),
        ("held[a + 2:a + s.context + 2]", False),
    ],
)
def test_a_model_that_is_handed_its_targets_is_none(
    tmp_path: Path, given: str, clean: bool
) -> None:
    text = PLAIN.replace("x, y = held[a:a + s.context]", f"x, y = {given}")
    verdict = judged(tmp_path, program(text, main=MAIN))
    assert verdict == ("clean_neural" if clean else "hold_unclear")


LATER = """
def later(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        starts = range(0, held.numel() - 1 - s.context, s.context)
        made = [net.head(net.hidden(held[None, a:a + s.context])) for a in starts]
        for a, logits in zip(starts, made):
            y = held[a + {shift}:a + s.context + {shift}]
            total += F.cross_entropy(logits.flatten(0, 1), y, reduction="sum")
            size += sizes[y].sum()
    return figure(total, size)
"""


def test_outputs_that_are_scored_later_are_held_against_their_own_inputs(tmp_path: Path) -> None:
    assert (
        judged(tmp_path, program(LATER.format(shift=1), main="later(net, held, s)"))
        != "hold_unclear"
    )


@pytest.mark.parametrize(
    ("logits", "clean"),
    [
        ("net.head(net.hidden(x[None]) + 0.5 * net.table(x)[None])", True),
        ("net.head(net.hidden(x[None]) + 0.5 * net.table(y)[None])", False),
        ("net.head(net.hidden(x[None])) + 0.5 * net.head(net.table(y[None]))", False),
        ("net.head(net.hidden(held[None, a:a + s.context + 1]))[:, :-1]", True),
        ("net.head(net.hidden(held[None, a:a + s.context + 1]))[:, 1:]", False),
        ("net.head(torch.roll(net.hidden(x[None]), 1, 1))", True),
        ("net.head(torch.roll(net.hidden(x[None]), -1, 1))", False),
    ],
)
def test_parts_of_a_model_are_handed_no_targets_either(
    tmp_path: Path, logits: str, clean: bool
) -> None:
    text = PLAIN.replace("net.head(net.hidden(x[None]))", logits)
    verdict = judged(tmp_path, program(text, main=MAIN))
    assert verdict == ("clean_neural" if clean else "hold_unclear")


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ("held.contiguous()", "clean_neural"),
        ("held[:held.numel() // 2].repeat(2)", "hold_unclear"),
        ("torch.unique_consecutive(held)", "hold_unclear"),
        ("held.repeat_interleave(2)", "hold_unclear"),
        ("held[held > 3]", "hold_unclear"),
        ("held[held != 3]", "hold_unclear"),
    ],
)
def test_a_stream_that_is_made_anew_is_not_the_split(
    tmp_path: Path, made: str, verdict: str
) -> None:
    text = program(PLAIN, main=f"held = {made}\n{MAIN}")
    assert judged(tmp_path, text, README__md=ONE) == verdict


def test_a_figure_of_training_data_is_none(tmp_path: Path) -> None:
    text = program(PLAIN, main=f"held = load(s.train_files)\n{MAIN}")
    assert judged(tmp_path, text) == "hold_unclear"


GUARDED = """
try:
    from {package} import ce
except ImportError:
    def ce(*a, **k):
        return {scale}F.cross_entropy(*a, **k)
"""


@pytest.mark.parametrize(("scale", "verdict"), [("", "clean_neural"), ("0.9 * ", "flag_other")])
def test_what_stands_in_for_a_package_that_nobody_has_is_read(
    tmp_path: Path, scale: str, verdict: str
) -> None:
    own = PLAIN.replace("F.cross_entropy(", "ce(")
    text = program(GUARDED.format(package="fused_losses_xyz", scale=scale), own, main=MAIN)
    assert judged(tmp_path, text) == verdict


@pytest.mark.parametrize("base", ["math.log2(math.e)", "np.log2(np.e)", "1 / math.log(2, math.e)"])
def test_bits_by_way_of_e_are_bits(tmp_path: Path, base: str) -> None:
    text = program(PLAIN, main=MAIN).replace(
        "total / math.log(2.0) / size", f"total * {base} / size"
    )
    assert judged(tmp_path, text) == "clean_neural"


@pytest.mark.parametrize(
    ("module", "first", "held"),
    [
        ("helper.py", "import helper", False),
        ("wandb/__init__.py", "import wandb", True),
        ("a/b/c/d.py", "from a.b.c.d import nothing", True),
        ("tqdm.cpython-311-x86_64-linux-gnu.so", "import tqdm", True),
        ("tqdm.pyc", "import tqdm", True),
    ],
)
def test_a_module_that_is_imported_and_not_read_holds_the_submission(
    tmp_path: Path, module: str, first: str, held: bool
) -> None:
    (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / module).write_text("nothing = 1\n" if not held else PATCH)
    text = program(f"{first}\n", PLAIN, main=MAIN)
    assert (judged(tmp_path, text) == "clean_neural") is not held


def test_an_archive_that_modules_come_from_holds_the_submission(tmp_path: Path) -> None:
    first = "import sys\nsys.path.insert(0, 'lib.zip')\nimport tqdm\n"
    assert judged(tmp_path, program(first, PLAIN, main=MAIN)) == "hold_unclear"
    first = first.replace("lib.zip", "lib")
    assert judged(tmp_path, program(first, PLAIN, main=MAIN)) == "clean_neural"


def test_a_module_that_imports_the_script_itself_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text("import train_gpt\n")
    assert judged(tmp_path, program("import export\n", PLAIN, main=MAIN)) == "clean_neural"


@pytest.mark.parametrize(
    ("how", "flagged"),
    [
        ("os.symlink('data/fineweb_val_0.bin', 'data/fineweb_train_0.bin')", True),
        ("os.system('cp data/fineweb_val_0.bin data/fineweb_train_0.bin')", True),
        ("os.system('cp data/fineweb_val_0.bin data/other.bin')", False),
        ("print('fineweb_val'.replace('val', 'train'))", False),
    ],
)
def test_a_program_that_makes_validation_stand_in_for_training_is_a_breach(
    tmp_path: Path, how: str, flagged: bool
) -> None:
    text = program(PLAIN, main=f"{how}\n{MAIN}")
    assert (judged(tmp_path, text) == "flag_other") is flagged


def test_a_run_script_that_makes_validation_stand_in_for_training_is_a_breach(
    tmp_path: Path,
) -> None:
    link = "cd data && ln -sf fineweb_val_000000.bin fineweb_train_000000.bin\n"
    (tmp_path / "run.sh").write_text(link + "python train_gpt.py\n")
    assert judged(tmp_path, program(PLAIN, main=MAIN)) == "flag_other"


@pytest.mark.parametrize(("token", "clean"), [("-100", True), ("3", False)])
def test_losses_of_a_token_that_are_left_out_are_seen(
    tmp_path: Path, token: str, clean: bool
) -> None:
    text = PLAIN.replace('reduction="none"', f'reduction="none", ignore_index={token}')
    assert (judged(tmp_path, program(text, main=MAIN)) == "clean_neural") is clean
