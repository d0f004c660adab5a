"""Scores: sums by hand, files that are checked on reading, data that is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from niblick.data.dataset import open_dataset
from niblick.data.prepare import prepare
from niblick.data.shards import open_shard, write_shard
from niblick.errors import DataError, ScoreError
from niblick.evaluation import Adaptation, EvaluationOptions, evaluate, read_score
from niblick.scoring.data import check_tokenizer, load_target
from niblick.scoring.score import document_sums, make_score
from niblick.text.tokenizer import load_tokenizer
from property.evaluators import (
    BOS,
    CONTEXT,
    VOCAB,
    make_dataset,
    make_model,
    make_tokens,
    model_recipe,
    plain_nll,
)

MODES = ["chunked", "sliding", "streaming", "document"]
FIELDS = {
    "seconds": 1.0,
    "mode": "chunked",
    "data_sha256": "ab",
    "artifact_sha256": None,
    "valid": True,
}


def test_bits_per_byte_of_a_tiny_case_are_the_ones_computed_by_hand():
    nll = np.array([2, 1, 0.5, 4], dtype=np.float32) * np.float32(np.log(2))
    score = make_score(nll, np.array([1, 3, 0, 1]), [(0, 3), (3, 5)], **FIELDS)
    assert score.bpb == pytest.approx(7.5 / 5, rel=1e-7)
    assert score.nats_per_token == pytest.approx(7.5 * np.log(2) / 4, rel=1e-7)
    assert (score.tokens, score.bytes) == (4, 5)
    assert score.documents.tokens == (3, 1) and score.documents.bytes == (4, 1)
    assert score.documents.nats == pytest.approx([3.5 * np.log(2), 4 * np.log(2)], rel=1e-7)


def test_a_document_of_the_last_bos_alone_has_nothing_to_score():
    sums = document_sums(np.ones(3, np.float32), np.ones(3, np.int64), [(0, 3), (3, 4)])
    assert sums.tokens == (3,)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_counts_the_same_tokens_and_bytes_and_documents(tmp_path, mode):
    dataset = make_dataset(tmp_path)
    score = evaluate(
        make_model(), dataset, split="validation", options=EvaluationOptions(mode=mode, stride=3)
    )
    tokens = dataset.tokens("validation")
    assert score.tokens == len(tokens) - 1
    assert score.bytes == int((tokens != BOS).sum())  # one byte a token, none for a BOS
    assert score.documents.tokens == (20, 7, 33, 1, 11)
    assert sum(score.documents.nats) == pytest.approx(
        score.nats_per_token * score.tokens, rel=1e-12
    )
    assert score.valid and score.mode == mode and score.split == "validation"


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_knows_nothing_pays_log2_of_the_alphabet_for_each_token(tmp_path, mode):
    model = make_model()
    with torch.no_grad():
        model.tok_emb.weight.zero_()
    score = evaluate(
        model,
        make_dataset(tmp_path, (11,)),
        split="validation",
        options=EvaluationOptions(mode=mode, stride=3),
    )
    assert score.bpb == pytest.approx(math.log2(260), rel=1e-6)  # ten tokens of one byte each


def test_a_fineweb_folder_is_scored_with_the_challenges_tokenizer_as_it_is(tmp_path):
    tokenizer = load_tokenizer("fineweb-1024")
    texts = ["One document, of some words.", "Another; with 5 ünusual wörds."]
    write_shard(
        tmp_path / "fineweb_val_000000.bin",
        np.concatenate([tokenizer.encode_document(t) for t in texts]),
    )
    model = make_model(vocab_size=1024)
    score = evaluate(model, open_dataset(tmp_path), split="validation", options=EvaluationOptions())
    assert (
        score.bytes == sum(len(text.encode()) for text in texts) and len(score.documents.nats) == 2
    )


def test_progress_ends_at_the_whole(tmp_path):
    shares = []
    evaluate(
        make_model(),
        make_dataset(tmp_path),
        split="validation",
        options=EvaluationOptions(batch_tokens=20),
        on_progress=shares.append,
    )
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 2


def test_sums_are_taken_in_double_precision(tmp_path):
    dataset = make_dataset(tmp_path)
    score = evaluate(
        make_model(), dataset, split="test", options=EvaluationOptions(mode="streaming")
    )
    expected = plain_nll(make_model(), dataset.tokens("test")).astype(np.float64).sum()
    assert score.nats_per_token * score.tokens == pytest.approx(expected, rel=1e-6)


def test_evaluation_leaves_the_model_as_it_was(tmp_path):
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, make_dataset(tmp_path), split="validation", options=EvaluationOptions())
    assert model.training
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_precision_is_bf16_by_itself_only_where_the_device_has_it_and_nothing_is_learnt():
    options = EvaluationOptions()
    assert [options.on_device(bf16).precision for bf16 in (True, False)] == ["bf16", "fp32"]
    assert EvaluationOptions(precision="fp32").on_device(True).precision == "fp32"
    assert EvaluationOptions(precision="bf16").on_device(False).precision == "bf16"
    learning = EvaluationOptions(mode="streaming", ttt=Adaptation(method="sgd"))
    assert learning.on_device(True).precision == "fp32"
    assert options.settings(64)["precision"] == "fp32", "of engines without a choice"


def test_half_precision_stays_close_and_says_so(tmp_path):
    dataset = make_dataset(tmp_path)
    full, half = (
        evaluate(
            make_model(),
            dataset,
            split="validation",
            options=EvaluationOptions(precision=precision),
        )
        for precision in ("fp32", "bf16")
    )
    assert half.settings["precision"] == "bf16"
    assert half.bpb == pytest.approx(full.bpb, rel=0.02) and half.bpb != full.bpb


def test_a_score_file_reads_back_equal(tmp_path):
    score = evaluate(
        make_model(), make_dataset(tmp_path / "d"), split="validation", options=EvaluationOptions()
    )
    score.write(tmp_path / "new" / "score.json")
    assert read_score(tmp_path / "new" / "score.json") == replace(
        score, details=read_score(tmp_path / "new" / "score.json").details
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["score.json"]


@pytest.mark.parametrize("nats", [math.nan, math.inf, 0.5, "x", None])
def test_documents_that_do_not_add_up_to_the_score_are_refused(tmp_path, nats):
    a_score().write(tmp_path / "score.json")
    read_score(tmp_path / "score.json")
    value = json.loads((tmp_path / "score.json").read_text())
    value["documents"]["nats"][0] = nats
    (tmp_path / "score.json").write_text(json.dumps(value))
    with pytest.raises(ScoreError):
        read_score(tmp_path / "score.json")


def test_a_score_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScoreError, match="the score: cannot write"):
        a_score().write(tmp_path / "file" / "score.json")


def a_score(**changes):
    values = {"settings": {"context": 8, "adaptation": None}, "details": {}, **FIELDS, **changes}
    return make_score(np.ones(3, np.float32), np.array([1, 2, 3]), [(0, 4)], **values)


def test_whatever_decides_a_score_is_in_its_name_and_nothing_else_is():
    others = [
        {"mode": "streaming"},
        {"split": "test"},
        {"settings": {"context": 16, "adaptation": None}},
        {"settings": {"context": 8, "adaptation": {"method": "sgd", "lr": 0.1}}},
        {"settings": {"context": 8, "adaptation": {"method": "sgd", "lr": 0.2}}},
        {"data_sha256": "cd"},
        {"tokenizer_sha256": "ef"},
        {"artifact_sha256": "01"},
    ]
    names = [a_score(**change).name for change in ({}, *others)]
    assert len(set(names)) == len(names)
    assert names[0].startswith("validation-chunked-") and names[2].startswith("test-chunked-")
    assert a_score(seconds=9.0, details={"processes": 2, "proof": {}}).name == names[0]


@pytest.mark.parametrize(
    "change",
    [{"context": 7}, {"mode": "sliding", "stride": 3}, {"mode": "document"}, {"precision": "bf16"}],
)
def test_options_that_decide_a_score_are_its_settings(tmp_path, change):
    dataset = make_dataset(tmp_path)
    plain, other = (
        evaluate(make_model(), dataset, split="validation", options=EvaluationOptions(**changes))
        for changes in ({}, change)
    )
    assert (plain.name != other.name) and plain.kind != other.kind
    assert set(plain.settings) == {
        "context",
        "stride",
        "precision",
        "document",
        "adaptation",
        "engine",
    }
    assert plain.settings["context"] == CONTEXT and plain.tokenizer_sha256
    again = EvaluationOptions(batch_tokens=20)
    assert evaluate(make_model(), dataset, split="validation", options=again).name == plain.name


def schema_1(score, **details):
    """The file of `score` as version 0.1 wrote it."""
    values = json.loads(score.to_json())
    for key in ("schema", "split", "settings", "tokenizer_sha256"):
        del values[key]
    adaptation = details.pop("adaptation", None)
    return values | {
        "details": {
            "split": score.split,
            "context": CONTEXT,
            "precision": "fp32",
            "data": "x",
            "adaptation": adaptation,
            **details,
        }
    }


def test_a_score_file_of_schema_1_is_read_as_the_same_kind_of_score(tmp_path):
    options = EvaluationOptions(ttt=Adaptation(method="sgd"))
    score = evaluate(make_model(), make_dataset(tmp_path / "d"), split="test", options=options)
    learnt = {"steps": 3, "learnt_tokens": 40, "stopped_by_time": False}
    old = schema_1(score, adaptation={**options.ttt.settings(), **learnt}, documents=5)
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = read_score(tmp_path / "old.json")
    assert (found.kind, found.label) == (score.kind, "test-streaming-sgd")
    assert (found.bpb, found.documents) == (score.bpb, score.documents)
    assert found.details == {"data": "x", "documents": 5, "learnt": learnt}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema 3 is unknown; this build reads 1 and 2"),
        ({"settings": []}, "settings and details must be tables"),
        ({"settings": {"adaptation": "sgd"}}, "adaptation must be a table"),
        ({"mode": 3}, "must be text"),
        ({"bpb": 0.5}, "does not follow from its sums"),
        ({"bytes": 7}, "does not follow"),
        ({"tokens": 0}, "tokens 0 must be"),
        ({"bpb": "x"}, "must be finite"),
        ({"valid": "yes"}, "valid true or false"),
        ({"documents": {"nats": [1.0], "bytes": [1], "tokens": [1]}}, "do not add up"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_score_file_that_was_changed_is_refused(tmp_path, change, message):
    score = evaluate(
        make_model(), make_dataset(tmp_path / "d"), split="validation", options=EvaluationOptions()
    )
    path = tmp_path / "score.json"
    path.write_text(json.dumps(json.loads(score.to_json()) | change))
    with pytest.raises(ScoreError, match=message):
        read_score(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"bpb": 1}', "\udcff"])
def test_a_file_that_is_no_score_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "score.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ScoreError) as caught:
        read_score(path)
    assert "\n" not in str(caught.value)


def test_likelihoods_that_are_not_finite_are_refused():
    with pytest.raises(ScoreError, match="token 2 no finite"):
        make_score(np.array([1, np.nan], np.float32), np.array([1, 1]), [(0, 3)], **FIELDS)


def prepared(folder):
    texts = folder / "texts"
    for split in ("train", "validation"):
        (texts / split).mkdir(parents=True)
        for i in range(3):
            (texts / split / f"{i}.txt").write_text(
                f"{split} text number {i}, with some words: été."
            )
    return prepare(texts, out=folder / "shards", tokenizer="bytes")


def load(dataset, split="validation"):
    return load_target(dataset, split, vocab_size=VOCAB, bos_id=BOS)


def test_a_whole_split_passes_with_the_bytes_of_its_text(tmp_path):
    dataset = prepared(tmp_path)
    assert int(load(dataset).counts.sum()) == dataset.manifest.splits["validation"].bytes


def test_a_truncated_validation_set_is_refused(tmp_path):
    dataset = prepared(tmp_path)
    shard = dataset.shards("validation")[0]
    write_shard(shard, open_shard(shard)[:-5].copy())
    with pytest.raises(ScoreError, match="truncated"):
        load(dataset)
    with pytest.raises(DataError, match="manifest says"):
        open_dataset(dataset.folder)
    shard.write_bytes(shard.read_bytes()[:-6])
    with pytest.raises(DataError, match="bytes, but"):
        load(dataset)


def test_a_missing_shard_in_the_middle_of_a_split_is_refused(tmp_path):
    for number in (0, 2):
        write_shard(tmp_path / f"fineweb_val_{number:06d}.bin", make_tokens([30]))
    with pytest.raises(ScoreError, match="shard number 1 is missing"):
        load(open_dataset(tmp_path, load_tokenizer("bytes")))


def test_altered_tokens_are_refused(tmp_path):
    dataset = prepared(tmp_path)
    shard = dataset.shards("validation")[0]
    tokens = open_shard(shard).copy()
    tokens[3] = 4 + 99
    write_shard(shard, tokens)
    with pytest.raises(ScoreError, match="tokens were altered"):
        load(dataset)


def test_a_changed_byte_count_is_refused(tmp_path):
    dataset = prepared(tmp_path)
    entry = dataset.manifest.splits["validation"]
    manifest = replace(
        dataset.manifest, splits={"validation": replace(entry, bytes=entry.bytes + 1)}
    )
    with pytest.raises(
        ScoreError, match=f"add up to {entry.bytes:,}; the manifest of 'validation' counts"
    ):
        load(replace(dataset, manifest=manifest))


def test_a_byte_table_that_disagrees_with_the_decoded_text_is_refused(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path)
    table = dataset.tokenizer.byte_table
    monkeypatch.setitem(
        dataset.tokenizer.__dict__, "byte_table", replace(table, base=table.base * 3)
    )
    with pytest.raises(ScoreError, match="token bytes add up to 2"):
        load(dataset)


def test_a_wrong_tokenizer_is_refused(tmp_path):
    dataset = make_dataset(tmp_path)
    check_tokenizer(load_tokenizer("bytes"), dataset)
    with pytest.raises(ScoreError, match=r"the model speaks fineweb-1024 .* prepare the text"):
        check_tokenizer(load_tokenizer("fineweb-1024"), dataset)
    with pytest.raises(ScoreError, match="tokenizer has 260 ids"):
        load_target(dataset, "validation", vocab_size=1024, bos_id=BOS)


def test_a_stream_of_one_token_has_nothing_to_score(tmp_path):
    with pytest.raises(ScoreError, match="at least 2"):
        load(make_dataset(tmp_path, [1]))


def test_a_recipes_evaluation_section_becomes_options(tmp_path):
    from niblick.recipe import load_recipe

    options = EvaluationOptions.from_recipe(load_recipe("sidecar"), context=99)
    assert (options.mode, options.stride, options.context) == ("sliding", 32, 99)
    assert model_recipe().context == CONTEXT
