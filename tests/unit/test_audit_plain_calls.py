"""Calls that are followed once for equal arguments, and loops that are worn out: neither hides what
a later turn or call does with validation tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from niblick.audit.review import review
from unit.audit_programs import PLAIN, TRAIN_FIRST, program

_HOLDER = """
from functools import cache
BOX = []
def step(i):
    out = 0
    for k in range(9):
        out += i * k
        if k == 1 and BOX:
            fit_held(*BOX[0])
    return out

def plain(n):
    if BOX:
        fit_held(*BOX[0])
    return n + 1

@cache
def once(n):
    if BOX:
        fit_held(*BOX[0])
    return n + 1
"""
_AFTER = "BOX.append((net, held, s))\n{after}\nevaluate(net, held, s)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("for i in range(2000): step(i)", "step(3)"),
        ("plain(3)", "plain(3)"),
        ("once(3)", "once.cache_clear()\nonce(3)"),
        ("once(3)", "getattr(once, 'cache_' + 'clear')()\nonce(3)"),
        ("", "once(3)"),
    ],
)
def test_a_call_that_did_nothing_before_is_followed_where_it_trains_on_what_is_scored(
    tmp_path: Path, before: str, after: str
) -> None:
    script = program(TRAIN_FIRST, _HOLDER, PLAIN, main=f"{before}\n{_AFTER.format(after=after)}")
    (tmp_path / "train_gpt.py").write_text(script)
    assert review(tmp_path).verdict in {"flag_prequant_ttt", "hold_unclear"}


def test_a_split_stream_is_added_up_whole(tmp_path: Path) -> None:
    pieces = """
def evaluate(net, held, s):
    rows = (held.numel() - 1) // s.context
    x = held[: rows * s.context].reshape(rows, s.context)
    y = held[1 : rows * s.context + 1].reshape(rows, s.context)
    size, total = byte_table()[y].sum(), torch.zeros(())
    with torch.no_grad():
        for a, b in zip(torch.split(x, 8), torch.split(y, 8)):
            logits = net.head(net.hidden(a))
            total += F.cross_entropy(logits.flatten(0, 1), b.flatten(), reduction="none").sum()
    return figure(total, size)
"""
    (tmp_path / "train_gpt.py").write_text(program(pieces, main="evaluate(net, held, s)"))
    assert review(tmp_path).verdict == "clean_neural"
    less = pieces.replace("torch.split(y, 8)):", "torch.split(y, 8)[:2]):").replace(
        "torch.split(x, 8)", "torch.split(x, 8)[:2]"
    )
    (tmp_path / "train_gpt.py").write_text(program(less, main="evaluate(net, held, s)"))
    assert review(tmp_path).verdict != "clean_neural"
