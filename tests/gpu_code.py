"""What inductor generates for a CUDA device, and whether Triton compiles it, where there is none.

`python gpu_code.py 90` prints one JSON document: for that compute capability, the kernels of a
training step of a model of every kind of layer, forward and backward, of the head's chunks, of
Newton-Schulz and of Adam, each with the size of its machine code (cubin) in bytes. The step is
traced on the CPU as training traces it; its graphs are then said to be of a device that is only
described, and lowered. Nothing is run. It needs Triton and a C++ compiler, and changes torch in its
own process: a test starts it as a program.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import scheduler
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import flex_attention as flex_module
from torch.utils import cpp_extension
from torch.utils._pytree import tree_map

from everything import WIDE, everything
from niblick.model import LanguageModel
from niblick.model.accelerated import Accelerated
from niblick.model.graphs import one_graph
from niblick.model.head import _chunk
from niblick.objective import training_loss
from niblick.optim import LOW_PRECISION, Layout, newton_schulz
from niblick.optim.adam import descend
from niblick.training.overlap import early, tapped

CUDA = torch.device("cuda:0")
Graph = tuple[fx.GraphModule, bool]  # and whether it is a backward
# Operators that make tensors of a device without computing on it have to find its guard.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
static c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
static c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, &guard);
"""


class TracedError(Exception):
    """All graphs are there; nothing is to be run."""


def traced(call: Callable[..., Any], *inputs: Any) -> list[Graph]:
    """The graphs, forward and backward, of `call` as one graph each."""
    found: list[Graph] = []

    def keep(backward: bool) -> Callable[..., Any]:
        def compiler(graph: fx.GraphModule, given: Any) -> Callable[..., Any]:
            found.append((graph, backward))

            def run(*arguments: Any) -> Any:
                raise TracedError

            return run

        return compiler

    backend = aot_autograd(
        fw_compiler=keep(False),
        bw_compiler=keep(True),
        inference_compiler=keep(False),
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )
    with (
        functorch_config.patch(force_non_lazy_backward_lowering=True),
        mock.patch.object(flex_module, "_validate_device", lambda *tensors: None),
    ):
        try:
            one_graph(call, backend)(*inputs)
        except TracedError:
            return found
    raise AssertionError("the graph was not compiled")


def move(graph: fx.GraphModule) -> list[Any]:
    """Say that everything in it is on the described device; the inputs that it then has."""

    def device(value: Any) -> Any:
        return CUDA if isinstance(value, torch.device) else value

    def tensor(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return FakeTensor(value.fake_mode, like, CUDA)

    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.args = fx.node.map_aggregate(node.args, device)
                node.kwargs = fx.node.map_aggregate(node.kwargs, device)
                if "val" in node.meta:
                    node.meta["val"] = tree_map(tensor, node.meta["val"])
            module.recompile()
    return [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]


@contextmanager
def described(capability: int) -> Iterator[list[str]]:
    """A device of that compute capability for inductor and Triton; collects generated modules."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    major, minor = divmod(capability, 10)
    card = SimpleNamespace(
        name="described", major=major, minor=minor, multi_processor_count=108, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
        max_threads_per_block=1024, total_memory=80 << 30, L2_cache_size=40 << 20,
        shared_memory_per_block_optin=163 * 1024, gcnArchName="",
    )  # fmt: skip
    modules: list[str] = []

    def to_module(graph: GraphLowering) -> Any:
        modules.append(graph.codegen()[0].value)
        return SimpleNamespace(call=None, value=modules[-1], __file__="", __path__="")

    def always(value: Any) -> Callable[..., Any]:
        return lambda *arguments, **options: value

    target = GPUTarget("cuda", capability, 32)
    driver.set_active(
        SimpleNamespace(get_current_target=always(target), get_current_device=always(0))
    )
    with ExitStack() as stack:
        for where, name, value in (
            (torch.cuda, "get_device_properties", card),
            (torch.cuda, "get_device_capability", (major, minor)),
            (CudaInterface, "get_device_properties", card),
            (CudaInterface, "get_compute_capability", capability),
            (CudaInterface, "is_bf16_supported", True),
            (CudaInterface, "raise_if_triton_unavailable", None),
            (CudaInterface.Worker, "get_device_properties", card),
            (scheduler, "has_triton", True),
            (triton_helpers, "set_driver_to_gpu", None),
        ):
            stack.enter_context(mock.patch.object(where, name, always(value)))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", to_module))
        settings = {"fx_graph_cache": False, "compile_threads": 1, **early()["options"]}
        stack.enter_context(inductor_config.patch(settings))
        stack.enter_context(torch.no_grad())
        yield modules


def kernels(modules: list[str]) -> dict[str, int]:
    """The Triton kernels in generated modules, compiled: bytes of machine code by name."""
    found = {}
    for module in modules:
        for name, source in re.findall(
            r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'", module, re.DOTALL
        ):
            kernel = getattr(PyCodeCache.load(source), name)
            compiled = kernel._precompile_config(kernel.configs[0])
            binary = getattr(compiled, "kernel", compiled)
            found[name] = len(Path(binary.cubin_path).read_bytes()) if hasattr(
                binary, "cubin_path"
            ) else len(binary.asm["cubin"])  # fmt: skip
    return found


def taken(module: str) -> list[float]:
    """For each gradient that a generated backward hands to a sink, the part of all launches that
    comes before.
    """
    body = "".join(line for line in module.splitlines(True) if not line.lstrip().startswith("#"))
    body = body[body.rindex("def call(") :]
    calls = re.findall(r"niblick_training\.take\.default\(|\w+\.run\(|extern_kernels\.\w+\(", body)
    launches = [n for n, call in enumerate(calls) if "take" not in call]
    before = [sum(at < n for at in launches) for n, call in enumerate(calls) if "take" in call]
    return [count / len(launches) for count in before]


def step(model: LanguageModel) -> list[Graph]:
    """A training step's graphs, matrices in bfloat16, gradients taken by taps."""
    model.kernels = Accelerated()
    for parameter in model.plan.parameters:
        if parameter.role in LOW_PRECISION:
            weight = model.get_parameter(parameter.name)
            weight.data = weight.data.bfloat16()
    tokens = torch.zeros(2, model.recipe.context, dtype=torch.int64)
    sink: Any = SimpleNamespace(key=-1)
    loss = tapped(training_loss, model, sink, Layout(model.plan.parameters))
    return traced(lambda x, y: loss(x, y, {}), tokens, tokens)


def pieces_of_a_step() -> dict[str, list[Graph]]:
    """All that a step compiles on CUDA, by name."""
    model = everything(WIDE)
    flat, numbers = torch.zeros(1 << 16), torch.zeros(5)
    with torch.no_grad():
        rest = {
            "head": traced(
                lambda z, y: _chunk(z, y, 30.0, 512, True),
                torch.zeros(512, 1024, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.int64),
            ),
            "newton_schulz": traced(
                lambda g: newton_schulz(g, 5, torch.bfloat16), torch.zeros(2, 512, 256)
            ),
            "adam": traced(
                lambda *t: descend(*t, (0.9, 0.95), 1e-8), *(flat.clone() for _ in range(4)),
                numbers,
            ),
        }  # fmt: skip
    return {"step": step(model), **rest}


def register_guard() -> None:
    """Compile and load it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "guard.cpp"
        source.write_text(GUARD)
        command = [cpp_extension.get_cxx_compiler(), "-std=c++20", "-shared", "-fPIC", "-o"]
        library = Path(folder) / "guard.so"
        include = [f"-I{path}" for path in cpp_extension.include_paths()]
        folders = [f"-L{path}" for path in cpp_extension.library_paths()]
        subprocess.run(
            [*command, str(library), str(source), *include, *folders, "-lc10"], check=True
        )
        ctypes.CDLL(str(library))


def main() -> None:
    graphs = pieces_of_a_step()
    register_guard()
    report: dict[str, Any] = {}
    for part, pieces in graphs.items():
        with described(int(sys.argv[1])) as modules:
            for graph, backward in pieces:
                inputs = move(graph)
                mode = next(t.fake_mode for t in inputs if isinstance(t, FakeTensor))
                with torch._guards.tracing(torch._guards.TracingContext(mode)), mode:
                    compile_fx_inner(graph, inputs, is_backward=backward)
            report[part] = kernels(modules)
            if part == "step":
                report["taken"] = taken(modules[-1])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
