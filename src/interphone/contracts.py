"""Contracts: signatures of methods that both ends share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

__all__ = ["MAX_NAME", "Contract", "Given", "as_named", "check_name", "contract", "name_of"]

P = ParamSpec("P")
R = TypeVar("R")

MAX_NAME = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_name(name: str) -> None:
    """Raise `ValueError` if a method cannot be called that."""
    if not name:
        raise ValueError("a method needs a name")
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"the name of a method is longer than {MAX_NAME} bytes: {name[:40]!r}…")
    if _CONTROL.search(name):
        raise ValueError(f"the name of a method has a control character: {name!r}")
    if name.startswith("$"):
        raise ValueError(f"names that begin with '$' are reserved: {name!r}")


def contract(name: str) -> Callable[[Callable[P, R]], Contract[P, R]]:
    """Make a signature into a `Contract` that both ends import.

        @contract("user.get")
        def get_user(id: int, *, full: bool = False) -> User:
            raise NotImplementedError

    The body never runs, but mypy refuses an empty one.

    Raises:
        ValueError: The name or the signature cannot be a method's.
    """
    check_name(name)
    return lambda signature: Contract(name, signature)


class Given(NamedTuple):
    """The arguments of one call: by place, by name, and what is sent piece by piece."""

    params: tuple[Any, ...]
    named: dict[str, Any]
    items: Any = None


class Contract(Generic[P, R]):
    """The signature of a method: the server implements it, the client calls it.

    Attributes:
        name: Name of the method.
        signature: Its parameters and what it returns, with resolved annotations.
        returns: Type of its result, or of its items; Any if the signature does not tell.
        stream: Whether it answers piece by piece: it returns an ``AsyncIterator``.
        reads: Type of the items it is sent piece by piece; None if it has no such parameter.
        stream_parameter: Name of that parameter, or None.
    """

    def __init__(self, name: str, function: Callable[P, R]) -> None:
        # Not at the top: 5 ms, and who has no contracts imports this, too.
        import inspect

        from .signatures import answer_of, item_of, params_of, signature_of, without

        if inspect.iscoroutinefunction(function):
            raise ValueError(f"the contract {name!r} is a signature: write it with a plain def")
        self.name = name
        label = f"the contract {name!r}"
        self.signature = signature_of(function)
        self.stream, self.returns = answer_of(self.signature)
        streams = [each for each in self.signature.parameters.values() if item_of(each)]
        if len(streams) > 1:
            raise ValueError(f"{label} reads more than one stream")
        self.stream_parameter = streams[0].name if streams else None
        self.reads = item_of(streams[0]) if streams else None
        self._others = without(self.signature, streams)
        self.params = params_of(self._others, label)
        self.__doc__ = inspect.getdoc(function)

    def __repr__(self) -> str:
        return f"<Contract {self.name}{self.signature}>"

    def split(self, *args: P.args, **kwargs: P.kwargs) -> Given:
        """Return what these arguments are on the wire.

        Raises:
            TypeError: They do not fit the signature.
        """
        bound = self.signature.bind(*args, **kwargs)
        if self.stream_parameter is None:
            return Given(bound.args, bound.kwargs)
        items = bound.arguments.pop(self.stream_parameter, ())
        others = type(bound)(self._others, bound.arguments)
        return Given(others.args, others.kwargs, items)


def as_named(method: object, params: tuple[object, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Peer.call_named` for a call by name or contract."""
    if not isinstance(method, Contract):
        return {"method": name_of(method), "params": params, **kwargs}
    if method.stream:
        raise TypeError(f"{method!r} answers piece by piece: open it by stream()")
    return {
        "method": method.name,
        "returns": method.returns,
        **method.split(*params, **kwargs)._asdict(),
    }


def name_of(method: object) -> str:
    """Return the name that a method was given by; raise `TypeError` if it is none."""
    if not isinstance(method, str):
        raise TypeError(f"a method is given by its name or contract, not by {method!r}")
    return method
