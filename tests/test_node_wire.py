"""The bytes: HTTP upgrade, TCP and TLS with net-ipc, and sessions cut, split and stalled.

A session of a real Node is recorded once for each way of writing it; then the recording is
replayed from a bare socket, interrupted at every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import trustme

from interphone import (
    Client,
    ConnectError,
    ConnectionLost,
    HandshakeError,
    Limits,
    Peer,
    Server,
    tcp_address,
)
from support.node import (
    FLAVOURS,
    NodeProcess,
    Proxy,
    RawPeer,
    Told,
    big_text,
    digest_of,
    end_writing,
    flavours,
    frame,
    listen_streams,
    one_loop,
)

pytestmark = [pytest.mark.node, one_loop]
Run = Callable[[Any], Any]


def echo(end: Any) -> None:
    @end.on_request(on="inline")
    def answer(*args: object) -> object:
        return args[-1]


async def converse_with_client(node: NodeProcess, told: Told, options: dict[str, Any]) -> None:
    """A Node client talks with a server of ours that echoes, both ways."""
    await node.ask(do="create-client", key="c", options=options)
    await node.ask(do="connect", key="c", payload=["p", "é"])
    peer, payload = await told.next("connect")
    assert payload == ["p", "é"]
    assert await node.ask(do="request", key="c", data="hello \U0001f600") == "hello \U0001f600"
    assert await peer.request({"a": "ö"}) == {"a": "ö"}
    await node.ask(do="burst", key="c", count=500)
    assert [await told.message() for _ in range(500)] == list(range(500))
    sent = await node.ask(do="big", key="c", bytes=1_000_000)
    assert digest_of(await told.message()) == sent["sent"]
    await peer.send(big_text(1_000_000))
    heard = await node.event("message", key="c")
    assert heard["data"] == digest_of(big_text(1_000_000))
    assert await node.ask(do="ping", key="c") >= 0
    await node.ask(do="close", key="c", reason="bye")
    assert await told.next("disconnect") == (peer, "bye")


async def converse_with_server(node: NodeProcess, client: Client) -> None:
    """Our client, which echoes, talks with a Node server "s" that echoes, both ways."""
    told = Told(client)
    echo(client)
    await client.connect(["p", "é"])
    assert (await node.event("connect", key="s"))["data"] == ["p", "é"]
    assert await client.request("hello \U0001f600") == "hello \U0001f600"
    assert await node.ask(do="request", key="s", data={"a": "ö"}) == {"a": "ö"}
    await node.ask(do="burst", key="s", count=500)
    assert [await told.message() for _ in range(500)] == list(range(500))
    await client.send(big_text(1_000_000))
    heard = await node.event("message", key="s")
    assert heard["data"] == digest_of(big_text(1_000_000))
    assert await client.ping() > 0
    await client.close("bye")
    assert (await node.event("disconnect", key="s"))["data"] == "bye"


# HTTP upgrade


@flavours
def test_upgrade_of_a_node_client(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        server = Server(address, upgrade=True, compress=True, messagepack=True)
        told = Told(server)
        echo(server)
        async with server, NodeProcess() as node:
            options = {"path": address, "handshake": True, **FLAVOURS[flavour]}
            await converse_with_client(node, told, options)

    run(main())


@flavours
def test_upgrade_at_a_node_server(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            await node.ask(do="create-server", key="s", options={"path": address})
            await converse_with_server(
                node, Client(address, upgrade="net-ipc", **FLAVOURS[flavour])
            )

    run(main())


def test_an_upgrade_that_node_refuses_is_told(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            await node.ask(do="create-server", key="s", options={"path": address})
            client = Client(address, upgrade="isdk-ipc", backoff=None)
            began = time.monotonic()
            with pytest.raises(ConnectError):
                await client.connect()
            assert time.monotonic() - began < 5

    run(main())


def test_an_upgrade_that_is_off_is_refused_and_node_hears_it(run: Run, address: str) -> None:
    async def main() -> None:
        async with Server(address) as server, NodeProcess() as node:
            told = Told(server)
            options = {"path": address, "handshake": True, "reconnect": False}
            await node.ask(do="create-client", key="c", options=options)
            connecting = asyncio.create_task(node.ask(do="connect", key="c"))  # never settles: D17
            closed = await node.event("close", key="c")
            assert "HTTP/1.1 400" in str(closed["data"])
            assert not told.so_far("connect")
            assert not server.peers
            connecting.cancel()

    run(main())


def test_every_split_of_an_upgrade_is_understood(run: Run, address: str) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: net-ipc\r\n\r\n"
    hello = frame({"t": 0, "d": {"id": None}}) + frame({"t": 1, "d": "é"})

    async def main() -> None:
        server = Server(address, upgrade=True, max_incomplete=1000)
        told = Told(server)
        async with server:
            for at in range(1, len(head + hello)):
                raw = await RawPeer.dial(address)
                raw.write((head + hello)[:at])
                await asyncio.sleep(0)
                raw.write((head + hello)[at:])
                assert await told.message() == "é"
                raw.end()
                answer = await raw.rest()
                assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
                await raw.close()

    run(main())


# TCP and TLS


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as door:
        port: int = door.getsockname()[1]
        return port


@flavours
def test_tcp_with_a_node_client(run: Run, flavour: str) -> None:
    async def main() -> None:
        server = Server(tcp_address(port=0), compress=True, messagepack=True, upgrade=True)
        told = Told(server)
        echo(server)
        async with server, NodeProcess() as node:
            port = server.address.port
            options = {"host": "127.0.0.1", "port": port, **FLAVOURS[flavour]}
            await converse_with_client(node, told, options)

    run(main())


@flavours
def test_tcp_with_a_node_server(run: Run, flavour: str) -> None:
    port = free_port()

    async def main() -> None:
        async with NodeProcess() as node:
            options = {"port": port, "listenOptions": {"host": "127.0.0.1"}}
            await node.ask(do="create-server", key="s", options=options)
            client = Client(tcp_address(port=port), **FLAVOURS[flavour])
            await converse_with_server(node, client)

    run(main())


class Certificates:
    """An authority, and a certificate of it for "localhost"."""

    def __init__(self) -> None:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        leaf = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(self.server)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.client)
        self.stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trustme.CA(key_type=trustme.KeyType.ECDSA).configure_trust(self.stranger)
        self.authority_pem = authority.cert_pem.bytes().decode()
        self.key_pem = leaf.private_key_pem.bytes().decode()
        self.chain_pem = "".join(blob.bytes().decode() for blob in leaf.cert_chain_pems)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@flavours
def test_tls_with_a_node_client(run: Run, certificates: Certificates, flavour: str) -> None:
    async def main() -> None:
        server = Server(
            tcp_address("localhost", free_port()),
            tls=certificates.server,
            compress=True,
            messagepack=True,
        )
        told = Told(server)
        echo(server)
        async with server, NodeProcess() as node:
            options = {
                "host": "localhost",
                "port": server.address.port,
                "tls": True,
                "options": {"ca": certificates.authority_pem},
                **FLAVOURS[flavour],
            }
            await converse_with_client(node, told, options)

    run(main())


@flavours
def test_tls_with_a_node_server(run: Run, certificates: Certificates, flavour: str) -> None:
    port = free_port()

    async def main() -> None:
        async with NodeProcess() as node:
            options = {
                "port": port,
                "listenOptions": {"host": "localhost"},
                "tls": True,
                "options": {"key": certificates.key_pem, "cert": certificates.chain_pem},
            }
            await node.ask(do="create-server", key="s", options=options)
            where = tcp_address("localhost", port)
            client = Client(where, tls=certificates.client, **FLAVOURS[flavour])
            await converse_with_server(node, client)
            stranger = Client(where, tls=certificates.stranger, backoff=None)
            with pytest.raises(HandshakeError):
                await stranger.connect()

    run(main())


@pytest.mark.parametrize("tls", [False, True])
def test_a_goodbye_to_node_waits_for_nothing(
    run: Run, certificates: Certificates, address: str, tls: bool
) -> None:
    # Node hangs up only when the stream ends, and neither TLS nor a pipe ends one way.
    place = tcp_address("localhost", free_port()) if tls else address
    there = {"host": "localhost", "port": getattr(place, "port", 0), "tls": True}
    trusting = {**there, "options": {"ca": certificates.authority_pem}}
    trusted = {"key": certificates.key_pem, "cert": certificates.chain_pem}
    trusted_server = {**there, "listenOptions": {"host": "localhost"}, "options": trusted}
    pipe = {"path": address}
    limits = Limits(close_timeout=60)

    async def main() -> None:
        async with NodeProcess() as node, asyncio.timeout(30):
            server = Server(place, limits=limits, tls=certificates.server if tls else None)
            await server.start()
            await node.ask(do="create-client", key="c", options=trusting if tls else pipe)
            await node.ask(do="connect", key="c")
            await server.close("bye")
            assert (await node.event("close", key="c"))["data"] == "bye"

            options = trusted_server if tls else pipe
            await node.ask(do="create-server", key="s", options=options)
            client = Client(place, limits=limits, tls=certificates.client if tls else None)
            await client.connect()
            await client.close("bye")
            assert (await node.event("disconnect", key="s"))["data"] == "bye"

    run(main())


def test_a_node_client_that_does_not_trust_us_hears_why(
    run: Run, certificates: Certificates
) -> None:
    async def main() -> None:
        server = Server(tcp_address("localhost", free_port()), tls=certificates.server)
        told = Told(server)
        async with server, NodeProcess() as node:
            options = {
                "host": "localhost",
                "port": server.address.port,
                "tls": True,
                "reconnect": False,
            }
            await node.ask(do="create-client", key="c", options=options)
            connecting = asyncio.create_task(node.ask(do="connect", key="c"))  # never settles: D17
            assert "certificate" in str((await node.event("error", key="c"))["data"])
            assert not told.so_far("connect")
            connecting.cancel()

    run(main())


# One byte at a time


@pytest.mark.parametrize("flavour", ["plain", "both"])
def test_byte_by_byte_with_a_node_client(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        outer = address + "-outer"
        server = Server(address, compress=True, messagepack=True)
        told = Told(server)
        echo(server)
        async with server, NodeProcess() as node, Proxy(outer, address, piece=1):
            options = {"path": outer, **FLAVOURS[flavour]}
            await node.ask(do="create-client", key="c", options=options)
            await node.ask(do="connect", key="c", payload="é")
            peer, _ = await told.next("connect")
            for text in ("é", "\u4e2d" * 50, "\U0001f600" * 50, {"a" * 200: ["é"] * 50}):
                assert await node.ask(do="request", key="c", data=text) == text
                assert await peer.request(text) == text
            await node.ask(do="close", key="c", reason="bye")
            assert await told.next("disconnect") == (peer, "bye")

    run(main())


@pytest.mark.parametrize("flavour", ["plain", "both"])
def test_byte_by_byte_with_a_node_server(run: Run, address: str, flavour: str) -> None:
    async def main() -> None:
        outer = address + "-outer"
        async with NodeProcess() as node, Proxy(outer, address, piece=1):
            await node.ask(do="create-server", key="s", options={"path": address})
            async with Client(outer, **FLAVOURS[flavour]) as client:
                echo(client)
                for text in ("é", "\u4e2d" * 50, "\U0001f600" * 50, {"a" * 200: ["é"] * 50}):
                    assert await client.request(text) == text
                    assert await node.ask(do="request", key="s", data=text) == text

    run(main())


# A recorded session at our Server, interrupted at every byte

WAYS = ["plain", "both", "upgrade"]
NEEDED = {"connect": 0, "message": 1, "request": 2, "ping": 3, "end": 6}  # by which frame

_sessions: dict[str, bytes] = {}


class Recorded:
    """What a Node client said, and which bytes are needed for what."""

    def __init__(self, way: str, said: bytes) -> None:
        self.way = way
        self.said = said
        start = said.index(b"\r\n\r\n") + 4 if way == "upgrade" else 3
        self.ends = frame_ends(said, start)
        assert len(self.ends) == 7

    def told_by(self, at: int) -> dict[str, bool]:
        """What must have been understood once `at` bytes came."""
        return {name: at >= self.ends[index] for name, index in NEEDED.items()}


def frame_ends(data: bytes, at: int) -> list[int]:
    ends, length = [], 0
    while at < len(data):
        length = length * 128 + (data[at] & 127)
        at += 1
        if data[at - 1] > 127:
            at, length = at + length, 0
            ends.append(at)
    assert not ends or ends[-1] == len(data)
    return ends


def packets_of(way: str, data: bytes) -> list[Any]:
    """What a server of ours said, decoded; ids left out."""
    if way == "upgrade":
        head, _, data = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    packets: list[Any] = []
    start = 0
    for end in frame_ends(data, 0):
        body = data[end - _body_size(data, start) : end]
        start = end
        if packets and way == "both":
            packets.append(msgspec.msgpack.decode(inflate.decompress(body), ext_hook=_no_extension))
        else:
            packets.append(json.loads(body))
    if packets:
        packets[0]["d"].pop("id")
    return packets


def _body_size(data: bytes, at: int) -> int:
    length = 0
    while True:
        length = length * 128 + (data[at] & 127)
        at += 1
        if data[at - 1] > 127:
            return length


def _no_extension(code: int, data: memoryview) -> object:
    return ("extension", code)


class Witness:
    """A server of ours, and what it was told by each peer."""

    def __init__(self, address: str, **options: Any) -> None:
        self.server = Server(
            address,
            upgrade=True,
            compress=True,
            messagepack=True,
            max_incomplete=4096,
            **options,
        )
        self.told: list[tuple[str, Any]] = []
        self.server.on_connect(lambda peer, payload: self.told.append(("connect", payload)))
        self.server.on_message(lambda peer, data: self.told.append(("message", data)))
        self.server.on_disconnect(lambda peer, reason: self.told.append(("end", reason)))

        @self.server.on_request(on="inline")
        def echo(peer: Peer, data: object) -> object:
            self.told.append(("request", data))
            return data


async def record(address: str, way: str) -> Recorded:
    if way not in _sessions:
        outer = address + "-outer"
        witness = Witness(address)
        async with witness.server, NodeProcess() as node, Proxy(outer, address) as proxy:
            flavour = FLAVOURS["both"] if way == "both" else {}
            options = {"path": outer, "handshake": way == "upgrade", **flavour}
            await node.ask(do="create-client", key="c", options=options)
            await node.ask(do="connect", key="c", payload="pä")
            await node.ask(do="send", key="c", data="é\u4e2d\U0001f600")
            await node.ask(do="request", key="c", data={"ö": 1})
            await node.ask(do="ping", key="c", data=0)
            await node.ask(do="request", key="c", data={"sub": "t"})
            await node.ask(do="request", key="c", data={"pub": "u", "message": "ü"})
            await node.ask(do="close", key="c", reason="bye")
            await node.event("close", key="c")
        assert witness.told == WHOLE
        _sessions[way] = b"".join(said for who, said in proxy.turns if who == "client")
    return Recorded(way, _sessions[way])


WHOLE = [
    ("connect", "pä"),
    ("message", "é\u4e2d\U0001f600"),
    ("request", {"ö": 1}),
    ("end", "bye"),
]


@contextlib.asynccontextmanager
async def peers(address: str, count: int) -> AsyncIterator[list[RawPeer]]:
    raws = [await RawPeer.dial(address) for _ in range(count)]
    try:
        yield raws
    finally:
        for raw in raws:
            await raw.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_session_split_and_stalled_at_every_byte(run: Run, address: str, way: str) -> None:
    async def main() -> None:
        recorded = await record(address, way)
        said, witness = recorded.said, Witness(address)
        async with witness.server, peers(address, len(said) + 1) as raws:
            for at, raw in enumerate(raws):
                raw.write(said[:at])
            # While all of them have stalled somebody else is served.
            async with await RawPeer.join(address) as other:
                for number in range(10):
                    assert (await other.ask(number))["d"] == number
            for at, raw in enumerate(raws):
                raw.write(said[at:])
            answers = [await raw.rest() for raw in raws]
        whole = packets_of(way, answers[0])
        assert [packet["t"] for packet in whole] == [0, 3, 5, 3, 3]
        for at, answer in enumerate(answers):
            assert packets_of(way, answer) == whole, at
        others = 1 + 10 + 1  # what the other one did
        assert len(witness.told) == len(WHOLE) * len(raws) + others
        for item in WHOLE:
            assert witness.told.count(item) == len(raws)

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no half-close")
@pytest.mark.parametrize("way", WAYS)
def test_a_session_cut_at_every_byte(run: Run, address: str, way: str) -> None:
    async def main() -> None:
        recorded = await record(address, way)
        for at in range(len(recorded.said) + 1):
            witness = Witness(f"{address}-{at}")
            async with witness.server, await RawPeer.dial(f"{address}-{at}") as raw:
                raw.write(recorded.said[:at])
                raw.end()
                await raw.rest()
                needed = recorded.told_by(at)
                told = [name for name, _ in witness.told if name != "end"]
                assert told == [name for name in ("connect", "message", "request") if needed[name]]
                assert not witness.server.peers
                reasons = [reason for name, reason in witness.told if name == "end"]
                assert len(reasons) == needed["connect"]
                assert ("bye" in reasons) is needed["end"]

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_handshake_stalled_at_every_byte_is_given_up(run: Run, address: str, way: str) -> None:
    async def main() -> None:
        recorded = await record(address, way)
        witness = Witness(address, limits=Limits(handshake_timeout=0.5))
        stalls = recorded.ends[NEEDED["connect"]]
        async with witness.server, peers(address, stalls) as raws:
            began = time.monotonic()
            for at, raw in enumerate(raws):
                raw.write(recorded.said[:at])
            for raw in raws:
                rest = await raw.rest()
                assert b'"id"' not in rest
            assert time.monotonic() - began < 5
            assert not witness.told

    run(main())


# A recorded session of a Node server with our Client


async def talk(client: Client) -> list[Any]:
    """What our client does and hears; ends early if the connection does."""
    heard: list[Any] = []
    events: asyncio.Queue[Any] = asyncio.Queue()
    client.on_message(events.put_nowait)
    client.on_close(events.put_nowait)
    with contextlib.suppress(ConnectError, ConnectionLost):
        await client.connect("pä")
        heard.append("connected")
        heard.append(await client.request({"é\u4e2d\U0001f600": 1}, timeout=None))
        heard.append(await client.ping(timeout=None) > 0)
        await client.send("that was all")
        heard.append(await events.get())
        if client.status or heard[-1] == ALL_HEARD[3]:
            heard.append(await events.get())
    await client.close(grace=0)
    return heard


ALL_HEARD = ["connected", {"é\u4e2d\U0001f600": 1}, True, ["ü", 0], "bye"]

Turns = list[tuple[str, bytes]]


def our_client(address: str, way: str) -> Client:
    options = FLAVOURS["both"] if way == "both" else {}
    upgrade: Any = "net-ipc" if way == "upgrade" else None
    client = Client(address, backoff=None, upgrade=upgrade, **options)
    echo(client)
    return client


async def record_server(address: str, way: str) -> Turns:
    outer = address + "-outer"
    async with NodeProcess() as node, Proxy(outer, address) as proxy:
        given = {"path": address}
        await node.ask(do="create-server", key="s", options=given, ids=["the-id"])
        client = our_client(outer, way)
        talking = asyncio.create_task(talk(client))
        await node.event("message", key="s", data="that was all")
        assert await node.ask(do="request", key="s", data="echo") == "echo"
        await node.ask(do="send", key="s", data=["ü", 0])
        await node.ask(do="close", key="s", peer="the-id", reason="bye")
        assert await talking == ALL_HEARD
    return proxy.turns


class Replay:
    """A server that says what a recorded one said, up to a byte, or with a stop at one."""

    def __init__(self, turns: Turns, at: int, *, cut: bool) -> None:
        self.turns = turns
        self.at = at
        self.cut = cut

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.at
        try:
            for who, data in self.turns:
                if who == "client":
                    await reader.readexactly(len(data))
                    continue
                if left <= len(data):
                    writer.write(data[:left])
                    await writer.drain()
                    if self.cut:
                        return
                    await asyncio.sleep(0.001)  # it stalls, and then it goes on
                    data = data[left:]
                    left = 2**31
                writer.write(data)
                left -= len(data)
            end_writing(writer)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def replay(address: str, way: str, replaying: Replay) -> list[Any]:
    served = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await replaying.serve(reader, writer)
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        served.set_result(None)

    listener = await listen_streams(address, serve)
    client = our_client(address, way)
    try:
        async with asyncio.timeout(10):
            heard = await talk(client)
            await served
    finally:
        client.abort()
        listener.close()
    return heard


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["split", "cut"])
def test_a_node_servers_session_interrupted_at_every_byte(
    run: Run, address: str, way: str, how: str
) -> None:
    async def main() -> None:
        turns = await record_server(address, way)
        size = sum(len(data) for who, data in turns if who == "server")
        lengths = []
        for at in range(size):
            replaying = Replay(turns, at, cut=how == "cut")
            heard = await replay(f"{address}-{at}", way, replaying)
            if how == "split":
                assert heard == ALL_HEARD, at
            elif heard != ALL_HEARD[: len(heard)]:  # the last is how the connection was lost
                assert heard[:-1] == ALL_HEARD[: len(heard) - 1], at
                assert len(heard) in (4, 5), at
            lengths.append(len(heard))
        assert lengths == sorted(lengths)

    run(main())
