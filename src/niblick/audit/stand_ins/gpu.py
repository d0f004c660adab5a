"""Makes torch on a CPU look like one H100 to a script: devices, capabilities, compilation, process
groups.

Tensors asked for on "cuda" are made on the CPU and stay float32 where autocast would lower them, so
numbers are those of a slow, exact GPU. Installed once per process, inside the sandbox; nothing is
undone.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any, Self

NAME, MEMORY = "NVIDIA H100 80GB HBM3", 80 * 2**30


def install(torch: Any) -> None:
    """Patches an imported torch in place."""
    with contextlib.suppress(Exception):
        # remembered, so that a stand-in is never taken for triton
        torch.utils._triton.has_triton_package()
    _patch_cuda(torch)
    _patch_compile(torch)
    _patch_precision(torch)
    _device_mode(torch).__enter__()
    from niblick.audit.stand_ins import processes

    processes.install(torch)


def _patch_cuda(torch: Any) -> None:
    properties = types.SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        total_memory=MEMORY,
        multi_processor_count=132,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        is_integrated=False,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448,
        L2_cache_size=50 * 2**20,
        shared_memory_per_multiprocessor=233472,
        gcnArchName="",
        uuid="0",
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": NAME,
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "is_initialized": True,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "memory_stats": {},
        "memory_summary": "",
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "init": None,
        "_lazy_init": None,
        "ipc_collect": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "set_per_process_memory_fraction": None,
        "can_device_access_peer": True,
        "utilization": 0,
        "get_arch_list": ["sm_90"],
        "reset_max_memory_allocated": None,
        "memory_snapshot": [],
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, always(value))
    for name in ("Stream", "Event", "CUDAGraph", "ExternalStream"):
        setattr(torch.cuda, name, _Timeline)
    for name in ("current_stream", "default_stream"):
        setattr(torch.cuda, name, always(_Timeline()))
    for name in ("stream", "device", "graph", "device_of"):
        setattr(torch.cuda, name, _Scope)
    torch.cuda.nvtx = types.SimpleNamespace(
        range_push=always(None), range_pop=always(None), range=_Scope
    )
    torch.cuda.get_rng_state = always(torch.get_rng_state())
    torch.cuda.set_rng_state = always(None)
    torch.version.cuda = "12.8"


def always(value: Any) -> Callable[..., Any]:
    """A function that gives `value` whatever it is asked."""
    return lambda *_, **__: value


class _Timeline:
    """A stream or event on a machine where everything has already happened."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 0.0

    def query(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return always(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Scope(contextlib.ContextDecorator):
    """A context or decorator that changes nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@contextlib.contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _patch_compile(torch: Any) -> None:
    def passthrough(model: Any = None, *_: Any, **__: Any) -> Any:
        return model if model is not None else (lambda function: function)

    torch.compile = passthrough
    torch.jit.script = passthrough
    torch.nn.Module.compile = always(None)
    torch.compiler.disable = lambda fn=None, *_, **__: (
        fn if fn is not None else (lambda function: function)
    )


def _patch_precision(torch: Any) -> None:
    """Autocast stays off, and attention back ends that only a GPU has are not insisted on."""
    plain = torch.autocast

    class Autocast(plain):  # type: ignore[misc,valid-type]
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__("cpu", enabled=False)

    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = Autocast
    torch.cuda.amp.autocast = Autocast
    torch.nn.attention.sdpa_kernel = (
        _nothing  # dynamo, which some scripts import, looks at its __wrapped__
    )
    torch.backends.cuda.sdp_kernel = _nothing
    torch.set_default_device = always(None)


def _device_mode(torch: Any) -> Any:
    from torch.overrides import TorchFunctionMode

    tensor = torch.Tensor

    def on_cpu(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "cuda" else value
        if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
            return "cpu"
        return value

    class OnCpu(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func is tensor.cuda or func is tensor.pin_memory:
                return args[0]
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            if func is not torch.load and "device" in kwargs:
                kwargs["device"] = _index_free(kwargs["device"], on_cpu, torch)
            if func is tensor.to:
                args = (args[0], *(on_cpu(value) for value in args[1:]))
            return func(*args, **kwargs)

    class Generator(torch.Generator):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls, on_cpu(device))

    torch.Generator = Generator
    plain_load = torch.load
    torch.load = lambda *args, **kwargs: plain_load(*args, **{**kwargs, "map_location": "cpu"})
    return OnCpu()


def _index_free(device: Any, on_cpu: Callable[[Any], Any], torch: Any) -> Any:
    """`device` on the CPU; a bare number is a CUDA index."""
    return torch.device("cpu") if isinstance(device, int) else on_cpu(device)
