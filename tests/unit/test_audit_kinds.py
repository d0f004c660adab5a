"""Kinds of evaluation that were once misread, each as a small program, flagged and clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

WINDOWS = """
def windows(net, held, s, stride=None):
    sizes = byte_table()
    step = stride if stride is not None else 128
    total, size = torch.zeros(()), torch.zeros(())
    {save}
    for a in range(0, held.numel() - 1 - s.context, step):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        first = 0 if a == 0 else s.context - step
        if first > 0:
            opt = torch.optim.Adam(net.parameters(), lr=0.01)
            for _ in range(2):
                opt.zero_grad()
                net(x[None, :{fit}], y[None, :{fit}]).backward()
                opt.step()
        with torch.no_grad():
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
        total += nll[first:].sum()
        size += sizes[y[first:]].sum()
        {restore}
    return figure(total, size)
"""
BY_STATE = (
    "kept = {k: v.detach().clone() for k, v in net.state_dict().items()}",
    "net.load_state_dict(kept)",
)
BY_LIST = (
    "kept = [p.data.clone() for p in net.parameters()]",
    "for p, k in zip(net.parameters(), kept): p.data.copy_(k)",
)
LATE = 'for step in range(3):\n    last = os.path.exists("stop")\n    '


@pytest.mark.parametrize("kept", [BY_STATE, BY_LIST])
@pytest.mark.parametrize(("fit", "flagged"), [("first", False), ("s.context", True)])
def test_a_call_is_followed_for_each_value_that_its_argument_may_have(
    tmp_path: Path, kept: tuple[str, str], fit: str, flagged: bool
) -> None:
    part = WINDOWS.format(save=kept[0], restore=kept[1], fit=fit)
    main = LATE + "windows(net, held, s, None if last else s.context)"
    verdict = judged(tmp_path, program(part, main=main))
    assert verdict.startswith("flag" if flagged else "clean_ttt")


SPACED = """
def tables():
    base = np.zeros(1024, dtype=np.int16)
    lead = np.zeros(1024, dtype={dtype})
    edge = np.ones(1024, dtype={dtype})
    sp = spm.SentencePieceProcessor(model_file="t.model")
    for i in range(sp.vocab_size()):
        edge[i] = False
        if sp.is_byte(i):
            base[i] = 1
            continue
        piece = sp.id_to_piece(i)
        if piece.startswith({mark}):
            lead[i] = True
            piece = piece[1:]
        base[i] = len(piece.encode("utf-8"))
    return torch.from_numpy(base), torch.from_numpy(lead), torch.from_numpy(edge)

def spaced(net, held, s):
    base, lead, edge = tables()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            total += F.cross_entropy(logits.flatten(0, 1), y, reduction="sum")
            {count}
    return figure(total, size)
"""
MARK = '"\\u2581"'
COUNTS = [
    ("size += base[y].sum().item() + lead[y].sum().item()", True),
    ("size += base[y].sum()\n            size += (lead[y] & ~edge[x]).sum()", True),
    (
        "b = base[y].float()\n            b += lead[y].float() * (1 - edge[x].float())\n"
        "            size += b.sum()",
        True,
    ),
    ("size += (lead[y] & ~edge[x]).sum() + base[y].sum()", True),
    ("size += base[y].sum() + 2 * base[y].sum()", False),
    ("size += base[y].sum() + 3 * lead[y].sum()", False),
    ("size += base[y].sum() + lead[y].sum()\n            size += lead[y].sum()", False),
    ("size += torch.where(lead[y] & ~edge[x], base[y] + 1, base[y]).sum()", True),
    (
        "b = base[y].int()\n            b.add_((lead[y] & ~edge[x]).int())\n"
        "            size += b.sum()",
        True,
    ),
    ("size += torch.add(base[y], (lead[y] & ~edge[x]).int()).sum()", True),
    ("size += (base[y] + lead[y].int() - (lead[y] & edge[x]).int()).sum()", True),
    ("size += (base[y] * (~edge[y]).float()).sum()", True),
    ("size += base[y].sum() + lead[y].sum() + edge[y].sum()", False),
    ("size += (base[y] + 1).sum()", False),
]


@pytest.mark.parametrize(
    "fill", ["lead[:] = True", "lead.fill(True)", "lead = ~lead", "lead = lead == 0"]
)
def test_flags_that_all_tokens_have_are_bytes_that_nobody_wrote(tmp_path: Path, fill: str) -> None:
    part = SPACED.format(count=COUNTS[0][0], dtype="bool", mark=MARK)
    part = part.replace("    sp = spm", f"    {fill}\n    sp = spm").replace(
        "lead[i] = True", "pass"
    )
    verdict = judged(
        tmp_path, "import sentencepiece as spm\n" + program(part, main="spaced(net, held, s)")
    )
    assert not verdict.startswith("clean")


@pytest.mark.parametrize(("count", "plain"), COUNTS)
@pytest.mark.parametrize("dtype", ["np.bool_", "bool", "np.int16"])
def test_spaces_may_be_added_to_bytes_in_one_place_and_only_once(
    tmp_path: Path, count: str, plain: bool, dtype: str
) -> None:
    part = SPACED.format(count=count, dtype=dtype, mark=MARK)
    verdict = judged(
        tmp_path, "import sentencepiece as spm\n" + program(part, main="spaced(net, held, s)")
    )
    assert verdict == "clean_neural" if plain else not verdict.startswith("clean")


@pytest.mark.parametrize(
    ("mark", "flagged"),
    [(MARK, False), ("chr(0x2581)", False), ("SPACE", False), ('"\\x18"', True), ('" "', True)],
)
def test_pieces_are_counted_without_the_marker_of_their_space(
    tmp_path: Path, mark: str, flagged: bool
) -> None:
    part = SPACED.format(count=COUNTS[1][0], dtype="np.bool_", mark=mark)
    head = f"import sentencepiece as spm\nSPACE = {MARK}\n"
    verdict = judged(tmp_path, head + program(part, main="spaced(net, held, s)"))
    assert verdict == ("flag_other" if flagged else "clean_neural")


LONE = "if sp.is_byte(i):"


@pytest.mark.parametrize(
    ("told", "flagged"),
    [
        (LONE, False),
        ('if sp.id_to_piece(i).startswith("<0x"):', False),
        ("if lone(sp, i):", False),
        ("if sp.is_control(i):", True),
    ],
)
def test_pieces_of_one_byte_are_counted_as_one(tmp_path: Path, told: str, flagged: bool) -> None:
    part = SPACED.format(count=COUNTS[1][0], dtype="np.bool_", mark=MARK).replace(LONE, told)
    head = "import sentencepiece as spm\ndef lone(sp, i):\n    return sp.IsByte(i)\n"
    verdict = judged(tmp_path, head + program(part, main="spaced(net, held, s)"))
    assert verdict == ("flag_other" if flagged else "clean_neural")


FILLED = """
def batches(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    rows = 4096
    with torch.no_grad():
        starts = list(range(0, held.numel() - 1 - s.context, 256))
        for b in range(0, len(starts), rows):
            part = starts[b:b + rows]
            x = torch.zeros(rows, s.context, dtype=torch.int64)
            y = torch.zeros(rows, s.context, dtype=torch.int64)
            for i, a in enumerate(part):
                x[i], y[i] = held[a:a + s.context], held[a + 1:a + s.context + 1]
            if len(part) < rows:
                x[len(part):], y[len(part):] = x[len(part) - 1], y[len(part) - 1]
            nll = F.cross_entropy(net.head(net.hidden(x)).flatten(0, 1), y.flatten(),
                reduction="none").reshape(rows, s.context)
            for i, a in enumerate({which}):
                first = 0 if a == 0 else s.context - 256
                total += nll[i, first:].sum(){scale}
                size += sizes[y[i, first:]].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(("scale", "verdict"), [("", "clean_neural"), (" * 0.9", "flag_other")])
def test_rows_that_fill_up_a_last_large_batch_are_seen_to_be_left_out(
    tmp_path: Path, scale: str, verdict: str
) -> None:
    part = FILLED.format(which="part", scale=scale)
    assert judged(tmp_path, program(part, main="batches(net, held, s)")) == verdict


SKIPPED = 'if os.environ.get("SKIP", "0") == "0":\n    {then}evaluate(net, held, s)'


@pytest.mark.parametrize(
    ("then", "verdict"), [("", "clean_neural"), ("fit_held(net, held, s); ", "flag_prequant_ttt")]
)
def test_where_the_documented_run_only_trains_the_defaults_are_followed(
    tmp_path: Path, then: str, verdict: str
) -> None:
    (tmp_path / "run.sh").write_text("SKIP=1 torchrun --nproc_per_node=8 train_gpt.py\n")
    text = program(PLAIN, TRAIN_FIRST, main=SKIPPED.format(then=then))
    assert judged(tmp_path, text, README__md="# Run\n\n```bash\nbash run.sh\n```\n") == verdict


@pytest.mark.parametrize(
    ("readme", "verdict"),
    [
        ("# Run\n\nOn plain text.\n\n## Next steps\n\n- a casefold vocabulary\n", "clean_neural"),
        ("# Run\n\nOn plain text.\n\n- casefold vocabulary (not used)\n", "clean_neural"),
        ("# Next: casefold\n\nTrained on casefolded text.\n", "hold_unclear"),
        ("# Run\n\n## Next\n\nMore.\n\n## Data\n\nCase-folded text.\n", "hold_unclear"),
    ],
)
def test_a_readme_speaks_of_folded_text_only_where_it_speaks_of_its_own_run(
    tmp_path: Path, readme: str, verdict: str
) -> None:
    text = program(PLAIN, main="evaluate(net, held, s)")
    assert judged(tmp_path, text, README__md=readme) == verdict


SEARCH = """
def loss_of(net, stream, s):
    with torch.no_grad():
        return net(stream[None, :s.context], stream[None, 1:s.context + 1]).item()

def in_place(net, stream, s):
    best = loss_of(net, stream, s)
    for turn in range(100):
        for p in net.parameters():
            old = p.data.clone()
            p.data.add_(0.01 * torch.randn_like(p))
            now = loss_of(net, stream, s)
            if now < best:
                best = now
            else:
                p.data.copy_(old)

def by_step(net, stream, s):
    best = loss_of(net, stream, s)
    for p in net.parameters():
        for delta in (0.01, -0.01):
            p.data.add_(delta)
            now = loss_of(net, stream, s)
            if now < best:
                best = now
            else:
                p.data.sub_(delta)

def by_candidates(net, stream, s):
    best, kept = loss_of(net, stream, s), net.state_dict()
    for turn in range(100):
        trial = {k: v + 0.01 * torch.randn_like(v) for k, v in kept.items()}
        net.load_state_dict(trial)
        now = loss_of(net, stream, s)
        if now < best:
            best, kept = now, trial
    net.load_state_dict(kept)

def by_choice(net, stream, s):
    best, kept = loss_of(net, stream, s), net.state_dict()
    for turn in range(100):
        trial = {k: v + 0.01 * torch.randn_like(v) for k, v in kept.items()}
        net.load_state_dict(trial)
        now = loss_of(net, stream, s)
        kept = trial if now < best else kept
        best = min(now, best)
    net.load_state_dict(kept)

def by_blend(net, stream, s):
    best = loss_of(net, stream, s)
    for turn in range(100):
        for p in net.parameters():
            old, new = p.data.clone(), p.data + 0.01 * torch.randn_like(p)
            p.data.copy_(new)
            better = float(loss_of(net, stream, s) < best)
            p.data.copy_(better * new + (1 - better) * old)

def early_stop(net, stream, s):
    best, kept = 99.0, None
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    fresh = load(s.train_files)
    for turn in range(100):
        opt.zero_grad()
        net(fresh[None, :s.context], fresh[None, 1:s.context + 1]).backward()
        opt.step()
        now = loss_of(net, stream, s)
        if now < best:
            best, kept = now, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)

def resampled(net, stream, s):
    low, notes = 99.0, {}
    for turn in range(100):
        at = torch.randint(0, 100, (1,))
        now = loss_of(net, stream, s)
        if now < low:
            low, notes["turn"] = now, turn

def watched(net, stream, s):
    best, runs = torch.tensor(99.0), {}
    for name in ("one", "two"):
        now = loss_of(net, stream, s)
        if now < best:
            best.copy_(torch.tensor(now))
            runs[name] = now

def averaged(net, stream, s):
    plain = loss_of(net, stream, s)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(torch.load("averaged.pt"))
    if loss_of(net, stream, s) > plain:
        net.load_state_dict(before)
"""


@pytest.mark.parametrize(
    ("search", "flagged"),
    [
        ("in_place", True),
        ("by_step", True),
        ("by_candidates", True),
        ("by_choice", True),
        ("by_blend", True),
        ("early_stop", False),
        ("averaged", False),
        ("resampled", False),
        ("watched", False),
    ],
)
@pytest.mark.parametrize("tokens", ["held", "load(s.train_files)"])
def test_a_search_by_trial_keeps_what_validation_tokens_choose(
    tmp_path: Path, search: str, flagged: bool, tokens: str
) -> None:
    main = f"{search}(net, {tokens}, s)\nevaluate(net, held, s)"
    verdict = judged(tmp_path, program(SEARCH, PLAIN, main=main))
    chosen = flagged and tokens == "held"
    assert verdict == ("flag_prequant_ttt" if chosen else "clean_neural")


GATHERED = """
import torch.distributed as dist

def gathered(net, held, s):
    mine = evaluate(net, held, s)
    everyone = [None] * 8
    dist.all_gather_object(everyone, ("mine", mine))
    return everyone
"""
SMALLEST = [
    ("a, b = evaluate(net, held, s), evaluate(net, held, s)\nval = min(a, b)", True),
    ("a = [evaluate(net, held, s) for _ in range(2)]\nval = min(a)", True),
    (
        "a = [('x', evaluate(net, held, s)), ('y', evaluate(net, held, s))]\n"
        "_, val = min(a, key=lambda r: r[1])",
        True,
    ),
    ("val = min(gathered(net, held, s), key=lambda r: r[1])[1]", True),
    ("a, b = evaluate(net, held, s), evaluate(net, held, s)\nval = (a + b) / 2", False),
    ("val = min(evaluate(net, held, s), float('inf'))", False),
    (
        "val = evaluate(net, held, s)\nlow = min(val, evaluate(net, held, s))\n"
        'print(f"best_val_bpb:{low:.4f}")',
        False,
    ),
]


@pytest.mark.parametrize(("how", "flagged"), SMALLEST)
def test_the_smallest_of_several_figures_is_no_figure_of_a_run(
    tmp_path: Path, how: str, flagged: bool
) -> None:
    main = how + '\nprint(f"final val_bpb:{val:.4f}")'
    verdict = judged(tmp_path, program(PLAIN, GATHERED, main=main))
    assert verdict == ("flag_other" if flagged else "clean_neural")


@pytest.mark.parametrize(
    ("hardware", "flagged"), [("1xA100-40GB", False), ("8xH100", True), ("", True)]
)
def test_a_run_on_one_accelerator_is_followed_as_one_process(
    tmp_path: Path, hardware: str, flagged: bool
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps({"name": "x", "hardware": hardware}))
    main = (
        'world = int(os.environ.get("WORLD_SIZE", "1"))\n'
        "if world > 1:\n    fit_held(net, held, s)\nevaluate(net, held, s)"
    )
    verdict = judged(tmp_path, program(PLAIN, TRAIN_FIRST, main=main))
    assert verdict == ("flag_prequant_ttt" if flagged else "clean_neural")


SAMPLED = """
def sampled(net, batches, s):
    total, count = 0.0, 0
    with torch.no_grad():
        for _ in range(10):
            x, y = next(batches)
            logits = net.head(net.hidden(x))
            total += F.cross_entropy(logits.flatten(0, 1), y.flatten()).item() * y.numel()
            count += y.numel()
    return total / count / math.log(2.0)
"""


@pytest.mark.parametrize(
    ("claim", "verdict"), [(1.08765, "clean_neural"), (1.23456, "hold_unclear")]
)
def test_a_sample_of_unknown_tokens_may_be_scored_beside_the_claimed_figure(
    tmp_path: Path, claim: float, verdict: str
) -> None:
    (tmp_path / "submission.json").write_text(json.dumps({"name": "x", "val_bpb": claim}))
    (tmp_path / "train.log").write_text("sample val_bpb:1.23456\nwhole figure:1.08765\n")
    main = (
        'batches = iter(torch.utils.data.DataLoader(os.environ["SAMPLES"]))\n'
        "guess = sampled(net, batches, s)\n"
        'print(f"sample val_bpb:{guess:.5f}")\n'
        "whole = evaluate(net, held, s)\n"
        'print(f"whole figure:{whole:.5f}")'
    )
    assert judged(tmp_path, program(SAMPLED, PLAIN, main=main)) == verdict


def test_a_selection_that_would_not_fit_is_not_made(tmp_path: Path) -> None:
    part = PLAIN.replace(
        "    sizes = byte_table()\n",
        "    sizes = byte_table()\n    places = np.zeros(300000, dtype=np.int64)\n"
        "    rows = np.zeros((64, 8192))[np.zeros(4096, dtype=np.int64)][places]\n",
        1,
    )
    assert judged(tmp_path, program(part, main="evaluate(net, held, s)")) == "clean_neural"


STEPS = """
def fit(net, stream, s):
    ps = list(net.parameters())
    named = {k: v.clone() for k, v in net.named_parameters()}
    for a in range(0, stream.numel() - 1 - s.context, s.context):
        x, y = stream[a:a + s.context], stream[a + 1:a + s.context + 1]
        %s
    %s
"""
WAYS = [
    (
        "gs = torch.autograd.grad(net(x[None], y[None]), ps)\n"
        "        torch._foreach_add_(ps, gs, alpha=-0.1)",
        "pass",
    ),
    (
        "net(x[None], y[None]).backward()\n        for p in ps: p.data = p.data - 0.1 * p.grad",
        "pass",
    ),
    (
        "gs = torch.autograd.grad(net(x[None], y[None]), ps)\n"
        "        v = torch.nn.utils.parameters_to_vector(ps)\n"
        "        v = v - 0.1 * torch.nn.utils.parameters_to_vector(gs)\n"
        "        torch.nn.utils.vector_to_parameters(v, ps)",
        "pass",
    ),
    (
        "loss = lambda p: torch.func.functional_call(net, p, (x[None], y[None]))\n"
        "        gs = torch.func.grad(loss)(named)\n"
        "        named = {k: v - 0.1 * gs[k] for k, v in named.items()}",
        "net.load_state_dict(named)",
    ),
    (
        "loss, gs = value_and_grad(net, lambda x, y: net(x, y))(x[None], y[None])\n"
        "        Adam(learning_rate=0.1).update(net, gs)",
        "pass",
    ),
]


@pytest.mark.parametrize(("step", "last"), WAYS)
@pytest.mark.parametrize("tokens", ["held", "load(s.train_files)"])
def test_weights_are_seen_to_learn_by_whatever_call_changes_them(
    tmp_path: Path, step: str, last: str, tokens: str
) -> None:
    text = program(
        STEPS % (step, last), PLAIN, main=f"fit(net, {tokens}, s)\nevaluate(net, held, s)"
    )
    head = "from mlx.nn import value_and_grad\nfrom mlx.optimizers import Adam\n"
    learnt = tokens == "held"
    assert judged(tmp_path, head + text) == ("flag_prequant_ttt" if learnt else "clean_neural")


@pytest.mark.parametrize(
    ("save", "restore"),
    [
        BY_STATE,
        BY_LIST,
        (
            "kept = torch.nn.utils.parameters_to_vector(net.parameters()).clone()",
            "torch.nn.utils.vector_to_parameters(kept, net.parameters())",
        ),
        (
            "kept = [p.detach().clone() for p in net.parameters()]",
            "torch._foreach_copy_(list(net.parameters()), kept)",
        ),
        ("pass", "pass"),
    ],
)
def test_weights_that_are_put_back_are_as_before(tmp_path: Path, save: str, restore: str) -> None:
    part = WINDOWS.format(save=save, restore=restore, fit="first")
    twice = "windows(net, held, s)\nwindows(net, held, s)"
    verdict = judged(tmp_path, program(part, main=twice))
    assert verdict == ("flag_prequant_ttt" if save == "pass" else "clean_ttt_score_first")
