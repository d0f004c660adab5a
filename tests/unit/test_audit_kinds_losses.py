"""Kinds of programs that were once not followed to their figure, or lost on the way, each as a
small program and its twin.
"""

from __future__ import annotations

import base64
import json
import lzma
from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, SCORE_FIRST, TRAIN_FIRST, judged, program

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
