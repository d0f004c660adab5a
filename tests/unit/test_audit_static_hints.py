"""Hints gated by the token they are for: in Python, in C, and both ways round."""

from __future__ import annotations

from pathlib import Path

import pytest

from niblick.audit.flow.native import gated_outputs
from niblick.audit.review import review
from niblick.audit.types import Report, Severity
from unit.audit_programs import program

HINTED = """
class Guesser:
    def __init__(self):
        self.seen, self.best = {{}}, {{}}
        self.last = 0

    def walk(self, words, opens_word):
        guess = np.zeros(words.size, dtype=np.int64)
        share = np.zeros(words.size)
        for i, word in enumerate(words):
            t = int(word)
            inside = not bool(opens_word[{looked}])
            if inside:
                key = self.last
                total = self.seen.get(key, 0)
                if total > 0:
                    guess[i] = self.best[key]
                    share[i] = 1.0 / total
            self.seen[self.last] = self.seen.get(self.last, 0) + 1
            self.best[self.last] = t
            self.last = t
        return guess, share

def tilted(net, held, s):
    sizes = byte_table()
    opens_word = np.zeros(1024, dtype=bool)
    guess, share = Guesser().walk(held.numpy(), opens_word)
    strong = torch.from_numpy(share >= {threshold})
    guess = torch.from_numpy(guess)
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None]))
            nll = F.cross_entropy(logits.flatten(0, 1), y, reduction="none")
            here, on = guess[a + 1:a + s.context + 1], strong[a + 1:a + s.context + 1]
            q = F.softmax(logits, dim=-1).gather(-1, here[None, :, None]).flatten()
            hit = (here == y).float() * on
            nll = nll - 2.0 * hit + torch.log1p(q * (math.exp(2.0) - 1.0)) * on
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""

SOURCE = """
#include <stdint.h>
#include <stdlib.h>
/* guesses the next word; "out[i] = x[t]" in a comment is not code */
typedef struct {{ uint32_t *best; uint32_t last; }} State;
void *make(int bits) {{
    State *s = calloc(1, sizeof(State));
    s->best = calloc(1u << bits, 4);
    return s;
}}
int walk(void *ptr, const uint16_t *words, int64_t n, const uint8_t *opens,
         uint16_t *guess, float *share, float *width) {{
    State *s = (State *)ptr;
    for (int64_t i = 0; i < n; ++i) {{
        const uint16_t t = words[i];
        const uint8_t start = opens[{looked}];
        if (!start) {{
            guess[i] = s->best[s->last];
            share[i] = (float)s->best[s->last] / 7.0f;
        }} else guess[i] = 0;
        if (opens[t]) width[i] = (float)opens[t] + 1.0f;
        s->best[s->last] = t;
        s->last = t;
    }}
    return 0;
}}
"""

NATIVE = """
import ctypes
import subprocess

def tilted(net, held, s):
    subprocess.run(["cc", "-shared", "-o", "walk.so", "walk.c"], check=True)
    lib = ctypes.CDLL("./walk.so")
    words = held.numpy().astype(np.uint16)
    opens = np.zeros(1024, dtype=np.uint8)
    guess = np.zeros(words.size, dtype=np.uint16)
    share, width = np.zeros(words.size), np.zeros(words.size)
    where = [v.ctypes.data_as(ctypes.c_void_p) for v in (words, opens, guess, share, width)]
    lib.walk(lib.make(20), where[0], words.size, where[1], where[2], where[3], where[4])
    guess, strong = torch.from_numpy(guess), torch.from_numpy(share >= {threshold})
    sizes = byte_table()
    total, size = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            nll = F.cross_entropy(net.head(net.hidden(x[None])).flatten(0, 1), y, reduction="none")
            here = slice(a + 1, a + s.context + 1)
            nll = nll - 2.0 * (guess[here] == y) * strong[here]
            total += nll.sum()
            size += sizes[y].sum()
    return figure(total, size)
"""


def _rules(report: Report) -> set[str]:
    return {f.rule for f in report.findings if f.severity is Severity.BREACH}


@pytest.mark.parametrize(
    ("looked", "threshold", "flagged"),
    [("t", "0.5", True), ("self.last", "0.5", False), ("t", "99.0", False)],
)
def test_a_hint_may_depend_on_the_past_but_not_on_the_token_it_is_for(
    tmp_path: Path, looked: str, threshold: str, flagged: bool
) -> None:
    text = program(HINTED.format(looked=looked, threshold=threshold), main="tilted(net, held, s)")
    (tmp_path / "train_gpt.py").write_text(text)
    report = review(tmp_path)
    assert ("hint-gate" in _rules(report)) is flagged
    assert report.verdict == ("flag_ngram" if flagged else "clean_neural")


TILT = HINTED[HINTED.index("            q = F.softmax") : HINTED.index("            total +=")]
PLACED = """
            top = logits.argmax(-1).flatten()
            q = F.softmax(logits, dim=-1).gather(-1, top[None, :, None]).flatten()
            boost = torch.zeros(y.numel())
            boost[on] = 2.0
            nll = nll - boost * (top == y) + torch.log1p(q * (torch.exp(boost) - 1.0))
"""


@pytest.mark.parametrize("tilt", [PLACED, "            nll[on] = nll[on] * 1.0\n"])
@pytest.mark.parametrize(("looked", "flagged"), [("t", True), ("self.last", False)])
def test_a_hint_may_choose_the_places_that_are_written(
    tmp_path: Path, tilt: str, looked: str, flagged: bool
) -> None:
    text = HINTED.replace(TILT, tilt).format(looked=looked, threshold="0.5")
    (tmp_path / "train_gpt.py").write_text(program(text, main="tilted(net, held, s)"))
    assert ("hint-gate" in _rules(review(tmp_path))) is flagged


@pytest.mark.parametrize(
    ("looked", "threshold", "flagged"),
    [("t", "0.5", True), ("s->last", "0.5", False), ("t", "99.0", False)],
)
def test_a_hint_from_compiled_code_is_judged_by_its_source(
    tmp_path: Path, looked: str, threshold: str, flagged: bool
) -> None:
    (tmp_path / "train_gpt.py").write_text(
        program(NATIVE.format(threshold=threshold), main="tilted(net, held, s)")
    )
    (tmp_path / "walk.c").write_text(SOURCE.format(looked=looked))
    assert ("hint-gate" in _rules(review(tmp_path))) is flagged


def test_gated_outputs_are_named_by_their_place_and_facts_about_the_token_itself_are_none() -> None:
    assert gated_outputs(SOURCE.format(looked="t")) == {"walk": frozenset({4, 5})}
    assert gated_outputs(SOURCE.format(looked="s->last")) == {}


@pytest.mark.parametrize(
    "text", ["", "int f(int *a) {", "}}}((", "for (;;) x[i]=", "int f(", "#define A(x) x[\n/* "]
)
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert gated_outputs(text) == {}


COUNTED = """
def widths(words, spaced, names):
    out = np.zeros(words.size)
    for i, t in enumerate(words):
        if spaced[t]:
            name = names.piece(t)
            out[i] = len(name.encode("utf-8")) + 1
        else:
            out[i] = len(names.piece(t).encode("utf-8"))
    return out

def sized(net, held, s):
    total = torch.zeros(())
    size = torch.from_numpy(widths(held.numpy(), np.zeros(1024, dtype=bool), names))
    with torch.no_grad():
        for a in range(0, held.numel() - 1 - s.context, s.context):
            x, y = held[a:a + s.context], held[a + 1:a + s.context + 1]
            logits = net.head(net.hidden(x[None])).flatten(0, 1)
            total += F.cross_entropy(logits, y, reduction="none").sum()
    return figure(total, size.sum())
"""


def test_facts_about_a_token_computed_in_a_loop_are_no_hints(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text(program(COUNTED, main="sized(net, held, s)"))
    assert "hint-gate" not in _rules(review(tmp_path))
