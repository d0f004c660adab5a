"""A comparison as one self-contained HTML page: tables and inline SVG, no script, nothing loaded
from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from niblick.report import plots
from niblick.scoring.compare import (
    Comparison,
    comparison_rows,
    conclusion,
    run_rows,
    verdict,
    warning_text,
)
from niblick.scoring.differences import recipe_rows
from niblick.scoring.entries import Entry
from niblick.scoring.markup import escape

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --line: #ddd; --quiet: #555; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #17191c; --line: #3a3d42; --quiet: #a5a9b0; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 110rem; margin: 0 auto; padding: 1rem 2rem;
  color: var(--text); background: var(--page); }
p { max-width: 50rem; overflow-wrap: anywhere; }
.found { font-size: 1.15rem; border-left: .25rem solid #0072b2; padding-left: .8rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th { vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
.plots { display: grid; gap: 1.5rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
figure { margin: 0; } figcaption { color: var(--quiet); }
svg { display: block; width: 100%; height: auto; background: #fff; border-radius: .4rem; }
.invalid { background: #b00020; color: white; padding: .5rem 1rem; font-weight: bold; }
@media (max-width: 50rem) {
  body { padding: .5rem 1rem; }
  table, tbody { display: block; } tr:first-child { display: none; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0;
    overflow-wrap: anywhere; }
  td::before { content: attr(data-name); color: var(--quiet); }
  td:first-child { font-weight: bold; } }
"""


def comparison_page(found: Comparison, entries: Sequence[Entry]) -> str:
    """The page; every piece of text from outside is escaped."""
    data, told = found["data"], warning_text(found)
    body = [
        "<h1>Comparison of runs</h1>",
        f'<p class="invalid">{escape(told)}</p>' if told else "",
        *(f'<p class="found">{escape(conclusion(row))}</p>' for row in found["comparisons"]),
        (
            f"<p>{escape(data['split'])}: {data['tokens']:,} tokens, {data['bytes']:,} bytes, "
            f"SHA-256 {escape(data['sha256'][:16])}</p>"
        ),
        _table(run_rows(found)),
    ]
    if found["comparisons"]:
        body += [
            _table(comparison_rows(found)),
            *(f"<p>{escape(verdict(row))}</p>" for row in found["comparisons"]),
        ]
    if recipes := recipe_rows(entries):
        body += ["<h2>How the recipes differ</h2>", _table(recipes)]
    body.append(f'<div class="plots">{"".join(_figures(entries))}</div>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Comparison of runs</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _figures(entries: Sequence[Entry]) -> list[str]:
    drawn = [
        (plots.validation_curves(entries), "Validation loss against tokens"),
        (plots.loss_curves(entries, against="tokens"), "Training loss against tokens"),
        (plots.loss_curves(entries, against="seconds"), "Training loss against time"),
        (plots.size_against_score(entries), "Bits per byte against the size of the artifact"),
        *(
            (plots.document_differences(entry, entries[0]), "Difference for each document")
            for entry in entries[1:]
        ),
        (plots.byte_ledger(entries), "Where the bytes of the artifact went"),
    ]
    return [
        f"<figure>{_named(svg, text)}<figcaption>{escape(text)}</figcaption></figure>"
        for svg, text in drawn
        if svg
    ]


def _named(svg: str, text: str) -> str:
    """The picture with a name for who does not see it."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; on a narrow screen each other row is a list of its own."""
    head, *rest = rows
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr>"]
    for row in rest:
        cells = zip(head, row, strict=True)
        shown = (f'<td data-name="{escape(name)}">{escape(cell)}</td>' for name, cell in cells)
        lines.append("<tr>" + "".join(shown) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"
