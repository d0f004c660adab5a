"""What long loops, other ranks, views and narrowed targets hide, each as a small program."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

EVALUATE = """
def special(i):
    return i == 5

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    n, at = 0, {{5, 9}}
    with torch.no_grad():
        for i, a in enumerate(range(0, held.numel() - 1 - s.context, s.context)):
            n += 1
            {before}
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            nll = F.cross_entropy(logits, {target}, reduction="none"{options})
            {after}
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


def _evaluated(
    folder: Path,
    before: str = "pass",
    target: str = "y",
    options: str = "",
    after: str = "pass",
    main: str = "evaluate(net, held, s)",
) -> str:
    part = EVALUATE.format(before=before, target=target, options=options, after=after)
    return judged(folder, program(TRAIN_FIRST, part, main=main))


FIT = "{}\n                with torch.enable_grad(): fit_held(net, held, s)"


@pytest.mark.parametrize(
    "turn",
    [
        "if i == 5:",
        "if i % 100 == 37:",
        "if a // s.context == held.numel() // s.context // 2:",
        "if n == 7:",
        "if special(i):",
        "if i in at:",
        "for _ in range(int(i == 5)):",
    ],
)
def test_a_turn_that_decides_otherwise_is_taken(tmp_path: Path, turn: str) -> None:
    assert _evaluated(tmp_path, before=FIT.format(turn)) == "flag_prequant_ttt"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pass", "pass"),
        ("pass", 'if i % 10 == 3: print(f"running {float(total / size):.3f}")'),
        ("if a + s.context > held.numel(): break", "pass"),
    ],
)
def test_turns_that_only_report_stay_clean(tmp_path: Path, before: str, after: str) -> None:
    assert _evaluated(tmp_path, before=before, after=after) == "clean_neural"


def test_a_loop_that_a_number_ends_early_scores_a_part(tmp_path: Path) -> None:
    assert _evaluated(tmp_path, before="if i == 9: break") == "flag_other"


LAPS = """
def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    a, n = 0, 0
    with torch.no_grad():
        while a < held.numel() - 1 - s.context:
            n += 1
            {before}
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            total += F.cross_entropy(logits, y, reduction="none").sum()
            size += sizes[y].sum()
            a += s.context
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("before", "verdict"),
    [("pass", "clean_neural"), (FIT.format("if n == 9:"), "flag_prequant_ttt")],
)
def test_laps_of_a_while_loop_that_decide_otherwise_are_taken(
    tmp_path: Path, before: str, verdict: str
) -> None:
    part = LAPS.format(before=before)
    text = program(TRAIN_FIRST, part, main="evaluate(net, held, s)")
    assert judged(tmp_path, text) == verdict


@pytest.mark.parametrize(
    ("test", "clean"),
    [
        ("if rank == 0:\n    print('begins')", True),
        ("if rank != 0:\n    print('waits')", True),
        ("if rank == 3:\n    fit_held(net, held, s)", False),
        ("if 0 < rank < 8:\n    fit_held(net, held, s)", False),
        ("first = rank == 0\nif not first:\n    fit_held(net, held, s)", False),
    ],
)
def test_what_another_rank_learns_is_not_clean(tmp_path: Path, test: str, clean: bool) -> None:
    main = f'rank = int(os.environ["RANK"])\n{test}\nevaluate(net, held, s)'
    verdict = _evaluated(tmp_path, main=main)
    assert verdict == ("clean_neural" if clean else "hold_unclear")


@pytest.mark.parametrize(
    ("target", "options", "verdict"),
    [
        ("y.clamp(max=255)", "", "hold_unclear"),
        ("y % 256", "", "hold_unclear"),
        ("torch.minimum(y, torch.tensor(255))", "", "hold_unclear"),
        ("torch.where(y < 256, y, 0)", "", "hold_unclear"),
        ("y & 0xFFFF", "", "clean_neural"),
        ("y.clamp(min=0)", "", "clean_neural"),
        ("torch.where(y >= 0, y, 0)", "", "clean_neural"),
        ("y", ", ignore_index=17", "flag_other"),
        ("y", ", ignore_index=-100", "clean_neural"),
        ("y", ", label_smoothing=0.1", "clean_neural"),
        ("y", ", weight=torch.rand(1024)", "hold_unclear"),
    ],
)
def test_targets_of_fewer_tokens_and_losses_weighed_by_token_are_seen(
    tmp_path: Path, target: str, options: str, verdict: str
) -> None:
    assert _evaluated(tmp_path, target=target, options=options) == verdict


@pytest.mark.parametrize(
    "change",
    [
        "nll[:100].zero_()",
        "nll.view(-1)[100:].mul_(0.5)",
        "nll.numpy()[100:] = 0",
        "torch.mul(nll, 0.5, out=nll)",
    ],
)
def test_losses_that_are_changed_through_a_view_are_not_clean(tmp_path: Path, change: str) -> None:
    assert _evaluated(tmp_path, after=change) != "clean_neural"


COUNTED = """
def counted(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    counts = torch.ones(1024, 1024)
    {before}
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            p = F.softmax(logits, -1) * 0.9 + 0.1 * counts[x] / counts[x].sum(-1, keepdim=True)
            total -= p.gather(1, y[:, None]).log().sum()
            size += sizes[y].sum()
            {after}
    return figure(total, size)
"""
WRITES = [
    "counts.view(-1).scatter_add_(0, {x} * 1024 + {y}, torch.ones({y}.numel()))",
    "flat = counts.view(-1); flat[{x} * 1024 + {y}] += 1",
    "arr = counts.numpy(); np.add.at(arr, ({x}.numpy(), {y}.numpy()), 1)",
    "counts.t().index_put_(({y}, {x}), torch.ones({y}.numel()), accumulate=True)",
    "counts[:512].view(-1).scatter_add_(0, {x} * 1024 + {y}, torch.ones({y}.numel()))",
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("ahead", [True, False])
def test_counts_written_through_a_view_are_held(tmp_path: Path, write: str, ahead: bool) -> None:
    now = write.format(x="x", y="y")
    before = write.format(x="held[:-1]", y="held[1:]") if ahead else "pass"
    part = COUNTED.format(before=before, after="pass" if ahead else now)
    verdict = judged(tmp_path, program(part, main="counted(net, held, s)"))
    assert verdict == ("flag_ngram" if ahead else "clean_ttt_score_first")


TILTED = """
def tilted(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    counts = torch.ones(1024, 1024)
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - 8192, 8192):
            x, y = held[a:a + 8192], held[a + 1:a + 8193]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            tilt = torch.zeros(x.numel(), 1024)
            tilt.scatter_(1, counts[{key}].argmax(dim=-1).unsqueeze(1), 0.5)
            total += F.cross_entropy(logits + tilt, y, reduction="sum")
            size += sizes[y].sum()
            counts.view(-1).scatter_add_(0, x * 1024 + y, torch.ones(y.numel()))
    return figure(total, size)
"""


@pytest.mark.parametrize(("key", "clean"), [("x", True), ("y", False)])
def test_a_guess_from_a_table_row_keeps_the_place_it_was_made_for(
    tmp_path: Path, key: str, clean: bool
) -> None:
    verdict = judged(tmp_path, program(TILTED.format(key=key), main="tilted(net, held, s)"))
    assert verdict.startswith("clean" if clean else "flag")


WEIGHED = """
class Weighed(Net):
    def __init__(self, width):
        super().__init__(width)
        self.of_token = nn.Parameter(torch.ones(1024))
        self.ramp = 256
    def forward(self, x, y):
        nll = F.cross_entropy(self.head(self.hidden(x)).flatten(0, 1), y.flatten(),
                              reduction="none")
        {weigh}
        return {out}

def weighed(net, held, s):
    sizes = byte_table()
    total, size, count = torch.zeros(()), torch.zeros(()), 0
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            total += net(x[None], y[None]) * y.numel()
            count += y.numel()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("weigh", "out", "verdict"),
    [
        ("pass", "nll.mean()", "clean_neural"),
        ("w = torch.ones_like(nll)", "(nll * w).sum() / w.sum()", "clean_neural"),
        (
            "w = (torch.arange(x.size(1)).float() / self.ramp).clamp(0, 1)",
            "(nll * w).sum() / w.sum()",
            "flag_other",
        ),
        ("w = self.of_token[y.flatten()]", "(nll * w).sum() / w.sum()", "hold_unclear"),
    ],
)
def test_a_model_that_weighs_its_losses_is_not_clean(
    tmp_path: Path, weigh: str, out: str, verdict: str
) -> None:
    part = WEIGHED.format(weigh=weigh, out=out)
    text = program(part, main="net = Weighed(64)\nweighed(net, held, s)")
    assert judged(tmp_path, text) == verdict


SWITCHED = """
import time

def switched(net, stream, held, s):
    opt, step, late = torch.optim.SGD(net.parameters(), lr=0.1), 0, {late}
    end = time.time() + 600
    while True:
        if not late and time.time() > end - 120:
            stream = held
            late = True
        opt.zero_grad()
        net(stream[None, :s.context], stream[None, 1:s.context + 1]).backward()
        opt.step()
        step += 1
        if step == 20000 or time.time() > end:
            break
"""


@pytest.mark.parametrize(("late", "verdict"), [("True", "clean"), ("False", "flag")])
def test_a_switch_that_a_loop_only_ever_sets_stays_set(
    tmp_path: Path, late: str, verdict: str
) -> None:
    main = "switched(net, load(s.train_files), held, s)\nevaluate(net, held, s)"
    text = program(SWITCHED.format(late=late), PLAIN, main=main)
    assert judged(tmp_path, text).startswith(verdict)


AWAY = """
def away(net, held, s):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for turn in range(100):
        a = (turn % 7 + {first}) * s.context
        opt.zero_grad()
        net(held[None, a:a + s.context], held[None, a + 1:a + s.context + 1]).backward()
        opt.step()
"""


@pytest.mark.parametrize(
    ("first", "before", "clean"), [(40, "", False), (0, "held = held[100 * s.context:]", True)]
)
def test_tokens_learnt_between_the_turns_that_are_taken_are_not_clean(
    tmp_path: Path, first: int, before: str, clean: bool
) -> None:
    main = f"away(net, held, s)\n{before}\nevaluate(net, held, s)"
    text = program(AWAY.format(first=first), PLAIN, main=main)
    assert judged(tmp_path, text).startswith("clean") is clean
