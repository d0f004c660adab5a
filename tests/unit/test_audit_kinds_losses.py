"""Kinds of losses that models return, and of what models make of neighbouring positions."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, judged, program

SEVERAL = """
class Net(Net):
    def forward(self, x, y, apart=False):
        h = self.hidden(x)
        own = {scale}F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())
        other = F.binary_cross_entropy_with_logits(h.mean(-1), self.spaces[y].float())
        if apart:
            return own + 0.1 * other, own, other
        return own + 0.1 * other

def rough(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[None, a:a + s.context], held[None, a + 1:a + s.context + 1]
            {taken} = net(x, y, apart=True)
            total += loss * y.numel()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("taken", "scale", "verdict"),
    [
        ("_, loss, _", "", "clean_neural"),
        ("_, loss, _", "0.9 * ", "flag_other"),
        ("loss, _, _", "", "hold_unclear"),
    ],
)
def test_each_of_several_losses_that_a_model_returns_is_judged_by_itself(
    tmp_path: Path, taken: str, scale: str, verdict: str
) -> None:
    text = program(SEVERAL.format(taken=taken, scale=scale), main="rough(net, held, s)")
    assert judged(tmp_path, text) == verdict


SWITCHED = """
class Net(Net):
    def __init__(self, width):
        super().__init__(width)
        self.far = float(os.environ.get("FAR_WEIGHT", "0.0"))
        self.extra = nn.Linear(width, width) if self.far > 0 else None
    def forward(self, x, y):
        h = self.hidden(x)
        loss = F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())
        if self.extra is not None and self.far > 0:
            far = self.head(self.extra(h))[:, :-1]
            far = F.cross_entropy(far.flatten(0, 1), y[:, 1:].flatten())
            loss = loss - self.far * far
        return loss
"""


@pytest.mark.parametrize(
    ("given", "change", "clean"),
    [("0.0", "pass", True), ("0.2", "pass", False), ("0.0", "net.far = 0.2", False)],
)
def test_a_term_that_the_environment_switches_off_is_none_of_a_models_loss(
    tmp_path: Path, given: str, change: str, clean: bool
) -> None:
    rough = SEVERAL[SEVERAL.index("def rough") :].format(taken="loss").replace(", apart=True", "")
    text = program(SWITCHED, rough, main=f"{change}\nrough(net, held, s)")
    text = text.replace('"FAR_WEIGHT", "0.0"', f'"FAR_WEIGHT", "{given}"')
    assert (judged(tmp_path, text) == "clean_neural") is clean


PONDERING = """
class Net(Net):
    def __init__(self, width, on={on}):
        super().__init__(width)
        self.halting = nn.Linear(width, 1) if on else None
    def forward(self, x, y):
        h = self.hidden(x)
        loss = F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())
        return loss if self.halting is None else loss - 0.01 * self.halting(h).mean()
"""


@pytest.mark.parametrize("on", [False, True])
def test_a_part_that_a_model_is_made_without_is_none(tmp_path: Path, on: bool) -> None:
    rough = SEVERAL[SEVERAL.index("def rough") :].format(taken="loss").replace(", apart=True", "")
    text = program(PONDERING.format(on=on), rough, main="rough(net, held, s)")
    assert (judged(tmp_path, text) == "clean_neural") is not on


GROUPED = """
class Groups(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.size = size
        self.out = nn.Linear(width, width)
    def forward(self, x):
        B, T, D = x.shape
        n = self.size
        x = x.reshape(B, T // n, n, D).mean(dim=2)
        {shift}
        return {spread}

class Net(Net):
    def __init__(self, width, group={group}):
        super().__init__(width)
        self.groups = Groups(width, 2) if group else None
    def hidden(self, x):
        h = self.table(x)
        return h if self.groups is None else h + self.groups(h)
"""
REPEATED = "x.repeat_interleave(n, dim=1)"
STACKED = "torch.stack([self.out(x)] * n, dim=2).reshape(B, T // n * n, D)"


@pytest.mark.parametrize(
    ("spread", "shift", "group", "clean"),
    [
        (REPEATED, "pass", True, False),
        (STACKED, "pass", True, False),
        (REPEATED, "x = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)", True, True),
        (REPEATED, "pass", False, True),
        ("x", "pass", True, True),
    ],
)
def test_merged_positions_are_not_spread_over_themselves(
    tmp_path: Path, spread: str, shift: str, group: bool, clean: bool
) -> None:
    switch = f'bool(int(os.environ.get("GROUP", "{int(group)}")))'
    part = GROUPED.format(shift=shift, spread=spread, group="group")
    text = program(f"group = {switch}\n", part, PLAIN, main="evaluate(net, held, s)")
    assert (judged(tmp_path, text) == "clean_neural") is clean
