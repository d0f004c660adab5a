"""Adaptation at evaluation, each kind once legal and once not: which losses make up a figure, which
of them are only learnt from, and what a loop over plain numbers decides.
"""

from __future__ import annotations

import ast
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from niblick.audit.flow.objects import Dotted
from niblick.audit.flow.signals import NotPlainError
from niblick.audit.flow.turns import Turns, plain_items
from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

WINDOWED = """
def windowed(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - s.context, 64):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
        first = {first}
        total += nll[first:].detach().sum()
        size += sizes[y[first:]].sum()
        opt.zero_grad()
        loss = {loss}
        loss.backward()
        opt.step()
        print("loss", loss.item())
    return figure(total, size)
"""
WEIGHED = "((nll * sizes[y]).sum() / sizes[y].sum())"


@pytest.mark.parametrize("loss", ["nll.mean()", WEIGHED, "(nll * sizes[y]).mean()"])
@pytest.mark.parametrize(
    ("first", "flagged"), [("0 if a == 0 else s.context - 64", False), ("0", True)]
)
def test_a_loss_that_is_learnt_from_is_no_part_of_the_figure(
    tmp_path: Path, loss: str, first: str, flagged: bool
) -> None:
    text = program(WINDOWED.format(loss=loss, first=first), main="windowed(net, held, s)")
    assert judged(tmp_path, text) == ("flag_prequant_ttt" if flagged else "clean_ttt_score_first")


CHUNKED = """
def chunked(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    last = held.numel() - 1
    starts = [a for a in range(0, last, 16) if min(a + s.context, last) - a >= 16 or a == 0]
    rows = [[] for _ in range(4)]
    {make}
    for c in range(4):
        scored = []
        for a in rows[c]:
            end = min(a + s.context, last)
            x, y = held[a:end], held[a + 1:end + 1]
            first = 0 if a == 0 else s.context - 16
            if first >= end - a:
                continue
            if c == {early}:
                opt.zero_grad()
                net(x[None], y[None]).backward()
                opt.step()
            with torch.no_grad():
                nll = F.cross_entropy(
                    net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none"
                )
            total += nll[first:].sum()
            size += sizes[y[first:]].sum()
    return figure(total, size)
"""
BY_FOR = (
    "for a in starts:\n        end = min(a + s.context, last)\n"
    "        scored = a + (0 if a == 0 else max(end - a - 16, 0))\n"
    "        c = min(scored // 65536, 3)\n        rows[c].append(a)"
)
BY_WHILE = (
    "i = 0\n    while i < len(starts):\n        a = starts[i]\n        i += 1\n"
    "        if a < 0:\n            continue\n"
    "        rows[min((a + s.context - 16) // 65536, 3)].append(a)"
)


@pytest.mark.parametrize("make", [BY_FOR, BY_WHILE])
@pytest.mark.parametrize(("early", "verdict"), [("9", "clean_neural"), ("1", "flag_prequant_ttt")])
def test_every_window_of_every_chunk_is_listed(
    tmp_path: Path, make: str, early: str, verdict: str
) -> None:
    text = program(CHUNKED.format(make=make, early=early), main="chunked(net, held, s)")
    assert judged(tmp_path, text) == verdict


MIXED = """
def mixed(net, other, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            lp = F.log_softmax(net.head(net.hidden(x[None])), dim=-1)
            lq = F.log_softmax(other.head(other.hidden(x[None])), dim=-1)
            mine = -lp.gather(2, y[None].unsqueeze(2)).squeeze(2)
            second = {second}
            shares = torch.stack([mine, second], dim=-1)
            nll = -(torch.log(torch.tensor([0.5, 0.5])) - shares).logsumexp(dim=-1)
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("second", "flagged"),
    [("-lq.gather(2, y[None].unsqueeze(2)).squeeze(2)", False), ("-(lq.exp() * lq).sum(-1)", True)],
)
def test_a_share_of_a_mixture_that_no_token_picks_is_no_distribution(
    tmp_path: Path, second: str, flagged: bool
) -> None:
    main = "other = Net(32)\ntrain(other, load(s.train_files), s)\nmixed(net, other, held, s)"
    verdict = judged(tmp_path, program(MIXED.format(second=second), main=main))
    assert verdict.startswith("flag") == flagged


BIASED = """
def biased(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    bias = torch.load("bias.pt")
    for a in range(0, held.numel() - 1 - s.context, 64):
        x, y = held[a:a + s.context][None], held[a + 1:a + s.context + 1][None]
        logits = net.head(net.hidden(x)) + bias
        rows, columns, vocabulary = logits.shape
        flat = F.cross_entropy(logits.reshape(-1, vocabulary), y.reshape(-1), reduction="none")
        nll = flat.reshape(rows, columns)
        first = {first}
        total += nll[0, first:].detach().sum()
        size += sizes[y[0, first:]].sum()
        opt.zero_grad()
        nll.mean().backward()
        opt.step()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("first", "flagged"), [("0 if a == 0 else s.context - 64", False), ("0", True)]
)
def test_losses_are_laid_out_again_as_they_were(tmp_path: Path, first: str, flagged: bool) -> None:
    text = program(BIASED.format(first=first), main="biased(net, held, s)")
    assert judged(tmp_path, text).startswith("flag" if flagged else "clean_ttt")


LATE_FIT = "evaluate(net, held, s)\n{then}\nlater(net, held, s)"
LATER = PLAIN.replace("def evaluate", "def later").replace(
    "return figure(total, size)", 'print(f"adapted_bpb:{total / math.log(2.0) / size:.4f}")'
)


@pytest.mark.parametrize(
    ("claim", "verdict"), [("1.2345", "hold_unclear"), ("1.1111", "flag_prequant_ttt")]
)
def test_a_figure_that_is_not_the_claimed_one_holds_and_does_not_flag(
    tmp_path: Path, claim: str, verdict: str
) -> None:
    text = program(PLAIN, LATER, TRAIN_FIRST, main=LATE_FIT.format(then="fit_held(net, held, s)"))
    said = {"submission__json": f'{{"val_bpb": {claim}}}'}
    log = "val_bpb:1.2345\nadapted_bpb:1.1111\n"
    assert judged(tmp_path, text, train__log=log, **said) == verdict


README = """
The first runs had `ADAPT=1`, which learns from validation tokens; they are reported nowhere.

```bash
{line} python3 older_name.py
```
"""


@pytest.mark.parametrize(
    ("line", "verdict"), [("ADAPT=0", "clean_neural"), ("ADAPT=1", "flag_prequant_ttt")]
)
def test_prose_gives_no_setting_that_a_command_gives_otherwise(
    tmp_path: Path, line: str, verdict: str
) -> None:
    main = "if s.adapt:\n    fit_held(net, held, s)\nevaluate(net, held, s)"
    text = program(PLAIN, TRAIN_FIRST, main=main)
    assert judged(tmp_path, text, README__md=README.format(line=line)) == verdict


LOOPS = [
    "for i in items:\n    if i % 3 == 0: continue\n    n += i * 2\n    rows[i % 4].append(n)",
    "for i in items:\n    k = i // 2 if i > 9 else -i\n    if k > 40: break\n    n = max(n, k) - 1",
    "for i, j in pairs:\n    rows[1].append((i, j + n))\n    rows[0] = rows[1]\n    n -= 1",
    "while n < 900 and not len(rows[2]) > 70:\n    n += 1\n    rows[2].append(abs(n - 5) / 2)",
    "for i in items: n: int = i",
]
ITEMS = {"items": range(100), "pairs": [(i, i * i) for i in range(100)]}


def _names() -> dict[str, Any]:
    return {**ITEMS, "n": 0, "rows": [[], [], [], []]}


def _taken(text: str, names: dict[str, Any]) -> dict[str, Any]:
    node = ast.parse(text).body[0]
    assert isinstance(node, (ast.For, ast.While))

    def around(part: ast.expr) -> Any:
        assert isinstance(part, ast.Name)
        return names.get(part.id, Dotted(f"builtins.{part.id}"))

    items = plain_items(names[node.iter.id]) if isinstance(node, ast.For) else repeat(None)  # type: ignore[attr-defined]
    assert items is not None
    return {**names, **Turns(node, around).loop(node, items)}


@pytest.mark.parametrize("text", LOOPS)
def test_a_loop_over_plain_numbers_leaves_what_python_leaves(text: str) -> None:
    expected, ours = _names(), _names()
    known = {"max": max, "len": len, "abs": abs, "int": int}
    exec(text, {"__builtins__": known}, expected)  # noqa: S102
    expected.pop("__annotations__", None)
    assert _taken(text, ours) == expected


@pytest.mark.parametrize(
    "text",
    [
        "for i in items:\n    rows[0].append(i)\n    n = (n + 2) * (n + 2)",
        "for i in items:\n    rows[0].append(i)\n    k = rows + rows",
        "for i in items:\n    rows[0].append(i)\n    k = rows * 9",
        "for i in items:\n    rows[0].append(i)\n    k = rows[9]",
        "while n < 1:\n    rows[0].append(1)",
        "for i in items: open('x')",
        "for i in items: k = n ** i",
        "for i in items: k = [i] * n",
        "for i in items: rows.clear()",
    ],
)
def test_what_is_more_than_plain_is_left_to_the_engine_as_it_was(text: str) -> None:
    names = _names()
    with pytest.raises(NotPlainError):
        _taken(text, names)
    assert names == _names()


BLOCK = """
```bash
# what is reported
ADAPT={first} torchrun --nproc_per_node=8 train_gpt.py
# for comparison
ADAPT={second} torchrun --nproc_per_node=8 train_gpt.py
```
"""


@pytest.mark.parametrize(
    ("first", "second", "verdict"), [(0, 1, "clean_neural"), (1, 0, "flag_prequant_ttt")]
)
def test_of_several_commands_in_a_block_the_first_counts(
    tmp_path: Path, first: int, second: int, verdict: str
) -> None:
    main = "if s.adapt:\n    fit_held(net, held, s)\nevaluate(net, held, s)"
    text = program(PLAIN, TRAIN_FIRST, main=main)
    said = BLOCK.format(first=first, second=second)
    assert judged(tmp_path, text, README__md=said) == verdict


HANDED = """
class Handed(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 4), nn.Linear(4, 64)
    def parts(self, times):
        return [(self.up, self.down)] * times

class Bent(Net):
    def losses(self, x, y, parts=None):
        h = self.hidden(x)
        for up, down in parts or ():
            h = h + down(up(h))
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten(), reduction="none")

def bent(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    for a in range(0, held.numel() - 1 - s.context, s.context):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        added = Handed()
        opt, parts = torch.optim.SGD(added.parameters(), lr=0.1), added.parts(1)
        for epoch in range({epochs}):
            nll = net.losses(x[None], y[None], parts=parts)
            if epoch == {scored}:
                total += nll.detach().sum()
                size += sizes[y].sum()
            opt.zero_grad()
            nll.mean().backward()
            opt.step()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("epochs", "scored", "verdict"), [(3, 2, "flag_prequant_ttt"), (3, 0, "clean_ttt")]
)
def test_adapters_that_a_method_hands_out_learn_like_any(
    tmp_path: Path, epochs: int, scored: int, verdict: str
) -> None:
    part = HANDED.format(epochs=epochs, scored=scored)
    text = program(part, main="bent(Bent(64), held, s)")
    assert judged(tmp_path, text).startswith(verdict)
