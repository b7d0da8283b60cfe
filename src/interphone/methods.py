"""Methods: functions that the other end may call by name.

The annotations of the function are the schema. They are read once, at registration; what
comes over the wire is decoded straight into them, and what does not fit is refused before
the function runs. A value without an annotation is whatever the wire carries.

Parameters come as an array, as an object, or as both. Each alone is decoded in one go,
into a struct made for the method; both together, ``*args``, and everything that did not fit
go one by one, so that an error can name its parameter.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import msgspec

from .contracts import MAX_NAME, Contract, check_name
from .errors import InvalidParams, MethodNotFound, PayloadError
from .handlers import Handler, Place
from .protocol.payload import Codec
from .protocol.pooled import asked_for
from .signatures import (
    Param,
    answer_of,
    check_decodable,
    label_of,
    params_of,
    plain_function,
    read_by,
    signature_of,
    without_injected,
)

__all__ = ["Implements", "Method", "Methods"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])
CallT = TypeVar("CallT")
OtherCallT = TypeVar("OtherCallT")


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
        prompt: Whether it may run at once, knowing nothing but its parameters.
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
        hosted: bool = False,
        make_call: Callable[[Any], object] | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit}: a method needs room for one call")
        plain = plain_function(function)
        signature = signature_of(function)
        label = f"{label_of(plain)}()"
        self.name = name
        self.handler = _handler(function, plain, on, hosted)
        self.stream = inspect.isasyncgenfunction(plain) or inspect.isgeneratorfunction(plain)
        self.collect = collect
        self.limit = limit
        self.doc = inspect.getdoc(plain) or ""
        self.injected, signature = without_injected(signature, call_type, label)
        self._make_call = make_call
        self.reads = read_by(self.injected, self.handler.place, label)
        self.params = params_of(signature, label)
        self.prompt = self.handler.inline and not (self.stream or self.reads or self.injected)
        self.calls = 0
        self.failures = 0
        yields, self.returns = answer_of(signature)
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
            given = items
            if each.item is None:
                given = call if self._make_call is None else self._make_call(call)
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
        # What one parameter sees where it is, another may want as a copy.
        apart = len(self.params) > 1 and any(asked_for(param.type).views for param in self.params)
        by_place, by_name = not (self._extra or needs_names), not needs_places
        self._array = _struct(self._placed, array=True) if by_place and not apart else None
        self._object = (
            _struct(self._by_name.values(), array=False) if by_name and not apart else None
        )

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
            return codec.items(params)
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


def _handler(
    function: Callable[..., object], plain: object, on: Place | None, hosted: bool
) -> Handler:
    if not inspect.isasyncgenfunction(plain):
        return Handler(function, on, hosted=hosted)
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


class Methods(Generic[CallT]):
    """The methods of one Server or Client, by name.

    Use it as a decorator: ``@server.method``, ``@server.method("text.upper")``, or
    ``@server.method(a_contract)``. A coroutine runs on the loop; a plain function runs in a
    worker thread, or in the host's where there is one, unless it says ``on="inline"`` and
    never blocks. At most `limit` calls of it are under way at once. A parameter that is
    annotated as the call type is given the call itself; a function that implements a contract
    has it first, or with a default.

    A generator, async or not, is a stream: its callers open it as one. With ``collect=True``
    those that cannot get a list. A parameter that is annotated ``AsyncIterator[T]`` (in a
    thread: ``Iterator[T]``) is what the caller streams to it.
    """

    def __init__(self, call_type: type[CallT], *, hosted: bool = False) -> None:
        self._call_type = call_type
        self._hosted = hosted
        self._make_call: Callable[[Any], object] | None = None
        self._methods: dict[str, Method] = {}

    def inject(
        self, call_type: type[OtherCallT], make: Callable[[CallT], OtherCallT]
    ) -> Methods[OtherCallT]:
        """Give methods another call, made of theirs, and take no coroutines.

        For the blocking end of this Server or Client, before anything is registered.
        """
        methods: Any = self
        methods._call_type, methods._make_call = call_type, make
        other: Methods[OtherCallT] = methods
        return other

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
            name,
            function,
            call_type=self._call_type,
            on=on,
            limit=limit,
            collect=collect,
            hosted=self._hosted,
            make_call=self._make_call,
        )
        if self._make_call is not None and method.handler.place == "loop":
            raise ValueError(f"{function!r} is a coroutine function: a blocking end cannot run it")
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
        import difflib

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
