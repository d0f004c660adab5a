"""`niblick generate`: streams complete UTF-8, repeats with its seed, and says what is wrong in one
line.
"""

from __future__ import annotations

import json

import pytest
import torch

from niblick.artifact import save_checkpoint
from niblick.cli import main
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.text.tokenizer import load_tokenizer

TINY = ["model.dim=32", "model.context=24", "model.attention.heads=2", "model.attention.kv_heads=1"]
TINY += ["model.attention.rope.dims=8", "model.vocab_size=260"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with one model that brings its tokenizer and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    recipe = load_recipe("token-shift", TINY)
    model = LanguageModel(recipe.model)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        k: v.detach() + 0.1 * torch.randn(v.shape, generator=generator)
        for k, v in model.named_parameters()
    }
    for name, tokenizer in (("whole", load_tokenizer("bytes")), ("bare", None)):
        path = folder / f"{name}.safetensors"
        save_checkpoint(path, tensors=tensors, recipe=recipe, tokenizer=tokenizer, meta={})
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No library is found and none is built: the numpy engine runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")


def generate(capfdbinary, *arguments: object) -> tuple[int, bytes, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["generate", *map(str, arguments)])
    out, err = capfdbinary.readouterr()
    return int(ended.value.code or 0), out, err.decode()


@pytest.mark.parametrize("prompt", ["", "naïve 日本 🐎", "long " * 40])
def test_text_is_complete_utf8_for_any_prompt(models, capfdbinary, prompt):
    code, out, _ = generate(
        capfdbinary, models / "whole.safetensors", "--prompt", prompt, "--max-tokens", 12
    )
    assert code == 0
    assert out.decode().endswith("\n")


def test_json_holds_the_text_that_is_streamed(models, capfdbinary):
    given = (models / "whole.safetensors", "--prompt", "ab", "--max-tokens", 20, "--seed", 7)
    _, plain, _ = generate(capfdbinary, *given)
    _, out, _ = generate(capfdbinary, *given, "--json")
    document = json.loads(out)
    assert document["text"] + "\n" == plain.decode()
    assert document["prompt_tokens"] == 3
    assert len(document["tokens"]) <= 20
    assert document["engine"] == "numpy"


def test_a_stop_string_ends_the_text_before_it(models, capfdbinary):
    given = (
        models / "whole.safetensors",
        "--max-tokens",
        40,
        "--temperature",
        0,
        "--across-documents",
        "--json",
    )
    whole = json.loads(generate(capfdbinary, *given)[1])["text"]
    stop = whole[5:7]
    cut = json.loads(generate(capfdbinary, *given, "--stop", stop)[1])
    assert cut["text"] == whole[: whole.find(stop)]
    assert cut["finish"] == "stop"


def test_a_model_without_tokenizer_asks_for_one_and_takes_it(models, capfdbinary):
    code, _, err = generate(capfdbinary, models / "bare.safetensors", "--max-tokens", 3)
    assert code == 2
    assert "--tokenizer FILE" in err
    code, _, _ = generate(
        capfdbinary, models / "bare.safetensors", "--tokenizer", "bytes", "--max-tokens", 3
    )
    assert code == 0


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--temperature", "-1", "temperature"),
        ("--top-p", "0", "top-p"),
        ("--max-tokens", "-2", "max-tokens"),
        ("--tokenizer", "fineweb-1024", "1024"),
        ("--stop", "", "stop string"),
    ],
)
def test_bad_options_are_refused_in_one_line(models, capfdbinary, option, value, said):
    code, _, err = generate(capfdbinary, models / "whole.safetensors", option, value)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
