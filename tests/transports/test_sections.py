"""Shared memory on Windows: what is mapped, and what is not."""

from __future__ import annotations

import gc
import mmap
import os
import sys
from unittest.mock import patch

import pytest

from interphone.address import MemoryAddress, PipeAddress, tcp_address
from interphone.protocol.pool import KEY_SIZE, Made
from interphone.transports import Credentials, own_credentials, shared_memory, shares_memory
from interphone.transports.sections import SharedMemory

assert sys.platform == "win32"

SIZE = 4 * mmap.PAGESIZE


def made(memory: SharedMemory, size: int = SIZE) -> Made:
    ours = memory.make(size)
    assert ours is not None
    return ours


def test_what_is_written_at_the_one_end_is_read_at_the_other() -> None:
    memory = SharedMemory()
    ours = made(memory)
    ours.view[-3:] = b"abc"

    theirs = memory.open(ours.fd, ours.inode, SIZE, SIZE)

    assert theirs is not None
    assert theirs[-4:] == b"\0abc"
    ours.view[:1] = b"x"
    assert theirs[:1] == b"x"
    with pytest.raises(TypeError):
        theirs[0] = 1
    assert len(ours.key) == KEY_SIZE


def test_mapping_outlives_who_made_it() -> None:
    memory = SharedMemory()
    ours = made(memory)
    ours.view[:3] = b"abc"
    theirs = memory.open(ours.fd, ours.inode, SIZE, SIZE)
    number = ours.inode
    ours.shut()
    del ours
    gc.collect()

    assert theirs is not None
    assert theirs[:3] == b"abc"
    del theirs
    gc.collect()
    assert memory.open(0, number, SIZE, SIZE) is None  # and nothing is left of it


def test_no_more_is_mapped_than_wanted() -> None:
    memory = SharedMemory()
    ours = made(memory)

    theirs = memory.open(ours.fd, ours.inode, SIZE, SIZE - 1)

    assert theirs is not None
    assert len(theirs) == SIZE - mmap.PAGESIZE


@pytest.mark.parametrize("size", [16 * SIZE, 2**62, 2**70])
def test_memory_that_is_not_there_is_not_mapped(size: int) -> None:
    memory = SharedMemory()
    ours = made(memory)

    assert memory.open(ours.fd, ours.inode, size, size) is None


@pytest.mark.parametrize("number", [1, 2**63, 2**70])
def test_number_of_nothing_is_not_mapped(number: int) -> None:
    assert SharedMemory().open(0, number, SIZE, SIZE) is None


def test_memory_that_is_only_reserved_is_not_mapped() -> None:
    import ctypes

    reserve = 0x04000000  # SEC_RESERVE
    read_write = 4  # PAGE_READWRITE
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.CreateFileMappingW.restype = ctypes.c_void_p
    kernel.CreateFileMappingW.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
        ctypes.c_ulong,
        ctypes.c_wchar_p,
    ]
    number = int.from_bytes(os.urandom(7))
    name = f"Local\\interphone-{number:016x}"
    section = kernel.CreateFileMappingW(-1, None, read_write | reserve, 0, SIZE, name)
    assert section
    kernel.CloseHandle.argtypes = [ctypes.c_void_p]
    try:
        assert SharedMemory().open(0, number, SIZE, SIZE) is None
    finally:
        kernel.CloseHandle(section)


def test_what_the_system_refuses_is_not_to_be_had() -> None:
    memory = SharedMemory()
    with patch("mmap.mmap", side_effect=OSError("no memory")):
        assert memory.make(SIZE) is None
    assert memory.make(2**70) is None


def test_memory_is_shared_with_processes_of_the_same_user_only() -> None:
    own = own_credentials()

    assert shared_memory(own) is not None
    assert shared_memory(Credentials(None, os.getpid(), sid="S-1-5-18")) is None
    assert shared_memory(Credentials(None)) is None
    assert shared_memory(None) is None


def test_memory_is_shared_over_pipes_only() -> None:
    assert shares_memory(PipeAddress(r"\\.\pipe\a"))
    assert not shares_memory(MemoryAddress())
    assert not shares_memory(tcp_address("127.0.0.1", 1))
