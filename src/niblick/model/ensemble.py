"""An ensemble: models of one shape, trained side by side, whose probabilities are averaged.

Each member starts from a seed of its own and never sees the others; what one overfits, the others
do not (Lakshminarayanan et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log
from typing import cast

import torch
from torch import Tensor, nn

from niblick.model.lm import NO_FACTORS, LanguageModel
from niblick.model.state import State
from niblick.model.tree import Node
from niblick.plan import make_plan, member_prefix, of_member
from niblick.recipe.model import ModelRecipe

# Apart; that of the first member is the recipe's. torch's generators take 32 bits of a seed.
_SEEDS, _BITS = 0x9E3779B1, 0xFFFFFFFF


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
            LanguageModel(plan.model, seed=None if seed is None else seed + i * _SEEDS & _BITS)
            for i, plan in enumerate(self.plan.members)
        )
        for name in [p.name for p in self.plan.parameters if p.name not in dict(self._own)]:
            self._share(name)
        self._modules["members"] = self._modules.pop("members")  # so that shared names come first

    @property
    def _own(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters(remove_duplicate=False)

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
        found, after = [], None
        for i, member in enumerate(self.each):
            prefix = member_prefix(i)
            part = None if state is None else state.under(prefix)
            hidden, new = member.hidden(
                tokens, part, context=context, keep=keep, factors=of_member(factors, i)
            )
            found.append(hidden)
            if new is not None:
                after = new.within(prefix) if after is None else after.joined(new.within(prefix))
        return torch.cat(found, dim=-1), after

    def head(self, hidden: Tensor) -> Tensor:
        """ln p of each token, p the members' mean."""
        parts = hidden.chunk(len(self.members), dim=-1)
        rows = [
            member.head(part).float().log_softmax(-1)
            for member, part in zip(self.each, parts, strict=True)
        ]
        mean = torch.stack(rows).logsumexp(0) - log(len(rows))
        return mean.to(hidden.dtype) if hidden.dtype is torch.float64 else mean

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
        parts = [member.empty_state(batch, context=context) for member in self.each]
        first, *rest = (part.within(member_prefix(i)) for i, part in enumerate(parts))
        for part in rest:
            first = first.joined(part)
        return first
