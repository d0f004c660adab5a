"""An ensemble: models of one shape, trained side by side, whose probabilities are averaged.

Each member starts from a seed of its own and never sees the others; what one overfits, the others
do not (Lakshminarayanan et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import log
from typing import cast

import torch
from torch import Tensor, nn

from niblick.model.lm import NO_FACTORS, LanguageModel
from niblick.model.state import State
from niblick.model.tree import Node
from niblick.plan import make_plan, member_prefix, of_member
from niblick.recipe.model import ModelRecipe

_SEEDS, _APART = 1 << 32, 0x9E3779B1  # seeds that torch tells apart; members are so far apart


def new_model(model: ModelRecipe, *, seed: int | None = 0) -> LanguageModel:
    """The model, or the ensemble, of a recipe's model section; `seed=None`: not initialised."""
    return (Ensemble if model.members > 1 else LanguageModel)(model, seed=seed)


def members_of(model: LanguageModel) -> list[LanguageModel]:
    """The members of an ensemble; of any other model itself alone."""
    return list(model.each) if isinstance(model, Ensemble) else [model]


class Ensemble(LanguageModel):
    """Several LanguageModels as one: the hidden state (B, T, K D) is theirs side by side, a logit
    the logarithm of their mean probability.
    """

    def __init__(self, model: ModelRecipe, *, seed: int | None = 0) -> None:
        """See `LanguageModel`."""
        Node.__init__(self)
        self.recipe, self.plan = model, make_plan(model)
        self.members = nn.ModuleList(
            LanguageModel(plan.model, seed=None if seed is None else (seed + i * _APART) % _SEEDS)
            for i, plan in enumerate(self.plan.members)
        )
        for parameter in self.plan.parameters:
            if not parameter.name.startswith("members."):
                self._share(parameter.name)
        self._modules["members"] = self._modules.pop("members")  # so that shared names come first

    def _share(self, name: str) -> None:
        """Give all members the first one's table, which the ensemble then has by this name."""
        *path, leaf = name.split(".")
        first, *others = (member.get_submodule(".".join(path)) for member in self.each)
        table = cast(nn.Parameter, first._parameters[leaf])
        for node in others:
            node.register_parameter(leaf, table)
        place: nn.Module = self
        for part in path:
            if part not in place._modules:
                place.add_module(part, Node())
            place = place.get_submodule(part)
        place.register_parameter(leaf, table)

    @property
    def each(self) -> Iterator[LanguageModel]:
        """The members in order."""
        return cast(Iterator[LanguageModel], iter(self.members))

    def hidden(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        context: int | None = None,
        keep: bool = False,
        factors: Mapping[str, Tensor] = NO_FACTORS,
    ) -> tuple[Tensor, State | None]:
        """See `LanguageModel.hidden`; `factors` have the member's prefix."""
        parts, states = [], []
        for i, member in enumerate(self.each):
            own = None if state is None else replace(state, tensors=of_member(state.tensors, i))
            hidden, after = member.hidden(
                tokens, own, context=context, keep=keep, factors=of_member(factors, i)
            )
            parts.append(hidden)
            states += [after] if after is not None else []
        return torch.cat(parts, dim=-1), _together(states) if states else None

    def head(self, hidden: Tensor) -> Tensor:
        """ln p of each token, p the members' mean."""
        parts = hidden.chunk(len(self.members), dim=-1)
        rows = [
            member.head(part).float().log_softmax(-1)
            for member, part in zip(self.each, parts, strict=True)
        ]
        return torch.stack(rows).logsumexp(0) - log(len(rows))

    @property
    def dtype(self) -> torch.dtype:
        """See `LanguageModel.dtype`."""
        return next(self.each).dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.each).device

    def empty_state(self, batch: int = 1, *, context: int | None = None) -> State:
        """See `LanguageModel.empty_state`."""
        return _together([member.empty_state(batch, context=context) for member in self.each])


def _together(states: Sequence[State]) -> State:
    """The members' states, which stand at one position, as one; names have the member's prefix."""
    tensors = {
        member_prefix(i) + name: tensor
        for i, state in enumerate(states)
        for name, tensor in state.tensors.items()
    }
    return replace(states[0], tensors=tensors)
