"""Declared: exceptions that cross from one end to the other as themselves.

Both ends declare the class, by the same name. Nothing is pickled, and nothing is looked up
but in the table of this end. What goes over is the name and the *fields*: the parameters of
the class's ``__init__``. A field's value is the attribute of its name; where there is none,
it is the argument in its place, if building the exception again gives the same arguments. A
class without an ``__init__`` in Python has one field, the list of its arguments.

At the other end each field is decoded as its annotation says, and the class is called with
them. What does not fit stays a `RemoteError`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec

from .errors import InterphoneError, PayloadError, RemoteError
from .notes import add_notes, traceback_of
from .protocol.messages import Failure, failure_of
from .protocol.payload import Codec

if TYPE_CHECKING:
    from .signatures import Param

__all__ = ["Declared"]

ErrorT = TypeVar("ErrorT", bound=Exception)

MAX_NAME = 255


class Declared:
    """The exceptions of one Server or Client that cross as themselves, by name.

    Use it as a decorator, ``@server.error`` or ``@server.error("funds.short")``, or call it
    with a class that both ends import: ``server.error(FundsShort)``. An exception goes over as
    the most derived of its classes that is declared.

    Args:
        debug: Whether the traceback of a handler that raised goes over, too.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug
        self._by_name: dict[str, _Declaration] = {}
        self._by_class: dict[type[Exception], _Declaration] = {}

    @overload
    def __call__(self, what: type[ErrorT], /) -> type[ErrorT]: ...
    @overload
    def __call__(self, what: str, /) -> Callable[[type[ErrorT]], type[ErrorT]]: ...
    def __call__(self, what: Any, /) -> Any:
        """Declare a class and return it; its name is its own, unless another is given.

        Raises:
            ValueError: The name or the class is declared already or cannot be, or the fields
                have annotations that cannot come over the wire.
        """
        if isinstance(what, str):
            return lambda of: self._add(what, of)
        return self._add(getattr(what, "__name__", ""), what)

    def _add(self, name: str, of: type[ErrorT]) -> type[ErrorT]:
        _check(name, of)
        if name in self._by_name:
            raise ValueError(f"there is an error {name!r} already")
        if of in self._by_class:
            raise ValueError(f"{of!r} is declared already, as {self._by_class[of].name!r}")
        self._by_name[name] = self._by_class[of] = _Declaration(name, of)
        return of

    def remove(self, name: str) -> None:
        """Take an exception off; raise `ValueError` if there is none of that name."""
        declaration = self._by_name.pop(name, None)
        if declaration is None:
            raise ValueError(f"there is no error {name!r}")
        del self._by_class[declaration.of]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        """Yield the names, sorted."""
        return iter(sorted(self._by_name))

    @property
    def classes(self) -> tuple[type[Exception], ...]:
        """What may be raised here beside an `InterphoneError` because it came over the wire."""
        return tuple(self._by_class)

    # Out

    def told(self, codec: Codec, error: BaseException) -> tuple[Failure, Exception | None]:
        """Return what the asker is told of an exception, and what this side is to hear of it.

        That is None if the handler meant it as an answer: a `RemoteError`, or one declared.
        """
        failure, fault = self._told(codec, error)
        if self.debug:
            failure.traceback = traceback_of(error)
        return failure, fault

    def _told(self, codec: Codec, error: BaseException) -> tuple[Failure, Exception | None]:
        failure = failure_of(error)
        if not isinstance(error, Exception):
            if failure.kind == "CancelledError":  # asyncio's, which not everybody here imports
                failure.message = "the handler was cancelled"
            return failure, _fault(error)
        declaration = self._declaration_of(error)
        if declaration is None:
            return failure, None if isinstance(error, RemoteError) else error
        try:
            failure.data = declaration.taken_apart(error)
            codec.encode(failure.data)
        except Exception as exc:  # its properties and its `__init__` are user code
            failure.data = None
            fault = PayloadError(f"{declaration.name} cannot cross as itself: {exc}")
            fault.__cause__ = error
            return failure, fault
        failure.code, failure.kind = "declared", declaration.name
        return failure, None

    def _declaration_of(self, error: Exception) -> _Declaration | None:
        known = (self._by_class.get(each) for each in type(error).__mro__)
        return next(filter(None, known), None)

    # In

    def own(self, codec: Codec, error: RemoteError) -> Exception:
        """Return the exception that was declared here by the name of a remote one, if it fits.

        Everything else is returned as it is.
        """
        declaration = self._by_name.get(error.kind) if error.declared else None
        if declaration is None:
            return error
        try:
            own = declaration.put_together(codec, error.data)
            add_notes(own, error.notes, error.traceback)
        except Exception:  # it does not fit, or its `__init__`, which is user code, says so
            return error
        return own if isinstance(own, declaration.of) else error


def _check(name: str, of: object) -> None:
    if not isinstance(of, type) or not issubclass(of, Exception):
        raise ValueError(f"{of!r} is no class of exceptions")
    if not name or len(name.encode()) > MAX_NAME:
        raise ValueError(f"the name of an error has 1 to {MAX_NAME} bytes: {name[:40]!r}")
    if of is Exception:
        raise ValueError("every exception is an Exception: declare those you mean")
    if issubclass(of, StopIteration | StopAsyncIteration):
        raise ValueError(f"no coroutine can raise {of.__name__}")
    if of.__module__ == InterphoneError.__module__:
        raise ValueError(f"{of.__name__} is interphone's own, and means something else here")


def _fault(error: BaseException) -> Exception:
    fault = RuntimeError(f"the handler raised {type(error).__name__}")
    fault.__cause__ = error
    return fault


# One class


class _Declaration:
    """One class of exceptions: how it is taken apart, and put together again.

    Attributes:
        name: What both ends call it.
        of: The class.
        fields: The parameters of its `__init__`, and the attributes that keep them; None if it
            has none of its own.
    """

    def __init__(self, name: str, of: type[Exception]) -> None:
        self.name = name
        self.of = of
        self.fields = _fields_of(of) if isinstance(of.__init__, FunctionType) else None
        self._shape: Any = list[Any] if self.fields is None else _shape(self.fields)

    def taken_apart(self, error: Exception) -> dict[str, Any] | list[Any]:
        """Return the fields of an exception, or its arguments.

        Raises:
            TypeError: A field is neither an attribute nor an argument.
        """
        if self.fields is None:
            return list(error.args)
        values: dict[str, Any] = {}
        by_place = False
        for place, (param, attribute) in enumerate(self.fields):
            if hasattr(error, attribute):
                values[param.name] = getattr(error, attribute)
            elif place < len(error.args):
                values[param.name], by_place = error.args[place], True
            elif param.required:
                raise TypeError(f"it has no attribute {attribute!r}")
        if by_place and self._made(values).args != error.args:
            raise TypeError("its __init__ keeps neither attributes nor its arguments")
        return values

    def put_together(self, codec: Codec, data: object) -> Exception:
        """Return an exception with these fields; raise anything if they do not fit."""
        fields = codec.decode(codec.encode(data), self._shape)
        if isinstance(fields, list):
            return self.of(*fields)
        names = [param.name for param, _ in self.fields or ()]
        pairs = zip(names, msgspec.structs.astuple(fields), strict=True)
        return self._made({name: value for name, value in pairs if value is not msgspec.UNSET})

    def _made(self, values: dict[str, Any]) -> Exception:
        named, places = dict(values), []
        for param, _ in self.fields or ():  # by place: what is given by name is not in `args`
            if param.kind == "named" or param.name not in named:
                break
            places.append(named.pop(param.name))
        return self.of(*places, **named)


def _fields_of(of: type[Exception]) -> tuple[tuple[Param, str], ...]:
    # Not at the top: 5 ms, and who declares nothing imports this, too.
    import inspect

    from .signatures import Param, check_decodable

    init: Any = of.__init__
    label = f"{of.__qualname__}.__init__()"
    _, *parameters = inspect.signature(init).parameters.values()
    hints = _hints_of(of, init)
    named_otherwise = {each.alias: each.name for each in getattr(of, "__attrs_attrs__", ())}
    fields = []
    for each in parameters:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise ValueError(f"{label}: '{each}' has no name on the wire: name what may be given")
        attribute = named_otherwise.get(each.name, each.name)
        if hasattr(BaseException, attribute):
            raise ValueError(f"{label}: every exception has {attribute!r}: name it otherwise")
        hint = hints.get(each.name, hints.get(attribute))
        if hint is None and each.annotation is not each.empty:
            raise ValueError(f"{label}: the annotation {each.annotation!r} cannot be resolved")
        param = Param(
            name=each.name,
            type=Any if hint in (None, object) else hint,
            required=each.default is each.empty,
            kind="named" if each.kind is each.KEYWORD_ONLY else "either",
        )
        check_decodable(param, label)
        fields.append((param, attribute))
    return tuple(fields)


def _hints_of(of: type[Exception], init: Any) -> dict[str, Any]:
    """Return the annotations that can be resolved; they are user code, and may fail in any way."""
    for place in (init, of):  # an `__init__` that attrs made does not know its class's module
        with suppress(Exception):
            return typing.get_type_hints(place, include_extras=True)
    return {}


def _shape(fields: tuple[tuple[Param, str], ...]) -> type[msgspec.Struct]:
    """Make the struct that takes all fields; more than these may come from a newer end."""
    names = {f"f{index}": param for index, (param, _) in enumerate(fields)}
    members: list[Any] = [
        (name, param.type)
        if param.required
        else (name, typing.Union[param.type, msgspec.UnsetType], msgspec.UNSET)  # noqa: UP007
        for name, param in names.items()
    ]
    rename = {name: param.name for name, param in names.items()}
    return msgspec.defstruct("Fields", members, rename=rename, kw_only=True)
