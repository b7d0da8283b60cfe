"""What Windows knows about pipes, users and memory, for which Python has no functions of its own.

A user is named by a SID, as text: ``S-1-5-21-…-1001``. Who may open a pipe is written in SDDL.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import byref, wintypes
from typing import Any, Literal

assert sys.platform == "win32"

__all__ = [
    "SecurityAttributes",
    "broken",
    "client_pid",
    "describe",
    "instances",
    "is_committed",
    "only_for",
    "own_sid",
    "own_sids",
    "owner_of",
    "process_sid",
    "server_pid",
]

ERROR_SEM_TIMEOUT = 121

TOKEN_QUERY = 8
TOKEN_USER, TOKEN_OWNER = 1, 4
PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
SE_KERNEL_OBJECT = 6
OWNER, DACL = 1, 4
SDDL_REVISION = 1
FILE_PIPE_LOCAL_INFORMATION = 24
FILE_PIPE_CLOSING_STATE = 4
FILE_MAP_READ = 4
MEM_COMMIT = 0x1000


class SecurityAttributes(ctypes.Structure):
    """What a new pipe is given: who owns it, and who may open it."""

    _fields_ = (
        ("size", wintypes.DWORD),
        ("descriptor", ctypes.c_void_p),
        ("inherited", wintypes.BOOL),
    )

    def __init__(self, sddl: str) -> None:
        super().__init__(ctypes.sizeof(self), None, False)
        descriptor = _Pointer()
        _check(_sddl_to_descriptor(sddl, SDDL_REVISION, byref(descriptor), None))
        self.descriptor = descriptor.value

    def __del__(self) -> None:
        _local_free(self.descriptor)

    @property
    def address(self) -> int:
        """Where it lies, for `CreateNamedPipe`; valid as long as it is."""
        return ctypes.addressof(self)


class _PipeState(ctypes.Structure):
    """FILE_PIPE_LOCAL_INFORMATION."""

    _fields_ = (
        ("type", wintypes.ULONG),
        ("configuration", wintypes.ULONG),
        ("most_instances", wintypes.ULONG),
        ("instances", wintypes.ULONG),
        ("inbound_quota", wintypes.ULONG),
        ("readable", wintypes.ULONG),
        ("outbound_quota", wintypes.ULONG),
        ("writable", wintypes.ULONG),
        ("state", wintypes.ULONG),
        ("end", wintypes.ULONG),
    )


class _IoStatus(ctypes.Structure):
    """IO_STATUS_BLOCK."""

    _fields_ = (("status", ctypes.c_void_p), ("information", ctypes.c_void_p))


class _Region(ctypes.Structure):
    """MEMORY_BASIC_INFORMATION."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("allocation_base", ctypes.c_void_p),
        ("allocation_protect", wintypes.DWORD),
        ("partition", wintypes.WORD),
        ("size", ctypes.c_size_t),
        ("state", wintypes.DWORD),
        ("protect", wintypes.DWORD),
        ("type", wintypes.DWORD),
    )


# Users


@functools.cache
def own_sid() -> str:
    """Tell the user this process runs as; it never changes."""
    return _token_sid(_current_process(), TOKEN_USER)


@functools.cache
def own_sids() -> frozenset[str]:
    """Tell who owns what we make: our user, or the administrators where we run as one of them."""
    return frozenset({own_sid(), _token_sid(_current_process(), TOKEN_OWNER)})


def process_sid(pid: int) -> str | None:
    """Tell the user a process runs as; None if it cannot be told."""
    process = _open_process(PROCESS_QUERY_LIMITED_INFORMATION, False, pid)
    if not process:
        return None
    try:
        return _token_sid(process, TOKEN_USER)
    except OSError:
        return None
    finally:
        _close_handle(process)


def only_for(sid: str) -> str:
    """Write in SDDL: it belongs to this user, nobody else may open it, nor he from elsewhere.

    The user may do everything, because making a further instance of a pipe needs it. The list
    is protected: nothing is inherited into it.
    """
    return f"O:{sid}D:P(D;;GA;;;NU)(A;;GA;;;{sid})"


def _token_sid(process: int, what: int) -> str:
    token = _Handle()
    _check(_open_process_token(process, TOKEN_QUERY, byref(token)))
    try:
        size = _Number()
        _token_information(token, what, None, 0, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        _check(_token_information(token, what, buffer, size, byref(size)))
        return _sid_text(_Pointer.from_buffer(buffer).value)
    finally:
        _close_handle(token)


def _sid_text(sid: int | None) -> str:
    text = wintypes.LPWSTR()
    _check(_sid_to_text(sid, byref(text)))
    return _taken(text)


# Pipes


def owner_of(handle: int) -> str | None:
    """Tell who owns a pipe; None if nobody does, as Wine says where no owner was asked for."""
    owner, descriptor = _Pointer(), _Pointer()
    error = _security_info(
        handle, SE_KERNEL_OBJECT, OWNER, byref(owner), None, None, None, byref(descriptor)
    )
    if error:
        raise ctypes.WinError(error)
    try:
        return None if owner.value is None else _sid_text(owner.value)
    finally:
        _local_free(descriptor)


def describe(handle: int) -> str:
    """Write the owner of a pipe, and who may open it, in SDDL."""
    descriptor, text = _Pointer(), wintypes.LPWSTR()
    what = OWNER | DACL
    error = _security_info(
        handle, SE_KERNEL_OBJECT, what, None, None, None, None, byref(descriptor)
    )
    if error:
        raise ctypes.WinError(error)
    try:
        _check(_descriptor_to_sddl(descriptor, SDDL_REVISION, what, byref(text), None))
        return _taken(text)
    finally:
        _local_free(descriptor)


def client_pid(handle: int) -> int | None:
    """Tell the process that connected to this instance; None if it cannot be told."""
    pid = wintypes.ULONG()
    return pid.value if _client_pid(handle, byref(pid)) and pid.value else None


def server_pid(handle: int) -> int | None:
    """Tell the process that made the instance we are connected to; None if it cannot be told."""
    pid = wintypes.ULONG()
    return pid.value if _server_pid(handle, byref(pid)) and pid.value else None


def broken(handle: int) -> bool:
    """Tell whether the other end is closed, even if there is something left to read."""
    status, state = _IoStatus(), _PipeState()
    size = ctypes.sizeof(state)
    error = _file_information(
        handle, byref(status), byref(state), size, FILE_PIPE_LOCAL_INFORMATION
    )
    return not error and state.state == FILE_PIPE_CLOSING_STATE


def instances(name: str) -> Literal["free", "taken", "none"]:
    """Tell whether a pipe has an instance that is free, or only some that are taken, or none.

    It takes up to a millisecond, and does not connect.
    """
    if _wait_named_pipe(name, 1):
        return "free"
    return "taken" if ctypes.get_last_error() == ERROR_SEM_TIMEOUT else "none"


# Memory


def is_committed(section: int, size: int) -> bool:
    """Tell whether so many bytes of a section can be read: they are there, and not only reserved.

    Raises:
        OSError: It is smaller.
    """
    view = _map_view(section, FILE_MAP_READ, 0, 0, size)
    _check(view is not None)
    try:
        region = _Region()
        _check(_virtual_query(view, byref(region), ctypes.sizeof(region)))
        return bool(region.state == MEM_COMMIT and region.size >= size)
    finally:
        _unmap_view(view)


# Calling


def _check(success: int) -> None:
    if not success:
        raise ctypes.WinError(ctypes.get_last_error())


def _taken(text: wintypes.LPWSTR) -> str:
    """A text that Windows has made for us; it is freed."""
    value = text.value
    _local_free(ctypes.cast(text, _Pointer))
    assert value is not None
    return value


def _function(library: ctypes.WinDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


_Pointer = ctypes.c_void_p
_Out = ctypes.POINTER(ctypes.c_void_p)
_Text, _TextOut = wintypes.LPCWSTR, ctypes.POINTER(wintypes.LPWSTR)
_Number, _NumberOut = wintypes.DWORD, ctypes.POINTER(wintypes.DWORD)
_Handle, _HandleOut = wintypes.HANDLE, ctypes.POINTER(wintypes.HANDLE)
_Success = wintypes.BOOL

_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_local_free = _function(_kernel, "LocalFree", _Pointer, _Pointer)
_close_handle = _function(_kernel, "CloseHandle", _Success, _Handle)
_current_process = _function(_kernel, "GetCurrentProcess", _Handle)
_open_process = _function(_kernel, "OpenProcess", _Handle, _Number, wintypes.BOOL, _Number)
_client_pid = _function(_kernel, "GetNamedPipeClientProcessId", _Success, _Handle, _NumberOut)
_server_pid = _function(_kernel, "GetNamedPipeServerProcessId", _Success, _Handle, _NumberOut)
_wait_named_pipe = _function(_kernel, "WaitNamedPipeW", _Success, _Text, _Number)
_map_view = _function(
    _kernel, "MapViewOfFile", _Pointer, _Handle, _Number, _Number, _Number, ctypes.c_size_t
)
_unmap_view = _function(_kernel, "UnmapViewOfFile", _Success, _Pointer)
_virtual_query = _function(
    _kernel, "VirtualQuery", ctypes.c_size_t, _Pointer, ctypes.POINTER(_Region), ctypes.c_size_t
)

_advapi = ctypes.WinDLL("advapi32", use_last_error=True)
_open_process_token = _function(_advapi, "OpenProcessToken", _Success, _Handle, _Number, _HandleOut)
_token_information = _function(
    _advapi,
    "GetTokenInformation",
    _Success,
    _Handle,
    ctypes.c_int,
    _Pointer,
    _Number,
    _NumberOut,
)
_sid_to_text = _function(_advapi, "ConvertSidToStringSidW", _Success, _Pointer, _TextOut)
_sddl_to_descriptor = _function(
    _advapi,
    "ConvertStringSecurityDescriptorToSecurityDescriptorW",
    _Success,
    _Text,
    _Number,
    _Out,
    _NumberOut,
)
_descriptor_to_sddl = _function(
    _advapi,
    "ConvertSecurityDescriptorToStringSecurityDescriptorW",
    _Success,
    _Pointer,
    _Number,
    _Number,
    _TextOut,
    _NumberOut,
)
_security_info = _function(
    _advapi,
    "GetSecurityInfo",
    _Number,
    _Handle,
    ctypes.c_int,
    _Number,
    _Out,
    _Out,
    _Out,
    _Out,
    _Out,
)

_ntdll = ctypes.WinDLL("ntdll")
_file_information = _function(
    _ntdll,
    "NtQueryInformationFile",
    ctypes.c_long,
    _Handle,
    _Pointer,
    _Pointer,
    _Number,
    ctypes.c_int,
)
