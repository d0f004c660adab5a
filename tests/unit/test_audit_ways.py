"""Ways to a figure that were once lost or not seen, each as a small program and its twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from niblick.audit.review import review
from unit.audit_programs import PLAIN, SCORE_FIRST, TRAIN_FIRST, judged, program

PICKLED = """
import pickle
from pathlib import Path

def back(net):
    place = Path("model.pkl")
    with place.open("{mode}") as f:
        f.write(pickle.dumps(net.state_dict()))
    with place.open("rb") as f:
        net.load_state_dict(pickle.loads(f.read()))
"""


@pytest.mark.parametrize(("mode", "own"), [("wb", True), ("rb", False)])
def test_a_pickle_is_the_run_s_own_if_the_run_writes_it(
    tmp_path: Path, mode: str, own: bool
) -> None:
    text = program(PICKLED.format(mode=mode), PLAIN, main="back(net)\nevaluate(net, held, s)")
    assert judged(tmp_path, text) == ("clean_neural" if own else "hold_unclear")


CUTS = [
    "most = int(os.environ.get('MOST', 0))\nif most > 0:\n    held = held[:min(most, len(held))]",
    "most = int(os.environ.get('MOST', 0))\n"
    "if most > 0:\n    keep = (min(most, held.numpy().size - 1) // 512) * 512\n"
    "    held = held[:keep + 1]",
    "held = held[:int(os.environ.get('MOST', len(held)))].contiguous()",
]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("most", "part"), [("1048576", True), ("0", False), ("90000000", False)])
def test_a_split_cut_by_the_documented_settings_is_a_part_of_it(
    tmp_path: Path, cut: str, most: str, part: bool
) -> None:
    if most == "0" and "len(held)))" in cut:
        most = "62000000"
    readme = f"```bash\nMOST={most} python train_gpt.py\n```\n"
    verdict = judged(
        tmp_path, program(PLAIN, main=cut + "\nevaluate(net, held, s)"), README__md=readme
    )
    assert verdict == ("flag_other" if part else "clean_neural")


@pytest.mark.parametrize(("number", "part"), [("min(500, {})", True), ("{}", False)])
def test_a_fixed_number_of_windows_is_a_part_of_the_split(
    tmp_path: Path, number: str, part: bool
) -> None:
    windows = number.format("(held.numel() - 1) // s.context")
    text = PLAIN.replace(
        "for a in range(0, held.numel() - 1 - s.context, s.context):",
        f"for i in range({windows}):\n            a = i * s.context",
    )
    verdict = judged(tmp_path, program(text, main="evaluate(net, held, s)"))
    assert verdict == ("flag_other" if part else "clean_neural")


def test_a_first_window_of_a_fixed_length_cuts_nothing(tmp_path: Path) -> None:
    text = PLAIN.replace(
        "for a in range(0, held.numel() - 1 - s.context, s.context):\n",
        "first = min(s.context, held.numel() - 1)\n"
        "        for i in range(1 + (held.numel() - 1 - first) // s.context):\n"
        "            a = first + (i - 1) * s.context\n",
    )
    verdict = judged(tmp_path, program(text, main="evaluate(net, held, s)"))
    assert verdict == "clean_neural"


def test_a_part_that_is_scored_on_the_way_is_no_breach_beside_the_whole(tmp_path: Path) -> None:
    main = "evaluate(net, held[:32768], s)\nevaluate(net, held, s)"
    assert judged(tmp_path, program(PLAIN, main=main)) == "clean_neural"


BYTES = """
def tables():
    base = torch.zeros(260, dtype=torch.int16)
    base[4:] = 1
    lead = torch.zeros(260, dtype=torch.bool)
    edge = torch.ones(260, dtype=torch.bool)
    return base, lead, edge

def bytewise(net, held, s):
    base, lead, edge = tables()
    total, size, count = torch.zeros(()), torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            loss = net(x[None], y[None])
            loss = loss[0] if isinstance(loss, tuple) else loss
            total += loss * y.numel()
            b = base[y].to(torch.int16)
            b += (lead[y] & ~edge[x]).to(torch.int16)
            size += b.sum(){more}
    return figure(total, size)
"""


@pytest.mark.parametrize(("more", "verdict"), [("", "clean"), (" + b.sum()", "flag")])
def test_where_each_token_is_a_byte_its_table_holds_ones(
    tmp_path: Path, more: str, verdict: str
) -> None:
    text = program(BYTES.format(more=more), main="bytewise(net, held, s)")
    assert judged(tmp_path, text).startswith(verdict)


CLOCKED = """
import time

def maybe(net, held, s, t0):
    if 600.0 - (time.perf_counter() - t0) < 60:
        print("no time left")
    elif hasattr(net, "table") and net.table is not None:
        {act}
"""


@pytest.mark.parametrize(
    ("act", "verdict"), [("fit_held(net, held, s)", "flag_prequant_ttt"), ("pass", "clean_neural")]
)
def test_what_a_clock_leaves_time_for_is_done(tmp_path: Path, act: str, verdict: str) -> None:
    main = "maybe(net, held, s, time.perf_counter())\nevaluate(net, held, s)"
    text = program(TRAIN_FIRST, CLOCKED.format(act=act), PLAIN, main=main)
    assert judged(tmp_path, text) == verdict


WEIGHTED = (
    "loss = (F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction='none')"
    " * sizes[y]).sum() / sizes[y].sum()\n"
    "            loss.backward()\n"
    "            print(f'step loss={loss.item():.4f}')"
)


def test_a_loss_by_bytes_that_is_trained_on_and_printed_is_no_figure(tmp_path: Path) -> None:
    part = SCORE_FIRST.replace("net(x[None], y[None]).backward()", WEIGHTED)
    assert judged(tmp_path, program(part, main="adapt(net, held, s)")) == "clean_ttt_score_first"
    again = part.replace("total += nll.sum()", "pass").replace(
        "loss.backward()", "loss.backward(); total += loss.detach() * sizes[y].sum()"
    )
    assert not judged(tmp_path, program(again, main="adapt(net, held, s)")).startswith("clean")


EXPERTS = """
def mixed(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logp = F.log_softmax(net.head(net.hidden(x[None])), -1)[0]
            one = logp.gather(1, y[:, None])[:, 0]
            two = {expert}
            both = torch.stack([one, two], dim=-1) + math.log(0.5)
            total -= both.logsumexp(dim=-1).sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


def test_an_expert_that_says_nothing_of_the_token_breaks_a_mixture(tmp_path: Path) -> None:
    entropy = EXPERTS.format(expert="(logp.exp() * logp).sum(-1)")
    assert judged(tmp_path, program(entropy, main="mixed(net, held, s)")) == "flag_other"
    flat = EXPERTS.format(expert="torch.full_like(one, -math.log(1024))")
    assert not judged(tmp_path, program(flat, main="mixed(net, held, s)")).startswith("flag")


HOOKED = """
def hessians(net, tokens, s):
    found, hooks = {}, []
    def keep(name):
        def hook(module, given, out):
            found[name] = given[0].float()
        return hook
    for name, part in net.named_modules():
        if isinstance(part, nn.Embedding):
            hooks.append(part.register_forward_hook(keep(name)))
    with torch.no_grad():
        for a in range(0, 8 * s.context, s.context):
            net(tokens[a:a + s.context][None], tokens[a + 1:a + s.context + 1][None])
    for hook in hooks:
        hook.remove()
    return found
"""


@pytest.mark.parametrize("name", ["held", "load(s.train_files)"])
def test_hooks_on_the_parts_of_a_model_calibrate_it(tmp_path: Path, name: str) -> None:
    text = program(HOOKED, PLAIN, main=f"hessians(net, {name}, s)\nevaluate(net, held, s)")
    assert judged(tmp_path, text) == ("hold_unclear" if name == "held" else "clean_neural")


def test_hooks_that_look_on_while_tokens_are_scored_calibrate_nothing(tmp_path: Path) -> None:
    main = "net.table.register_forward_hook(lambda m, i, o: print(o.mean()))\n"
    text = program(PLAIN, main=main + "evaluate(net, held, s)")
    assert judged(tmp_path, text) == "clean_neural"


STRIDED = """
def strided(net, held, s):
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - 8 * s.context, 8 * 64):
            raw = held[a:a + 7 * 64 + s.context + 1]
            x = raw[:-1].as_strided((8, s.context), (64, 1))
            y = raw[1:].as_strided((8, s.context), (64, 1))
            nll = F.cross_entropy(
                net.head(net.hidden(x)).flatten(0, 1), y.reshape(-1), reduction="none"
            ).reshape(8, s.context)
            for i in range(8):
                first = 0 if a + i == 0 else s.context - 64
                total += nll[i, first:].sum()
                size += sizes[y[i, first:{end}]].sum()
    return figure(total, size)
"""


@pytest.mark.parametrize(("end", "verdict"), [("", "clean"), ("-8", "flag")])
def test_windows_may_be_views_by_strides(tmp_path: Path, end: str, verdict: str) -> None:
    text = program(STRIDED.format(end=end), main="strided(net, held, s)")
    assert judged(tmp_path, text).startswith(verdict)


def test_a_log_that_names_a_kind_in_place_of_a_value_sets_nothing(tmp_path: Path) -> None:
    text = program(PLAIN, main="evaluate(net, held, s)")
    assert judged(tmp_path, text, train__log="context: int = 4\n") == "clean_neural"


SWITCHED = "if os.environ.get('EXTRA', '0') == '1':\n    fit_held(net, held, s)\n"


@pytest.mark.parametrize("switch", ["0", "1"])
@pytest.mark.parametrize(
    ("launch", "files"),
    [
        ("python start.py", {"start__py": "import runpy\nrunpy.run_path('train_gpt.py')\n"}),
        ("SCRIPT=train_gpt.py\npython $SCRIPT", {}),
    ],
)
def test_a_command_may_name_the_script_by_a_launcher_or_a_variable(
    tmp_path: Path, launch: str, files: dict[str, str], switch: str
) -> None:
    text = program(TRAIN_FIRST, PLAIN, main=SWITCHED + "evaluate(net, held, s)")
    readme = f"```bash\nexport EXTRA={switch}\n{launch}\n```\n"
    (tmp_path / "train_gpt.py").write_text(text)
    (tmp_path / "README.md").write_text(readme)
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_text(content)
    verdict = review(tmp_path, script="train_gpt.py").verdict
    assert verdict == ("flag_prequant_ttt" if switch == "1" else "clean_neural")


COUNTED = """
def counted(net, held, s):
    counts, n = {make}, 0
    {before}
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logp = F.log_softmax(net.head(net.hidden(x[None])), -1)[0]
            for i in range(s.context):
                t = int(y[i])
                p = 0.9 * torch.exp(logp[i, t]) + 0.1 * (counts[t] + 1) / (n + 1024)
                total += -torch.log(p)
                size += sizes[t]
            {after}
    return figure(total, size)
"""
FILL = "for t in {}.tolist(): counts[t] += 1; n += 1"


@pytest.mark.parametrize("make", ["[0] * 1024", "np.zeros(1024)", "{k: 0 for k in range(1024)}"])
@pytest.mark.parametrize("first", [True, False])
def test_counts_filled_token_by_token_hold_what_they_have_seen(
    tmp_path: Path, make: str, first: bool
) -> None:
    before, after = (FILL.format("held"), "pass") if first else ("pass", FILL.format("y"))
    part = COUNTED.format(make=make, before=before, after=after)
    verdict = judged(tmp_path, program(part, main="counted(net, held, s)"))
    assert verdict == ("flag_ngram" if first else "clean_ttt_score_first")
