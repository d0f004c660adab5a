"""`niblick export --to html` from the command line, and its page in a browser without a network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import niblick
from chromium import Chromium, find_chromium
from commands import run
from niblick.browser import wasm


def test_a_model_is_exported_by_name_and_a_run_with_its_score(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", str(recipe), "--out", "run", "--duration", "2 steps") == 0
    capsys.readouterr()
    assert run("export", "run", "--to", "html", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    page = Path("page.html").read_text("utf-8")
    assert told["bytes"] == Path("page.html").stat().st_size
    assert "<dt>Score</dt>" in page
    assert "<title>tiny: a language model in one page</title>" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--to", "html"], "no model at 'nothing'"),
        (["pocket", "--to", "docx"], "cannot export to 'docx'; accepted: submission, hf"),
        (["pocket", "--to", "html", "--out", "."], "is a folder"),
        (["pocket", "--to", "html", "--tokenizer", "nothing.model"], "nothing.model"),
    ],
)
def test_wrong_input_gets_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.integration
@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium")
def test_the_page_writes_the_native_engines_text_without_a_network(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run("export", "pocket", "--to", "html", "--out", str(page)) == 0
    model = niblick.load("pocket")
    with Chromium(find_chromium(), offline=True) as browser:
        browser.open(page.as_uri())
        browser.until("!document.querySelector('#write').disabled")
        for prompt in ("The river runs down to", "Ἀθῆναι is\n"):
            browser.type("#prompt", prompt)
            browser.type("#temperature", "0")
            browser.type("#tokens", "100")
            browser.evaluate("document.querySelector('#form').requestSubmit()")
            browser.until("!document.querySelector('#write').disabled")
            spans = (
                "[...document.querySelectorAll('#text span{}')].map(s => s.textContent).join('')"
            )
            assert browser.evaluate(spans.format(".prompt")) == prompt
            written = browser.evaluate(spans.format(":not(.prompt)"))
            assert written == model.generate(prompt, temperature=0, max_tokens=100)
        browser.evaluate("document.querySelector('#text').focus()")
        browser.press("ArrowRight")
        assert "bits." in browser.evaluate("document.querySelector('#token').textContent")
        assert browser.requests == [page.as_uri()]
        assert browser.messages == []


@pytest.mark.integration
def test_the_module_is_what_its_sources_compile_to() -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("there is no ziglang; `make wasm` installs it")
    assert wasm.build() == wasm.compiled()
