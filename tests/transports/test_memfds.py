"""Shared memory: what is made, and what of another process's is believed."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest

if sys.platform != "linux":
    pytest.skip("memory is shared on Linux only", allow_module_level=True)

from interphone import MemoryAddress, UnixAddress, tcp_address
from interphone.protocol.pool import Made
from interphone.transports import Credentials, shared_memory, shares_memory
from interphone.transports.memfds import FUTURE_WRITE, SharedMemory

SIZE = 4 * mmap.PAGESIZE


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    """That of this process with itself; the test must leave no descriptor."""
    before = set(os.listdir("/proc/self/fd"))
    yield SharedMemory(os.getpid())
    gc.collect()  # what is raised by a mock is kept by it
    assert set(os.listdir("/proc/self/fd")) <= before


def made(memory: SharedMemory, size: int = SIZE) -> Made:
    made = memory.make(size)
    assert made is not None
    return made


def memfd(*, seals: int = 0, size: int = SIZE, flags: int = 0) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def refused(memory: SharedMemory, fd: int, *, size: int = SIZE, inode: int | None = None) -> bool:
    try:
        found = os.fstat(fd).st_ino if inode is None else inode
        return memory.open(fd, found, size, SIZE) is None
    finally:
        os.close(fd)


def test_what_is_written_at_the_one_end_is_read_at_the_other(memory: SharedMemory) -> None:
    ours = made(memory)
    theirs = memory.open(ours.fd, ours.inode, SIZE, SIZE)
    ours.shut()

    ours.view[7:10] = b"abc"

    assert theirs is not None
    assert theirs[7:10] == b"abc"
    assert theirs.readonly


def test_other_end_can_neither_shrink_nor_write_it(memory: SharedMemory) -> None:
    ours = made(memory)
    try:
        again = os.open(f"/proc/self/fd/{ours.fd}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.ftruncate(again, 0)
            with pytest.raises(PermissionError):
                os.ftruncate(again, 2 * SIZE)
            if fcntl.fcntl(again, fcntl.F_GET_SEALS) & FUTURE_WRITE:
                with pytest.raises(PermissionError):
                    mmap.mmap(again, SIZE)
        finally:
            os.close(again)
    finally:
        ours.shut()


def test_no_more_is_mapped_than_wanted(memory: SharedMemory) -> None:
    ours = made(memory)
    theirs = memory.open(ours.fd, ours.inode, SIZE, SIZE // 2 + 5)
    ours.shut()

    assert theirs is not None
    assert len(theirs) == SIZE // 2


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_that_could_shrink_is_not_mapped(memory: SharedMemory, seals: int) -> None:
    assert refused(memory, memfd(seals=seals))


def test_memory_of_another_size_is_not_mapped(memory: SharedMemory) -> None:
    fixed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

    assert refused(memory, memfd(seals=fixed, size=SIZE - 1))
    assert refused(memory, memfd(seals=fixed), size=2**70)
    assert refused(memory, memfd(seals=fixed), inode=1)


def test_huge_pages_are_not_mapped(memory: SharedMemory) -> None:
    try:
        fd = memfd(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, size=2**21, flags=0x4)
    except OSError:
        pytest.skip("no huge pages here")

    assert refused(memory, fd, size=2**21)


def test_what_is_no_memory_is_not_mapped(memory: SharedMemory) -> None:
    read, write = os.pipe()
    os.close(write)

    assert refused(memory, read, size=0)
    assert refused(memory, os.open(__file__, os.O_RDONLY), size=os.stat(__file__).st_size)
    assert refused(memory, os.open("/dev/zero", os.O_RDONLY), size=0)
    assert memory.open(9_999, 1, SIZE, SIZE) is None
    assert SharedMemory(2**22 + 1).open(0, 1, SIZE, SIZE) is None


@pytest.mark.parametrize("call", ["os.memfd_create", "os.ftruncate", "mmap.mmap", "fcntl.fcntl"])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM, errno.EMFILE])
def test_what_the_system_refuses_is_not_to_be_had(
    memory: SharedMemory, call: str, number: int
) -> None:
    with patch(call, side_effect=OSError(number, "refused")):
        assert memory.make(SIZE) is None


@pytest.mark.parametrize("call", ["os.open", "os.stat", "mmap.mmap", "fcntl.fcntl"])
def test_what_the_system_refuses_is_not_mapped(memory: SharedMemory, call: str) -> None:
    ours = made(memory)
    with patch(call, side_effect=PermissionError(errno.EPERM, "refused")):
        assert memory.open(ours.fd, ours.inode, SIZE, SIZE) is None
    ours.shut()


def test_memory_is_shared_with_processes_of_the_same_user_only() -> None:
    own = os.geteuid()

    assert shared_memory(Credentials(own, os.getpid())) is not None
    assert shared_memory(Credentials(own + 1, os.getpid())) is None
    assert shared_memory(Credentials(own, None)) is None  # of another pid namespace
    assert shared_memory(None) is None


def test_memory_is_shared_over_unix_sockets_only() -> None:
    assert shares_memory(UnixAddress("/tmp/a"))
    assert not shares_memory(MemoryAddress())
    assert not shares_memory(tcp_address("127.0.0.1", 1))
