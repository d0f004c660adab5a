"""Batches as tensors on a device: on CUDA through pinned memory and a side stream, one batch ahead
of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from niblick.training.pipeline import Pipeline

if TYPE_CHECKING:
    import torch

    Tensors = tuple[torch.Tensor, torch.Tensor]


def send(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A CPU's tensor on a device; on CUDA without waiting for what it does."""
    if not str(device).startswith("cuda"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class DeviceFeeder:
    """Hands out the batches of a `Pipeline` as int64 tensors (B, T) on `device`, in the same order.

    On CUDA the copy of the next batch runs on its own stream while the step computes, and Python,
    which asks for a batch a step, is held back to two steps ahead of the device: the clock would
    tell of steps that are only asked for. `state()` is that of the batches handed out, whatever is
    in flight.
    """

    def __init__(self, pipeline: Pipeline, device: str | torch.device) -> None:
        import torch

        self.pipeline = pipeline
        self._torch = torch
        self._device = torch.device(device)
        on_cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._in_flight: Tensors | None = None
        self._begun: torch.cuda.Event | None = None
        self._state = pipeline.state()

    def state(self) -> dict[str, int]:
        """What resumes the stream after the last batch that `next` gave."""
        return dict(self._state)

    def next(self) -> Tensors:
        """The next (inputs, targets)."""
        if self._stream is None:
            batch = self._tensors()
            self._state = self.pipeline.state()
            return batch
        batch = self._in_flight or self._copy(self._stream)
        current = self._torch.cuda.current_stream(self._device)
        begun, self._begun = self._begun, current.record_event()
        if begun is not None:
            begun.synchronize()
        current.wait_stream(self._stream)
        for tensor in batch:
            tensor.record_stream(current)
        self._state = self.pipeline.state()
        self._in_flight = self._copy(self._stream)
        return batch

    def _tensors(self) -> Tensors:
        inputs, targets = self.pipeline.next()
        to_device = self._device
        return self._torch.from_numpy(inputs).to(to_device), self._torch.from_numpy(targets).to(
            to_device
        )

    def _copy(self, stream: torch.cuda.Stream) -> Tensors:
        inputs, targets = (
            self._torch.from_numpy(array).pin_memory() for array in self.pipeline.next()
        )
        with self._torch.cuda.stream(stream):
            return inputs.to(self._device, non_blocking=True), targets.to(
                self._device, non_blocking=True
            )
