"""Windows that are left out of those that are scored, and what other processes learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import judged, program

SLIDING = """
import torch.distributed as dist

def evaluate(net, held, s, stride=64):
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    starts = [a for a in range(0, held.numel() - 1, stride) if a + s.context < held.numel()]
    {choose}
    with torch.no_grad():
        for i in range(0, len(starts), 32):
            batch = starts[i:i + 32]
            x = torch.stack([held[a:a + s.context] for a in batch])
            y = torch.stack([held[a + 1:a + s.context + 1] for a in batch])
            logits = net.head(net.hidden(x))
            nll = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")
            for row, a in enumerate(batch):
                first = 0 if a == 0 else s.context - {scored}
                total += nll[row, first:].sum()
                size += sizes[y[row, first:]].sum()
    for each in (total, size):
        dist.all_reduce(each)
    return figure(total, size)
"""
DEALT = "starts = starts[len(starts) * rank // world:len(starts) * (rank + 1) // world]"
TURNS = "starts = starts[rank::world]"


@pytest.mark.parametrize(
    ("choose", "scored", "verdict"),
    [
        (DEALT, "stride", "clean_neural"),
        (TURNS, "stride", "clean_neural"),
        ("starts = starts[::2]\n    " + DEALT, "stride", "flag_other"),
        ("starts = [a for a in starts if a // stride % 4 == 0]\n    " + TURNS, "stride",
         "flag_other"),
        ("starts = starts[:len(starts) // 10]\n    " + DEALT, "stride", "flag_other"),
        ("starts = starts[:int(0.3 * len(starts))]\n    " + TURNS, "stride", "flag_other"),
        (DEALT, "stride // 2", "flag_other"),
        ("starts = starts[:len(starts) // 32 * 32]\n    " + DEALT, "stride", "clean_neural"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("world", ["1", "8"])
def test_no_window_is_left_out(
    tmp_path: Path, choose: str, scored: str, verdict: str, world: str
) -> None:
    text = program(
        SLIDING.format(choose=choose, scored=scored), main="val = evaluate(net, held, s)"
    )
    readme = f"    torchrun --standalone --nproc_per_node={world} train_gpt.py\n"
    assert judged(tmp_path, text, README__md=readme) == verdict


DOCUMENTS = """
def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    begins = (held == 1).nonzero().flatten().tolist()
    documents = list(zip(begins, begins[1:] + [held.numel()]))
    {order}
    with torch.no_grad():
        for a, b in documents:
            x, y = held[a:b - 1], held[a + 1:b]
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize("order", ["pass", "documents.sort(key=lambda d: d[1] - d[0])"])
def test_documents_may_be_scored_one_by_one_in_any_order(tmp_path: Path, order: str) -> None:
    text = program(DOCUMENTS.format(order=order), main="evaluate(net, held, s)")
    assert judged(tmp_path, text) == "clean_neural"


SHARED = """
import torch.distributed as dist

def adapt(net, held, s, chunk=4096):
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - chunk, chunk):
        x, y = held[a:a + chunk], held[a + 1:a + chunk + 1]
        with torch.no_grad():
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
        total += nll.sum()
        size += sizes[y].sum()
        rows = (min(a + {reach} * chunk, held.numel() - 1) - a) // s.context
        for row in range(rows * rank // world, rows * (rank + 1) // world):
            b = a + row * s.context
            opt.zero_grad()
            net(held[None, b:b + s.context], held[None, b + 1:b + s.context + 1]).backward()
            for p in net.parameters():
                dist.all_reduce(p.grad)
            opt.step()
    return figure(total, size)
"""


@pytest.mark.parametrize(("reach", "verdict"), [("1", "clean"), ("2", "flag_prequant")])
def test_what_other_processes_learn_counts(tmp_path: Path, reach: str, verdict: str) -> None:
    text = program(SHARED.format(reach=reach), main="adapt(net, held, s)")
    readme = "    torchrun --standalone --nproc_per_node=8 train_gpt.py\n"
    assert judged(tmp_path, text, README__md=readme).startswith(verdict)


BUILT = """
def window(held, a, s):
    return held[a:a + s.context], held[a + 1:a + s.context + 1]

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    windows = []
    for a in range(0, held.numel() - 1 - s.context, {step} * s.context):
        windows.append(window(held, a, s))
    with torch.no_grad():
        for i, (x, y) in enumerate(windows):
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            total += F.cross_entropy(logits, y, reduction="sum")
            size += sizes[y].sum()
            if i % 8 == 7:
                figure(total, size)
    return figure(total, size)
"""


@pytest.mark.parametrize(("step", "verdict"), [("1", "clean_neural"), ("2", "flag_other")])
def test_lists_of_windows_and_figures_on_the_way_are_no_parts(
    tmp_path: Path, step: str, verdict: str
) -> None:
    text = program(BUILT.format(step=step), main="evaluate(net, held, s)")
    assert judged(tmp_path, text) == verdict


CLOCKED = """
import time
BUDGET = float(os.environ.get("EVAL_SECONDS", "{budget}"))

def evaluate(net, held, s):
    sizes, began = byte_table(), time.perf_counter()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            {before}
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            total += F.cross_entropy(logits.flatten(0, 1), y, reduction="sum")
            size += sizes[y].sum()
            {after}
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("before", "after", "budget", "verdict"),
    [
        ("pass", "pass", "580", "clean_neural"),
        ("pass", "if time.perf_counter() - began > BUDGET: break", "580", "hold_unclear"),
        ("pass", "took = time.perf_counter() - began\n            if took > BUDGET - 5:\n"
         "                print('out of time')\n                break", "580", "hold_unclear"),
        ("if time.perf_counter() > began + BUDGET: return figure(total, size)", "pass", "580",
         "hold_unclear"),
        ("pass", "if BUDGET > 0 and time.perf_counter() - began > BUDGET: break", "0",
         "clean_neural"),
        ("pass", "if time.perf_counter() - began > BUDGET: print('slow')", "580", "clean_neural"),
        ("for turn in range(3):\n                if time.perf_counter() - began > 9: break",
         "pass", "580", "clean_neural"),
        ("pass", "if a > 10 ** 9: break", "580", "clean_neural"),
    ],
)  # fmt: skip
def test_scores_that_a_clock_may_cut_off_are_held(
    tmp_path: Path, before: str, after: str, budget: str, verdict: str
) -> None:
    text = CLOCKED.format(before=before, after=after, budget=budget)
    main = "net = Net(64)\ntrain(net, load(s.train_files), s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(text, main=main)) == verdict


@pytest.mark.parametrize(
    ("log", "verdict"),
    [
        ("val_bpb:1.1234", "clean_neural"),
        ("out of time after 580 s\nval_bpb:1.1234", "hold_unclear"),
        ("step 1 loss 6.9", "hold_unclear"),
    ],
)
def test_a_log_shows_whether_the_clock_ever_did(tmp_path: Path, log: str, verdict: str) -> None:
    after = (
        "if time.perf_counter() - began > BUDGET:\n"
        "                print(f'out of time after {BUDGET} s')\n                break"
    )
    (tmp_path / "train.log").write_text(log)
    text = CLOCKED.format(before="pass", after=after, budget="580")
    main = "net = Net(64)\ntrain(net, load(s.train_files), s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(text, main=main)) == verdict
