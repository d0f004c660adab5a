"""`niblick compare`: what it reads, what it refuses, and that text from outside stays text."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from niblick.cli import main
from niblick.errors import ScoreError
from niblick.recipe import load_recipe, recipe_to_toml
from niblick.report.page import comparison_page
from niblick.scoring.compare import compare, comparison_text, conclusion
from niblick.scoring.differences import recipe_rows
from niblick.scoring.entries import read_entries
from niblick.scoring.score import make_score

DOCUMENTS, LENGTH = 40, 25


def write_run(
    folder,
    shift=0.0,
    *,
    seed=0,
    mode="streaming",
    valid=True,
    data="d" * 64,
    extra=0,
    part="payload",
    split="validation",
    **settings,
):
    """A run directory with a score, a card and metrics; `shift` in nats per token."""
    score = make(shift, seed=seed, mode=mode, valid=valid, data=data, extra=extra, split=split)
    score = replace(score, settings={**score.settings, **settings})
    score.write(folder / "scores" / f"{score.name}.json")
    card = {
        **score.summary(),
        "artifact_bytes": 900_000 + seed,
        "train_seconds": 600.0,
        "ledger": {"parts": {part: 800_000, "header": 100_000}},
    }
    (folder / "card.json").write_text(json.dumps(card))
    rows = [
        {"step": i, "seconds": i * 1.5, "tokens": i * 512, "loss": 7 - i * 0.01}
        for i in range(1, 300)
    ]
    lines = [json.dumps(row) for row in rows] + [
        '{"step": 3, "validation_bpb": 2.0}',
        '{"step": 9, "seconds": 9, "tokens": 4608, "validation_bpb": 2.1}',
        '{"step": 19, "seconds": 19, "tokens": 9728, "validation_bpb": 2.0}',
        '{"loss": NaN}',
        '{"step": 20, "tokens": 1%s, "loss": 1}' % ("0" * 400),
        "broken",
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def make(
    shift=0.0,
    *,
    seed=0,
    mode="streaming",
    valid=True,
    data="d" * 64,
    extra=0,
    split="validation",
    **settings,
):
    """A score of many documents; `settings` replace those of a plain one."""
    random = np.random.default_rng(seed)
    base = np.random.default_rng(99).gamma(2, 1, DOCUMENTS * LENGTH)
    nll = (base + shift + random.normal(0, 0.001, len(base))).astype(np.float32)
    counts = np.full(len(nll), 3, dtype=np.int64)
    counts[0] += extra
    spans = [(i * LENGTH, (i + 1) * LENGTH) for i in range(DOCUMENTS)]
    plain = {"context": 512, "stride": None, "precision": "fp32", "document": False}
    return make_score(
        nll,
        counts,
        spans,
        seconds=1.0,
        mode=mode,
        data_sha256=data,
        artifact_sha256="a" * 64,
        valid=valid,
        split=split,
        settings={**plain, "adaptation": None, "engine": "torch", **settings},
    )


def write_seeds(folder, shift=0.0, count=3, **settings):
    for seed in range(count):
        write_run(folder / f"seed-{seed}", shift, seed=seed, **settings)
    return folder


def read(*paths, **options):
    return read_entries(paths, **({"split": "validation", "mode": None} | options))


def test_a_steady_gain_over_three_seeds_holds_the_record(tmp_path):
    old, new = write_seeds(tmp_path / "old"), write_seeds(tmp_path / "new", -0.02)
    found = compare(read(old, new), resamples=500)
    row = found["comparisons"][0]
    assert row["nats_difference"] == pytest.approx(-0.02, abs=1e-3)
    assert row["record"]["holds"] and row["welch"]["p_two"] < 0.01
    assert row["bootstrap"]["high"] < 0 and row["bootstrap"]["documents"] == DOCUMENTS
    assert found["runs"][0]["bpb"]["n"] == 3 and found["runs"][0]["detectable_nats"] > 0
    assert "the record rule (>= 0.005 nats at p < 0.01) holds" in comparison_text(found)
    json.dumps(found, allow_nan=False)


def test_one_run_alone_is_summarised(tmp_path):
    found = compare(read(write_run(tmp_path / "run")))
    assert found["comparisons"] == [] and found["runs"][0]["artifact_bytes"] == 900_000


@pytest.mark.parametrize("settings", [5, None, "x"])
def test_a_card_that_is_damaged_is_left_out(tmp_path, settings):
    run = write_run(tmp_path / "run")
    card = json.loads((run / "card.json").read_text())
    (run / "card.json").write_text(json.dumps({**card, "settings": settings}))
    assert compare(read(run))


def test_score_files_compare_without_a_run(tmp_path):
    files = [
        next((write_run(tmp_path / name, shift) / "scores").iterdir())
        for name, shift in (("a", 0.0), ("b", 0.1))
    ]
    found = compare(read(*files), resamples=300)
    assert found["comparisons"][0]["bpb_difference"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "e" * 64}, "different data: "),
        ({"extra": 1}, "different byte counts: .*3,000.*3,001"),
    ],
)
def test_different_data_and_byte_counts_are_refused(tmp_path, settings, message):
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", **settings)
    with pytest.raises(ScoreError, match=message) as caught:
        compare(read(*runs))
    assert caught.value.exit_code == 2


def test_an_invalid_score_is_marked_and_holds_no_record(tmp_path):
    old, new = write_seeds(tmp_path / "old"), write_seeds(tmp_path / "new", -0.5, valid=False)
    entries = read(old, new)
    found = compare(entries, resamples=300)
    assert not found["comparisons"][0]["record"]["holds"]
    assert comparison_text(found).startswith("NOT A VALID SCORE")
    assert "NOT A VALID SCORE" in comparison_page(found, entries)


def test_runs_are_compared_in_a_mode_they_share(tmp_path):
    a, b = write_run(tmp_path / "a", mode="chunked"), write_run(tmp_path / "b", mode="streaming")
    write_run(tmp_path / "a", mode="streaming")
    assert [entry.seeds[0].score.mode for entry in read(a, b)] == ["streaming", "streaming"]
    with pytest.raises(ScoreError, match="has no score in mode 'chunked'; it has: streaming"):
        read(a, b, mode="chunked")


def test_a_missing_run_a_run_without_scores_and_a_wrong_split_are_refused(tmp_path):
    with pytest.raises(ScoreError, match="no run at"):
        read(tmp_path / "nothing")
    with pytest.raises(ScoreError, match="holds no score of its artifact on 'validation'"):
        read(tmp_path)
    with pytest.raises(ScoreError, match="on 'test'"):
        read(write_run(tmp_path / "run"), split="test")


class Tags(HTMLParser):
    """Collects tags, attributes and nothing else."""

    def __init__(self, text):
        super().__init__()
        self.found, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.links += [
            v
            for k, v in attributes
            if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]
        assert not any(name.startswith("on") for name, _ in attributes)


HOSTILE = '<script>alert(1)</script> $\\frac{1$ & "x" _y'


def test_the_page_holds_all_plots_and_loads_and_runs_nothing(tmp_path):
    entries = read(write_seeds(tmp_path / "old"), write_seeds(tmp_path / "new", 0.01))
    page = comparison_page(compare(entries, resamples=300), entries)
    tags = Tags(page)
    assert tags.found.count("svg") == 6 and "script" not in tags.found and "link" not in tags.found
    assert tags.links == []
    for text in (
        "seconds of training",
        "tokens of training",
        "artifact (bytes)",
        "difference (bits per byte)",
        "payload",
    ):
        assert text in page
    for svg in page.split("<svg")[1:]:
        ET.fromstring("<svg" + svg[: svg.index("</svg>")] + "</svg>")


def test_hostile_names_stay_text_in_table_and_plots(tmp_path):
    old = write_seeds(tmp_path / "old", part=HOSTILE)
    new = write_seeds(tmp_path / HOSTILE.replace("/", "|"), 0.01, part=HOSTILE)
    entries = read(old, new)
    page = comparison_page(compare(entries, resamples=300), entries)
    tags = Tags(page)
    assert "script" not in tags.found and "<script" not in page and tags.links == []


def test_the_page_is_the_same_for_the_same_runs(tmp_path):
    entries = read(write_run(tmp_path / "a"), write_run(tmp_path / "b", 0.01))
    found = compare(entries, resamples=300)
    assert comparison_page(found, entries) == comparison_page(found, entries)


def test_the_command_prints_one_json_document_and_writes_the_page(tmp_path, capsys):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", 0.01)
    with pytest.raises(SystemExit) as done:
        main(
            [
                "compare",
                str(old),
                str(new),
                "--json",
                "--html",
                str(tmp_path / "page.html"),
                "--resamples",
                "200",
            ]
        )
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["new"] == "new"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_command_refuses_different_data_in_one_line_with_code_2(tmp_path, capsys):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", data="e" * 64)
    with pytest.raises(SystemExit) as done:
        main(["compare", str(old), str(new)])
    output = capsys.readouterr()
    assert done.value.code == 2 and output.out == "" and output.err.count("\n") == 1


def add(folder, **settings):
    """One more score of the run's artifact, as `niblick eval` leaves it."""
    score = make(1.0, **settings)
    score.write(folder / "scores" / f"{score.name}.json")
    return score


OTHER = [
    {"data": "e" * 64},
    {"context": 64},
    {"precision": "bf16"},
    {"adaptation": {"method": "sgd", "lr": 0.1}},
    {"mode": "sliding", "stride": 64},
]


@pytest.mark.parametrize("given", ["recipe", "card"])
def test_of_a_run_with_many_scores_the_recipes_own_settings_are_compared(tmp_path, given):
    run = write_run(tmp_path / "run")
    own = make().bpb
    for settings in OTHER:
        add(run, **settings)
    if given == "recipe":
        recipe = load_recipe(
            "token-shift-small", overrides=["model.context=512", "evaluation.mode=streaming"]
        )
        card = json.loads((run / "card.json").read_text())
        card["settings"]["context"] = 64  # a headline is not what decides where a recipe is
        (run / "card.json").write_text(json.dumps(card))
        (run / "recipe.toml").write_text(recipe_to_toml(recipe))
    assert compare(read(run))["runs"][0]["bpb"]["values"] == [own]
    other = write_run(tmp_path / "other", 0.1)
    assert compare(read(run, other), resamples=300)["runs"][0]["bpb"]["values"] == [own]


def test_settings_that_differ_are_said_first_and_nothing_is_tested_unless_asked(tmp_path, capsys):
    old = write_seeds(tmp_path / "old")
    new = write_seeds(tmp_path / "new", -0.02, context=64, precision="bf16")
    entries = read(old, new)
    found = compare(entries, resamples=300)
    row = found["comparisons"][0]
    assert (row["bootstrap"], row["welch"], row["record"]) == (None, None, None)
    assert found["differing"]["context"] == {"old": [512], "new": [64]}
    first = "settings differ: context 512 (old), 64 (new); precision fp32 (old), bf16 (new)"
    assert comparison_text(found).splitlines()[0] == first
    assert first in comparison_page(found, entries)
    assert "p = " not in comparison_text(found) and "--across-settings" in comparison_text(found)
    arguments = ["compare", str(old), str(new), "--resamples", "300", "--across-settings"]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    text = capsys.readouterr().out
    assert done.value.code == 0 and text.splitlines()[0] == first and "p = " in text


def test_settings_that_agree_are_not_said(tmp_path):
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", 0.01)
    found = compare(read(*runs), resamples=300)
    assert found["differing"] == {} and comparison_text(found).startswith("validation: ")


def test_runs_of_other_settings_are_compared_where_both_were_scored_alike(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", context=256)
    add(b, context=512)
    found = compare(read(a, b), resamples=300)
    assert found["differing"] == {} and found["runs"][1]["settings"]["context"] == 512
    assert found["comparisons"][0]["bootstrap"] is not None


def test_a_run_without_a_score_of_its_own_settings_is_refused_by_what_it_has(tmp_path):
    run = write_run(tmp_path / "run")
    next((run / "scores").iterdir()).unlink()
    for settings in OTHER[1:3]:
        add(run, **settings)
    with pytest.raises(ScoreError, match=r"no score of its recipe's own settings; .*context 64"):
        read(run)


def test_a_split_scored_on_two_texts_is_refused_rather_than_guessed(tmp_path):
    run = write_run(tmp_path / "run")
    for data in ("e" * 64, "f" * 64):
        add(run, split="test", data=data)
    with pytest.raises(ScoreError, match="several scores of its recipe's own settings"):
        read(run, split="test")


def test_runs_that_version_0_1_wrote_compare_with_those_of_today(tmp_path):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", 0.1)
    for path in (old / "card.json", *(old / "scores").iterdir()):
        values = json.loads(path.read_text())
        for key in ("schema", "split", "settings", "tokenizer_sha256"):
            del values[key]
        values["details"] = {
            "split": "validation",
            "context": 512,
            "precision": "fp32",
            "adaptation": None,
        }
        path.write_text(json.dumps(values))
    (old / "scores" / path.name).rename(old / "scores" / "validation-streaming-artifact.json")
    found = compare(read(old, new), resamples=300)
    assert found["differing"] == {} and found["comparisons"][0]["bootstrap"]["p"] < 0.01


def row_of(documents, seeds, difference):
    return {
        "new": "new",
        "old": "old",
        "bpb_difference": difference,
        "bootstrap": None if documents is None else {"p": documents},
        "welch": None if seeds is None else {"p_two": seeds},
    }


@pytest.mark.parametrize(
    ("documents", "seeds", "said"),
    [
        (0.0001, 0.001, "new is better than old, over the documents (p < 0.001) and over the"),
        (0.0001, 0.3, "other seeds may turn it round"),
        (0.3, 0.001, "on other text it may be otherwise"),
        (0.3, 0.3, "No difference between new and old is certain"),
        (0.0001, None, "whether its recipe is takes two seeds"),
        (0.3, None, "Between these two files of new and old no difference is certain"),
        (None, 0.3, "new is not certainly better"),
        (None, None, "cannot be said"),
    ],
)
def test_one_plain_sentence_says_where_documents_and_seeds_disagree(documents, seeds, said):
    sentence = conclusion(row_of(documents, seeds, -0.01))
    assert said in sentence and sentence.endswith(".") and "\n" not in sentence
    worse = conclusion(row_of(documents, seeds, 0.01))
    assert "better" not in worse


def test_the_text_ends_with_the_sentence_and_fits_a_terminal(tmp_path):
    one = write_seeds(tmp_path / "a" / "one")
    two = write_seeds(tmp_path / "b" / "two", shift=-0.02)
    found = compare(read(one, two))
    for width in (60, 80, 200):
        lines = comparison_text(found, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(lines[-3:]).endswith(conclusion(found["comparisons"][0]))


def test_recipes_that_differ_are_told_key_by_key_on_page_and_terminal(tmp_path):
    for name, clip in (("one", "0.5"), ("two", "0.25")):
        folder = write_run(tmp_path / name)
        recipe = load_recipe("pocket", [f"training.clip={clip}"])
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation, "name": name})
        (folder / "recipe.toml").write_text(recipe_to_toml(recipe), "utf-8")
    entries = read(tmp_path / "one", tmp_path / "two", mode="streaming")
    rows = recipe_rows(entries)
    assert rows == [["recipe key", "one", "two"], ["training.clip", "0.5", "0.25"]]
    found = compare(entries)
    page = comparison_page(found, entries)
    assert "training.clip" in page and "Validation loss against tokens" in page
    assert "training.clip" in comparison_text(found, rows)


def test_shipped_models_are_compared_by_their_names(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "pocket", "pocket-ensemble"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert told.count("streaming") == 2 and "pocket-ensemble" in told
    with pytest.raises(SystemExit):
        main(["compare", "pocket", "none"])
    assert "or shipped models: pocket" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "file/score.json"])
def test_a_place_that_no_score_can_be_written_to_is_refused_before_scoring(tmp_path, capsys, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as end:
        main(["eval", str(tmp_path / "none.nib"), "--out", str(tmp_path / place)])
    told = capsys.readouterr()
    assert end.value.code != 0 and told.err.startswith("niblick: cannot write") and not told.out
