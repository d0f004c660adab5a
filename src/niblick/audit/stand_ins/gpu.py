"""Makes torch on a CPU look like one H100 in a process group of one: devices, capabilities,
compilation, collectives.

Tensors asked for on "cuda" are made on the CPU and stay float32 where autocast would lower them, so
numbers are those of a slow, exact GPU; every collective gives what a group of one would. Installed
once per process, inside the sandbox; nothing is undone.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any, Self

NAME, MEMORY = "NVIDIA H100 80GB HBM3", 80 * 2**30
_PROPERTIES = types.SimpleNamespace(
    name=NAME,
    major=9,
    minor=0,
    total_memory=MEMORY,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    is_integrated=False,
    gcnArchName="",
    uuid="0",
)
_CUDA: dict[str, Any] = {
    "is_available": True,
    "is_initialized": True,
    "is_bf16_supported": True,
    "can_device_access_peer": True,
    "device_count": 1,
    "current_device": 0,
    "utilization": 0,
    "get_device_capability": (9, 0),
    "get_device_name": NAME,
    "get_device_properties": _PROPERTIES,
    "get_arch_list": ["sm_90"],
    "mem_get_info": (MEMORY, MEMORY),
    "memory_stats": {},
    "memory_summary": "",
    "memory_snapshot": [],
    "_lazy_init": None,
}
_GROUP: dict[str, Any] = {
    "is_available": True,
    "is_nccl_available": True,
    "is_torchelastic_launched": True,
    "get_world_size": 1,
    "get_backend": "nccl",
    **dict.fromkeys(("get_rank", "get_local_rank", "get_node_local_rank"), 0),
    **dict.fromkeys(("barrier", "monitored_barrier", "new_group", "broadcast_object_list")),
}


def install(torch: Any) -> None:
    """Patches an imported torch in place."""
    with contextlib.suppress(Exception):
        # remembered, so that a stand-in is never taken for triton
        torch.utils._triton.has_triton_package()
    _patch_cuda(torch)
    _patch_compile(torch)
    _patch_precision(torch)
    _device_mode(torch).__enter__()
    _patch_group(torch.distributed)
    wrapper = _one_process(torch)
    torch.nn.parallel.DistributedDataParallel = wrapper
    torch.nn.parallel.distributed.DistributedDataParallel = wrapper


def _patch_cuda(torch: Any) -> None:
    """Functions that tell something get an answer; all others have nothing to do."""
    cuda = torch.cuda
    for name, value in list(vars(cuda).items()):
        if isinstance(value, types.FunctionType) and not name.startswith("_"):
            setattr(cuda, name, always(0 if "memory" in name else None))
    for name, answer in _CUDA.items():
        setattr(cuda, name, always(answer))
    for name in ("Stream", "Event", "CUDAGraph", "ExternalStream"):
        setattr(cuda, name, _Timeline)
    for name in ("current_stream", "default_stream"):
        setattr(cuda, name, always(_Timeline()))
    for name in ("stream", "device", "graph", "device_of"):
        setattr(cuda, name, _Scope)
    cuda.nvtx = types.SimpleNamespace(range_push=always(None), range_pop=always(None), range=_Scope)
    cuda.get_rng_state = always(torch.get_rng_state())
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

    torch.compile = torch.jit.script = passthrough
    torch.nn.Module.compile = always(None)
    torch.compiler.disable = lambda fn=None, *_, **__: passthrough(fn)


def _patch_precision(torch: Any) -> None:
    """Autocast stays off, and attention back ends that only a GPU has are not insisted on."""
    plain = torch.autocast

    class Autocast(plain):  # type: ignore[misc,valid-type]
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__("cpu", enabled=False)

    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = Autocast
    torch.cuda.amp.autocast = Autocast
    torch.nn.attention.sdpa_kernel = _nothing  # dynamo looks at its __wrapped__
    torch.backends.cuda.sdp_kernel = _nothing
    torch.set_default_device = always(None)


def _device_mode(torch: Any) -> Any:
    from torch.overrides import TorchFunctionMode

    tensor = torch.Tensor

    def on_cpu(value: Any) -> Any:
        kind = value.type if isinstance(value, torch.device) else value
        return torch.device("cpu") if str(kind).partition(":")[0] == "cuda" else value

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
                device = kwargs["device"]  # a bare number is a CUDA index
                kwargs["device"] = "cpu" if isinstance(device, int) else on_cpu(device)
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


class _Done:
    """The handle of work that is over."""

    def wait(self, *_: Any) -> bool:
        return True

    is_completed = wait

    def get_future(self) -> _Done:
        return self


def _copy(output: Any, source: Any, *_: Any, **__: Any) -> _Done:
    output.copy_(source.reshape(output.shape))
    return _Done()


def _patch_group(dist: Any) -> None:
    """torch.distributed for one process that talks to nobody."""
    state = {"started": False}
    for name, value in _GROUP.items():
        setattr(dist, name, always(value))
    for name in ("all_reduce", "broadcast", "reduce", "send", "recv", "isend", "irecv"):
        setattr(dist, name, always(_Done()))
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
        setattr(dist, name, _copy)
    dist._all_gather_base = dist._reduce_scatter_base = _copy
    dist.init_process_group = lambda *_, **__: state.update(started=True)
    dist.destroy_process_group = lambda *_, **__: state.update(started=False)
    dist.is_initialized = lambda *_, **__: state["started"]
    dist.all_gather = lambda outputs, tensor, *_, **__: _copy(outputs[0], tensor)
    dist.gather = lambda tensor, outputs=None, *_, **__: (
        _copy(outputs[0], tensor) if outputs else _Done()
    )
    dist.all_gather_object = lambda outputs, value, *_, **__: outputs.__setitem__(0, value)
    dist.reduce_scatter = lambda output, inputs, *_, **__: _copy(output, inputs[0])
    if not hasattr(dist, "ReduceOp"):
        dist.ReduceOp = types.SimpleNamespace(SUM=0, AVG=1, PRODUCT=2, MIN=3, MAX=4)


def _one_process(torch: Any) -> type:
    class OneProcess(torch.nn.Module):  # type: ignore[misc]
        """The data-parallel wrapper of one process: the module itself, under `.module`."""

        def __init__(self, module: Any, *_: Any, **__: Any) -> None:
            super().__init__()
            self.module = module
            self.require_backward_grad_sync = True

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    return OneProcess
