"""Which optimizer group a parameter belongs to: a total function of its role and the recipe.

Groups are what learning rates and optimizers are chosen by. The compute precision of a parameter
follows from its role alone, whatever its group.
"""

from __future__ import annotations

from enum import StrEnum

from niblick.errors import TrainingError
from niblick.plan import Parameter, Role
from niblick.recipe.schema import TrainingRecipe


class Group(StrEnum):
    """Parameters that share one optimizer and one learning rate, in the order of the buffers."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    CONTROL = "control"
    HEAD = "head"  # an untied head with a rate of its own; empty unless the recipe asks for it


_GROUPS: dict[Role, Group] = {
    Role.MATRIX: Group.MATRIX,
    Role.HEAD: Group.MATRIX,
    Role.EMBEDDING: Group.EMBEDDING,
    Role.CONVOLUTION: Group.CONTROL,
    Role.VECTOR: Group.CONTROL,
    Role.SCALAR: Group.CONTROL,
}
LOW_PRECISION = frozenset({Role.MATRIX, Role.HEAD})
"""Roles whose compute copies are in the training precision; all others are float32."""
assert set(_GROUPS) == set(Role), "every role needs an optimizer group"


def group_of(parameter: Parameter, training: TrainingRecipe | None = None) -> Group:
    """The optimizer group of a parameter (systems.md sections 1-3, "training", and 7).

    Raises `TrainingError` where the recipe puts a tensor into Muon that is no matrix.
    """
    if training is not None and parameter.name in training.muon.include:
        if len(parameter.shape) != 2:
            raise TrainingError(
                f"training.muon.include: {parameter.name!r} has shape {parameter.shape}; Muon takes"
                " matrices only"
            )
        return Group.MATRIX
    if training is not None and training.adam.head_lr is not None and parameter.component == "head":
        return Group.HEAD
    return _GROUPS[parameter.role]
