"""Kinds of breach that once came out clean, each as a small program, beside an honest relative."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from niblick.audit.review import review
from niblick.audit.types import Severity
from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

SHORT = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--most", type=int, default={most})
args = parser.parse_args([])
if {test}:
    held = held[:args.most // 512 * 512 + 1]
evaluate(net, held, s)
"""


@pytest.mark.parametrize(
    "test", ["args.most > 0 and args.most < held.numel()", "0 < args.most < len(held)"]
)
@pytest.mark.parametrize(("most", "part"), [("1_000_000", True), ("0", False), ("10**8", False)])
def test_a_split_is_cut_where_a_fixed_number_is_below_its_length(
    tmp_path: Path, test: str, most: str, part: bool
) -> None:
    text = program(PLAIN, main=SHORT.format(most=most, test=test))
    assert judged(tmp_path, text) == ("flag_other" if part else "clean_neural")


TWO = """
print(f"short bpb: {{evaluate(net, held[:{most}], s):.6f}}")
print(f"whole bpb: {{evaluate(net, held, s):.6f}}")
"""


@pytest.mark.parametrize(("claim", "part"), [(1.234567, True), (1.256789, False)])
def test_the_claimed_figure_counts_also_where_another_is_printed_last(
    tmp_path: Path, claim: float, part: bool
) -> None:
    verdict = judged(
        tmp_path,
        program(PLAIN, main=TWO.format(most=1_000_001)),
        submission__json=json.dumps({"val_bpb": claim}),
        train__log="short bpb: 1.234567\nwhole bpb: 1.256789\n",
    )
    assert verdict == ("flag_other" if part else "clean_neural")


@pytest.mark.parametrize(
    ("before", "after", "flagged"),
    [
        ("p.backup = p.data.clone()", "del p.backup", True),
        ("pass", "net.load_state_dict(kept)", False),
    ],
)
def test_a_deleted_copy_of_weights_is_no_adapter(
    tmp_path: Path, before: str, after: str, flagged: bool
) -> None:
    fit = TRAIN_FIRST.replace(
        "        opt.zero_grad()\n",
        f"        opt.zero_grad()\n        for p in net.parameters():\n            {before}\n",
    )
    fit += f"        for p in net.parameters():\n            {after}\n"
    fit = fit.replace(
        "    opt = torch", "    kept = copy.deepcopy(net.state_dict())\n    opt = torch"
    )
    text = program("import copy", PLAIN, fit, main="fit_held(net, held, s)\nevaluate(net, held, s)")
    assert judged(tmp_path, text).startswith("flag_prequant" if flagged else "clean")


CONV = """
class Mixer(nn.Module):
    def __init__(self, width, size=3, gap=1):
        super().__init__()
        reach = {reach}
        self.conv = nn.Conv1d(width, width, size, padding={padding}, dilation=gap)
    def forward(self, x):
        y = self.conv({given})
        return {taken}

class Net(Net):
    def __init__(self, width):
        super().__init__(width)
        self.mixer = Mixer(width)
    def hidden(self, x):
        return self.mixer(self.table(x))
"""
TURNED = "x.transpose(1, 2)"


@pytest.mark.parametrize(
    ("reach", "padding", "given", "taken", "verdict"),
    [
        ("gap * (size - 1) // 2", "reach", TURNED, "y.transpose(1, 2)", "flag_other"),
        ("0", "'same'", TURNED, "y.transpose(1, 2)", "flag_other"),
        ("0", "size // 2", TURNED, "F.pad(y, (1, -1)).transpose(1, 2)", "hold_unclear"),
        ("gap * (size - 1)", "reach", TURNED, "y[..., :-reach].transpose(1, 2)", "clean_neural"),
        ("0", "0", "F.pad(x.transpose(1, 2), (2, 0))", "y.transpose(1, 2)", "clean_neural"),
    ],
)
def test_a_convolution_padded_by_half_on_both_sides_looks_ahead(
    tmp_path: Path, reach: str, padding: str, given: str, taken: str, verdict: str
) -> None:
    layer = CONV.format(reach=reach, padding=padding, given=given, taken=taken)
    assert judged(tmp_path, program(layer, PLAIN, main="evaluate(net, held, s)")) == verdict


@pytest.mark.parametrize(
    ("readme", "blurb", "verdict"),
    [
        ("Val-only training on one shard.", "trained entirely on the validation shard", "flag"),
        ("Validation-only training.", "nine layers", "hold"),
        ("No val-only training; unlike others.", "not trained only on validation data", "clean"),
    ],
)
def test_what_a_submission_says_of_its_training_data_counts(
    tmp_path: Path, readme: str, blurb: str, verdict: str
) -> None:
    text = program(PLAIN, main="evaluate(net, held, s)")
    claim = json.dumps({"blurb": blurb})
    given = judged(tmp_path, text, README__md=readme + "\n", submission__json=claim)
    assert given.startswith(verdict)


LARGER = """
class Net(Net):
    def __init__(self, width):
        super().__init__(width)
        self.share = float(os.environ.get("SHARE", "0.1"))
    def forward(self, x, y):
        z = self.head(self.hidden(x))
        loss = F.cross_entropy(z.flatten(0, 1), y.flatten(), label_smoothing=0.05)
        if self.share > 0:
            n = int(unknown(x))
            loss = loss {term}
        return loss

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            total += net(x[None], y[None]) * s.context
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("term", "share", "verdict"),
    [
        (
            "+ self.share * F.cross_entropy(z[:, n:].flatten(0, 1), y[:, n:].flatten())",
            "1",
            "clean",
        ),
        ("- self.share * F.cross_entropy(z[:, n:].flatten(0, 1), y[:, n:].flatten())", "1", "hold"),
        ("+ self.share * F.nll_loss(z[:, n:].flatten(0, 1), y[:, n:].flatten())", "1", "hold"),
        ("- self.share * n", "1", "hold"),
        ("- self.share * n", "0", "clean"),
    ],
)
def test_what_only_makes_a_model_s_loss_larger_changes_no_claim(
    tmp_path: Path, term: str, share: str, verdict: str
) -> None:
    text = program(LARGER.format(term=term), main="evaluate(net, held, s)")
    readme = f"```bash\nSHARE={share} python train_gpt.py\n```\n"
    assert judged(tmp_path, text, README__md=readme).startswith(verdict)


STEP = "for a in range(0, held.numel() - 1 - s.context, s.context):\n"
COUNTED = STEP + "            done = a + 1\n            count = float(size.item())\n"


@pytest.mark.parametrize("most", ["0", "1000000", "90000000"])
@pytest.mark.parametrize(
    ("head", "test"),
    [
        (COUNTED, "most > 0 and a >= most"),
        (COUNTED, "0 < most and done > most"),
        (COUNTED, "most and most <= count"),
        (
            STEP.replace("for a in range(", "for i, a in enumerate(range(", 1)[:-2] + "):\n",
            "most > 0 and i >= most // s.context",
        ),
    ],
)
def test_a_loop_that_a_fixed_count_ends_early_scores_a_part(
    tmp_path: Path, head: str, test: str, most: str
) -> None:
    loop = f"{head}            if {test}:\n                break\n"
    text = PLAIN.replace("    sizes =", '    most = int(os.environ.get("MOST", "0"))\n    sizes =')
    readme = f"```bash\nMOST={most} python train_gpt.py\n```\n"
    text = program(text.replace(STEP, loop), main="evaluate(net, held, s)")
    part = "flag_other" if most == "1000000" else "clean_neural"
    assert judged(tmp_path, text, README__md=readme) == part


MIXED = """
def spread(losses, symbols, share=0.9):
    counts, total, size = {}, 0.0, 0
    for loss, symbol in zip(losses.tolist(), symbols.tolist()):
        seen = counts.setdefault(symbol % 7, {})
        p = (seen.get(symbol, 0) + 1) / (sum(seen.values()) + 256)
        total -= math.log(share * math.exp(-loss) + (1 - share) * p)
        seen[symbol] = seen.get(symbol, 0) + 1
        size += 1
    print(f"mixed val_bpb: {total / math.log(2.0) / size:.6f}")

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    losses = []
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")
            losses.append(nll)
            total += nll.sum()
            size += sizes[y].sum()
    spread(torch.cat(losses), held[1:])
    bpb = total / math.log(2.0) / size
    print(f"final val_bpb: {bpb:.6f}")
"""


@pytest.mark.parametrize(("claim", "flagged"), [(1.154321, False), (1.012345, True)])
def test_a_mixture_that_is_only_logged_beside_the_claimed_figure_is_none(
    tmp_path: Path, claim: float, flagged: bool
) -> None:
    verdict = judged(
        tmp_path,
        program(MIXED, main="evaluate(net, held, s)"),
        submission__json=json.dumps({"val_bpb": claim}),
        train__log="mixed val_bpb: 1.012345\nfinal val_bpb: 1.154321\n",
    )
    assert verdict.startswith("flag") if flagged else verdict == "clean_neural"


DOCUMENTS = """
def documents(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    starts = (held == 1).nonzero(as_tuple=True)[0].numpy()
    with torch.no_grad():
        for d in range(len(starts) - 1):
            begin = int(starts[d])
            n = int(starts[d + 1]) - begin - 1
            places = [a for a in range(0, n, 64) if a == 0 or {more}]
            x = torch.zeros(len(places), s.context, dtype=torch.int64)
            y = torch.zeros(len(places), s.context, dtype=torch.int64)
            for i, a in enumerate(places):
                m = min(a + s.context, n) - a
                x[i, :m] = held[begin + a:begin + a + m]
                y[i, :m] = held[begin + a + 1:begin + a + m + 1]
            logits = net.head(net.hidden(x)).flatten(0, 1)
            nll = F.cross_entropy(logits, y.flatten(), reduction="none").reshape(x.shape)
            for i, a in enumerate(places):
                m = min(a + s.context, n) - a
                first = 0 if a == 0 else {first}
                total += nll[i, first:m].sum()
                size += sizes[y[i, first:m]].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("more", "first", "verdict"),
    [
        ("n - a >= 64", "max(m - 64, 0)", "flag_other"),
        ("a - 64 + s.context < n", "min(a - 64 + s.context, n) - a", "clean_neural"),
    ],
)
def test_windows_score_what_no_other_window_has(
    tmp_path: Path, more: str, first: str, verdict: str
) -> None:
    text = program(DOCUMENTS.format(more=more, first=first), main="documents(net, held, s)")
    assert judged(tmp_path, text) == verdict


SPREAD = """
#include <math.h>
#include <stdint.h>
static uint32_t seen[256], all;
double mixed(const double *loss, const int32_t *width, const uint8_t *text, int64_t n, double w) {{
    double out = 0.0;
    for (int64_t i = 0, at = 0; i < n; i++)
        for (int32_t k = 0; k < width[i]; k++, at++) {{
            double own = exp(-{own}), counted = (seen[text[at]] + 1.0) / (all + 256.0);
            out -= log(w * own + (1.0 - w) * counted);
            seen[text[at]]++;
            all++;
        }}
    return out;
}}
"""
CALLED = """
import ctypes

def by_bytes(losses, widths, text):
    lib = ctypes.CDLL("./mixed.so")
    where = [v.ctypes.data_as(ctypes.c_void_p) for v in (losses, widths, text)]
    print(f"mixed val_bpb:{lib.mixed(*where, losses.size, ctypes.c_double(0.5)):.4f}")
"""


@pytest.mark.parametrize(
    ("own", "on", "flagged"),
    [("loss[i] / width[i]", 1, True), ("loss[i] / width[i]", 0, False), ("loss[at]", 1, False)],
)
def test_a_loss_spread_over_bytes_is_no_distribution_in_compiled_code_either(
    tmp_path: Path, own: str, on: int, flagged: bool
) -> None:
    main = f"evaluate(net, held, s)\nif {on}:\n    by_bytes(np.zeros(9), np.ones(9), np.zeros(9))"
    (tmp_path / "mixed.c").write_text(SPREAD.format(own=own))
    (tmp_path / "train_gpt.py").write_text(program(PLAIN, CALLED, main=main))
    rules = {f.rule for f in review(tmp_path).findings if f.severity is Severity.BREACH}
    assert ("byte-mixture" in rules) is flagged


GIVEN = """
class Net(Net):
    def read(self, x, y):
        h = self.table(x)
        {use}
        return {out}

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[None, a:a + s.context], held[None, a + 1:a + s.context + 1]
            logits = net.read(x, y){take}
            total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("use", "out", "take", "verdict"),
    [
        ("h = h + 0.01 * self.table(y)", "self.head(h)", "", "flag"),
        ("h = torch.cat([h, self.table(y)], -1)[..., ::2]", "self.head(h)", "", "flag"),
        ("pass", "self.head(h)", "", "clean"),
        ("loss = F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())",
         "self.head(h), loss", "[0]", "clean"),
    ],
)  # fmt: skip
def test_a_model_is_not_given_what_its_output_is_scored_on(
    tmp_path: Path, use: str, out: str, take: str, verdict: str
) -> None:
    text = GIVEN.format(use=use, out=out, take=take)
    assert judged(tmp_path, program(text, main="evaluate(net, held, s)")).startswith(verdict)


GATHER = """
class Net(Net):
    def __init__(self, width):
        super().__init__(width)
        self.norm = nn.{norm}(width)
    def hidden(self, x):
        return self.norm(self.table(x).transpose(1, 2)).transpose(1, 2)

def gather(net, held, s):
    net.{mode}()
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            net.hidden(held[None, a:a + s.context])
    net.eval()
"""


@pytest.mark.parametrize(
    ("norm", "mode", "tokens", "verdict"),
    [
        ("BatchNorm1d", "train", "held", "flag"),
        ("BatchNorm1d", "eval", "held", "clean"),
        ("BatchNorm1d", "train", "load(s.train_files)", "clean"),
        ("LayerNorm", "train", "held", "clean"),
    ],
)
def test_statistics_that_a_model_gathers_of_validation_tokens_are_learnt(
    tmp_path: Path, norm: str, mode: str, tokens: str, verdict: str
) -> None:
    text = program(PLAIN, GATHER.format(norm=norm, mode=mode),
                   main=f"gather(net, {tokens}, s)\nevaluate(net, held, s)")  # fmt: skip
    assert judged(tmp_path, text).startswith(verdict)
