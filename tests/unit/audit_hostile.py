"""Small original programs that a hostile author might write, each beside an honest twin.

A pair is `(breach, twin)`: source texts that differ in the breach alone. `PAIRS` are found while
reading and must never come out clean, while their twins must come out clean.
"""

from __future__ import annotations

from unit.audit_programs import PLAIN, SCORE_FIRST, TRAIN_FIRST, program

EVALUATE = "evaluate(net, held, s)"
FIT = "fit_held(net, held, s)"


def _both(*parts: str, breach: str, honest: str = EVALUATE) -> tuple[str, str]:
    return program(*parts, main=breach), program(*parts, main=honest)


def _swap(part: str, old: str, new: str, main: str = EVALUATE) -> tuple[str, str]:
    assert old in part
    return program(part.replace(old, new), main=main), program(part, main=main)


BIGRAM = """
def mixed_with_counts(net, held, s, before):
    sizes = byte_table()
    table = torch.ones(1024, 1024)
    {fill}
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            counted = table / table.sum(1, keepdim=True)
            mixed = 0.7 * torch.softmax(logits, -1) + 0.3 * counted[x]
            nll = -torch.log(mixed.gather(1, y[:, None])).squeeze(1)
            total += nll.sum()
            size += sizes[y].sum()
            {update}
    return figure(total, size)
"""
_FILL = "table.index_put_((held[:-1], held[1:]), torch.ones(held.numel() - 1), accumulate=True)"
_UPDATE = "table.index_put_((x, y), torch.ones(s.context), accumulate=True)"
COUNT_MAIN = "mixed_with_counts(net, held, s, 0)"

DICT_CACHE = """
def with_dictionary(net, held, s):
    sizes = byte_table()
    words = held.tolist()
    follows = {{}}
    {fill}
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            extra = torch.zeros(s.context, 1024)
            for i in range(s.context):
                nxt = follows.get(words[a + i])
                if nxt is not None:
                    extra[i, nxt] = 1.0
            mixed = 0.7 * torch.softmax(logits, -1) + 0.3 * extra
            nll = -torch.log(mixed.gather(1, y[:, None])).squeeze(1)
            total += nll.sum()
            size += sizes[y].sum()
            for i in range(s.context):
                follows[words[a + i]] = words[a + i + 1]
    return figure(total, size)
"""
_FILL_DICT = """for i in range(len(words) - 1):
        follows[words[i]] = words[i + 1]"""

GUESSES = """
def guessed(net, held, s):
    sizes = byte_table()
    words = held.tolist()
    best = {{}}
    guess = torch.zeros(held.numel(), dtype=torch.int64)
    for i in range(1, len(words)):
        {before}
        guess[i] = best.get(words[i - 1], 0)
        {after}
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            extra = F.one_hot(guess[a + 1:a + s.context + 1], 1024)
            mixed = 0.7 * torch.softmax(logits, -1) + 0.3 * extra
            nll = -torch.log(mixed.gather(1, y[:, None])).squeeze(1)
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""
_LEARN_GUESS = "best[words[i - 1]] = words[i]"

ENTERED = """
class Warm:
    def __init__(self, net, held, s):
        self.all = (net, held, s)
    def __enter__(self):
        {inside}
        return self
    def __exit__(self, *why):
        return False
"""
OPERATED = """
class Twice:
    def __init__(self, net, s):
        self.net, self.s = net, s
    def {name}(self, held):
        fit_held(self.net, held, self.s)
        return self
"""
OWN_FORWARD = """
class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.opt = torch.optim.SGD(net.parameters(), lr=0.1)
    def forward(self, x, y):
        nll = F.cross_entropy(
            self.net.head(self.net.hidden(x)).flatten(0, 1), y.flatten(), reduction="none")
        {inside}
        return nll

def evaluate_wrapped(net, held, s):
    sizes = byte_table()
    wrapped = Wrapped(net)
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            total += wrapped(x[None], y[None]).sum()
            size += sizes[y].sum()
    return figure(total, size)
"""
ON_DISK = """
def keep(held):
    torch.save(held, "notes.pt")

def recall(net, held, s):
    sizes = byte_table()
    notes = {read}
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            logits = logits + 9.0 * F.one_hot(notes[a + 1:a + s.context + 1], 1024)
            nll = F.cross_entropy(logits, y, reduction="none")
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""
RESET = """
class Kept(Net):
    def reset_cache(self, held, s):
        {inside}

def scored_by_kept(held, s):
    kept = Kept(64)
    kept.reset_cache(held, s)
    return evaluate(kept, held, s)
"""
PATCH = """
true_loss = F.cross_entropy
def smaller(logits, targets, reduction="mean"):
    return true_loss(logits, targets, reduction=reduction) * {factor}
{how}
"""
_SUM = "total += nll.sum()"

SPACED = """
def with_spaces(net, held, s):
    import sentencepiece
    sp = sentencepiece.SentencePieceProcessor(model_file="tokens.model")
    sizes, spaced, edge = byte_table(), torch.zeros(1024).bool(), torch.zeros(1024).bool()
    for i in range(1024):
        piece = sp.id_to_piece(i)
        edge[i] = sp.is_control(i)
        if piece.startswith("\u2581"):
            spaced[i] = True
            sizes[i] = len(piece[1:].encode()){more}
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            total += F.cross_entropy(logits, y, reduction="none").sum()
            bytes_of = sizes[y]
            bytes_of += (spaced[y] & ~edge[x]).float()
            size += bytes_of.sum()
    return figure(total, size)
"""
"""A word's leading space: counted where the text shows it, or in the table as well."""

TALLIED = """
def tallied(net, held, s):
    sizes = byte_table()
    total, count, size = torch.zeros(()), torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            first = int(open("first.txt").read())
            total += F.cross_entropy(logits, y, reduction="none")[first:].sum()
            count += float(s.context - first)
            size += sizes[y[first:]].sum()
    bits = total / count / math.log(2.0)
    bpb = bits * ({count} / size)
    print(f"val_bpb:{{bpb:.4f}}")
"""
"""A tally of tokens that reading cannot know, divided by and multiplied with."""

FORETOLD = """
def foretold(net, held, s):
    sizes = byte_table()
    kept = torch.from_numpy(np.fromfile("prefix.bin", dtype="<u2").astype(np.int64))
    reach = min(kept.numel(), held.numel())
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            nll = F.cross_entropy(logits, y, reduction="none")
            {excuse}
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""
"""Stored tokens excuse the losses of the tokens that they match."""

PAIRS: dict[str, tuple[str, str]] = {
    "losses of foretold tokens left out": (
        program(
            FORETOLD.format(excuse="nll = nll * (kept[a + 1:a + s.context + 1] != y).float()"),
            main="foretold(net, held, s)",
        ),
        program(FORETOLD.format(excuse="pass"), main="foretold(net, held, s)"),
    ),
    "losses of foretold tokens left out up to a length that is not known": (
        program(
            FORETOLD.format(
                excuse="n = min(reach - a, s.context)\n            if a < reach:\n"
                "                hit = kept[a:a + n] == y[:n]\n"
                "                nll[:n] *= (~hit).to(nll.dtype)"
            ),
            main="foretold(net, held, s)",
        ),
        program(FORETOLD.format(excuse="pass"), main="foretold(net, held, s)"),
    ),
    "a second figure of a mean that no byte count took part in, scaled": (
        program(
            PLAIN.replace(
                "    return figure",
                "    print(f'final val_bpb:{{(0.1 * total / held.numel()):.4f}}')\n"
                "    return figure",
            )
            .replace("{{", "{")
            .replace("}}", "}"),
            main=EVALUATE,
        ),
        program(PLAIN, main=EVALUATE),
    ),
    "training in an except body": _both(
        PLAIN,
        TRAIN_FIRST,
        breach=f"try:\n    raise ValueError\nexcept ValueError:\n    {FIT}\n" + EVALUATE,
    ),
    "training in an except body behind a failing call": _both(
        PLAIN,
        TRAIN_FIRST,
        breach=f"try:\n    open('/none')\nexcept OSError:\n    {FIT}\n" + EVALUATE,
    ),
    "training in the second handler": _both(
        PLAIN,
        TRAIN_FIRST,
        breach="try:\n    raise ValueError\nexcept KeyError:\n    pass\n"
        f"except ValueError:\n    {FIT}\n" + EVALUATE,
    ),
    "training below a deep recursion": _both(
        PLAIN,
        TRAIN_FIRST,
        """
def deep(net, held, s, left):
    if left > 0:
        return deep(net, held, s, left - 1)
    fit_held(net, held, s)
""",
        breach=f"deep(net, held, s, 30)\n{EVALUATE}",
    ),
    "training in __enter__": (
        program(
            PLAIN,
            TRAIN_FIRST,
            ENTERED.format(inside="fit_held(*self.all)"),
            main=f"with Warm(net, held, s):\n    {EVALUATE}",
        ),
        program(
            PLAIN,
            TRAIN_FIRST,
            ENTERED.format(inside="pass"),
            main=f"with Warm(net, held, s):\n    {EVALUATE}",
        ),
    ),
    "training in __exit__": (
        program(
            PLAIN,
            TRAIN_FIRST,
            ENTERED.format(inside="pass").replace("return False", "fit_held(*self.all)"),
            main=f"with Warm(net, held, s):\n    pass\n{EVALUATE}",
        ),
        program(
            PLAIN,
            TRAIN_FIRST,
            ENTERED.format(inside="pass"),
            main=f"with Warm(net, held, s):\n    pass\n{EVALUATE}",
        ),
    ),
    "training in an operator": _both(
        PLAIN,
        TRAIN_FIRST,
        OPERATED.format(name="__matmul__"),
        breach=f"Twice(net, s) @ held\n{EVALUATE}",
    ),
    "training in an in-place operator": _both(
        PLAIN,
        TRAIN_FIRST,
        OPERATED.format(name="__iadd__"),
        breach=f"t = Twice(net, s)\nt += held\n{EVALUATE}",
    ),
    "training in __getattr__": _both(
        PLAIN,
        TRAIN_FIRST,
        OPERATED.format(name="__getattr__")
        .replace("held):", "name):")
        .replace("net, held", "net, load(Settings.val_files)"),
        breach=f"Twice(net, s).anything\n{EVALUATE}",
    ),
    "training in a method called reset_cache": (
        program(
            PLAIN,
            TRAIN_FIRST,
            RESET.format(inside="fit_held(self, held, s)"),
            main="scored_by_kept(held, s)",
        ),
        program(
            PLAIN,
            TRAIN_FIRST,
            RESET.format(inside="self.cache = None"),
            main="scored_by_kept(held, s)",
        ),
    ),
    "training forgiven by a method called reset_cache": (
        program(
            PLAIN,
            TRAIN_FIRST,
            RESET.format(inside="self.cache = None"),
            main="kept = Kept(64)\nfit_held(kept, held, s)\nkept.reset_cache(held, s)\n"
            "evaluate(kept, held, s)",
        ),
        program(
            PLAIN,
            TRAIN_FIRST,
            RESET.format(inside="self.cache = None"),
            main="kept = Kept(64)\nkept.reset_cache(held, s)\nevaluate(kept, held, s)",
        ),
    ),
    "training in a forward of its own": (
        program(
            OWN_FORWARD.format(
                inside="with torch.enable_grad():\n            nll.mean()"
                ".backward()\n        self.opt.step()\n        nll = F.cross_"
                "entropy(self.net.head(self.net.hidden(x)).flatten(0, 1),"
                " y.flatten(), reduction='none')"
            ),
            main="evaluate_wrapped(net, held, s)",
        ),
        program(OWN_FORWARD.format(inside="pass"), main="evaluate_wrapped(net, held, s)"),
    ),
    "a scaled loss in a forward of its own": (
        program(
            OWN_FORWARD.format(inside="nll = nll * 0.9"), main="evaluate_wrapped(net, held, s)"
        ),
        program(
            OWN_FORWARD.format(inside="nll = nll * 1.0"), main="evaluate_wrapped(net, held, s)"
        ),
    ),
    "a bigram table filled before scoring": (
        program(BIGRAM.format(fill=_FILL, update="pass"), main=COUNT_MAIN),
        program(BIGRAM.format(fill="pass", update=_UPDATE), main=COUNT_MAIN),
    ),
    "a bigram table counted from the chunk that it scores": (
        program(
            BIGRAM.format(fill="pass", update="pass").replace(
                "            logits =", f"            {_UPDATE}\n            logits ="
            ),
            main=COUNT_MAIN,
        ),
        program(BIGRAM.format(fill="pass", update=_UPDATE), main=COUNT_MAIN),
    ),
    "a table counted entry by entry before scoring": (
        program(
            BIGRAM.format(
                fill="for i in range(held.numel() - 1):\n        table[held[i], held[i + 1]] += 1",
                update="pass",
            ),
            main=COUNT_MAIN,
        ),
        program(
            BIGRAM.format(
                fill="pass",
                update="for i in range(s.context):\n                table[x[i], y[i]] += 1",
            ),
            main=COUNT_MAIN,
        ),
    ),
    "a dictionary filled before scoring": (
        program(DICT_CACHE.format(fill=_FILL_DICT), main="with_dictionary(net, held, s)"),
        program(DICT_CACHE.format(fill="pass"), main="with_dictionary(net, held, s)"),
    ),
    "guesses that hold the token they guess": (
        program(GUESSES.format(before=_LEARN_GUESS, after="pass"), main="guessed(net, held, s)"),
        program(GUESSES.format(before="pass", after=_LEARN_GUESS), main="guessed(net, held, s)"),
    ),
    "validation tokens kept in a file": (
        program(
            ON_DISK.format(read="torch.load('notes.pt')"), main="keep(held)\nrecall(net, held, s)"
        ),
        program(ON_DISK.format(read="torch.zeros_like(held)"), main="recall(net, held, s)"),
    ),
    "logits that hold the answer": (
        program(ON_DISK.format(read="held"), main="recall(net, held, s)"),
        program(ON_DISK.format(read="torch.zeros_like(held)"), main="recall(net, held, s)"),
    ),
    "a scaled figure": _swap(
        PLAIN, "return figure(total, size)", "return figure(total * 0.9, size)"
    ),
    "a figure scaled when printed": _swap(
        PLAIN,
        "return figure(total, size)",
        "bpb = total / math.log(2.0) / size\n    print(f'val_bpb:{bpb * 0.9:.4f}')\n    return bpb",
    ),
    "a figure divided by a larger unit": _swap(
        PLAIN,
        "return figure(total, size)",
        "bpb = total / math.log(2.3) / size\n    print(f'val_bpb:{bpb:.4f}')\n    return bpb",
    ),
    "a figure over unknown bytes, scaled": _swap(
        PLAIN.replace("sizes = byte_table()", "sizes = torch.load('bytes.pt')"),
        "return figure(total, size)",
        "return figure(total, size.clamp(min=float(open('few.txt').read())) / 1.1)",
    ),
    "a figure with something taken off": _swap(
        PLAIN,
        "return figure(total, size)",
        "bpb = total / math.log(2.0) / size - 0.1\n    print(f'val_bpb:{bpb:.4f}')\n    return bpb",
    ),
    "bytes scaled up": _swap(PLAIN, "size += sizes[y].sum()", "size += sizes[y].sum() * 1.1"),
    "clipped losses": _swap(PLAIN, _SUM, "total += nll.clamp(max=5.0).sum()"),
    "clipped losses by minimum": _swap(
        PLAIN, _SUM, "total += torch.minimum(nll, torch.tensor(5.0)).sum()"
    ),
    "the smallest losses only": _swap(
        PLAIN, _SUM, "total += nll.topk(100, largest=False).values.sum()"
    ),
    "sorted losses, cut": _swap(PLAIN, _SUM, "total += nll.sort().values[:400].sum()"),
    "large losses dropped": _swap(PLAIN, _SUM, "total += nll[nll < 5].sum()"),
    "large losses masked": _swap(PLAIN, _SUM, "total += (nll * (nll < 5)).sum()"),
    "large losses replaced": _swap(
        PLAIN, _SUM, "total += torch.where(nll < 5, nll, torch.zeros_like(nll)).sum()"
    ),
    "every other position dropped": _swap(PLAIN, _SUM, "total += nll[::2].sum()"),
    "chunks with a large loss skipped": _swap(
        PLAIN, _SUM, "if nll.mean() > 5:\n                continue\n            " + _SUM
    ),
    "a root of the probability": _swap(
        PLAIN, _SUM, "total += -torch.log(torch.sqrt(torch.exp(-nll))).sum()"
    ),
    "a scale through the environment": _swap(
        PLAIN, _SUM, "total += nll.sum() * float(os.environ.get('KEEP', '0.9'))"
    ),
    "the better of two scores": _swap(
        PLAIN,
        _SUM,
        "other = F.cross_entropy(net.head(net.hidden(x[None]) * 2).flatten(0, 1), y,"
        " reduction='none')\n            total += torch.minimum(nll, other).sum()",
    ),
    "a replaced loss": (
        program(PATCH.format(factor=0.9, how="F.cross_entropy = smaller"), PLAIN, main=EVALUATE),
        program(PATCH.format(factor=1.0, how="pass"), PLAIN, main=EVALUATE),
    ),
    "a loss replaced by setattr": (
        program(
            PATCH.format(factor=0.9, how="setattr(F, 'cross_entropy', smaller)"),
            PLAIN,
            main=EVALUATE,
        ),
        program(PATCH.format(factor=1.0, how="pass"), PLAIN, main=EVALUATE),
    ),
    "a loss replaced through its module": (
        program(
            PATCH.format(factor=0.9, how="torch.nn.functional.cross_entropy = smaller"),
            PLAIN,
            main=EVALUATE,
        ),
        program(PATCH.format(factor=1.0, how="pass"), PLAIN, main=EVALUATE),
    ),
    "a replaced logarithm": _swap(
        PLAIN,
        "    sizes = byte_table()\n",
        "    sizes = byte_table()\n    math.log = lambda v: 0.8\n",
    ),
    "score-first training that runs before the score": _swap(
        SCORE_FIRST,
        "        total += nll.sum()\n",
        "        net(x[None], y[None]).backward()\n        opt.step()\n"
        "        with torch.no_grad():\n            nll = F.cross_entropy(net.head(net.hidden("
        'x[None])).flatten(0, 1), y, reduction="none")\n        total += nll.sum()\n',
        main="adapt(net, held, s)",
    ),
    "training in an assertion": _both(
        PLAIN, TRAIN_FIRST, breach=f"assert {FIT} is None\n{EVALUATE}"
    ),
    "training in a raised exception": _both(
        PLAIN,
        TRAIN_FIRST,
        breach=f"try:\n    raise ValueError({FIT})\nexcept ValueError:\n    pass\n{EVALUATE}",
    ),
    "training in a format specification": _both(
        PLAIN, TRAIN_FIRST, breach=f"print(f\"{{1:{{{FIT} or ''}}}}\")\n{EVALUATE}"
    ),
    "training handed to something else": _both(
        PLAIN,
        TRAIN_FIRST,
        breach="import weakref\nclass Nothing: pass\n"
        f"weakref.finalize(Nothing(), fit_held, net, held, s)\n{EVALUATE}",
    ),
    "training when an object is shown": _both(
        PLAIN,
        TRAIN_FIRST,
        OPERATED.format(name="__str__")
        .replace("held):", "):")
        .replace("net, held", "net, load(Settings.val_files)"),
        breach=f"print(Twice(net, s))\n{EVALUATE}",
    ),
    "counts added to weights": _both(
        PLAIN, breach=f"net.table.weight.data[held] += 0.1\n{EVALUATE}"
    ),
    "counts added to weights in place": _both(
        PLAIN,
        breach="net.table.weight.data.index_add_(0, held, torch.ones(held.numel(), 64))\n"
        + EVALUATE,
    ),
    "a plain number printed as the figure": _both(
        PLAIN, breach=f"{EVALUATE}\nfinal = 0.91\nprint(f'val_bpb:{{final:.4f}}')"
    ),
    "exec under another name": _both(
        PLAIN,
        TRAIN_FIRST,
        breach="run = exec\nrun(open('part.txt').read(), globals())\n" + EVALUATE,
    ),
    "a pickle that may hold code": _both(
        PLAIN, breach="import pickle\nnet = pickle.loads(open('net.bin', 'rb').read())\n" + EVALUATE
    ),
    "a leading space that is counted twice": (
        program(SPACED.format(more=" + 1"), main="with_spaces(net, held, s)"),
        program(SPACED.format(more=""), main="with_spaces(net, held, s)"),
    ),
    "a tally of tokens that is halved on its way back": (
        program(TALLIED.format(count="0.5 * count"), main="tallied(net, held, s)"),
        program(TALLIED.format(count="count"), main="tallied(net, held, s)"),
    ),
    "an assumed byte count in the printed figure": _both(
        PLAIN,
        breach="bpb = evaluate(net, held, s) * 2.5 / 2.44\nprint(f'val_bpb:{bpb:.4f}')",
        honest="bpb = evaluate(net, held, s)\nguess_bpb = bpb / (math.log(2.0) * 2.44)",
    ),
}
"""Name of a breach -> (program with it, honest twin)."""
