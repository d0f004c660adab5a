"""lm-evaluation-harness on the engine and on the Hugging Face export, side by side; `python
benchmarks/harness.py [MODEL] [--limit N]`.

Three tasks of the embedded corpus's validation text, without a network: the likelihood of whole
documents, which of four texts goes on after a beginning, and greedy text up to a full stop. Both
models run through `lm_eval.simple_evaluate` on the CPU, with one thread for each. Prints a
Markdown table: each metric of both, the largest difference of any one likelihood, the share of
equal answers, and the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.tasks import TaskManager

import niblick.exchange.harness  # noqa: F401  # registers the model
from niblick.data.corpus import corpora
from niblick.exchange.formats import export_model
from niblick.facade import find_model

ROLLED = {"add_bos_token": False}  # else it puts a second BOS in front and scores it
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
TASKS = {
    "whole": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: "{{ends}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "greedy": """
output_type: generate_until
doc_to_text: "{{start}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: [". "], max_gen_toks: 48, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def write_tasks(folder: Path, count: int) -> None:
    """The tasks and their rows."""
    texts = [text for text in corpora["wiki-vital"]().splits["validation"] if len(text) > 600]
    rows = []
    for index, text in enumerate(texts[:count]):
        others = [texts[(index + step) % count][100:200] for step in range(4)]
        right = index % 4
        others[0], others[right] = others[right], others[0]
        rows.append({"text": text[:1500], "start": text[:100], "ends": others, "right": right})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, body in TASKS.items():
        head = COMMON.format(name=name, file=folder / "rows.jsonl")
        (folder / f"{name}.yaml").write_text(head + body)


def evaluate(model: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The harness's results and samples of every task, and the seconds of each."""
    found: dict[str, Any] = {}
    for task in TASKS:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        began = time.perf_counter()
        result = lm_eval.simple_evaluate(
            model,
            model_args=options | (ROLLED if task == "whole" and model == "hf" else {}),
            tasks=[task],
            task_manager=manager,
            device="cpu",
        )
        figures = result["results"][task]
        found[task] = {
            "figures": {k.partition(",")[0]: v for k, v in figures.items() if ",none" in k},
            "answers": [sample["resps"] for sample in result["samples"][task]],
            "seconds": time.perf_counter() - began,
        }
    return found


def likelihoods(answers: Any) -> list[float]:
    """Every log-likelihood in nested responses."""
    if isinstance(answers, list | tuple):
        return [value for each in answers for value in likelihoods(each)]
    return [float(answers)] if isinstance(answers, float) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="pocket")
    parser.add_argument("--limit", type=int, default=40, help="documents")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    path = find_model(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder, options.limit)
        export_model(path, "hf", folder / "hf")
        ours = evaluate("niblick", {"path": str(path), "threads": 1}, folder)
        settings = {"pretrained": str(folder / "hf"), "trust_remote_code": True}
        theirs = evaluate("hf", {**settings, "batch_size": 4}, folder)
    print(f"{options.limit} documents, lm_eval {lm_eval.__version__}", file=sys.stderr)
    print("| task | metric | niblick | hf | answers | seconds |\n|---|---|---|---|---|---|")
    for task, mine in ours.items():
        other = theirs[task]
        pairs = zip(likelihoods(mine["answers"]), likelihoods(other["answers"]), strict=True)
        off = max((abs(a - b) for a, b in pairs), default=0.0)
        same = sum(a == b for a, b in zip(mine["answers"], other["answers"], strict=True))
        said = f"{same} of {options.limit} equal" if task == "greedy" else f"within {off:.1e} nats"
        for metric in (k for k in mine["figures"] if "stderr" not in k):
            values = " | ".join(f"{each['figures'][metric]:.6f}" for each in (mine, other))
            seconds = f"{mine['seconds']:.1f}, {other['seconds']:.1f}"
            print(f"| {task} | {metric} | {values} | {said} | {seconds} |")


if __name__ == "__main__":
    main()
