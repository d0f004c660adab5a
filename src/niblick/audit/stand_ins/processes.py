"""torch.distributed for one process that talks to nobody: every collective gives what a group of
one would.
"""

from __future__ import annotations

import types
from typing import Any

from niblick.audit.stand_ins.gpu import always


def install(torch: Any) -> None:
    """Patches `torch.distributed` and the data-parallel wrapper in place."""
    dist = torch.distributed
    state = {"started": False}

    def start(*_: Any, **__: Any) -> None:
        state["started"] = True

    def stop(*_: Any, **__: Any) -> None:
        state["started"] = False

    answers: dict[str, Any] = {
        "is_available": True,
        "get_rank": 0,
        "get_world_size": 1,
        "get_backend": "nccl",
        "barrier": None,
        "monitored_barrier": None,
        "is_nccl_available": True,
        "new_group": None,
        "broadcast_object_list": None,
        "is_torchelastic_launched": True,
        "get_local_rank": 0,
        "get_node_local_rank": 0,
    }
    for name, value in answers.items():
        setattr(dist, name, always(value))
    for name in ("all_reduce", "broadcast", "reduce", "send", "recv", "isend", "irecv"):
        setattr(dist, name, always(_Done()))
    dist.init_process_group, dist.destroy_process_group = start, stop
    dist.is_initialized = lambda *_, **__: state["started"]
    dist.all_gather, dist.gather = _copy_to_first, _gather
    dist.all_gather_object = _copy_object
    dist.all_gather_into_tensor = dist.reduce_scatter_tensor = _copy
    dist._all_gather_base = dist._reduce_scatter_base = dist.all_to_all_single = _copy
    dist.reduce_scatter = lambda output, inputs, *_, **__: _copy(output, inputs[0])
    if not hasattr(dist, "ReduceOp"):
        dist.ReduceOp = types.SimpleNamespace(SUM=0, AVG=1, PRODUCT=2, MIN=3, MAX=4)
    _patch_data_parallel(torch)


class _Done:
    """The handle of work that is over."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> _Done:
        return self


def _copy(output: Any, source: Any, *_: Any, **__: Any) -> _Done:
    output.copy_(source.reshape(output.shape))
    return _Done()


def _copy_to_first(outputs: Any, tensor: Any, *_: Any, **__: Any) -> _Done:
    return _copy(outputs[0], tensor)


def _gather(tensor: Any, gather_list: Any = None, *_: Any, **__: Any) -> _Done:
    return _copy(gather_list[0], tensor) if gather_list else _Done()


def _copy_object(outputs: Any, value: Any, *_: Any, **__: Any) -> None:
    outputs[0] = value


def _patch_data_parallel(torch: Any) -> None:
    class OneProcess(torch.nn.Module):  # type: ignore[misc]
        """The data-parallel wrapper of one process: the module itself, under `.module`."""

        def __init__(self, module: Any, *_: Any, **__: Any) -> None:
            super().__init__()
            self.module = module
            self.require_backward_grad_sync = True

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    torch.nn.parallel.DistributedDataParallel = OneProcess
    torch.nn.parallel.distributed.DistributedDataParallel = OneProcess
