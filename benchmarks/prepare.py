"""How fast text becomes shards: `python benchmarks/prepare.py [encode prepare] [--json]`.

encode: MB of text per second of processor time, one thread, of our encoder, the sentencepiece
library and the `tokenizers` package (`encode` by document, and `encode_batch_fast`), in turn,
`--rounds` times; medians, and the medians of the ratios within a round. prepare: `niblick data
prepare` on a JSONL file of `--mb` megabytes with 1 and 2 workers: MB/s by the clock and by
processor time, the largest resident memory of any of its processes, and whether the shards are the
same bytes. The text is wiki-vital's training split; for `prepare` it is repeated, each document
with a number in front.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
NAMES = (
    *("fineweb-1024", "1,024 across words", "4,096 across words", "16,384 across words"),
    *("4,096 within words", "16,384 within words", "4,096 case operators"),
)


def encode(rounds: int) -> list[dict[str, Any]]:
    """Rates of each encoder for the challenge's tokenizer and trained ones, the same ids."""
    from niblick.data.corpus import load_corpus
    from niblick.exchange.hf.fast_tokenizer import fast_tokenizer
    from niblick.text.case import CaseTokenizer
    from niblick.text.encoder import compile_encoder
    from niblick.text.learning import train_tokenizer
    from niblick.text.tokenizer import SentencePieceTokenizer, load_tokenizer

    if not compile_encoder():
        sys.exit("no compiled encoder: no C compiler")
    texts = list(load_corpus("wiki-vital").splits["train"])
    size, rows = sum(len(text.encode()) for text in texts[:4000]), []
    for name in NAMES:
        if name == "fineweb-1024":
            made = load_tokenizer(name)
        else:
            vocabulary = int(name.split()[0].replace(",", ""))
            across, case = "within" not in name, "case" in name
            made = train_tokenizer(texts, vocab_size=vocabulary, across_words=across, case=case)
        plain = made.plain if isinstance(made, CaseTokenizer) else made
        assert isinstance(plain, SentencePieceTokenizer)
        fast = fast_tokenizer(made)
        ways: dict[str, Callable[[], object]] = {
            "niblick": lambda made=made: [made.encode(text) for text in texts[:4000]],
            "sentencepiece": lambda own=plain: [own._engine.Encode(t) for t in texts[:4000]],
            "tokenizers": lambda fast=fast: [fast.encode(text) for text in texts[:4000]],
            "tokenizers, batch": lambda fast=fast: fast.encode_batch_fast(texts[:4000]),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, work in ways.items():
                began = time.process_time()
                work()
                times[way].append(time.process_time() - began)
        for way, found in times.items():
            ratios = [other / own for own, other in zip(times["niblick"], found, strict=True)]
            rows.append(
                {
                    "tokenizer": name,
                    "encoder": way,
                    "mb_per_second": size / median(found) / 1e6,
                    "niblick_times_faster": median(ratios),
                }
            )
    return rows


def write_text(path: Path, megabytes: float) -> int:
    """Fill a JSONL file; the bytes of its text."""
    from niblick.data.corpus import load_corpus

    texts, size, turn = list(load_corpus("wiki-vital").splits["train"]), 0, 0
    with path.open("w") as file:
        while size < megabytes * 1e6:
            for text in texts:
                document = f"{turn} {text}"
                file.write(json.dumps({"text": document}) + "\n")
                size += len(document.encode())
            turn += 1
    return size


def prepare(megabytes: float) -> list[dict[str, Any]]:
    """Rates and memory of whole preparations by 1 and 2 workers."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_text(folder / "text.jsonl", megabytes)
        for workers in (1, 2):
            command = [sys.executable, __file__, "--one", name, "--workers", str(workers)]
            found = json.loads(subprocess.run(command, check=True, stdout=-1).stdout)
            rows.append(
                {
                    "workers": workers,
                    "text_mb": size / 1e6,
                    "mb_per_second": size / found["seconds"] / 1e6,
                    "mb_per_processor_second": size / found["processor_seconds"] / 1e6,
                    "peak_memory_mb": found["peak"] / 1e6,
                }
            )
        files = [sorted((folder / f"out-{w}").iterdir()) for w in (1, 2)]
        same = [a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True)]
        for row in rows:
            row["same_bytes"] = all(same)
    return rows


def prepare_one(folder: Path, workers: int) -> None:
    """In a process of its own: one preparation, and what it took."""
    command = [
        *(
            sys.executable,
            "-m",
            "niblick",
            "data",
            "prepare",
            str(folder / "text.jsonl"),
            "--stream",
        ),
        *("--out", str(folder / f"out-{workers}"), "--tokenizer", "fineweb-1024"),
        *("--workers", str(workers), "--json"),
    ]
    shutil.rmtree(folder / f"out-{workers}", ignore_errors=True)
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = used.ru_utime + used.ru_stime
    print(
        json.dumps({"seconds": seconds, "processor_seconds": spent, "peak": 1024 * used.ru_maxrss})
    )


def main() -> None:
    """Run what is asked for and print tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="encode, prepare")
    parser.add_argument("--mb", type=float, default=300, help="text of `prepare`, megabytes")
    parser.add_argument("--rounds", type=int, default=5, help="of `encode`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        prepare_one(Path(options.one), options.workers)
        return
    parts = {"encode": lambda: encode(options.rounds), "prepare": lambda: prepare(options.mb)}
    found = {name: parts[name]() for name in options.parts or parts}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, rows in found.items():
        print(f"## {name}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        for row in rows:
            cells = (f"{v:,.2f}" if isinstance(v, float) else str(v) for v in row.values())
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
