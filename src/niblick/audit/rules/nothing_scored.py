"""Folders and scripts in which nothing is scored: there is nothing to call clean."""

from __future__ import annotations

import ast

from niblick.audit.rules.case import Case, scored
from niblick.audit.types import Finding, Severity

RULE = "nothing-scored"
_SCORES = (
    "cross_entropy",
    "nll",
    "log_softmax",
    "logsumexp",
    "log_prob",
    "logprob",
    "bpb",
    "bits_per",
    "loss",
    "perplexity",
    "log2",
)


def check(case: Case) -> list[Finding]:
    """One finding where there is no record at all, or where neither the script nor a file beside it
    has a loss, a likelihood or a figure.
    """
    source = case.submission.source
    if source is None and (
        case.submission.readme is not None or case.submission.metadata is not None
    ):
        return []
    if source is not None and (source.tree is None or scored(case.trace) or _mentions(source.tree)):
        return []
    if source is not None and any(
        word in text.lower() for text in _beside(case) for word in _SCORES
    ):
        return []
    said = (
        "There is no script to review."
        if source is None
        else f"Nothing in {source.path} computes a loss, a likelihood or a score."
    )
    return [
        case.finding(
            RULE,
            Severity.WARNING,
            said,
            verdict="hold_unclear",
            pointer="record",
            cure="Name the script that trains and scores, or review the folder that holds it.",
        )
    ]


def _mentions(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        name = (
            node.id
            if isinstance(node, ast.Name)
            else node.attr
            if isinstance(node, ast.Attribute)
            else ""
        )
        if isinstance(node, (ast.FunctionDef, ast.arg)):
            name = node.name if isinstance(node, ast.FunctionDef) else node.arg
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value[:2000]
        if name and any(word in name.lower() for word in _SCORES):
            return True
    return False


def _beside(case: Case) -> list[str]:
    texts = [text for name, text in case.carried.items() if name.endswith(".py")]
    for path in case.submission.context[:40]:
        if path.suffix == ".py" and path.stat().st_size < 1_000_000:
            texts.append(path.read_text("utf-8", "replace"))
    return texts
