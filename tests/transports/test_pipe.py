"""Named pipes, on Windows and under Wine.

What Wine does not enforce (who may open a pipe, that the first instance is the first, that no
other host connects) is tested by what Windows was told.
"""

from __future__ import annotations

import _winapi
import asyncio
import ctypes
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from ctypes import wintypes
from typing import Any

import pytest

from interphone import Backoff, Client, Limits, Server, Unsupported
from interphone.address import PipeAddress, UnixAddress
from interphone.errors import AddressError, AddressInUse, ConnectError
from interphone.transports import Credentials, connect, hung_up, listen, pipe, windows
from support.ends import Raw, raised_by, until
from support.transports import OWN_CHECKS, Check, OpenPair, Pair, Recorder, finish, settle

Run = Callable[[Coroutine[Any, Any, Any]], Any]

FIRST = 0x0008_0000
OVERLAPPED = 0x4000_0000
REJECT_REMOTE_CLIENTS = 8
SQOS_PRESENT, IMPERSONATION_BITS, IDENTIFICATION = 0x0010_0000, 0x0003_0000, 0x0001_0000
SOMEBODY = "S-1-5-21-1-2-3-1004"


def pair_maker(address: str) -> OpenPair:
    @asynccontextmanager
    async def open_pair() -> AsyncIterator[Pair]:
        near, far = Recorder(), Recorder()
        listener = await listen(PipeAddress(address), lambda: far)
        await connect(PipeAddress(address), lambda: near)
        await far.until_called("made")
        try:
            yield near, far
        finally:
            listener.close()
            await finish(near, far)

    return open_pair


@contextmanager
def instance(address: str, most: int = 1) -> Iterator[int]:
    """A server made by hand: one instance, which nobody accepts at."""
    mode = _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_OVERLAPPED
    handle = _winapi.CreateNamedPipe(address, mode, 0, most, 65536, 65536, 0, _winapi.NULL)
    try:
        yield handle
    finally:
        _winapi.CloseHandle(handle)


def open_by_hand(address: str) -> int:
    rights = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
    return _winapi.CreateFile(address, rights, 0, _winapi.NULL, _winapi.OPEN_EXISTING, 0, 0)


def handles() -> int:
    """How many handles this process has open."""
    count = wintypes.DWORD()
    assert ctypes.windll.kernel32.GetProcessHandleCount(
        wintypes.HANDLE(_winapi.GetCurrentProcess()), ctypes.byref(count)
    )
    return count.value


def failing(times: int, winerror: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, but the first times it fails."""

    def replacement(*args: Any) -> Any:
        nonlocal times
        if times:
            times -= 1
            raise OSError(0, "as the test wants it", None, winerror)
        return call(*args)

    return replacement


def seen(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of every call of a function of Windows from now on."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(_winapi, name)

    def replacement(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(_winapi, name, replacement)
    return calls


@pytest.mark.parametrize("check", OWN_CHECKS, ids=lambda check: check.__name__)
def test_contract(run: Run, address: str, check: Check) -> None:
    run(check(pair_maker(address)))


# Who may connect


def test_windows_is_told_to_let_in_nobody_else(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = seen(monkeypatch, "CreateNamedPipe")

    async def main() -> None:
        async with pair_maker(address)():
            await settle()

    run(main())
    names, modes, types, *_ = map(list, zip(*made, strict=True))
    assert {*names} == {address}
    assert modes[0] == _winapi.PIPE_ACCESS_DUPLEX | OVERLAPPED | FIRST
    assert {*modes[1:]} == {_winapi.PIPE_ACCESS_DUPLEX | OVERLAPPED}
    assert {*types} == {REJECT_REMOTE_CLIENTS}  # bytes, not messages: that would be 4 and 2
    assert all(arguments[-1] for arguments in made), "every instance has a descriptor"


@pytest.mark.parametrize("backlog", [None, 1, 3])
def test_so_many_instances_listen_at_any_time(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, backlog: int | None
) -> None:
    made = seen(monkeypatch, "CreateNamedPipe")
    wanted = backlog or 16

    async def main() -> None:
        far = Recorder()
        listener = await listen(PipeAddress(address), lambda: far, backlog=backlog)
        assert len(made) == wanted
        near = Recorder()
        await connect(PipeAddress(address), lambda: near)
        await far.until_called("made")
        assert len(made) == wanted + 1
        listener.close()
        await finish(near, far)

    run(main())


def test_a_pipe_belongs_to_our_user_and_lists_nobody_else(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as pair:
            for end in pair:
                told = windows.describe(end.transport.get_extra_info("pipe").handle)
                # A right to everything is stored as the rights that a file has.
                assert told.replace(";FA;", ";GA;") == windows.only_for(windows.own_sid())

    run(main())


def test_what_a_pipe_is_made_with() -> None:
    assert windows.only_for(SOMEBODY) == f"O:{SOMEBODY}D:P(D;;GA;;;NU)(A;;GA;;;{SOMEBODY})"
    assert windows.own_sid().startswith("S-1-5-")
    assert windows.own_sid() in windows.own_sids()


def test_a_server_may_ask_who_we_are_but_not_act_as_us(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = seen(monkeypatch, "CreateFile")

    async def main() -> None:
        async with pair_maker(address)():
            pass

    run(main())
    ((name, _, share, _, _, flags, _),) = opened
    assert (name, share) == (address, 0)
    assert flags & SQOS_PRESENT
    assert flags & IMPERSONATION_BITS == IDENTIFICATION


def test_a_server_of_another_user_is_told_nothing(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "own_sids", lambda: frozenset({SOMEBODY}))

    async def main() -> None:
        far, near = Recorder(), Recorder()
        listener = await listen(PipeAddress(address), lambda: far)
        with pytest.raises(ConnectError, match=f"runs as {windows.own_sid()}") as caught:
            await connect(PipeAddress(address), lambda: near)
        assert not caught.value.transient
        assert near.calls == []
        await until(lambda: far.lost_count or "made" not in far.calls)
        assert far.received == b""
        listener.close()
        await settle()

    run(main())


@pytest.mark.parametrize("sid", [SOMEBODY, None])
def test_a_client_of_another_user_is_turned_away(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, sid: str | None
) -> None:
    """It cannot be told of every process; the list of the pipe has let it in."""
    monkeypatch.setattr(windows, "client_pid", lambda handle: 4)
    monkeypatch.setattr(windows, "process_sid", lambda pid: sid)

    async def main() -> None:
        near, far = Recorder(), Recorder()
        listener = await listen(PipeAddress(address), lambda: far)
        await connect(PipeAddress(address), lambda: near)
        if sid is None:
            await far.until_called("made")
            assert far.transport.get_extra_info("credentials") == Credentials(None, 4)
            await finish(near, far)
        else:
            await near.until_called("lost")
            assert far.calls == []
        assert listener.refused == (sid is not None)
        listener.close()

    run(main())


def test_both_ends_know_who_is_there(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            mine = Credentials(None, os.getpid(), sid=windows.own_sid())
            for end in (near, far):
                assert end.transport.get_extra_info("credentials") == mine
            assert near.transport.get_extra_info("peername") == address
            assert far.transport.get_extra_info("peername") == ""

    run(main())


def test_another_process_is_known_by_its_number_and_user(run: Run, address: str) -> None:
    program = f"""
import asyncio, interphone

async def main():
    async with interphone.Client({address!r}) as client:
        print(client.peer.credentials.pid, await client.request(None))

interphone.run(main())
"""

    async def main() -> tuple[Credentials, str]:
        async with Server(address) as server:
            asked = asyncio.get_running_loop().create_future()

            @server.on_request
            def note(peer: Any, data: object) -> int:
                asked.set_result(peer.credentials)
                return peer.credentials.pid

            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return await asked, done.stdout

    credentials, told = run(main())
    assert credentials.sid == windows.own_sid()
    assert credentials.pid != os.getpid()
    assert told.split() == [str(os.getpid()), str(credentials.pid)]


def test_users_have_no_numbers_to_allow(run: Run, address: str) -> None:
    async def main() -> None:
        for verb in (listen, connect):
            with pytest.raises(ValueError, match="its own user only"):
                await verb(PipeAddress(address), Recorder, allowed_uids=frozenset({0}))

    run(main())


# The name


def test_a_living_server_keeps_its_name(run: Run, address: str) -> None:
    async def main() -> None:
        listener = await listen(PipeAddress(address), Recorder)
        with pytest.raises(AddressInUse, match="a live server listens there"):
            await listen(PipeAddress(address), Recorder)
        listener.close()
        (await listen(PipeAddress(address), Recorder)).close()

    run(main())


def test_a_name_that_is_just_being_left_is_waited_for(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            pass  # the listener is closed; its connection goes on
        near, far = Recorder(), Recorder()
        old = await listen(PipeAddress(address), lambda: far)
        await connect(PipeAddress(address), lambda: near)
        await far.until_called("made")
        old.close()
        coming = asyncio.ensure_future(listen(PipeAddress(address), Recorder))
        await settle()
        assert not coming.done()
        await finish(near, far)
        (await coming).close()

    run(main())


def test_a_name_that_nobody_leaves_is_given_up(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "LEAVING", 0.05)

    async def main() -> None:
        near, far = Recorder(), Recorder()
        old = await listen(PipeAddress(address), lambda: far)
        await connect(PipeAddress(address), lambda: near)
        await far.until_called("made")
        old.close()
        with pytest.raises(AddressInUse, match="somebody holds it"):
            await listen(PipeAddress(address), Recorder)
        await finish(near, far)

    run(main())


@pytest.mark.parametrize("winerror", [pipe.ACCESS_DENIED, pipe.PIPE_BUSY])
def test_a_name_that_windows_does_not_give_yet_is_asked_for_again(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    create = failing(3, winerror, _winapi.CreateNamedPipe)
    monkeypatch.setattr(_winapi, "CreateNamedPipe", create)

    async def main() -> None:
        (await listen(PipeAddress(address), Recorder)).close()

    run(main())


def test_a_name_that_windows_refuses_is_no_address(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = failing(1, pipe.INVALID_NAME, _winapi.CreateNamedPipe)
    monkeypatch.setattr(_winapi, "CreateNamedPipe", create)

    async def main() -> None:
        with pytest.raises(AddressError, match="cannot listen at"):
            await listen(PipeAddress(address), Recorder)

    run(main())


def test_a_missing_instance_is_made_as_soon_as_there_is_room(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pipe, "RETRY_DELAY", 0.01)
    no_resources = 1450

    async def main() -> None:
        ends: list[Recorder] = []

        def accept() -> Recorder:
            ends.append(Recorder())
            return ends[-1]

        listener = await listen(PipeAddress(address), accept, backlog=2)
        create = failing(3, no_resources, _winapi.CreateNamedPipe)
        monkeypatch.setattr(_winapi, "CreateNamedPipe", create)
        near = [Recorder() for _ in range(5)]
        for end in near:
            await connect(PipeAddress(address), lambda end=end: end)
        await until(lambda: len(ends) == 5)
        listener.close()
        await finish(*near, *ends)

    run(main())
    assert caplog.text.count("cannot accept more") == 3


# Connecting


def test_nobody_listens(run: Run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError, match="nobody listens there") as caught:
            await connect(PipeAddress(address), Recorder)
        assert caught.value.transient

    run(main())


def test_a_busy_server_is_waited_for(run: Run, address: str) -> None:
    async def main() -> None:
        with instance(address):
            other = open_by_hand(address)
            coming = asyncio.ensure_future(connect(PipeAddress(address), Recorder))
            await settle()
            assert not coming.done()
            _winapi.CloseHandle(other)
        listener = await listen(PipeAddress(address), Recorder)
        transport = await coming
        transport.abort()
        listener.close()
        await settle()

    run(main())


def test_who_gives_up_waiting_is_in_nobodys_way(run: Run, address: str) -> None:
    async def main() -> None:
        with instance(address):
            other = open_by_hand(address)
            first, second, third = (
                asyncio.ensure_future(connect(PipeAddress(address), Recorder)) for _ in range(3)
            )
            await settle()
            first.cancel()
            second.cancel()
            _winapi.CloseHandle(other)
        listener = await listen(PipeAddress(address), Recorder)
        (await third).abort()
        assert first.cancelled()
        assert second.cancelled()
        listener.close()
        await settle()

    run(main())


def test_a_server_that_stays_busy_is_given_up_for_now(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "BUSY", 0.05)

    async def main() -> None:
        with instance(address):
            other = open_by_hand(address)
            with pytest.raises(ConnectError, match="too many others") as caught:
                await connect(PipeAddress(address), Recorder)
            assert caught.value.transient
            error = await raised_by(Client(address, connect_timeout=0.2).connect())
            assert isinstance(error, ConnectError)
            assert "within 0.2 s" in str(error)
            _winapi.CloseHandle(other)

    run(main())


@pytest.mark.parametrize("lasting", [False, True])
def test_a_server_that_is_denied_is_tried_again_for_a_moment(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    create = failing(10**6 if lasting else 3, pipe.ACCESS_DENIED, _winapi.CreateFile)
    monkeypatch.setattr(_winapi, "CreateFile", create)

    async def main() -> None:
        far, near = Recorder(), Recorder()
        listener = await listen(PipeAddress(address), lambda: far)
        if lasting:
            with pytest.raises(ConnectError, match="belongs to another user") as caught:
                await connect(PipeAddress(address), lambda: near)
            assert not caught.value.transient
        else:
            await connect(PipeAddress(address), lambda: near)
            await far.until_called("made")
            await finish(near, far)
        listener.close()

    run(main())


def test_clients_that_come_and_go_disturb_nobody(run: Run, address: str) -> None:
    """As `os.stat` does, and as net-ipc does before it listens."""

    async def main() -> None:
        async with Server(address) as server:
            server.on_request(lambda peer, data: data)
            for _ in range(20):
                for _ in range(5):
                    _winapi.CloseHandle(open_by_hand(address))
                await asyncio.sleep(0)
            async with Client(address) as client:
                assert await client.request("fine") == "fine"

    run(main())


def test_an_exception_of_the_factory_leaves_nothing_open(run: Run, address: str) -> None:
    def fail() -> Recorder:
        raise ZeroDivisionError

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        listener = await listen(PipeAddress(address), fail)
        near = Recorder()
        await connect(PipeAddress(address), lambda: near)
        await near.until_called("lost")
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        with pytest.raises(ZeroDivisionError):
            await connect(PipeAddress(address), fail)
        await settle()
        listener.close()

    run(main())


def test_only_asyncios_own_loop_can_do_it(address: str) -> None:
    async def main() -> None:
        for verb in (listen, connect):
            with pytest.raises(Unsupported, match="need asyncio's ProactorEventLoop"):
                await verb(PipeAddress(address), Recorder)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_unix_sockets_are_not_there(run: Run) -> None:
    async def main() -> None:
        for verb in (listen, connect):
            with pytest.raises(Unsupported, match="Unix sockets"):
                await verb(UnixAddress("/tmp/x"), Recorder)

    run(main())


# The transport


@pytest.mark.parametrize(
    "callback",
    ["connection_made", "get_buffer", "buffer_updated", "eof_received", "pause_writing"],
)
def test_an_exception_of_the_protocol_ends_the_connection(
    run: Run, address: str, callback: str
) -> None:
    class Broken(Recorder):
        pass

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    setattr(Broken, callback, fail)

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        broken, far = Broken(), Recorder()
        listener = await listen(PipeAddress(address), lambda: far)
        transport = await connect(PipeAddress(address), lambda: broken)
        await far.until_called("made")
        far.transport.pause_reading()
        if callback == "pause_writing":
            transport.write(bytes(2**22))  # type: ignore[attr-defined]
        else:
            far.transport.write(b"x")
            far.transport.close()
        await broken.until_called("lost")
        listener.close()
        await finish(far)
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        assert isinstance(broken.error, ZeroDivisionError)

    run(main())


@pytest.mark.parametrize("size", [0, 1, 7])
def test_the_buffer_of_a_protocol_may_be_small(run: Run, address: str, size: int) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        near, far = Recorder(size=size), Recorder()
        listener = await listen(PipeAddress(address), lambda: far)
        await connect(PipeAddress(address), lambda: near)
        await far.until_called("made")
        far.transport.write(b"0123456789" * 1000)
        if size:
            assert await near.until_received(10_000) == b"0123456789" * 1000
        else:
            await near.until_called("lost")
            assert isinstance(near.error, RuntimeError)
        assert len(told) == (not size)
        listener.close()
        await finish(near, far)

    run(main())


def test_what_a_peer_said_before_it_left_is_read_when_a_write_fails(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            far.transport.write(b"refused")
            far.transport.close()
            near.transport.pause_reading()
            await far.until_called("lost")
            near.transport.resume_reading()
            near.transport.write(b"hello?")

            assert near.transport.is_closing()
            await near.until_called("lost")

            assert near.received == b"refused"
            assert isinstance(near.error, OSError)

    run(main())


def test_a_failed_write_ends_a_paused_connection_at_once(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            near.transport.pause_reading()
            far.transport.write(b"refused")
            far.transport.close()
            await far.until_called("lost")
            near.transport.write(b"hello?")
            await near.until_called("lost")

            assert near.received == b""
            assert isinstance(near.error, OSError)

    run(main())


def test_the_peer_vanishing_while_much_is_to_be_written_is_told(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            near.transport.pause_reading()
            far.transport.pause_reading()
            near.transport.write(bytes(2**22))
            far.transport.abort()
            await near.until_called("lost")

            assert isinstance(near.error, OSError)
            assert near.transport.get_write_buffer_size() == 0

    run(main())


def test_a_large_write_is_seen_to_make_progress(run: Run, address: str) -> None:
    """Else a slow reader of a large frame would be taken for one that reads nothing."""

    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            far.transport.pause_reading()
            near.transport.write(bytes(2**20))
            before = near.transport.get_write_buffer_size()
            far.on_bytes = lambda: far.transport.pause_reading()
            sizes = {before}
            while len(far.received) < 2**20:
                received = len(far.received)
                far.transport.resume_reading()
                await far.until(lambda received=received: len(far.received) > received)
                sizes.add(near.transport.get_write_buffer_size())
            assert len(sizes) > 10

    run(main())


def test_a_peer_that_is_gone_is_seen_without_reading(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            near.transport.pause_reading()
            far.transport.write(b"unread")
            assert not hung_up(near.transport)
            far.transport.close()
            await far.until_called("lost")
            assert hung_up(near.transport)
            near.transport.resume_reading()
            await near.until_called("lost")
            assert near.received == b"unread"

    run(main())


def test_the_protocol_can_change(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            other = Recorder()
            other.connection_made(near.transport)
            near.transport.set_protocol(other)
            assert near.transport.get_protocol() is other
            with pytest.raises(TypeError):
                near.transport.set_protocol(asyncio.Protocol())
            far.transport.write(b"x")
            await other.until_received(1)
            near.transport.set_protocol(near)

    run(main())


def test_what_a_transport_and_a_listener_look_like(run: Run, address: str) -> None:
    async def main() -> None:
        listener = await listen(PipeAddress(address), Recorder)
        assert repr(listener) == f"<PipeListener {address} listening>"
        transport = await connect(PipeAddress(address), Recorder)
        assert repr(transport) == "<PipeTransport open 0 to write>"
        transport.abort()
        assert repr(transport) == "<PipeTransport closed 0 to write>"
        listener.close()
        listener.close()
        assert repr(listener) == f"<PipeListener {address} closed>"
        await settle()

    run(main())


# The whole


def test_a_peer_that_reads_nothing_cannot_hold_up_close(run: Run, address: str) -> None:
    async def main() -> None:
        limits = Limits(close_timeout=0.05)
        server = Server(address, limits=limits)
        async with server, Raw.connect(address) as stuck:
            await stuck.open()
            stuck.writer.transport.pause_reading()
            (peer,) = server.peers.values()
            while not peer.connection.blocked:
                await peer.send("x" * 50_000)
            async with asyncio.timeout(5):
                await server.close(grace=0.05)
            assert not server.peers

    run(main())


def test_two_thousand_connections_leave_nothing(run: Run, address: str) -> None:
    async def main() -> None:
        accepted: list[Recorder] = []

        def accept() -> Recorder:
            accepted.append(Recorder())
            return accepted[-1]

        listener = await listen(PipeAddress(address), accept)
        before = 0
        for number in range(2000):
            near = Recorder()
            await connect(PipeAddress(address), lambda near=near: near)
            await until(lambda number=number: len(accepted) > number)
            (near if number % 2 else accepted[-1]).transport.close()
            await near.until_called("lost")
            await accepted[-1].until_called("lost")
            if number == 100:
                before = handles()
        assert len(accepted) == 2000
        assert handles() <= before + 2
        listener.close()

    run(main())


def test_ten_mebibytes_arrive_intact(run: Run, address: str) -> None:
    async def main() -> None:
        data = os.urandom(10 * 2**20)
        async with Server(address) as server, Client(address) as client:
            server.on_request(lambda peer, data: data)
            assert await client.request(data, returns=bytes) == data

    run(main())


def test_fifty_clients_come_back_to_a_server_that_is_restarted(run: Run, address: str) -> None:
    async def main() -> None:
        server = Server(address)
        server.on_request(lambda peer, data: data)
        await server.start()
        clients = [Client(address, backoff=Backoff(initial=0.01, cap=0.1)) for _ in range(50)]
        await asyncio.gather(*(client.connect() for client in clients))
        for restart in range(3):
            await server.close(allow_reconnect=True)
            await server.start()
            answers = (client.request(restart, timeout=20) for client in clients)
            assert await asyncio.gather(*answers) == [restart] * 50
            assert len(server.peers) == 50
        await asyncio.gather(*(client.close() for client in clients))
        await server.close()

    run(main())


def test_a_hundred_clients_connect_at_once(run: Run, address: str) -> None:
    async def main() -> None:
        async with Server(address) as server:
            server.on_request(lambda peer, data: data)
            clients = [Client(address, backoff=None) for _ in range(100)]
            await asyncio.gather(*(client.connect() for client in clients))
            answers = (client.request(n) for n, client in enumerate(clients))
            assert await asyncio.gather(*answers) == [*range(100)]
            await asyncio.gather(*(client.close() for client in clients))

    run(main())
