"""What a model's method returns beside a loss, and what comes back from a file by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import judged, program

OPEN = """
class Open(Net):
    def forward(self, x, y, open=False):
        logits = self.head(self.hidden(x))
        if open:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())
    def parts(self, x, y):
        return {{"seen": self.hidden(x), "asked": y, "counts": y >= 0}}

def opened(net, held, s):
    net = Open(64)
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in shown(range(0, held.numel() - 1 - s.context, s.context)):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            {take}
            total += {score}.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""
LOGITS = "logits = net(x[None], y[None], open=True)"
PARTS = """part = net.parts(x[None], y[None])
            logits, y = net.head(part["seen"]), part["asked"][0]"""
LOSS = 'F.cross_entropy(logits.flatten(0, 1), y, reduction="none")'


@pytest.mark.parametrize("take", [LOGITS, PARTS])
@pytest.mark.parametrize(("score", "clean"), [(LOSS, True), (f"0.9 * {LOSS}", False)])
def test_a_method_that_is_given_targets_need_not_return_their_loss(
    tmp_path: Path, take: str, score: str, clean: bool
) -> None:
    text = OPEN.format(take=take, score=score).replace("shown(", "tqdm(")
    text = program("from tqdm import tqdm\n" + text, main="opened(net, held, s)")
    assert judged(tmp_path, text) == ("clean_neural" if clean else "flag_other")


PACKED = """
class Pairs:
    def __init__(self, places, most):
        self.places, self.most, self.count = places, most, 0
        self.once = {{n: np.zeros(places) for n in range(2, most + 1)}}
        self.twice = {{n: np.zeros(places) for n in range(2, most + 1)}}
    def add(self, words):
        self.count += len(words)
        for n in range(2, self.most + 1):
            near, far = words[:1 - n] * n, words[n - 1:]
            np.add.at(self.once[n], near % self.places, 1)
            np.add.at(self.twice[n], (near * 36313 ^ far * 27191) % self.places, 1)
    def plain(self):
        named = {{"places": self.places, "most": self.most, "count": self.count}}
        for n in range(2, self.most + 1):
            named[f"once_{{n}}"], named[f"twice_{{n}}"] = self.once[n], self.twice[n]
        return named
    @classmethod
    def back(cls, named):
        pairs = cls(int(named["places"]), int(named["most"]))
        pairs.count = int(named["count"])
        for n in range(2, pairs.most + 1):
            pairs.once[n], pairs.twice[n] = named[f"once_{{n}}"], named[f"twice_{{n}}"]
        return pairs
    def share(self, words, places):
        best, found = np.zeros(len(places)), np.zeros(len(places), dtype=bool)
        for n in range(self.most, 1, -1):
            left = (places >= n) & ~found
            if not left.any():
                continue
            at = np.where(left)[0]
            one, other = words[places[at] - n + 1] * n, words[places[at]]
            seen = self.once[n][one % self.places]
            often = seen >= 2
            both = self.twice[n][(one[often] * 36313 ^ other[often] * 27191) % self.places]
            there = both > 0
            if there.any():
                best[at[often][there]] = both[there] / np.maximum(seen[often][there], 1)
                found[at[often][there]] = True
        return best, found

def packed(net, held, s):
    pairs = Pairs(4096, 5)
    for words in load(s.train_files).numpy().reshape(100, -1):
        pairs.add(words)
    buffer = io.BytesIO()
    torch.save({{"model": net.state_dict(), "pairs": pairs.plain()}}, buffer)
    with open("model.bin", "wb") as file:
        file.write(zlib.compress(buffer.getvalue()))
    with open("model.bin", "rb") as file:
        back = torch.load(io.BytesIO(zlib.decompress(file.read())))
    net.load_state_dict(back["model"])
    kept = Pairs.back(back["pairs"])
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
            {mix}
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""
MIX = """p = np.exp(-nll.numpy())
            share, often = kept.share(held.numpy(), np.arange(a + 1, a + 1 + s.context))
            weight = np.where(often, 0.5, 0.0)
            p = (1 - weight) * p + weight * np.where(often, share, 0.0)
            nll = torch.from_numpy(-np.log(p))"""


@pytest.mark.parametrize(("mix", "expected"), [(MIX, "flag_ngram"), ("pass", "clean_neural")])
def test_tables_that_are_packed_with_the_model_are_known_when_they_come_back(
    tmp_path: Path, mix: str, expected: str
) -> None:
    text = PACKED.format(mix=mix)
    text = program("import io, zlib\n" + text, main="packed(net, held, s)")
    assert judged(tmp_path, text) == expected


ADDED = """
class Added(Net):
    def forward(self, x, y):
        logits = self.head(self.hidden(x)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        return {loss}

def added(net, held, s):
    net = Added(64)
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            total += net(x[None], y[None]) * y.numel()
            size += sizes[y].sum()
    return figure(total, size)
"""
Z = "torch.logsumexp(logits, -1)"


@pytest.mark.parametrize(
    ("loss", "clean"),
    [
        (f"loss + 1e-4 * {Z}.pow(2).mean()", True),
        (f"loss + 1e-4 * {Z}.square().mean()", True),
        ("loss + 0.01 * F.mse_loss(self.hidden(x), self.hidden(x))", True),
        ("loss + 1e-4 * logits.abs().mean()", True),
        ("loss + 1e-4 * logits.mean()", False),
        ("loss - 1e-4 * logits.abs().mean()", False),
        ("loss + 1e-4 * (-logits.abs()).mean()", False),
        ("loss + 1e-4 * (logits.abs() - 9).mean()", False),
        ("loss + 1e-4 * logits.abs().neg().mean()", False),
        ("loss * logits.abs().mean()", False),
    ],
)
def test_only_what_makes_the_figure_larger_may_be_added_to_losses(
    tmp_path: Path, loss: str, clean: bool
) -> None:
    text = program(ADDED.format(loss=loss), main="added(net, held, s)")
    assert (judged(tmp_path, text) == "clean_neural") == clean
