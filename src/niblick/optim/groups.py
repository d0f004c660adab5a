"""Which optimizer a parameter belongs to: a total function of its role, checked when the module
loads.
"""

from __future__ import annotations

from enum import StrEnum

from niblick.plan import Role


class Group(StrEnum):
    """One optimizer setting: Muon on matrices, Adam on embeddings, Adam on control values."""

    MUON = "muon"
    EMBEDDING = "embedding"
    SCALAR = "scalar"


_GROUPS: dict[Role, Group] = {
    Role.MATRIX: Group.MUON,
    Role.HEAD: Group.MUON,
    Role.EMBEDDING: Group.EMBEDDING,
    Role.CONVOLUTION: Group.SCALAR,
    Role.VECTOR: Group.SCALAR,
    Role.SCALAR: Group.SCALAR,
}
assert set(_GROUPS) == set(Role), "every role needs an optimizer group"


def group_of(role: Role) -> Group:
    """The optimizer group of a parameter with this role (systems.md sections 1-3, "training")."""
    return _GROUPS[role]
