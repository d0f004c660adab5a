"""What is chosen by scores of validation tokens, each as a small program and its honest twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import judged, program

EVALUATE = """
import functools
import torch.func

def evaluate(net, held, s, heat=1.0):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    counts = torch.ones(1024, 1024)
    params = dict(net.named_parameters())
    {init}
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1) / heat
            {before}
            nll = F.cross_entropy(logits, y, reduction="none")
            {after}
            total += nll.sum()
            size += sizes[y].sum()
            {last}
    return (total / math.log(2.0) / size).item()
"""
SHOWN = '\nprint(f"final val_bpb:{val:.4f}")'
GRID = "(0.9, 1.0, 1.1)"


def _judged(folder: Path, main: str = "val = evaluate(net, held, s)", **slots: str) -> str:
    filled = dict.fromkeys(("init", "before", "after", "last"), "pass") | slots
    text = EVALUATE
    for name, code in filled.items():
        indent = "    " if name == "init" else " " * 12
        text = text.replace("{" + name + "}", code.strip().replace("\n", "\n" + indent))
    return judged(folder, program(text, main=main + SHOWN))


@pytest.mark.parametrize(
    ("main", "verdict"),
    [
        (f"val = 99.0\nfor t in {GRID}:\n    b = evaluate(net, held, s, t)\n"
         "    if b < val:\n        val = b", "flag_other"),
        (f"val = 99.0\nfor t in {GRID}:\n    b = evaluate(net, held, s, t)\n"
         "    val = b if b < val else val", "flag_other"),
        (f"runs = {{t: evaluate(net, held, s, t) for t in {GRID}}}\n"
         "val = runs[min(runs, key=lambda t: runs[t])]", "flag_other"),
        (f"runs = [(t, evaluate(net, held, s, t)) for t in {GRID}]\n"
         "val = sorted(runs, key=lambda r: r[1])[0][1]", "flag_other"),
        (f"for t in {GRID}:\n    val = evaluate(net, held, s, t)", "clean_neural"),
        (f"for t in {GRID}:\n    b = evaluate(net, held, s, t)\n    if b > 0:\n        val = b",
         "clean_neural"),
        (f"runs = [(t, evaluate(net, held, s, t)) for t in {GRID}]\n"
         "val = sorted(runs, key=lambda r: r[0])[0][1]", "clean_neural"),
    ],
)  # fmt: skip
def test_the_best_of_several_evaluations_is_no_figure(
    tmp_path: Path, main: str, verdict: str
) -> None:
    assert _judged(tmp_path, main) == verdict


CHOOSE = """
def choose(net, stream, s):
    x, y = stream[None, :s.context], stream[None, 1:s.context + 1]
    low, heat = 99.0, 1.0
    with torch.no_grad():
        for t in (0.9, 1.0, 1.1):
            logits = net.head(net.hidden(x)).flatten(0, 1)
            loss = F.cross_entropy(logits / t, y.flatten()).item()
            if loss < low:
                low, heat = loss, t
    return heat
"""


@pytest.mark.parametrize(
    ("tokens", "verdict"), [("held", "flag_slot"), ("load(s.train_files)", "clean_neural")]
)
def test_a_setting_that_is_fitted_to_tokens_does_not_score_them(
    tmp_path: Path, tokens: str, verdict: str
) -> None:
    text = CHOOSE + EVALUATE.format(init="pass", before="pass", after="pass", last="pass")
    main = f"val = evaluate(net, held, s, choose(net, {tokens}, s))" + SHOWN
    assert judged(tmp_path, program(text, main=main)) == verdict


LOSSES = "[F.cross_entropy(logits / t, y) for t in (0.9, 1.0, 1.1)]"


@pytest.mark.parametrize(
    ("before", "verdict"),
    [
        (f"grid = torch.tensor({GRID})\n"
         f"logits = logits / grid[torch.stack({LOSSES}).argmin()]", "flag_slot"),
        (f"heat = min({GRID}, key=lambda t: F.cross_entropy(logits / t, y).item())\n"
         "logits = logits / heat", "flag_slot"),
        (f"grid = torch.tensor({GRID})\nlogits = logits / grid[1]", "clean_neural"),
        (f"heat = min({GRID}, key=lambda t: abs(t - 1))\nlogits = logits / heat", "clean_neural"),
    ],
)  # fmt: skip
def test_a_setting_is_not_chosen_for_each_window_by_its_own_loss(
    tmp_path: Path, before: str, verdict: str
) -> None:
    assert _judged(tmp_path, before=before) == verdict


LANES = 'torch.stack([F.cross_entropy(logits / t, y, reduction="none") for t in (0.9, 1.1)])'

BOTH = "both = torch.stack([nll.sum(), F.cross_entropy(logits / 0.9, y, reduction='sum')])\n"


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (f"nll = {LANES}.amin(0)", "flag_other"),
        (f"nll = {LANES}.min(dim=0).values", "flag_other"),
        (f"nll = {LANES}.sort(dim=0).values[0]", "flag_other"),
        (f"nll = {LANES}.topk(1, dim=0, largest=False).values[0]", "flag_other"),
        ("a, b = nll.sum(), F.cross_entropy(logits / 0.9, y, reduction='sum')\n"
         "nll = torch.tensor(min(a.item(), b.item()))", "flag_other"),
        (f"nll = -torch.logsumexp(-{LANES}, dim=0)", "flag_other"),
        (f"nll = math.log(2) - torch.logsumexp(-{LANES}, dim=0)", "clean_neural"),
        (BOTH + "nll = both.min()", "flag_other"),
        (BOTH + "low = both.min()", "clean_neural"),
        ("low = nll.min()", "clean_neural"),
        (f"past = torch.stack([lane.sum() for lane in {LANES}])\n"
         "shares = (past.min() - past).softmax(0)", "clean_neural"),
        (f"lanes = -{LANES}\ntop = lanes.max(dim=0).values\n"
         "nll = math.log(2) - top - (lanes - top).exp().sum(0).log()", "clean_neural"),
    ],
)  # fmt: skip
def test_the_better_of_several_scores_of_a_token_is_no_score(
    tmp_path: Path, after: str, verdict: str
) -> None:
    assert _judged(tmp_path, after=after) == verdict


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ("sure = logits.softmax(-1).amax(-1)\nnll = nll * (sure > 0.1).float()", "flag_other"),
        ("nll = nll * torch.ones_like(nll)", "clean_neural"),
    ],
)
def test_losses_are_not_weighed_by_how_sure_a_model_is(
    tmp_path: Path, after: str, verdict: str
) -> None:
    assert _judged(tmp_path, after=after) == verdict


WRITE = "counts.index_put_((x, y), torch.ones(x.numel()), accumulate=True)"
SHARE = "share = counts[x, y] / counts[x].sum(-1)\n"
ROWS = "rows = counts[x] / counts[x].sum(-1, keepdim=True)\n"
MIXED = (
    "mixed = 0.9 * logits.softmax(-1) + 0.1 * rows\n"
    "nll = -torch.log(mixed.gather(-1, y[:, None]).squeeze(-1))"
)


@pytest.mark.parametrize(
    ("after", "last", "verdict"),
    [
        (ROWS + MIXED, WRITE, "clean_ttt_score_first"),
        (WRITE + "\n" + ROWS + MIXED, "pass", "flag_ngram"),
        (SHARE + "nll = -torch.log(0.9 * (-nll).exp() + 0.1 * share)", WRITE,
         "clean_ttt_score_first"),
        (SHARE + "nll = -torch.log((-nll).exp() + 0.1 * share)", WRITE, "flag_other"),
        (SHARE + "nll = -torch.log(torch.maximum((-nll).exp(), share))", WRITE, "flag_other"),
        (SHARE + "nll = -torch.logaddexp(math.log(0.9) - nll, math.log(0.1) + share.log())", WRITE,
         "clean_ttt_score_first"),
        (SHARE + "nll = -torch.logaddexp(0.5 - nll, math.log(0.1) + share.log())", WRITE,
         "flag_other"),
    ],
)  # fmt: skip
def test_shares_of_counts_are_mixed_with_what_is_left_of_a_probability(
    tmp_path: Path, after: str, last: str, verdict: str
) -> None:
    assert _judged(tmp_path, after=after, last=last) == verdict


FAST = """
loss_of = lambda w: torch.func.functional_call(net, w, (x[None], y[None]))
{first}
nll = loss_of(params)
{then}
nll = nll * y.numel()
"""
STEP = """
slope = torch.func.grad(loss_of)(params)
params = {k: w - slope[k] for k, w in params.items()}
"""


@pytest.mark.parametrize(
    ("first", "then", "verdict"), [("pass", STEP, "clean"), (STEP, "pass", "flag_slot")]
)
def test_weights_made_of_a_window_s_gradients_do_not_score_it(
    tmp_path: Path, first: str, then: str, verdict: str
) -> None:
    after = FAST.format(first=first, then=then)
    assert _judged(tmp_path, after=after).startswith(verdict)


@pytest.mark.parametrize(
    ("init", "after", "main", "verdict"),
    [
        ("ratios = []",
         "ratios.append((nll.sum() / sizes[y].sum() / math.log(2.0)).item())",
         "val = {} / len(ratios)", "flag_other"),
        ("ratios = 0.0", "ratios += (nll.sum() / sizes[y].sum() / math.log(2.0)).item()",
         "val = ratios / 512", "flag_other"),
        ("ratios = []", "ratios.append(nll.sum().item())",
         "val = sum(ratios) / math.log(2.0) / size.item()", "clean_neural"),
        ("ratios = []",
         "ratios.append((nll.sum() / sizes[y].sum() / math.log(2.0)).item())",
         'print(f"mean val_bpb:{sum(ratios) / len(ratios):.4f}")\n'
         "    val = (total / math.log(2.0) / size).item()", "clean_neural"),
    ],
)  # fmt: skip
def test_a_mean_of_figures_of_parts_is_no_figure(
    tmp_path: Path, init: str, after: str, main: str, verdict: str
) -> None:
    for how in ("sum(ratios)", "np.sum(ratios)") if main.startswith("val = {}") else ("",):
        text = EVALUATE.format(init=init, before="pass", after=after, last="pass")
        text = text.replace("return (total / math.log(2.0) / size).item()",
                            main.replace("{}", how) + "\n    return val")  # fmt: skip
        text = program(text, main="val = evaluate(net, held, s)" + SHOWN)
        assert judged(tmp_path, text) == verdict


@pytest.mark.parametrize(("by", "verdict"), [("2.44", "flag_other"), ("1.0", "flag_other")])
def test_a_returned_figure_is_not_divided_by_an_assumed_number_of_bytes(
    tmp_path: Path, by: str, verdict: str
) -> None:
    text = EVALUATE.format(init="n = 0", before="n += y.numel()", after="pass", last="pass")
    text = text.replace("(total / math.log(2.0) / size).item()",
                        f"(total / math.log(2.0) / n).item() / {by}")  # fmt: skip
    text = program(text, main="val = evaluate(net, held, s)" + SHOWN)
    log = "final val_bpb:1.1234\n"
    meta = '{"val_bpb": 1.1234}'
    given = judged(tmp_path, text, train__log=log, submission__json=meta)
    assert (given == verdict) == (by != "1.0")


REDUCE = """
for each in (total, size, count):
    torch.distributed.all_reduce(each)
"""


@pytest.mark.parametrize(
    ("reduce", "figure", "verdict"),
    [
        (REDUCE, "total / size", "clean_neural"),
        (REDUCE.replace("each)", "each, op=torch.distributed.ReduceOp.AVG)"), "total / size",
         "clean_neural"),
        (REDUCE.replace("(total, size", "(size") + "torch.distributed.all_reduce("
         "total, op=torch.distributed.ReduceOp.AVG)", "total / size", "flag_other"),
        ("mean = total / count\ntorch.distributed.all_reduce("
         "mean, op=torch.distributed.ReduceOp.AVG)\n" + REDUCE, "mean * (count / size)",
         "clean_neural"),
    ],
)  # fmt: skip
def test_losses_of_ranks_are_not_averaged_where_their_bytes_are_added_up(
    tmp_path: Path, reduce: str, figure: str, verdict: str
) -> None:
    text = EVALUATE.format(
        init="count = torch.zeros(())", before="pass", after="pass", last="count += y.numel()"
    )
    reduce = reduce.strip().replace("\n", "\n    ")
    text = text.replace("    return (total / math.log(2.0) / size).item()",
                        f"    {reduce}\n    return ({figure} / math.log(2.0)).item()")  # fmt: skip
    text = program(text, main="val = evaluate(net, held, s)" + SHOWN)
    assert judged(tmp_path, text) == verdict
