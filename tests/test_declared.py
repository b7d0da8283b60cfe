"""Exceptions that cross as themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone import Call, Client, InterphoneError, PayloadError, RemoteError, Server
from interphone.declared import Declared
from interphone.errors import RequestTimeout
from interphone.protocol.messages import error_of, read_failure
from interphone.protocol.payload import Json, MessagePack
from support.ends import Raw, meeting, raised_by
from support.shared_errors import (
    AccountClosed,
    Currency,
    Frozen,
    FundsShort,
    Keeps,
    Locked,
    NoSuchUser,
    Plain,
    TooLate,
)

both = pytest.mark.parametrize("dialect", ["native", "classic"])
codecs = pytest.mark.parametrize("codec", [Json(), MessagePack()], ids=["json", "msgpack"])

EVERY = (FundsShort, AccountClosed, Frozen, Locked, NoSuchUser, TooLate, Plain)
UUID_1 = UUID("12345678123456781234567812345678")
SAMPLES: list[Exception] = [
    FundsShort(Decimal("1.50"), Decimal("0.25"), Currency.USD),
    AccountClosed(Decimal(1), since=datetime(2030, 1, 1, tzinfo=UTC)),
    Frozen("said so"),
    Locked(UUID_1, [1, 2]),
    NoSuchUser(7, "Ada", tags=("a", "b")),
    TooLate(1.5, "slept"),
    Plain("x", 1, None),
]


def facts(error: BaseException) -> Any:
    """What makes two exceptions the same."""
    kept = {key: value for key, value in vars(error).items() if key != "__notes__"}
    return type(error), error.args if type(error) in (TooLate, Plain) else kept or error.args


def crossed(codec: Any, error: Exception, asker: Declared, answerer: Declared) -> Exception:
    """What the asker raises for what the answerer's handler raised."""
    failure, _ = answerer.told(codec, error)
    came = error_of(read_failure(codec.decode(codec.encode(failure))))
    assert isinstance(came, RemoteError)
    return asker.own(codec, came)


def declared(*classes: type[Exception]) -> Declared:
    table = Declared()
    for each in classes:
        table(each)
    return table


# End to end


@both
def test_declared_exception_arrives_as_itself_by_call_and_request_both_ways(run, address, dialect):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def fail(which: int) -> None:
            raise SAMPLES[which]

        @server.on_request
        async def fail_too(peer: Any, which: int) -> None:
            raise SAMPLES[which]

        async with meeting(server, dialect=dialect) as client:
            client.method("fail")(fail)
            client.on_request(on="inline")(lambda which: fail_now(SAMPLES[which]))
            for each in EVERY:
                server.error(each)
                client.error(each)
            (peer,) = server.peers.values()
            for which, error in enumerate(SAMPLES):
                for asked in (
                    client.call("fail", which),
                    client.request(which),
                    peer.call("fail", which),
                    peer.request(which),
                    client.within(2).call("fail", which),
                ):
                    got = await raised_by(asked)
                    assert got is not None
                    assert facts(got) == facts(error)

    run(main())


def fail_now(error: Exception) -> None:
    raise error


@both
def test_who_has_not_declared_it_gets_a_remote_error_with_its_fields(run, address, dialect):
    async def main() -> None:
        server = Server(address)
        server.error(NoSuchUser)

        @server.method
        async def fail() -> None:
            raise NoSuchUser(7, "Ada")

        async with meeting(server, dialect=dialect) as client:
            got = await raised_by(client.call("fail"))
            assert type(got) is RemoteError
            assert (got.kind, got.message) == ("NoSuchUser", "no user 7 (Ada)")
            assert got.data == {"id": 7, "name": "Ada", "tags": []}
            assert got.declared

    run(main())


def test_what_only_the_asker_has_declared_is_a_remote_error(run, address, caplog):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def fail() -> None:
            raise NoSuchUser(7, "Ada")

        @server.method
        async def pretend() -> None:
            raise RemoteError("no", kind="NoSuchUser", data={"id": 7})

        async with meeting(server) as client:
            client.error(NoSuchUser)
            for method, data in (("fail", None), ("pretend", {"id": 7})):
                got = await raised_by(client.call(method))
                assert type(got) is RemoteError
                assert (got.kind, got.data, got.declared) == ("NoSuchUser", data, False)

    run(main())
    assert len(caplog.records) == 1  # `pretend` meant it


def test_declared_exception_is_an_answer_and_is_not_logged(run, address, caplog):
    async def main() -> None:
        server, heard = Server(address), []
        server.on_error(lambda error, peer: heard.append(error))
        server.error(Plain)

        @server.method
        async def fail() -> None:
            raise Plain("no")

        async with meeting(server) as client:
            assert isinstance(await raised_by(client.call("fail")), RemoteError)
            assert heard == []

    run(main())
    assert [record.message for record in caplog.records] == []


def test_survey_tells_what_each_client_raised_as_itself(run, address):
    async def main() -> None:
        server = Server(address)
        server.error(Plain)
        async with meeting(server) as client:
            client.error(Plain)

            @client.on_request
            async def fail(data: object) -> None:
                raise Plain("no")

            (outcome,) = await server.survey(1)
            assert isinstance(outcome.error, Plain)
            assert not outcome.ok

    run(main())


def test_end_in_the_middle_hands_on_what_it_does_not_know(run, address):
    async def main() -> None:
        back, front = Server(address + "2"), Server(address)
        back.error(NoSuchUser)

        @back.method
        async def fail() -> None:
            raise NoSuchUser(7, "Ada")

        async with back, Client(address + "2") as to_back:

            @front.method
            async def ask_back() -> None:
                await to_back.call("fail")

            async with meeting(front) as client:
                client.error(NoSuchUser)
                got = await raised_by(client.call("ask_back"))
                assert isinstance(got, NoSuchUser)
                assert got.id == 7

    run(main())


def test_node_client_gets_the_code_the_message_and_the_fields(run, address):
    async def main() -> None:
        server = Server(address, debug=True)
        server.error(NoSuchUser)

        @server.method
        async def fail() -> None:
            error = NoSuchUser(7, "Ada")
            error.add_note("not for Node")
            raise error

        async with server, Raw.connect(address) as raw:
            await raw.open()
            raw.write({"t": 2, "d": {"jsonrpc": "2.0", "method": "fail", "id": 1}, "n": "x"})
            assert (await raw.packet())["d"] == {
                "jsonrpc": "2.0",
                "error": {
                    "code": -32000,
                    "message": "NoSuchUser: no user 7 (Ada)",
                    "data": {"id": 7, "name": "Ada", "tags": []},
                },
                "id": 1,
            }

    run(main())


def test_older_interphone_end_is_told_no_more_than_it_knows(run, address):
    async def main() -> None:
        server = Server(address, debug=True)
        server.error(NoSuchUser)

        @server.on_request
        async def fail(peer: Any, data: object) -> None:
            error = NoSuchUser(7, "Ada")
            error.add_note("for those who know notes")
            raise error

        async with server, Raw.connect(address) as raw:
            await raw.open(interphone={"version": 1, "dialects": ["classic"]})
            raw.write({"t": 2, "d": 1, "n": "x"})
            assert (await raw.packet())["e"] == {
                "code": "failed",
                "message": "no user 7 (Ada)",
                "kind": "NoSuchUser",
                "data": {"id": 7, "name": "Ada", "tags": []},
            }

    run(main())


def test_only_answers_to_requests_and_calls_are_raised_as_themselves(run, address):
    """A subscription waits for interphone's own errors; a peer cannot make it raise others."""

    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            client.error(Plain)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            identity = {"version": 1, "dialects": ["classic"], "can": ["errors"]}
            await raw.let_in(interphone=identity)
            await connecting
            publishing = asyncio.ensure_future(raised_by(client.publish("a", 1)))
            asked = await raw.packet()
            failure = {"code": "declared", "kind": "Plain", "message": "x", "data": ["x"]}
            raw.write({"t": 3, "n": asked["n"], "e": failure})
            got = await publishing
            assert type(got) is RemoteError
            asking = asyncio.ensure_future(raised_by(client.request(1)))
            asked = await raw.packet()
            raw.write({"t": 3, "n": asked["n"], "e": failure})
            assert type(await asking) is Plain
            client.abort()

    run(main())


# What goes over


@codecs
@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_kind_of_class_is_taken_apart_and_put_together(codec, error):
    table = declared(*EVERY)

    got = crossed(codec, error, table, table)

    assert got is not error
    assert facts(got) == facts(error)
    assert str(got) == str(error)


@codecs
@given(
    id=st.integers(-(2**63), 2**63 - 1),
    name=st.text(st.characters(exclude_categories=["Cs"])),
    tags=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_fields_arrive_as_they_were(codec, id, name, tags):
    table = declared(NoSuchUser)

    got = crossed(codec, NoSuchUser(id, name, tags=tuple(tags)), table, table)

    assert isinstance(got, NoSuchUser)
    assert (got.id, got.name, got.tags) == (id, name, tuple(tags))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text("ab"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab") | st.just("id"), inner),
)


@codecs
@given(
    data=anything | st.dictionaries(st.sampled_from(["id", "name", "needed", "reason"]), anything)
)
@pytest.mark.parametrize("of", EVERY)
def test_whatever_comes_is_an_instance_or_the_remote_error_it_was(codec, of, data):
    came = RemoteError("x", kind=of.__name__, data=data)
    came.declared = True

    got = declared(*EVERY).own(codec, came)

    assert got is came or type(got) is of


def test_field_that_does_not_fit_leaves_a_remote_error():
    came = RemoteError("x", kind="NoSuchUser", data={"id": "seven"})
    came.declared = True

    assert declared(NoSuchUser).own(Json(), came) is came


def test_init_that_refuses_its_fields_leaves_a_remote_error():
    class Strict(Exception):
        def __init__(self, n: int) -> None:
            if n < 0:
                raise SyntaxError("negative")
            self.n = n

    came = RemoteError("x", kind="Strict", data={"n": -1})
    came.declared = True

    assert declared(Strict).own(Json(), came) is came


def test_class_that_makes_something_else_leaves_a_remote_error():
    class Fickle(Exception):
        def __new__(cls, n: int = 0) -> Any:
            return KeyError(n) if n else super().__new__(cls)

    came = RemoteError("x", kind="Fickle", data=[1])
    came.declared = True

    assert declared(Fickle).own(Json(), came) is came


def test_newer_end_may_have_more_fields_and_an_older_one_fewer_with_defaults():
    class Ours(Exception):
        def __init__(self, a: int, b: int = 2) -> None:
            self.a = a
            self.b = b

    came = RemoteError("x", kind="Ours", data={"a": 1, "later": 3})
    came.declared = True
    got = declared(Ours).own(Json(), came)

    assert isinstance(got, Ours)
    assert (got.a, got.b) == (1, 2)


@codecs
def test_most_derived_declared_class_is_what_arrives(codec):
    class Derived(NoSuchUser):
        pass

    closed = AccountClosed(Decimal(1), since=None)

    only_base = declared(FundsShort)
    got = crossed(codec, closed, only_base, only_base)
    assert type(got) is FundsShort
    assert got.needed == 1
    every = declared(*EVERY)
    assert type(crossed(codec, closed, every, every)) is AccountClosed
    assert type(crossed(codec, Derived(1), every, every)) is NoSuchUser


def test_names_can_be_given_and_are_what_both_ends_share():
    ours, theirs = Declared(), Declared()
    ours("user.missing")(NoSuchUser)

    @theirs("user.missing")
    class Missing(Exception):
        def __init__(self, id: int) -> None:
            self.id = id

    got = crossed(Json(), NoSuchUser(7), theirs, ours)

    assert isinstance(got, Missing)
    assert got.id == 7
    assert "user.missing" in ours
    assert list(ours) == ["user.missing"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Keeps("Ada"), "keeps neither attributes nor its arguments"),
        (Plain(object()), "cannot be encoded"),
        (NoSuchUser(object()), "cannot be encoded"),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_what_cannot_be_taken_apart_is_a_fault_that_says_so(error, why):
    table = declared(Keeps, Plain, NoSuchUser)

    failure, fault = table.told(Json(), error)

    assert (failure.code, failure.kind) == ("failed", type(error).__name__)
    assert failure.message == str(error)
    assert isinstance(fault, PayloadError)
    assert why in str(fault)
    assert fault.__cause__ is error


def test_missing_attribute_is_named():
    error = NoSuchUser(1)
    del error.name
    del error.tags
    del error.id
    error.args = ()

    _, fault = declared(NoSuchUser).told(Json(), error)

    assert "'id'" in str(fault)


def test_subclass_of_remote_error_may_be_declared():
    class Denied(RemoteError):
        pass

    table = declared(Denied)
    got = crossed(Json(), Denied("no", kind="x", data=[1]), table, table)

    assert type(got) is Denied
    assert (got.message, got.kind, got.data) == ("no", "x", [1])


# Declaring


def with_init(init: Any) -> type[Exception]:
    return type("Made", (Exception,), {"__init__": init})


class Opaque:
    pass


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (Exception, "those you mean"),
        (BaseException, "no class of exceptions"),
        (KeyboardInterrupt, "no class of exceptions"),
        (int, "no class of exceptions"),
        (7, "no class of exceptions"),
        (StopIteration, "StopIteration"),
        (StopAsyncIteration, "StopAsyncIteration"),
        (RemoteError, "own"),
        (RequestTimeout, "own"),
        (InterphoneError, "own"),
        (with_init(lambda self, *args: None), "no name on the wire"),
        (with_init(lambda self, **named: None), "no name on the wire"),
        (with_init(lambda self, args: None), "name it otherwise"),
    ],
)
def test_what_cannot_be_declared_is_refused(what, why):
    with pytest.raises(ValueError, match=why):
        Declared()(what)


def test_annotations_that_cannot_come_over_the_wire_are_refused():
    class Odd(Exception):
        def __init__(self, what: Opaque) -> None: ...

    class Unknown(Exception):
        def __init__(self, what: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ValueError, match="Opaque"):
        Declared()(Odd)
    with pytest.raises(ValueError, match="cannot be resolved"):
        Declared()(Unknown)


def test_name_and_class_are_declared_once():
    table = declared(Plain)

    with pytest.raises(ValueError, match="already"):
        table(Plain)
    with pytest.raises(ValueError, match="already"):
        table("other")(Plain)
    with pytest.raises(ValueError, match="already"):
        table("Plain")(TooLate)
    for name in ("", "x" * 256):
        with pytest.raises(ValueError, match="bytes"):
            table(name)(TooLate)


def test_removed_one_is_not_known_any_more():
    table = declared(Plain)
    table.remove("Plain")

    assert "Plain" not in table
    assert table.told(Json(), Plain("x"))[0].code == "failed"
    with pytest.raises(ValueError, match="no error"):
        table.remove("Plain")
    table(Plain)


def test_decorators_return_the_class():
    server, client = Server("x"), Client("x")

    @server.error
    @client.error("short")
    class Short(Exception):
        pass

    assert Short.__name__ == "Short"
    assert ("Short" in server.error, "short" in client.error) == (True, True)


def test_builtin_class_may_be_declared():
    table = declared(KeyError)

    got = crossed(MessagePack(), KeyError("x"), table, table)

    assert type(got) is KeyError
    assert got.args == ("x",)


def test_msgspec_knows_no_trace_of_the_class_on_the_wire():
    failure, _ = declared(Plain).told(Json(), Plain("x"))

    assert msgspec.json.decode(Json().encode(failure)) == {
        "code": "declared",
        "message": "x",
        "kind": "Plain",
        "data": ["x"],
    }


def test_call_is_no_part_of_an_error():
    with pytest.raises(ValueError, match="Call"):
        declared(with_call())


def with_call() -> type[Exception]:
    class Asks(Exception):
        def __init__(self, call: Call) -> None: ...

    return Asks


# Streams


@both
def test_stream_ends_with_the_declared_exception_behind_its_items(run, address, dialect):
    async def main() -> None:
        server = Server(address)
        server.error(NoSuchUser)

        @server.method
        async def users() -> AsyncIterator[int]:
            yield 1
            raise NoSuchUser(7, "Ada")

        @server.method
        async def count(numbers: AsyncIterator[int]) -> int:
            async for _ in numbers:
                raise NoSuchUser(8)
            return 0

        async with meeting(server, dialect=dialect) as client:
            for declare in (False, True):
                if declare:
                    client.error(NoSuchUser)
                async with client.stream("users", of=int) as stream:
                    assert await anext(stream) == 1
                    got = await raised_by(anext(stream))
                async with client.stream("count", items=[1]) as stream:
                    too = await raised_by(stream.result())
                if declare:
                    assert isinstance(got, NoSuchUser)
                    assert isinstance(too, NoSuchUser)
                    assert (got.id, too.id) == (7, 8)
                else:
                    assert type(got) is type(too) is RemoteError
                    assert got.declared

    run(main())
