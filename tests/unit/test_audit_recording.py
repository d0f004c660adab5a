"""What the recorder takes for counted and for learnt, on programs of a few lines run in this
process.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niblick.audit.inside.driving import judge, stream
from niblick.audit.inside.recording import Recorder, Trace

STREAM = stream(64, 1, 65)
TARGETS = torch.tensor(STREAM[1:])


def places(trace: Trace) -> tuple[set[int], set[int]]:
    """(counted, learnt), as positions in the stream."""
    return set(trace.counted), set(trace.learnt)


def model() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(64, 64)


def losses(net: nn.Embedding) -> Tensor:
    return F.cross_entropy(net(torch.tensor(STREAM[:-1])), TARGETS, reduction="none")


def test_a_mean_without_gradients_counts_every_place_at_its_value() -> None:
    net, recorder = model(), Recorder(STREAM)
    with recorder, torch.no_grad():
        value = F.cross_entropy(net(torch.tensor(STREAM[:-1])), TARGETS).item()
    assert places(recorder.trace) == (set(range(1, 65)), set())
    assert judge(recorder.trace, [value], 64)["own"] == pytest.approx(value, abs=1e-5)


def test_only_the_summed_slice_counts() -> None:
    recorder = Recorder(STREAM)
    with recorder, torch.no_grad():
        losses(model()).reshape(2, 32)[1, 8:].to(torch.float64).sum()
    assert places(recorder.trace)[0] == set(range(41, 65))


def test_log_probabilities_that_are_gathered_count_as_well() -> None:
    recorder = Recorder(STREAM)
    with recorder, torch.no_grad():
        scores = F.log_softmax(model()(torch.tensor(STREAM[:-1])), -1)
        (-scores.gather(-1, TARGETS[:, None]).squeeze(-1)).sum()
    assert places(recorder.trace)[0] == set(range(1, 65))


def test_only_unmasked_places_are_learnt_from() -> None:
    net, recorder = model(), Recorder(STREAM)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with recorder:
        mask = (torch.arange(64) < 20).float()
        ((losses(net) * mask).sum() / mask.sum()).backward()
        assert places(recorder.trace)[1] == set()
        optimizer.step()
    assert places(recorder.trace)[1] == set(range(1, 21))
    assert not recorder.trace.by_delta


@pytest.mark.parametrize("update", ["sub_", "data", "copy_"])
def test_weights_moved_by_hand_are_learning_too(update: str) -> None:
    net, recorder = model(), Recorder(STREAM)
    with recorder:
        losses(net).mean().backward()
        weight, gradient = net.weight, net.weight.grad
        assert gradient is not None
        with torch.no_grad():
            if update == "data":
                weight.data.add_(gradient, alpha=-0.1)
            elif update == "copy_":
                weight.copy_(weight - 0.1 * gradient)
            else:
                weight.sub_(gradient)
    assert places(recorder.trace)[1] == set(range(1, 65))


def test_gradients_of_a_delta_taken_by_hand_are_a_delta_learning() -> None:
    net, recorder = model(), Recorder(STREAM)
    delta = torch.zeros(64, requires_grad=True)
    with recorder:
        logits = net(torch.tensor(STREAM[:-1])).detach() + delta
        torch.autograd.grad(F.cross_entropy(logits, TARGETS), delta)
    assert recorder.trace.by_delta == set(range(1, 65))


def test_what_is_counted_after_it_was_learnt_is_late_and_before_is_not() -> None:
    for train_first in (True, False):
        net, recorder = model(), Recorder(STREAM)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with recorder:
            for step in ("train", "score") if train_first else ("score", "train", "score"):
                if step == "train":
                    losses(net).mean().backward()
                    optimizer.step()
                else:
                    with torch.no_grad():
                        losses(net).sum()
        assert judge(recorder.trace, [], 64)["late"] == (64 if train_first else 0)


def test_losses_of_other_tokens_are_not_taken_for_the_streams() -> None:
    recorder = Recorder(STREAM)
    with recorder, torch.no_grad():
        F.cross_entropy(torch.zeros(64, 64), torch.arange(64))
    assert recorder.trace.events == 0
