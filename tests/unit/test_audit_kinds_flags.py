"""Kinds of honest evaluation that were once flagged, each as a small program beside its breaching
twin.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

LEFT_OUT = """
def left_out(net, held, s):
    sizes = byte_table()
    total, count, size = torch.zeros(()), 0, torch.zeros(())
    step = 128
    starts = torch.arange(0, held.numel() - s.context, step)
    with torch.no_grad():
        for at in range(0, len(starts), 16):
            first = starts[at:at + 16]
            rows = held[first.unsqueeze(1) + torch.arange(s.context + 1).unsqueeze(0)]
            x, y = rows[:, :-1].clone(), rows[:, 1:].clone()
            y[first > 0, :s.context - step] = -100
            counted = y != -100
            {weigh}
            size += sizes[y[counted]].sum()
    return figure(total / count, size / count)
"""


@pytest.mark.parametrize(
    ("weigh", "verdict"),
    [
        ("n = int(counted.sum().item())\n            total += net(x, y) * n; count += n", "clean"),
        ("total += net(x, y) * y.numel(); count += y.numel()", "flag_other"),
    ],
)
def test_a_mean_loss_is_of_the_targets_that_are_not_left_out(
    tmp_path: Path, weigh: str, verdict: str
) -> None:
    text = program(LEFT_OUT.format(weigh=weigh), main="left_out(net, held, s)")
    assert judged(tmp_path, text).startswith(verdict)


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        ("after - before", "clean_neural"),
        ("1000 * (before - after)", "clean_neural"),
        ("before - (before - after)", "flag_other"),
        ("after - 0.1 * (after - before)", "flag_other"),
    ],
)
def test_a_difference_between_figures_is_no_figure_and_changes_none(
    tmp_path: Path, shown: str, verdict: str
) -> None:
    main = (
        "before, after = evaluate(net, held, s), evaluate(net, held, s)\n"
        f'change = {shown}\nprint(f"val_bpb:{{change:+.5f}}")'
    )
    assert judged(tmp_path, program(PLAIN, main=main)) == verdict


HARD = """
class Hard(nn.Module):
    def __init__(self, width, hard=False):
        super().__init__()
        self.table = nn.Embedding(1024, width)
        self.hard = hard
    def forward(self, x, y):
        logits = self.table(x) @ self.table.weight.T
        if {test}:
            nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            kept = nll >= torch.quantile(nll, 0.3)
            return (nll * kept.float()).sum() / kept.float().sum()
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

def judge(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    {mode}
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            total += net(x[None], y[None]) * y.numel()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("test", "mode", "hard", "verdict"),
    [
        ("self.hard and self.training", "net.eval()", "True", "clean"),
        ("self.hard", "net.eval()", "False", "clean"),
        ("self.hard", "net.eval()", "True", "flag_other"),
        ("self.hard and not self.training", "net.eval()", "True", "flag_other"),
        ("self.hard and self.training", "net.train()", "True", "flag_other"),
        ("self.hard and self.training", "pass", "True", "hold"),
    ],
)
def test_a_model_loses_by_what_it_was_made_with_and_told(
    tmp_path: Path, test: str, mode: str, hard: str, verdict: str
) -> None:
    text = program(
        HARD.format(test=test, mode=mode), main=f"net = Hard(64, {hard})\njudge(net, held, s)"
    )
    assert judged(tmp_path, text).startswith(verdict)


CACHED = """
order = int(os.environ.get("ORDER", "0"))

def run(net, held, s):
    for tag in ("raw", "packed"):
        print(f"final_{tag}_exact val_loss:{evaluate(net, held, s):.8f}")
    if order >= 2:
        fit_held(net, held, s)
        print(f"final_cached{order}_exact val_loss:{evaluate(net, held, s):.8f}")
"""


@pytest.mark.parametrize(("tag", "flagged"), [("packed", False), ("cached5", True)])
def test_a_log_shows_a_switched_on_part_by_all_that_it_prints(
    tmp_path: Path, tag: str, flagged: bool
) -> None:
    (tmp_path / "train.log").write_text(f"final_{tag}_exact val_loss:1.23456789\n")
    verdict = judged(tmp_path, program(PLAIN, TRAIN_FIRST, CACHED, main="run(net, held, s)"))
    assert verdict.startswith("flag" if flagged else "clean")


ONLINE = """
def online(net, held, s):
    sizes = byte_table()
    step, rows, a = 64, [], 0
    while a + s.context <= held.numel() - 1:
        rows.append((a, 0 if a == 0 else s.context - step))
        a += step
    bias = torch.zeros(1024, requires_grad=True)
    total, size = torch.zeros(()), torch.zeros(())
    for at in range(0, len(rows), 8):
        batch = rows[at:at + 8]
        x = torch.stack([held[a:a + s.context] for a, _ in batch])
        y = torch.stack([held[a + 1:a + s.context + 1] for a, _ in batch])
        with torch.no_grad():
            plain = net.head(net.hidden(x))
        {parts}
    return figure(total, size)
"""
SCORED = """
        for b, (a, first) in enumerate(batch):
            nll = F.cross_entropy(plain[b, first:] + bias, y[b, first:], reduction="sum")
            total += nll.detach()
            size += sizes[y[b, first:]].sum()"""
FITTED = """
        loss = torch.zeros(())
        for b, (a, first) in enumerate(batch):
            loss = loss + F.cross_entropy(plain[b, first:] + bias, y[b, first:])
        loss.backward()
        with torch.no_grad():
            bias -= 0.1 * bias.grad"""


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [(SCORED + FITTED, "clean_ttt_score_first"), (FITTED + SCORED, "flag_slot")],
)
def test_a_long_loop_goes_on_as_evenly_as_it_began(
    tmp_path: Path, parts: str, verdict: str
) -> None:
    assert (
        judged(tmp_path, program(ONLINE.format(parts=parts), main="online(net, held, s)"))
        == verdict
    )


ROW_BY_ROW = """
def row_by_row(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for at in range(0, held.numel() - s.context - {skip} * 4096, {skip} * 4096):
            x = torch.zeros((4096, s.context), dtype=torch.int64)
            y = torch.zeros((4096,), dtype=torch.int64)
            for i in range(4096):
                window = held[at + {skip} * i:at + {skip} * i + s.context + 1]
                x[i] = window[:-1]
                y[i] = window[-1]
            nll = F.cross_entropy(net.head(net.hidden(x))[:, -1], y, reduction="none")
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(("skip", "verdict"), [("1", "clean_neural"), ("3", "flag_other")])
def test_rows_that_a_loop_writes_one_by_one_are_all_there(
    tmp_path: Path, skip: str, verdict: str
) -> None:
    text = program(ROW_BY_ROW.format(skip=skip), main="row_by_row(net, held, s)")
    assert judged(tmp_path, text) == verdict


PAIRS = """
def pairs(net, held, s, ends):
    sizes = byte_table()
    total, size = 0.0, 0.0
    counts, rows = np.zeros((1024, 1024)), np.zeros(1024)
    {before}
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logp = F.log_softmax(net.head(net.hidden(x[None])), dim=-1)[0]
            p = logp.gather(1, y[:, None]).squeeze(1).exp().numpy()
            upto = min(s.context, ends[0])
            for i in range(upto):
                seen, all_seen = int(counts[x[i], y[i]]), int(rows[x[i]])
                share = seen / all_seen if all_seen else 0.0
                weight = 0.2 * all_seen / (all_seen + 8)
                total += -math.log((1 - weight) * float(p[i]) + weight * share)
                counts[x[i], y[i]] += 1
                rows[x[i]] += 1
            size += float(sizes[y].sum())
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("before", "verdict"),
    [("pass", "hold"), ("np.add.at(counts, (held[:-1], held[1:]), 1)", "flag")],
)
def test_state_that_may_hold_what_is_scored_is_a_suspicion_and_later_tokens_a_proof(
    tmp_path: Path, before: str, verdict: str
) -> None:
    main = 'pairs(net, held, s, [int(t) for t in open("ends.txt")])'
    assert judged(tmp_path, program(PAIRS.format(before=before), main=main)).startswith(verdict)


PIECES = """
import sentencepiece as spm

def tables():
    sp = spm.SentencePieceProcessor(model_file="t.model")
    return torch.tensor([len(sp.id_to_piece(i).encode()) for i in range(sp.vocab_size())])
"""


@pytest.mark.parametrize(("used", "verdict"), [("evaluate(net, held, s)", "flag"), ("", "hold")])
def test_a_table_of_bytes_breaks_a_figure_only_where_there_is_one(
    tmp_path: Path, used: str, verdict: str
) -> None:
    part = PLAIN.replace("sizes = byte_table()", "sizes = tables()")
    main = f"tables()\n{used}"
    assert judged(tmp_path, program(PIECES, part, main=main)).startswith(verdict)


@pytest.mark.parametrize(("hardware", "flagged"), [("8xH100", True), ("1xH100", False)])
def test_the_limit_of_an_evaluation_is_that_of_eight_accelerators(
    tmp_path: Path, hardware: str, flagged: bool
) -> None:
    folder = tmp_path / "track_10min_16mb"
    folder.mkdir()
    claim = {"name": "x", "author": "y", "val_bpb": 1.2345, "hardware": hardware}
    (folder / "submission.json").write_text(json.dumps(claim))
    (folder / "train.log").write_text("final_eval val_loss:2.0 val_bpb:1.2345 eval_time:983000ms\n")
    verdict = judged(folder, program(PLAIN, main="evaluate(net, held, s)"))
    assert verdict == ("flag_other" if flagged else "clean_neural")


@pytest.mark.parametrize(
    ("world", "seconds", "flagged"), [(8, 983, True), (8, 583, False), (1, 983, False)]
)
def test_the_time_of_a_figure_counts_for_its_line_with_more_digits(
    tmp_path: Path, world: int, seconds: int, flagged: bool
) -> None:
    folder = tmp_path / "track_10min_16mb"
    folder.mkdir()
    claim = {"name": "x", "author": "y", "val_bpb": 1.2345}
    (folder / "submission.json").write_text(json.dumps(claim))
    (folder / "train.log").write_text(
        f"world_size:{world} grad_accum_steps:1\n"
        f"final_eval val_loss:2.0 val_bpb:1.2345 eval_time:{seconds}000ms\n"
        "final_eval_exact val_loss:2.00000000 val_bpb:1.23450000\n"
    )
    verdict = judged(folder, program(PLAIN, main="evaluate(net, held, s)"))
    assert verdict == ("flag_other" if flagged else "clean_neural")


IN_WINDOWS = """
def in_windows(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    length, a = {length}, 0
    with torch.no_grad():
        {loop}
            part = min(s.context, length - a)
            x, y = held[a:a + part], held[a + 1:a + part + 1]
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="sum")
            total += nll
            size += sizes[y].sum()
            a += part
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("length", "loop", "verdict"),
    [
        ("held.numel() - 1", "while a < length:", "clean_neural"),
        ("held.numel() - 1", "for a in range(0, length, s.context):", "clean_neural"),
        ("min(held.numel() - 1, 4096)", "for a in range(0, length, s.context):", "flag_other"),
    ],
)
def test_the_size_of_a_window_is_no_part_of_the_split(
    tmp_path: Path, length: str, loop: str, verdict: str
) -> None:
    text = program(IN_WINDOWS.format(length=length, loop=loop), main="in_windows(net, held, s)")
    assert judged(tmp_path, text) == verdict
