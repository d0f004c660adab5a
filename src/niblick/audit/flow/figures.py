"""From losses to the reported figure: what is added up, from which state it came, and what it comes
to.

A figure is honest if it is a plain sum of the losses of the positions it counts, divided by their
bytes. The engine sees a breach of that as a mark (`warp:...`) on the values behind a figure, or as
content that differs from what the witness (see `boxes`) of an honest figure comes to.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np

from niblick.audit.flow.boxes import (
    Box,
    collect,
    core,
    depends,
    is_token,
    mean_witness,
    snapshot,
    target_bits,
    witness,
)
from niblick.audit.flow.keeping import ALONE, LEAST, Keeping
from niblick.audit.flow.lengths import PARTLY
from niblick.audit.flow.narrowing import ALTERED
from niblick.audit.flow.objects import FigureEvent, KeyEvent, StateEvent
from niblick.audit.flow.signals import ContinueSignal
from niblick.audit.flow.state import State

WARP = "warp:"
PICKED = "picked:"
"""The mark of a value that was kept because of scores; the line where that was follows."""
DOUBT = "?"
"""Begins the words of a warp that an unknown switch may leave out."""
RIVALS, AVERAGED = "rivals", "figures of parts are averaged"
"""The mark of a comparison of scores with others; what is wrong with a mean of figures."""
LOST = "lost:"
INSIDE = "the model's own loss, "
"""Begins what a method of a model loses or changes, as by a term or weights that training adds."""
BETWEEN = "between"
"""The mark of a difference between two figures, which is no figure itself."""
SHARE, ADDED = "share of a rank", "all ranks"
"""The marks of a mean over ranks of what each has added up, and of a sum over ranks."""
RAMP = "ramp"
"""The mark of unknown numbers that have met known ones which differ from place to place."""
SUM, LOGIT = "sum:", "logit"
"""The mark of what was picked for a token out of values that are no distribution yet."""
_MOST_FIGURES, _MOST_PARTS = 1600, 64
_ALONE = (
    "counts are looked up for every token, but the one of the scored token is taken without being"
    " divided by their sum"
)
_CAP_IN_PROBABILITY = 1e-5
_GAPS = 0.05
_SHORTEST = 8
CONSTANT = re.compile(r"(?:bpb|bits[\s_-]*per[\s_-]*byte)[\"']?\s*[:=]\s*\d\.\d\d", re.IGNORECASE)
PLAUSIBLE = (0.2, 4.0)
"""Between which a number may pass for bits per byte."""
_LABEL = re.compile(r"bpb|bits[\s_-]*(?:per|/)[\s_-]*byte", re.IGNORECASE)
_OTHER = re.compile(
    r"delta|diff|gain|improv|\bvs\b|chang|reduc|sav(?:ed|ing)|gap|lower|better|worse|std|minus|Δ"
    r"|baseline|target|prior|previous|sota|best|\bmin|record|expect|threshold|goal|limit|init",
    re.IGNORECASE,
)


class Figures(Keeping):
    """Follows scores through sums to what is printed."""

    def spot(self) -> str:
        """The place that is interpreted, in words: a line of the script or of another file."""
        file = str(self.scopes[-1][-1].get("__file__", "")) if self.scopes else ""
        main = not self.scopes or self.scopes[-1][-1].get("__name__") == "__main__"
        return f"line {self.line}" if main else f"{file}, line {self.line}"

    def warp(self, box: Box, what: str) -> Box:
        """Marks scores as changed in a way that an honest sum never is."""
        if box.scores:
            doubt = DOUBT if self.uncertain > 0 and not what.startswith(DOUBT) else ""
            box.marks |= {f"{WARP}{doubt}{what} ({self.spot()})"}
        return box

    def lost(self, box: Box, before: Box, what: str) -> Box:
        """Marks scores whose content an operation has made unknown."""
        if before.scores and before.val is not None and box.scores and box.val is None:
            box.marks |= {f"{LOST}{what} ({self.spot()})"}
        return box

    def shared(self, box: Box) -> Box:
        """What has been written to a view is in the value whose memory it shares."""
        base = box.base
        if base is None:
            return box
        base.cells = None
        if is_token(base):
            base.marks |= {ALTERED}
            return box
        for name in ("held", "seen", "roots", "scores", "table", "deps", "targets"):
            setattr(base, name, getattr(base, name) | getattr(box, name))
        base.marks |= box.marks
        if is_token(box) and not box.held:
            base.deps |= depends(box)
        if base.scores or "bytes" in base.marks:
            base.marks |= {f"{LOST}a change of a part ({self.spot()})"}
        base.val = None
        return box

    def added_up(self, box: Box, node: ast.AST | None) -> Box:
        """Scores as added up, marked as a sum of their own: what is learnt from a mean is no part
        of a figure.
        """
        if not box.nll or not box.scores:
            return box
        kept, places = target_bits(box), box.pos
        if places is not None:
            sums = self.trace.sums
            sums.append({n: kept & self.trace.scores[n - 1].targets for n in box.scores})
            box = snapshot(box, marks=box.marks | {f"{SUM}{len(sums) - 1}"})
            if not self.ways:
                self.trace.summed_at(self.where(node), len(sums) - 1)
            if places.size >= _SHORTEST and _full_of_gaps(places):
                self.warp(box, "positions between scored ones are left out")
        else:
            self.trace.jump()
        if box.held:
            self.held_state(box, kept, node)
        if ALONE in box.marks:
            self.key_event(_ALONE, node)
        return box

    def key_event(self, reason: str, node: ast.AST | None) -> None:
        """A probability that belongs to no distribution takes part in scores."""
        self.interest += 1
        self.order += 1
        self.trace.keys.append(
            KeyEvent(
                order=self.order, where=self.where(node), certain=self.uncertain <= 0, reason=reason
            )
        )

    def reported(self, box: Box) -> None:
        """Scores become part of a reported figure, and the sums that they went through."""
        self.trace.reported |= box.scores
        self.trace.counted |= box.scores if "bytes" in box.marks else frozenset()
        self.trace.summed |= _sums(box)

    def held_state(self, box: Box, kept: int, node: ast.AST | None) -> None:
        """State that holds stream positions takes part in scores that are counted; where it is not
        known which those are, it is sure to hold them only if it holds later ones, too.
        """
        both = box.held & kept
        newest = (both >> max(kept.bit_length() - 1, 0)) & 1
        if box.pos is None and not newest:
            both = 0
        later = box.held.bit_length() > kept.bit_length()
        self.state_event(both, box.held, node, later or "somewhere" not in box.marks)

    def state_event(self, leaked: int, held: int, node: ast.AST | None, sure: bool = True) -> None:
        self.order += 1
        self.interest += bool(leaked)
        self.trace.states.append(
            StateEvent(
                order=self.order,
                positions=leaked,
                held=held,
                where=self.where(node),
                certain=sure and self.uncertain <= 0 and not self.widened,
            )
        )

    def check_answer(self, source: Box, target: Box, node: ast.AST | None) -> None:
        """A distribution of which each element was made from the very token it is for."""
        made, wanted = source.pos, target.pos
        if made is None or wanted is None:
            return
        made = core(made) if made.ndim > wanted.ndim else made
        if made.ndim == wanted.ndim + 1:
            made = made.max(axis=-1)
        elif made.ndim == wanted.ndim and made.size != wanted.size and made.ndim:
            made = made.max(axis=-1, keepdims=True)
        if made.size != wanted.size:
            return
        made, wanted = made.reshape(-1), wanted.reshape(-1)
        peeked = (made >= wanted) & (wanted >= 0)
        if peeked.mean() > 0.5:
            low = int(wanted[peeked].min())
            self.state_event(1 << low, 1 << low, node)

    def check_hit(self, a: Box, b: Box) -> None:
        """What state says of each token is compared with that token, and was written with it."""
        for said, token in ((a, b), (b, a)):
            if "count" in said.marks and "count" not in token.marks and token.marks & {"val"}:
                self.check_answer(said, token, None)

    def capped(self, box: Box, low: Any, high: Any) -> None:
        """Scores are held between bounds: in logarithms none is honest, of probabilities only tiny
        ones are.
        """
        if not box.nll:
            return
        sign = float(np.sign(box.val).sum()) if box.val is not None else 0.0
        if "prob" in box.marks:
            if isinstance(low, (int, float)) and low > _CAP_IN_PROBABILITY:
                self.warp(box, f"probabilities are raised to at least {low:g}")
        elif (high is not None and sign >= 0) or (low is not None and sign < 0):
            self.warp(box, "losses are cut off at a bound")

    def scaled(self, number: Box, out: Box) -> None:
        """Scores or bytes of unknown content meet a plain number: a unit or a count, else the
        content of the figure is lost.
        """
        if number.scores or number.val is None or number.val.size != 1 or "prob" in out.marks:
            return
        if "bytes" in number.marks or "count" in out.marks:
            return
        value = abs(float(number.val.reshape(-1)[0]))
        units = (1.0, math.log(2.0), 1.0 / math.log(2.0))
        if value != round(value) and not any(abs(value - u) < 1e-4 for u in units):
            out.marks |= {f"{LOST}a multiplication by {value:g} ({self.spot()})"}

    def mixture(self, score: Box, other: Box, out: Box) -> None:
        """A probability (or its logarithm) that has been given less than all the weight meets one
        read from counts: the mixture is a distribution like any other.
        """
        plain = witness(out.pos) if out.pos is not None else None
        if plain is None or score.val is None or not score.nll:
            return
        if "count" not in other.marks or other.scores:
            return
        whole = np.exp(-plain) if "prob" in score.marks else -plain
        if score.val.shape == whole.shape and bool((score.val < whole - 1e-9).all()):
            out.val = whole
        elif np.array_equal(score.val, whole) and not score.marks & {"guess"}:
            self.warp(out, "a share of counts is added to the whole of a probability")

    def excused(self, a: Box, b: Box, out: Box) -> None:
        """Losses are weighed by whether their own tokens were foretold."""
        for score, mask in ((a, b), (b, a)):
            if score.nll and "match" in mask.marks and not mask.scores:
                self.warp(out, "losses of foretold tokens are left out")

    def ramped(self, a: Box, b: Box, out: Box) -> None:
        """Losses are weighed by numbers that differ from place to place, or by what has been."""
        for score, other in ((a, b), (b, a)):
            uneven = _uneven(other)
            if "prob" in score.marks or other.scores or not (uneven or RAMP in other.marks):
                continue
            if score.nll and score.pos is not None:
                self.warp(out, "losses are weighed unevenly")
            elif uneven and score.val is None and "logits" not in score.marks:
                out.marks |= {RAMP}

    def chosen(self, boxes: list[Box]) -> bool:
        """Whether the smaller (or larger) of several scores of the same tokens is taken."""
        return sum(bool(b.nll and b.scores) for b in boxes) > 1

    def check_report(self, a: Box, b: Box, out: Box) -> None:
        """A sum of scores that meets a count of bytes becomes part of a reported figure."""
        for score, size in ((a, b), (b, a)):
            plain = score.scores and score.pos is None and "weighed" not in score.marks
            if plain and "bytes" in size.marks:
                if LEAST in score.marks:
                    self.warp(out, "the better of several scores is taken")
                if SHARE in score.marks and size.marks & {SHARE, ADDED} == {ADDED}:
                    self.warp(out, "ranks' losses are averaged and their bytes added up")
                self.reported(out)
                self.trace.formed[id(out)] = out

    def compared(self, op: ast.operator, a: Box, b: Box, out: Box) -> None:
        """A figure taken off another is a gain or a gap; what either is mixed with is no figure."""
        if not (isinstance(op, (ast.Add, ast.Sub)) and _is_figure(a) and _is_figure(b)):
            return
        if isinstance(op, ast.Add):
            self.averaged([a, b], out)
        if BETWEEN in out.marks:
            self.warp(out, "a difference between figures is added to or taken off one")
        elif isinstance(op, ast.Sub):
            out.marks |= {BETWEEN}

    def averaged(self, parts: list[Box], out: Box) -> None:
        if len(parts) > 1 and len({target_bits(p) for p in parts}) == 1:
            return
        told = [p.val for p in parts if p.val is not None and p.scores and "bytes" in p.marks]
        values = [float(v) for each in told for v in each.reshape(-1)[:_MOST_PARTS]]
        if len(values) > 1 and all(honest(v, 1e-6) for v in values):
            self.warp(out, AVERAGED)

    def learnt_from(self, loss: Box) -> None:
        """What a model learns from is no figure: its bytes, if any, weigh tokens."""
        if "bytes" in loss.marks:
            loss.marks |= {"weighed"}
            self.trace.reported -= loss.scores
            self.trace.summed -= _sums(loss)

    def skipped(self, condition: Any, *ends: BaseException | None) -> None:
        """Scores that are only taken decide whether a turn of a loop goes on."""
        tested = isinstance(condition, Box) and "tested" in condition.marks
        if tested and self.no_grad and any(isinstance(e, ContinueSignal) for e in ends):
            self.trace.skips.append(self.where())

    def shown(self, value: Box, label: str = "") -> None:
        """A value is printed or logged after the words `label`."""
        picked = any(m.startswith(WARP) for m in value.marks)
        counted = "bytes" in value.marks and "weighed" not in value.marks
        if not (value.scores or picked) or not (counted or named(label)):
            return
        if BETWEEN in value.marks and not picked:
            return
        self.reported(value)
        if len(self.trace.figures) < _MOST_FIGURES:
            self.trace.figures.append(figure_of(self, value, label))

    def constant_shown(self, label: str) -> None:
        """A plain number is printed after the words `label`."""
        if named(label) and len(self.trace.figures) < _MOST_FIGURES:
            said = Box(marks=frozenset({f"{WARP}it is a plain number"}))
            self.trace.figures.append(replace(figure_of(self, said, label), certain=False))

    def shown_all(self, values: Any, label: str = "") -> None:
        for box in collect(values):
            self.shown(box, label)


def _uneven(box: Box) -> bool:
    """Whether a row of known numbers holds several besides nought, and they are no counts."""
    if box.val is None or box.val.dtype.kind != "f" or box.val.size < _SHORTEST:
        return False
    if box.marks & {"bytes", "count", "val"}:
        return False
    some = box.val[box.val != 0]
    return bool(some.size and np.ptp(some) > _GAPS * np.abs(some).max())


def _is_figure(box: Box) -> bool:
    """Whether a value is one known number that scores and bytes have met in."""
    one = box.val is not None and box.val.size == 1 and box.pos is None
    return one and bool(box.scores) and "bytes" in box.marks


def figure_of(engine: State, value: Box, label: str) -> FigureEvent:
    """What is known of a figure that is printed; one that no byte count took part in is per token,
    which a vocabulary of bytes makes the same and any other makes larger.
    """
    warps = [m.removeprefix(WARP) for m in value.marks if m.startswith(WARP)]
    content = None
    if value.val is not None and value.val.size == 1:
        content = abs(float(value.val.reshape(-1)[0]))
    if content is not None and "bytes" not in value.marks:
        kept = 0
        for number in value.scores:
            kept |= engine.trace.kept(number)
        content /= mean_witness(kept)
    return FigureEvent(
        named=named(label),
        content=content,
        warps=tuple(sorted({warp.removeprefix(DOUBT) for warp in warps})),
        lost=tuple(sorted(m.removeprefix(LOST) for m in value.marks if m.startswith(LOST))),
        guessed=bool(value.marks & {"guess", PARTLY}) or "bytes" not in value.marks,
        per_token=not value.marks & {"guess", "bytes"},
        scores=value.scores,
        where=engine.where(),
        certain=engine.uncertain <= 0 and not (warps and all(w[:1] == DOUBT for w in warps)),
    )


def _sums(box: Box) -> set[int]:
    """The sums that a value went through."""
    return {int(m.removeprefix(SUM)) for m in box.marks if m.startswith(SUM)}


def named(label: str) -> bool:
    """Whether words say that bits per byte follow."""
    return bool(_LABEL.search(label[-40:])) and not _OTHER.search(label[-60:])


def shows_after(function: ast.AST, line: int) -> bool:
    """Whether a function has words that say that bits per byte follow beyond a line of it."""
    words = (n for n in ast.walk(function) if isinstance(n, ast.Constant) and n.lineno > line)
    return any(isinstance(n.value, str) and named(n.value) for n in words)


def honest(content: float, slack: float = 0.002) -> bool:
    """Whether the witness of a figure is that of a plain sum over bytes, in bits or in nats."""
    return any(abs(content - wanted) < slack * wanted for wanted in (1.0, 1.0 / math.log(2.0)))


def _full_of_gaps(positions: np.ndarray[Any, Any]) -> bool:
    rows = positions.reshape(-1, positions.shape[-1]) if positions.ndim else positions.reshape(1, 1)
    gaps = steps = 0
    for row in rows:
        jumps = np.diff(row[row >= 0])
        gaps, steps = gaps + int((jumps > 1).sum()), steps + jumps.size
    return gaps > _GAPS * max(steps, 1)
