"""Calls a script's own evaluation functions on a short synthetic stream, with its model, and
watches them.

Arguments are matched by their names; a function that wants one that is not known is left alone. The
stream is drawn independently, token by token, so that nothing about a token can be learnt from
those before it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import time
import types
from types import ModuleType
from typing import Any

import torch

from niblick.audit.inside.recording import Recorder, Trace

WINDOW, CHUNK, STRIDE, LETTERS = 32, 64, 8, 24
_NAME = re.compile(r"eval|ttt|slot|score|adapt", re.IGNORECASE)
_VALIDATION = {
    "val_tokens",
    "val_data",
    "tokens",
    "all_tokens",
    "validation_tokens",
    "val_tokens_all",
}
_SIZES: dict[str, int] = {
    "train_seq_len": WINDOW,
    "eval_seq_len": WINDOW,
    "seq_len": WINDOW,
    "block_size": WINDOW,
    "eval_stride": STRIDE,
    "stride": STRIDE,
    "val_batch_size": 16 * WINDOW,
    "val_batch_tokens": 16 * WINDOW,
    "eval_batch_seqs": 4,
    "batch_seqs": 4,
    "sliding_batch_seqs": 4,
    "ttt_chunk_tokens": CHUNK,
    "ttt_chunk_size": CHUNK // 4,
    "chunk_tokens": CHUNK,
    "ttt_seq_len": WINDOW,
    "ttt_eval_seq_len": WINDOW,
    "ttt_batch_seqs": 2,
    "ttt_batch_size": 2,
    "ttt_epochs": 1,
    "slot_steps": 2,
    "slot_batch_seqs": 2,
    "sliding_window_stride": STRIDE,
    "ngram_chunk_tokens": CHUNK,
    "sw_eval_stride": STRIDE,
    "sw_eval_batch": 4,
    "ttt_train_seq_len": WINDOW,
}
_LOGGERS = {"log", "log0", "print0", "master_print", "log_fn", "rank0_print", "logprint"}
_MOST_FUNCTIONS, _MOST_SECONDS = 4, 25.0


def stream(vocab: int, bos: int, length: int) -> list[int]:
    """Independent letters with a BOS in front of every document of 75 tokens; no place in it
    repeats.
    """
    generator = torch.Generator().manual_seed(11)
    letters = torch.randint(2, min(vocab, LETTERS + 2), (length,), generator=generator).tolist()
    return [bos if place % 75 == 0 else letter for place, letter in enumerate(letters)]


def drive(
    module: ModuleType, model: Any, settings: Any, vocab: int, calls: dict[str, str]
) -> list[dict[str, Any]]:
    """One entry a function that could be called: what was scored and learnt, or the error it ended
    with.
    """
    tokens = stream(vocab, 1, 8 * WINDOW + 1)
    for name in _LOGGERS & set(
        vars(module)
    ):  # they want what main sets up, and their text is not wanted
        setattr(module, name, lambda *_, **__: None)
    seen: list[dict[str, Any]] = []
    begun = time.perf_counter()
    for name in candidates(module, calls):
        function = getattr(module, name)
        arguments = _arguments(function, model, _small(settings), vocab, tokens)
        if arguments is None or name not in calls:
            continue
        if len(seen) >= _MOST_FUNCTIONS or time.perf_counter() - begun > _MOST_SECONDS:
            break
        saved = {key: value.clone() for key, value in model.state_dict().items()}
        started = time.perf_counter()
        code = function.__code__
        end = max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
        head = {
            "function": name,
            "line": code.co_firstlineno,
            "end": end,
            "reached": calls.get(name, "no"),
        }
        seen.append({**head, **_watched(function, arguments, tokens)})
        seen[-1]["seconds"] = round(time.perf_counter() - started, 2)
        with contextlib.suppress(Exception):
            model.load_state_dict(saved)
            model.requires_grad_(True).eval()
    return seen


def candidates(module: ModuleType, calls: dict[str, str]) -> list[str]:
    """The module's own functions that sound like evaluation and take validation tokens, those a run
    comes to first.
    """
    own = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and _NAME.search(name)
        and _VALIDATION & set(inspect.signature(value).parameters)
    ]
    order = {"yes": 0, "maybe": 1}
    learning = re.compile("ttt|slot|adapt", re.IGNORECASE)
    return sorted(
        own, key=lambda name: (order.get(calls.get(name, ""), 2), not learning.search(name), name)
    )


def _small(settings: Any) -> Any:
    """The settings with sequence lengths and chunks of a size to run on a CPU."""
    small = types.SimpleNamespace()
    for name in dir(settings) if settings is not None else ():
        if not name.startswith("__"):
            with contextlib.suppress(Exception):
                setattr(small, name, getattr(settings, name))
    for name, size in _SIZES.items():
        held = getattr(small, name, None)
        if held is None or isinstance(held, int):
            setattr(small, name, size if held is None else min(size, held) or size)
    return small


def _arguments(
    function: Any, model: Any, settings: Any, vocab: int, tokens: list[int]
) -> dict[str, Any] | None:
    whole = torch.tensor(tokens, dtype=torch.int64)
    tables = {
        "base_bytes_lut": torch.full((vocab,), 4, dtype=torch.int16),
        "has_leading_space_lut": torch.zeros(vocab, dtype=torch.bool),
        "is_boundary_token_lut": torch.arange(vocab) == 1,
    }
    data = types.SimpleNamespace(val_tokens=whole, tokens=whole, **tables)
    logits = getattr(model, "forward_logits", model)
    known: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "local_rank": 0,
        "grad_accum_steps": 1,
        "device": torch.device("cpu"),
        "val_data": data,
        "distributed": False,
        "master_process": True,
        "is_master": True,
        "seq_len_override": WINDOW,
        "has_space_lut": tables["has_leading_space_lut"],
        "is_boundary_lut": tables["is_boundary_token_lut"],
        "luts": tuple(tables.values()),
        "temperature": 1.0,
        **tables,
    }
    known |= dict.fromkeys(("args", "h", "hp", "cfg", "config", "hparams", "settings"), settings)
    known |= dict.fromkeys(
        ("model", "base_model", "eval_model", "raw_model", "gpt", "net", "ttt_model"), model
    )
    known |= dict.fromkeys(_VALIDATION - {"val_data"}, whole)
    known |= dict.fromkeys(_LOGGERS | {"print_fn"}, lambda *_, **__: None)
    known |= dict.fromkeys(
        ("forward_logits_fn", "logits_fn", "compiled_logits", "forward_logits"), logits
    )
    chosen = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in known:
            chosen[name] = known[name]
        elif name in _SIZES:
            chosen[name] = _SIZES[name]
        elif parameter.default is parameter.empty:
            return None
    return chosen


def _watched(function: Any, arguments: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    torch.manual_seed(5)
    recorder = Recorder(tokens)
    error = returned = None
    try:
        with recorder:
            returned = function(**arguments)
    except BaseException as problem:  # noqa: BLE001 - whatever the script raises ends this function's test only
        error = f"{type(problem).__name__}: {problem}"[:300]
    return {"error": error, **judge(recorder.trace, _floats(returned), len(tokens) - 1)}


def _floats(returned: Any) -> list[float]:
    values = returned if isinstance(returned, tuple | list) else [returned]
    out = []
    for value in values:
        if isinstance(value, float) or (hasattr(value, "numel") and value.numel() == 1):
            with contextlib.suppress(Exception):
                out.append(float(value))
    return out


def judge(trace: Trace, returned: list[float], scoreable: int) -> dict[str, Any]:
    """The trace in numbers: how many places were counted, learnt from, and counted only after that
    (`late`).

    `own` is the mean loss of the counted places (of their first scoring, where none was counted),
    to compare with `returned`, what the function said.
    """
    late = [p for p, (moment, _) in trace.counted.items() if trace.learnt.get(p, moment) < moment]
    losses = [loss for _, loss in trace.counted.values()] or list(trace.first.values())
    return {
        "events": trace.events,
        "steps": trace.steps,
        "scoreable": scoreable,
        "scored": len(trace.first),
        "counted": len(trace.counted),
        "learnt": len(trace.learnt),
        "late": len(late),
        "late_by_delta": len(trace.by_delta & set(late)),
        "returned": returned[:3],
        "own": round(math.fsum(losses) / len(losses), 6) if losses else None,
    }
