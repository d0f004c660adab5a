"""What a file declares is refused before memory or arithmetic, in one short line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niblick.cli import main
from niblick.data.recipes import read_recipe
from niblick.errors import NiblickError, RecipeError
from niblick.limits import MAX_LINE, MAX_QUOTED, cut, quoted
from niblick.plan import make_plan
from niblick.recipe import load_recipe, recipe_from_dict

LONG = "x" * 60_000
HOSTILE = {
    "model.context": [10**9, 10**400],
    "model.dim": [1 << 40, 10**400],
    "model.attention.q_gain": [1e308, -1e308],
    "model.attention.rope.base": [1e308],
    "model.mlp.slope": [1e308],
    "model.bigram.scale": [-1e308],
    "model.value_embedding.std": [1e308],
    "model.value_embedding.layers": [[10**400], [-1], list(range(4000))],
    "model.softcap": [1e308],
    "model.stack": [
        [{"layers": ["full"] * 10**5}],
        [{"layers": [LONG]}],
        [{"layers": ["token-shift*256"], "loops": 64}],
        [{"name": f"a{n}_blocks", "layers": ["full"]} for n in range(65)],
        LONG,
    ],
    "training.adam.betas": [[1e308, 0.9], [0.9, 1.0]],
    "training.muon.lr": [1e308],
    "training.batch_tokens": [2**62],
    "training.threads": [2**31],
    "training.duration": [f"{'9' * 400} steps", f"{'9' * 4000}s", LONG],
    "artifact.max_bytes": [10**400],
    "artifact.codec": [LONG, "a\0b"],
    "data.corpus": ["a\0b"],
    "description": [LONG],
    "plugins": [[LONG], ["p"] * 1000],
    LONG: [1],
    "name": [LONG, "a\nb"],
}


def with_value(key: str, value: object) -> dict[str, object]:
    """The values of a shipped recipe with one replaced."""
    values = load_recipe("token-shift").model_dump(mode="json")
    *path, leaf = key.split(".")
    node = values
    for part in path:
        node = node[part]
    node[leaf] = value
    return values


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in HOSTILE.items() for value in values],
    ids=lambda item: str(item)[:20].replace("\0", "NUL"),
)
def test_a_hostile_value_is_one_short_line(key: str, value: object) -> None:
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe_from_dict(with_value(key, value)).model)
    line = str(caught.value)
    assert len(line) <= MAX_LINE and line.isprintable()


def test_sizes_that_are_each_fine_but_not_together_are_refused() -> None:
    wide = load_recipe("token-shift", ["model.dim=65536", "model.stack.0.layers=['full*11']"])
    with pytest.raises(RecipeError, match="parameters; at most"):
        make_plan(wide.model)
    long = load_recipe(
        "token-shift", ["model.stack.0.layers=['full*256']", "model.context=1048576"]
    )
    with pytest.raises(RecipeError, match="decode state; at most"):
        make_plan(long.model)


@pytest.mark.parametrize(
    "text",
    [
        f"a = {'9' * 5000}",
        f"a = {'[' * 5000}{']' * 5000}",
        "a = 1\n" * 2,
        "#" * (2 << 20),
        "a\0 = 1",
    ],
    ids=["digits", "depth", "twice", "length", "nul"],
)
def test_hostile_toml_is_one_short_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value)) <= MAX_LINE + len(str(path))
    assert "\n" not in str(caught.value)


@given(text=st.text(), limit=st.integers(20, 300))
def test_a_cut_text_is_one_printable_line_within_its_limit(text: str, limit: int) -> None:
    found = cut(text * 50, limit)
    assert len(found) <= limit and (found.isprintable() or not found)
    short = " ".join(text.split())
    assert cut(text, limit) == short or len(short) > limit or not short.isprintable()


@given(value=st.recursive(st.integers() | st.text() | st.binary(), st.lists))
def test_any_value_is_quoted_within_its_limit(value: object) -> None:
    assert len(quoted(value)) <= MAX_QUOTED


def test_huge_and_deep_values_are_quoted_without_being_spelled_out() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(10**5000) == "a number of about 5000 digits"
    assert quoted(deep) == "a list"


def test_a_relative_corpus_becomes_absolute_and_a_name_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("texts", "wiki-vital", "train"):
        (tmp_path / name).mkdir()
    found = read_recipe("pocket", ["data.corpus=texts"])
    assert (
        found.data.corpus == str(tmp_path / "texts")
        and found.data.tokenizer == "train-unigram-case"
    )
    assert read_recipe("pocket") == load_recipe("pocket")
    assert read_recipe("pocket", ["data.corpus=absent"]).data.corpus == "absent"


def test_an_error_of_the_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["card", "n" * 5000])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.startswith("niblick: ") and line.count("\n") == 1
    assert len(line) <= MAX_LINE


def test_signals_have_their_handlers_back_after_a_command() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        main(["recipes"])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_export_to_an_unwritable_place_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from niblick.exchange.submission import export_submission

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "card.json").write_text('{"valid": true, "recipe": "r"}')
    (tmp_path / "run" / "metrics.jsonl").write_text("")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(NiblickError, match=r"cannot export to .*Permission denied"):
        export_submission(tmp_path / "run", tmp_path / "out", author="a")


@pytest.mark.parametrize("text", ["{}", '{"valid": 5}', "[]", "[" * 50_000, '{"figures": 3}', "\0"])
def test_a_malformed_card_is_one_short_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "card.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text("")
    for command in ("card", "export"):
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    command,
                    str(tmp_path),
                    *(["--out", f"{tmp_path}/o"] if command == "export" else []),
                ]
            )
        line = capsys.readouterr().err
        assert ended.value.code == 2 and line.count("\n") == 1 and line.startswith("niblick: ")
        assert len(line) <= MAX_LINE + 2 * len(str(tmp_path))
        assert not (tmp_path / "o").exists()
