"""Which vocabulary, width and length of training suit how much text: `python benchmarks/own_text.py
tokens | train --bytes 50_000 --vocab 512 --dim 64 --passes 20 ... --out DIR`

Texts of a given size are the first training documents of wiki-vital; 128 kB of its validation split
are held out. `tokens` prints bytes per token and the size of the stored vocabulary. `train` trains
`pocket` with those settings (each option may be repeated: all combinations) and prints size,
vocabulary, width, batch, passes and float bits per byte, one line a run; finished runs in DIR are
reused.
"""

from __future__ import annotations

import argparse
from itertools import accumulate, product, takewhile
from pathlib import Path

from niblick.data.corpus import Corpus, load_corpus
from niblick.data.dataset import Dataset
from niblick.data.prepare import prepare
from niblick.evaluation import EvaluationOptions, evaluate
from niblick.model import build_model
from niblick.recipe import load_recipe
from niblick.runtime import World
from niblick.scoring.score import read_score
from niblick.text.learning import train_tokenizer
from niblick.training import train

HELD_OUT = 128_000


def first(texts: list[str], size: int) -> list[str]:
    """The documents from the start that hold `size` bytes together."""
    ends = accumulate(len(text.encode()) for text in texts)
    count = sum(1 for _ in takewhile(lambda end: end <= size, ends))
    return list(texts[: max(count, 1)])


def corpus(size: int) -> Corpus:
    """A part of wiki-vital with `size` bytes of training text."""
    whole = load_corpus("wiki-vital").splits
    parts = {
        "train": first(whole["train"], size),
        "validation": first(whole["validation"], HELD_OUT),
    }
    return Corpus(f"wiki-{size}", parts)


def print_tokens(sizes: list[int], vocabularies: list[int]) -> None:
    """Held-out bytes per token and bytes of the stored vocabulary."""
    print("| training bytes | vocabulary | training tokens | bytes/token | stored bytes |")
    print("|---|---|---|---|---|")
    for size, vocab in product(sizes, vocabularies):
        part = corpus(size)
        tokenizer = train_tokenizer(part.splits["train"], vocab_size=vocab)
        counts = [sum(len(tokenizer.encode(t)) for t in part.splits[s]) for s in part.splits]
        held = sum(len(text.encode()) for text in part.splits["validation"])
        stored = len(tokenizer.to_bytes())
        print(
            f"| {size:,} | {vocab} | {counts[0]:,} | {held / counts[1]:.3f} | {stored:,} |",
            flush=True,
        )


def dataset(size: int, vocab: int, out: Path) -> Dataset:
    """Shards of that part, with a tokenizer trained on it."""
    return prepare(corpus(size), out=out / f"data-{size}-{vocab}", vocab_size=vocab)


def bpb(size: int, vocab: int, dim: int, batch: int, passes: float, out: Path) -> float:
    """Float bits per byte of one run."""
    name = f"{size}-{vocab}-{dim}-{batch}-{passes:g}"
    if (score := out / f"{name}.json").is_file():
        return read_score(score).bpb
    data = dataset(size, vocab, out)
    tokens = round(passes * data.token_count("train"))
    settings = (f"model.vocab_size={vocab}", f"model.dim={dim}", f"training.batch_tokens={batch}")
    recipe = load_recipe(
        "pocket", [*settings, f"training.duration='{tokens} tokens'", "training.validation.every=0"]
    )
    result = train(recipe, data, out / name, world=World())
    found = evaluate(
        build_model(recipe, result.tensors),
        data,
        split="validation",
        options=EvaluationOptions.from_recipe(recipe),
    )
    found.write(score)
    return found.bpb


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("tokens", "train"))
    parser.add_argument("--bytes", type=int, action="append", required=True)
    parser.add_argument("--vocab", type=int, action="append", required=True)
    parser.add_argument("--dim", type=int, action="append", default=[])
    parser.add_argument("--batch", type=int, action="append", default=[])
    parser.add_argument("--passes", type=float, action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("own-text"))
    asked = parser.parse_args()
    if asked.what == "tokens":
        print_tokens(asked.bytes, asked.vocab)
        return
    for run in product(
        asked.bytes, asked.vocab, asked.dim or [128], asked.batch or [4096], asked.passes or [10.0]
    ):
        print(*run, f"{bpb(*run, asked.out):.4f}", flush=True)


if __name__ == "__main__":
    main()
