"""Plots of a comparison as SVG text, drawn by matplotlib without any global state; labels are never
markup.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from niblick.scoring.compare import document_nats
from niblick.scoring.entries import Entry, Seed
from niblick.scoring.markup import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# colours that stay apart for colour-blind readers (Okabe and Ito)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_POINTS = 400


def label(text: object) -> str:
    """Text for a plot, in which no dollar sign starts mathematics."""
    return plain(text)[:80].replace("$", r"\$").lstrip("_")


def colour(index: int) -> str:
    """The colour of the run at `index`."""
    return COLOURS[index % len(COLOURS)]


def loss_curves(entries: Sequence[Entry], *, against: str) -> str | None:
    """Training loss against `seconds` or `tokens`, smoothed; None where no run recorded any."""
    if not any(seed.curve for entry in entries for seed in entry.seeds):
        return None
    figure, axes = _figure()
    for index, entry in enumerate(entries):
        name: str | None = label(entry.name)
        for seed in (seed for seed in entry.seeds if seed.curve):
            x, y = _smoothed(seed, against)
            axes.plot(x, y, color=colour(index), linewidth=1.4, label=name)
            name = None
    axes.set_xlabel("seconds of training" if against == "seconds" else "tokens of training")
    axes.set_ylabel("training loss (nats per token)")
    _legend(axes)
    return _svg(figure, f"loss-{against}")


def validation_curves(entries: Sequence[Entry]) -> str | None:
    """Bits per byte of held-out text while training; None where no run validated."""
    if not any(seed.validation for entry in entries for seed in entry.seeds):
        return None
    figure, axes = _figure()
    for index, entry in enumerate(entries):
        name: str | None = label(entry.name)
        for seed in (seed for seed in entry.seeds if seed.validation):
            points = np.array(seed.validation, dtype=float)
            axes.plot(
                points[:, 1],
                points[:, 2],
                color=colour(index),
                linewidth=1.4,
                marker="o",
                markersize=3,
                label=name,
            )
            name = None
    axes.set_xlabel("tokens of training")
    axes.set_ylabel("validation loss (bits per byte)")
    _legend(axes)
    return _svg(figure, "validation")


def size_against_score(entries: Sequence[Entry]) -> str | None:
    """Bits per byte against bytes of the artifact, a point for each seed."""
    points = [
        (index, seed.artifact_bytes, seed.score.bpb)
        for index, entry in enumerate(entries)
        for seed in entry.seeds
        if seed.artifact_bytes
    ]
    if not points:
        return None
    figure, axes = _figure()
    for index, entry in enumerate(entries):
        own = [(size, bpb) for i, size, bpb in points if i == index]
        if own:
            sizes, scores = zip(*own, strict=True)
            axes.scatter(sizes, scores, color=colour(index), s=36, label=label(entry.name))
    axes.set_xlabel("artifact (bytes)")
    axes.set_ylabel("bits per byte")
    _legend(axes)
    return _svg(figure, "size")


def document_differences(new: Entry, old: Entry) -> str | None:
    """Bits per byte of `new` minus `old` for each document, in order of the difference."""
    sums, ours, theirs = old.seeds[0].score.documents, document_nats(new), document_nats(old)
    if sums is None or ours is None or theirs is None:
        return None
    sizes = np.array(sums.bytes, dtype=float)
    keep = sizes > 0
    gaps = np.sort((np.array(ours) - np.array(theirs))[keep] / math.log(2) / sizes[keep])
    figure, axes = _figure()
    axes.fill_between(
        np.arange(len(gaps)), gaps, 0, where=gaps <= 0, color=COLOURS[2], step="mid", label="better"
    )
    axes.fill_between(
        np.arange(len(gaps)), gaps, 0, where=gaps > 0, color=COLOURS[1], step="mid", label="worse"
    )
    axes.axhline(0, color="#444", linewidth=0.8)
    axes.set_xlabel("documents, by difference")
    axes.set_ylabel("difference (bits per byte)")
    _legend(axes, f"{label(new.name)} minus {label(old.name)}")
    return _svg(figure, "documents-" + new.name)


def byte_ledger(entries: Sequence[Entry]) -> str | None:
    """Where each artifact's bytes went, by part, one bar for each run (its first seed)."""
    ledgers = [(entry.name, entry.seeds[0].ledger) for entry in entries if entry.seeds[0].ledger]
    if not ledgers:
        return None
    parts = sorted(
        {part for _, ledger in ledgers for part in ledger},
        key=lambda p: -max(x.get(p, 0) for _, x in ledgers),
    )
    figure, axes = _figure(height=1.6 + 0.5 * len(ledgers))
    left = np.zeros(len(ledgers))
    for index, part in enumerate(parts):
        sizes = np.array([ledger.get(part, 0) for _, ledger in ledgers], dtype=float)
        axes.barh(
            range(len(ledgers)),
            sizes,
            left=left,
            color=colour(index),
            label=label(part),
            edgecolor="white",
        )
        left += sizes
    axes.set_yticks(range(len(ledgers)), [label(name) for name, _ in ledgers])
    axes.invert_yaxis()
    axes.set_xlabel("bytes")
    _legend(axes)
    return _svg(figure, "ledger")


def _smoothed(seed: Seed, against: str) -> tuple[Any, Any]:
    """At most some hundred points, each the mean of its neighbours in the log."""
    rows = np.array(seed.curve, dtype=float)
    groups = np.array_split(rows, min(len(rows), _POINTS))
    means = np.array([group.mean(axis=0) for group in groups])
    return means[:, 0 if against == "seconds" else 1], means[:, 2]


def _figure(height: float = 3.1) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(5.4, height), layout="constrained")
    axes = figure.add_subplot()
    for axis in (axes.xaxis, axes.yaxis):  # plain numbers, without an offset at the end of the axis
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.7g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))  # labels of seven digits fit beside each other
    axes.grid(color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _legend(axes: Axes, title: str | None = None) -> None:
    """A legend above the axes."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        axes.legend(
            handles,
            names,
            frameon=False,
            fontsize=8,
            title=title,
            title_fontsize=8,
            ncols=3,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
        )


def _svg(figure: Figure, salt: str) -> str:
    """The figure as one <svg> element, the same for the same figure; `salt` keeps ids of figures
    apart.
    """
    import matplotlib

    text = io.StringIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the text
        figure.savefig(
            text,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return text.getvalue()[text.getvalue().index("<svg") :]
