from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interphone.address import PipeAddress, UnixAddress, path_limit
from interphone.errors import AddressError, AddressInUse, ConnectError, Unsupported
from interphone.transports import Credentials, connect, credentials, listen, plain, sockets, unix
from interphone.transports import claim as claims
from support.transports import OWN_CHECKS, Check, OpenPair, Pair, Recorder, finish, settle

Run = Callable[[Coroutine[Any, Any, Any]], Any]

linux = pytest.mark.skipif(sys.platform != "linux", reason="how Linux does it")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="NOT PROVEN HERE: needs root, to become another user"
)


def pair_maker(address: str) -> OpenPair:
    @asynccontextmanager
    async def open_pair() -> AsyncIterator[Pair]:
        near, far = Recorder(), Recorder()
        listener = await listen(UnixAddress(address), lambda: far)
        await connect(UnixAddress(address), lambda: near)
        await far.until_called("made")
        try:
            yield near, far
        finally:
            listener.close()
            await finish(near, far)

    return open_pair


@pytest.fixture
def foreign(address: str) -> Iterator[socket.socket]:
    """A listener that takes no lock, like Node's."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address)
        sock.listen(1)
        yield sock


@pytest.mark.parametrize("check", OWN_CHECKS, ids=lambda check: check.__name__)
def test_contract(run: Run, address: str, check: Check) -> None:
    run(check(pair_maker(address)))


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
        listener = await listen(UnixAddress(address), lambda: far)
        transport = await connect(UnixAddress(address), lambda: broken)
        await far.until_called("made")
        far.transport.pause_reading()
        if callback == "pause_writing":
            transport.write(bytes(2**22))  # type: ignore[attr-defined]
        else:
            far.transport.write(b"x")
            far.transport.write_eof()
        await broken.until_called("lost")
        listener.close()
        await finish(far)
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        assert isinstance(broken.error, ZeroDivisionError)

    run(main())


def test_an_empty_buffer_ends_the_connection(run: Run, address: str) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        near, far = Recorder(size=0), Recorder()
        listener = await listen(UnixAddress(address), lambda: far)
        await connect(UnixAddress(address), lambda: near)
        await far.until_called("made")
        far.transport.write(b"x")
        await near.until_called("lost")
        assert isinstance(near.error, RuntimeError)
        assert len(told) == 1
        listener.close()
        await finish(far)

    run(main())


def test_an_exception_of_the_factory_leaves_nothing_open(run: Run, address: str) -> None:
    def fail() -> Recorder:
        raise ZeroDivisionError

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        listener = await listen(UnixAddress(address), fail)
        near = Recorder()
        await connect(UnixAddress(address), lambda: near)
        await near.until_called("lost")
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        with pytest.raises(ZeroDivisionError):
            await connect(UnixAddress(address), fail)
        await settle()
        listener.close()

    run(main())


def test_what_a_peer_said_before_it_left_is_read_when_a_write_fails(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            near.transport.pause_reading()
            far.transport.write(b"refused")
            far.transport.close()
            await far.until_called("lost")
            near.transport.resume_reading()
            near.transport.write(b"hello?")

            assert near.transport.is_closing()
            await near.until_called("lost")

            assert near.received == b"refused"
            assert isinstance(near.error, BrokenPipeError)

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
            assert isinstance(near.error, BrokenPipeError)

    run(main())


def test_the_peer_vanishing_while_much_is_to_be_written_is_told(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            near.transport.pause_reading()
            far.transport.pause_reading()
            near.transport.write(bytes(2**22))
            far.transport.abort()
            await near.until_called("lost")

            assert isinstance(near.error, BrokenPipeError | ConnectionResetError)
            assert near.transport.get_write_buffer_size() == 0

    run(main())


def test_reading_can_pause_when_the_connection_is_made(run: Run, address: str) -> None:
    class Patient(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async def main() -> None:
        near, far = Patient(), Recorder()
        listener = await listen(UnixAddress(address), lambda: far)
        await connect(UnixAddress(address), lambda: near)
        await far.until_called("made")
        far.transport.write(b"later")
        await settle()
        assert near.received == b""
        near.transport.resume_reading()
        await near.until_received(5)
        listener.close()
        await finish(near, far)

    run(main())


def test_pausing_after_the_end_does_not_touch_who_got_the_descriptor(
    run: Run, address: str
) -> None:
    async def main() -> None:
        server = Recorder()
        listener = await listen(UnixAddress(address), lambda: server)
        first, second = Recorder(), Recorder()
        await connect(UnixAddress(address), lambda: first)
        await server.until_called("made")
        await finish(first, server)
        server = Recorder()
        await connect(UnixAddress(address), lambda: second)
        await server.until_called("made")

        first.transport.pause_reading()
        first.transport.resume_reading()
        server.transport.write(b"still there")

        await second.until_received(11)
        listener.close()
        await finish(second, server)

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


def test_both_ends_know_who_is_there(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            mine = Credentials(os.geteuid(), os.getpid(), os.getegid())
            for end in (near, far):
                assert end.transport.get_extra_info("credentials") == mine
                assert end.transport.get_extra_info("socket").fileno() >= 0
            assert near.transport.get_extra_info("peername") == address
            assert far.transport.get_extra_info("peername") == ""

    run(main())


def test_an_unclosed_transport_is_told(run: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            transport = sockets.SocketTransport(asyncio.get_running_loop(), ours, Recorder())
            with pytest.warns(ResourceWarning, match="unclosed <SocketTransport"):
                del transport
            assert ours.fileno() == -1

    run(main())


def test_five_hundred_connections_leave_nothing(run: Run, address: str) -> None:
    async def main() -> None:
        accepted: list[Recorder] = []

        def accept() -> Recorder:
            accepted.append(Recorder())
            return accepted[-1]

        listener = await listen(UnixAddress(address), accept)
        before = descriptors()
        for number in range(500):
            near = Recorder()
            await connect(UnixAddress(address), lambda near=near: near)
            await settle()
            (near if number % 2 else accepted[-1]).transport.close()
            await near.until_called("lost")
            await accepted[-1].until_called("lost")
        assert len(accepted) == 500
        assert descriptors() == before
        listener.close()

    run(main())


def descriptors() -> int:
    return sum(1 for fd in range(256) if is_open(fd))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# Connecting


def test_nobody_listens(run: Run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError, match="nobody listens there") as caught:
            await connect(UnixAddress(address), Recorder)
        assert caught.value.transient

    run(main())


def test_nobody_listens_any_more(run: Run, address: str, foreign: socket.socket) -> None:
    foreign.close()

    async def main() -> None:
        with pytest.raises(ConnectError, match="any more") as caught:
            await connect(UnixAddress(address), Recorder)
        assert caught.value.transient

    run(main())


@linux
def test_a_full_backlog_is_no_success(run: Run, address: str, foreign: socket.socket) -> None:
    waiting = fill_backlog(address)

    async def main() -> None:
        with pytest.raises(ConnectError, match="too many others") as caught:
            await connect(UnixAddress(address), Recorder)
        assert caught.value.transient

    run(main())
    for sock in waiting:
        sock.close()


def fill_backlog(address: str) -> list[socket.socket]:
    waiting = []
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            sock.close()
            return waiting
        waiting.append(sock)


def test_pipes_are_not_there(run: Run) -> None:
    async def main() -> None:
        for verb in (listen, connect):
            with pytest.raises(Unsupported, match="a thing of Windows"):
                await verb(PipeAddress("\\\\.\\pipe\\x"), Recorder)

    run(main())


def test_a_path_that_is_too_long_is_told(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError) as caught:
            await connect(UnixAddress(f"/tmp/{'x' * 200}"), Recorder)
        assert not caught.value.transient

    run(main())


# The path


def test_only_the_owner_may_connect(run: Run, address: str) -> None:
    before = os.umask(0)
    try:

        async def main() -> None:
            listener = await listen(UnixAddress(address), Recorder)
            assert stat.S_IMODE(os.lstat(address).st_mode) == 0o600
            assert stat.S_IMODE(os.lstat(f"{address}.lock").st_mode) == 0o600
            listener.close()

        run(main())
    finally:
        os.umask(before)


def test_the_mode_is_set_before_anybody_can_connect(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[tuple[str, int]] = []
    directory = os.path.dirname(address)
    bind = claims._bind
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("umask is for the whole process"))

    def bind_and_look(*args: Any) -> None:
        bind(*args)
        names = sorted(set(os.listdir(directory)) - {"s.lock"})
        modes.extend((n, os.lstat(f"{directory}/{n}").st_mode & 0o777) for n in names)

    monkeypatch.setattr(claims, "_bind", bind_and_look)
    claim = claims.Claim(UnixAddress(address))
    claim.publish(mode=0o600, backlog=1).close()
    claim.release()

    (name, mode) = modes[0]
    assert len(modes) == 1
    assert name != "s"
    assert mode == 0o600


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_macos_sets_the_mode_under_another_name_and_not_by_fchmod(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """There `fchmod` fails on a socket, and there is no /proc to name a directory by."""
    found: list[tuple[list[str], int]] = []
    directory = os.path.dirname(address)

    class Door(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            names = sorted(set(os.listdir(directory)) - {"s.lock"})
            found.append((names, stat.S_IMODE(os.lstat(f"{directory}/{names[0]}").st_mode)))
            super().listen(backlog)

    monkeypatch.setattr(claims, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(claims.socket, "socket", Door)
    monkeypatch.setattr(os, "fchmod", lambda *_: pytest.fail("macOS has no fchmod for sockets"))
    monkeypatch.setattr(os, "link", lambda *_, **__: pytest.fail("nor links to sockets"))
    claim = claims.Claim(UnixAddress(address))
    claim.publish(mode=mode, backlog=1).close()

    (((name,), told),) = found
    assert name != "s"
    assert told == mode
    assert stat.S_IMODE(os.lstat(address).st_mode) == mode
    claim.release()
    assert os.listdir(directory) == []


def test_nothing_is_left_after_close(run: Run, address: str) -> None:
    async def main() -> None:
        listener = await listen(UnixAddress(address), Recorder)
        assert listener.address == UnixAddress(address)
        listener.close()
        listener.close()

    run(main())
    assert os.listdir(os.path.dirname(address)) == []


def test_accepted_connections_outlive_the_listener(run: Run, address: str) -> None:
    async def main() -> None:
        near, far = Recorder(), Recorder()
        listener = await listen(UnixAddress(address), lambda: far)
        await connect(UnixAddress(address), lambda: near)
        await far.until_called("made")
        listener.close()
        near.transport.write(b"still here")
        assert await far.until_received(10) == b"still here"
        await finish(near, far)

    run(main())


def test_the_listener_can_be_closed_while_it_accepts(run: Run, address: str) -> None:
    async def main() -> None:
        ends: list[Recorder] = []

        def close_and_accept() -> Recorder:
            listener.close()
            ends.append(Recorder())
            return ends[-1]

        listener = await listen(UnixAddress(address), close_and_accept)
        nears = [Recorder() for _ in range(5)]
        for near in nears:
            await connect(UnixAddress(address), lambda near=near: near)
        for near in nears[1:]:
            await near.until_called("lost")
        assert len(ends) == 1
        await finish(nears[0], *ends)

    run(main())


def test_a_dead_socket_is_replaced(run: Run, address: str, foreign: socket.socket) -> None:
    foreign.close()
    run(serve_once(address))


@pytest.mark.parametrize("length", [107, 106, 95, 94, 93])
@linux
def test_the_longest_path_works(run: Run, address: str, length: int) -> None:
    path = address + "x" * (length - len(address))
    assert path_limit() == 107

    run(serve_once(path))


async def serve_once(address: str) -> None:
    async with pair_maker(address)() as (near, far):
        near.transport.write(b"hello")
        await far.until_received(5)


def test_a_live_server_is_not_displaced(run: Run, address: str) -> None:
    async def main() -> None:
        async with pair_maker(address)() as (near, far):
            with pytest.raises(AddressInUse) as caught:
                await listen(UnixAddress(address), Recorder)
            assert caught.value.pid == os.getpid()
            near.transport.write(b"!")
            await far.until_received(1)

    run(main())


def test_a_live_server_without_a_lock_is_not_displaced(
    run: Run, address: str, foreign: socket.socket
) -> None:
    async def main() -> None:
        with pytest.raises(AddressInUse) as caught:
            await listen(UnixAddress(address), Recorder)
        assert caught.value.pid == os.getpid()

    run(main())
    assert os.listdir(os.path.dirname(address)) == ["s"]


@linux
def test_a_live_server_with_a_full_backlog_is_not_displaced(
    run: Run, address: str, foreign: socket.socket
) -> None:
    waiting = fill_backlog(address)

    async def main() -> None:
        with pytest.raises(AddressInUse, match="live"):
            await listen(UnixAddress(address), Recorder)

    run(main())
    for sock in waiting:
        sock.close()


@linux
def test_a_server_without_a_lock_that_comes_in_between_is_not_displaced(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = claims._bind
    with socket.socket(socket.AF_UNIX) as late:

        def bind_both(*args: Any) -> None:
            late.bind(address)
            late.listen()
            bind(*args)

        monkeypatch.setattr(claims, "_bind", bind_both)

        async def main() -> None:
            with pytest.raises(AddressInUse, match="faster"):
                await listen(UnixAddress(address), Recorder)

        run(main())

        assert os.listdir(os.path.dirname(address)) == ["s"]


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link", "link to a socket"])
def test_what_is_no_socket_is_not_touched(run: Run, address: str, kind: str) -> None:
    path, target = Path(address), Path(f"{address}.target")
    make_obstacle(path, target, kind)
    before = path.lstat()

    async def main() -> None:
        with pytest.raises(AddressInUse, match="not a socket"):
            await listen(UnixAddress(address), Recorder)

    run(main())
    assert path.lstat().st_ino == before.st_ino
    assert kind != "file" or path.read_bytes() == b"precious"
    assert not Path(f"{address}.lock").exists()


def make_obstacle(path: Path, target: Path, kind: str) -> None:
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(target)
    if kind == "link":
        target.write_bytes(b"precious")
    if kind == "link to a socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(target))


@pytest.mark.parametrize("kind", ["link", "directory", "long", "words", "hard link"])
def test_what_is_no_lock_is_not_touched(run: Run, address: str, kind: str) -> None:
    lock, target = Path(f"{address}.lock"), Path(f"{address}.target")
    make_obstacle_for_lock(lock, target, kind)
    before = lock.lstat()

    async def main() -> None:
        with pytest.raises(AddressInUse, match="its lock is"):
            await listen(UnixAddress(address), Recorder)

    run(main())
    after = lock.lstat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
    assert not target.exists() or target.read_bytes() == b"12"


def make_obstacle_for_lock(lock: Path, target: Path, kind: str) -> None:
    if kind == "directory":
        lock.mkdir()
    elif kind == "long":
        lock.write_bytes(b"1" * 100)
    elif kind == "words":
        lock.write_bytes(b"version = 1\n")
    else:
        target.write_bytes(b"12")
        (lock.symlink_to if kind == "link" else lock.hardlink_to)(target)


def test_a_dead_lock_is_taken_over(run: Run, address: str) -> None:
    Path(f"{address}.lock").write_bytes(b"4000000\n")

    run(serve_once(address))


def test_a_path_that_is_somebody_elses_by_now_is_not_removed(run: Run, address: str) -> None:
    with socket.socket(socket.AF_UNIX) as thief:

        async def main() -> None:
            listener = await listen(UnixAddress(address), Recorder)
            await asyncio.to_thread(replace, thief, address)
            listener.close()

        run(main())
        assert stat.S_ISSOCK(os.lstat(address).st_mode)


def replace(thief: socket.socket, address: str) -> None:
    Path(address).rename(f"{address}.old")
    thief.bind(address)


def test_a_lock_that_was_removed_under_us_is_tried_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(f"{address}.lock")
    lock = claims._try_lock
    tries: list[bool] = []

    def lock_late(fd: int) -> bool:
        if not tries:
            path.unlink()
        tries.append(lock(fd))
        return tries[-1]

    monkeypatch.setattr(claims, "_try_lock", lock_late)
    claim = claims.Claim(UnixAddress(address))

    assert tries == [True, True]
    assert path.read_bytes() == b"%d\n" % os.getpid()
    claim.release()


def test_a_forked_child_leaves_the_path_alone(address: str) -> None:
    script = """
        async def main():
            listener = await listen(UnixAddress(address), asyncio.BufferedProtocol)
            if os.fork() == 0:
                listener.close()
                os._exit(0)
            os.wait()
            await connect(UnixAddress(address), Silent)
            assert os.path.exists(address + ".lock")
            os._exit(7)
        asyncio.run(main())
    """
    with python(script, address) as process:
        assert process.wait(20) == 7


def test_a_directory_that_is_not_there_is_told(run: Run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(AddressError, match="No such file"):
            await listen(UnixAddress(f"{address}/deeper"), Recorder)

    run(main())


# The private directory


@pytest.fixture
def private(address: str) -> UnixAddress:
    return UnixAddress(f"{os.path.dirname(address)}/own/s", private=True)


def test_the_private_directory_is_made(run: Run, private: UnixAddress) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError) as caught:
            await connect(private, Recorder)
        assert caught.value.transient
        far, near = Recorder(), Recorder()
        listener = await listen(private, lambda: far)
        mode = os.lstat(os.path.dirname(private.path)).st_mode
        assert (stat.S_ISDIR(mode), stat.S_IMODE(mode)) == (True, 0o700)
        await connect(private, lambda: near)
        await far.until_called("made")
        listener.close()
        await finish(near, far)

    run(main())


@pytest.mark.parametrize("kind", ["group", "others", "link", "file"])
def test_an_unsafe_private_directory_is_refused(run: Run, private: UnixAddress, kind: str) -> None:
    directory = Path(private.path).parent
    make_unsafe(directory, kind)

    async def main() -> None:
        with pytest.raises(AddressError):
            await listen(private, Recorder)
        with pytest.raises(AddressError):
            await connect(private, Recorder)

    run(main())


def make_unsafe(directory: Path, kind: str) -> None:
    if kind == "file":
        directory.touch()
    elif kind == "link":
        target = directory.with_name("target")
        target.mkdir(0o700)
        directory.symlink_to(target)
    else:
        directory.mkdir()
        directory.chmod(0o710 if kind == "group" else 0o701)


@needs_root
def test_a_private_directory_of_somebody_else_is_refused(run: Run, private: UnixAddress) -> None:
    directory = Path(private.path).parent
    directory.mkdir(0o700)
    os.chown(directory, 65533, 65533)

    async def main() -> None:
        with pytest.raises(AddressError, match="belongs to uid 65533"):
            await listen(private, Recorder)
        with pytest.raises(AddressError, match="belongs to uid 65533"):
            await connect(private, Recorder)

    run(main())


# Who is at the other end


@linux
def test_credentials_of_linux() -> None:
    def answer(level: int, option: int, size: int) -> bytes:
        assert (level, option, size) == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.pack("iII", 0, 4_000_000_000, 5)

    assert credentials.linux_credentials(answer) == Credentials(4_000_000_000, None, 5)


def xucred(version: int = 0, uid: int = 501, count: int = 2) -> bytes:
    return struct.pack("IIh2x16I", version, uid, count, 20, 12, *[0] * 14)


def test_credentials_of_macos() -> None:
    answers = {(0, 1, 76): xucred(), (0, 2, 4): struct.pack("i", 77)}

    assert credentials.bsd_credentials(lambda *asked: answers[asked]) == Credentials(501, 77, 20)


def test_macos_is_asked_as_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sock:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            return {1: xucred(), 2: struct.pack("i", 77)}[option][:size]

    monkeypatch.setattr(credentials, "sys", SimpleNamespace(platform="darwin"))

    assert credentials.peer_credentials(Sock()) == Credentials(501, 77, 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("raw", [xucred(version=1), xucred(count=0), xucred(count=17)])
def test_strange_credentials_are_none(raw: bytes) -> None:
    assert credentials.bsd_credentials(lambda *_: raw) is None


def test_credentials_without_a_process() -> None:
    def answer(level: int, option: int, size: int) -> bytes:
        if option == 2:
            raise OSError(errno.EINVAL, "not here")
        return xucred()

    assert credentials.bsd_credentials(answer) == Credentials(501, None, 20)


@pytest.mark.parametrize("size", [0, 4, 11])
def test_short_credentials_are_refused(size: int) -> None:
    class Strange:
        def getsockopt(self, *_: int) -> bytes:
            return bytes(size)

    assert credentials.peer_credentials(Strange()) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "found", [None, Credentials(12345), Credentials(65534)], ids=["unknown", "other", "overflow"]
)
def test_strangers_are_turned_away_before_anything_is_made(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch, found: Credentials | None
) -> None:
    async def main() -> None:
        listener = await listen(
            UnixAddress(address), lambda: pytest.fail("made"), allowed_uids=frozenset({0, 65534})
        )
        near = Recorder()
        await connect(UnixAddress(address), lambda: near)
        for module in (unix, plain):
            monkeypatch.setattr(module, "peer_credentials", lambda _: found)
        await near.until_called("lost")
        assert listener.refused == 1
        with pytest.raises(ConnectError) as caught:
            await connect(UnixAddress(address), lambda: pytest.fail("made"))
        assert not caught.value.transient
        listener.close()

    run(main())


def test_our_own_user_must_be_allowed_too(run: Run, address: str) -> None:
    async def main() -> None:
        listener = await listen(
            UnixAddress(address), Recorder, allowed_uids=frozenset({os.geteuid() + 1})
        )
        assert stat.S_IMODE(os.lstat(address).st_mode) == 0o666
        near = Recorder()
        await connect(UnixAddress(address), lambda: near)
        await near.until_called("lost")
        assert listener.refused == 1
        listener.close()

    run(main())


@needs_root
def test_another_user_is_refused_by_the_server(run: Run, address: str) -> None:
    os.chmod(os.path.dirname(address), 0o755)
    script = """
        async def main():
            try:
                await connect(UnixAddress(address), Silent, allowed_uids=frozenset({0}))
            except ConnectError as exc:
                assert not exc.transient
                print(exc)
            else:
                await Silent.lost.wait()
                print("turned away")
        become(65533)
        asyncio.run(main())
    """

    async def main() -> None:
        listener = await listen(UnixAddress(address), lambda: pytest.fail("made"))

        assert "Permission denied" in await say(script, address)
        assert listener.refused == 0
        os.chmod(address, 0o666)
        assert await say(script, address) == "turned away"
        assert listener.refused == 1
        listener.close()

    run(main())


@needs_root
def test_another_user_can_be_allowed(run: Run, address: str) -> None:
    os.chmod(os.path.dirname(address), 0o755)
    script = """
        async def main():
            transport = await connect(UnixAddress(address), Silent, allowed_uids=frozenset({0}))
            transport.write(b"hello")
            await Silent.lost.wait()
            print("served")
        become(65533)
        asyncio.run(main())
    """

    async def main() -> None:
        far = Recorder()
        far.on_bytes = lambda: far.transport.close()
        listener = await listen(UnixAddress(address), lambda: far, allowed_uids=frozenset({65533}))
        assert await say(script, address) == "served"
        assert far.transport.get_extra_info("credentials").uid == 65533
        listener.close()

    run(main())


@needs_root
def test_a_server_of_another_user_is_refused_by_the_client(run: Run, address: str) -> None:
    os.chmod(os.path.dirname(address), 0o777)
    script = """
        async def main():
            await listen(UnixAddress(address), Silent)
            print("ready", flush=True)
            sys.stdin.read()
        become(65533)
        asyncio.run(main())
    """

    async def main() -> None:
        with pytest.raises(ConnectError, match="runs as uid 65533, which is not allowed") as caught:
            await connect(UnixAddress(address), lambda: pytest.fail("made"))
        assert not caught.value.transient
        with pytest.raises(AddressInUse):
            await listen(UnixAddress(address), Recorder)

    with python(script, address) as process:
        assert ready(process) == "ready"
        run(main())
        process.kill()
    assert dead_socket_of_another_is_kept(run, address)


def dead_socket_of_another_is_kept(run: Run, address: str) -> bool:
    os.unlink(f"{address}.lock")

    async def main() -> None:
        with pytest.raises(AddressInUse, match="dead socket of uid 65533"):
            await listen(UnixAddress(address), Recorder)

    run(main())
    return stat.S_ISSOCK(os.lstat(address).st_mode)


# Running out of descriptors


def test_running_out_of_descriptors_is_survived(address: str) -> None:
    script = """
        import logging, resource, time
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        logs = []
        class Keep(logging.Handler):
            def emit(self, record):
                logs.append(record.getMessage())
        logging.getLogger("interphone.transports").addHandler(Keep())

        class Echo(asyncio.BufferedProtocol):
            buffer = bytearray(100)
            def connection_made(self, transport):
                self.transport = transport
            def get_buffer(self, sizehint):
                return self.buffer
            def buffer_updated(self, n):
                self.transport.write(self.buffer[:n])

        async def main():
            listener = await listen(UnixAddress(address), Echo)
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            print(len(logs), listener.shed, time.process_time(), flush=True)
            listener.close()
            os._exit(0)
        asyncio.run(main())
    """
    with python(script, address) as process, ExitStack() as opened:
        assert ready(process) == "ready"
        clients = [opened.enter_context(dial(address)) for _ in range(200)]
        served = [sock for sock in clients if echoes(sock)]
        assert 5 <= len(served) < 40
        for sock in clients:
            if sock not in served:
                sock.close()
        assert all(echoes(sock) for sock in served)
        for sock in served:
            sock.close()
        again = until_served(address)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        logs, shed, seconds = ready(process).split()
        assert int(logs) <= 2
        assert int(shed) == 200 - len(served) + again
        assert float(seconds) < 5


def test_without_a_reserve_it_waits_and_goes_on(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        far, near = Recorder(), Recorder()
        listener = await listen(UnixAddress(address), lambda: far)
        assert isinstance(listener, unix.UnixListener)
        accepts = 0
        tried = asyncio.Event()

        class Exhausted:
            def accept(self) -> None:
                nonlocal accepts
                accepts += 1
                tried.set()
                raise OSError(errno.EMFILE, "Too many open files")

            def fileno(self) -> int:
                return real.fileno()

        monkeypatch.setattr(unix, "_open_reserve", lambda: None)
        real, listener._sock = listener._sock, Exhausted()  # type: ignore[assignment]
        await connect(UnixAddress(address), lambda: near)
        await tried.wait()
        await settle()
        assert accepts == 2
        listener._sock = real
        monkeypatch.undo()
        await far.until_called("made")
        listener.close()
        await finish(near, far)

    run(main())


# Several processes


@pytest.mark.slow
def test_of_many_servers_that_start_at_once_one_wins(address: str) -> None:
    """Two hundred times eight; each time but the first over what kill -9 has left."""
    script = """
        import signal

        def race(go, result):
            os.read(go, 1)
            async def main():
                await listen(UnixAddress(address), Silent)
                os.write(result, b"w")
                signal.pause()
            try:
                asyncio.run(main())
            except AddressInUse:
                os.write(result, b"l")
            os._exit(0)

        for number in range(200):
            go, start = os.pipe()
            results, result = os.pipe()
            children = []
            for _ in range(8):
                if (child := os.fork()) == 0:
                    os.close(start)
                    race(go, result)
                children.append(child)
            os.close(start)
            os.close(go)
            os.close(result)
            found = b""
            while len(found) < 8:
                assert (more := os.read(results, 8)), found
                found += more
            assert sorted(found) == sorted(b"wlllllll"), (number, found)
            unix.connect_socket(UnixAddress(address))[0].close()
            for child in children:
                os.kill(child, signal.SIGKILL)
            for child in children:
                os.waitpid(child, 0)
            os.close(results)
        print("done")
    """
    with python(script, address) as process:
        assert ready(process) == "done"
    assert set(os.listdir(os.path.dirname(address))) == {"s", "s.lock"}


@pytest.mark.slow
def test_servers_that_come_and_go_are_never_two(address: str) -> None:
    script = """
        def come_and_go():
            witness = address + ".witness"
            async def main():
                wins = 0
                while wins < 50:
                    try:
                        listener = await listen(UnixAddress(address), Silent)
                    except AddressInUse:
                        continue
                    os.close(os.open(witness, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    unix.connect_socket(UnixAddress(address))[0].close()
                    os.unlink(witness)
                    listener.close()
                    wins += 1
            asyncio.run(main())

        children = []
        for _ in range(6):
            if (child := os.fork()) == 0:
                try:
                    come_and_go()
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
                os._exit(0)
            children.append(child)
        print([os.waitpid(child, 0)[1] for child in children])
    """
    with python(script, address) as process:
        assert ready(process) == str([0] * 6)
    assert os.listdir(os.path.dirname(address)) == []


def test_a_server_that_was_killed_is_replaced(run: Run, address: str) -> None:
    script = """
        async def main():
            await listen(UnixAddress(address), Silent)
            print("ready", flush=True)
            sys.stdin.read()
        asyncio.run(main())
    """

    async def taken() -> None:
        with pytest.raises(AddressInUse) as caught:
            await listen(UnixAddress(address), Recorder)
        assert caught.value.pid == process.pid

    with python(script, address) as process:
        assert ready(process) == "ready"
        run(taken())
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert os.path.exists(address)
    run(serve_once(address))


PRELUDE = """
import asyncio, os, sys
from interphone.address import UnixAddress
from interphone.errors import AddressInUse, ConnectError
from interphone.transports import connect, listen, unix

address = sys.argv[1]

class Silent(asyncio.BufferedProtocol):
    lost = asyncio.Event()
    def get_buffer(self, sizehint):
        return bytearray(100)
    def connection_lost(self, exc):
        self.lost.set()

def become(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
"""


def python(script: str, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def say(script: str, address: str) -> str:
    process = await asyncio.to_thread(python, script, address)
    try:
        out, _ = await asyncio.to_thread(process.communicate, None, 20)
    finally:
        process.kill()
    return out.strip()


def dial(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(address)
    return sock


def until_served(address: str) -> int:
    """Dial until there is a descriptor again; give how often there was none."""
    for turned_away in range(1000):
        with dial(address) as sock:
            if echoes(sock):
                return turned_away
    raise AssertionError("never served again")


def echoes(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"?")
        return sock.recv(1) == b"?"
    except (BrokenPipeError, ConnectionResetError):
        return False
