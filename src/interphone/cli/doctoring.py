"""Doctoring: doctor, which explains what is at an address and what is wrong with it."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated, Literal

import msgspec
import typer

from ..accelerator import compiled
from ..address import (
    Address,
    TcpAddress,
    UnixAddress,
    path_limit,
    private_directories,
    private_directory,
)
from ..client import Client
from ..errors import AddressError, AddressInUse, InterphoneError
from ..introspection import Info
from ..protocol.messages import CAPABILITIES, POOL, VERSION
from ..transports.places import (
    Directory,
    Place,
    clear,
    look_at,
    look_at_directory,
    restrict,
    sockets_in,
    strangers_in,
)
from ..version import __version__
from .command import ADDRESS_HELP, Isdk, Json, NetIpc, complete_address, finish, perform
from .ending import FAILED, NO_DIRECTORY
from .output import Output, escape
from .target import address_of, kind_of

__all__ = ["doctor"]

PATIENCE = 2.0  # seconds that a server has to answer

Verdict = Literal["fine", "note", "wrong", "mended"]
MARKS = {
    "fine": ("✓", "green"),
    "note": ("·", "dim"),
    "wrong": ("✗", "red"),
    "mended": ("✓", "cyan"),
}


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at, as `doctor` prints it."""

    about: str
    verdict: Verdict
    text: str
    remedy: str = ""


def doctor(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="ADDRESS",
            help=f"{ADDRESS_HELP} Without it: everything in the private directory.",
            show_default=False,
            autocompletion=complete_address,
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what is certainly yours and certainly broken.")
    ] = False,
    isdk: Isdk = False,
    net_ipc: NetIpc = False,
    json: Json = False,
) -> None:
    """Explain what is at an address, and what is wrong.

    It looks at the directory, the socket, the lock, and the server and its version. Exit code 1
    says that something is wrong. --fix removes sockets and locks that nobody holds any more, and
    closes the private directory to others; nothing else is ever touched.
    """
    out = Output(json=json)

    async def examine() -> int:
        given = None if address is None else address_of(address, isdk=isdk, net_ipc=net_ipc)
        return await _examine(given, out, fix=fix)

    finish(perform(examine, out))


async def _examine(address: Address | None, out: Output, *, fix: bool) -> int:
    wrong = False
    async for finding in _findings(address, fix=fix):
        _show(out, finding)
        wrong = wrong or finding.verdict == "wrong"
    return FAILED if wrong else 0


def _show(out: Output, finding: Finding) -> None:
    mark, style = MARKS[finding.verdict]
    remedy = f"\n    {escape(finding.remedy)}" if finding.remedy else ""
    out.record(
        finding,
        (mark, style),
        f" {escape(finding.about)}: {escape(finding.text)}",
        (remedy, "dim"),
    )


async def _findings(address: Address | None, *, fix: bool) -> AsyncIterator[Finding]:
    python = f"Python {platform.python_version()}, {'compiled' if compiled() else 'pure'}"
    yield Finding("this end", "fine", f"interphone {__version__}, wire {VERSION}, {python}")
    if address is None:
        try:
            directory = private_directory()
        except AddressError:
            yield Finding("the private directory", "note", NO_DIRECTORY)
            return
        yield _directory_finding(look_at_directory(directory), fix=fix)
        for path in sockets_in(directory):
            async for finding in _at_path(UnixAddress(path, private=True), fix=fix):
                yield finding
        for place in strangers_in(directory):
            yield _stranger_finding(place)
        for finding in _other_directories():
            yield finding
    elif isinstance(address, UnixAddress):
        for finding in _path_findings(address, fix=fix):
            yield finding
        async for finding in _at_path(address, fix=fix):
            yield finding
    else:
        async for finding in _server_findings(address, address):
            yield finding


def _path_findings(address: UnixAddress, *, fix: bool) -> Iterator[Finding]:
    size = len(os.fsencode(address.path))
    yield Finding("path", "fine", f"{address.path}, {size} of at most {path_limit()} bytes")
    directory = look_at_directory(os.path.dirname(address.path), linked=not address.private)
    if address.private:
        yield _directory_finding(directory, fix=fix)
    elif directory.state == "other":
        remedy = "no socket can be in it: give another path"
        yield Finding("directory", "wrong", f"{directory.path} is no directory", remedy)
    elif directory.state == "missing":
        yield Finding(
            "directory",
            "wrong",
            f"{directory.path} does not exist",
            "make it, or give another path: a server makes only its private directory",
        )


def _directory_finding(directory: Directory, *, fix: bool) -> Finding:
    """About our private directory, which only this user may enter."""
    path, about = directory.path, "directory"
    if directory.state == "missing":
        return Finding(about, "note", f"{path} does not exist yet; the first server makes it")
    if directory.state == "other" or not directory.ours:
        what = "is no directory" if directory.state == "other" else "belongs to another user"
        remedy = "nothing in it is trusted: have it removed, or set XDG_RUNTIME_DIR"
        return Finding(about, "wrong", f"{path} {what}", remedy)
    if directory.mode & 0o077 == 0:
        return Finding(about, "fine", f"{path} is yours alone, mode {directory.mode:04o}")
    others = f"{path} lets others in, mode {directory.mode:04o}"
    if not fix:
        return Finding(about, "wrong", others, "--fix makes it 0700: no client or server uses it")
    try:
        restrict(path)
    except OSError as exc:
        return Finding(about, "wrong", f"{others}; cannot change that: {exc.strerror}")
    return Finding(about, "mended", f"{path} is yours alone now, mode 0700")


async def _at_path(address: UnixAddress, *, fix: bool) -> AsyncIterator[Finding]:
    place = look_at(address.path)
    yield _socket_finding(address, place, fix=fix)
    if lock := _lock_finding(address, place, fix=fix):
        yield lock
    if place.listener == "alive":
        async for finding in _server_findings(address, address.path):
            yield finding
    elif address.private:
        for finding in _elsewhere(address):
            yield finding


def _socket_finding(address: UnixAddress, place: Place, *, fix: bool) -> Finding:
    path = place.path
    if place.state == "missing":
        return Finding("socket", "note", f"nothing is at {path}: no server was started there")
    if place.state == "other":
        remedy = "a server will not touch it: remove it yourself, or give another path"
        return Finding("socket", "wrong", f"{path} is {place.what}, and no socket", remedy)
    mode = f"mode {place.mode:04o}"
    if place.listener == "alive":
        who = place.credentials
        by = f" by process {who.pid} of uid {who.uid}" if who is not None else ""
        verdict: Verdict = "fine" if place.ours else "note"
        return Finding("socket", verdict, f"{path} is listened at{by}, {mode}")
    if place.listener == "unknown":
        return Finding("socket", "wrong", f"{path} cannot be connected to, {mode}")
    return _dead(address, place, fix=fix)


def _stranger_finding(place: Place) -> Finding:
    """About what is among our sockets, and no server has made."""
    path, what = place.path, f"{place.path} is {place.what}"
    if place.state == "socket":
        what = f"{what} of another user"
    for ending, meant in ((".sock", "socket"), (".sock.lock", "lock")):
        if path.endswith(ending):
            name = os.path.basename(path).removesuffix(ending)
            remedy = f"no server starts as {name} until it is removed; that is for you to decide"
            return Finding(meant, "wrong", f"{what}, and no {meant} of yours", remedy)
    return Finding("directory", "note", f"{what} that no server has made; it is in nobody's way")


def _dead(address: UnixAddress, place: Place, *, fix: bool) -> Finding:
    text = f"{place.path} is left over: nobody listens there any more"
    if not place.ours:
        return Finding(
            "socket", "wrong", f"{text}; it belongs to another user", "it is not touched"
        )
    if not fix:
        return Finding("socket", "wrong", text, "--fix removes it; so does a server that starts")
    try:
        clear(address)
    except (AddressError, AddressInUse) as exc:
        return Finding("socket", "wrong", str(exc))
    return Finding("socket", "mended", f"{place.path} was left over, and has been removed")


def _lock_finding(address: UnixAddress, place: Place, *, fix: bool) -> Finding | None:
    lock = f"{place.path}.lock"
    by = f" of process {place.lock_pid}" if place.lock_pid is not None else ""
    if place.lock == "missing":
        if place.listener != "alive":
            return None
        return Finding("lock", "note", "there is none: it is a server of Node, or another program")
    if place.lock == "strange":
        remedy = "no server starts here until it is removed; that is for you to decide"
        return Finding("lock", "wrong", f"{lock} is no lock of a server of yours", remedy)
    if place.listener == "alive":
        return Finding("lock", "fine", f"{lock} is held{by}")
    if place.lock == "held":
        remedy = "end that process: its socket was removed, and nobody can reach it"
        return Finding("lock", "wrong", f"{lock} is held{by}, but it does not listen", remedy)
    if not fix:
        return Finding("lock", "note", f"{lock} is left over{by}; it is in nobody's way")
    if place.state != "socket":  # else it went with the socket
        try:
            clear(address)
        except (AddressError, AddressInUse) as exc:
            return Finding("lock", "wrong", str(exc))
    return Finding("lock", "mended", f"{lock} was left over, and has been removed")


async def _server_findings(address: Address, where: object) -> AsyncIterator[Finding]:
    """Say hello, and ask who it is."""
    client = Client(address, backoff=None, connect_timeout=PATIENCE)
    try:
        async with client:
            kind = kind_of(client.peer.protocol)
            if not client.peer.interphone:
                yield Finding("server", "fine", f"{kind}, packets of Node")
                return
            yield await _version_finding(client)
    except InterphoneError as exc:
        remedy = "it may be another program, or busy: see its logs"
        if isinstance(address, TcpAddress):
            remedy = "is the server running, and the port right?"
        yield Finding("server", "wrong", f"{where}: {exc}", remedy)


async def _version_finding(client: Client) -> Finding:
    dialect = "native" if client.peer.protocol.native else "classic"
    try:
        told = await client.call("$info", returns=Info, timeout=PATIENCE)
    except InterphoneError as exc:
        return Finding("server", "note", f"interphone, {dialect}; it tells no more: {exc}")
    text = f"interphone {told.interphone}, wire {told.wire}, {dialect}, process {told.pid}"
    missing = [word for word in CAPABILITIES if word not in told.capabilities]
    unknown = [word for word in told.capabilities if word not in (*CAPABILITIES, POOL)]
    if told.wire == VERSION and not missing and not unknown:
        same = told.interphone == __version__
        verdict: Verdict = "fine" if same else "note"
        return Finding("server", verdict, text if same else f"{text}; this end is {__version__}")
    skew = [f"it cannot: {', '.join(missing)}"] if missing else []
    skew += [f"this end cannot: {', '.join(unknown)}"] if unknown else []
    remedy = f"what only one end can do is not used: update {'it' if missing else 'this end'}"
    return Finding("server", "note", f"{text}; {'; '.join(skew)}", remedy)


# Other environments


def _elsewhere(address: UnixAddress) -> Iterator[Finding]:
    """A server of that name that was started where the private directory is another one."""
    name = os.path.basename(address.path)
    for directory in _others():
        if look_at(f"{directory}/{name}").listener == "alive":
            yield Finding(
                "elsewhere",
                "wrong",
                f"a server of that name listens in {directory}",
                "it was started in another environment: give its path, or both the same"
                " XDG_RUNTIME_DIR",
            )


def _other_directories() -> Iterator[Finding]:
    for directory in _others():
        if found := sockets_in(directory):
            yield Finding(
                "elsewhere",
                "note",
                f"{len(found)} more in {directory}, from another environment",
                "started with another XDG_RUNTIME_DIR, or none: 'interphone list' shows them",
            )


def _others() -> Iterable[str]:
    first, *others = private_directories()
    return [each for each in others if each != first]
