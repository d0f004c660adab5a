"""Bits per byte against bytes: a run packed to several sizes, and compressors that know a text.

    python benchmarks/frontier.py RUN [--bytes 300_000 ...] [--json]

Both sides are charged for what must lie on the other end before the first byte comes: a model its
whole file, tokenizer included; a compressor the training text that primes it, which it stores as
well as it can (`share` of the text's documents, from the first on). Scored alike on the whole
validation split: the model in one streaming pass of the file that was written, a compressor by
8 (size(text + split) - size(text)) / bytes of the split.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import niblick
from niblick.data.corpus import load_corpus
from niblick.scoring.baselines import compressors, take_documents

SIZES = (700_000, 1_300_000)  # for fewer bytes `niblick train --max-bytes` makes smaller models
SHARES = (0.0, 1 / 16, 1 / 4, 1 / 2, 1.0)


def packed(run: Path, sizes: list[int]) -> list[dict[str, float]]:
    """Bytes and bits per byte of the run at its own size and at others."""
    card = json.loads((run / "card.json").read_text("utf-8"))
    found = [{"bytes": card["artifact_bytes"], "bpb": round(card["packed_bpb"], 4)}]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            out = Path(folder) / f"{size}.nib"
            niblick.pack(run, out, max_bytes=size)
            score = niblick.evaluate(out, engine="native")
            found.append({"bytes": out.stat().st_size, "bpb": round(score.bpb, 4)})
            tell("model", found[-1])
    return sorted(found, key=lambda each: each["bytes"])


def compressed(shares: tuple[float, ...]) -> dict[str, list[dict[str, float]]]:
    """Compressor -> bytes of the text that primes it, once compressed, and bits per byte."""
    splits = load_corpus("wiki-vital").splits
    train = take_documents(splits["train"], sys.maxsize).text
    held_out = take_documents(splits["validation"], sys.maxsize).text
    found: dict[str, list[dict[str, float]]] = {}
    for name, size in compressors().items():
        found[name] = []
        for share in shares:
            text = train[: round(share * len(train))]
            before = size(text) if text else 0
            bpb = 8 * (size(text + held_out) - before) / len(held_out)
            row = {"share": share, "bytes": before, "bpb": round(bpb, 4)}
            found[name].append(row)
            tell(name, row)
    return found


def tell(name: str, row: dict[str, float]) -> None:
    """One line as it comes, on standard error."""
    print(name, *(f"{key} {value:,}" for key, value in row.items()), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run of wiki-vital with its checkpoint")
    parser.add_argument("--bytes", type=int, action="append", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    options = parser.parse_args()
    found = {
        "model": packed(options.run, options.bytes or list(SIZES)),
        "compressors": compressed(SHARES),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, rows in {"model": found["model"], **found["compressors"]}.items():
        print(f"\n| {name}, bytes | bits per byte |\n|---|---|")
        for row in rows:
            print(f"| {row['bytes']:,} | {row['bpb']:.4f} |")


if __name__ == "__main__":
    main()
