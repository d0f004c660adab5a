"""A comparison as one self-contained HTML page: tables and inline SVG, no script, nothing loaded
from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from niblick.report import plots
from niblick.scoring.compare import Comparison, comparison_rows, run_rows, verdict, warning_text
from niblick.scoring.entries import Entry
from niblick.scoring.markup import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { color: #555; } svg { max-width: 100%; height: auto; }
.invalid { background: #b00020; color: white; padding: .5rem 1rem; font-weight: bold; }
"""


def comparison_page(found: Comparison, entries: Sequence[Entry]) -> str:
    """The page; every piece of text from outside is escaped."""
    data, told = found["data"], warning_text(found)
    warning = f'<p class="invalid">{escape(told)}</p>' if told else ""
    body = [
        "<h1>Comparison of runs</h1>",
        warning,
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
    body += _figures(entries)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Comparison of runs</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _figures(entries: Sequence[Entry]) -> list[str]:
    drawn = [
        (plots.loss_curves(entries, against="seconds"), "Training loss against time"),
        (plots.loss_curves(entries, against="tokens"), "Training loss against tokens"),
        (plots.size_against_score(entries), "Bits per byte against the size of the artifact"),
        *(
            (plots.document_differences(entry, entries[0]), "Difference for each document")
            for entry in entries[1:]
        ),
        (plots.byte_ledger(entries), "Where the bytes of the artifact went"),
    ]
    return [
        f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>"
        for svg, text in drawn
        if svg
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    lines = []
    for index, row in enumerate(rows):
        tag = "td" if index else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"
