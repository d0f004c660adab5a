"""Sums that loops make beside whole ones, and what is chosen or gathered by validation tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.audit_programs import PLAIN, judged, program

MAIN = "evaluate(net, held, s)"
EACH = """
            logp = F.log_softmax(logits, -1)[0]
            for i, goal in {turns}:
                {adding}
"""


def each(adding: str, turns: str = "enumerate(y.tolist())") -> str:
    """The plain evaluation, which adds up losses token by token, and bytes by chunk."""
    whole = """
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")
            total += nll.sum()
"""
    assert whole in PLAIN
    return PLAIN.replace(whole, EACH.format(turns=turns, adding=adding))


@pytest.mark.parametrize(
    ("adding", "verdict"),
    [
        ("total -= logp[i, goal].item()", "clean_neural"),
        ("total += -logp[i, goal].item()", "clean_neural"),
        ("total -= 0.9 * logp[i, goal].item()", "flag_other"),
        ("total -= logp[i, goal].item() if i % 2 else 0.0", "hold_unclear"),
        ("w = 0.3 * torch.sigmoid(logits[0, i, 0])\n"
         "                mixed = torch.logaddexp(torch.log1p(-w) + logp[i], torch.log(w) - 4.16)\n"
         "                total -= mixed[goal].item()", "clean_neural"),
    ],
)  # fmt: skip
def test_losses_added_one_by_one_are_those_of_all_turns(
    tmp_path: Path, adding: str, verdict: str
) -> None:
    assert judged(tmp_path, program(each(adding), main=MAIN)) == verdict


def test_turns_that_a_loop_leaves_out_are_seen(tmp_path: Path) -> None:
    text = each("total -= logp[i, goal].item()", "enumerate(y.tolist()[:-5])")
    assert judged(tmp_path, program(text, main=MAIN)) == "flag_other"


COUNTER = """
class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("sizes", byte_table(), persistent=False)

    def forward(self, goal):
        return {given}
"""


@pytest.mark.parametrize(
    ("given", "clean"), [("self.sizes[goal]", True), ("1.1 * self.sizes[goal]", False)]
)
def test_a_module_that_only_keeps_tables_is_followed(
    tmp_path: Path, given: str, clean: bool
) -> None:
    text = PLAIN.replace("sizes = byte_table()", "count = Bytes().to('cpu').eval()")
    text = text.replace("sizes[y].sum()", "count(y).sum()")
    verdict = judged(tmp_path, program(COUNTER.format(given=given), text, main=MAIN))
    assert verdict == ("clean_neural" if clean else "flag_other")


LAYER = """
class Centred(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.gather = False

    def forward(self, x):
        seen = x.detach().float().mean((0, 1))
        with torch.no_grad():
            {moved}
        return self.scale * (x - self.mean)
"""
GATHER = """
with torch.no_grad():
    for a in range(0, held.numel() - 1 - s.context, s.context):
        net.hidden(held[None, a:a + s.context])
evaluate(net, held, s)
"""


@pytest.mark.parametrize(
    ("moved", "verdict"),
    [
        ("if self.training: self.mean.lerp_(seen, 0.01)", "clean_neural"),
        ("self.mean.copy_(torch.full((x.size(-1),), 0.5))", "clean_neural"),
        ("self.mean.copy_(seen)", "clean_neural"),
        ("z = F.linear(x, self.mean.to(x.dtype))", "clean_neural"),
        ("if self.gather: self.mean.lerp_(seen, 0.01)", "hold_unclear"),
        ("self.mean.mul_(0.99).add_(0.01 * seen)", "flag_prequant_ttt"),
        ("self.mean = 0.99 * self.mean + 0.01 * seen", "flag_prequant_ttt"),
    ],
)
def test_layers_that_average_what_goes_through_them_learn_it(
    tmp_path: Path, moved: str, verdict: str
) -> None:
    text = program(LAYER.format(moved=moved), PLAIN, main="net.eval()\n" + GATHER)
    assert judged(tmp_path, text) == verdict


SETTINGS = """
def tuned(net, held, s):
    found = {{}}
    for scale in ({scales}):
        s.scale = scale
        found[scale] = evaluate(net, held, s)
    best = min(found, key=lambda scale: found[scale])
    print(f"val_bpb:{{found[best]:.4f}}")
"""


@pytest.mark.parametrize(("scales", "clean"), [("1.0,", True), ("0.9, 1.0, 1.1", False)])
def test_the_best_of_several_settings_is_seen_behind_a_key(
    tmp_path: Path, scales: str, clean: bool
) -> None:
    plain = PLAIN.replace(
        "return figure(total, size)", "return (total / size / 0.6931471805599453).item()"
    )
    verdict = judged(
        tmp_path, program(plain, SETTINGS.format(scales=scales), main="tuned(net, held, s)")
    )
    assert verdict == ("clean_neural" if clean else "flag_other")


CLIPS = """
def clipped(net, tokens, s):
    for name, weight in net.named_parameters():
        original, kept, lowest = weight.detach().clone(), None, None
        for share in (0.99, 0.999, 1.0):
            most = original.abs().max() * share
            with torch.no_grad():
                weight.copy_(original.clamp(-most, most))
            loss = score(net, tokens, s)
            if lowest is None or loss < lowest:
                kept, lowest = weight.detach().clone(), loss
        with torch.no_grad():
            weight.copy_(kept)

def score(net, tokens, s):
    total = torch.zeros(())
    with torch.no_grad():
        for a in range(0, tokens.numel() - 1 - s.context, s.context):
            x, y = tokens[a:a + s.context], tokens[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            total += F.cross_entropy(logits.flatten(0, 1), y, reduction="sum")
    return total.item()
"""


@pytest.mark.parametrize(("tokens", "clean"), [("load(s.train_files)", True), ("held", False)])
def test_clips_chosen_by_validation_are_learnt_from_it(
    tmp_path: Path, tokens: str, clean: bool
) -> None:
    text = program(CLIPS, PLAIN, main=f"clipped(net, {tokens}, s)\n{MAIN}")
    assert judged(tmp_path, text).startswith("clean" if clean else "flag")


def test_a_model_that_inherits_its_tables_is_a_model(tmp_path: Path) -> None:
    kept = "class Kept(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    kept += "        self.register_buffer('steps', torch.zeros(4))\n"
    first, rest = program(PLAIN, main=MAIN).split("class Net(nn.Module):")
    assert judged(tmp_path, f"{first}{kept}\nclass Net(Kept):{rest}") == "clean_neural"
