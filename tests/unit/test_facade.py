"""`niblick.load`: one kind of model for every file, numpy in and out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import niblick
from niblick.artifact import save_checkpoint
from niblick.errors import ArtifactError, NiblickError
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.scoring.options import Adaptation
from niblick.text.tokenizer import load_tokenizer

SMALL = ["model.dim=32", "model.context=24", "model.attention.heads=2", "model.vocab_size=260"]
SMALL += ["model.attention.kv_heads=1", "model.attention.rope.dims=8", "data.tokenizer=bytes"]
CLOSE = 1e-4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facade")
    recipe = load_recipe("token-shift", SMALL)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in LanguageModel(recipe.model, seed=0).state_dict().items()
    }
    for name, tokenizer in (("whole", load_tokenizer("bytes")), ("bare", None)):
        save_checkpoint(
            folder / f"{name}.safetensors",
            tensors=tensors,
            recipe=recipe,
            tokenizer=tokenizer,
            meta={},
        )
    return folder / "whole.safetensors"


@pytest.fixture(scope="module")
def model(path):
    return niblick.load(path)


@pytest.mark.parametrize("length", [1, 20, 90])
def test_logits_and_nats_are_the_language_models(model, length):
    tokens = np.random.default_rng(0).integers(0, 260, (2, length))
    with torch.no_grad():
        right = model.torch().logits(torch.from_numpy(tokens))
    assert np.abs(model.logits(tokens) - right.numpy()).max() < CLOSE
    assert np.array_equal(model.logits(tokens[1]), model.logits(tokens)[1])
    nats = -torch.log_softmax(right, dim=2).numpy()
    wanted = np.take_along_axis(nats[:, :-1], tokens[:, 1:, None], axis=2)[:, :, 0]
    assert np.abs(model.nll(tokens) - wanted).max(initial=0) < CLOSE
    assert model.nll(tokens).shape == (2, length - 1)


def test_a_declared_context_is_kept_to(model):
    tokens = np.arange(4, 70)
    with torch.no_grad():
        right = model.torch()(torch.from_numpy(tokens)[None], model.torch().empty_state(context=40))
    assert np.abs(model.logits(tokens, context=40) - right[0][0].numpy()).max() < CLOSE


def test_texts_written_at_the_same_time_do_not_disturb_each_other(model):
    options = {"temperature": 0.9, "max_tokens": 20, "across_documents": True}
    alone = [model.generate(prompt, seed=1, **options) for prompt in ("ab", "xyz")]
    streams = [model.stream(prompt, seed=1, **options) for prompt in ("ab", "xyz")]
    together = ["", ""]
    for _ in range(20):
        for at, stream in enumerate(streams):
            together[at] += next(stream, "")
        model.logits([1, 2, 3])
    together = [text + "".join(s) for text, s in zip(together, streams, strict=True)]
    assert together == alone


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 23, "across_documents": True},
        {"max_tokens": 40, "temperature": 1.3, "top_k": 20},
        {"max_tokens": 40, "stop": ["a", "th"], "across_documents": True},
        {"max_tokens": 17, "temperature": 0.0},
        {"max_tokens": 1},
        {"max_tokens": 0},
    ],
)
def test_several_prompts_give_what_each_gives_alone(model, options, monkeypatch):
    monkeypatch.setattr("niblick.facade._AT_ONCE", 3)
    prompts = ["ab", "", "xyz" * 30, "ab", "é", "the"]
    alone = [model.generate(prompt, seed=7 + i, **options) for i, prompt in enumerate(prompts)]
    assert model.generate(prompts, seed=7, **options) == alone
    assert model.generate([], **options) == []


def test_score_takes_a_text_or_a_file_and_any_engine(model, tmp_path):
    text = "The river is wide.\n" * 20
    (tmp_path / "notes.md").write_text(text, "utf-8")
    own = model.score(text, mode="document")
    of_file = model.score(tmp_path / "notes.md", mode="document")
    assert (own.bpb, own.data_sha256) == (of_file.bpb, of_file.data_sha256)
    assert own.bytes == len(text) and of_file.details["data"] == "notes.md"
    for engine in ("numpy", "torch"):
        other = model.score(text, mode="document", engine=engine)
        assert other.settings["engine"] == engine and abs(other.bpb - own.bpb) < 1e-4
    with pytest.raises(NiblickError, match="no text"):
        model.score(tmp_path / "absent.txt")


def test_a_model_says_what_it_is_and_what_it_is_not(model, path):
    said = repr(model)
    assert all(part in said for part in ("token-shift", "(bytes)", "checkpoint", path.name))
    with pytest.raises(NiblickError, match=r"model\.torch\(\)"):
        model(torch.tensor([[1]]))
    with pytest.raises(NiblickError, match="whole numbers"):
        model.logits([0.5])
    with pytest.raises(NiblickError, match="whole numbers"):
        model.nll(5)
    with pytest.raises(NiblickError, match="token id 260"):
        model.logits([1, 260])
    with pytest.raises(ArtifactError, match="did you mean 'pocket'"):
        niblick.load("poket")
    with pytest.raises(ArtifactError, match="no model at 'nowhere'"):
        niblick.load("nowhere")


def test_a_model_without_a_tokenizer_takes_one_for_its_texts(path):
    bare = path.with_name("bare.safetensors")
    assert niblick.load(bare).logits([1]).shape == (1, 260)
    with pytest.raises(NiblickError, match="brings no tokenizer"):
        niblick.load(bare).generate("a")
    assert isinstance(niblick.load(bare, tokenizer="bytes").generate("a", max_tokens=3), str)


def test_what_only_torch_can_run_takes_torch(model, monkeypatch):
    from niblick.engine import choice, plain

    monkeypatch.setattr(plain, "_MIXERS", {})
    monkeypatch.setattr(choice, "unsupported", lambda plan: "it has no such mixer")
    engine = model.open_engine()
    assert engine.name == "torch"
    engine.read(0, [1, 70])
    assert np.abs(engine.logits(0) - model.logits([1, 70])[1]).max() < CLOSE


def test_threads_that_share_a_model_get_what_each_would_alone(model):
    texts = np.random.default_rng(1).integers(0, 260, (4, 200))
    alone = [model.nll(ids) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(model.nll, texts))
            assert all(map(np.array_equal, alone, together))


def test_whole_numbers_of_numpy_and_a_single_stop_are_taken(model):
    options = {"max_tokens": 20, "across_documents": True}
    plain = model.generate("ab", seed=7, **options)
    assert model.generate("ab", seed=np.int64(7), **options) == plain
    assert model.generate("ab", seed=7, stop=plain[3], **options) == plain[: plain.index(plain[3])]
    for wrong in ({"seed": None}, {"top_k": None}, {"top_k": 1.5}):
        with pytest.raises(NiblickError, match="must be a whole number"):
            model.generate("ab", **wrong)
    whole = model.generate("ab", seed=7, top_k=260, **options)
    assert model.generate("ab", seed=7, top_k=(1 << 32) + 1, **options) == whole


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"slots": 0}, {"context": 0}, {"kind": "nump"}, {"threads": 10**9}]
)
def test_what_no_engine_takes_is_refused_and_not_given_to_torch(model, wrong):
    with pytest.raises(NiblickError, match="accepted"):
        model.open_engine(**wrong)


def test_a_score_says_only_what_was_computed(model):
    learning = {"ttt": Adaptation(method="sgd"), "mode": "streaming"}
    for wrong in ({"precision": "bf16"}, {"mode": "leaky-ttt"}, learning):
        with pytest.raises(NiblickError, match=r"are for niblick\.evaluate"):
            model.score("hello there", **wrong)
    with pytest.raises(NiblickError, match="engine 'numpyy' is unknown"):
        model.score("hello there", engine="numpyy")


def test_a_model_whose_file_is_gone_still_says_what_it_is(path, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    found = niblick.load(copy)
    copy.unlink()
    assert "a file that is gone" in repr(found)
