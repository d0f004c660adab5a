"""The frontier of packing: one checkpoint through every codec, one table.

    python benchmarks/pack.py CHECKPOINT [--data DIR] [--tokens N] [--bits 2.0 ...] [--sigma 12.85
        ...] [--nncodec PYTHON] [--json]

Rows: the three published exports with their floors, int6 codes under Brotli-11, GPTQ with a clip at
k standard deviations under Brotli-11 (the public frontier, given this package's Hessians and every
matrix by role), NNCodec at the same bytes where an interpreter that has it is named, and this
package's codecs, `rd` also at the bytes that the aims of the project name. Columns: bytes of
everything that is needed to rebuild the weights, bits per parameter, bits per byte on the
validation split (or its first N tokens) in one streaming pass, as cards have it, the loss against
float weights, encode and decode in processor seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import brotli
import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from niblick.artifact import exported_recipe, read_checkpoint
from niblick.artifact.checkpoint import find_weights
from niblick.codecs import CODECS, Job
from niblick.codecs.allocation import fill_budget
from niblick.codecs.base import Sensitivity, exported_tensors
from niblick.codecs.feedback import factor
from niblick.codecs.matrices import as_matrix, from_matrix
from niblick.codecs.nearest import quantize, quantized
from niblick.codecs.payload import read_payload, write_payload
from niblick.codecs.quantized import Tensors
from niblick.codecs.rounder import Candidate, Rounder
from niblick.codecs.symbols import Tables
from niblick.codecs.tensor_stream import new_tables
from niblick.compression.calibration import Calibration, make_calibration
from niblick.compression.sensitivity import measure
from niblick.data.dataset import Dataset, open_dataset
from niblick.data.prepare import resolve_dataset
from niblick.evaluation import EvaluationOptions
from niblick.evaluation.evaluate import score_tokens
from niblick.model import build_model
from niblick.plan import Parameter, Plan, Role, make_plan
from niblick.recipe import Recipe
from niblick.runtime import World, cache_folder
from niblick.units import LN2

LARGE = 65_536
HEAD = """\
| codec | bytes | bits per parameter | bpb | tax | encode s | decode s |
|---|---|---|---|---|---|---|"""
Weights = dict[str, Tensor]
Decoded = Weights | Tensors


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    size: int
    bits: float
    bpb: float
    tax: float
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Scene:
    """What every codec is given."""

    recipe: Recipe
    plan: Plan
    weights: Weights
    sensitivities: dict[str, Sensitivity]
    calibration: Calibration | None
    measuring: float = 0.0  # processor seconds that the sensitivities took


# (bytes, weights as decoded, a function that decodes again for the clock)
Result = tuple[int, Decoded, Callable[[], object]]


def row_codes(weight: Tensor, limit: int, low: int, *, percentile: bool) -> tuple[Tensor, Tensor]:
    """The published rounding: percentile or maximum of the row, scale with its floor of 1/limit in
    float16.
    """
    rows = weight.reshape(weight.shape[0], -1)
    clip = torch.quantile(rows.abs(), 0.9999984, dim=1) if percentile else rows.abs().amax(1)
    scale = (clip / limit).clamp_min(1 / limit)
    clipped = rows.clamp(-clip[:, None], clip[:, None]) if percentile else rows
    codes = (clipped / scale[:, None]).round().clamp(low, limit).to(torch.int8)
    return codes, scale.half()


def published(scene: Scene, kind: str) -> Result:
    """The exports of systems.md: "int8" (section 2), "int6" (section 1) or "mixed" (section 3)."""
    found: dict[str, Tensor] = {}
    store: dict[str, Tensor] = {}
    for p in scene.plan.exported:
        weight = scene.weights[p.name]
        control = p.role in (Role.VECTOR, Role.SCALAR)
        passes = (
            p.size <= LARGE
            or p.role is Role.CONVOLUTION
            or (kind == "int8" and p.name == "tok_emb.weight")
        )
        if passes:
            kept = weight if control and kind == "int8" else weight.half()
            store[p.name], found[p.name] = kept, kept.float()
            continue
        wide = kind == "int8" or (kind == "mixed" and p.role is Role.EMBEDDING)
        codes, scale = row_codes(
            weight, 127 if wide else 31, -127 if wide else -32, percentile=kind != "mixed" or wide
        )
        store[p.name + ".q"], store[p.name + ".scale"] = codes, scale
        found[p.name] = (codes.float() * scale.float()[:, None]).reshape(p.shape)
    buffer = io.BytesIO()
    torch.save(store, buffer)
    raw = buffer.getvalue()
    if kind == "mixed":
        packed = zstandard.compress(raw, 22)
        return len(packed), found, lambda: zstandard.decompress(packed)
    packed = zlib.compress(raw, 9)
    return len(packed), found, lambda: zlib.decompress(packed)


def brotli_codes(
    scene: Scene, codes: dict[str, Tensor], scales: dict[str, Tensor], found: Weights
) -> Result:
    """Brotli-11 over all codes, and over scales and the rest in float16."""
    rest = [scene.weights[p.name].half() for p in scene.plan.exported if p.name not in codes]
    found = found | {
        p.name: scene.weights[p.name].half().float()
        for p in scene.plan.exported
        if p.name not in codes
    }
    one = brotli.compress(
        b"".join(t.numpy().tobytes() for t in codes.values()), quality=11, lgwin=24
    )
    two = brotli.compress(
        b"".join(t.numpy().tobytes() for t in [*scales.values(), *rest]), quality=11
    )
    return len(one) + len(two), found, lambda: (brotli.decompress(one), brotli.decompress(two))


def int6_brotli(scene: Scene) -> Result:
    """Row maximum without a floor, by role, under Brotli."""
    codes, scales, found = {}, {}, {}
    for name, spec in CODECS["int-zlib"].rounding(scene.recipe, scene.plan).items():
        made = quantize(scene.weights[name].numpy(), spec)
        codes[name], scales[name] = map(torch.from_numpy, made)
        found[name] = torch.from_numpy(quantized(scene.weights[name].shape, *made).dequantize())
    return brotli_codes(scene, codes, scales, found)


def gptq(
    p: Parameter, weight: Tensor, sensitivity: Sensitivity, k: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, float16 row scales and weights: columns in turn with error feedback, clip at k sigma,
    int8 range.
    """
    limit = 127 if p.role is Role.EMBEDDING else 31
    matrix = as_matrix(p, weight.numpy()).astype(np.float64)
    upper, _ = factor(sensitivity.columns, 0.01, 1e-6)
    width = k * (20 / 12.85 if p.role is Role.EMBEDDING else 1)
    scale = np.float16(np.maximum(width * matrix.std(axis=1) / limit, 1e-7)).astype(np.float64)
    error, codes = np.zeros_like(matrix), np.zeros_like(matrix)
    for c in range(matrix.shape[1]):
        target = matrix[:, c] + error[:, :c] @ upper[:c, c]
        codes[:, c] = np.clip(np.rint(target / scale), -limit, limit)
        error[:, c] = matrix[:, c] - codes[:, c] * scale
    values = from_matrix(p, (codes * scale[:, None]).astype(np.float32))
    stored = torch.from_numpy(codes.astype(np.int8)), torch.from_numpy(scale).half()
    return *stored, torch.from_numpy(values)


def gptq_brotli(scene: Scene, k: float) -> Result:
    """The public frontier: GPTQ, k-sigma clip, Brotli-11."""
    codes, scales, found = {}, {}, {}
    for p in scene.plan.exported:
        if p.role in (Role.MATRIX, Role.EMBEDDING):
            codes[p.name], scales[p.name], found[p.name] = gptq(
                p, scene.weights[p.name], scene.sensitivities[p.name], k
            )
    return brotli_codes(scene, codes, scales, found)


def nncodec(table: Table, python: str, limit: int) -> Row:
    """NNCodec's finest stream of at most `limit` bytes, made by another interpreter."""
    weights = {p.name: table.scene.weights[p.name] for p in table.scene.plan.exported}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "weights.npz", Path(folder) / "decoded.npz"
        np.savez(source, **{name: as_array(weight) for name, weight in weights.items()})
        script = Path(__file__).with_name("pack_nncodec.py")
        command = [python, str(script), str(source), str(target), str(limit)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        with np.load(target) as file:
            found = {
                name: torch.from_numpy(file[name]).view(weight.shape)
                for name, weight in weights.items()
            }
    said = json.loads(answer.splitlines()[-1])
    return table.enter(
        f"NNCodec, qp {said['qp']}", said["bytes"], found, said["encode"], said["decode"]
    )


def as_array(weight: Tensor) -> NDArray[np.float32]:
    """Vectors and matrices as they are, anything of a higher rank as a matrix."""
    return np.asarray(weight.float().flatten(1) if weight.dim() > 2 else weight.float())


def arrays(scene: Scene) -> dict[str, NDArray[np.float32]]:
    """The weights as codecs take them."""
    return {name: weight.numpy() for name, weight in scene.weights.items()}


def int_zlib(scene: Scene, bits: int | None = None) -> Result:
    """This package's plain codec, with the recipe's bits or with others."""
    recipe = scene.recipe
    if bits is not None:
        changed = recipe.artifact.model_copy(update={"matrix_bits": bits, "embedding_bits": bits})
        recipe = recipe.model_copy(update={"artifact": changed})
    engine = CODECS["int-zlib"]
    encoded = engine.encode(Job(tensors=arrays(scene), recipe=recipe, plan=scene.plan))
    return (
        len(encoded.payload),
        encoded.decoded,
        lambda: engine.decode(encoded.payload, recipe, scene.plan),
    )


def rate_distortion(scene: Scene, rounder: Rounder, budget: int) -> Result:
    """The codec "rd" on sensitivities that were measured once for all its rows."""
    rounder.tables = new_tables()
    candidate, _ = fill_budget(rounder, budget, _size)
    payload = write_payload(candidate).payload
    return len(payload), candidate.tensors, lambda: read_payload(payload, scene.plan)


def _size(candidate: Candidate) -> tuple[int, Tables]:
    written = write_payload(candidate, thorough=False)
    return len(written.payload), written.tables


def bits_per_byte(scene: Scene, dataset: Dataset, weights: Decoded, count: int | None) -> float:
    """Score of the first `count` validation tokens (all if None), streaming, as on cards."""
    tokens = np.asarray(dataset.tokens("validation"))[:count]
    options = EvaluationOptions.from_recipe(scene.recipe, mode="streaming")
    nll = score_tokens(build_model(scene.recipe, weights), tokens, options, World())
    size = int(dataset.tokenizer.byte_table.count(tokens[1:], tokens[:-1]).sum())
    return float(nll.astype(np.float64).sum()) / LN2 / size


class Table:
    """Rows measured and printed one by one."""

    def __init__(self, scene: Scene, dataset: Dataset, count: int | None) -> None:
        self.scene, self.dataset, self.count = scene, dataset, count
        reference = bits_per_byte(scene, dataset, scene.weights, count)
        self.rows = [Row("float32", 4 * scene.plan.parameter_count, 32.0, reference, 0.0, 0.0, 0.0)]

    def add(self, name: str, make: Callable[[], Result], extra: float = 0.0) -> Row:
        """Encode, decode and score one codec; `extra` encode seconds were spent before."""
        started = time.process_time()
        size, found, decode = make()
        middle = time.process_time()
        decode()
        ended = time.process_time()
        return self.enter(name, size, found, middle - started + extra, ended - middle)

    def enter(self, name: str, size: int, found: Decoded, encoding: float, decoding: float) -> Row:
        """Score what a codec's bytes decode to; seconds of encoding and decoding are given."""
        bpb = bits_per_byte(self.scene, self.dataset, found, self.count)
        bits = 8 * size / self.scene.plan.parameter_count
        row = Row(name, size, bits, bpb, bpb - self.rows[0].bpb, encoding, decoding)
        self.rows.append(row)
        print(text(row), file=sys.stderr, flush=True)
        return row


def frontier(table: Table, bits: list[float], sigmas: list[float], python: str | None) -> list[str]:
    """Every codec in turn; how far the project's aims are met, as sentences."""
    scene, parameters = table.scene, table.scene.plan.parameter_count
    table.add("published int8 + zlib", lambda: published(scene, "int8"))
    int6 = table.add("published int6 + zlib", lambda: published(scene, "int6"))
    table.add("published mixed int6 + zstd-22", lambda: published(scene, "mixed"))
    table.add("int6 by role + Brotli-11", lambda: int6_brotli(scene))
    frontiers = [
        table.add(
            f"GPTQ + {k:g} sigma + Brotli-11", partial(gptq_brotli, scene, k), scene.measuring
        )
        for k in sigmas
    ]
    if python:
        for other in frontiers:
            nncodec(table, python, other.size)
    table.add("niblick int-zlib", lambda: int_zlib(scene))
    table.add("niblick int-zlib, 4 bits", lambda: int_zlib(scene, 4))
    rounder = Rounder(scene.plan, arrays(scene), scene.sensitivities)

    def rd(name: str, size: int) -> Row:
        return table.add(
            f"niblick rd, {name}", lambda: rate_distortion(scene, rounder, size), scene.measuring
        )

    for rate in bits:
        rd(f"{rate:g} bits", round(rate * parameters / 8))
    said = []
    for other in frontiers:
        same, fewer = (
            rd(f"the bytes of {other.name}", other.size),
            rd(f"95 % of them ({other.name})", round(0.95 * other.size)),
        )
        said.append(f"at the bytes of {other.name}: {same.bpb:.4f} against {other.bpb:.4f} bpb")
        said.append(
            f"with 5 % fewer bytes than {other.name}: {fewer.bpb:.4f} against {other.bpb:.4f} bpb"
        )
    less = rd("60 % of published int6 + zlib", round(0.6 * int6.size))
    said.append(
        f"with 40 % fewer bytes than {int6.name}: {less.bpb:.4f} against {int6.bpb:.4f} bpb"
    )
    return said


def text(row: Row) -> str:
    """One line of the Markdown table."""
    return (
        f"| {row.name} | {row.size:,} | {row.bits:.3f} | {row.bpb:.4f} | {row.tax:+.4f} | "
        f"{row.encode_seconds:.1f} | {row.decode_seconds:.2f} |"
    )


def main() -> None:
    """Read the checkpoint, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokens", type=int, help="score only the first tokens of the split")
    parser.add_argument(
        "--bits", type=float, action="append", help="rates of rd rows; may be repeated"
    )
    parser.add_argument(
        "--sigma", type=float, action="append", help="clips of GPTQ rows; may be repeated"
    )
    parser.add_argument(
        "--nncodec", metavar="PYTHON", help="an interpreter that has nncodec, for its rows"
    )
    parser.add_argument("--json", action="store_true", help="one document on standard output")
    options = parser.parse_args()
    found = read_checkpoint(find_weights(options.checkpoint))
    recipe = exported_recipe(found.recipe)
    dataset = (
        open_dataset(options.data)
        if options.data
        else resolve_dataset(recipe.data, vocab_size=recipe.model.vocab_size, cache=cache_folder())
    )
    plan = make_plan(recipe.model)
    kept = exported_tensors(found.tensors, make_plan(found.recipe.model))
    weights = {name: torch.tensor(array) for name, array in kept.items()}
    calibration = make_calibration(recipe, dataset)
    started = time.process_time()
    sensitivities = measure(build_model(recipe, weights), calibration)
    scene = Scene(recipe, plan, weights, sensitivities, calibration, time.process_time() - started)
    table = Table(scene, dataset, options.tokens)
    said = frontier(
        table,
        options.bits or [1.5, 2.0, 2.5, 3.0, 4.0],
        options.sigma or [8.0, 12.85, 18.0],
        options.nncodec,
    )
    if options.json:
        rows = [row.__dict__ for row in table.rows]
        print(json.dumps({"parameters": plan.parameter_count, "rows": rows, "said": said}))
        return
    print(HEAD, *map(text, table.rows), "", *(f"- {line}" for line in said), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
