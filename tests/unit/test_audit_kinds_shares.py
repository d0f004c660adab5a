"""Kinds of evaluation whose figure must be shown to be one: probabilities that are shares of one,
figures that their own log contradicts, and figures of which no score was seen.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from niblick.audit.review import review
from unit.audit_programs import PLAIN, TRAIN_FIRST, judged, program

HASHED = """
def hashed(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    pairs, seen = torch.zeros(1 << 22), torch.zeros(1 << 22)
    every = torch.arange(1024)
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            p = F.softmax(net.head(net.hidden(x[None])).flatten(0, 1), -1)
            own = p.gather(1, y[:, None]).squeeze(1)
            spot = (x[:, None] * 92821 + every[None, :]) % (1 << 22)
            row = pairs[spot] + 0.01
            {share}
            total -= torch.log(0.7 * own + 0.3 * other).sum()
            size += sizes[y].sum()
            pairs.scatter_add_(0, (x * 92821 + y) % (1 << 22), torch.ones(y.numel()))
            seen.scatter_add_(0, x, torch.ones(y.numel()))
    return figure(total, size)
"""
ALONE = "row.gather(1, y[:, None]).squeeze(1)"


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (f"other = {ALONE} / (seen[x] + 10.24)", "flag_ngram"),
        (f"other = ({ALONE} + 2 * own) / (seen[x] + 12.24)", "flag_ngram"),
        ("other = row[torch.arange(y.numel()), y] / (seen[x] + 10.24)", "flag_ngram"),
        ("row = row / row.sum(-1, keepdim=True)\n            other = " + ALONE, "clean_ttt"),
        (f"other = {ALONE} / row.sum(-1)", "clean_ttt"),
        (f"other = ({ALONE} + 2 * own) / (row.sum(1) + 2)", "hold"),  # honest, its content is lost
    ],
)
def test_a_count_out_of_many_is_divided_by_their_sum(
    tmp_path: Path, share: str, verdict: str
) -> None:
    text = program(HASHED.format(share=share), main="hashed(net, held, s)")
    assert judged(tmp_path, text).startswith(verdict)


MASKED = """
def masked(net, held, s):
    sizes = byte_table()
    words = held.numpy()
    ctx_seen, pair_seen = np.zeros(65536, dtype=np.uint32), np.zeros(65536, dtype=np.uint32)
    total, size = 0.0, 0.0
    with torch.no_grad():
        for a in range(1, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            every = F.softmax(net.head(net.hidden(x[None])).flatten(0, 1), -1)
            own = every.gather(1, y[:, None]).squeeze(1).numpy()
            doubt = -(every * every.log()).sum(-1).numpy()
            past, now = words[a - {back}:a - {back} + s.context], words[a + 1:a + 1 + s.context]
            ctx_key = (past * 36313) & 65535
            key = (ctx_key ^ ({token} * 27191)) & 65535
            context, count = ctx_seen[ctx_key], pair_seen[key]
            known = (context >= 2) & (count > 0)
            share, met = np.zeros(s.context), np.zeros(s.context, dtype=bool)
            if known.any():
                spot = np.nonzero(known)[0]
                share[spot] = np.minimum(count[spot], context[spot]) / {below}
                met[spot] = True
            part = np.full(s.context, 0.3)
            for i in range(s.context):
                if met[i]:
                    part[i] = 0.1 + 0.5 / (1 + np.exp(2 - doubt[i]))
            mixed = own.copy()
            if met.any():
                mixed[met] = (1 - part[met]) * own[met] + part[met] * share[met]
            total += float(-np.log(mixed).sum())
            size += float(sizes[y].sum())
            np.add.at(ctx_seen, ctx_key, 1)
            np.add.at(pair_seen, key, 1)
    return figure(torch.tensor(total), torch.tensor(size))
"""


@pytest.mark.parametrize(
    ("back", "token", "below", "flagged"),
    [
        (0, "now", "context[spot]", True),  # the token before, then the scored one
        (1, "now", "context[spot]", True),  # one token in between is left out
        (1, "now", "1000.0", True),  # by the mixture alone
        (1, "words[a:a + s.context]", "1000.0", False),  # tokens before the scored one alone
    ],
)
def test_counts_by_context_and_scored_token_are_followed_through_masks(
    tmp_path: Path, back: int, token: str, below: str, flagged: bool
) -> None:
    text = MASKED.format(back=back, token=token, below=below)
    verdict = judged(tmp_path, program(text, main="masked(net, held, s)"))
    assert (verdict == "flag_ngram") == flagged, verdict


def _logged(folder: Path, pairs: list[tuple[float, float]], tokens: int, readme: str = "") -> str:
    """The verdict on an honest script with such a log, whose last pair is the claimed one."""
    (folder / "train_gpt.py").write_text(program(PLAIN, main="evaluate(net, held, s)"))
    lines = [
        f"val_loader: tokens:{tokens}",
        *(f"val_loss:{a:.6f} val_bpb:{b:.6f}" for a, b in pairs),
    ]
    (folder / "train.log").write_text("\n".join(lines) + "\n")
    claim = {"val_bpb": round(pairs[-1][1], 6), "name": "x", "author": "x"}
    (folder / "submission.json").write_text(json.dumps(claim))
    (folder / "README.md").write_text(readme)
    return review(folder).verdict


TEXT = 151_080_891


def _pairs(bytes_per_token: float, last: float | None = None) -> list[tuple[float, float]]:
    ratios = [bytes_per_token] * 3 + [last or bytes_per_token]
    losses = (6.9, 2.4, 2.2, 2.1)
    return [(a, a / math.log(2) / r) for a, r in zip(losses, ratios, strict=True)]


@pytest.mark.parametrize(
    ("counted", "last", "tokens", "verdict"),
    [
        (1.0, None, 62_021_632, "clean"),
        (1.0, 1.0002, 62_021_632, "clean"),  # the end of the split
        (0.998, None, 62_021_632, "clean"),  # a tokenizer that joins spaces
        (1.003, None, 62_021_632, "flag_other"),
        (1.09, None, 47_851_520, "flag_other"),
        (1.0, 0.9993, 62_021_632, "hold"),
        (1.0, 0.98, 62_021_632, "hold"),
        (0.98, None, 62_021_632, "hold"),
        (1.0, 1.15, 62_021_632, "hold"),
    ],
)
def test_a_logged_loss_and_figure_are_held_against_the_bytes_of_the_text(
    tmp_path: Path, counted: float, last: float | None, tokens: int, verdict: str
) -> None:
    whole = TEXT / tokens
    pairs = _pairs(whole * counted, last and whole * last)
    assert _logged(tmp_path, pairs, tokens).startswith(verdict)


@pytest.mark.parametrize(("tokens", "verdict"), [(524_288, "flag_other"), (40_540_160, "clean")])
def test_a_log_of_a_part_of_the_split_is_seen(tmp_path: Path, tokens: int, verdict: str) -> None:
    assert _logged(tmp_path, _pairs(TEXT / 40_540_160), tokens).startswith(verdict)


def test_too_many_bytes_of_data_that_are_said_to_be_others_are_held(tmp_path: Path) -> None:
    said = "The data sets used are different ones.\n"
    assert _logged(tmp_path, _pairs(2.73), 62_455_808, said).startswith("hold")


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ({"corrected.txt": 1.2247}, "clean"),  # older logs beside it say nothing of the claim
        ({}, "hold"),  # no log shows the claimed figure
        (
            {"a.log": 0.9491, "b.log": 0.9476, "c.log": 0.9489},
            "flag_other",
        ),  # their mean is claimed
    ],
)
def test_bytes_are_counted_in_the_logs_of_the_claimed_figure(
    tmp_path: Path, claims: dict[str, float], verdict: str
) -> None:
    mean = sum(claims.values()) / len(claims) if claims else 1.2247
    _logged(tmp_path, _pairs(3.25), 62_021_632)
    for name, figure in claims.items():
        own = 3.25 if len(claims) > 1 else TEXT / 62_021_632
        pairs = [*_pairs(own)[:3], (figure * own * math.log(2), figure)]
        (tmp_path / name).write_text(
            "val_loader: tokens:62021632\n"
            + "".join(f"val_loss:{a:.6f} val_bpb:{b:.6f}\n" for a, b in pairs)
        )
    if len(claims) > 1:
        (tmp_path / "train.log").unlink()
    (tmp_path / "submission.json").write_text(json.dumps({"val_bpb": round(mean, 4)}))
    assert review(tmp_path).verdict.startswith(verdict)


SPREAD = """
def spread(losses):
    counts = [[0] * 256 for _ in range(256)]
    nats, last = 0.0, 0
    for b in range(256):
        p = (counts[last][b] + 1) / (sum(counts[last]) + 256)
        nats -= math.log(0.8 * math.exp(-losses[b]) + (1 - 0.8) * p)
        counts[last][b] += 1
        last = b
    return nats
"""


@pytest.mark.parametrize(("last", "verdict"), [(1.14, "flag_other"), (None, "clean")])
def test_a_switched_off_mixture_of_bytes_that_the_log_shows_to_be_on_is_a_breach(
    tmp_path: Path, last: float | None, verdict: str
) -> None:
    lam = 'if int(os.environ.get("MIXED", "0")):\n    spread([])\nevaluate(net, held, s)'
    whole = TEXT / 62_021_632
    _logged(tmp_path, _pairs(whole, last and whole * last), 62_021_632)
    text = program(
        SPREAD.replace("0.8", "lam").replace("(losses)", "(losses, lam=0.8)"), PLAIN, main=lam
    )
    assert judged(tmp_path, text).startswith(verdict)


TWO = """
def two(net, held, s):
    plain = evaluate(net, held, s)
    mixed = torch.load("mixed.pt")
    print(f"final plain_bpb:{plain:.6f} val_bpb:{SHOWN:.6f}")
"""


@pytest.mark.parametrize(("shown", "verdict"), [("plain", "clean"), ("mixed", "hold")])
def test_the_claimed_number_of_a_line_is_one_that_was_followed(
    tmp_path: Path, shown: str, verdict: str
) -> None:
    text = program(PLAIN, TWO.replace("SHOWN", shown), main="two(net, held, s)")
    log, claim = "final plain_bpb:1.214700 val_bpb:0.392200\n", '{"val_bpb": 0.3922}'
    found = judged(tmp_path, text, train__log=log, submission__json=claim)
    assert found.startswith(verdict)


STAGES = """
def stages(net, held, s):
    print(f"weights_after_the_round_trip val_bpb:{evaluate(net, held, s):.8f}")
    fit_held(net, held, s)
    print(f"trained val_bpb:{evaluate(net, held, s):.8f}")
"""


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"round_trip_val_bpb": 1.16546619, "val_bpb": 1.14190341}, "flag_prequant_ttt"),
        ({"round_trip_val_bpb": 1.16546619, "after_val_bpb": 1.14190341}, "hold"),
        ({"after_val_bpb": 1.14190341, "val_bpb": 1.16546619}, "hold"),
    ],
)
def test_of_several_figures_the_one_named_as_the_score_is_claimed(
    tmp_path: Path, claim: dict[str, float], verdict: str
) -> None:
    text = program(PLAIN, TRAIN_FIRST, STAGES, main="stages(net, held, s)")
    log = "weights_after_the_round_trip val_bpb:1.16546619\ntrained val_bpb:1.14190341\n"
    found = judged(tmp_path, text, train__log=log, submission__json=json.dumps(claim))
    assert found.startswith(verdict)


GATHERED = """
def gathered(net, held, s):
    sizes = byte_table()
    rows, size = [], torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            rows.append(F.cross_entropy(logits, y, reduction="none"))
            size += sizes[y].sum()
    own = torch.cat(rows)
    parts = [torch.zeros_like(own) for _ in range(2)]
    torch.distributed.all_gather(parts, own)
    total = torch.cat(parts).sum() {scale}
    return figure(total, size)
"""


@pytest.mark.parametrize(("scale", "verdict"), [("", "clean"), ("* 0.9", "flag_other")])
def test_scores_are_followed_through_what_ranks_gather(
    tmp_path: Path, scale: str, verdict: str
) -> None:
    text = program(GATHERED.format(scale=scale), main="gathered(net, held, s)")
    assert judged(tmp_path, text).startswith(verdict)


BUNDLED = """
def bundled(net, held, s):
    sizes = byte_table()
    total, count, size = torch.zeros(()), torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            total += F.cross_entropy(logits, y, reduction="sum")
            count += y.numel()
            size += sizes[y].sum()
    stats = torch.stack([total, count, size{more}])
    torch.distributed.all_reduce(stats)
    total, count, size{names} = stats.unbind()
    bpb = {loss} / math.log(2.0) * (count.item() / size.item())
    print(f"val_bpb:{{bpb:.4f}}")
"""


@pytest.mark.parametrize(
    ("more", "names", "loss", "verdict"),
    [
        ("", "", "(total / count).item()", "clean"),
        ("", "", "(0.9 * total / count).item()", "flag_other"),
        (", 0.9 * total", ", less", "(less / count).item()", "flag_other"),
    ],
)
def test_sums_are_followed_through_a_bundle_and_out_of_it(
    tmp_path: Path, more: str, names: str, loss: str, verdict: str
) -> None:
    text = program(BUNDLED.format(more=more, names=names, loss=loss), main="bundled(net, held, s)")
    assert judged(tmp_path, text).startswith(verdict)


MARKS = "./data/tokenizers/fineweb_8192_caseops_v1.model"


@pytest.mark.parametrize(
    ("path", "reads", "command", "verdict"),
    [
        (MARKS, "", "", "hold"),
        (MARKS, 'counts = glob.glob("./data/fineweb_val_bytes_*.bin")', "", "clean"),
        ("./data/tokenizers/fineweb_8192.model", "", "", "clean"),
        ("./data/tokenizers/fineweb_8192.model", 'note = "not with caseops data."', "", "clean"),
        (MARKS, "", "TOKENIZER_PATH=./plain.model python train_gpt.py", "clean"),
    ],
)
def test_marks_of_case_are_no_bytes_of_the_text(
    tmp_path: Path, path: str, reads: str, command: str, verdict: str
) -> None:
    main = f'vocabulary = os.environ.get("TOKENIZER_PATH", "{path}")\n{reads}\n'
    main += "evaluate(net, held, s)"
    readme = f"```bash\n{command}\n```\n" if command else ""
    assert judged(tmp_path, program(PLAIN, main=main), README__md=readme).startswith(verdict)


DEEP = """
class Deep(nn.Module):
    wide = bool(int(os.environ.get("WIDE", "{wide}")))
    def density(self, h):
        share = h.square().mean(-1, keepdim=True)
        return share / share.mean({over}, keepdim=True)
    def forward(self, x, y):
        h = self.hidden(x)
        if self.wide:
            h = h * self.density(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())

class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, size))
    def forward(self, x):
        w = self.weight.to(x.dtype)
        w = w / w.abs().mean()
        {mix}
        return x @ w.T
"""


@pytest.mark.parametrize(
    ("over", "mix", "wide", "verdict"),
    [
        ("1", "pass", "1", "hold"),
        ("dim=(0, 1)", "pass", "1", "hold"),
        ("-1", "pass", "1", "clean"),
        ("1", "pass", "0", "clean"),
        ("-1", "x = x * torch.sigmoid(x.mean(dim=1, keepdim=True))", "1", "hold"),
        ("-1", "x = x * torch.sigmoid(x.mean(dim=-1, keepdim=True))", "1", "clean"),
        ("-1", "self.spread = x.detach().mean()", "1", "clean"),
        ("-1", "self.spread = x.mean(dim=1) * x.size(1)", "1", "clean"),
        ("-1", "if self.training:\n            x = x / x.mean()", "1", "clean"),
    ],
)
def test_what_is_made_of_a_whole_window_takes_no_part_in_each_position(
    tmp_path: Path, over: str, mix: str, wide: str, verdict: str
) -> None:
    deep = DEEP.format(over=over, mix=mix, wide=wide)
    assert judged(tmp_path, program(PLAIN, deep, main="evaluate(net, held, s)")).startswith(verdict)
