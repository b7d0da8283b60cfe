"""Looking: list, info, describe."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ..address import isdk_path, net_ipc_path, private_directories
from ..client import Client
from ..errors import AddressError, InterphoneError, MethodNotFound, Unsupported
from ..introspection import Description, Info, MethodDescription, ParamDescription, Stats
from ..transports.places import Place, look_at, sockets_in
from .command import Json, connecting, finish, perform
from .ending import NO_DIRECTORY, Misuse
from .output import Output, duration, escape, number
from .target import Target, kind_of, require_interphone

__all__ = ["describe", "info", "list_servers"]

PATIENCE = 1.0  # seconds that a listed server has to answer


# list


class Listed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A server that listens, as `list` prints it."""

    name: str
    address: str
    kind: str
    pid: int | None = None
    age: float | None = None
    since: datetime | None = None
    peers: int | None = None
    version: str | None = None


def list_servers(
    ask: Annotated[
        bool,
        typer.Option(
            "--ask", help="Connect to those that may be no server of ours, too, to see what it is."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """List what listens for you.

    It looks into the private directory, and where Node's servers listen: TMPDIR, and the
    current directory. Servers in the private directory are asked who they are. Other sockets
    are connected to, but nothing is sent to them unless you say --ask.
    """
    out = Output(json=json)
    finish(perform(lambda: _list(out, [*_places()], ask=ask), out))


async def _list(out: Output, places: Iterable[Place], *, ask: bool) -> None:
    servers = await asyncio.gather(*(_listed(place, ask=ask) for place in places))
    if out.json:
        for server in servers:
            out.record(server)
        return
    if not servers:
        out.note("nothing listens here")
        return
    out.table(
        ("NAME", "KIND", "PID", "AGE", "PEERS", "ADDRESS"),
        (
            (
                escape(each.name),
                escape(each.kind),
                "" if each.pid is None else str(each.pid),
                "" if each.age is None else duration(each.age),
                "" if each.peers is None else str(each.peers),
                escape(each.address),
            )
            for each in servers
        ),
    )


def _places() -> Iterator[Place]:
    """What is in our private directories, and what is alive in the others."""
    seen = set()
    try:
        private = [*private_directories()]
    except AddressError:
        raise Misuse(NO_DIRECTORY) from None
    for directory in private:
        for path in sockets_in(directory):
            if path.endswith(".sock"):
                seen.add(path)
                yield look_at(path)
    for directory in dict.fromkeys(_node_directories()):
        for path in sockets_in(directory):
            if path not in seen and (place := look_at(path)).listener == "alive":
                seen.add(path)
                yield place


def _node_directories() -> Iterator[str]:
    yield os.path.dirname(isdk_path())
    with suppress(FileNotFoundError):  # the current directory is gone
        yield os.path.dirname(os.path.abspath(net_ipc_path()))


async def _listed(place: Place, *, ask: bool) -> Listed:
    path = Path(place.path)
    ours = str(path.parent) in private_directories()
    first = str(path.parent) == next(private_directories())
    server = Listed(
        name=path.stem if first else place.path,
        address=place.path,
        kind=place.listener if place.listener != "alive" else "?",
        pid=place.credentials.pid if place.credentials is not None else None,
        age=round(max(0.0, time.time() - place.since), 1),
        since=datetime.fromtimestamp(place.since, UTC),
    )
    if place.listener == "alive" and (ours or ask):
        await _ask_who(server)
    return server


async def _ask_who(server: Listed) -> None:
    """Note what a server says of itself; it may be something else, which says nothing we know."""
    client = Client(server.address, backoff=None, connect_timeout=PATIENCE)
    try:
        async with client:
            server.kind = kind_of(client.peer.protocol)
            if client.peer.interphone:
                info = await client.call("$info", returns=Info, timeout=PATIENCE)
                stats = await client.call("$stats", returns=Stats, timeout=PATIENCE)
                server.version, server.peers = info.interphone, stats.peers - 1
    except InterphoneError:
        return


# info


@connecting()
async def info(target: Target, out: Output) -> None:
    """Tell who a server is, and how it is doing."""
    async with target.reached(out) as client:
        record, facts = await _facts_of(client, target)
    if out.json:
        out.record(record)
    else:
        out.facts(facts)


async def _facts_of(client: Client, target: Target) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    peer = client.peer
    kind, native = kind_of(peer.protocol), peer.protocol.native
    credentials = peer.credentials
    pid = None if credentials is None else credentials.pid
    record: dict[str, Any] = {
        "kind": kind,
        "address": str(target.address),
        "dialect": "native" if native else "classic",
        "pid": pid,
    }
    facts = [(name, escape(str(value))) for name, value in record.items() if value is not None]
    if not peer.interphone:
        return record, facts
    try:
        told = await client.call("$info", returns=Info, timeout=target.timeout)
        stats = await client.call("$stats", returns=Stats, timeout=target.timeout)
    except (Unsupported, MethodNotFound) as exc:
        return record | {"silent": str(exc)}, [*facts, ("silent", escape(str(exc)))]
    record |= {"info": told, "stats": stats}
    return record, [*facts, *_info_facts(told), *_stats_facts(stats)]


def _info_facts(told: Info) -> Iterator[tuple[str, str]]:
    yield "interphone", escape(f"{told.interphone}, wire {told.wire}, Python {told.python}")
    yield "can", escape(", ".join(told.capabilities))
    yield "started", f"{told.started:%Y-%m-%d %H:%M:%S %Z}, {duration(told.uptime)} ago"
    limits = msgspec.structs.asdict(told.limits)
    yield "limits", ", ".join(f"{name} {value:,}" for name, value in limits.items())


def _stats_facts(stats: Stats) -> Iterator[tuple[str, str]]:
    yield "peers", f"{stats.peers}, this one too"
    yield "requests", f"{stats.inflight} being handled, {stats.pending} of its own wait"
    yield "backlog", f"{number(stats.backlog)} bytes"
    lost = {**msgspec.structs.asdict(stats.dropped), "unheard": stats.unheard}
    lost |= {"publications": stats.publications_dropped, "handshakes": stats.evicted}
    counts = [f"{name} {count:,}" for name, count in lost.items() if count]
    yield "dropped", ", ".join(counts) or "nothing"
    for method in stats.methods:
        runs = f"{method.calls:,} calls, {method.failures:,} failed, {method.running:,} running"
        yield "method", f"{escape(method.name)}: {runs}"


# describe


@connecting()
async def describe(
    target: Target,
    out: Output,
    method: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="Only this one, with schemas.", show_default=False),
    ] = None,
) -> None:
    """Print the methods of a server, its errors and topics."""
    async with target.reached(out) as client:
        require_interphone(client, "describe")
        described = await client.call("$describe", returns=Description, timeout=target.timeout)
    if method is None:
        _show_all(out, described)
        return
    found = next((each for each in described.methods if each.name == method), None)
    if found is None:
        raise MethodNotFound(method)
    out.record(found, escape(_signature(found)), *_more(found))


def _show_all(out: Output, described: Description) -> None:
    if out.json:
        out.record(described)
        return
    for method in described.methods:
        out.text((escape(_signature(method)), "bold"))
        if method.doc:
            out.text(f"    {escape(method.doc.splitlines()[0])}")
    for name, words in (("errors", described.errors), ("topics", described.topics)):
        if words:
            out.text((name, "bold"), ": ", escape(", ".join(words)))
    if not described.methods:
        out.note("it has no methods")


def _signature(method: MethodDescription) -> str:
    params = ", ".join(_param(each) for each in _with_marks(method.params))
    if method.reads is not None:
        params = ", ".join(filter(None, [params, f"<{method.reads}>..."]))
    arrow = "->*" if method.stream else "->"
    return f"{method.name}({params}) {arrow} {method.returns}"


def _with_marks(params: Iterable[ParamDescription]) -> Iterator[ParamDescription | str]:
    """The parameters, with ``*`` before those that go by name only."""
    marked = False
    for param in params:
        if param.kind == "named" and not marked:
            yield "*"
        marked = marked or param.kind in ("named", "extra")
        yield param


def _param(param: ParamDescription | str) -> str:
    if isinstance(param, str):
        return param
    star = "*" if param.kind == "extra" else ""
    default = "" if param.required or star else " = ..."
    return f"{star}{param.name}: {param.type}{default}"


def _more(method: MethodDescription) -> list[str]:
    lines = ["\n\n" + escape(method.doc, keep="\n")] if method.doc else []
    facts = [f"runs on: {method.place}"]
    if method.limit is not None:
        facts.append(f"at most {method.limit} at once")
    if method.stream or method.reads is not None:
        facts.append("use 'interphone stream'")
    lines.append("\n\n" + "; ".join(facts))
    return lines
