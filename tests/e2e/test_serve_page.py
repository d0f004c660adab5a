"""The page of `niblick serve` in a browser: it writes, scores and explains, by keyboard too, within
a policy that lets nothing in from outside.
"""

from __future__ import annotations

import pytest

from chromium import Chromium, find_chromium
from served import serving, small_model

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_chromium() is None, reason="there is no chromium"),
]
TEXTS = "[...document.querySelectorAll('#{} .t')].map((t) => t.textContent).join('')"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("page"))


@pytest.fixture
def page(model):
    with serving(model, slots=2, threads=1) as server, Chromium(find_chromium()) as browser:
        browser.window(900, 800)
        browser.open(server.address)
        browser.until("model !== null")
        yield browser
        assert not browser.messages, browser.messages


def submit(page, form, **values):
    for name, value in values.items():
        page.evaluate(f"at({name.replace('_', '-')!r}).value = {value!r}")
    page.evaluate(f"at({form!r}).requestSubmit()")


def test_it_writes_the_models_own_text_token_by_token(page, model):
    page.evaluate("at('across').checked = true")
    submit(page, "write-form", prompt="añ", tokens=40, seed=5, temperature=1, top_p=1)
    page.until("at('written').childNodes.length > 2 && !running")
    own = model.generate("añ", seed=5, temperature=1, max_tokens=40, across_documents=True)
    assert page.evaluate("at('written').textContent") == "añ" + own
    assert "40 tokens" in page.evaluate("at('write-status').textContent")


def test_alternatives_are_reached_by_keyboard(page):
    submit(page, "score-form", any="The river")
    page.until("document.querySelectorAll('#scored .t').length === 9")
    page.evaluate("choose(at('tab-score'))")
    page.evaluate("document.querySelector('#scored .t').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "h"
    assert "bits" in page.evaluate("at('detail').innerText")
    assert page.evaluate("document.querySelectorAll('#detail .other').length") >= 5
    assert page.evaluate("document.querySelectorAll('#scored [tabindex=\"0\"]').length") == 1


def test_tabs_follow_the_arrow_keys_and_say_what_is_chosen(page):
    page.evaluate("at('tab-write').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-score"
    assert page.evaluate("at('tab-score').getAttribute('aria-selected')") == "true"
    assert page.evaluate("at('write').hidden && !at('score').hidden")


def test_bits_per_byte_is_the_models_score(page, model):
    text = "The river añ日 runs."
    submit(page, "score-form", any=text)
    page.until("at('scored').textContent !== ''")
    assert page.evaluate(TEXTS.format("scored")) == text
    nats = model.nll(model.tokenizer.encode_document(text)).sum()
    wanted = nats / 0.6931471805599453 / len(text.encode())
    assert page.evaluate("at('score-status').textContent") == f"{wanted:.4f} bits per byte"


def test_markup_in_a_text_stays_text(page):
    evil = "<img src=x onerror=alert(1)><script>1</script>"
    submit(page, "score-form", any=evil)
    page.until("at('scored').textContent !== ''")
    assert page.evaluate("at('scored').textContent") == evil
    assert page.evaluate("document.querySelectorAll('#scored img, #scored script').length") == 0


def test_nothing_is_wider_than_a_phone(page):
    page.window(360, 700, phone=True)
    for tab in ("write", "score", "card"):
        page.evaluate(f"choose(at('tab-{tab}'))")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
