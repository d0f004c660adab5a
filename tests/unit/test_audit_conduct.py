"""Seeds, clocks, artifacts and the part of the split that is scored: each in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from niblick.audit import flow
from niblick.audit.review import review
from niblick.audit.types import Report

SCRIPT = """
import os, time, lzma, random
import numpy as np
import torch
import torch.nn.functional as F
max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", {limit}))
def measure(model, val_tokens, sizes):
    nats = torch.zeros(())
    count = torch.zeros(())
    with torch.no_grad():
        for s in range(0, val_tokens.numel() - 1, 64):
            x, y = val_tokens[s:s + 64], val_tokens[s + 1:s + 65]
            nats += F.cross_entropy(model(x)[: y.numel()], y, reduction="sum")
            count += sizes[y].sum()
    return nats / 0.6931 / count
def train(model, train_tokens):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = time.perf_counter()
    for step in range(100):
        {tick}
        loss = F.cross_entropy(model(train_tokens[:64]), train_tokens[1:65])
        loss.backward()
        optimizer.step()
        {tock}
        if time.perf_counter() - start > max_wallclock_seconds:
            break
def main():
    {seed}
    val_tokens = np.fromfile("data/shard_val_000000.bin", dtype=np.uint16)
    val_tokens = torch.from_numpy(val_tokens.astype(np.int64))
    train_tokens = np.fromfile("data/shard_train_000000.bin", dtype=np.uint16)
    train_tokens = torch.from_numpy(train_tokens.astype(np.int64))
    sizes = torch.load("byte_sizes.pt")
    model = torch.nn.Embedding(64, 64)
    train(model, train_tokens)
    {finish}
    print("val_bpb", measure(model, val_tokens, sizes))
main()
"""
HONEST = {
    "limit": "600.0",
    "tick": "pass",
    "tock": "pass",
    "seed": 'torch.manual_seed(int(os.environ.get("SEED", "1337")))',
    "finish": "pass",
}


def audit(folder: Path, claim: dict[str, object] | None = None, **changes: str) -> Report:
    """The report on the honest script with some of its pieces replaced."""
    place = folder / "records" / "track_10min_16mb" / "entry"
    place.mkdir(parents=True)
    (place / "train_gpt.py").write_text(SCRIPT.format(**{**HONEST, **changes}), "utf-8")
    (place / "README.md").write_text("# entry\n")
    (place / "submission.json").write_text(json.dumps(claim or {"name": "entry"}))
    return review(place)


def rules(report: Report) -> set[str]:
    return {f.rule for f in report.findings} & {"seeds", "time-limit", "artifact", "part-of-split"}


def test_an_honest_script_has_no_such_finding(tmp_path: Path) -> None:
    report = audit(tmp_path)
    assert report.verdict == "clean_neural" and not rules(report), [
        f.evidence for f in report.findings
    ]


@pytest.mark.parametrize("limit", ["4800.0", "0"])
def test_a_limit_beyond_the_track_is_a_finding(tmp_path: Path, limit: str) -> None:
    report = audit(tmp_path, limit=limit)
    assert rules(report) == {"time-limit"} and report.verdict == "clean_neural"


def test_training_between_stopped_clocks_is_a_breach(tmp_path: Path) -> None:
    report = audit(
        tmp_path, tick="pause = time.perf_counter()", tock="start += time.perf_counter() - pause"
    )
    assert report.verdict == "flag_other" and rules(report) == {"time-limit"}


def test_a_clock_stopped_around_read_only_validation_is_none(tmp_path: Path) -> None:
    honest = (
        "pause = time.perf_counter()\n        model.eval()\n        start += time.perf_counter() -"
        " pause"
    )
    assert not rules(audit(tmp_path, tock=honest))


def test_a_replaced_clock_is_a_breach(tmp_path: Path) -> None:
    assert (
        audit(tmp_path, seed="torch.manual_seed(1); time.perf_counter = lambda: 0.0").verdict
        == "flag_other"
    )


BEST_OF = """best = 9.0
    for seed in range(5):
        torch.manual_seed(seed)
        train(model, train_tokens)
        bpb = measure(model, val_tokens, sizes)
        {keep}"""


def test_the_best_of_several_seeds_by_validation_is_a_breach(tmp_path: Path) -> None:
    report = audit(tmp_path, finish=BEST_OF.format(keep="if bpb < best:\n            best = bpb"))
    assert report.verdict == "flag_other" and "seeds" in rules(report)


def test_several_seeds_each_reported_are_none(tmp_path: Path) -> None:
    assert "seeds" not in rules(
        audit(tmp_path, finish=BEST_OF.format(keep='print("val_bpb", seed, bpb)'))
    )


def test_a_seed_that_is_never_set_or_fixed_against_the_claim_is_a_finding(tmp_path: Path) -> None:
    assert rules(audit(tmp_path / "a", seed="pass")) == {"seeds"}
    assert rules(
        audit(tmp_path / "b", {"name": "entry", "seeds": [1, 2, 3]}, seed="torch.manual_seed(7)")
    ) == {"seeds"}
    assert not rules(audit(tmp_path / "c", {"name": "entry", "seeds": [1, 2, 3]}))


PACK = 'open("model.xz", "wb").write(lzma.compress(model.weight.detach().numpy().tobytes()))'


def test_a_packed_model_that_is_never_read_back_is_a_finding(tmp_path: Path) -> None:
    assert rules(audit(tmp_path / "a", finish=PACK)) == {"artifact"}
    back = (
        PACK + "\n   "
        ' model.weight.data.copy_(torch.frombuffer(bytearray(lzma.decompress(open("model.xz",'
        ' "rb").read())), dtype=torch.float32).view(64, 64))'
    )
    assert not rules(audit(tmp_path / "b", finish=back))


def test_a_size_reckoned_from_parameters_is_a_finding_and_one_of_files_is_not(
    tmp_path: Path,
) -> None:
    count = (
        "total = sum(p.numel() * p.element_size() for p in model.parameters())\n    print(f'total"
        " size: {total} bytes')"
    )
    assert rules(audit(tmp_path / "a", finish=count)) == {"artifact"}
    files = "total = os.path.getsize('train_gpt.py')\n    print(f'total size: {total} bytes')"
    assert not rules(audit(tmp_path / "b", finish=files))


def test_a_figure_of_a_part_is_no_breach_where_the_whole_may_come_beyond_what_was_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 'print("val_bpb", measure(model, val_tokens[:100000], sizes))\n' + "    x = 1\n" * 2000
    assert audit(tmp_path / "a", finish=part).verdict == "clean_neural"
    monkeypatch.setattr(flow, "MOST_STEPS", 1000)
    report = audit(tmp_path / "b", finish=part)
    assert report.verdict == "hold_unclear"
    assert any("steps of work ran out" in f.evidence for f in report.findings)


def test_scoring_the_first_part_of_the_split_is_a_breach(tmp_path: Path) -> None:
    report = audit(tmp_path / "a", finish="val_tokens = val_tokens[:100000]")
    assert report.verdict == "flag_other" and rules(report) == {"part-of-split"}
    assert not rules(
        audit(
            tmp_path / "b",
            finish="val_tokens = val_tokens[: (val_tokens.numel() - 1) // 64 * 64 + 1]",
        )
    )


def test_weights_from_elsewhere_are_a_finding(tmp_path: Path) -> None:
    assert rules(audit(tmp_path, finish='model.load_state_dict(torch.load("/mnt/best.pt"))')) == {
        "artifact"
    }
