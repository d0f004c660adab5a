"""Writes reports: plain text, Markdown, HTML, JSON and SARIF. Everything from a submission is
escaped.
"""

from niblick.audit.render.data import report_data, reports_json
from niblick.audit.render.html import reports_html
from niblick.audit.render.sarif import reports_sarif
from niblick.audit.render.text import report_markdown, report_text, reports_markdown

__all__ = [
    "report_data",
    "report_markdown",
    "report_text",
    "reports_html",
    "reports_json",
    "reports_markdown",
    "reports_sarif",
]
