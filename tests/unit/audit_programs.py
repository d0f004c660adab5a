"""Small original training programs for the tests of the static review, each built from the same
parts.
"""

from __future__ import annotations

from pathlib import Path

from niblick.audit.review import review

HEAD = """
import glob, math, os
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

class Settings:
    train_files = os.environ.get("TRAIN_FILES", "./data/fineweb_train_*.bin")
    val_files = os.environ.get("VAL_FILES", "./data/fineweb_val_*.bin")
    adapt = bool(int(os.environ.get("ADAPT", "{adapt}")))
    context = int(os.environ.get("CONTEXT", "512"))

def load(pattern):
    files = sorted(glob.glob(pattern))
    parts = [np.fromfile(f, dtype="<u2", offset=1024).astype(np.int64) for f in files]
    return torch.from_numpy(np.concatenate(parts))

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(1024, width)
    def hidden(self, x):
        return self.table(x)
    def head(self, h):
        return h @ self.table.weight.T
    def forward(self, x, y):
        return F.cross_entropy(self.head(self.hidden(x)).flatten(0, 1), y.flatten())

def byte_table():
    return torch.ones(1024)

def train(net, stream, s):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(100):
        a = step * s.context
        x, y = stream[a:a + s.context], stream[a + 1:a + s.context + 1]
        opt.zero_grad()
        net(x[None], y[None]).backward()
        opt.step()

def figure(total, size):
    bpb = total / math.log(2.0) / size
    print(f"val_bpb:{{bpb:.4f}}")
    return bpb
"""

PLAIN = """
def evaluate(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""

TRAIN_FIRST = """
def fit_held(net, held, s):
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - s.context, s.context):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        opt.zero_grad()
        net(x[None], y[None]).backward()
        opt.step()
"""

SCORE_FIRST = """
def adapt(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - s.context, s.context):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        with torch.no_grad():
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
        total += nll.sum()
        size += sizes[y].sum()
        for epoch in range(3):
            opt.zero_grad()
            net(x[None], y[None]).backward()
            opt.step()
    return figure(total, size)
"""

LAST_EPOCH = """
def adapt(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for a in range(0, held.numel() - 1 - s.context, s.context):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        for epoch in range(3):
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
            if epoch == 2:
                total += nll.detach().sum()
                size += sizes[y].sum()
            opt.zero_grad()
            nll.mean().backward()
            opt.step()
    return figure(total, size)
"""

SLOT = """
def shifted(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    for a in range(0, held.numel() - 1 - s.context, {stride}):
        x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
        with torch.no_grad():
            h = net.hidden(x[None])
        bias = torch.zeros(1, 1, h.size(-1), requires_grad=True)
        opt = torch.optim.AdamW([bias], lr=0.01)
        for _ in range(4):
            nll = F.cross_entropy(net.head(h + bias).flatten(0, 1), y, reduction="none")
            opt.zero_grad()
            nll[{fit}].mean().backward()
            opt.step()
        with torch.no_grad():
            nll = F.cross_entropy(net.head(h + bias).flatten(0, 1), y, reduction="none")
        first = 0 if a == 0 else s.context - {stride}
        {skip}
        total += nll[first:].sum()
        size += sizes[y[first:]].sum()
    return figure(total, size)
"""

COUNTS = """
def counted(net, held, s):
    sizes = byte_table()
    words = held.numpy()
    ctx_seen, pair_seen = np.zeros(65536), np.zeros({pair_shape})
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")
            where = np.arange(a + 1, a + s.context + 1)
            past, now = words[where - 1], words[where]
            ctx_key = (past * 36313) & 65535
            {key}
            p = {read} / np.maximum(ctx_seen[ctx_key], 1)
            mixed = 0.7 * np.exp(-nll.numpy()) + 0.3 * p
            total += torch.from_numpy(-np.log(mixed)).sum()
            size += sizes[y].sum()
            np.add.at(ctx_seen, ctx_key, 1)
            {write}
    return figure(total, size)
"""
HASHED = {
    "pair_shape": "65536",
    "key": "pair_key = (ctx_key ^ (now * 27191)) & 65535",
    "read": "pair_seen[pair_key]",
    "write": "np.add.at(pair_seen, pair_key, 1)",
}
DENSE = {
    "pair_shape": "(65536, 1024)",
    "key": "pass",
    "read": "pair_seen[ctx_key, now]",
    "write": "np.add.at(pair_seen, (ctx_key, now), 1)",
}


def program(*parts: str, main: str, adapt: int = 0) -> str:
    """A whole script: the shared head, `parts`, and a `main` that trains and then does what `main`
    says.
    """
    body = "\n".join("    " + line for line in main.strip().splitlines())
    return (
        HEAD.format(adapt=adapt)
        + "\n".join(parts)
        + "\ndef main():\n    s = Settings()\n    net = Net(64)\n    train(net,"
        " load(s.train_files), s)\n    held = load(s.val_files)\n"
        + body
        + "\n\nif __name__ == '__main__':\n    main()\n"
    )


def judged(folder: Path, text: str, **files: str) -> str:
    """The verdict on a script and other files of its folder; "__" in a name stands for a point."""
    (folder / "train_gpt.py").write_text(text)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return review(folder).verdict
