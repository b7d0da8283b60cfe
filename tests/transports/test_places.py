"""Looking at the place of a socket, and mending it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from interphone import AddressInUse, Server, UnixAddress
from interphone.transports.places import clear, look_at, look_at_directory, restrict, sockets_in

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no Unix sockets")


def leave_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.fixture
def path(address) -> Path:
    return Path(address)


def test_nothing_is_there(path):
    place = look_at(str(path))

    assert (place.state, place.listener, place.lock) == ("missing", "none", "missing")


def test_file_is_no_socket(path):
    path.write_text("x")
    place = look_at(str(path))

    assert (place.state, place.listener, place.ours) == ("other", "none", True)


def test_living_server_is_told_by_the_kernel(run, path):
    async def main() -> None:
        async with Server(path):
            place = look_at(str(path))
            assert (place.state, place.listener, place.mode) == ("socket", "alive", 0o600)
            assert place.credentials is not None
            assert place.credentials.pid == os.getpid()
            assert (place.lock, place.lock_pid) == ("held", os.getpid())
            assert sockets_in(str(path.parent)) == [str(path)]

    run(main())


def test_lock_is_held_though_the_socket_is_gone(run, path):
    async def main() -> None:
        async with Server(path):
            await asyncio.to_thread(path.unlink)
            place = look_at(str(path))
            assert (place.state, place.lock, place.lock_pid) == ("missing", "held", os.getpid())

    run(main())


@pytest.mark.parametrize(
    ("content", "lock"), [("7\n", "free"), ("", "free"), ("x" * 30, "strange")]
)
def test_left_over_socket_and_lock(path, content, lock):
    leave_over(path)
    Path(f"{path}.lock").write_text(content)
    place = look_at(str(path))

    assert (place.listener, place.lock) == ("dead", lock)
    assert place.lock_pid == (7 if content == "7\n" else None)


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_lock_that_is_no_file_is_strange(path, make):
    make(f"{path}.lock")

    assert look_at(str(path)).lock == "strange"


def test_socket_that_is_no_stream_cannot_be_told(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert look_at(str(path)).listener == "unknown"


def test_full_backlog_is_alive(path):
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        assert look_at(str(path)).listener == "alive"


def test_left_over_is_cleared(path):
    leave_over(path)
    Path(f"{path}.lock").write_text("7\n")

    assert clear(UnixAddress(str(path))) is True
    assert clear(UnixAddress(str(path))) is False
    assert [*path.parent.iterdir()] == []


def test_what_lives_or_is_no_socket_is_not_cleared(run, path):
    async def main() -> None:
        async with Server(path) as server:
            with pytest.raises(AddressInUse):
                clear(UnixAddress(str(path)))
            assert look_at(str(path)).listener == "alive"
            assert server.ready

    run(main())
    path.write_text("precious")
    with pytest.raises(AddressInUse):
        clear(UnixAddress(str(path)))
    assert path.read_text() == "precious"


def test_living_server_without_a_lock_is_not_cleared(path):
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(str(path))
        node.listen()
        with pytest.raises(AddressInUse):
            clear(UnixAddress(str(path)))
    assert path.is_socket()
    assert not Path(f"{path}.lock").exists()


def test_directories(path):
    directory = path.parent
    directory.chmod(0o755)
    (directory / "link").symlink_to(directory)

    assert look_at_directory(str(directory)).mode == 0o755
    assert look_at_directory(str(directory / "link")).state == "other"
    assert look_at_directory(str(directory / "no")).state == "missing"
    assert sockets_in(str(directory / "no")) == []
    with pytest.raises(OSError, match="link"):
        restrict(str(directory / "link"))
    restrict(str(directory))
    assert look_at_directory(str(directory)).mode == 0o700
    assert look_at_directory(str(directory)).ours
