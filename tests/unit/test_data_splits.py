"""A user's own text: duplicates, held-out documents and blocks, and what HTML shows."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from niblick.data.corpus import load_corpus
from niblick.data.duplicates import group_duplicates
from niblick.data.splits import ENOUGH, size_of, split_own
from niblick.data.textfiles import html_text

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "n", "rst", "mp", "s")]


def prose(seed: int, size: int) -> str:
    """Sentences in paragraphs, of about `size` characters, another text for another seed."""
    draw = random.Random(seed)
    text = ""
    while len(text) < size:
        text += " ".join(draw.choices(WORDS, k=draw.randint(5, 14))).capitalize() + "."
        text += draw.choice((" ", " ", " ", "\n\n"))
    return text[:size]


def changed(text: str, seed: int, every: int = 80) -> str:
    """A near copy: one word in `every` is another, spaces and case differ."""
    draw = random.Random(seed)
    words = [w if draw.randrange(every) else draw.choice(WORDS) for w in text.split()]
    return "  ".join(words).upper()


def test_near_copies_are_one_group_and_other_texts_are_not() -> None:
    texts = [prose(seed, 1500) for seed in range(60)]
    copies = [changed(text, 99) for text in texts[:20]]
    groups = group_duplicates([*texts, *copies])
    assert groups[60:] == groups[:20]
    assert len(set(groups[:60])) == 60


def test_texts_that_share_a_third_are_not_duplicates() -> None:
    header = prose(7, 700)
    groups = group_duplicates([header + prose(seed, 1400) for seed in range(10, 30)])
    assert len(set(groups)) == 20


def test_short_texts_are_duplicates_only_where_they_are_equal() -> None:
    assert len(set(group_duplicates(["Yes.", "yes.", "No.", "Yes?", ""]))) == 4


def test_no_near_copy_of_a_training_document_is_held_out() -> None:
    texts = [prose(seed, 2000) for seed in range(150)]
    copies = [changed(text, seed) for seed, text in enumerate(texts)]
    splits = split_own(texts + copies).splits
    place = {text: split for split, found in splits.items() for text in found}
    assert all(place[text] == place[copy] for text, copy in zip(texts, copies, strict=True))
    assert set(place.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize(("count", "size"), [(12, 5_000), (40, 5_000), (300, 400), (200, 6_000)])
def test_held_out_text_is_a_tenth_at_most_and_twenty_kilobytes_where_it_can_be(
    count: int, size: int
) -> None:
    texts = [prose(seed, size) for seed in range(count)]
    splits, total = split_own(texts).splits, count * size
    held = size_of(splits["validation"])
    assert min(ENOUGH, total / 10) <= held <= max(0.1 * total + size, 1.5 * ENOUGH)
    assert sum(map(size_of, splits.values())) == total


@pytest.mark.parametrize("size", [50_000, 300_000, 2_000_000])
def test_a_single_text_is_held_out_in_contiguous_blocks_and_nothing_is_lost(size: int) -> None:
    text = prose(1, size)
    splits = split_own([text]).splits
    pieces = [(text.index(piece), piece, s) for s, parts in splits.items() for piece in parts]
    assert "".join(piece for _, piece, _ in sorted(pieces)) == text
    order = [split for _, _, split in sorted(pieces)]
    changes = sum(a != b for a, b in pairwise(order))
    assert changes <= 15
    assert 0.04 * size <= size_of(splits["validation"]) <= 0.11 * size + 2000


def test_a_text_that_repeats_itself_is_not_scored_on_what_it_trained_on() -> None:
    passage = prose(2, 6_000)
    parts = [prose(seed, 6_000) for seed in range(3, 30)]
    held = split_own(["\n\n".join([*parts, *parts])])
    assert held.left_out
    known = {piece[:200] for piece in held.splits["train"]}
    assert not known & {piece[:200] for piece in held.splits["validation"]}
    assert passage not in "".join(held.splits["train"])


def test_splits_do_not_depend_on_the_order_of_documents() -> None:
    texts = [prose(seed, 3000) for seed in range(40)]
    forward, backward = split_own(texts).splits, split_own(texts[::-1]).splits
    assert {k: sorted(v) for k, v in forward.items()} == {k: sorted(v) for k, v in backward.items()}


def test_html_becomes_the_text_that_a_browser_shows() -> None:
    page = """<!doctype html><html><head><title>T</title><style>p {}</style></head><body>
    <h1>Salt  &amp;\n pepper</h1><script>var x = "<p>no</p>";</script>
    <p>One <b>bold</b> word<br>and&nbsp;a line</p><ul><li>a</li><li>b</li></ul>
    <pre>x = 1\n  y = 2</pre></body></html>"""
    shown = ["Salt & pepper", "One bold word", "and\xa0a line", "a", "b", "x = 1", "  y = 2"]
    assert html_text(page).split("\n") == shown
    assert html_text("<html><head><title>T</title>\n<p>Hello world<p>more") == "Hello world\nmore"
    assert html_text("no tags <unclosed") and not html_text("")


def test_all_kinds_of_text_are_read_and_others_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.rst", "d.py", "E.HTML", "f.htm"):
        (tmp_path / name).write_text(f"<p>text of {name}</p>", "utf-8")
    (tmp_path / "g.png").write_bytes(b"\x89PNG")
    corpus = load_corpus(tmp_path)
    texts = sorted(text for found in corpus.splits.values() for text in found)
    assert len(texts) == 6 and "text of E.HTML" in texts and "<p>text of b.md</p>" in texts
    assert any("1 .png" in note for note in corpus.notes)
