"""Behaviour tests: causality and blindness to targets, as seen when our own small programs run."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from niblick.audit.behaviour import findings_from
from niblick.audit.sandbox import Bundle
from niblick.audit.smoke import Program, smoke_test
from niblick.audit.types import Finding, Severity, Span
from niblick.audit.verdict import decide

HEAD = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Hyperparameters:
        vocab_size = 64
        model_dim = 16
        train_seq_len = 128
        ttt_enabled = True
        two_pass = False

    class Net(nn.Module):
        def __init__(self, args):
            super().__init__()
            self.embed = nn.Embedding(args.vocab_size, args.model_dim)
            self.head = nn.Linear(args.model_dim, args.vocab_size)

        def forward_logits(self, x):
            h = self.embed(x)
            return self.head(MIX(h))

        def forward(self, x, y):
            logits = self.forward_logits(x)
            return F.cross_entropy(logits.view(-1, logits.size(-1)).float(), y.view(-1))
"""
CAUSAL = "    MIX = lambda h: torch.cumsum(h, 1) / h.size(1)\n"
LEAKING = "    MIX = lambda h: h + h.mean(1, keepdim=True)\n"
MAIN = """
    def main():
        args = Hyperparameters()
        model = Net(args)

    if __name__ == "__main__":
        main()
"""


def seen(mix: str) -> dict[str, Finding]:
    """Findings of a program with a model that mixes positions by `mix`: by rule."""
    program = textwrap.dedent(HEAD) + textwrap.dedent(mix) + textwrap.dedent(MAIN)
    about = Program(script="train_gpt.py", text=program)
    _, found = smoke_test(about, Bundle({"train_gpt.py": program.encode()}), trust=True)
    return {finding.rule: finding for finding in found}


def test_a_causal_model_is_seen_to_be_one() -> None:
    found = seen(CAUSAL)
    assert found["dynamic-causality"].severity is Severity.INFO
    assert "sees tokens before a BOS" in found["dynamic-causality"].evidence
    assert all(finding.source == "dynamic" for finding in found.values())


def test_a_model_that_looks_ahead_is_a_breach() -> None:
    finding = seen(LEAKING)["dynamic-causality"]
    assert (finding.severity, finding.verdict) == (Severity.BREACH, "flag_other")


def test_logits_far_apart_from_each_other_hide_no_look_ahead() -> None:
    apart = """
    def MIX(h):
        return torch.cat([h + h.mean(1, keepdim=True), torch.full_like(h[..., :1], 400.0)], -1)
    nn.Linear = lambda i, o, inner=nn.Linear: inner(i + 1, o)
"""
    finding = seen(apart)["dynamic-causality"]
    assert (finding.severity, finding.verdict) == (Severity.BREACH, "flag_other")


def test_a_model_that_sees_its_targets_is_a_breach() -> None:
    told = textwrap.dedent(HEAD).replace("forward_logits", "logits_of")
    told = told.replace("self.logits_of(x)", "self.logits_of(x) + self.head(self.embed(y))")
    program = told + textwrap.dedent(CAUSAL) + textwrap.dedent(MAIN)
    about = Program(script="train_gpt.py", text=program)
    _, found = smoke_test(about, Bundle({"train_gpt.py": program.encode()}), trust=True)
    assert [(f.rule, f.verdict) for f in found] == [("dynamic-targets", "flag_other")]


def test_what_was_seen_clears_no_suspicion() -> None:
    suspicion = Finding(
        rule="train-before-score",
        severity=Severity.WARNING,
        verdict="flag_prequant_ttt",
        span=Span(file="train_gpt.py", start=12, end=14),
        evidence="e",
        pointer="p",
        cure="c",
    )
    good = seen(CAUSAL).values()
    assert decide([suspicion, *good], None, understood=True)[0] == "hold_unclear"
    assert decide([*good], None, understood=False)[0] == "hold_unclear"


@pytest.mark.parametrize(
    "result",
    [
        {"probe": {"model": [3], "scale": 10**400, "repeat": "x", "length": None}},
        {"probe": [], "attempts": {"x": 2}},
        {"probe": {"future": float("nan"), "scale": -1, "line": [1]}, "attempts": [{}, None, 7]},
    ],
)
def test_a_report_of_any_shape_gives_findings_that_can_be_shown(result: dict[str, Any]) -> None:
    for finding in findings_from(json.loads(json.dumps(result)), "train_gpt.py", packed=False):
        assert finding.verdict is None and isinstance(finding.evidence, str)


def test_a_script_without_a_model_gives_no_findings() -> None:
    about = Program(script="train_gpt.py", text="x = 1\n")
    bundle = Bundle({"train_gpt.py": b"x = 1\n"})
    assert smoke_test(about, bundle, trust=True)[1] == ()
