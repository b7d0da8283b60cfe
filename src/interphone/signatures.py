"""Signatures: what the annotations of a function say about its parameters and its result.

They are read once, when a function is registered. Two kinds of parameters do not come over
the wire as such: one that is annotated as the call type, and one that is annotated as an
iterator, which is a stream of what the caller sends.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
)
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.inspect import CustomType, Field, Type, type_info

if TYPE_CHECKING:
    from .handlers import Place

__all__ = [
    "Injected",
    "Kind",
    "Param",
    "answer_of",
    "check_decodable",
    "item_of",
    "label_of",
    "params_of",
    "plain_function",
    "read_by",
    "signature_of",
    "without",
    "without_injected",
]

Kind = Literal["positional", "either", "named", "extra"]
"""How a parameter is given: by place, by name, either way, or as one of ``*args``."""

_KINDS: dict[Any, Kind] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.KEYWORD_ONLY: "named",
    inspect.Parameter.VAR_POSITIONAL: "extra",
}


class Param(msgspec.Struct, frozen=True):
    """A parameter of a method, as the wire sees it.

    Attributes:
        type: Its annotation, resolved; Any if it has none. For ``*args`` that of each.
    """

    name: str
    type: Any
    required: bool
    kind: Kind


def plain_function(function: Any) -> Any:
    """Return the function that does the work: of a partial, a bound method, an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function).__call__
    return getattr(function, "__func__", function)


def label_of(plain: object) -> str:
    """Return what errors call a function."""
    name: str = getattr(plain, "__qualname__", repr(plain))
    return name.rpartition("<locals>.")[2]


def signature_of(function: Callable[..., object]) -> inspect.Signature:
    """Return its signature with resolved annotations, Any where there is none.

    What a partial has given by name is no parameter any more: nobody overrides it.
    """
    plain = plain_function(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{function!r} has no signature to read") from exc
    fixed = function.keywords if isinstance(function, functools.partial) else {}
    around = _names_around(plain)
    parameters = [
        each.replace(annotation=_resolved(plain, each.annotation, f"parameter {name!r}", around))
        for name, each in signature.parameters.items()
        if name not in fixed
    ]
    returns = _resolved(plain, signature.return_annotation, "result", around)
    return signature.replace(parameters=parameters, return_annotation=returns)


def _resolved(plain: Any, annotation: Any, where: str, around: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(
        __annotations__={"it": annotation}, __type_params__=getattr(plain, "__type_params__", ())
    )
    names = getattr(inspect.unwrap(plain), "__globals__", {})
    try:
        return typing.get_type_hints(holder, names, around, include_extras=True)["it"]
    except Exception as exc:  # an annotation is user code, and may fail in any way
        raise ValueError(
            f"{label_of(plain)}(): the annotation {annotation!r} of its {where} "
            f"cannot be resolved when it is registered: {exc}"
        ) from exc


def _names_around(plain: Any) -> dict[str, Any]:
    """Return the locals of the functions that `plain` is being defined in, inner ones winning."""
    outer = getattr(plain, "__qualname__", "").split(".<locals>.")[:-1]
    enclosing = {*accumulate(outer, lambda inside, name: f"{inside}.<locals>.{name}")}
    names: dict[str, Any] = {}
    module = getattr(plain, "__globals__", None)
    frame = inspect.currentframe() if enclosing else None
    while frame is not None:
        if frame.f_globals is module and frame.f_code.co_qualname in enclosing:
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names


class Injected(msgspec.Struct, frozen=True):
    """A parameter that does not come over the wire as such.

    Attributes:
        place: Where it stands; None if it is given by name.
        item: Type of the items, if it reads a stream; None if it wants the call.
        plain: Whether it is annotated as a plain iterator, which blocks.
    """

    name: str
    place: int | None
    item: Any
    plain: bool


_STREAMS = (AsyncIterator, AsyncIterable, Iterator)
_ANSWERS = (AsyncIterator, AsyncIterable, AsyncGenerator, Iterator, Generator)


def item_of(parameter: inspect.Parameter) -> Any:
    """Return the type of the items if the parameter is a stream, else None."""
    return _item_type(parameter.annotation, _STREAMS)


def _item_type(annotation: Any, of: tuple[type, ...]) -> Any:
    origin = typing.get_origin(annotation) or annotation
    if origin not in of:
        return None
    item = (*typing.get_args(annotation), Any)[0]
    if item is None:  # as in AsyncIterator[None]
        return type(None)
    return Any if item is object else item


def answer_of(signature: inspect.Signature) -> tuple[bool, Any]:
    """Return whether it answers piece by piece, and the type of the pieces or the answer."""
    item = _item_type(signature.return_annotation, _ANSWERS)
    return item is not None, signature.return_annotation if item is None else item


def without_injected(
    signature: inspect.Signature, call_type: type, label: str
) -> tuple[list[Injected], inspect.Signature]:
    """Return the parameters that want the call or a stream, and the others."""
    wanted = (call_type, call_type | None)
    parameters = [*signature.parameters.values()]
    calls = [each for each in parameters if each.annotation in wanted]
    streams = [each for each in parameters if item_of(each) is not None]
    mine = [each for each in parameters if each in calls or each in streams]
    for each in mine:
        if len(calls if each in calls else streams) > 1 or each.kind in (
            each.VAR_POSITIONAL,
            each.VAR_KEYWORD,
        ):
            what = f"its {call_type.__name__}" if each in calls else "a stream"
            raise ValueError(f"{label} asks for {what} more than once")
        others = [other for other in parameters[: parameters.index(each)] if other not in mine]
        if each.kind is each.POSITIONAL_ONLY and any(
            other.default is not other.empty for other in others
        ):
            raise ValueError(
                f"{label}: {each.name!r} stands behind a parameter that may be left out"
            )
    injected = [
        Injected(
            each.name,
            None if each.kind is each.KEYWORD_ONLY else parameters.index(each),
            item_of(each),
            _item_type(each.annotation, (Iterator,)) is not None,
        )
        for each in mine
    ]
    return injected, without(signature, mine)


def without(signature: inspect.Signature, parameters: list[inspect.Parameter]) -> inspect.Signature:
    """Return the signature without some of its parameters."""
    # An optional Call may stand before required parameters: see to their order only by kind.
    return inspect.Signature(
        [each for each in signature.parameters.values() if each not in parameters],
        return_annotation=signature.return_annotation,
        __validate_parameters__=False,
    )


def params_of(signature: inspect.Signature, label: str) -> tuple[Param, ...]:
    """Return the parameters as the wire sees them; raise `ValueError` for ``**kwargs``."""
    return tuple(_param_of(each, label) for each in signature.parameters.values())


def _param_of(parameter: inspect.Parameter, label: str) -> Param:
    if parameter.kind is parameter.VAR_KEYWORD:
        raise ValueError(f"{label}: the wire has no '**{parameter.name}': name what may be given")
    kind = _KINDS[parameter.kind]
    required = parameter.default is parameter.empty and kind != "extra"
    annotation = parameter.annotation
    # An object is anything; said so, msgspec reads it faster, and allows it in unions.
    if annotation is object or (_is_union(annotation) and object in typing.get_args(annotation)):
        annotation = Any
    return Param(name=parameter.name, type=annotation, required=required, kind=kind)


def _is_union(annotation: object) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def read_by(injected: list[Injected], place: Place, label: str) -> Any:
    """Return the type of the items of the stream it reads; None if it reads none."""
    for each in injected:
        if each.item is None:
            continue
        if place in ("inline", "host"):
            where = "inline" if place == "inline" else "in the host's thread"
            raise ValueError(f"{label} runs {where}: it cannot wait for what {each.name!r} brings")
        if each.plain is not (place == "thread"):
            wanted = "AsyncIterator" if each.plain else "Iterator"
            where = "a thread" if place == "thread" else "the loop"
            raise ValueError(f"{label} runs on {where}: annotate {each.name!r} as {wanted}")
        check_decodable(Param(each.name, each.item, True, "named"), label)
        return each.item
    return None


def check_decodable(param: Param, label: str) -> None:
    """Raise `ValueError` if no value of its type can come over the wire."""
    try:
        hash(param.type)
        msgspec.json.Decoder(param.type)
        msgspec.msgpack.Decoder(param.type)
        foreign = _foreign(type_info(param.type))
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{label}: no value can come as its {param.name!r}: {exc}") from exc
    if foreign is not None:
        raise ValueError(
            f"{label}: no value can come as its {param.name!r}: "
            f"{foreign.__module__}.{foreign.__qualname__} has no form on the wire"
        )


def _foreign(kind: Type) -> type | None:
    """Return a class in `kind` that msgspec does not know how to make, if there is one."""
    todo: list[Any] = [kind]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if isinstance(item, CustomType) and item.cls is not object:
            return item.cls
        if isinstance(item, tuple):
            todo += item
        elif isinstance(item, Type | Field) and id(item) not in seen:
            seen.add(id(item))
            todo += msgspec.structs.astuple(item)
    return None
