r"""Where two processes meet: a name or a path becomes an `Address`, by each platform's rules.

| given                       | on Linux and macOS             | on Windows                  |
|-----------------------------|--------------------------------|-----------------------------|
| `"app"`                     | `<private directory>/app.sock` | `\\.\pipe\interphone-app`   |
| `"/a/b"`, `"./b"`, `"~/b"`  | that file                      | `\\.\pipe\a-b`, `\\.\pipe\.-b` … |
| a `pathlib.Path`            | that file                      | the same                    |
| an `Address`                | itself                         | itself                      |

The private directory is the same for a desktop session, an ssh login and a cron job of one
user, so that a server started by one is found by the others.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping

import msgspec

from .errors import AddressError

__all__ = [
    "Address",
    "MemoryAddress",
    "PipeAddress",
    "TcpAddress",
    "UnixAddress",
    "isdk_path",
    "net_ipc_path",
    "path_limit",
    "private_directories",
    "private_directory",
    "resolve",
    "tcp_address",
]

LINUX_PATH_LIMIT = 107
BSD_PATH_LIMIT = 103
MAX_PIPE_NAME = 256  # in all, in units of UTF-16
PIPES = "\\\\.\\pipe\\"
VERBATIM_PIPES = "\\\\?\\pipe\\"

_control = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class UnixAddress(msgspec.Struct, frozen=True):
    """A Unix socket.

    Attributes:
        path: Absolute path of the socket.
        private: Whether it lies in our own directory, which nobody else can enter.
    """

    path: str
    private: bool = False

    def __str__(self) -> str:
        return self.path


class TcpAddress(msgspec.Struct, frozen=True):
    """A TCP port.

    Attributes:
        host: Name or number of the host.
        port: Number of the port; 0 lets the system choose one when listening.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


class PipeAddress(msgspec.Struct, frozen=True):
    r"""A named pipe of Windows.

    Attributes:
        name: Full name, as ``\\.\pipe\app``.
    """

    name: str

    def __str__(self) -> str:
        return self.name


class MemoryAddress:
    """A meeting point within this process; whoever has the object can use it.

    Attributes:
        name: What to call it in logs; need not be unique.
        listener: Who listens here at the moment; set by the memory transport.
    """

    __slots__ = ("__weakref__", "listener", "name")

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.listener: object | None = None

    def __str__(self) -> str:
        return f"memory:{self.name}"

    def __repr__(self) -> str:
        return f"<MemoryAddress {self.name!r} at {id(self):#x}>"


Address = UnixAddress | TcpAddress | PipeAddress | MemoryAddress


def resolve(
    target: str | os.PathLike[str] | Address,
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> Address:
    """Turn what a user wrote into an address; see the table on top.

    Args:
        target: A name, a path, or an address, which is returned as it is.
        platform: Whose rules to follow, as in `sys.platform`.
        environ: Environment variables.
        uid: Whose private directory; by default of the user this process runs as.

    Raises:
        AddressError: The name or path cannot be used.
    """
    if isinstance(target, UnixAddress | TcpAddress | PipeAddress | MemoryAddress):
        return target
    text = os.fspath(target)
    if not isinstance(text, str):
        raise AddressError(f"an address is text, not {type(text).__name__}: {text!r}")
    _check_text(text)
    named = isinstance(target, str) and _bare(text)
    if platform == "win32":
        return _pipe(text, named=named)
    directory = private_directory(platform=platform, environ=environ, uid=uid)
    path = f"{directory}/{text}.sock" if named else _absolute(text, environ)
    _check_path(path, platform)
    return UnixAddress(path, private=os.path.dirname(path) == directory)


def private_directory(
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> str:
    """Tell which directory holds the sockets of plain names; it need not exist yet.

    Args:
        platform: Whose rules to follow, as in `sys.platform`.
        environ: Environment variables.
        uid: Whose directory; by default of the user this process runs as.
    """
    return next(private_directories(platform=platform, environ=environ, uid=uid))


def private_directories(
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> Iterator[str]:
    """Yield the private directory, and then those it would be in another environment.

    The arguments are those of `private_directory`.
    """
    owner = _own_uid() if uid is None else uid
    candidates = [environ.get("XDG_RUNTIME_DIR", "")]
    if platform == "linux":
        candidates.append(f"/run/user/{owner}")
    elif platform == "darwin":
        candidates.append(environ.get("TMPDIR", ""))
    for place in dict.fromkeys(candidates):
        if os.path.isabs(place) and _owned_directory(place, owner):
            yield f"{place.rstrip('/')}/interphone"
    yield f"/tmp/interphone-{owner}"


def path_limit(platform: str = sys.platform) -> int:
    """Tell how many bytes the path of a Unix socket may have."""
    return LINUX_PATH_LIMIT if platform == "linux" else BSD_PATH_LIMIT


def tcp_address(host: str = "127.0.0.1", port: int = 4466) -> TcpAddress:
    """Make the address of a TCP port; the default port is the one of net-ipc.

    Args:
        host: Name or number of the host.
        port: Number of the port; 0 lets the system choose one when listening.

    Raises:
        AddressError: The host is empty or the port is no port.
    """
    if not host or _control.search(host):
        raise AddressError(f"{host!r} is not a host: give a name or an IP address")
    if not 0 <= port <= 65535:
        raise AddressError(f"{port} is not a port: give 0 to 65535")
    return TcpAddress(host, port)


def isdk_path(
    name: str = "isdk-ipc",
    *,
    platform: str = sys.platform,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Give the path `@isdk/ipc-server` uses for a name, to meet its servers and clients.

    Args:
        name: What is given to the Node package as `path`; empty means its default.
        platform: Whose rules to follow, as in `sys.platform`.
        environ: Environment variables.
    """
    name = name or "isdk-ipc"
    if platform == "win32":
        return f"//./pipe/{name.removeprefix('/')}"
    if name.startswith(("/", ".")):
        return name
    return f"{_node_tmpdir(environ).removesuffix('/')}/{name}"


def net_ipc_path(name: str = "net-ipc", *, platform: str = sys.platform) -> str:
    """Give the path `net-ipc` uses for a name, to meet its servers and clients.

    On Linux and macOS that is a file in the current directory; a plain name gets a ``./``
    in front, so that `resolve` takes it for a path too.

    Args:
        name: What is given to the Node package as `path`; empty means its default.
        platform: Whose rules to follow, as in `sys.platform`.
    """
    name = name or "net-ipc"
    if platform == "win32":
        return PIPES + name.removeprefix("/").replace("/", "-")
    return f"./{name}" if _bare(name) or name.startswith("~") else name


def _bare(text: str) -> bool:
    return not text.startswith((".", "~")) and "/" not in text and "\\" not in text


def _check_text(text: str) -> None:
    if not text:
        raise AddressError("an empty name is no address: give a name or a path")
    if text.startswith(("@", "\0")):
        raise AddressError(
            f"{text!r}: abstract sockets have no owner and no permissions, and are not used:"
            " give a name or a path"
        )
    if _control.search(text):
        raise AddressError(f"{text!r} has control characters: take them out")
    if text.startswith("$"):
        raise AddressError(f"{text!r}: names that begin with $ are reserved: choose another")
    if text.endswith(".lock"):
        raise AddressError(f"{text!r}: .lock is kept for lock files: choose another ending")
    if _url.match(text):
        raise AddressError(f"{text!r} is a URL: give a name, a path, or tcp_address(host, port)")


def _check_path(path: str, platform: str) -> None:
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise AddressError(f"{path!r} cannot be the name of a file") from None
    if size > (limit := path_limit(platform)):
        raise AddressError(
            f"the path of the socket is too long: {size} bytes, the limit is {limit}: {path}"
        )


def _absolute(text: str, environ: Mapping[str, str]) -> str:
    path = _expand_home(text, environ)
    if os.path.basename(path) in ("", ".", "..") or (text[0] == "~" and "/" not in text):
        raise AddressError(f"{text!r} is a directory: give the path of a socket in it")
    if not path.startswith("/"):
        path = f"{os.getcwd()}/{path}"
    # ".." stays: behind a symbolic link it is not the directory one would think.
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _expand_home(text: str, environ: Mapping[str, str]) -> str:
    if not text.startswith("~"):
        return text
    user, slash, rest = text.partition("/")
    home = environ.get("HOME", "") if user == "~" else ""
    home = home or os.path.expanduser(user)
    if home.startswith("~"):
        raise AddressError(f"{text!r}: {user} has no home directory: give the whole path")
    return f"{home}{slash}{rest}"


def _pipe(text: str, *, named: bool) -> PipeAddress:
    full = text.replace("/", "\\")
    if full.lower().startswith((PIPES, VERBATIM_PIPES)):
        rest = _normal(full[len(PIPES) :], text)
    elif full.startswith("\\\\"):
        raise AddressError(f"{text!r} is on another host: pipes are used on this one only")
    elif named:
        rest = f"interphone-{text}"
    else:
        rest = full.removeprefix("\\").replace("\\", "-")
    if not rest:
        raise AddressError(f"{text!r} names no pipe: add a name")
    if rest.endswith((".", " ")):
        raise AddressError(f"{text!r}: Windows drops a dot or a space at the end: leave it out")
    size = len((PIPES + rest).encode("utf-16-le", "surrogatepass")) // 2
    if size > MAX_PIPE_NAME:
        raise AddressError(
            f"the name of the pipe is too long: {size} characters,"
            f" the limit is {MAX_PIPE_NAME}: {text}"
        )
    return PipeAddress(PIPES + rest)


def _normal(path: str, text: str) -> str:
    """The rest of a pipe's name as Windows reads it; ".." would lead out of the pipes."""
    parts = [part for part in path.split("\\") if part not in ("", ".")]
    if ".." in parts:
        raise AddressError(f"{text!r} leads out of the pipes: take the .. out")
    return "\\".join(parts)


def _owned_directory(path: str, owner: int) -> bool:
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner


def _node_tmpdir(environ: Mapping[str, str]) -> str:
    # The order of Node's os.tmpdir(), which is not the one of Python's tempfile.
    for variable in ("TMPDIR", "TMP", "TEMP"):
        if place := environ.get(variable):
            return place
    return "/tmp"


def _own_uid() -> int:
    if sys.platform == "win32":
        raise AddressError("users have no number on Windows: give `uid`")
    return os.geteuid()
