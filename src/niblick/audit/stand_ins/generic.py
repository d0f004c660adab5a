"""An object that takes the place of anything: called, indexed, subclassed, used as a decorator or a
number.

It lets definitions at import time go through (`@triton.jit`, `tl.constexpr`, `class
Net(mlx.nn.Module)`); it computes nothing, and says what it stands for when it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Self

from niblick.audit.stand_ins.attention import FUNCTIONS


class StandInBase:
    """What a class gets for a base where it names a stand-in."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


class StandIn:
    """A placeholder for the object that `name` (dotted) names in a package that is not here."""

    def __init__(self, name: str) -> None:
        self.__dict__["_stands_for"] = name
        self.__dict__["__name__"] = name.rpartition(".")[2]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return resolve(self._stands_for, name)

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        """Passes a lone function or class through, as a decorator would; else another stand-in."""
        lone = arguments[0] if len(arguments) == 1 else None
        if isinstance(lone, FunctionType | type | staticmethod):
            return lone
        return StandIn(f"{self._stands_for}()")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (StandInBase,) if not any(isinstance(base, type) for base in bases) else ()

    def __instancecheck__(self, _: Any) -> bool:
        return False

    def __subclasscheck__(self, _: Any) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<stand-in for {self._stands_for}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __int__(self) -> int:
        return 1

    __index__ = __int__

    def __float__(self) -> float:
        return 1.0

    def __hash__(self) -> int:
        return hash(self._stands_for)

    def __eq__(self, other: object) -> bool:
        return self is other

    def _again(self, *_: Any) -> StandIn:
        return self

    __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = (
        _again
    )
    __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = (
        __neg__
    ) = _again
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __lshift__ = __rshift__ = __matmul__ = _again

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def _less(self, _: Any) -> bool:
        return False

    __lt__ = __gt__ = _less

    def _at_least(self, _: Any) -> bool:
        return True

    __le__ = __ge__ = _at_least


class StandInModule(ModuleType):
    """A module of an absent package; it is a package too, so that any submodule can be imported
    from it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, f"Stand-in for {name}, which is not installed here.")
        self.__path__: list[str] = []
        self.__version__ = "99.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        value = resolve(self.__name__, name)
        setattr(self, name, value)
        return value


def _get_kernel(name: str = "kernel", *_: Any, **__: Any) -> StandInModule:
    return StandInModule(f"kernels.{name}")


def _ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


def _next_power_of_2(n: int) -> int:
    return 1 << max(int(n) - 1, 0).bit_length()


_WORKING = {
    **FUNCTIONS,
    "get_kernel": _get_kernel,
    "has_kernel": lambda *_, **__: True,
    "cdiv": _ceil_divide,
    "next_power_of_2": _next_power_of_2,
}


def resolve(owner: str, name: str) -> Any:
    """What `owner.name` gives: a function that works on a CPU where there is one, else a
    stand-in.
    """
    return _WORKING[name] if name in _WORKING else StandIn(f"{owner}.{name}")
