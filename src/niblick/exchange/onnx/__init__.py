"""A model as an ONNX file: one step, with the decode state as inputs and outputs. No torch.

Inputs: `token` (B,) int64, `position` () int64 counted from 0, and the state's tensors by the
plan's names. Outputs: `logits` (B, V) float32, and the state after the token as `new.NAME`. The
file's metadata `niblick` says how the state starts. Attention sees the recipe's context. The
members of an ensemble stand side by side.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from niblick.codecs.quantized import QuantizedTensor
from niblick.errors import NiblickError
from niblick.exchange.onnx.graph import Graph
from niblick.exchange.onnx.step import Step, mean_probability
from niblick.extras import needs
from niblick.facade import Model
from niblick.files import write_atomically
from niblick.plan import each_member, member_prefix

_MIXERS = ("token-shift", "window", "full")
OPSET = 18


def export_onnx(model: Model, out: Path) -> int:
    """Write `model` to the file `out`; its size in bytes.

    Raises `NiblickError` for a mixer of a plugin, or where the package onnx is missing.
    """
    data = onnx_model(model).SerializeToString()
    write_atomically(out, [data])
    return len(data)


def onnx_model(model: Model) -> Any:
    """The `onnx.ModelProto` of one step of `model`."""
    with needs("export to onnx", "onnx"):
        from onnx import TensorProto, checker, helper, numpy_helper
    unknown = {layer.mixer for layer in model.plan.layers} - set(_MIXERS)
    if unknown:
        raise NiblickError(f"mixer {min(unknown)!r} has no form in ONNX")
    arrays = {
        name: t.dequantize() if isinstance(t, QuantizedTensor) else np.asarray(t, np.float32)
        for name, t in model.tensors.items()
    }
    built, logits = Graph(), []
    for i, (plan, own) in enumerate(each_member(model.plan, arrays)):
        prefix = member_prefix(i) if model.plan.members else ""
        logits.append(Step(plan, own, built, prefix).build())
    built.named("logits", "Identity", mean_probability(built, logits))
    kinds = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64}
    info = helper.make_tensor_value_info
    inputs = [info("token", TensorProto.INT64, ["B"]), info("position", TensorProto.INT64, [])]
    outputs = [info("logits", TensorProto.FLOAT, ["B", model.plan.model.vocab_size])]
    for entry in model.plan.state:
        inputs.append(info(entry.name, kinds[entry.kind], ["B", *entry.shape]))
        outputs.append(info(f"new.{entry.name}", kinds[entry.kind], ["B", *entry.shape]))
    stored = [
        numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        for name, value in built.constants.items()
    ]
    graph = helper.make_graph(built.nodes, "niblick", inputs, outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    helper.set_model_props(made, {"niblick": json.dumps(_facts(model))})
    checker.check_model(made)
    return made


def _facts(model: Model) -> dict[str, Any]:
    """What a caller needs to know beside the graph."""
    plan = model.plan
    return {
        "context": plan.model.context,
        "bos_id": plan.model.bos_id,
        "state_fill": {entry.name: entry.fill for entry in plan.state},
        "sha256": model.sha256,
    }
