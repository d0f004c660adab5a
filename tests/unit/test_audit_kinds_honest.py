"""Honest evaluations in unusual forms, and the same forms with a breach in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import judged, program

EVALUATE = """
import functools, itertools, operator
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

class Totals(NamedTuple):
    nats: float
    octets: float
    note: str = ""

Pair = namedtuple("Pair", "nats octets")

def timed(tag):
    def wrap(call):
        @functools.wraps(call)
        def inner(*args, **named):
            try:
                return call(*args, **named)
            finally:
                print(tag)
        return inner
    return wrap

def score(net, held, s, sizes, a):
    x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
    logits = net.head(net.hidden(x[None])).flatten(0, 1)
    {logits}
    nll = F.cross_entropy(logits, y, reduction="none")
    {nll}
    return nll.sum(){scale}, {octets}

{decorator}
def evaluate(net, held, s):
    sizes = byte_table()
    {table}
    starts = range(0, held.numel() - 1 - s.context, s.context)
    one = functools.partial(score, net, held, s, sizes)
    with torch.no_grad():
        {body}
    return figure(total, size)
"""
PLAIN = """
total, size = torch.zeros(()), torch.zeros(())
for a in starts:
    nats, octets = one(a)
    total += nats
    size += octets
"""


def _judged(folder: Path, body: str = PLAIN, scale: str = "", **slots: str) -> str:
    filled = {"logits": "pass", "nll": "pass", "octets": "sizes[y].sum()", "decorator": ""}
    filled |= {"table": "pass", "body": body, "scale": scale} | slots
    text = EVALUATE
    for name, code in filled.items():
        indent = " " * {"body": 8, "decorator": 0}.get(name, 4)
        text = text.replace("{" + name + "}", code.strip().replace("\n", "\n" + indent))
    return judged(folder, program(text, main="evaluate(net, held, s)"))


BODIES = {
    "reduce": """
total, size = functools.reduce(lambda p, q: (p[0] + q[0], p[1] + q[1]), map(one, starts))
""",
    "pool map": """
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(one, starts))
total, size = sum(f[0] for f in found), sum(f[1] for f in found)
""",
    "pool submit": """
with ThreadPoolExecutor(4) as pool:
    waiting = [pool.submit(one, a) for a in starts]
found = [w.result() for w in waiting]
total, size = sum(f[0] for f in found), sum(f[1] for f in found)
""",
    "fsum": """
found = [one(a) for a in starts]
total, size = math.fsum(f[0].item() for f in found), math.fsum(f[1].item() for f in found)
""",
    "gathered": """
found = [one(a) for a in starts]
mine = (sum(f[0] for f in found).item(), sum(f[1] for f in found).item())
everyone = [None] * 8
torch.distributed.all_gather_object(everyone, mine)
total, size = (sum(column) for column in zip(*everyone))
""",
    "entries": """
sums = torch.zeros(3, dtype=torch.float64)
for a in starts:
    nats, octets = one(a)
    sums[0] += nats
    sums[1] += s.context
    sums[2] += octets
total, count, size = sums.cpu().numpy()
total = total / count * count
""",
    "named tuples": """
found = [Totals(*one(a)) for a in starts]
total, size, _ = Totals(sum(f.nats for f in found), sum(f.octets for f in found))
""",
    "tuples with names": """
found = [Pair(*one(a)) for a in starts]
total = sum(f.nats for f in found)
size = sum(octets for _, octets in found)
""",
    "match": """
total, size = torch.zeros(()), torch.zeros(())
for a in starts:
    match os.environ.get("MODE", "plain"):
        case "plain" | "simple":
            nats, octets = one(a)
        case "first":
            train(net, held, s)
        case _:
            raise ValueError("MODE")
    total += nats
    size += octets
""",
}


@pytest.mark.parametrize(("scale", "verdict"), [("", "clean_neural"), (" * 0.9", "flag_other")])
@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_sums_are_followed_through_pythons_own_ways(
    tmp_path: Path, body: str, scale: str, verdict: str
) -> None:
    assert _judged(tmp_path, body, scale) == verdict


def test_a_case_that_a_setting_selects_is_the_one_that_runs(tmp_path: Path) -> None:
    body = BODIES["match"].replace('"plain")', '"first")')
    assert not _judged(tmp_path, body).startswith("clean")


@pytest.mark.parametrize(("scale", "verdict"), [("", "clean_neural"), (" * 0.9", "flag_other")])
def test_a_function_that_makes_a_wrapper_wraps(tmp_path: Path, scale: str, verdict: str) -> None:
    assert _judged(tmp_path, scale=scale, decorator='@timed("evaluate")') == verdict


PIECES = """
parts = []
for low in range(0, s.context, 64):
    part = logits[low:low + 64]
    parts.append(F.cross_entropy(part, y[low:low + 64], reduction="none"){more})
nll = torch.cat(parts)
"""
EACH = """
share = logits.softmax(-1)
out = []
for k, token in enumerate(y.tolist()):
    out.append(-math.log(share[k, token].item()){more})
nll = torch.tensor(out)
"""


@pytest.mark.parametrize(("more", "verdict"), [("", "clean_neural"), (" * 0.9", "flag_other")])
@pytest.mark.parametrize("nll", [PIECES, EACH], ids=["pieces", "tokens"])
def test_what_an_inner_loop_appends_is_all_there(
    tmp_path: Path, nll: str, more: str, verdict: str
) -> None:
    assert _judged(tmp_path, nll=nll.format(more=more)) == verdict


@pytest.mark.parametrize(
    ("octets", "table"),
    [
        ("sum([s.lengths[t] for t in y.tolist()])", "s.lengths = sizes.tolist()"),
        ("sum(s.lengths[t] for t in y.tolist())",
         "s.lengths = {t: int(n) for t, n in enumerate(sizes.tolist())}"),
        ("torch.dot(sizes[y], torch.ones(s.context))", "pass"),
        ("sizes[y].masked_select(torch.ones(s.context, dtype=torch.bool)).sum()", "pass"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("less", "verdict"), [("", "clean_neural"), (" * 1.1", "flag_other")])
def test_bytes_are_counted_in_lists_dictionaries_and_products(
    tmp_path: Path, octets: str, table: str, less: str, verdict: str
) -> None:
    assert _judged(tmp_path, octets=octets + less, table=table) == verdict


@pytest.mark.parametrize(
    ("nll", "verdict"),
    [
        ("keep = torch.ones(s.context, dtype=torch.bool)\nnll = nll.masked_select(keep)",
         "clean_neural"),
        ("nll = nll.masked_select(nll < 5)", "flag_other"),
    ],
)  # fmt: skip
def test_losses_are_selected_by_places_not_by_what_they_are(
    tmp_path: Path, nll: str, verdict: str
) -> None:
    assert _judged(tmp_path, nll=nll) == verdict


MOVED = """
class Moved(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))
    def forward(self, x):
        {make}
        return x + self.gate * other

class Own(Net):
    def __init__(self, width):
        super().__init__(width)
        self.moved = Moved(width)
    def hidden(self, x):
        return self.moved(self.table(x))
"""


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        ("other = torch.roll(x, -1, 1)", "hold_unclear"),
        ("other = x.roll(shifts=-1, dims=1)", "hold_unclear"),
        ("other = torch.cat([x[:, 1:], x[:, :1]], dim=1)", "hold_unclear"),
        ("other = x.flip(1).cumsum(1).flip(1)", "hold_unclear"),
        ("mask = torch.ones(512, 512).tril(diagonal=1)\n        other = mask @ x",
         "hold_unclear"),
        ("other = x.mean(dim=1, keepdim=True).expand_as(x)", "hold_unclear"),
        ("other = torch.roll(x, 1, 1)", "clean_neural"),
        ("other = torch.roll(x, -1, 2)", "clean_neural"),
        ("other = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)", "clean_neural"),
        ("other = torch.cat([x[:, :, 1:], x[:, :, :1]], dim=2)", "clean_neural"),
        ("other = x.flip(-1)", "clean_neural"),
        ("mask = torch.ones(512, 512).tril()\n        other = mask @ x", "clean_neural"),
        ("other = x.mean(dim=-1, keepdim=True).expand_as(x)", "clean_neural"),
    ],
)  # fmt: skip
def test_a_model_does_not_give_positions_what_comes_of_later_ones(
    tmp_path: Path, make: str, verdict: str
) -> None:
    text = EVALUATE.format(
        logits="pass", nll="pass", octets="sizes[y].sum()", decorator="", table="pass", scale="",
        body=PLAIN.strip().replace("\n", "\n        "),
    )  # fmt: skip
    main = "net = Own(64)\ntrain(net, load(s.train_files), s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(MOVED.format(make=make), text, main=main)) == verdict


SPELT = """
import sentencepiece as spm

def tables(sp):
    base, space = np.zeros(1024), np.zeros(1024, dtype=bool)
    edge = np.zeros(1024, dtype=bool)
    for t in range(1024):
        edge[t] = sp.is_control(t)
        if sp.is_byte(t):
            base[t] = 1
            continue
        piece = sp.id_to_piece(t)
        if piece.startswith("\\u2581"):
            space[t] = True
            piece = {piece}
        base[t] = len(piece.encode("utf-8"))
    return torch.tensor(base), torch.tensor(space), torch.tensor(edge)

def spelt(net, held, s):
    base, space, edge = tables(spm.SentencePieceProcessor(model_file="a.model"))
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            total += F.cross_entropy(logits, y, reduction="sum")
            octets = base[y]
            octets += (space[y] & ~edge[x]).double()
            size += octets.sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("piece", "verdict"),
    [
        ("piece[1:]", "clean_neural"),
        ('" " + piece[1:]', "flag_other"),
        ('piece.replace("\\u2581", " ")', "flag_other"),
    ],
)
def test_a_space_that_is_spelt_into_a_piece_is_not_counted_again(
    tmp_path: Path, piece: str, verdict: str
) -> None:
    text = program(SPELT.format(piece=piece), main="spelt(net, held, s)")
    assert judged(tmp_path, text) == verdict


@pytest.mark.parametrize(
    ("octets", "verdict"),
    [
        ('len(sp.decode(y.tolist()).encode("utf-8"))', "clean_neural"),
        ('len(sp.decode_ids(y.tolist()).encode())', "clean_neural"),
        ('len(sp.decode(held[a:a + 2 * s.context].tolist()).encode("utf-8"))', "flag_other"),
    ],
)  # fmt: skip
def test_bytes_of_the_decoded_text_are_bytes(tmp_path: Path, octets: str, verdict: str) -> None:
    table = "global sp\nimport sentencepiece\nsp = sentencepiece.SentencePieceProcessor('a.model')"
    assert _judged(tmp_path, octets=octets, table=table) == verdict


HOT = "hot, logs = F.one_hot(y, 1024).float(), logits.log_softmax(-1)\n"


@pytest.mark.parametrize(
    ("nll", "verdict"),
    [
        (HOT + "nll = -(hot * logs).sum(-1)", "clean_neural"),
        (HOT + "nll = (-logs * hot).sum(dim=1)", "clean_neural"),
        (HOT + 'nll = -torch.einsum("tv,tv->t", logs, hot)', "clean_neural"),
        (HOT + "nll = -(0.9 * hot * logs).sum(-1)", "flag_other"),
        (HOT + "nll = -(hot * logs).mean(-1)", "hold_unclear"),
    ],
)  # fmt: skip
def test_rows_of_which_one_is_not_nought_pick_a_token_s_score(
    tmp_path: Path, nll: str, verdict: str
) -> None:
    assert _judged(tmp_path, nll=nll) == verdict


LOADED = """
class Windows(torch.utils.data.Dataset):
    def __init__(self, tokens, size):
        self.tokens, self.size = tokens, size
    def __len__(self):
        return (self.tokens.numel() - 1) // self.size
    def __getitem__(self, i):
        part = self.tokens[i * self.size:(i + 1) * self.size + 1]
        return part[:-1], part[1:]

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    windows = Windows(held, s.context)
    {subset}
    with torch.no_grad():
        for x, y in torch.utils.data.DataLoader(windows, {how}):
            logits = net.head(net.hidden(x)).flatten(0, 1)
            total += F.cross_entropy(logits, y.flatten(), reduction="sum")
            size += sizes[{counted}].sum()
    return figure(total, size)
"""
THIRD = "windows = torch.utils.data.Subset(windows, range(len(windows) // 3))"


@pytest.mark.parametrize(
    ("how", "subset", "counted", "verdict"),
    [
        ("batch_size=8, shuffle=False, num_workers=2", "pass", "y", "clean_neural"),
        ("8", "windows = torch.utils.data.Subset(windows, range(len(windows)))", "y",
         "clean_neural"),
        ("batch_size=8", "pass", "y[:, 1:]", "flag_other"),
        ("batch_size=8", THIRD, "y", "flag_other"),
    ],
)  # fmt: skip
def test_loaders_hand_out_the_rows_of_a_data_set(
    tmp_path: Path, how: str, subset: str, counted: str, verdict: str
) -> None:
    text = program(LOADED.format(how=how, subset=subset, counted=counted),
                   main="evaluate(net, held, s)")  # fmt: skip
    assert judged(tmp_path, text) == verdict


SEGMENTS = """
from typing import Protocol, cast
class Scorer(Protocol):
    def __call__(self, x, lengths): ...

def segments(x, first=1):
    starts = (x[0] == first).nonzero(as_tuple=False).view(-1).tolist()
    lengths = []
    for i, start in enumerate(starts):
        lengths.append((starts[i + 1] if i + 1 < len(starts) else x.size(1)) - start)
    ends = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    ends[1:] = x.new_tensor(lengths, dtype=torch.int32).cumsum(0)
    return ends

class Own(Net):
    def forward(self, x, ends):
        return self.head(self.hidden(x))

def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    run = cast(Scorer, torch.compile(net))
    if not callable(torch.compile):
        raise RuntimeError("no compiler")
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = run(x[None], {ends})
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [("segments(x[None])", "clean_neural"), ("torch.bincount(y)", "flag_ngram")],
)
def test_a_model_may_be_told_where_documents_begin(tmp_path: Path, ends: str, verdict: str) -> None:
    main = "net = Own(64)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(SEGMENTS.format(ends=ends), main=main)) == verdict
