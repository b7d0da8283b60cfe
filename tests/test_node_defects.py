"""The defects of the Node packages (D1 to D37) that we do not share, one by one.

Raw sockets where a Node would not misbehave on demand. Some are told by tests elsewhere:

- D1 (towards isdk), D10, D12, D21, D28: `test_node_isdk.py`
- D2, D17 (at TCP and TLS): `test_node_wire.py`
- D11, D16, D22, D26, D30, D37: `test_node_server.py` and `test_node_client.py`
- D31, D35 show nothing to a peer: `tests/protocol`, the tests of `Backoff`; D36: `test_address.py`
- D34 is about an API that we do not have
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from interphone import (
    AddressError,
    AddressInUse,
    Backoff,
    Client,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InterphoneError,
    Limits,
    PayloadError,
    Peer,
    RequestTimeout,
    Server,
    Status,
)
from support.node import (
    NodeProcess,
    RawPeer,
    Told,
    big_text,
    frame,
    listen_streams,
    one_loop,
    packets_in,
)

pytestmark = [pytest.mark.node, one_loop]
Run = Callable[[Any], Any]
Script = Callable[["Host"], Awaitable[None]]

AT_ONCE = 5.0
SOON = Backoff(initial=0.02, factor=1.0, jitter=False)


@contextlib.asynccontextmanager
async def serving(address: str, **options: Any) -> AsyncIterator[tuple[Server, Told]]:
    """A server of ours that echoes."""
    server = Server(address, **options)
    told = Told(server)

    @server.on_request(on="inline")
    def echo(peer: Peer, data: object) -> object:
        return data

    async with server:
        yield server, told


async def still_serves(address: str) -> None:
    async with await RawPeer.join(address) as raw:
        assert (await raw.ask("alive?"))["d"] == "alive?"


class Host(RawPeer):
    """One connection at a server written by hand."""

    async def greet(self, more: bytes = b"") -> None:
        """Read the preamble and CONNECTION; answer, with `more` right behind it."""
        assert await self._reader.readexactly(3) == b"IPC"
        hello = await self.read()
        assert hello is not None
        self.hello = hello["d"]
        flags = {"compress": False, "messagepack": False}
        self.write({"t": 0, "d": {"id": "given", **flags}}, more)


@contextlib.asynccontextmanager
async def hosting(address: str, *scripts: Script) -> AsyncIterator[None]:
    """A server written by hand: the n-th connection gets the n-th script, the last one stays."""
    tasks: set[asyncio.Task[None]] = set()
    count = 0

    async def run_script(host: Host, script: Script) -> None:
        try:
            await script(host)
        finally:
            await host.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        script = scripts[min(count, len(scripts) - 1)]
        count += 1
        task = asyncio.get_running_loop().create_task(run_script(Host(reader, writer), script))
        tasks.add(task)

    listener = await listen_streams(address, accept)
    try:
        yield
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            assert not isinstance(result, Exception), result


# Data loss and stalls


def test_d01_a_last_byte_that_comes_alone_completes_its_frame(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address) as (_, told), await RawPeer.join(address) as raw:
            for size in (1, 200, 65_536 - 20, 65_536, 131_072):
                whole = frame({"t": 1, "d": "x" * size})
                raw.write(whole[:-1])
                async with await RawPeer.join(address) as other:
                    await other.ask("first")  # what was sent before has been read by now
                assert not told.so_far("message")
                raw.write(whole[-1:])
                assert await told.message() == "x" * size

    run(main())


def test_d01_one_stray_byte_leaves_no_ghost(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address) as (server, told):
            raw = await RawPeer.join(address)
            raw.write(b"\x01")
            await raw.close()
            await told.next("disconnect")
            assert not server.peers

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no half-close")
@pytest.mark.parametrize("name", ["isdk-ipc", "net-ipc"])
def test_d02_the_upgrade_works_in_two_chunks(run: Run, address: str, name: str) -> None:
    async def main() -> None:
        async with serving(address, upgrade=True), await RawPeer.dial(address) as raw:
            raw.write(b"GET")
            await asyncio.sleep(0.01)
            raw.write(b" / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n")
            await asyncio.sleep(0.01)
            raw.write(f"Upgrade: {name}\r\n\r\n".encode(), {"t": 0, "d": {}})
            raw.end()
            head, _, rest = (await raw.rest()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
            assert f"Upgrade: {name}".encode() in head
            assert [packet["t"] for packet in packets_in(rest)] == [0]

    run(main())


def test_d03_close_closes(run: Run, address: str) -> None:
    async def main() -> None:
        server = Server(address)
        told = Told(server)
        assert not server.ready
        async with server:
            (where,) = await told.next("ready")
            assert str(where) == address
            assert server.ready
            with pytest.raises(InterphoneError):
                await server.start()
            async with await RawPeer.join(address) as raw:
                await server.close("over")
                assert await raw.read() == {"t": 6, "d": {"m": "over", "a": False}}
                assert await raw.read() is None
            assert await told.next("close") == ()
            assert not server.ready
            with pytest.raises(OSError):
                await RawPeer.dial(address)
            await server.start()
            async with await RawPeer.join(address) as raw:
                assert raw.welcome is not None

    run(main())
    assert not Path(address).exists()


# Crashes and security


@pytest.mark.parametrize("upgrade", [False, True])
def test_d04_three_bytes_do_not_kill_the_server(run: Run, address: str, upgrade: bool) -> None:
    async def main() -> None:
        async with serving(address, upgrade=upgrade):
            for start in (b"GET", b"G", b"GE", b"GET ", b"IPC", b"IP", b"\x00\x00\x00", b"ipc"):
                async with await RawPeer.dial(address) as raw:
                    raw.write(start)
                    raw.end()
                    await raw.rest()
            await still_serves(address)

    run(main())


@pytest.mark.parametrize("start", [b"ipc", b"XYZ", b"POST / HTTP/1.1\r\n\r\n", b"GET"])
def test_d05_a_refused_preamble_is_hung_up_on(run: Run, address: str, start: bytes) -> None:
    async def main() -> None:
        async with serving(address) as (server, told), await RawPeer.dial(address) as raw:
            raw.write(start)
            assert b"HTTP/1.1 400" in await raw.rest()
            raw.write(b"IPC", {"t": 0, "d": {}}, {"t": 1, "d": "hello"})
            await raw.cut_off()
            assert not server.peers
            assert not told.so_far("connect")

    run(main())


def test_d05_nothing_is_accepted_after_the_time_for_connection(run: Run, address: str) -> None:
    async def main() -> None:
        limits = Limits(handshake_timeout=0.1)
        async with serving(address, limits=limits) as (server, told):
            async with await RawPeer.dial(address) as raw:
                raw.write(b"IPC")
                assert await raw.read() == {"t": 6, "d": {"a": False}}
                raw.write({"t": 0, "d": {}}, {"t": 1, "d": "hello"})
                assert await raw.read() is None
                await raw.cut_off()
            assert not server.peers
            assert [told.so_far(name) for name in ("connect", "message")] == [[], []]

    run(main())


@pytest.mark.parametrize("tag", [b"\x04\x00\x00\x00\x80", b"\x10\x00\x00\x00\x80", b"\x00" * 64])
def test_d06_a_tag_kills_nobody(run: Run, address: str, tag: bytes) -> None:
    async def main() -> None:
        async with serving(address) as (_, told):
            async with await RawPeer.join(address) as raw:
                raw.write(tag)
                end = await raw.read()
                assert end is not None
                assert end["t"] == 6
                assert await raw.read() is None
            await told.next("disconnect")
            await still_serves(address)

    run(main())


def test_d06_an_unfinished_frame_is_bounded(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address, limits=Limits(max_frame=1000)) as (_, told):
            async with await RawPeer.join(address) as raw:
                raw.write({"t": 1, "d": "x" * (1000 - 14)})
                assert len(await told.message()) == 986
                raw.write(frame(b" " * 1001)[:2])  # the tag is enough
                assert (await raw.read() or {}).get("t") == 6
            await still_serves(address)

    run(main())


def joined_with_deflate() -> tuple[dict[str, Any], Any]:
    return {"compress": True, "messagepack": False}, zlib.compressobj(wbits=-zlib.MAX_WBITS)


def deflated(deflate: Any, packet: bytes) -> bytes:
    return frame(deflate.compress(packet) + deflate.flush(zlib.Z_SYNC_FLUSH))


@pytest.mark.parametrize("broken", [b"\xff\xff\xff", b"", b"\x00", b'{"t":1}', b"\x03\x00"])
def test_d07_corrupt_compressed_bytes_end_one_connection(
    run: Run, address: str, broken: bytes
) -> None:
    async def main() -> None:
        async with serving(address, compress=True) as (_, told):
            asked, deflate = joined_with_deflate()
            async with await RawPeer.join(address, **asked) as raw:
                assert raw.welcome is not None
                assert raw.welcome["d"]["compress"] is True
                raw.write(deflated(deflate, b'{"t":1,"d":"fine"}'))
                assert await told.message() == "fine"
                raw.write(frame(broken))
                raw.end()
                await raw.rest()
            await told.next("disconnect")
            assert not told.so_far("message")
            await still_serves(address)

    run(main())


def test_d07_what_inflates_without_end_is_bounded(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address, compress=True) as (_, told):
            asked, deflate = joined_with_deflate()
            async with await RawPeer.join(address, **asked) as raw:
                bomb = deflate.compress(b'{"t":1,"d":"')
                for _ in range(100):
                    bomb += deflate.compress(b"0" * 4_000_000)
                bomb += deflate.compress(b'"}') + deflate.flush(zlib.Z_SYNC_FLUSH)
                assert len(bomb) < 500_000
                raw.write(frame(bomb))
                await raw.rest()
            await told.next("disconnect")
            assert not told.so_far("message")
            await still_serves(address)

    run(main())


def test_d08_an_id_belongs_to_one_connection(run: Run, address: str) -> None:
    async def main() -> None:
        async with (
            serving(address) as (server, told),
            await RawPeer.join(address, id="a") as first,
            await RawPeer.join(address, id="a") as second,
        ):
            peer, _ = await told.next("connect")
            other, _ = await told.next("connect")
            assert peer.id == "a"
            assert other.id != "a"
            second.write({"t": 0, "d": {"id": "a"}}, {"t": 0, "d": {"id": "b"}})
            assert (await second.ask(1))["d"] == 1  # no reply to either before it
            assert server.peers == {"a": peer, other.id: other}
            await second.close()
            await told.next("disconnect")
            assert server.peers == {"a": peer}
            await server.broadcast("still there")
            assert await first.read() == {"t": 1, "d": "still there"}

    run(main())


@pytest.mark.parametrize("wanted", [5, True, {"a": 1}, ["a"], "", None, "x" * 256, 0])
def test_d08_an_id_that_is_none_is_replaced(run: Run, address: str, wanted: Any) -> None:
    async def main() -> None:
        async with (
            serving(address) as (server, _),
            await RawPeer.join(address, id=wanted) as raw,
        ):
            assert raw.welcome is not None
            given = raw.welcome["d"]["id"]
            assert isinstance(given, str)
            assert given
            assert given != wanted
            assert list(server.peers) == [given]

    run(main())


def test_d09_clients_of_one_process_share_nothing(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            for key in ("one", "two"):
                options = {"path": address + key}
                await node.ask(do="create-server", key=key, options=options, reply="manual")
            async with Client(address + "one") as one, Client(address + "two") as two:
                asked = [asyncio.create_task(client.request("who?")) for client in (one, two)]
                for key in ("two", "one"):
                    token = (await node.event("request", key=key))["token"]
                    await node.ask(do="reply", key=key, token=token, data=key)
                assert await asyncio.gather(*asked) == ["one", "two"]
                # Whoever answers what he was not asked is not heard.
                waiting = asyncio.create_task(one.request("slow"))
                token = (await node.event("request", key="one"))["token"]
                assert two.peer.pending == 0
                await node.ask(do="close", key="two", peer=two.id)
                await two.wait_closed()
                assert not waiting.done()
                await node.ask(do="reply", key="one", token=token, data="mine")
                assert await waiting == "mine"

    run(main())


# Sends


def test_d13_what_cannot_be_sent_raises_at_once(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address) as (server, _), await RawPeer.join(address) as raw:
            (peer,) = server.peers.values()
            began = time.monotonic()
            for bad in (object(), {1j: 2}, {"a": object()}):
                with pytest.raises(PayloadError):
                    await peer.send(bad)
                with pytest.raises(PayloadError):
                    await peer.request(bad)
                with pytest.raises(PayloadError):
                    await server.broadcast(bad)
            assert time.monotonic() - began < AT_ONCE
            await peer.send("fine")
            assert await raw.read() == {"t": 1, "d": "fine"}
        with pytest.raises(ConnectionLost):
            await peer.send("nobody there")

    run(main())


def test_d14_sends_that_wait_for_room_fail_when_node_dies(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address) as (server, told), NodeProcess() as node:
            await node.ask(do="create-client", key="c", options={"path": address})
            await node.ask(do="connect", key="c")
            (peer,) = server.peers.values()
            node.freeze()
            text = big_text(100_000)
            sends = [asyncio.ensure_future(peer.send(text)) for _ in range(50)]
            done, _ = await asyncio.wait(sends, timeout=0.2)
            assert len(done) < len(sends)
            node.kill()
            began = time.monotonic()
            results = await asyncio.gather(*sends, return_exceptions=True)
            assert time.monotonic() - began < AT_ONCE
            failed = [result for result in results if result is not None]
            assert {type(error) for error in failed} == {ConnectionLost}
            await told.next("disconnect")

    run(main())


@pytest.mark.parametrize("end", ["abort", "close"])
def test_d14_sends_that_wait_for_room_fail_when_we_end_it(run: Run, address: str, end: str) -> None:
    async def main() -> None:
        async with serving(address) as (server, _), await RawPeer.join(address):
            (peer,) = server.peers.values()
            text = big_text(100_000)
            sends = [asyncio.ensure_future(peer.send(text)) for _ in range(100)]
            await asyncio.sleep(0)
            if end == "abort":
                peer.abort()
            else:
                await peer.close()
            results = await asyncio.gather(*sends, return_exceptions=True)
            failed = [result for result in results if result is not None]
            assert failed
            assert {type(error) for error in failed} == {ConnectionClosed}

    run(main())


def test_d15_everybody_who_waited_for_room_goes_on(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address) as (server, _), await RawPeer.join(address) as raw:
            (peer,) = server.peers.values()
            text = big_text(100_000)
            sends = [asyncio.ensure_future(peer.send([number, text])) for number in range(100)]
            await asyncio.wait(sends, timeout=0.1)
            for number in range(100):
                packet = await raw.read()
                assert packet is not None
                assert packet["d"][0] == number
            await asyncio.gather(*sends)
            assert await peer.close()

    run(main())


def test_a_pong_does_not_cut_off_who_is_being_sent_much(run: Run, address: str) -> None:
    async def main() -> None:
        size = 32 * 1024 * 1024
        async with (
            serving(address, limits=Limits(max_frame=2 * size)) as (server, _),
            await RawPeer.join(address) as raw,
        ):
            (peer,) = server.peers.values()
            await peer.send("x" * size)  # the first one never waits
            raw.write({"t": 4, "n": "1"}, {"t": 2, "d": "echo", "n": "2"})
            async with await RawPeer.join(address) as other:
                await other.ask("what was sent before has been read by now")
            packet = await raw.read()
            assert packet is not None
            assert len(packet["d"]) == size
            assert await raw.read() == {"t": 5, "n": "1"}
            assert await raw.read() == {"t": 3, "d": "echo", "n": "2"}
            assert peer.open

    run(main())


# Connecting


async def never(host: Host) -> None:
    await host.rest()


async def end_instead(host: Host) -> None:
    host.write({"t": 6, "d": {"m": "not today", "a": False}})
    await host.rest()


async def http_instead(host: Host) -> None:
    host.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
    host.end()
    await host.rest()


async def hang_up(host: Host) -> None:
    pass


async def rubbish(host: Host) -> None:
    host.write({"t": 1, "d": "too early"})
    await host.rest()


@pytest.mark.parametrize("script", [never, end_instead, http_instead, hang_up, rubbish])
@pytest.mark.parametrize("backoff", [None, SOON], ids=["once", "again"])
def test_d17_connect_settles(run: Run, address: str, script: Script, backoff: Any) -> None:
    async def main() -> None:
        async with hosting(address, script):
            client = Client(address, connect_timeout=0.3, backoff=backoff)
            began = time.monotonic()
            with pytest.raises(ConnectError) as caught:
                await client.connect()
            assert time.monotonic() - began < AT_ONCE
            if script is end_instead:
                assert isinstance(caught.value, HandshakeError)
                assert "not today" in str(caught.value)
            assert client.status is Status.IDLE
            assert await client.close() is False

    run(main())


@pytest.mark.parametrize("how", ["close", "abort", "cancel"])
@pytest.mark.parametrize("script", [never, hang_up, None])
def test_d17_connect_can_be_given_up(run: Run, address: str, script: Any, how: str) -> None:
    async def main() -> None:
        scripts = () if script is None else (script,)
        async with contextlib.AsyncExitStack() as stack:
            if scripts:
                await stack.enter_async_context(hosting(address, *scripts))
            client = Client(address, backoff=SOON, connect_timeout=None)
            connecting = asyncio.create_task(client.connect())
            await asyncio.wait([connecting], timeout=0.05)
            assert not connecting.done()
            if how == "close":
                assert await client.close("never mind") is True
            elif how == "abort":
                client.abort("never mind")
            else:
                connecting.cancel()
            kind = asyncio.CancelledError if how == "cancel" else ConnectionClosed
            with pytest.raises(kind):
                await connecting
            assert client.status is Status.IDLE

    run(main())


async def greet_and_leave(host: Host) -> None:
    await host.greet()


@pytest.mark.parametrize("how", ["close", "abort"])
def test_d18_a_reconnecting_client_can_be_closed(run: Run, address: str, how: str) -> None:
    async def main() -> None:
        client = Client(address, backoff=Backoff(initial=30, jitter=False))
        told = Told(client)
        async with hosting(address, greet_and_leave):
            await client.connect()
            while (await told.next("status"))[0] is not Status.RECONNECTING:
                pass
            sending = asyncio.create_task(client.send("later", timeout=None))
            await asyncio.sleep(0)
            began = time.monotonic()
            if how == "close":
                assert await client.close("enough") is True
            else:
                client.abort("enough")
            assert await told.next("close") == ("enough",)
            assert client.status is Status.IDLE
            with pytest.raises(ConnectionLost):
                await sending
            assert await client.close() is False
            assert time.monotonic() - began < AT_ONCE - 1

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe is no file")
def test_d19_start_fails_when_listening_does(run: Run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(AddressError):
            await Server(address + "/nowhere/s").start()
        with pytest.raises(AddressError):
            await Server("/tmp/" + "x" * 200).start()

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe is no file")
def test_d20_what_lies_at_the_path_is_not_touched(run: Run, address: str) -> None:
    async def main() -> None:
        with pytest.raises(AddressInUse):
            await Server(address).start()

    Path(address).write_text("precious")
    run(main())
    assert Path(address).read_text() == "precious"


def test_d20_a_living_node_server_is_not_displaced(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            await node.ask(do="create-server", key="s", options={"path": address})
            with pytest.raises(AddressInUse):
                await Server(address).start()
            async with Client(address) as client:
                assert await client.request("still you?") == "still you?"
            node.kill()
            await node.stop()
            async with serving(address):  # what a dead one left is no obstacle
                await still_serves(address)

    run(main())


def test_d20_our_close_does_not_remove_the_file_of_a_usurper(run: Run, address: str) -> None:
    async def main() -> None:
        async with NodeProcess() as node:
            async with serving(address):
                await node.ask(do="create-server", key="s", options={"path": address})
            async with Client(address) as client:
                assert await client.request("who?") == "who?"
                await node.event("request", key="s", data="who?")

    run(main())


# To many


def test_d23_a_broadcast_reaches_who_is_behind_a_closing_one(run: Run, address: str) -> None:
    async def main() -> None:
        async with (
            serving(address) as (server, _),
            await RawPeer.join(address),
            await RawPeer.join(address) as behind,
        ):
            first, _ = server.peers.values()
            closing = asyncio.create_task(first.close("bye"))
            await asyncio.sleep(0)
            receipt = await server.broadcast("all")
            assert await behind.read() == {"t": 1, "d": "all"}
            assert receipt.dropped == (receipt.matched or 0) - 1
            outcomes = await server.survey("who?", timeout=0.05)
            assert not any(outcome.ok for outcome in outcomes)
            await closing

    run(main())


# Order


def test_d24_what_comes_with_the_reply_is_heard_after_connect(run: Run, address: str) -> None:
    async def main() -> None:
        early = frame({"t": 1, "d": "early"}) + frame({"t": 2, "d": "who?", "n": "q"})
        answers: asyncio.Queue[Any] = asyncio.Queue()

        async def eager(host: Host) -> None:
            await host.greet(early)
            answers.put_nowait(await host.read())
            await host.rest()

        async with hosting(address, eager):
            client = Client(address)
            await client.connect()
            told = Told(client)

            @client.on_request
            async def answer(data: object) -> object:
                return ["me", data]

            assert await told.message() == "early"
            assert await answers.get() == {"t": 3, "d": ["me", "who?"], "n": "q"}
            await client.close()

    run(main())


def test_d25_requests_and_messages_keep_their_order(run: Run, address: str) -> None:
    async def main() -> None:
        heard: list[Any] = []
        server = Server(address)
        server.on_message(lambda peer, data: heard.append(data))

        @server.on_request(on="inline")
        def answer(peer: Peer, data: object) -> object:
            heard.append(data)
            return data

        async with server, await RawPeer.join(address) as raw:
            packets = [
                {"t": 2, "d": number, "n": f"n{number}"} if number % 2 else {"t": 1, "d": number}
                for number in range(101)
            ]
            raw.write(*packets)
            assert (await raw.ask(101))["d"] == 101
            assert heard == list(range(102))

    run(main())


def test_d27_a_request_may_time_out_while_the_client_is_turned_away(run: Run, address: str) -> None:
    async def once(host: Host) -> None:
        await host.greet()
        await host.read()  # the request; and gone

    async def not_again(host: Host) -> None:
        await host.greet(frame({"t": 6, "d": {"m": "no more", "a": False}}))
        await host.rest()

    async def main() -> None:
        async with hosting(address, once, not_again):
            client = Client(address, backoff=SOON)
            told = Told(client)
            await client.connect()
            asked = asyncio.create_task(client.request("lost", timeout=0.05))
            with pytest.raises((ConnectionLost, RequestTimeout)):
                await asked
            assert await told.next("close") == ("no more",)
            with pytest.raises(ConnectionClosed):
                await client.request("after")

    run(main())


# Names and nonces

INHERITED = ["constructor", "toString", "__proto__", "hasOwnProperty", "valueOf"]


@pytest.mark.parametrize("name", INHERITED)
def test_d29_inherited_names_are_no_nonces(run: Run, address: str, name: str) -> None:
    async def main() -> None:
        async with serving(address) as (server, told), await RawPeer.join(address) as raw:
            (peer,) = server.peers.values()
            for kind in (3, 5):
                raw.write({"t": kind, "d": 1, "n": name})
            assert (await raw.ask("fine", nonce=name))["d"] == "fine"
            raw.write({"t": 4, "d": 5, "n": name})
            assert await raw.read() == {"t": 5, "d": 5, "n": name}
            assert peer.counts.late == 2
            assert not told.so_far("error")

    run(main())


@pytest.mark.parametrize("nonce", [1, -1.5, True, {"a": [None]}, ["x"], "é\ud800", "x" * 1000])
def test_any_nonce_is_echoed(run: Run, address: str, nonce: Any) -> None:
    async def main() -> None:
        async with serving(address), await RawPeer.join(address) as raw:
            assert await raw.ask([1], nonce=nonce) == {"t": 3, "d": [1], "n": nonce}
            raw.write({"t": 4, "n": nonce})
            assert await raw.read() == {"t": 5, "n": nonce}
            raw.write({"t": 4, "d": None, "n": nonce})
            assert await raw.read() == {"t": 5, "d": None, "n": nonce}

    run(main())


@pytest.mark.parametrize("nonce", [0, "", None, False])
def test_a_falsy_nonce_comes_back_as_none_at_all(run: Run, address: str, nonce: Any) -> None:
    async def main() -> None:
        async with serving(address), await RawPeer.join(address) as raw:
            raw.write({"t": 2, "d": "x", "n": nonce})
            assert await raw.read() == {"t": 3, "d": "x"}

    run(main())


# Smaller


def test_d32_a_frame_cut_by_the_end_of_the_stream_is_not_read(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address) as (_, told), await RawPeer.join(address) as raw:
            body = b'{"t":1,"d":5}'
            raw.write(bytes([128 + len(body) + 1]) + body)
            raw.end()
            await raw.rest()
            _, reason = await told.next("disconnect")
            assert "within a frame" in str(reason)
            assert not told.so_far("message")

    run(main())


@pytest.mark.parametrize(
    "first",
    [
        {"t": 1, "d": "early"},
        {"t": 2, "d": "early", "n": "1"},
        {"t": 7},
        {"t": 0},
        {"t": 0, "d": None},
        b"\x81{",
        b"\x815",
        b"\x80",
    ],
    ids=repr,
)
def test_d33_nothing_is_accepted_behind_a_premature_packet(
    run: Run, address: str, first: Any
) -> None:
    async def main() -> None:
        async with serving(address) as (server, told), await RawPeer.dial(address) as raw:
            raw.write(b"IPC", first, {"t": 0, "d": {}}, {"t": 1, "d": "late"})
            assert await raw.read() == {
                "t": 6,
                "d": {"m": "closing orphaned connection", "a": False},
            }
            assert await raw.read() is None
            await raw.cut_off()
            assert not server.peers
            assert [told.so_far(name) for name in ("connect", "message")] == [[], []]

    run(main())


@pytest.mark.parametrize(
    "body",
    [b"5", b"[]", b'"s"', b"true", b'{"t":7}', b'{"t":"1"}', b'{"t":1.5}', b'{"t":-1}', b"{}"],
)
def test_what_is_no_packet_is_ignored(run: Run, address: str, body: bytes) -> None:
    async def main() -> None:
        async with serving(address) as (_, told), await RawPeer.join(address) as raw:
            for _ in range(100):
                raw.write(frame(body))
            assert (await raw.ask("fine"))["d"] == "fine"
            assert not told.so_far("message")

    run(main())


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"{", b'{"t":1} x', b"\xef\xbb\xbf{}", b"{'t':1}", b'{"t":1,"d":NaN}', b"\xff"],
)
def test_what_is_no_json_is_reported_and_the_connection_stays(
    run: Run, address: str, body: bytes
) -> None:
    async def main() -> None:
        async with serving(address) as (_, told), await RawPeer.join(address) as raw:
            raw.write(frame(body))
            assert (await raw.ask("fine"))["d"] == "fine"
            error, peer = await told.next("error")
            assert isinstance(error, InterphoneError)
            assert peer is not None
            assert not told.so_far("message")
            raw.write(*[frame(body)] * 100)
            assert b'"t":6' in await raw.rest()
            await told.next("disconnect")

    run(main())


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b' { "d" : 1 , "t" : 1 } ', 1),
        (b'{"t":1.0,"d":2}', 2),
        (b'{"t":1e0,"d":3}', 3),
        (b'{"t":9,"t":1,"d":0,"d":4,"extra":[1]}', 4),
        (b'{"t":1,"d":"\\ud800"}', "\ud800"),
        (b'{"t":1,"d":"\xff\xc3"}', "\ufffd\ufffd"),
        (b'{"t":1,"d":1e400}', float("inf")),
        (b'{"t":1}', None),
    ],
)
def test_what_node_reads_is_read(run: Run, address: str, body: bytes, data: Any) -> None:
    async def main() -> None:
        async with serving(address) as (_, told), await RawPeer.join(address) as raw:
            raw.write(b"\x00\x00" + frame(body))  # leading zero digits are accepted, too
            assert await told.message() == data

    run(main())


def test_an_end_without_data_is_ignored(run: Run, address: str) -> None:
    async def main() -> None:
        async with serving(address), await RawPeer.join(address) as raw:
            raw.write({"t": 6}, {"t": 6, "d": None})
            assert (await raw.ask("fine"))["d"] == "fine"

    run(main())
