"""Methods: functions that the other end may call by name.

The annotations of the function are the schema. They are read once, at registration; what
comes over the wire is decoded straight into them, and what does not fit is refused before
the function runs. A value without an annotation is whatever the wire carries.

Parameters come as an array, as an object, or as both. Each alone is decoded in one go,
into a struct made for the method; both together, ``*args``, and everything that did not fit
go one by one, so that an error can name its parameter.

Two kinds of parameters do not come over the wire as such: one that is annotated as the call
type, and one that is annotated as an iterator, which is a stream of what the caller sends.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from itertools import accumulate
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    overload,
)

import msgspec
from msgspec.inspect import CustomType, Field, Type, type_info

from .errors import InvalidParams, MethodNotFound, PayloadError
from .handlers import Handler, Place
from .protocol.payload import Codec

__all__ = [
    "Contract",
    "Implements",
    "Kind",
    "Method",
    "Methods",
    "Param",
    "check_decodable",
    "check_name",
    "contract",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])
CallT = TypeVar("CallT")

MAX_NAME = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Kind = Literal["positional", "either", "named", "extra"]
"""How a parameter is given: by place, by name, either way, or as one of ``*args``."""

_KINDS: dict[Any, Kind] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.KEYWORD_ONLY: "named",
    inspect.Parameter.VAR_POSITIONAL: "extra",
}


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


# Contracts


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
    """

    def __init__(self, name: str, function: Callable[P, R]) -> None:
        if inspect.iscoroutinefunction(function):
            raise ValueError(f"the contract {name!r} is a signature: write it with a plain def")
        self.name = name
        label = f"the contract {name!r}"
        self.signature = _signature_of(function)
        self.stream, self.returns = _answer_of(self.signature)
        streams = [each for each in self.signature.parameters.values() if _streamed(each)]
        if len(streams) > 1:
            raise ValueError(f"{label} reads more than one stream")
        self._stream = streams[0].name if streams else None
        self.reads = _streamed(streams[0]) if streams else None
        self._others = _without(self.signature, streams)
        self.params = _params_of(self._others, label)
        self.__doc__ = inspect.getdoc(function)

    def __repr__(self) -> str:
        return f"<Contract {self.name}{self.signature}>"

    def split(self, *args: P.args, **kwargs: P.kwargs) -> Given:
        """Return what these arguments are on the wire.

        Raises:
            TypeError: They do not fit the signature.
        """
        bound = self.signature.bind(*args, **kwargs)
        if self._stream is None:
            return Given(bound.args, bound.kwargs)
        items = bound.arguments.pop(self._stream, ())
        others = inspect.BoundArguments(self._others, bound.arguments)
        return Given(others.args, others.kwargs, items)


# One method


class Param(msgspec.Struct, frozen=True):
    """A parameter of a method, as the wire sees it.

    Attributes:
        type: Its annotation, resolved; Any if it has none. For ``*args`` that of each.
    """

    name: str
    type: Any
    required: bool
    kind: Kind


class Method:
    """A function that the other end may call, with the schema its annotations make.

    Attributes:
        name: What it is called by.
        handler: The function, and where it runs. An async generator has the place "loop".
        stream: Whether it yields its answer piece by piece.
        collect: Whether a caller that does not stream gets a list of what it yields.
        reads: Type of the items that the caller sends piece by piece; None if it reads none.
        limit: How many calls of it may be under way; None for any number.
        doc: Its docstring.
        injected: Its parameters that do not come over the wire: the call, the stream it reads.
        params: Its other parameters.
        returns: Type of its result, or of its items; Any if it has no annotation.
        calls: How often it was run.
        failures: How often it raised, also on purpose.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., object],
        *,
        call_type: type,
        on: Place | None = None,
        limit: int | None = None,
        collect: bool = False,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit}: a method needs room for one call")
        plain = _plain(function)
        signature = _signature_of(function)
        label = f"{_label(plain)}()"
        self.name = name
        self.handler = _handler(function, plain, on)
        self.stream = inspect.isasyncgenfunction(plain) or inspect.isgeneratorfunction(plain)
        self.collect = collect
        self.limit = limit
        self.doc = inspect.getdoc(plain) or ""
        self.injected, signature = _without_injected(signature, call_type, label)
        self.reads = _reads(self.injected, self.handler.place, label)
        self.params = _params_of(signature, label)
        self.calls = 0
        self.failures = 0
        yields, self.returns = _answer_of(signature)
        if yields and not self.stream:
            raise ValueError(f"{label} is annotated as a stream, but it does not yield")
        if collect and not self.stream:
            raise ValueError(f"collect=True is for methods that yield: {label} does not")
        for param in self.params:
            check_decodable(param, label)
        self._prepare()

    def __repr__(self) -> str:
        return f"<Method {self.name}({', '.join(param.name for param in self.params)})>"

    def bind(
        self,
        codec: Codec,
        params: msgspec.Raw,
        named: msgspec.Raw,
        call: object = None,
        items: object = None,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments to call the function with; defaults are left to the function.

        Args:
            codec: What `params` and `named` are written in.
            params: An array of the positional parameters; empty for none.
            named: An object of the others; empty for none.
            call: What a parameter of the call type is given, if there is one.
            items: What the parameter that reads a stream is given, if there is one.

        Raises:
            InvalidParams: A parameter is missing, unknown or of another type.
        """
        try:
            args, kwargs = self._bind_at_once(codec, params, named)
        except PayloadError:
            args, kwargs = self._bind_each(codec, params, named)
        for each in self.injected:
            given = call if each.item is None else items
            if each.place is not None and each.place <= len(args):
                args.insert(each.place, given)
            else:
                kwargs[each.name] = given
        return args, kwargs

    def _prepare(self) -> None:
        self._placed = [param for param in self.params if param.kind in ("positional", "either")]
        self._by_name = {p.name: p for p in self.params if p.kind in ("either", "named")}
        self._extra = next((param for param in self.params if param.kind == "extra"), None)
        self._needy = any(param.required for param in self.params)
        needs_names = any(p.required and p.kind == "named" for p in self.params)
        needs_places = any(p.required and p.kind == "positional" for p in self.params)
        self._array = None if self._extra or needs_names else _struct(self._placed, array=True)
        self._object = None if needs_places else _struct(self._by_name.values(), array=False)

    def _bind_at_once(
        self, codec: Codec, params: msgspec.Raw, named: msgspec.Raw
    ) -> tuple[list[Any], dict[str, Any]]:
        if not named:
            if not params and not self._needy:
                return [], {}
            if params and self._array is not None:
                args = [*msgspec.structs.astuple(codec.decode(params, self._array))]
                while args and args[-1] is msgspec.UNSET:
                    args.pop()
                return args, {}
        elif not params and self._object is not None:
            values = msgspec.structs.astuple(codec.decode(named, self._object))
            pairs = zip(self._by_name, values, strict=True)
            return [], {name: value for name, value in pairs if value is not msgspec.UNSET}
        return self._bind_each(codec, params, named)

    def _bind_each(
        self, codec: Codec, params: msgspec.Raw, named: msgspec.Raw
    ) -> tuple[list[Any], dict[str, Any]]:
        items = self._items(codec, params)
        members = self._members(codec, named)
        known = len(self._placed)
        if len(items) > known and self._extra is None:
            raise InvalidParams(self.name, f"at most {known} positional, got {len(items)}")
        given = {param.name for param in self._placed[: len(items)]}
        self._check_names(given, members)
        pairs = zip(self._placed, items, strict=False)
        args = [self._decoded(codec, param, raw) for param, raw in pairs]
        if self._extra is not None:
            args += [self._decoded(codec, self._extra, raw) for raw in items[known:]]
        kwargs = {
            name: self._decoded(codec, self._by_name[name], raw) for name, raw in members.items()
        }
        return args, kwargs

    def _check_names(self, given: set[str], members: Mapping[str, object]) -> None:
        for name in members:
            if name not in self._by_name:
                by_place = any(param.name == name for param in self._placed)
                why = "given by name, but it is positional" if by_place else "unknown"
                raise InvalidParams(self.name, why, parameter=name)
            if name in given:
                raise InvalidParams(self.name, "given twice", parameter=name)
        for param in self.params:
            if param.required and param.name not in given and param.name not in members:
                raise InvalidParams(self.name, "missing", parameter=param.name)

    def _items(self, codec: Codec, params: msgspec.Raw) -> list[msgspec.Raw]:
        if not params:
            return []
        try:
            items: list[msgspec.Raw] = codec.decode(params, list[msgspec.Raw])
            return items
        except PayloadError:
            pass  # what only a lenient codec reads cannot be cut; it is read and written again
        try:
            return [msgspec.Raw(codec.encode(item)) for item in codec.decode(params, list[Any])]
        except PayloadError as exc:
            raise InvalidParams(self.name, f"positional parameters: {_why(exc)}") from exc

    def _members(self, codec: Codec, named: msgspec.Raw) -> dict[str, msgspec.Raw]:
        if not named:
            return {}
        try:
            return codec.members(named)
        except PayloadError as exc:
            raise InvalidParams(self.name, f"named parameters: {_why(exc)}") from exc

    def _decoded(self, codec: Codec, param: Param, raw: msgspec.Raw) -> Any:
        try:
            return codec.decode(raw, param.type)
        except PayloadError as exc:
            raise InvalidParams(self.name, _why(exc), parameter=param.name) from exc


def _why(error: PayloadError) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]


def _handler(function: Callable[..., object], plain: object, on: Place | None) -> Handler:
    if not inspect.isasyncgenfunction(plain):
        return Handler(function, on)
    if on not in (None, "loop"):
        raise ValueError(f"{function!r} is an async generator: it runs on the loop, not {on!r}")
    handler = Handler(function, "inline")  # calling it only makes the generator
    handler.place, handler.inline = "loop", False
    return handler


def _struct(params: Iterable[Param], *, array: bool) -> type[msgspec.Struct]:
    """Make the struct that takes all of `params` in one go, in their order."""
    names = {f"f{index}": param for index, param in enumerate(params)}
    fields: list[Any] = []
    for field, param in names.items():
        optional = (typing.Union[param.type, msgspec.UnsetType], msgspec.UNSET)  # noqa: UP007
        fields.append((field, param.type) if param.required else (field, *optional))
    return msgspec.defstruct(
        "Params",
        fields,
        rename={field: param.name for field, param in names.items()},
        array_like=array,
        forbid_unknown_fields=True,
        kw_only=not array,  # in an object the optional ones may come first
    )


# Reading signatures


def _plain(function: Any) -> Any:
    """Return the function that does the work: of a partial, a bound method, an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function).__call__
    return getattr(function, "__func__", function)


def _label(plain: object) -> str:
    name: str = getattr(plain, "__qualname__", repr(plain))
    return name.rpartition("<locals>.")[2]


def _signature_of(function: Callable[..., object]) -> inspect.Signature:
    """Return its signature with resolved annotations, Any where there is none.

    What a partial has given by name is no parameter any more: nobody overrides it.
    """
    plain = _plain(function)
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
            f"{_label(plain)}(): the annotation {annotation!r} of its {where} "
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


class _Injected(NamedTuple):
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


def _streamed(parameter: inspect.Parameter) -> Any:
    """Return the type of the items if the parameter is a stream, else None."""
    return _item_type(parameter.annotation, _STREAMS)


def _item_type(annotation: Any, of: tuple[type, ...]) -> Any:
    origin = typing.get_origin(annotation) or annotation
    if origin not in of:
        return None
    item = (*typing.get_args(annotation), Any)[0]
    return Any if item is object else item


def _answer_of(signature: inspect.Signature) -> tuple[bool, Any]:
    """Return whether it answers piece by piece, and the type of the pieces or the answer."""
    item = _item_type(signature.return_annotation, _ANSWERS)
    return item is not None, signature.return_annotation if item is None else item


def _without_injected(
    signature: inspect.Signature, call_type: type, label: str
) -> tuple[list[_Injected], inspect.Signature]:
    """Return the parameters that want the call or a stream, and the others."""
    wanted = (call_type, call_type | None)
    parameters = [*signature.parameters.values()]
    calls = [each for each in parameters if each.annotation in wanted]
    streams = [each for each in parameters if _streamed(each) is not None]
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
        _Injected(
            each.name,
            None if each.kind is each.KEYWORD_ONLY else parameters.index(each),
            _streamed(each),
            _item_type(each.annotation, (Iterator,)) is not None,
        )
        for each in mine
    ]
    return injected, _without(signature, mine)


def _without(
    signature: inspect.Signature, parameters: list[inspect.Parameter]
) -> inspect.Signature:
    # An optional Call may stand before required parameters: see to their order only by kind.
    return inspect.Signature(
        [each for each in signature.parameters.values() if each not in parameters],
        return_annotation=signature.return_annotation,
        __validate_parameters__=False,
    )


def _params_of(signature: inspect.Signature, label: str) -> tuple[Param, ...]:
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


def _reads(injected: list[_Injected], place: Place, label: str) -> Any:
    """Return the type of the items of the stream it reads; None if it reads none."""
    for each in injected:
        if each.item is None:
            continue
        if place == "inline":
            raise ValueError(f"{label} runs inline: it cannot wait for what {each.name!r} brings")
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


# All methods of one end


class Methods(Generic[CallT]):
    """The methods of one Server or Client, by name.

    Use it as a decorator: ``@server.method``, ``@server.method("text.upper")``, or
    ``@server.method(a_contract)``. A coroutine runs on the loop; a plain function runs in a
    worker thread, unless it says ``on="inline"`` and never blocks. At most `limit` calls of
    it are under way at once. A parameter that is annotated as the call type is given the
    call itself; a function that implements a contract has it first, or with a default.

    A generator, async or not, is a stream: its callers open it as one. With ``collect=True``
    those that cannot get a list. A parameter that is annotated ``AsyncIterator[T]`` (in a
    thread: ``Iterator[T]``) is what the caller streams to it.
    """

    def __init__(self, call_type: type[CallT]) -> None:
        self._call_type = call_type
        self._methods: dict[str, Method] = {}

    @overload
    def __call__(
        self, what: F, /, *, on: Place | None = ..., limit: int | None = ..., collect: bool = ...
    ) -> F: ...
    @overload
    def __call__(
        self,
        what: str | None = ...,
        /,
        *,
        on: Place | None = ...,
        limit: int | None = ...,
        collect: bool = ...,
    ) -> Callable[[F], F]: ...
    @overload
    def __call__(
        self,
        what: Contract[P, R],
        /,
        *,
        on: Place | None = ...,
        limit: int | None = ...,
        collect: bool = ...,
    ) -> Implements[CallT, P, R]: ...
    def __call__(
        self,
        what: Any = None,
        /,
        *,
        on: Place | None = None,
        limit: int | None = None,
        collect: bool = False,
    ) -> Any:
        """Register a function and return it.

        Raises:
            ValueError: The name is taken or cannot be one, the function does not fit the
                contract, or its parameters cannot come over the wire.
        """
        add = functools.partial(self._add, on=on, limit=limit, collect=collect)
        if isinstance(what, Contract):
            return Implements(what, add)
        if what is None:
            return lambda function: add(_own_name(function), function)
        if isinstance(what, str):
            check_name(what)
            return lambda function: add(what, function)
        return add(_own_name(what), what)

    def _add(
        self,
        name: str,
        function: F,
        of: Contract[..., Any] | None = None,
        *,
        on: Place | None,
        limit: int | None,
        collect: bool,
    ) -> F:
        check_name(name)
        if name in self._methods:
            raise ValueError(f"there is a method {name!r} already")
        method = Method(
            name, function, call_type=self._call_type, on=on, limit=limit, collect=collect
        )
        if of is not None:
            _check_implements(method, of)
        self._methods[name] = method
        return function

    def get(self, name: str) -> Method:
        """Return the method of that name; raise `MethodNotFound` if there is none."""
        method = self._methods.get(name)
        if method is None:
            raise MethodNotFound(name, nearest=self._nearest(name))
        return method

    def _nearest(self, name: str) -> str | None:
        if len(name) > MAX_NAME:  # comparing takes time that grows with its square
            return None
        return next(iter(difflib.get_close_matches(name, self._methods, 1)), None)

    def remove(self, name: str) -> None:
        """Take a method off; raise `ValueError` if there is none of that name."""
        if self._methods.pop(name, None) is None:
            raise ValueError(f"there is no method {name!r}")

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[Method]:
        """Yield the methods, sorted by name."""
        return iter([self._methods[name] for name in sorted(self._methods)])

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._methods)


def _own_name(function: object) -> str:
    if not callable(function):
        raise TypeError(f"{function!r} is no function")
    name: str | None = getattr(function, "__name__", None)
    if name is None:
        raise ValueError(f"{function!r} has no name of its own: give it one")
    return name


class Implements(Generic[CallT, P, R]):
    """The decorator of a function that implements a contract; it returns the function."""

    def __init__(self, of: Contract[P, R], add: Callable[..., Any]) -> None:
        self._of = of
        self._register = add

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload  # P might begin with CallT: then the first one that fits is right, too
    def __call__(  # type: ignore[overload-overlap]  # as said above
        self, function: Callable[Concatenate[CallT, P], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[CallT, P], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[CallT, P], R], /
    ) -> Callable[Concatenate[CallT, P], R]: ...
    def __call__(self, function: Any, /) -> Any:
        """Register the function; raise `ValueError` if it does not fit the contract."""
        return self._register(self._of.name, function, self._of)


def _check_implements(method: Method, of: Contract[..., Any]) -> None:
    """Raise `ValueError` unless every call that fits `of` fits `method`."""
    for fact, what in (("stream", "yields its answer"), ("reads", "reads a stream")):
        if bool(getattr(method, fact)) is not bool(getattr(of, fact)):
            raise ValueError(f"only one of {method!r} and {of!r} {what}")
    asked, own = of.params, method.params
    asked_places = [each for each in asked if each.kind in ("positional", "either")]
    own_places = [each for each in own if each.kind in ("positional", "either")]
    own_extra = any(each.kind == "extra" for each in own)
    taken = {each.name for each in own_places[: len(asked_places)]}
    for index, each in enumerate(asked_places):
        mine = own_places[index] if index < len(own_places) else None
        if mine is None and own_extra and each.kind == "positional":
            continue
        if mine is None or not _takes_place(mine, each):
            raise _misfit(method, of, each)
    named = {each.name: each for each in own if each.kind in ("either", "named")}
    for each in asked:
        if each.kind == "named":
            mine = None if each.name in taken else named.get(each.name)
            if mine is None or (mine.required and not each.required):
                raise _misfit(method, of, each)
            taken.add(each.name)
        elif each.kind == "extra" and (not own_extra or len(own_places) > len(asked_places)):
            raise _misfit(method, of, each)
    for each in own:
        if each.required and each.name not in taken:
            raise ValueError(f"{method!r} needs {each.name!r}, which {of!r} does not give")


def _takes_place(mine: Param, asked: Param) -> bool:
    if mine.required and not asked.required:
        return False
    return asked.kind == "positional" or (mine.kind == "either" and mine.name == asked.name)


def _misfit(method: Method, of: Contract[..., Any], param: Param) -> ValueError:
    return ValueError(f"{method!r} does not take {param.name!r} as {of!r} gives it")
