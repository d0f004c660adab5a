"""Reports in every format: their shape, and that nothing from a submission acts where it is
shown.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.audit import render
from niblick.audit.render import escape
from niblick.audit.review import review
from niblick.audit.types import Finding, Report, Severity, Smoke, Span
from unit.audit_programs import PLAIN, program

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J<script>alert(1)</script> [x](javascript:y) ![i](http://z) `a` | \u202e"
    " @all\r\nPASS"
)


def report(text: str = "plain") -> Report:
    """A report that holds `text` wherever a submission could put some."""
    finding = Finding(
        rule="slot",
        severity=Severity.BREACH,
        verdict="flag_slot",
        span=Span(file=f"{text}.py", start=3, end=9),
        evidence=f"saw {text}",
        pointer="Conditions C3",
        cure=f"no {text}",
        source="dynamic",
    )
    smoke = Smoke(
        status="SMOKE_TEST_PASS",
        seconds=0.031,
        dim=768,
        layers=22,
        vocab=1024,
        parameters=24_455_688,
        code_bytes=58154,
        python="3.12.1",
        error=None,
        missing=text,
        own_fault=None,
        cure=None,
        isolation="namespaces",
    )
    return Report(
        path=f"records/{text}",
        verdict="flag_slot",
        recommendation="DO NOT ACCEPT",
        findings=(finding,),
        smoke=smoke,
        record={"name": text, "claimed_bpb": 1.2252},
    )


def test_the_text_report_has_the_shape_of_a_review() -> None:
    lines = render.report_text(report()).splitlines()
    starts = [
        "plain",
        "Recommendation: DO NOT ACCEPT",
        "Verdict: flag_slot",
        "Path: ",
        "BPB: 1.22520",
        "Compliance: FLAG",
        "What was found:",
        "- BREACH slot at plain.py:3-9",
    ]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False))
    smoke = (
        "import OK in 0.03s, dim=768, layers=22, vocab=1024, params=24,455,688, code=58154 B,"
        " SMOKE_TEST_PASS"
    )
    assert smoke in lines[-1]


def test_a_report_says_what_was_examined_and_what_was_not(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_text(program(PLAIN, main="evaluate(net, held, s)"))
    text = render.report_text(review(tmp_path))
    examined = next(line for line in text.splitlines() if line.startswith("Examined: "))
    left_out = next(line for line in text.splitlines() if line.startswith("Not examined: "))
    assert "1 of 1 printed figures" in examined and "nothing was run" in left_out
    assert "no TTT" not in text


def test_findings_from_running_are_told_from_findings_from_reading() -> None:
    assert "seen when run" in render.report_text(report())


def test_no_control_or_direction_character_reaches_a_terminal() -> None:
    text = render.report_text(report(HOSTILE))
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "\nPASS" not in text


def test_markdown_from_a_submission_is_inert() -> None:
    from markdown_it import MarkdownIt

    text = render.reports_markdown([report(HOSTILE), report()])
    page = MarkdownIt("commonmark").enable("table").render(text)
    tags = {part.split(">")[0].split()[0].strip("/") for part in page.split("<")[1:]}
    assert tags <= {
        "h2",
        "p",
        "strong",
        "code",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }


def test_html_from_a_submission_is_inert() -> None:
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not any(name.startswith("on") or name in {"href", "src"} for name, _ in attrs)

    Tags().feed(render.reports_html([report(HOSTILE)]))
    assert "script" not in tags
    assert "img" not in tags


def test_json_is_a_list_of_objects_with_the_promised_keys_and_only_ascii() -> None:
    text = render.reports_json([report(HOSTILE)])
    assert text.isascii()
    assert "\x1b" not in text
    (data,) = json.loads(text)
    assert {"path", "verdict", "findings", "smoke", "record"} <= data.keys()
    assert data["findings"][0]["severity"] == "breach"
    assert (data["findings"][0]["file"], data["findings"][0]["line"]) == (f"{HOSTILE}.py", 3)


def test_json_is_json_whatever_a_submission_claims(tmp_path: Path) -> None:
    made = replace(report(), record={"claimed_bpb": float("inf"), "seeds": [float("nan"), 1.5]})
    (data,) = json.loads(render.reports_json([made]), parse_constant=lambda name: 1 / 0)
    assert data["record"] == {"claimed_bpb": None, "seeds": [None, 1.5]}


def test_sarif_takes_names_that_are_no_text() -> None:
    made = replace(report(), path=os.fsdecode(b"b\xff"))
    assert "b%FF" in render.reports_sarif([made], "1")


def test_sarif_names_rule_level_file_and_line() -> None:
    log = json.loads(render.reports_sarif([report()], "1.2.3"))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert run["tool"]["driver"]["version"] == "1.2.3"
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert (result["ruleId"], result["level"]) == ("slot", "error")
    assert place["artifactLocation"]["uri"] == "records/plain/plain.py"
    assert place["region"] == {"startLine": 3, "endLine": 9}
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["slot"]


def test_sarif_messages_hold_no_live_links() -> None:
    (result,) = json.loads(render.reports_sarif([report(HOSTILE)], "1"))["runs"][0]["results"]
    assert "](" not in result["message"]["text"]
    assert "\x1b" not in result["message"]["text"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_escaped_text_is_one_line_of_printable_characters(text: str) -> None:
    shown = escape.plain(text)
    assert "\n" not in shown
    assert all(char.isprintable() or char == " " or char.isspace() for char in shown)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="`a <\\", max_size=12))
def test_a_code_span_is_closed_only_by_its_own_fence(text: str) -> None:
    span = escape.code(text)
    fence = len(span) - len(span.lstrip("`"))
    inner = span[fence:-fence]
    assert "`" * fence not in [
        run for run in inner.replace("`", " `").split() if len(run) == fence and fence > 1
    ]
    assert span.endswith("`" * fence)
