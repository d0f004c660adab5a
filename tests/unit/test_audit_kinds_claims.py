"""Programs that are followed to the place which prints the claimed figure, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

RESTORED = """
def restored(net, held, s):
    evaluate(net, held, s)
    told = net.load_state_dict(torch.load("net.pt"), strict=False)
    missing = [name for name in told.missing_keys if not name.startswith("table")]
    if missing or told.unexpected_keys:
        raise RuntimeError("parts are missing")
    {then}
    print(f"restored val_bpb:{{evaluate(net, held, s):.4f}}")
"""


@pytest.mark.parametrize(
    ("then", "verdict"), [("fit_held(net, held, s)", "flag_prequant_ttt"), ("pass", "clean_neural")]
)
def test_a_list_that_may_be_empty_ends_no_program(tmp_path: Path, then: str, verdict: str) -> None:
    text = program(PLAIN, TRAIN_FIRST, RESTORED.format(then=then), main="restored(net, held, s)")
    assert judged(tmp_path, text) == verdict


ENDED = """
def checked(s):
    if s.context {checked} 512:
        raise ValueError("context")

def ended(net, held, s):
    print(f"first val_bpb:{{evaluate(net, held, s):.4f}}")
    checked(s)
    if s.context {ends} 512:
        raise ValueError("context")
    print(f"last val_bpb:{{evaluate(net, held, s):.4f}}")
"""


@pytest.mark.parametrize(
    ("checked", "ends", "verdict"),
    [("!=", "==", "hold_unclear"), ("!=", "!=", "clean_neural"), ("==", "!=", "clean_neural")],
)
def test_a_figure_behind_an_exception_was_not_followed(
    tmp_path: Path, checked: str, ends: str, verdict: str
) -> None:
    text = program(PLAIN, ENDED.format(checked=checked, ends=ends), main="ended(net, held, s)")
    assert judged(tmp_path, text) == verdict


TAGGED = """
def shown(tag, net, held, s):
    print(f"{tag} val_bpb:{evaluate(net, held, s):.8f}")

def stages(net, held, s):
    shown("before", net, held, s)
    fit_held(net, held, s)
    shown("after", net, held, s)
"""


@pytest.mark.parametrize(
    ("claim", "names", "verdict"),
    [
        (1.14190341, "before after", "flag_prequant_ttt"),
        (1.16546619, "before after", "hold_unclear"),
        (1.14190341, "one two", "flag_prequant_ttt"),
    ],
)
def test_a_known_text_tells_which_line_a_place_prints(
    tmp_path: Path, claim: float, names: str, verdict: str
) -> None:
    first, last = names.split()
    log = f"{first} val_bpb:1.16546619\n{last} val_bpb:1.14190341\n"
    text = program(PLAIN, TRAIN_FIRST, TAGGED, main="stages(net, held, s)")
    claimed = json.dumps({"val_bpb": claim})
    assert judged(tmp_path, text, train__log=log, submission__json=claimed) == verdict
