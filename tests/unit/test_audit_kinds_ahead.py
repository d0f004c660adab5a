"""Models that let later positions take part in earlier ones, each beside an honest twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, judged, program

MIXER = """
from torch.nn.functional import scaled_dot_product_attention as attend

class Linear8(nn.Linear):
    pass

class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.shared = nn.Parameter(torch.zeros(1, 16, width))
        {layer}
    def forward(self, x):
        b, t, d = x.shape
        {make}
        return x + self.gate * other

class Own(Net):
    def __init__(self, width):
        super().__init__(width)
        self.mixer = Mixer(width)
    def hidden(self, x):
        return self.mixer(self.table(x))
"""


def _judged(folder: Path, make: str, layer: str = "pass") -> str:
    text = MIXER.format(layer=layer, make=make.replace("\n", "\n        "))
    main = "net = Own(64)\ntrain(net, load(s.train_files), s)\nevaluate(net, held, s)"
    return judged(folder, program(text, PLAIN, main=main))


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        ("other = F.layer_norm(x, x.shape[1:])", "hold_unclear"),
        ("other = F.normalize(x, dim=1)", "hold_unclear"),
        ("other = torch.max(x, dim=1, keepdim=True).values", "hold_unclear"),
        ("top = x.amax(1, keepdim=True)\nother = x - top", "hold_unclear"),
        ("other = x / x.norm(dim=1, keepdim=True)", "hold_unclear"),
        ("shares = torch.softmax(x.mean(-1, keepdim=True), dim=1)\n"
         "other = (shares * x).sum(dim=1, keepdim=True)", "hold_unclear"),
        ("other = torch.fft.fft(x.float(), dim=1).real", "hold_unclear"),
        ("other = F.pad(x, (0, 0, 0, 1))[:, 1:]", "hold_unclear"),
        ("top = torch.topk(self.q(x).mean(-1, keepdim=True).squeeze(-1), k=8, dim=1)\n"
         "other = torch.zeros_like(x).scatter(1, top.indices[..., None].expand(-1, -1, d), x)",
         "hold_unclear"),
        ("ranks = torch.argsort(self.q(x)[:, :, 0], dim=1)\nother = x * ranks[..., None]",
         "hold_unclear"),
        ("other = F.group_norm(x.transpose(1, 2), 4).transpose(1, 2)", "hold_unclear"),
        ("best = torch.topk(self.q(x), k=2, dim=-1)\n"
         "other = torch.zeros_like(x).scatter(-1, best.indices, best.values)", "clean_neural"),
        ("other = F.group_norm(x.reshape(b * t, d), 4).view(b, t, d)", "clean_neural"),
        ("other = F.layer_norm(x, x.shape[-1:])", "clean_neural"),
        ("other = F.normalize(x, dim=-1)", "clean_neural"),
        ("other = torch.max(x, dim=-1, keepdim=True).values", "clean_neural"),
        ("other = x / x.norm(dim=-1, keepdim=True)", "clean_neural"),
        ("shares = torch.softmax(x.view(-1, d), dim=1)\nother = shares.view(b, t, d) * x",
         "clean_neural"),
        ("lanes = torch.stack([x, 2 * x], dim=1)\nother = x + lanes.sum(dim=1)", "clean_neural"),
        ("other = torch.fft.irfft(torch.fft.rfft(x, n=2 * t, dim=1), dim=1)[:, :t]",
         "clean_neural"),
        ("other = F.pad(x, (0, 0, 1, 0))[:, :-1]", "clean_neural"),
    ],
)  # fmt: skip
def test_operations_along_the_positions_look_ahead(tmp_path: Path, make: str, verdict: str) -> None:
    assert _judged(tmp_path, make) == verdict


@pytest.mark.parametrize(
    ("layer", "make", "verdict"),
    [
        ("self.mix = nn.Linear(512, 512)",
         "other = self.mix(x.transpose(1, 2)).transpose(1, 2)", "hold_unclear"),
        ("self.mix = Linear8(512, 512)",
         "turned = x.permute(0, 2, 1)\nother = self.mix(turned).mT", "hold_unclear"),
        ("self.mix = nn.Parameter(torch.zeros(512, 512))", "other = self.mix @ x", "hold_unclear"),
        ("self.mix = nn.GRU(64, 32, batch_first=True, bidirectional=True)",
         "other, _ = self.mix(x)", "hold_unclear"),
        ("self.mix = nn.GroupNorm(4, 64)",
         "y = x.reshape(b, t, d)\nother = self.mix(y.transpose(1, 2)).transpose(1, 2)",
         "hold_unclear"),
        ("self.mix = nn.InstanceNorm1d(64)",
         "turned = x.transpose(1, 2)\nother = self.mix(torch.tanh(turned)).transpose(1, 2)",
         "hold_unclear"),
        ("self.mix = nn.GroupNorm(4, 64)",
         "other = self.mix(x.view(b * t, d)).view(b, t, d)", "clean_neural"),
        ("self.mix = nn.Linear(64, 64)",
         "heads = x.view(b, t, 2, 32).transpose(1, 2)\nother = self.mix(heads).view(b, t, d)",
         "clean_neural"),
        ("self.mix = nn.Linear(64, 64)",
         "turned = F.conv1d(F.pad(x.transpose(1, 2), (2, 0)), self.q.weight)\n"
         "other = self.mix(turned.transpose(1, 2))", "clean_neural"),
        ("self.mix = nn.Parameter(torch.zeros(512, 512))", "other = self.mix.tril() @ x",
         "clean_neural"),
        ("self.mix = nn.GRU(64, 64, batch_first=True)", "other, _ = self.mix(x)", "clean_neural"),
    ],
)  # fmt: skip
def test_layers_along_the_positions_look_ahead(
    tmp_path: Path, layer: str, make: str, verdict: str
) -> None:
    assert _judged(tmp_path, make, layer) == verdict


QK = "q, k = self.q(x), self.k(x)\n"
HEADS = ("q = self.q(x).view(b, t, 2, 32).transpose(1, 2)\n"
         "k = self.k(x).view(b, t, 2, 32).transpose(1, 2)\n")  # fmt: skip


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (HEADS + "other = attend(q, k, k).transpose(1, 2).reshape(b, t, d)", "hold_unclear"),
        (HEADS + "y = F.scaled_dot_product_attention(q, k, k, attn_mask=None, is_causal=False)\n"
         "other = y.transpose(1, 2).reshape(b, t, d)", "hold_unclear"),
        (QK + "other = (q @ k.transpose(-2, -1) / 8).softmax(-1) @ x", "hold_unclear"),
        (QK + 'scores = torch.einsum("btd,bsd->bts", q, k)\nscores = scores.float() * 0.125\n'
         "other = F.softmax(scores, dim=-1) @ x", "hold_unclear"),
        (HEADS + "other = attend(q, k, k, is_causal=True).transpose(1, 2).reshape(b, t, d)",
         "clean_neural"),
        (HEADS + "told = {'is_causal': True}\nother = attend(q, k, k, **told).reshape(b, t, d)",
         "clean_neural"),
        (QK + "other = attend(q, self.shared, self.shared)", "clean_neural"),
        (QK + "rows = q.reshape(b * t, 2, 32)\nother = attend(rows, rows, rows).view(b, t, d)",
         "clean_neural"),
        ("q, k = self.q(x).view(b * t, 2, 2, 16).unbind(1)\n"
         "other = attend(q, k, k).view(b, t, -1)", "clean_neural"),
        (QK + "later = torch.ones(t, t).triu(1).bool()\n"
         "scores = (q @ k.transpose(-2, -1)).masked_fill(later, float('-inf'))\n"
         "other = scores.softmax(-1) @ x", "clean_neural"),
        (QK + "scores = q @ k.mT\nscores.masked_fill_(torch.ones(t, t).triu(1).bool(), -1e9)\n"
         "other = scores.softmax(-1) @ x", "clean_neural"),
        (QK + "other = (q @ self.shared[0].T).softmax(-1) @ self.shared[0]", "clean_neural"),
    ],
)  # fmt: skip
def test_attention_without_a_mask_looks_ahead(tmp_path: Path, make: str, verdict: str) -> None:
    assert _judged(tmp_path, make) == verdict


PLACES = "i = torch.arange(t, device=x.device)\n"


@pytest.mark.parametrize(
    ("mask", "verdict"),
    [
        ("i[:, None] // 8 >= i[None, :] // 8", "hold_unclear"),
        ("(i[:, None] >= i[None, :]) | (i[None, :] < 4)", "hold_unclear"),
        ("torch.ones(t, t, dtype=torch.bool)", "hold_unclear"),
        ("i[:, None] // 8 > i[None, :] // 8", "clean_neural"),
        ("i[:, None] >= i[None, :]", "clean_neural"),
        ("(i[:, None] >= i[None, :]) & (i[:, None] - i[None, :] < 128)", "clean_neural"),
        ("~torch.ones(t, t, dtype=torch.bool).triu(1)", "clean_neural"),
        ("(i[:, None] >= i[None, :]) | self.shared.bool()", "clean_neural"),
    ],
)
def test_a_mask_that_shows_later_keys_looks_ahead(tmp_path: Path, mask: str, verdict: str) -> None:
    make = HEADS + PLACES + f"mask = {mask}\nother = attend(q, k, k, attn_mask=mask)\n"
    assert _judged(tmp_path, make + "other = other.transpose(1, 2).reshape(b, t, d)") == verdict


SWITCHED = """
class Routed(nn.Module):
    def __init__(self, width, mode="tokens"):
        super().__init__()
        self.mode = mode
        self.router = nn.Linear(width, width)
    def forward(self, x):
        logits = self.router(x)
        if self.mode == "window":
            logits = logits.mean(dim=1, keepdim=True)
        return x + x * torch.sigmoid(logits)
{more}
class Own(Net):
    def __init__(self, width):
        super().__init__(width)
        self.mixer = {made}
    def hidden(self, x):
        return self.mixer(self.table(x))
"""
READ = "import os\nMODE = os.environ.get('MODE', 'tokens')\n"


@pytest.mark.parametrize(
    ("made", "more", "verdict"),
    [
        ("Routed(width)", "", "clean_neural"),
        ("Routed(width, MODE)", "", "clean_neural"),
        ("Routed(width, mode='window')", "", "hold_unclear"),
        ("nn.Sequential(Routed(width), Routed(width, 'window'))", "", "hold_unclear"),
        ("Routed(width, *[MODE])", "", "hold_unclear"),
        ("Routed(width)", "def later(net):\n    net.mode = 'window'\n", "hold_unclear"),
        ("Routed(width)", "def later(net, name):\n    setattr(net, name, 'window')\n",
         "hold_unclear"),
        ("[Routed(width), Kind(width, 'window')][1]", "Kind = Routed\n", "hold_unclear"),
        ("Routed(width)", "def know(x: Routed) -> Routed:\n    return isinstance(x, Routed)\n",
         "clean_neural"),
        ("Routed(width)", "class Other(Routed):\n    pass\n", "hold_unclear"),
    ],
)  # fmt: skip
def test_a_switch_is_off_where_every_object_is_made_with_it_off(
    tmp_path: Path, made: str, more: str, verdict: str
) -> None:
    text = READ + SWITCHED.format(made=made, more=more)
    main = "net = Own(64)\ntrain(net, load(s.train_files), s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(text, PLAIN, main=main)) == verdict
