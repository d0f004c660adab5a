"""The plots in docs/, each light and dark, drawn by matplotlib from the rows of docs/results.json.

The same rows give the same bytes: no date, fixed identifiers, coordinates cut to two decimals. Made
to be read on a phone (a figure is 430 points wide) and without a legend: every line is labelled
where it ends.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import matplotlib as mpl

from figure_blocks import models

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Rows = dict[str, dict[str, Any]]
WIDTH = 430 / 72  # inches
# Paper, ink, faint ink, then one colour for each kind of thing: legible on either paper, and told
# apart by people who see red and green alike (the lines are labelled too).
SCHEMES = {
    "light": {
        "paper": "#ffffff",
        "ink": "#1f2328",
        "faint": "#d1d9e0",
        "soft": "#59636e",
        "ours": "#0550ae",
        "a": "#bc4c00",
        "b": "#6e7781",
        "c": "#8250df",
    },
    "dark": {
        "paper": "#0d1117",
        "ink": "#f0f6fc",
        "faint": "#30363d",
        "soft": "#9198a1",
        "ours": "#58a6ff",
        "a": "#f0883e",
        "b": "#8b949e",
        "c": "#bc8cff",
    },
}
Scheme = dict[str, str]


def draw(name: str, rows: Rows, scheme: str) -> str:
    """One plot as the text of an SVG file."""
    return _drawn(name, json.dumps(rows), scheme)


@lru_cache(maxsize=64)
def _drawn(name: str, rows: str, scheme: str) -> str:
    colours = SCHEMES[scheme]
    settings = {
        "svg.hashsalt": "niblick",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "axes.edgecolor": colours["soft"],
        "axes.labelcolor": colours["soft"],
        "axes.titlecolor": colours["ink"],
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": colours["ink"],
        "xtick.color": colours["soft"],
        "ytick.color": colours["soft"],
        "grid.color": colours["faint"],
        "grid.linewidth": 0.6,
        "lines.linewidth": 2.2,
        "figure.facecolor": colours["paper"],
        "axes.facecolor": colours["paper"],
    }
    with mpl.rc_context(settings):
        figure = PLOTS[name](json.loads(rows), colours)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return _shorter(buffer.getvalue())


def _shorter(svg: str) -> str:
    """Three decimals at most, of scales six: smaller, and the same whatever rounds the last."""
    svg = re.sub(r"(?<![\d.])(0\.\d{6}|[1-9]\d*\.\d{3})\d+", r"\1", svg)
    svg = re.sub(r"\s*\n(?=[MLQCz])", " ", svg)  # a path is one line
    return "\n".join(line.strip() for line in svg.splitlines()) + "\n"


def _axes(height: float) -> tuple[Any, Axes]:
    figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes.set_axisbelow(True)
    return figure, axes


def _line(axes: Axes, points: list[tuple[float, float]], colour: str, **more: Any) -> None:
    x, y = zip(*sorted(points), strict=True)
    axes.plot(x, y, **{"color": colour, "marker": "o", "markersize": 4, "clip_on": False, **more})


def _label(
    axes: Axes,
    at: tuple[float, float],
    text: str,
    colour: str,
    shift: tuple[float, float],
    **more: Any,
) -> None:
    """A line's name beside a point, `shift` in points."""
    axes.annotate(text, at, shift, textcoords="offset points", color=colour, **more)


def bytes_against_bits(rows: Rows, colours: Scheme) -> Any:
    """Bits per byte of unseen text against the bytes that must be there first."""
    values, shipped = rows["frontier"]["values"], rows["shipped"]["values"]
    figure, axes = _axes(4.6)
    axes.grid(axis="y")
    for name, colour, shift in (
        ("zstd -22", "c", (7, 2)),
        ("xz -9e", "b", (7, -10)),
        ("PPMd order 16", "a", (7, -4)),
    ):
        points = sorted((each["bytes"] / 1e6, each["bpb"]) for each in values["compressors"][name])
        _line(axes, points, colours[colour])
        text = f"{name.removesuffix(' order 16')} {points[-1][1]:.2f}"
        _label(axes, points[-1], text, colours[colour], shift)
    model = [(each["bytes"] / 1e6, each["bpb"]) for each in models(rows)]
    _line(axes, model, colours["ours"], zorder=5)
    at = shipped["bytes"] / 1e6, shipped["bpb"]
    axes.plot(*at, "o", color=colours["ours"], markersize=9, zorder=6)
    _label(axes, model[0], f"niblick {model[0][1]:.2f}", colours["ours"], (8, 3), weight="bold")
    told = f"the model that ships {shipped['bpb']:.2f}"
    _label(axes, at, told, colours["ours"], (0, 9), weight="bold", ha="center")
    axes.set_ylim(1.2, 2.8)
    axes.set_xlim(0, 1.65)
    axes.set_xlabel("megabytes that must be there before the text comes")
    axes.set_title("Bits per byte of English it has never seen", pad=10)
    return figure


Place = tuple[tuple[float, float], str]  # of a label: its shift in points, its alignment


def packing(
    name: str, title: str, top: float, right: float, places: dict[str, Place]
) -> Callable[[Rows, Scheme], Any]:
    """Loss against bytes of every packer, for the weights of one row; `places`: labels that would
    lie on something else where they usually stand.
    """
    lines = (
        ("GPTQ", "GPTQ + Brotli", "a"),
        ("NNCodec", "NNCodec", "c"),
        ("niblick rd", "niblick rd", "ours"),
    )
    points = (
        ("published int6", "int6 + zlib, as published", "b"),
        ("published mixed", "int6 + zstd, as published", "b"),
        ("int6 by role", "int6 + Brotli", "b"),
        ("niblick int-zlib, 4", "int4 + zlib", "b"),
    )

    def make(rows: Rows, colours: Scheme) -> Any:
        figure, axes = _axes(4.0)
        axes.grid(axis="y")
        table = rows[name]["values"]
        chosen = lambda prefix: sorted(
            (row["size"] / 1e6, row["tax"]) for row in table if row["name"].startswith(prefix)
        )
        for prefix, label, colour in lines:
            if found := chosen(prefix):
                ours = colour == "ours"
                _line(axes, found, colours[colour], zorder=5 if ours else 3)
                shift, side = places.get(prefix, ((6, 6), "left"))
                weight = "bold" if ours else "normal"
                _label(axes, found[0], label, colours[colour], shift, ha=side, weight=weight)
        for prefix, label, colour in points:
            for at in chosen(prefix):
                if at[0] <= right and at[1] <= top:
                    axes.plot(*at, "s", color=colours[colour], markersize=5)
                    shift, side = places.get(prefix, ((-7, -4), "right"))
                    _label(axes, at, label, colours["soft"], shift, ha=side, fontsize=10)
        axes.set_ylim(0, top)
        axes.set_xlim(0, right)
        axes.set_xlabel("megabytes")
        axes.set_title(title, pad=10)
        return figure

    return make


def decoding(rows: Rows, colours: Scheme) -> Any:
    """Milliseconds per token, beside llama.cpp."""
    table = [*rows["decoding-packed"]["values"], *rows["decoding"]["values"]]
    table.sort(key=lambda row: -row["ms"])
    figure, axes = _axes(0.5 * len(table) + 1.0)
    for at, row in enumerate(table):
        ours = row["engine"] == "niblick"
        colour = colours["ours" if ours else "a"]
        axes.barh(at, row["ms"], height=0.34, color=colour)
        named = row["model"] if ours else f"{row['model']}, {row['engine']}"
        axes.text(
            0,
            at + 0.24,
            f"{named}, {row['weights']}",
            va="bottom",
            fontsize=10,
            color=colours["ink"],
        )
        axes.annotate(
            f"{row['ms']:.2f} ms",
            (row["ms"], at),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
        )
    axes.set_ylim(-0.4, len(table) - 0.2)
    axes.set_xlim(0, 1.2 * max(row["ms"] for row in table))
    axes.axis("off")
    axes.set_title("One token on two cores, at position 1,000", pad=10)
    return figure


BESIDE: dict[str, Place] = {
    "GPTQ": ((-7, -4), "right"),
    "niblick int-zlib, 4": ((7, -4), "left"),
    "int6 by role": ((0, 8), "center"),
}
PLOTS: dict[str, Callable[[Rows, Scheme], Any]] = {
    "bpb": bytes_against_bits,
    "packing-pocket": packing(
        "packing-pocket", "2.5 M parameters: bits per byte lost by packing", 0.066, 2.3, BESIDE
    ),
    "packing-27m": packing(
        "packing-27m", "27 M parameters: bits per byte lost by packing", 0.09, 13.0, {}
    ),
    "decoding": decoding,
}
