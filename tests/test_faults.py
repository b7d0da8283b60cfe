"""What becomes of what a handler raises: where it is logged, what the asker sees, what crosses."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from interphone import Client, InterphoneError, Limits, MemoryAddress, Peer, RemoteError, Server
from interphone.errors import RequestTimeout
from interphone.notes import MAX_NOTE, MAX_NOTES, MAX_TRACEBACK, add_notes, notes_of
from interphone.protocol.messages import failure_of
from interphone.transports.memory import MemoryTransport
from support.ends import Raw, meeting, raised_by, until
from support.shared_errors import Frozen, NoSuchUser

both = pytest.mark.parametrize("dialect", ["native", "classic"])


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text today")


class Stop(BaseException):
    pass


def nested() -> None:
    a_local_name = "in the handler"
    raise ZeroDivisionError("never " + str(len(a_local_name)))


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error, formatted with its traceback."""
    assert all(record.name == "interphone" for record in caplog.records)
    formatter = logging.Formatter()
    return [formatter.format(r) for r in caplog.records if r.levelno == logging.ERROR]


# Logged where it happened, once


def by_call_on_the_loop(server: Server, fault: Callable[[], None]) -> Any:
    @server.method
    async def fail() -> None:
        fault()

    return lambda client: client.call("fail")


def by_call_in_a_thread(server: Server, fault: Callable[[], None]) -> Any:
    @server.method
    def fail() -> None:
        fault()

    return lambda client: client.call("fail")


def by_call_inline(server: Server, fault: Callable[[], None]) -> Any:
    @server.method(on="inline")
    def fail() -> None:
        fault()

    return lambda client: client.call("fail")


def by_request_on_the_loop(server: Server, fault: Callable[[], None]) -> Any:
    @server.on_request
    async def fail(peer: Peer, data: object) -> None:
        fault()

    return lambda client: client.request(1)


def by_request_in_a_thread(server: Server, fault: Callable[[], None]) -> Any:
    @server.on_request
    def fail(peer: Peer, data: object) -> None:
        fault()

    return lambda client: client.request(1)


def by_request_inline(server: Server, fault: Callable[[], None]) -> Any:
    @server.on_request(on="inline")
    def fail(peer: Peer, data: object) -> None:
        fault()

    return lambda client: client.request(1)


def by_stream_on_the_loop(server: Server, fault: Callable[[], None]) -> Any:
    @server.method
    async def fail() -> AsyncIterator[int]:
        fault()
        yield 1

    return _first_of_stream


def by_stream_in_a_thread(server: Server, fault: Callable[[], None]) -> Any:
    @server.method
    def fail() -> Iterator[int]:
        fault()
        yield 1

    return _first_of_stream


async def _first_of_stream(client: Client) -> object:
    async with client.stream("fail") as stream:
        return await anext(stream)


WAYS = [
    by_call_on_the_loop,
    by_call_in_a_thread,
    by_call_inline,
    by_request_on_the_loop,
    by_request_in_a_thread,
    by_request_inline,
    by_stream_on_the_loop,
    by_stream_in_a_thread,
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def raising(error: BaseException) -> Callable[[], None]:
    def nested() -> None:
        raise error

    return nested


@every_way
@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: ZeroDivisionError("x"), "ZeroDivisionError", "x"),
        (
            lambda: ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
            "ExceptionGroup",
            "two (2 sub-exceptions)",
        ),
        (
            lambda: BaseExceptionGroup("base", [SystemExit(1)]),
            "BaseExceptionGroup",
            "base (1 sub-exception)",
        ),
        (lambda: SystemExit(3), "SystemExit", "3"),
        (lambda: Stop("stop"), "Stop", "stop"),
        (lambda: RequestTimeout(1.0), "RequestTimeout", "no answer within 1 s"),
        (lambda: Mute(), "Mute", "<no text: RuntimeError in its __str__>"),
    ],
)
def test_fault_is_logged_once_with_its_traceback_and_answered(
    run, address, caplog, way, make, kind, message
):
    async def main() -> None:
        server, heard = Server(address), []
        server.on_error(lambda error, peer: heard.append((error, peer)))
        ask = way(server, raising(make()))
        async with meeting(server) as client:
            got = await raised_by(ask(client))
            assert type(got) is RemoteError
            assert (got.kind, got.message) == (kind, message)
            assert (got.notes, got.traceback) == ((), None)
            assert [peer for _, peer in heard] == list(server.peers.values())

    run(main())
    (text,) = logged(caplog)
    assert "a handler raised" in text
    assert ", in nested" in text


@every_way
def test_handler_that_somebody_else_cancelled_is_logged_once(run, address, caplog, way):
    async def main() -> None:
        server = Server(address)
        ask = way(server, raising(asyncio.CancelledError()))
        async with meeting(server) as client:
            got = await raised_by(ask(client))
            assert isinstance(got, RemoteError)
            assert (got.kind, got.message) == ("CancelledError", "the handler was cancelled")

    run(main())
    (text,) = logged(caplog)
    assert ", in nested" in text


def test_handler_whose_asker_gave_up_is_not_logged(run, address, caplog):
    async def main() -> None:
        server, started = Server(address), asyncio.Event()

        @server.method
        async def slow() -> None:
            started.set()
            await asyncio.Event().wait()

        async with meeting(server) as client:
            calling = asyncio.ensure_future(client.call("slow"))
            await started.wait()
            calling.cancel()
            (peer,) = server.peers.values()
            await until(lambda: peer.inflight == 0)

    run(main())
    assert caplog.records == []


def test_failure_of_a_clients_handler_is_logged_there_once(run, address, caplog):
    async def main() -> None:
        server = Server(address)
        heard: list[Exception] = []
        async with meeting(server) as client:
            client.on_error(heard.append)
            client.method("fail")(nested)
            (peer,) = server.peers.values()
            assert isinstance(await raised_by(peer.call("fail")), RemoteError)
            assert [type(error) for error in heard] == [ZeroDivisionError]

    run(main())
    assert len(logged(caplog)) == 1


@every_way
def test_keyboard_interrupt_in_a_handler_is_logged_once_and_ends_the_program(
    run, address, caplog, way
):
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        server = Server(address)
        ask = way(server, raising(KeyboardInterrupt()))
        async with meeting(server) as client:
            await ask(client)

    try:
        run(main())
    except KeyboardInterrupt as exc:
        exc.__traceback__ = None  # which would keep the task of the handler
    else:
        pytest.fail("the program went on")
    gc.collect()
    assert complaints == []
    (text,) = logged(caplog)
    assert ", in nested" in text


def test_remote_error_raised_on_purpose_is_not_logged(run, address, caplog):
    async def main() -> None:
        server = Server(address)

        @server.method
        async def fail() -> None:
            error = RemoteError("no such book", kind="NotFound", data={"id": 7})
            error.add_note("try another")
            raise error

        async with meeting(server) as client:
            got = await raised_by(client.call("fail"))
            assert isinstance(got, RemoteError)
            assert (got.kind, got.data, got.notes) == ("NotFound", {"id": 7}, ("try another",))

    run(main())
    assert caplog.records == []


# What cannot be sent is still answered


@both
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RemoteError("no", kind="Odd", data=object()), "Odd", "no"),
        (RemoteError("no", kind="Odd", data="x" * 20_000), "Odd", "no"),
        (RemoteError("\ud800", kind="Odd"), "Odd", "an error that cannot be sent"),
        (RemoteError("x" * 20_000, kind="Odd"), "Odd", "an error that cannot be sent"),
        (RemoteError("x", kind="\ud800"), "RemoteError", "an error that cannot be sent"),
        (ValueError("\ud800"), "ValueError", "an error that cannot be sent"),
        (ValueError("x" * 20_000), "ValueError", "an error that cannot be sent"),
        (NoSuchUser(object()), "NoSuchUser", "no user"),  # type: ignore[arg-type]  # on purpose
        (NoSuchUser(1, "x", tags=("y" * 20_000,)), "NoSuchUser", "no user 1 (x)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_sent_is_left_out_and_the_asker_is_answered(
    run, address, dialect, error, kind, message
):
    async def main() -> None:
        server = Server(address, limits=Limits(max_frame=16_384))
        server.error(NoSuchUser)

        @server.method
        async def fail() -> None:
            raise error

        async with meeting(server, dialect=dialect) as client:
            client.error(NoSuchUser)
            got = await raised_by(client.call("fail"))
            assert type(got) is RemoteError
            assert got.kind == kind
            assert got.message.startswith(message)

    run(main())


def test_data_that_cannot_be_sent_is_reported_to_who_raised_it(run, address, caplog):
    async def main() -> None:
        server, heard = Server(address), []
        server.on_error(lambda error, peer: heard.append(error))

        @server.method
        async def fail() -> None:
            raise RemoteError("no", data=object())

        async with meeting(server) as client:
            await raised_by(client.call("fail"))
            assert len(heard) == 1
            assert isinstance(heard[0], InterphoneError)

    run(main())
    assert len(caplog.records) == 1


# Notes


@both
def test_notes_cross_and_are_shown_where_the_asker_shows_the_error(run, address, dialect):
    async def main() -> None:
        server = Server(address)
        server.error(Frozen)

        @server.method
        async def fail() -> None:
            error = ValueError("no")
            error.add_note("looked in the cellar")
            error.add_note("and in\nthe attic")
            raise error

        @server.method
        async def fail_as_itself() -> None:
            error = NoSuchUser(1)
            error.add_note("look elsewhere")
            raise error

        async with meeting(server, dialect=dialect) as client:
            server.error(NoSuchUser)
            client.error(NoSuchUser)
            got = await raised_by(client.call("fail"))
            assert isinstance(got, RemoteError)
            assert got.notes == ("looked in the cellar", "and in\nthe attic")
            shown = "".join(traceback.format_exception(got))
            assert shown.endswith(
                "RemoteError: ValueError: no\nlooked in the cellar\nand in\nthe attic\n"
            )
            own = await raised_by(client.call("fail_as_itself"))
            assert isinstance(own, NoSuchUser)
            assert own.__notes__ == ["look elsewhere"]

    run(main())


def test_notes_are_bounded_in_number_and_size():
    error = ValueError()
    for number in range(100):
        error.add_note(f"{number} " + "x" * 10_000)

    notes = failure_of(error).notes

    assert len(notes) == MAX_NOTES
    assert max(map(len, notes)) == MAX_NOTE
    assert notes[-1] == f"… and {100 - MAX_NOTES + 1} more notes"


def test_notes_at_the_bounds_go_over_whole():
    error = ValueError()
    for _ in range(MAX_NOTES):
        error.add_note("x" * MAX_NOTE)

    assert failure_of(error).notes == ("x" * MAX_NOTE,) * MAX_NOTES


def test_notes_that_came_are_bounded_again():
    error = RemoteError("x")

    add_notes(error, ["y" * 10_000] * 1_000, "z" * 1_000_000)

    assert len(error.notes) == MAX_NOTES
    assert max(map(len, error.notes)) == MAX_NOTE
    assert error.traceback is not None
    assert len(error.traceback) == MAX_TRACEBACK


@pytest.mark.parametrize("odd", [7, "text", None, [7, b"x", None, "kept"]])
def test_odd_notes_do_no_harm(odd):
    error = ValueError()
    error.__notes__ = odd

    assert notes_of(error) == (("kept",) if isinstance(odd, list) else ())


def test_frozen_exceptions_get_their_notes():
    error = Frozen("x")

    add_notes(error, ["a note"], None)

    assert error.__notes__ == ["a note"]


def test_notes_and_traceback_survive_pickling():
    error = RemoteError("x", kind="KeyError")
    add_notes(error, ["a note"], "Traceback …")
    twin = pickle.loads(pickle.dumps(error))

    assert (twin.notes, twin.traceback) == (("a note",), "Traceback …")


# Tracebacks


class Tap:
    """Everything that memory transports write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written = bytearray()
        write = MemoryTransport.write

        def tapped(transport: MemoryTransport, data: Any) -> None:
            self.written += data
            write(transport, data)

        monkeypatch.setattr(MemoryTransport, "write", tapped)


PRIVATE = [__file__, "test_faults", "Traceback", "File ", "nested", "a_local_name", "in main"]
PRIVATE += ["/home/", "/work/", "site-packages", sys.prefix]


@both
@every_way
def test_without_debug_nothing_of_where_it_was_raised_is_on_the_wire(
    run, monkeypatch, dialect, way
):
    tap = Tap(monkeypatch)

    async def main() -> None:
        server = Server(MemoryAddress(), dialect=dialect)
        ask = way(server, nested)
        async with meeting(server) as client:
            got = await raised_by(ask(client))
            assert isinstance(got, RemoteError)
            assert (got.kind, got.message) == ("ZeroDivisionError", "never 14")
            assert got.traceback is None

    run(main())
    assert b"ZeroDivisionError" in tap.written
    assert [each for each in PRIVATE if each.encode() in tap.written] == []


@both
@every_way
def test_with_debug_the_asker_sees_where_it_was_raised(run, dialect, way):
    async def main() -> None:
        server = Server(MemoryAddress(), debug=True)
        ask = way(server, nested)
        async with meeting(server, dialect=dialect) as client:
            got = await raised_by(ask(client))
            assert isinstance(got, RemoteError)
            assert got.traceback is not None
            assert got.traceback.startswith("Traceback (most recent call last):\n")
            assert ", in nested" in got.traceback
            assert got.notes == ()
            shown = "".join(traceback.format_exception(got))
            assert f"Traceback at the other end:\n{got.traceback}" in shown

    run(main())


@both
def test_with_debug_the_tap_would_have_seen_it(run, monkeypatch, dialect):
    tap = Tap(monkeypatch)

    async def main() -> None:
        server = Server(MemoryAddress(), debug=True)
        server.method("fail")(nested)
        async with meeting(server, dialect=dialect) as client:
            await raised_by(client.call("fail"))

    run(main())
    seen = {each for each in PRIVATE if each.encode() in tap.written}
    assert {"test_faults", "Traceback", "File ", "nested", "a_local_name"} <= seen


def test_debugging_client_shows_its_server_and_declared_errors_show_it_too(run):
    async def main() -> None:
        server = Server(MemoryAddress())
        server.error(NoSuchUser)
        async with server, Client(server.address, debug=True) as client:
            client.error(NoSuchUser)

            @client.method
            async def fail() -> None:
                raise NoSuchUser(1)

            (peer,) = server.peers.values()
            got = await raised_by(peer.call("fail"))
            assert isinstance(got, NoSuchUser)
            (note,) = got.__notes__
            assert note.startswith("Traceback at the other end:\n")
            assert ", in fail" in note

    run(main())


def test_traceback_of_the_other_end_goes_no_further(run):
    async def main() -> None:
        back, front = Server(MemoryAddress(), debug=True), Server(MemoryAddress())
        back.method("fail")(nested)
        back.error(NoSuchUser)

        @back.method
        async def fail_as_itself() -> None:
            raise NoSuchUser(1)

        async with back, Client(back.address) as to_back:
            to_back.error(NoSuchUser)

            @front.method
            async def ask_back(method: str) -> None:
                await to_back.call(method)

            async with meeting(front) as client:
                for method in ("fail", "fail_as_itself"):
                    got = await raised_by(client.call("ask_back", method))
                    assert isinstance(got, RemoteError)
                    assert got.traceback is None
                    assert got.notes == ()
                    assert "Traceback at the other end" not in str(vars(got))

    run(main())


def test_long_traceback_is_cut_and_keeps_its_end(run):
    async def main() -> None:
        server = Server(MemoryAddress(), debug=True)

        @server.method
        async def fail() -> None:
            raise ValueError("x" * 100_000 + "the end")

        async with meeting(server) as client:
            got = await raised_by(client.call("fail"))
            assert isinstance(got, RemoteError)
            assert got.traceback is not None
            assert len(got.traceback) == MAX_TRACEBACK
            assert got.traceback.endswith("the end\n")

    run(main())


def test_node_never_sees_a_traceback(run, address):
    async def main() -> None:
        server = Server(address, debug=True)
        server.on_request(lambda peer, data: nested())
        async with server, Raw.connect(address) as raw:
            await raw.open()
            raw.write({"t": 2, "d": 1, "n": "x"})
            assert (await raw.packet())["d"]["error"] == {
                "code": -32000,
                "message": "ZeroDivisionError: never 14",
            }

    run(main())
