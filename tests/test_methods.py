"""Methods: registration, the schema in the annotations, and what is refused."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from threading import Thread
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.contracts import Contract, check_name, contract
from interphone.errors import InvalidParams, MethodNotFound
from interphone.methods import Method, Methods
from interphone.protocol.payload import Codec, Json, MessagePack
from interphone.signatures import Param

NONE = msgspec.Raw()
CODECS: list[Codec] = [Json(), MessagePack(), Json(lenient=True), MessagePack(lenient=True)]

every_codec = pytest.mark.parametrize(
    "codec", CODECS, ids=["json", "msgpack", "lenient-json", "lenient-msgpack"]
)


class Call:
    pass


class User(msgspec.Struct):
    id: int
    tags: list[str] = []


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Options(TypedDict):
    deep: bool
    depth: NotRequired[int]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Foreign:
    pass


@pytest.fixture
def methods() -> Methods[Call]:
    return Methods(Call)


def method_of(function: Callable[..., object]) -> Method:
    return Method("it", function, call_type=Call)


def bound(
    function: Callable[..., object],
    *params: object,
    codec: Codec = CODECS[0],
    named: dict[str, object] | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    array = msgspec.Raw(codec.encode(params)) if params else NONE
    members = msgspec.Raw(codec.encode(named)) if named is not None else NONE
    return method_of(function).bind(codec, array, members)


def refused(
    function: Callable[..., object],
    *params: object,
    codec: Codec = CODECS[0],
    named: dict[str, object] | None = None,
) -> tuple[str | None, str]:
    with pytest.raises(InvalidParams) as caught:
        bound(function, *params, codec=codec, named=named)
    assert caught.value.method == "it"
    return caught.value.parameter, caught.value.why


# Names


@pytest.mark.parametrize("name", ["a", "text.upper", "é" * 127, "with space", "a$"])
def test_name_is_accepted(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "é" * 128, "a\nb", "\x7f", "a\x85", "$info", "\ud800"])
def test_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        check_name(name)


# Registering


def test_function_is_registered_under_its_own_name(methods: Methods[Call]) -> None:
    @methods
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    method = methods.get("add")
    assert method.handler.function is add
    assert method.doc == "Add."
    assert method.returns is int


def test_decorator_returns_the_function(methods: Methods[Call]) -> None:
    def add() -> None: ...

    assert methods(add) is add
    assert methods("b")(add) is add
    assert methods("c", on="inline")(add) is add


def test_explicit_name_wins(methods: Methods[Call]) -> None:
    @methods("text.upper")
    def upper(text: str) -> str:
        return text.upper()

    assert "text.upper" in methods
    assert "upper" not in methods


def test_options_are_taken_in_each_form(methods: Methods[Call]) -> None:
    @contract("c")
    def signature() -> None: ...

    def plain() -> None: ...

    methods(plain, on="inline", limit=1)
    methods("a", on="inline", limit=1)(plain)
    methods(signature, on="inline", limit=1)(plain)

    @methods(on="inline", limit=1)
    def bare() -> None: ...

    assert [method.name for method in methods] == ["a", "bare", "c", "plain"]
    assert {(method.handler.place, method.limit) for method in methods} == {("inline", 1)}


def test_place_follows_the_kind_of_function(methods: Methods[Call]) -> None:
    async def waits() -> None: ...
    def blocks() -> None: ...
    async def streams() -> AsyncIterator[int]:
        yield 1

    def steps() -> Iterator[int]:
        yield 1

    places = {f.__name__: method_of(f).handler.place for f in (waits, blocks, streams, steps)}

    assert places == {"waits": "loop", "blocks": "thread", "streams": "loop", "steps": "thread"}


def test_async_generator_runs_on_the_loop_only() -> None:
    async def streams() -> AsyncIterator[int]:
        yield 1

    assert Method("it", streams, call_type=Call, on="loop").handler.place == "loop"
    with pytest.raises(ValueError, match="async generator"):
        Method("it", streams, call_type=Call, on="thread")


def test_generators_are_streams() -> None:
    async def streams() -> AsyncIterator[int]:
        yield 1

    def steps(first: int) -> Iterator[int]:
        yield first

    def plain() -> list[int]:
        return []

    assert method_of(streams).stream
    assert method_of(streams).returns is int
    assert method_of(functools.partial(steps, 1)).stream
    assert not method_of(plain).stream


def test_what_claims_to_stream_and_does_not_is_refused() -> None:
    def plain() -> Iterator[int]:
        return iter([])

    with pytest.raises(ValueError, match="does not yield"):
        method_of(plain)
    with pytest.raises(ValueError, match="collect=True"):
        Methods(Call)(collect=True)(lambda: 1)


def test_iterator_is_a_stream_that_the_method_reads() -> None:
    async def total(call: Call, label: str, numbers: AsyncIterator[int], last: int = 0) -> int:
        return last

    def thread(numbers: Iterator[bytes]) -> None: ...

    method, codec = method_of(total), CODECS[0]
    one, two = msgspec.Raw(codec.encode(["a"])), msgspec.Raw(codec.encode(["a", 5]))

    assert method.reads is int
    assert [param.name for param in method.params] == ["label", "last"]
    assert method.bind(codec, one, NONE, "call", "items") == (["call", "a", "items"], {})
    assert method.bind(codec, two, NONE, "call", "items") == (["call", "a", "items", 5], {})
    assert method_of(thread).reads is bytes


def test_stream_to_a_method_has_its_rules() -> None:
    async def two(a: AsyncIterator[int], b: AsyncIterator[int]) -> None: ...

    async def odd(a: AsyncIterator[Thread]) -> None: ...

    def plain(a: Iterator[int]) -> None: ...

    def thread(a: AsyncIterator[int]) -> None: ...

    async def loop(a: Iterator[int]) -> None: ...

    with pytest.raises(ValueError, match="more than once"):
        method_of(two)
    with pytest.raises(ValueError, match="no form on the wire"):
        method_of(odd)
    with pytest.raises(ValueError, match="runs inline"):
        Methods(Call)(on="inline")(plain)
    with pytest.raises(ValueError, match="on a thread: annotate 'a' as Iterator"):
        method_of(thread)
    with pytest.raises(ValueError, match="on the loop: annotate 'a' as AsyncIterator"):
        method_of(loop)


def test_same_name_twice_is_refused(methods: Methods[Call]) -> None:
    methods("a")(lambda: None)

    with pytest.raises(ValueError, match="already"):
        methods("a")(lambda: None)


def test_reserved_name_is_refused_before_there_is_a_function(methods: Methods[Call]) -> None:
    with pytest.raises(ValueError, match="reserved"):
        methods("$mine")


def test_refused_function_leaves_no_trace(methods: Methods[Call]) -> None:
    with pytest.raises(ValueError):
        methods("a")(lambda **rest: rest)

    assert not methods


def test_limit_below_one_is_refused(methods: Methods[Call]) -> None:
    with pytest.raises(ValueError, match="limit"):
        methods("a", limit=0)(lambda: None)


def test_what_is_no_function_is_refused(methods: Methods[Call]) -> None:
    with pytest.raises(TypeError, match="no function"):
        methods(5)  # type: ignore[call-overload]  # the point


def test_what_has_no_signature_is_refused(methods: Methods[Call]) -> None:
    with pytest.raises(ValueError, match="no signature"):
        methods(min)


def test_bound_method_is_registered_without_self(methods: Methods[Call]) -> None:
    class Counter:
        def add(self, by: int) -> int:
            return by

    methods(Counter().add)

    assert methods.get("add").params == (Param("by", int, True, "either"),)


def test_object_that_can_be_called_needs_a_name(methods: Methods[Call]) -> None:
    class Adder:
        async def __call__(self, a: int) -> int:
            return a

    with pytest.raises(ValueError, match="no name"):
        methods(Adder())

    methods("add")(Adder())
    assert methods.get("add").params == (Param("a", int, True, "either"),)
    assert methods.get("add").handler.place == "loop"


def test_partial_needs_a_name(methods: Methods[Call]) -> None:
    with pytest.raises(ValueError, match="no name"):
        methods(functools.partial(print, "a"))


def test_what_a_partial_has_given_is_no_parameter() -> None:
    def add(a: int, b: int, c: int) -> int:
        return a + b + c

    bound_by_place = method_of(functools.partial(add, 1))
    bound_by_name = method_of(functools.partial(add, c=1))

    assert [param.name for param in bound_by_place.params] == ["b", "c"]
    assert [param.name for param in bound_by_name.params] == ["a", "b"]
    assert refused(functools.partial(add, c=1), 1, 2, named={"c": 5}) == ("c", "unknown")


def test_methods_are_told_in_order_and_removed(methods: Methods[Call]) -> None:
    assert not methods
    for name in "cab":
        methods(name)(lambda: None)

    methods.remove("b")

    assert methods
    assert [method.name for method in methods] == ["a", "c"]
    with pytest.raises(ValueError, match="no method 'b'"):
        methods.remove("b")


def test_unknown_method_names_its_nearest(methods: Methods[Call]) -> None:
    methods("text.upper")(lambda: None)

    with pytest.raises(MethodNotFound) as near:
        methods.get("text.uper")
    with pytest.raises(MethodNotFound) as far:
        methods.get("zzz")

    assert near.value.nearest == "text.upper"
    assert far.value.nearest is None


def test_endless_name_is_not_compared(methods: Methods[Call]) -> None:
    methods("a" * 255)(lambda: None)

    with pytest.raises(MethodNotFound) as caught:
        methods.get("a" * 256)

    assert caught.value.nearest is None


def test_repr_tells_name_and_parameters() -> None:
    def add(a: int, *, b: int) -> None: ...

    assert repr(method_of(add)) == "<Method it(a, b)>"


# Describing


def test_parameters_are_described() -> None:
    def all_kinds(a: int, /, b: str = "", *rest: float, c: bool, d: Any = 1) -> User:
        raise NotImplementedError

    method = method_of(all_kinds)

    assert method.params == (
        Param("a", int, True, "positional"),
        Param("b", str, False, "either"),
        Param("rest", float, False, "extra"),
        Param("c", bool, True, "named"),
        Param("d", Any, False, "named"),
    )
    assert method.returns is User
    assert method.doc == ""


def test_without_annotations_everything_is_any() -> None:
    method = method_of(lambda a: a)

    assert method.params == (Param("a", Any, True, "either"),)
    assert method.returns is Any


def test_annotations_resolve_to_locals() -> None:
    class Local(msgspec.Struct):
        id: int

    def take(local: Local, many: list[Local]) -> Local:
        return local

    method = method_of(take)

    assert [param.type for param in method.params] == [Local, list[Local]]
    assert method.returns is Local


def test_a_local_hides_a_global() -> None:
    class User(msgspec.Struct):
        name: str

    def take(user: User) -> None: ...

    assert method_of(take).params[0].type is User


def test_the_inner_local_hides_the_outer() -> None:
    class It(msgspec.Struct):
        outer: int

    def inner() -> tuple[Method, type]:
        class It(msgspec.Struct):
            inner: int

        def take(it: It) -> None: ...

        return method_of(take), It

    method, inner_type = inner()

    assert method.params[0].type is inner_type is not It


def test_annotation_metadata_is_kept() -> None:
    def take(size: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...

    assert refused(take, 0) == ("size", "expected `int` >= 1")


@pytest.mark.parametrize("annotation", ["Nowhere", "int |", "msgspec.Nowhere"])
def test_unresolvable_annotation_is_refused(annotation: str) -> None:
    def take(a: int) -> None: ...

    take.__annotations__["a"] = annotation

    with pytest.raises(ValueError, match=r"take\(\): the annotation .* of its parameter 'a'"):
        method_of(take)


def test_unresolvable_result_is_refused() -> None:
    def take() -> None: ...

    take.__annotations__["return"] = "Nowhere"

    with pytest.raises(ValueError, match="of its result cannot be resolved"):
        method_of(take)


class Holder(msgspec.Struct):
    foreign: Foreign | None = None
    inside: Holder | None = None


@pytest.mark.parametrize(
    "annotation",
    [
        Foreign,
        Foreign | None,
        list[Foreign],
        dict[str, tuple[int, Foreign]],
        Holder,
        Callable[[int], int],
        Iterable[int],
        complex,
        bytes | str,
        User | Holder,
        Annotated[int, []],
    ],
)
def test_type_that_cannot_come_is_refused(annotation: Any) -> None:
    def take(a: int, it: Any) -> None: ...

    take.__annotations__["it"] = annotation

    with pytest.raises(ValueError, match=r"take\(\): no value can come as its 'it'"):
        method_of(take)


def test_star_star_is_refused() -> None:
    def take(**rest: int) -> None: ...

    with pytest.raises(ValueError, match=r"take\(\): the wire has no '\*\*rest'"):
        method_of(take)


# Binding


def test_nothing_binds_to_nothing() -> None:
    assert bound(lambda: None) == ([], {})
    assert bound(lambda: None, named={}) == ([], {})


def test_empty_array_binds_to_nothing() -> None:
    assert method_of(lambda: None).bind(Json(), msgspec.Raw(b"[]"), NONE) == ([], {})


def test_default_is_left_to_the_function() -> None:
    def take(a: int, b: int = "any", c: int = 2) -> None: ...  # type: ignore[assignment]  # allowed

    assert bound(take, 1) == ([1], {})
    assert bound(take, 1, 2) == ([1, 2], {})
    assert bound(take, named={"a": 1, "c": 5}) == ([], {"a": 1, "c": 5})


def test_places_and_names_mix() -> None:
    def take(a: int, b: int, *, c: int) -> None: ...

    assert bound(take, 1, named={"c": 3, "b": 2}) == ([1], {"c": 3, "b": 2})


def test_extra_places_are_each_decoded() -> None:
    def take(a: str, *rest: Point, c: int = 0) -> None: ...

    args, kwargs = bound(take, "a", {"x": 1}, {"x": 2, "y": 3}, named={"c": 1})

    assert args == ["a", Point(1.0), Point(2.0, 3.0)]
    assert kwargs == {"c": 1}


def test_extra_alone_takes_names_for_the_rest() -> None:
    def take(a: str, *rest: int) -> None: ...

    assert bound(take, named={"a": "x"}) == ([], {"a": "x"})


def test_object_is_any() -> None:
    def take(a: object, b: object = None, c: object | None = None) -> None: ...

    assert bound(take, 1, [2], "3") == ([1, [2], "3"], {})


def test_unset_can_be_asked_for() -> None:
    def take(a: int | msgspec.UnsetType = msgspec.UNSET) -> None: ...

    assert bound(take, 1) == ([1], {})
    assert bound(take, named={}) == ([], {})


@pytest.mark.parametrize("name", ["self", "f1", "__post_init__", "fields", "é"])
def test_any_name_is_a_parameters(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def take({name}: int, other: int = 0): ...", scope)

    assert bound(scope["take"], 1) == ([1], {})
    assert bound(scope["take"], named={name: 1}) == ([], {name: 1})
    assert refused(scope["take"], "x") == (name, "expected `int`, got `str`")


NOW = datetime(2024, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


@every_codec
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Point, Point(1.5, 2.0)),
        (User, User(1, ["a"])),
        (Options, {"deep": True, "depth": 2}),
        (Colour, Colour.BLUE),
        (datetime, NOW),
        (Decimal, Decimal("1.10")),
        (uuid.UUID, uuid.UUID(int=5)),
        (bytes, b"\x00\xff"),
        (Literal["a", 1], "a"),
        (int | str | None, None),
        (int | list[str], ["x"]),
        (dict[str, list[Point]], {"a": [Point(1.0)]}),
        (dict[int, str], {1: "a"}),
        (tuple[int, ...], (1, 2)),
        (set[int], {1, 2}),
        (float, 1.0),
        (User | None, User(2)),
    ],
    ids=str,
)
def test_value_becomes_what_the_annotation_says(codec: Codec, annotation: Any, value: Any) -> None:
    def take(it: Any, more: Any = None, *, named: Any = None) -> None: ...

    take.__annotations__.update(it=annotation, more=annotation, named=annotation)

    by_place, _ = bound(take, value, value, codec=codec)
    _, by_name = bound(take, named={"it": value, "named": value}, codec=codec)
    args, kwargs = bound(take, value, named={"named": value}, codec=codec)

    assert [*by_place, *by_name.values(), *args, *kwargs.values()] == [value] * 6
    assert type(by_place[0]) is type(value)


@every_codec
def test_attrs_class_is_made(codec: Codec) -> None:
    attrs = pytest.importorskip("attrs")
    made = attrs.make_class("Made", {"a": attrs.field(type=int)})

    def take(it: Any) -> None: ...

    take.__annotations__["it"] = made

    assert bound(take, {"a": 1}, codec=codec) == ([made(1)], {})


def test_lone_surrogate_from_node_is_bound_alone_and_mixed() -> None:
    def take(a: str, *rest: str, b: str = "") -> None: ...

    method = method_of(take)
    text = msgspec.Raw(b'["\\ud800","y"]')

    args, kwargs = method.bind(Json(lenient=True), text, msgspec.Raw(b'{"b":"x"}'))

    assert (args, kwargs) == (["\ud800", "y"], {"b": "x"})


# What does not fit


@every_codec
def test_wrong_type_names_the_parameter(codec: Codec) -> None:
    def take(a: int, b: int = 0, *, c: int = 0) -> None: ...

    expected = "expected `int`, got `str`"
    assert refused(take, "x", codec=codec) == ("a", expected)
    assert refused(take, 1, "x", codec=codec) == ("b", expected)
    assert refused(take, named={"a": 1, "b": "x"}, codec=codec) == ("b", expected)
    assert refused(take, 1, named={"c": "x"}, codec=codec) == ("c", expected)


@every_codec
def test_wrong_type_inside_tells_where(codec: Codec) -> None:
    def take(a: int, user: User) -> None: ...

    wrong = {"id": 1, "tags": ["a", 5]}

    assert refused(take, 1, wrong, codec=codec) == (
        "user",
        "expected `str`, got `int` - at `$.tags[1]`",
    )


@every_codec
def test_field_that_is_missing_inside_is_no_parameter(codec: Codec) -> None:
    def take(user: User, id: int = 0) -> None: ...

    why = "object missing required field `id`"
    assert refused(take, {}, codec=codec) == ("user", why)
    assert refused(take, named={"user": {}}, codec=codec) == ("user", why)


@every_codec
def test_missing_parameter_is_named(codec: Codec) -> None:
    def take(a: int, b: int, *, c: int) -> None: ...

    assert refused(take, codec=codec) == ("a", "missing")
    assert refused(take, 1, codec=codec) == ("b", "missing")
    assert refused(take, 1, 2, codec=codec) == ("c", "missing")
    assert refused(take, named={"b": 1, "c": 1}, codec=codec) == ("a", "missing")
    assert refused(take, 1, named={"c": 1}, codec=codec) == ("b", "missing")


@every_codec
def test_parameter_given_twice_is_refused(codec: Codec) -> None:
    def take(a: int, b: int = 0) -> None: ...

    assert refused(take, 1, named={"a": 1}, codec=codec) == ("a", "given twice")


@every_codec
def test_unknown_name_is_refused(codec: Codec) -> None:
    def take(a: int = 0, *rest: int) -> None: ...

    assert refused(take, named={"x": 1}, codec=codec) == ("x", "unknown")
    assert refused(take, 1, named={"x": 1}, codec=codec) == ("x", "unknown")
    assert refused(take, named={"rest": [1]}, codec=codec) == ("rest", "unknown")


@every_codec
def test_too_many_are_refused(codec: Codec) -> None:
    def take(a: int, b: int = 0, *, c: int = 0) -> None: ...

    assert refused(take, 1, 2, 3, codec=codec) == (None, "at most 2 positional, got 3")
    assert refused(lambda: None, 1, codec=codec) == (None, "at most 0 positional, got 1")


@every_codec
def test_positional_parameter_is_not_taken_by_name(codec: Codec) -> None:
    def take(a: int = 0, /, b: int = 0) -> None: ...

    assert refused(take, named={"a": 1}, codec=codec) == (
        "a",
        "given by name, but it is positional",
    )


@every_codec
def test_extra_of_another_type_is_refused(codec: Codec) -> None:
    def take(a: int, *rest: int) -> None: ...

    assert refused(take, 1, 2, "x", codec=codec) == ("rest", "expected `int`, got `str`")


@every_codec
def test_params_that_are_no_array_are_refused(codec: Codec) -> None:
    method = method_of(lambda a: a)

    with pytest.raises(InvalidParams, match="positional parameters: expected `array`, got"):
        method.bind(codec, msgspec.Raw(codec.encode({"a": 1})), NONE)


@every_codec
def test_names_that_are_no_object_are_refused(codec: Codec) -> None:
    method = method_of(lambda a: a)

    with pytest.raises(InvalidParams, match="named parameters: ") as caught:
        method.bind(codec, NONE, msgspec.Raw(codec.encode([1])))

    assert caught.value.parameter is None


@pytest.mark.parametrize("raw", [b"[1", b"\xff", b"[nul]"])
def test_broken_bytes_are_refused(raw: bytes) -> None:
    for codec in CODECS:
        for params, named in ((raw, b""), (b"", raw), (raw, raw)):
            with pytest.raises(InvalidParams):
                method_of(lambda a: a).bind(codec, msgspec.Raw(params), msgspec.Raw(named))


# The call


def test_call_is_no_parameter_of_the_wire() -> None:
    def take(a: int, call: Call, b: int = 0) -> None: ...

    method = method_of(take)

    assert [each.name for each in method.injected] == ["call"]
    assert [param.name for param in method.params] == ["a", "b"]
    assert refused(take, 1, named={"call": 1}) == ("call", "unknown")


def _first(call: Call, a: int = 0, b: int = 0) -> object:
    return call, a, b


def _between(a: int, call: Call, b: int = 0) -> object:
    return call, a, b


def _last(a: int, b: int = 0, call: Call | None = None) -> object:
    return call, a, b


def _named(a: int, b: int = 0, *, call: Call) -> object:
    return call, a, b


def _placed(call: Call, /, a: int, b: int = 0) -> object:
    return call, a, b


def _before_required(call: Call, a: int, b: int = 0) -> object:
    return call, a, b


@pytest.mark.parametrize(
    "function", [_first, _between, _last, _named, _placed, _before_required], ids=repr
)
def test_call_arrives_where_it_is_wanted(function: Callable[..., object]) -> None:
    call, codec = Call(), Json()
    method = method_of(function)
    wires = [(b"[1,2]", b""), (b"", b'{"a":1,"b":2}'), (b"[1]", b'{"b":2}')]

    for params, named in wires:
        args, kwargs = method.bind(codec, msgspec.Raw(params), msgspec.Raw(named), call)
        assert function(*args, **kwargs) == (call, 1, 2)

    args, kwargs = method.bind(codec, msgspec.Raw(b"[1]"), NONE, call)
    assert function(*args, **kwargs) == (call, 1, 0)


def test_call_stands_before_extra_places() -> None:
    def take(a: int, call: Call, *rest: int) -> object:
        return a, call, rest

    call = Call()

    args, kwargs = method_of(take).bind(Json(), msgspec.Raw(b"[1,2,3]"), NONE, call)

    assert take(*args, **kwargs) == (1, call, (2, 3))


def test_call_that_a_partial_gave_is_not_injected() -> None:
    def take(a: int, call: Call | None = None) -> None: ...

    assert not method_of(functools.partial(take, call=Call())).injected


def test_two_calls_are_refused() -> None:
    def two(a: Call, b: Call) -> None: ...
    def many(*calls: Call) -> None: ...

    for function in (two, many):
        with pytest.raises(ValueError, match="more than once"):
            method_of(function)


def test_call_behind_a_place_that_may_be_empty_is_refused() -> None:
    def take(a: int = 0, call: Call | None = None, /) -> None: ...

    with pytest.raises(ValueError, match="may be left out"):
        method_of(take)


# Contracts


@contract("user.get")
def get_user(id: int, *, full: bool = False) -> User:
    """Find a user."""
    raise NotImplementedError


def test_contract_tells_what_it_is() -> None:
    assert isinstance(get_user, Contract)
    assert get_user.name == "user.get"
    assert get_user.returns is User
    assert get_user.signature.parameters["id"].annotation is int
    assert get_user.__doc__ == "Find a user."
    assert repr(get_user).startswith("<Contract user.get(id: int, *, full: bool = False)")


def test_contract_without_result_returns_any() -> None:
    assert contract("a")(lambda a: a).returns is Any


def test_contract_splits_arguments_as_the_wire_wants() -> None:
    assert get_user.split(7, full=True) == ((7,), {"full": True}, None)
    assert get_user.split(id=7) == ((7,), {}, None)


def test_arguments_that_break_the_contract_raise_type_error() -> None:
    with pytest.raises(TypeError):
        get_user.split()  # type: ignore[call-arg]  # the point
    with pytest.raises(TypeError):
        get_user.split(1, nothing=2)  # type: ignore[call-arg]  # the point


def test_contract_with_a_bad_name_is_refused() -> None:
    with pytest.raises(ValueError, match="reserved"):
        contract("$info")


def test_contract_that_waits_is_refused() -> None:
    async def get() -> None: ...

    with pytest.raises(ValueError, match="plain def"):
        contract("get")(get)


def test_contract_with_star_star_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the contract 'get': the wire has no '\*\*rest'"):
        contract("get")(lambda **rest: rest)


def test_implementation_is_registered_under_the_name_of_the_contract(
    methods: Methods[Call],
) -> None:
    @methods(get_user)
    async def anything(call: Call, id: int, *, full: bool = False) -> User:
        return User(id)

    assert methods.get("user.get").handler.function is anything
    assert [each.name for each in methods.get("user.get").injected] == ["call"]


FITTING: list[tuple[Callable[..., object], Callable[..., object]]] = [
    (lambda a, b=0: 0, lambda a, b=0: 0),
    (lambda a, b=0: 0, lambda a, b=0, c=0, *rest, d=0: 0),
    (lambda a, *, b: 0, lambda a, b: 0),
    (lambda a, *, b=0: 0, lambda a, *, b=0, c=0: 0),
    (lambda a, /: 0, lambda other: 0),
    (lambda a, b, /: 0, lambda a, *rest: 0),
    (lambda a, *rest: 0, lambda a, *others: 0),
    (lambda a, b=0: 0, lambda a=0, b=0: 0),
]


@pytest.mark.parametrize(("asked", "own"), FITTING)
def test_implementation_fits(
    methods: Methods[Call], asked: Callable[..., object], own: Callable[..., object]
) -> None:
    methods(contract("it")(asked))(own)

    assert "it" in methods


MISFITS: list[tuple[Callable[..., object], Callable[..., object]]] = [
    (lambda a: 0, lambda: 0),
    (lambda a: 0, lambda b: 0),
    (lambda a: 0, lambda a, /: 0),
    (lambda a: 0, lambda *, a: 0),
    (lambda a: 0, lambda *rest: 0),
    (lambda a, b: 0, lambda b, a: 0),
    (lambda a=0: 0, lambda a: 0),
    (lambda a: 0, lambda a, b: 0),
    (lambda a: 0, lambda a, *, b: 0),
    (lambda *, a: 0, lambda: 0),
    (lambda *, a: 0, lambda a, /: 0),
    (lambda *, a=0: 0, lambda *, a: 0),
    (lambda x, /, *, a: 0, lambda a: 0),
    (lambda *rest: 0, lambda: 0),
    (lambda *rest: 0, lambda a=0, *rest: 0),
]


@pytest.mark.parametrize(("asked", "own"), MISFITS)
def test_implementation_does_not_fit(
    methods: Methods[Call], asked: Callable[..., object], own: Callable[..., object]
) -> None:
    with pytest.raises(ValueError, match="Contract it"):
        methods(contract("it")(asked))(own)

    assert not methods


# Against Python's own binding

NAMES = ["a", "b", "c", "d", "e"]
values = st.one_of(
    st.integers(-(2**31), 2**31), st.text(max_size=3), st.none(), st.lists(st.booleans())
)


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    kind = inspect.Parameter
    kinds = [kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY]
    chosen = draw(st.lists(st.sampled_from(kinds), max_size=5).map(sorted))
    parameters, optional = [], False
    for name, each in zip(NAMES, chosen, strict=False):
        keyword = each is kind.KEYWORD_ONLY
        default = draw(st.booleans()) or (optional and not keyword)
        optional = optional or (default and not keyword)
        annotation = draw(st.sampled_from([kind.empty, Any, int, int | str | None]))
        parameters.append(
            kind(name, each, default=0 if default else kind.empty, annotation=annotation)
        )
    if draw(st.booleans()):
        at = sum(each is not kind.KEYWORD_ONLY for each in chosen)
        parameters.insert(at, kind("rest", kind.VAR_POSITIONAL))
    return inspect.Signature(parameters)


def fits(value: object, annotation: Any) -> bool:
    if annotation in (inspect.Parameter.empty, Any):
        return True
    return isinstance(value, annotation)


@given(
    signature=signatures(),
    params=st.lists(values, max_size=6),
    named=st.dictionaries(st.sampled_from([*NAMES, "rest"]), values, max_size=4),
    codec=st.sampled_from(CODECS),
)
def test_binding_agrees_with_python(
    signature: inspect.Signature, params: list[Any], named: dict[str, Any], codec: Codec
) -> None:
    def take(*args: Any, **kwargs: Any) -> None: ...

    take.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
    try:
        python = signature.bind(*params, **named).arguments
    except TypeError:
        python = None
    parameters = signature.parameters
    if python is not None and not all(
        fits(value, parameters[name].annotation) for name, value in python.items()
    ):
        python = None
    # Other than a call, `bind` of Python 3.13.2 takes some of these by their names.
    if any(
        each.kind is each.POSITIONAL_ONLY and each.name in named for each in parameters.values()
    ):
        python = None

    try:
        args, kwargs = bound(take, *params, named=named or None, codec=codec)
    except InvalidParams:
        ours = None
    else:
        ours = signature.bind(*args, **kwargs).arguments

    assert ours == python


def test_stream_of_nothing_is_one() -> None:
    async def ticks() -> AsyncIterator[None]:
        yield None

    assert method_of(ticks).returns is type(None)
    assert method_of(ticks).stream
