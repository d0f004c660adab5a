"""Reads training logs: seed, parameters, seconds, scores by stage and sizes, from free text.

Nothing is assumed about a log but its habit of `name:value` or `name=value` pairs on a line; what
is not found is None. Reading is bounded; lines of training steps are not taken for results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_MOST_BYTES, _MOST_LOGS, _LONGEST_LINE = 12_000_000, 40, 4_000
_NUMBER = r"[:=]?\s*([0-9][0-9,_]{0,30}(?:\.[0-9]+)?)"  # none that a float could not hold
_BPB = re.compile(r"(?:val[_ ]?)?bpb\s*[:=]\s*([0-9]{1,9}\.[0-9]+)", re.IGNORECASE)
_LOSS = re.compile(r"(?:val[_ ]?loss|nll|nats)\s*[:=]\s*([0-9]{1,9}\.[0-9]+)", re.IGNORECASE)
_STEP = re.compile(
    r"^\W*(?:\[[^\]]*\]\s*)?(?:step\s*[:=]?\s*)?\d+\s*/\s*\d+|^\s*step\s*[:=]?\s*\d+", re.IGNORECASE
)
_PROGRESS = re.compile(
    r"chunk|\[\s*\d+\s*/\s*\d+\s*\]|\d+/\d+|running|progress|epoch\s*\d|batch\s*\d", re.IGNORECASE
)
_PARAMETERS = re.compile(r"(?:model[_ ])?param(?:eter)?s?(?:[_ ]count)?\b" + _NUMBER, re.IGNORECASE)
_SEED = re.compile(r"(?:^|[\s,(])seed\s*[:=]\s*(\d+)", re.IGNORECASE)
_NAMED_SEED = re.compile(r"seed[_-]?(\d+)|_s(\d+)\b", re.IGNORECASE)
_TRAIN_TIME = re.compile(r"train(?:ing)?_time\s*[:=]\s*([0-9.]{1,30})\s*(ms|s)\b", re.IGNORECASE)
_EVAL_TIME = re.compile(r"(?:eval_time|elapsed)\s*[:=]\s*([0-9.]{1,30})\s*(ms|s)\b", re.IGNORECASE)
_TOTAL = re.compile(
    r"total\s*(?:submission|artifact)?\s*size[^:=\n]{0,60}[:=]\s*([0-9][0-9,_]{0,30})\s*(?:b\b|bytes)",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"code(?:[_ ](?:size|bytes))?\s*[:=]\s*([0-9][0-9,_]{0,30})\s*(?:b\b|bytes)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation in a log: the words before its numbers, nats per token if told, bits per
    byte.
    """

    stage: str
    loss: float | None
    bpb: float
    line: int


@dataclass(frozen=True, kw_only=True)
class Log:
    """What one log says. Seconds are the largest said; `total_bytes` the sizes it calls a total, in
    order.
    """

    name: str
    seed: int | None
    parameters: int | None
    train_seconds: float | None
    eval_seconds: dict[str, float] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    total_bytes: tuple[int, ...] = ()
    code_bytes: int | None = None

    @property
    def final(self) -> Result | None:
        """The last evaluation that is not a training step's."""
        return self.results[-1] if self.results else None


def find_logs(root: Path) -> list[Path]:
    """Log files of a record folder, at most 40, by name."""
    wanted = []
    for pattern in ("*", "*/*"):
        for path in sorted(root.glob(pattern)):
            log_like = path.suffix == ".log" or (path.suffix == ".txt" and _looks_like_log(path))
            if log_like and path.is_file() and not path.is_symlink():
                wanted.append(path)
    return wanted[:_MOST_LOGS]


def _looks_like_log(path: Path) -> bool:
    return (
        bool(re.search(r"log|train|seed|run|eval", path.stem, re.IGNORECASE))
        and "require" not in path.stem
    )


def read_log(path: Path, root: Path) -> Log:
    """What the log at `path` says; its first 12 MB count."""
    with path.open("rb") as file:
        text = file.read(_MOST_BYTES).decode("utf-8", "replace")
    return parse_log(text.splitlines(), path.relative_to(root).as_posix())


def parse_log(lines: Iterable[str], name: str) -> Log:
    """What the lines of a log say."""
    seed: int | None = None
    parameters: int | None = None
    code: int | None = None
    train: float | None = None
    evals: dict[str, float] = {}
    results: list[Result] = []
    totals: list[int] = []
    for number, full in enumerate(lines, 1):
        line = full[:_LONGEST_LINE]
        found = _BPB.search(line)
        is_step = bool(_STEP.search(line))
        if found and not is_step and not _PROGRESS.search(line[: found.start()]):
            loss = _LOSS.search(line)
            stage = _stage(line[: min(found.start(), loss.start() if loss else found.start())])
            results.append(
                Result(
                    stage=stage,
                    loss=float(loss[1]) if loss else None,
                    bpb=float(found[1]),
                    line=number,
                )
            )
            evals.update(_seconds(_EVAL_TIME, line, stage))
        train = max(
            (value for value in (train, *_seconds(_TRAIN_TIME, line, "").values()) if value),
            default=None,
        )
        totals += [_whole(match[1]) for match in _TOTAL.finditer(line)]
        parameters = parameters or _first(_PARAMETERS, line, least=10_000)
        code = code or _first(_CODE, line, least=1)
        if seed is None and (match := _SEED.search(line)):
            seed = int(match[1])
    if seed is None and (named := _NAMED_SEED.search(Path(name).stem)):
        seed = int(named[1] or named[2])
    return Log(
        name=name,
        seed=seed,
        parameters=parameters,
        train_seconds=train,
        eval_seconds=evals,
        results=tuple(results),
        total_bytes=tuple(totals),
        code_bytes=code,
    )


def _stage(before: str) -> str:
    return re.sub(r"[\s:=|]+", " ", before).strip()[-60:]


def _whole(text: str) -> int:
    return int(float(text.replace(",", "").replace("_", "")))


def _first(pattern: re.Pattern[str], line: str, *, least: int) -> int | None:
    match = pattern.search(line)
    if match is None or "." in match[1]:
        return None
    value = _whole(match[1])
    return value if value >= least else None


def _seconds(pattern: re.Pattern[str], line: str, stage: str) -> dict[str, float]:
    match = pattern.search(line)
    if match is None:
        return {}
    try:
        value = float(match[1])
    except ValueError:
        return {}
    return {stage: value / 1000 if match[2].lower() == "ms" else value}
