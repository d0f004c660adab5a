"""A Hugging Face folder is the model: logits, greedy text, training, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from leaving import FAMILIES, saved
from niblick.cli import main
from niblick.data.corpus import corpora
from niblick.exchange.formats import export_model
from niblick.exchange.hf import import_hf
from niblick.text.learning import train_tokenizer

pytestmark = pytest.mark.integration
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CLOSE = 1e-4


@pytest.fixture(params=FAMILIES)
def both(request, tmp_path):
    """Our model and the folder's."""
    tokenizer = None
    if request.param == "sidecar":
        texts = list(corpora["wiki-vital"]().splits["validation"])[:20]
        tokenizer = train_tokenizer(texts, vocab_size=400)
    model = saved(tmp_path, request.param, tokenizer=tokenizer)
    export_model(model.path, "hf", tmp_path / "hf")
    return model, opened(tmp_path / "hf")


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("length", [1, 20, 70])
def test_the_logits_are_ours(both, length):
    model, other = both
    tokens = np.random.default_rng(0).integers(0, 260, (2, length))
    tokens[:, 0] = model.tokenizer.bos_id
    with torch.no_grad():
        found = other(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(found - model.logits(tokens)).max() < CLOSE


def test_generate_writes_our_greedy_text_alone_in_a_batch_and_without_a_cache(both, tmp_path):
    model, other = both
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompts = ["The river", "a", "Once upon a time there was a long prompt of a few words"]
    options = {"max_new_tokens": 30, "do_sample": False}
    ours = [p + model.generate(p, temperature=0, max_tokens=30) for p in prompts]

    def texts(**inputs):
        rows = other.generate(**inputs, **options).tolist()
        pads = inputs["attention_mask"].argmax(1).tolist()
        return [model.tokenizer.decode(row[pad:]) for row, pad in zip(rows, pads, strict=True)]

    for prompt, text in zip(prompts, ours, strict=True):
        assert texts(**tokenizer(prompt, return_tensors="pt")) == [text]
    assert texts(**tokenizer(prompts, return_tensors="pt", padding=True)) == ours
    short = tokenizer(prompts[1], return_tensors="pt")
    with_beams = other.generate(**short, max_new_tokens=10, num_beams=3, do_sample=False)
    assert with_beams.shape[1] <= 10 + short["input_ids"].shape[1]
    options |= {"use_cache": False, "max_new_tokens": 10}
    assert ours[1].startswith(texts(**short)[0].rstrip("\ufffd"))


def test_it_can_be_fine_tuned_saved_and_read_back(both, tmp_path, monkeypatch):
    model, other = both
    pytest.importorskip("accelerate")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    rows = np.random.default_rng(0).integers(4, 260, (8, 20)).tolist()
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "work"), max_steps=3, per_device_train_batch_size=4,
        learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = transformers.Trainer(model=other, args=settings, train_dataset=data)
    assert np.isfinite(trainer.train().training_loss)
    still = [n for n, t in other.state_dict().items() if torch.equal(t, before[n])]
    assert not still
    trainer.save_model(str(tmp_path / "tuned"))
    again = opened(tmp_path / "tuned").eval()
    ids = torch.tensor(rows[:1])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, other.eval()(ids).logits)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["import", "tuned", "--out", "back.safetensors"])
    assert not stopped.value.code
    import niblick

    back = niblick.load(tmp_path / "back.safetensors")
    assert np.abs(back.logits(rows[0]) - again(ids).logits[0].detach().numpy()).max() < CLOSE
    assert back.tokenizer.sha256 == model.tokenizer.sha256


def test_a_folder_that_is_read_back_unchanged_is_the_same_model(both, tmp_path):
    model, _ = both
    found = import_hf(tmp_path / "hf")
    assert found.recipe == model.recipe
    for name, tensor in found.tensors.items():
        assert np.array_equal(tensor, model.tensors[name])
