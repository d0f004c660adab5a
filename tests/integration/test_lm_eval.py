"""lm-evaluation-harness: the engine and the Hugging Face folder give the same answers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from leaving import saved
from niblick.data.corpus import corpora
from niblick.exchange.formats import export_model
from niblick.text.learning import train_tokenizer

pytestmark = pytest.mark.integration
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("transformers")
TEXTS = ["The river runs down to the sea. " * 4, "A short one.", "Zwölf Boxkämpfer jagen Viktor"]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no", "it may be so"]
doc_to_target: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(params=["bytes", "bpe"])
def pair(request, tmp_path):
    """The native model and the harness's own for the folder."""
    from lm_eval.models.huggingface import HFLM

    from niblick.exchange.harness import NiblickLM

    texts = list(corpora["wiki-vital"]().splits["validation"])[:20]
    tokenizer = train_tokenizer(texts, vocab_size=400) if request.param == "bpe" else None
    model = saved(tmp_path, "token-shift", "model.context=48", tokenizer=tokenizer)
    export_model(model.path, "hf", tmp_path / "hf")
    options = {"pretrained": str(tmp_path / "hf"), "trust_remote_code": True, "device": "cpu"}
    return NiblickLM(path=str(model.path)), lambda **more: HFLM(**options, batch_size=2, **more)


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def test_likelihoods_are_equal(pair):
    ours, theirs = pair
    asked = [(t, c) for t in ["", "Is it?", TEXTS[0]] for c in (" yes", " no", " it may be so")]
    found = ours.loglikelihood(requests("loglikelihood", asked))
    right = theirs().loglikelihood(requests("loglikelihood", asked))
    assert [f[1] for f in found] == [r[1] for r in right]
    assert [f[0] for f in found] == pytest.approx([r[0] for r in right], abs=1e-3)


def test_rolling_likelihoods_are_equal(pair):
    ours, theirs = pair
    asked = [(text,) for text in TEXTS]
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", asked))
    other = theirs(add_bos_token=False)
    right = other.loglikelihood_rolling(requests("loglikelihood_rolling", asked))
    assert found == pytest.approx(right, abs=2e-3)


def test_generated_texts_are_equal(pair):
    ours, theirs = pair
    asked = [(text, {"until": ["\n", "q"], "max_gen_toks": 20}) for text in TEXTS]
    found = ours.generate_until(requests("generate_until", asked))
    assert found == theirs().generate_until(requests("generate_until", asked))


def test_the_command_runs_a_task_with_the_same_result_as_the_folder(tmp_path):
    model = saved(tmp_path, "token-shift", "model.context=96")
    export_model(model.path, "hf", tmp_path / "hf")
    rows = [{"question": f"Is {n} even?"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tiny_choice.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    found = []
    for name, arguments in (
        ("niblick", f"path={model.path}"),
        ("hf", f"pretrained={tmp_path / 'hf'},trust_remote_code=True"),
    ):
        command = [sys.executable, "-c", "from niblick.cli.harness import main; main()"]
        command += ["--model", name, "--model_args", arguments, "--tasks", "tiny_choice"]
        command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / name)]
        command += ["--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        (results,) = (tmp_path / name).rglob("results*.json")
        found.append(json.loads(results.read_text())["results"]["tiny_choice"])
    keys = ("acc,none", "acc_norm,none")
    assert [found[0][key] for key in keys] == [found[1][key] for key in keys]
