"""The codec "rd": water-filled steps, error feedback, trellis-coded rounding, adaptive entropy coding.

Every parameter is coded by role, vectors and scalars included. Steps come from the Fisher information measured on
calibration batches, rounding weighs error against the coder's own prices, and one number, delta, trades bytes for
loss over the whole model; the solver finds the delta that fills a byte budget or meets a loss.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niblick.compression.allocation import fill_budget, meet_tax
from niblick.compression.calibration import Calibration, mean_nll, self_generated
from niblick.compression.codec import CODECS, Encoded, Job, TensorRow, share
from niblick.compression.entropy import order0_bits
from niblick.compression.layout import from_matrix, matrix_shape, start
from niblick.compression.plain import choose, read_plain, write_plain
from niblick.compression.rounder import LARGEST_SYMBOL, Candidate, Rounder
from niblick.compression.sensitivity import measure
from niblick.compression.stream import Bits, new_tables, read_tensor, write_tensor
from niblick.compression.symbols import Decoder, Encoder, Tables
from niblick.errors import ArtifactError, NiblickError
from niblick.model import LanguageModel
from niblick.plan import Parameter, Plan
from niblick.recipe import Recipe

# Step (below 0: a section of plainly compressed symbols follows the streams), bytes of two streams, checksum.
_HEAD = struct.Struct("<fIII")
DEFAULT_BITS = 4.0
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Written:
    """A candidate after entropy coding."""

    payload: bytes
    bits: dict[str, Bits]
    escapes: int
    plain: int
    distance: float
    tables: Tables


def _size(candidate: Candidate) -> tuple[int, Tables]:
    written = _write(candidate)
    return len(written.payload), written.tables


@dataclass(frozen=True)
class RateDistortion:
    """Fits a byte budget from below, or a loss; needs calibration batches, or writes its own text."""

    name: str = "rd"

    def encode(self, job: Job) -> Encoded:
        """Measure, round and code until the payload fills the budget (default: half a byte per parameter)."""
        model = _model(job)
        calibration = job.calibration or Calibration(self_generated(model, seed=job.recipe.seed))
        rounder = Rounder(job.plan, job.tensors, measure(model, calibration, seed=job.recipe.seed))
        if job.target_tax is not None:
            tax = _tax(model, calibration, job.tensors)
            candidate, choice = meet_tax(rounder, tax, job.target_tax, job.budget, _size)
        else:
            budget = job.budget if job.budget is not None else round(DEFAULT_BITS * job.plan.parameter_count / 8)
            candidate, choice = fill_budget(rounder, budget, _size)
        return _encoded(candidate, _write(candidate), choice, job)

    def decode(self, payload: bytes, recipe: Recipe, plan: Plan) -> dict[str, Tensor]:
        """Grids and symbols to tensors; a checksum over the result guards against a differing decoder."""
        if len(payload) < _HEAD.size:
            raise ArtifactError("the payload ends before its head")
        delta, stream, escapes, checksum = _HEAD.unpack_from(payload)
        first, second = _HEAD.size + stream, _HEAD.size + stream + escapes
        if second > len(payload) or (delta > 0) != (second == len(payload)) or not 0 < abs(delta) < 1e30:
            raise ArtifactError("the payload's lengths or its step are out of range")
        plain = _read_plain(payload[second:], plan) if delta < 0 else {}
        decoder = Decoder(new_tables(), payload[_HEAD.size : first], payload[first:second])
        found: dict[str, Tensor] = {}
        for parameter in plan.exported:
            grid, levels = read_tensor(decoder, parameter, plain.get(parameter.name))
            found[parameter.name] = restore(parameter, levels * grid.steps(abs(delta)))
        decoder.finish()
        if _checksum(found) != checksum:
            raise ArtifactError("the decoded tensors do not match their checksum")
        return found


def _read_plain(section: bytes, plan: Plan) -> dict[str, Ints]:
    """The symbols of the tensors that the section's bit mask names."""
    size = -(-len(plan.exported) // 8)
    mask = np.unpackbits(np.frombuffer(section[:size], dtype=np.uint8), bitorder="little")
    if len(section) < size or mask[len(plan.exported) :].any():
        raise ArtifactError("the plain symbols are damaged: their list of tensors is out of range")
    members = [p for p, bit in zip(plan.exported, mask.tolist(), strict=False) if bit]
    found = read_plain(section[size:], [matrix_shape(p) for p in members])
    for parameter, symbols in zip(members, found, strict=True):
        if symbols.size and int(np.abs(symbols).max()) > LARGEST_SYMBOL:
            raise ArtifactError(f"the symbols of {parameter.name!r} are out of range")
    return {p.name: symbols for p, symbols in zip(members, found, strict=True)}


def restore(parameter: Parameter, values: np.ndarray[Any, np.dtype[np.float64]]) -> Tensor:
    """The tensor of a parameter from its dequantized matrix, float32; `ArtifactError` beyond float32."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ArtifactError(f"tensor {parameter.name!r} decodes to values beyond float32")
    return start(parameter) + from_matrix(parameter, torch.from_numpy(narrow))


def _model(job: Job) -> LanguageModel:
    model = LanguageModel(job.plan.model, seed=None)
    model.load_state_dict(job.tensors)
    return model.eval()


def _tax(
    model: LanguageModel, calibration: Calibration, tensors: dict[str, Tensor]
) -> Callable[[dict[str, Tensor]], float]:
    """Bits per byte that other weights lose against `tensors` on the calibration batches."""
    if calibration.bytes_per_token is None:
        raise NiblickError("a target tax in bits per byte needs calibration text of known length")
    scale = 1 / (np.log(2.0) * calibration.bytes_per_token)
    reference = mean_nll(model, calibration)

    def tax(candidate: dict[str, Tensor]) -> float:
        model.load_state_dict(candidate)
        found = (mean_nll(model, calibration) - reference) * scale
        model.load_state_dict(tensors)
        return float(found)

    return tax


def _write(candidate: Candidate) -> _Written:
    """Through the tables; then, where plain compression is smaller for some tensors or for all, once more with it."""
    adaptive = _write_with(candidate, [False] * len(candidate.parameters))
    symbols = [candidate.symbols[p.name] for p in candidate.parameters]
    chosen = choose(symbols, [adaptive.bits[p.name].symbols for p in candidate.parameters])
    if not any(chosen):
        return adaptive
    mixed = _write_with(candidate, chosen)
    return min(adaptive, mixed, key=lambda written: len(written.payload))


def _write_with(candidate: Candidate, plain: list[bool]) -> _Written:
    encoder, bits = Encoder(new_tables()), {}
    for parameter, apart in zip(candidate.parameters, plain, strict=True):
        grid, symbols = candidate.grids[parameter.name], candidate.symbols[parameter.name]
        bits[parameter.name] = write_tensor(encoder, parameter, grid, symbols, plain=apart)
    stream, escapes = encoder.finish()
    section = b""
    if any(plain):
        members = [p for p, apart in zip(candidate.parameters, plain, strict=True) if apart]
        section = np.packbits(plain, bitorder="little").tobytes()
        section += write_plain([candidate.symbols[p.name] for p in members])
        for p, size in zip(members, share(len(section), [p.size for p in members]), strict=True):
            bits[p.name] = replace(bits[p.name], symbols=8.0 * size)
    head = _HEAD.pack(-candidate.delta if section else candidate.delta, len(stream), len(escapes),
                      _checksum(candidate.tensors))
    coded = 8 * (len(stream) + len(escapes))
    return _Written(head + stream + escapes + section, bits, len(escapes), len(section),
                    coded / max(encoder.bits, 1.0) - 1, encoder.tables)


def _encoded(candidate: Candidate, written: _Written, choice: dict[str, Any], job: Job) -> Encoded:
    body = len(written.payload) - _HEAD.size
    order = list(written.bits)
    kinds = [round(1000 * sum(getattr(bits, kind) for bits in written.bits.values()))
             for kind in ("symbols", "scales", "models")]
    symbols, scales, models = share(body, kinds)
    parts = {"symbols": symbols, "scales": scales, "models": models, "payload_head": _HEAD.size}
    sizes = share(body, [round(1000 * written.bits[name].total) for name in order])
    rows = {name: TensorRow(size, job.tensors[name].numel(), order0_bits(candidate.symbols[name]))
            for name, size in zip(order, sizes, strict=True)}
    told = {**choice, "delta": candidate.delta, "coder_excess": round(written.distance, 6),
            "predicted_tax_nats": round(candidate.predicted, 6), "escape_bytes": written.escapes, "plain_bytes": written.plain,
            "bits_by_role": _by_role(job.plan, rows)}
    return Encoded(written.payload, parts, rows, candidate.tensors, told)


def _by_role(plan: Plan, rows: dict[str, TensorRow]) -> dict[str, float]:
    """Bits per parameter that each role was given."""
    sums: dict[str, list[int]] = {}
    for parameter in plan.exported:
        entry = sums.setdefault(parameter.role.value, [0, 0])
        entry[0] += 8 * rows[parameter.name].bytes
        entry[1] += parameter.size
    return {role: round(bits / max(count, 1), 3) for role, (bits, count) in sums.items()}


def _checksum(tensors: dict[str, Tensor]) -> int:
    value = 0
    for tensor in tensors.values():
        # Adding zero makes one zero of two, so that equal numbers have equal bytes.
        value = zlib.crc32((tensor + 0.0).contiguous().numpy().tobytes(), value)
    return value


CODECS.register("rd")(RateDistortion())
