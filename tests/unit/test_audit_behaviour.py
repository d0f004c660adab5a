"""Behaviour tests: order of scoring and learning, and causality, as seen when small programs of our
own run.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from niblick.audit.behaviour import behaviour
from niblick.audit.submission import read_submission
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
ORDERS = """
    def windows(args, tokens):
        for start in range(0, tokens.numel() - 1, args.train_seq_len):
            piece = tokens[start : start + args.train_seq_len + 1]
            yield piece[:-1][None], piece[1:][None]

    def nll(model, x, y):
        logits = model.forward_logits(x)
        return F.cross_entropy(logits.reshape(-1, logits.size(-1)).float(), y.reshape(-1), reduction="none")

    def eval_val(args, model, val_tokens):
        with torch.no_grad():
            return sum(model(x, y).item() for x, y in windows(args, val_tokens)) / 8

    def eval_score_then_train(args, model, val_tokens):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        total = count = 0
        for x, y in windows(args, val_tokens):
            with torch.no_grad():
                losses = nll(model, x, y).double()
                total, count = total + losses.sum().item(), count + losses.numel()
            opt.zero_grad()
            model(x, y).backward()
            opt.step()
        return total / count

    def eval_train_then_score(args, model, val_tokens):
        for x, y in windows(args, val_tokens):
            model(x, y).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
        return eval_val(args, model, val_tokens)

    def eval_delta(args, model, val_tokens):
        total = count = 0
        for x, y in windows(args, val_tokens):
            delta = torch.zeros(args.vocab_size, requires_grad=True)
            opt = torch.optim.AdamW([delta], lr=0.1)
            logits = model.forward_logits(x).detach()
            F.cross_entropy((logits + delta)[0], y[0]).backward()
            opt.step()
            with torch.no_grad():
                losses = F.cross_entropy((logits + delta)[0], y[0], reduction="none")
                total, count = total + losses.sum().item(), count + losses.numel()
        return total / count

    def eval_two_pass(args, model, val_tokens):
        return eval_train_then_score(args, model, val_tokens)

    def main():
        args = Hyperparameters()
        model = Net(args)
        val_tokens = torch.zeros(9, dtype=torch.long)
        print(eval_val(args, model, val_tokens))
        if args.ttt_enabled:
            EVALS
        if args.two_pass:
            eval_two_pass(args, model, val_tokens)

    if __name__ == "__main__":
        main()
"""


def seen(folder: Path, mix: str, *evaluations: str) -> dict[str, Finding]:
    """Findings of a program whose main calls `evaluations`, by rule and first word of the
    evidence.
    """
    calls = "; ".join(f"{name}(args, model, val_tokens)" for name in evaluations) or "pass"
    program = (
        textwrap.dedent(HEAD)
        + textwrap.dedent(mix)
        + textwrap.dedent(ORDERS.replace("EVALS", calls))
    )
    (folder / "train_gpt.py").write_text(program)
    found = behaviour(read_submission(folder), trust=True)
    return {f"{finding.rule} {finding.evidence.split()[0]}": finding for finding in found}


def test_orders_of_scoring_and_learning_are_told_apart(tmp_path: Path) -> None:
    found = seen(tmp_path, CAUSAL, "eval_score_then_train", "eval_train_then_score", "eval_delta")
    legal = found["dynamic-order eval_score_then_train()"]
    assert (legal.severity, legal.verdict) == (Severity.INFO, "clean_ttt_score_first")
    for name, verdict in (
        ("eval_train_then_score()", "flag_prequant_ttt"),
        ("eval_delta()", "flag_slot"),
    ):
        breach = found[f"dynamic-order {name}"]
        assert (breach.severity, breach.verdict) == (Severity.BREACH, verdict)
        assert "256 tokens" in breach.evidence
    assert "learnt nothing" in found["dynamic-order eval_val()"].evidence
    assert "dynamic-order eval_two_pass()" not in found
    assert found["dynamic-causality no"].severity is Severity.INFO
    assert all(finding.source == "dynamic" for finding in found.values())


def test_a_model_that_looks_ahead_is_a_breach(tmp_path: Path) -> None:
    finding = seen(tmp_path, LEAKING)["dynamic-causality changing"]
    assert (finding.severity, finding.verdict) == (Severity.BREACH, "flag_other")


def test_an_order_that_was_seen_does_not_take_back_a_suspicion_of_reading() -> None:
    common: dict[str, Any] = {"evidence": "e", "pointer": "p", "cure": "c"}
    suspicion = Finding(
        rule="train-before-score",
        severity=Severity.WARNING,
        verdict="flag_prequant_ttt",
        span=Span(file="train_gpt.py", start=12, end=14),
        **common,
    )
    legal = Finding(
        rule="dynamic-order",
        severity=Severity.INFO,
        verdict="clean_ttt_score_first",
        span=Span(file="train_gpt.py", start=10, end=20),
        source="dynamic",
        **common,
    )
    assert decide([suspicion], None)[0] == "hold_unclear"
    assert decide([suspicion, legal], None)[0] == "hold_unclear"
    assert decide([legal], None)[0] == "clean_ttt_score_first"


def test_a_script_without_a_model_gives_no_findings(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text("x = 1\n")
    assert behaviour(read_submission(tmp_path), trust=True) == ()
