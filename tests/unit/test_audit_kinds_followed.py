"""Kinds of programs that were once not followed to their figure, or lost on the way, each as a
small program and its twin.
"""

from __future__ import annotations

import base64
import json
import lzma
from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, SCORE_FIRST, TRAIN_FIRST, judged, program


@pytest.mark.parametrize(("times", "clean"), [("", True), ("2 * ", False)])
def test_what_both_ways_of_an_unknown_condition_add_is_added_once(
    tmp_path: Path, times: str, clean: bool
) -> None:
    size = "            size += sizes[y].sum()\n"
    ways = (
        "            if sizes.device.type == 'cuda':\n    "
        + size
        + f"            else:\n                size += {times}sizes[y].sum().float()\n"
    )
    text = program(PLAIN.replace(size, ways), main="evaluate(net, held, s)")
    assert (judged(tmp_path, text) == "clean_neural") is clean


CHUNKS = """
def chunks(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    tokens, most = held.numel() - 1, 524288
    with torch.no_grad():
        for turn in range({number}):
            first, last = turn * most, min((turn + 1) * most, tokens)
            for at in range(0, last - first - s.context, s.context):
                x, y = (held[first + at + i:first + at + i + s.context] for i in (0, 1))
                logits = net.head(net.hidden(x[None]))
                total += F.cross_entropy(logits.flatten(0, 1), y, reduction="sum")
                size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("number", "verdict"), [("(tokens + most - 1) // most", "clean_neural"), ("1", "flag_other")]
)
def test_a_large_chunk_is_no_part_of_the_split_where_others_follow(
    tmp_path: Path, number: str, verdict: str
) -> None:
    text = program(CHUNKS.format(number=number), main="chunks(net, held, s)")
    assert judged(tmp_path, text) == verdict


PENALIZED = """
class Net(Net):
    def forward(self, x, y):
        loss = F.cross_entropy(self.head(self.hidden(x)).flatten(0, 1), y.flatten())
        return loss + 0.1 * (self.hidden(x).var() - self.table.weight.mean())

def rough(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[None, a:a + s.context], held[None, a + 1:a + s.context + 1]
            total += net(x, y) * y.numel()
            size += sizes[y].sum()
    return total / math.log(2.0) / size
"""


@pytest.mark.parametrize(("claim", "clean"), [(1.0512, True), (1.1512, False)])
def test_the_claimed_figure_may_be_the_mean_of_several_runs(
    tmp_path: Path, claim: float, clean: bool
) -> None:
    main = (
        "print(f'rough val_bpb:{rough(net, held, s):.4f}')\n"
        "print(f'whole one val_bpb:{evaluate(net, held, s):.4f}')"
    )
    for run, (rough, whole) in enumerate([(1.1, 1.0011), (1.2, 1.1013)]):
        said = f"rough val_bpb:{rough:.4f}\nwhole one val_bpb:{whole:.4f}\n"
        (tmp_path / f"run{run}.log").write_text(said)
    (tmp_path / "submission.json").write_text(json.dumps({"name": "x", "val_bpb": claim}))
    text = program(PENALIZED, PLAIN, main=main).replace('print(f"val_bpb:{bpb:.4f}")', "pass")
    assert judged(tmp_path, text) == ("clean_neural" if clean else "hold_unclear")


CENTRED = """
class Net(Net):
    def forward(self, x, y):
        logits = self.head(self.hidden(x)).flatten(0, 1)
        own = F.cross_entropy(logits, y.flatten(), reduction="none")
        far = (own.detach() - own.detach().mean()) / own.detach().std()
        weight = torch.exp(-far.square() / 8)
        return (own * weight / weight.mean()).mean()
"""


@pytest.mark.parametrize(("claim", "verdict"), [(1.1013, "clean"), (1.2002, "flag_other")])
def test_weights_of_a_loss_that_only_training_shows_are_nothing_against_another_claim(
    tmp_path: Path, claim: float, verdict: str
) -> None:
    rough = PENALIZED[PENALIZED.index("def rough") :]
    main = (
        "print(f'rough val_bpb:{rough(net, held, s):.4f}')\n"
        "print(f'whole one val_bpb:{evaluate(net, held, s):.4f}')"
    )
    (tmp_path / "run.log").write_text("rough val_bpb:1.2002\nwhole one val_bpb:1.1013\n")
    (tmp_path / "submission.json").write_text(json.dumps({"name": "x", "val_bpb": claim}))
    text = program(CENTRED, rough, PLAIN, main=main).replace('print(f"val_bpb:{bpb:.4f}")', "pass")
    assert judged(tmp_path, text).startswith(verdict)


KEEPING = """
import copy

class Net(Net):
    def __init__(self, width, own):
        super().__init__(width)
        self.scale = own.scale
        self.settings = own
    def forward(self, x, y):
        loss = F.cross_entropy(self.head(self.hidden(x)).flatten(0, 1), y.flatten())
        return loss if self.{name} == 1 else loss * 0.9
"""


@pytest.mark.parametrize(
    ("name", "scale", "change", "verdict"),
    [
        ("settings.scale", 1, "pass", "clean"),
        ("settings.scale", 2, "pass", "flag_other"),
        ("settings.scale", 1, "s.scale = 2", "flag_other"),
        ("scale", 1, "model = copy.deepcopy(model)", "clean"),
        ("scale", 2, "model = copy.deepcopy(model)", "flag_other"),
    ],
)
def test_settings_that_a_model_keeps_are_known(
    tmp_path: Path, name: str, scale: int, change: str, verdict: str
) -> None:
    rough = PENALIZED[PENALIZED.index("def rough") :]
    main = f"s.scale = {scale}\nmodel = Net(64, s)\n{change}\n"
    main += "print(f'val_bpb:{rough(model, held, s):.4f}')"
    text = program(KEEPING.replace("{name}", name), rough, main=main)
    assert judged(tmp_path, text.replace("net = Net(64)", "net = Net(64, s)")).startswith(verdict)


HOOKED = """
def looked_on(net, stream, s):
    found, hooks = {}, []
    def keep(name):
        def hook(module, given, out):
            x = given[0].float().reshape(-1, given[0].shape[-1])
            found[name] = found.get(name, 0) + x.T @ x
        return hook
    for name, part in net.named_modules():
        hooks.append(part.register_forward_hook(keep(name)))
    with torch.no_grad():
        for a in range(0, 4 * s.context, s.context):
            net.hidden(stream[None, a:a + s.context])
    for hook in hooks:
        hook.remove()
    return found

def scaled(net, found):
    state = {}
    for name, weight in net.state_dict().items():
        seen = found.get(name.removesuffix(".weight"))
        state[name] = weight if seen is None else weight * seen.diagonal().sqrt()
    torch.save(state, "train_1.pt")
    net.load_state_dict(torch.load("train_1.pt"))

def some(net, found):
    state = {}
    for name, weight in net.state_dict().items():
        if weight.ndim == 2:
            state[name] = weight * found.get(name.removesuffix(".weight")).diagonal().sqrt()
        else:
            state[name] = weight.half()
    net.load_state_dict(state)
"""


@pytest.mark.parametrize(
    ("stream", "use", "verdict"),
    [
        ("held", "scaled(net, found)", "flag_other"),
        ("load(s.train_files)", "scaled(net, found)", "clean_neural"),
        ("held", "print(found)", "hold_unclear"),
        ("held", "some(net, found)", "flag_other"),
    ],
)
def test_what_hooks_have_seen_of_validation_tokens_calibrates_once_weights_are_made_of_it(
    tmp_path: Path, stream: str, use: str, verdict: str
) -> None:
    main = f"found = looked_on(net, {stream}, s)\n{use}\nevaluate(net, held, s)"
    assert judged(tmp_path, program(HOOKED, PLAIN, main=main)) == verdict


IMPORTED = """
import base64, lzma, os, sys
import importlib.util as tools
text = lzma.decompress(base64.b85decode({packed!r}))
place = "/tmp/inside.py"
if not os.path.exists(place) or os.path.getsize(place) != len(text):
    with open(place, "wb") as file:
        file.write(text)
spec = tools.spec_from_file_location("__main__", place)
module = tools.module_from_spec(spec)
sys.modules["__main__"] = module
spec.loader.exec_module(module)
"""


@pytest.mark.parametrize(
    ("main", "verdict"),
    [
        ("evaluate(net, held, s)", "clean_neural"),
        ("fit_held(net, held, s)\nevaluate(net, held, s)", "flag_prequant_ttt"),
    ],
)
def test_a_loader_may_import_what_it_has_written(tmp_path: Path, main: str, verdict: str) -> None:
    text = program(PLAIN, TRAIN_FIRST, main=main)
    packed = base64.b85encode(lzma.compress(text.encode())).decode()
    assert judged(tmp_path, IMPORTED.format(packed=packed)) == verdict


BYTES = """
def load(pattern):
    parts = []
    for name in sorted(glob.glob(pattern)):
        with open(name, "rb") as file:
            data = {read}
        head = torch.frombuffer(data[:1024], dtype=torch.int32)
        if head.numel() != 256 or int(head[0]) != 20240520:
            raise ValueError(name)
        if len(data) != 1024 + 2 * int(head[2]):
            raise ValueError(name)
        parts.append(torch.frombuffer(data, dtype=torch.int16, offset=1024).clone())
    return torch.cat(parts)
"""


@pytest.mark.parametrize("read", ["bytearray(file.read())", "file.read()"])
@pytest.mark.parametrize(
    ("main", "verdict"),
    [
        ("evaluate(net, held, s)", "clean_neural"),
        ("fit_held(net, held, s)\nevaluate(net, held, s)", "flag_prequant_ttt"),
    ],
)
def test_a_shard_may_be_read_as_bytes(tmp_path: Path, read: str, main: str, verdict: str) -> None:
    text = program(BYTES.format(read=read), PLAIN, TRAIN_FIRST, main=main)
    assert judged(tmp_path, text) == verdict


@pytest.mark.parametrize(("given", "verdict"), [("$2", "clean_neural"), ("1", "flag_prequant_ttt")])
def test_a_setting_that_a_shell_fills_in_is_left_to_what_gives_a_value(
    tmp_path: Path, given: str, verdict: str
) -> None:
    readme = f"```bash\nADAPT={given} python train_gpt.py\n```\n"
    main = "if s.adapt:\n    fit_held(net, held, s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(PLAIN, TRAIN_FIRST, main=main), README__md=readme) == verdict


TILTED = """
import ctypes

def foretold(held):
    hints = np.full(held.numel(), -1, dtype=np.int64)
    guess = ctypes.CDLL("./guess.so").guess
    guess(hints.ctypes.data_as(ctypes.c_void_p), len(hints))
    return torch.from_numpy(hints)

def tilted(net, held, s):
    sizes, hints, beta = byte_table(), foretold(held), torch.tensor(0.5)
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))[0]
            nll = F.cross_entropy(logits, y, reduction="none")
            hint = hints[a + 1:a + s.context + 1]
            there = (hint >= 0).double()
            wanted = logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
            other = logits.gather(-1, hint.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            share = (other - (nll + wanted)).exp().clamp(0.0, 1.0)
            norm = 1.0 + share * (beta.exp() - 1.0)
            hit = (y == hint).double()
            total += (nll + there * ({change})).sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("change", "clean"), [("norm.log() - beta * hit", True), ("-beta * hit", False)]
)
def test_a_tilt_by_native_hints_needs_its_normaliser(
    tmp_path: Path, change: str, clean: bool
) -> None:
    text = program(TILTED.format(change=change), main="tilted(net, held, s)")
    assert judged(tmp_path, text).startswith("clean") is clean


@pytest.mark.parametrize(
    ("alone", "use", "verdict"),
    [
        (True, "Table()", "clean_neural"),
        (False, "Table()", "import_fail"),
        (False, "pass", "clean_neural"),  # left over
    ],
)
def test_a_script_on_its_own_may_have_its_modules_elsewhere(
    tmp_path: Path, alone: bool, use: str, verdict: str
) -> None:
    text = "from our_tables import Table\n" + program(PLAIN, main=f"{use}\nevaluate(net, held, s)")
    files = {} if alone else {"README__md": "# A record\n"}
    assert judged(tmp_path, text, **files) == verdict


def test_of_several_breaches_of_one_place_the_surest_counts(tmp_path: Path) -> None:
    (tmp_path / "submission.json").write_text(json.dumps({"name": "x", "val_bpb": 1.02345}))
    (tmp_path / "train.log").write_text("turn 0 bpb=1.11111\nturn 2 bpb=1.05\nlast one:1.02345\n")
    main = (
        "for turn in range(3):\n    last = evaluate(net, held, s)\n"
        "    print(f'turn {turn} bpb={last:.5f}')\n    fit_held(net, held, s)\n"
        "print(f'last one:{evaluate(net, held, s):.5f}')"
    )
    text = program(PLAIN, TRAIN_FIRST, main=main)
    assert judged(tmp_path, text) == "flag_prequant_ttt"


KEPT = """
import io, zlib

def there_and_back(net):
    buffer = io.BytesIO()
    torch.save({"w": {k: v.half() for k, v in net.state_dict().items()}}, buffer)
    with open("model.ptz", "wb") as file:
        file.write(zlib.compress(buffer.getvalue()))
    with open("model.ptz", "rb") as file:
        data = file.read()
    kept = torch.load(io.BytesIO(zlib.decompress(data)))
    net.load_state_dict({k: v.float() for k, v in kept["w"].items()})
"""


@pytest.mark.parametrize(("fit", "verdict"), [("held", "flag_prequant_ttt"), ("", "clean_neural")])
def test_what_weights_have_learnt_is_in_the_file_that_holds_them(
    tmp_path: Path, fit: str, verdict: str
) -> None:
    first = "fit_held(net, held, s)\n" if fit else ""
    main = first + "there_and_back(net)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(KEPT, PLAIN, TRAIN_FIRST, main=main)) == verdict


@pytest.mark.parametrize(("adapt", "verdict"), [(0, "hold_unclear"), (1, "clean_ttt_score_first")])
def test_training_under_hooks_is_training(tmp_path: Path, adapt: int, verdict: str) -> None:
    hooked = "net.table.register_forward_hook(lambda m, i, o: print(o.mean()))\n"
    looked = "net(held[None, :512], held[None, 1:513])\nevaluate(net, held, s)"
    main = hooked + ("adapt(net, held, s)" if adapt else looked)
    assert judged(tmp_path, program(PLAIN, SCORE_FIRST, main=main)) == verdict


GUARDED = """
def guarded(total, size, step):
    out, done = [], 0
    for at in range(0, total - size, step):
        if done < at:
            raise RuntimeError(at)
        out.append((at, done, at + size))
        done = at + size
    return out

def spans(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for at, first, last in guarded(held.numel() - 1, s.context, 64):
            logits = net.head(net.hidden(held[None, at:last]))
            y = held[at + 1:last + 1]
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")[first - at:]
            total += {loss}.sum()
            size += sizes[y[first - at:]].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(
    ("loss", "verdict"), [("nll", "clean_neural"), ("0.9 * nll", "flag_other")]
)
def test_a_loop_that_checks_itself_is_taken_whole(tmp_path: Path, loss: str, verdict: str) -> None:
    text = program(GUARDED.format(loss=loss), main="spans(net, held, s)")
    assert judged(tmp_path, text) == verdict


PICKED = """
def picked(net, held, s):
    count = (torch.load("rows.pt").abs() == 1).sum(dim=1)
    rows = (count > 0).nonzero(as_tuple=False).flatten().tolist()
    {each}
"""


@pytest.mark.parametrize(
    ("each", "verdict"),
    [
        ("for _ in rows: evaluate(net, held, s)", "clean_neural"),
        ("for _ in rows: fit_held(net, held, s)\n    evaluate(net, held, s)", "flag_prequant_ttt"),
    ],
)
def test_rows_may_be_picked_by_what_is_counted_in_them(
    tmp_path: Path, each: str, verdict: str
) -> None:
    text = program(PICKED.format(each=each), PLAIN, TRAIN_FIRST, main="picked(net, held, s)")
    assert judged(tmp_path, text) == verdict


MADE_ONCE = """
def evaluate(net, held, s):
    sizes = byte_table()
    total, size, made = torch.zeros(()), torch.zeros(()), {{}}
    def losses(x, y):
        return F.cross_entropy(net.head(net.hidden(x)).flatten(0, 1), y, reduction="none")
    def built(n):
        key = {key}
        found = made.get(key)
        if found is None:
            found = torch.compile(losses, dynamic=False)
            made[key] = found
        return found
    {warm}
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            nll = built(x.size(0))(x[None], y)
            total += {scale}nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize("key", ["n", "(int(n), 1)", "'all'"])
@pytest.mark.parametrize("warm", ["pass", "built(32)(torch.zeros(1, 32).long(), torch.zeros(32))"])
@pytest.mark.parametrize(("scale", "verdict"), [("", "clean_neural"), ("0.9 * ", "flag_other")])
def test_functions_that_a_table_keeps_once_they_are_made_are_followed(
    tmp_path: Path, key: str, warm: str, scale: str, verdict: str
) -> None:
    text = MADE_ONCE.format(key=key, warm=warm, scale=scale)
    main = "net = Net(64)\ntrain(net, load(s.train_files), s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(text, main=main)) == verdict


@pytest.mark.parametrize(
    ("test", "verdict"),
    [("torch.version.hip is None", "clean_neural"), ("torch.version.hip", "flag_prequant_ttt")],
)
def test_the_program_is_followed_as_it_runs_on_cuda(
    tmp_path: Path, test: str, verdict: str
) -> None:
    main = f"net = Net(64)\nif not ({test}):\n    fit_held(net, held, s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(TRAIN_FIRST, PLAIN, main=main)) == verdict
