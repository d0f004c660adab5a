"""What this machine is, which path each command would take here, what is slow and what cures it.

It works without torch; what only torch can tell is then left out. Nothing is changed but the cache
of compiled libraries, which every command would fill.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from niblick.runtime import (
    World,
    available_memory,
    available_processors,
    cache_folder,
    choose_device,
    choose_precision,
    has_gpu,
    has_lab,
    processor_name,
    thread_count,
)
from niblick.toolchain import ENGINE, KERNELS, LIBRARIES, PROCESSOR, processor_features

# Of /proc/cpuinfo: what the libraries, oneDNN and torch choose their code by.
_TOLD = "avx2 fma avx512f avx512_vnni avx512_bf16 amx_tile amx_bf16 asimd asimddp bf16 i8mm sve"
_LITTLE = 2_000_000_000  # bytes


@dataclass(frozen=True)
class Advice:
    """What is slow or missing here, and the cure."""

    what: str
    cure: str


def examine(seconds: float = 3.0) -> dict[str, Any]:
    """The page as plain values; half of `seconds` goes to each of training and generation."""
    PROCESSOR.build()
    torch = _torch() if has_lab() else None
    found: dict[str, Any] = {
        "processor": _processor(),
        "memory": {"available_bytes": available_memory()},
        "libraries": {library.name: library.state() for library in LIBRARIES},
        "torch": torch,
        "nvidia_driver": has_gpu(),
        "cache": str(cache_folder()),
    }
    found["paths"] = _paths(torch, found["processor"]["features"])
    if seconds:
        found["pocket"] = _speeds(seconds / 2, torch)
    found["advice"] = [asdict(each) for each in _advice(found)]
    return found


def _processor() -> dict[str, Any]:
    return {
        "name": processor_name(),
        "features": _flags(),
        "builds": sorted(processor_features()),
        "processors": os.cpu_count() or 1,
        "available": available_processors(),
        "threads": thread_count(),
        "busy": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    }


def _torch() -> dict[str, Any]:
    """The build of torch, its threads, and the CUDA devices that it finds."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        told = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": told.name,
                "memory_bytes": told.total_memory,
                "capability": f"sm_{told.major}{told.minor}",
                "bf16": told.major >= 8,
            }
        )
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "bf16": choose_precision("auto", "cpu") == "bf16",
        "gpus": gpus,
    }


def _flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [each for each in _TOLD.split() if each in flags.split()]


def _paths(torch: dict[str, Any] | None, features: list[str]) -> dict[str, str]:
    """By command: what would compute it."""
    engine = "native engine" if ENGINE.load() else "numpy engine"
    if torch is None:
        lab = "not without torch: pip install 'niblick[lab]'"
        return {"train": lab, "pack": lab, "eval": engine, "generate": engine, "serve": engine}
    device = choose_device(World())
    precision = choose_precision("auto", device)
    if device == "cpu":
        form = "fused kernels" if KERNELS.compiler() or KERNELS.load() else "plain torch"
        if form != "plain torch" and precision == "bf16" and "amx_bf16" in features:
            form += " with matrix tiles (AMX)"
        where = f"{torch['threads']} threads"
    else:
        attention = "flash-attn" if find_spec("flash_attn") else "flex_attention"
        form, where = f"torch.compile, {attention}", device
    return {
        "train": f"{form} in {precision} on {where}",
        "pack": f"torch in fp32 on {device}, native codecs",
        "eval": engine if device == "cpu" else f"torch in {precision} on {device}",
        "generate": f"{engine} on {thread_count()} threads",
        "serve": f"{engine} on {thread_count()} threads",
    }


def _speeds(seconds: float, torch: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"generate": _generation(seconds)}
    if torch is not None:
        from niblick.recipe import load_recipe
        from niblick.report.probe import training_speed

        device = choose_device(World())
        plain = [] if device == "cpu" else ["training.compile=off"]  # which takes minutes
        found["train"] = training_speed(load_recipe("pocket", plain), device, seconds)
    return found


def _generation(seconds: float) -> dict[str, Any]:
    """Tokens per second of one text by the shipped model."""
    from niblick.facade import load

    model = load("pocket")
    engine = model.open_engine()
    engine.read(0, [model.recipe.model.bos_id])
    began, count = perf_counter(), 0
    while perf_counter() - began < seconds:
        engine.step([count % model.recipe.model.vocab_size])
        count += 1
    rate = round(count / (perf_counter() - began))
    return {"tokens_per_second": rate, "engine": engine.name}


def _advice(found: dict[str, Any]) -> Iterator[Advice]:
    processor, torch = found["processor"], found["torch"]
    if processor["available"] < processor["processors"]:
        yield Advice(
            f"a quota or the affinity leaves {processor['available']} of"
            f" {processor['processors']} processors",
            "give the container or the job more processors",
        )
    if processor["threads"] < processor["available"] and processor["threads"] == 1:
        yield Advice(
            "one thread is used of several processors", "unset OMP_NUM_THREADS, or raise it"
        )
    missing = [name for name, state in found["libraries"].items() if state == "missing"]
    if missing:
        yield Advice(
            f"no compiled {', '.join(missing)}: plain forms stand in, many times slower",
            "install a wheel for this platform, a C compiler, or: pip install ziglang",
        )
    if processor["busy"] > 0.5:
        yield Advice(
            f"other work keeps about {processor['busy']:.1f} processors busy: speeds measured now"
            " are too low",
            "measure again when it is done",
        )
    memory = found["memory"]["available_bytes"]
    if memory is not None and memory < _LITTLE:
        yield Advice(
            f"{memory / 1e9:.1f} GB of memory are left; training pocket takes about 0.6",
            "end other programs, or raise the container's limit",
        )
    if not os.access(_existing(Path(found["cache"])), os.W_OK):
        yield Advice(
            f"{found['cache']} cannot be written: libraries and corpora are made anew each time",
            "set XDG_CACHE_HOME to a folder that can be written",
        )
    yield from _advice_on_torch(found, torch)


def _advice_on_torch(found: dict[str, Any], torch: dict[str, Any] | None) -> Iterator[Advice]:
    if torch is None:
        yield Advice(
            "torch is not installed: models run, but none can be trained or packed",
            "pip install 'niblick[lab]'",
        )
        return
    if found["nvidia_driver"] and not torch["gpus"]:
        build = "has no CUDA" if torch["cuda"] is None else "finds no usable device"
        yield Advice(
            f"there is an NVIDIA driver, but this build of torch ({torch['version']}) {build}",
            "install a build of torch for the driver's CUDA version",
        )
    for gpu in torch["gpus"]:
        if not gpu["bf16"]:
            yield Advice(
                f"{gpu['name']} does not multiply bfloat16: it trains in fp32",
                "a card of compute capability 8.0 or more is several times faster",
            )
    if not torch["gpus"] and not torch["bf16"]:
        yield Advice(
            "this processor does not multiply bfloat16: training runs in fp32, at about half speed",
            "a processor with AVX512-BF16 or AMX, or a GPU",
        )


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)
