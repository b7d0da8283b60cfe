"""Large payloads through shared memory: real sockets, real processes, and their real ends."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

if sys.platform not in ("linux", "win32"):
    pytest.skip("memory is shared on Linux and on Windows only", allow_module_level=True)

from interphone import Client, ConnectionLost, ForkedError, Limits, Peer, PoolCounts, Server, Stats
from interphone.blocking import Client as BlockingClient
from interphone.blocking import Server as BlockingServer
from interphone.protocol.pooled import LARGE

LINUX = sys.platform == "linux"
BIG = bytes(range(256)) * 4096
TIMEOUT = 60


def made(address: str, **options: Any) -> Server:
    server = Server(address, **options)

    @server.method
    async def echo(data: memoryview) -> memoryview:
        return data

    @server.method
    async def kind(data: bytes) -> str:
        assert data == BIG
        return type(data).__name__

    @server.on_request
    async def same(peer: Peer, data: Any) -> Any:
        return data

    return server


async def settled(client: Client) -> None:
    """Have both pools made, and everything given back."""
    await client.call("echo", BIG)
    gc.collect()
    await client.ping()
    await client.ping()


def mappings() -> int:
    """How many pools this process has mapped; Windows does not tell."""
    gc.collect()
    if not LINUX:
        return 0
    with open("/proc/self/maps") as maps:
        return sum("memfd:interphone" in line for line in maps)


# asyncio


def test_each_parameter_is_what_it_asks_for(run: Any, address: str) -> None:
    async def main() -> None:
        server = made(address)

        @server.method
        async def kinds(seen: memoryview, it: Any, copy: bytes = b"", *, more: Any = None) -> Any:
            return [type(each).__name__ for each in (seen, it, copy, more)]

        expected = ["memoryview", "bytes", "bytes", "bytes"]
        async with server, Client(address) as client:
            for _ in range(3):
                assert await client.call("kinds", BIG, BIG, BIG, named={"more": BIG}) == expected
            assert client.peer.pool.lent

    run(main())


def test_views_both_ways(run: Any, address: str) -> None:
    async def main() -> None:
        async with made(address) as server, Client(address) as client:
            await settled(client)

            view = await client.call("echo", BIG, returns=memoryview)
            copy = await client.request(BIG)

            assert view == copy == BIG
            assert view.readonly
            assert type(copy) is bytes
            assert await client.call("kind", BIG) == "bytes"
            (peer,) = server.peers.values()
            assert client.peer.pool == PoolCounts(lent=3, inline=1)
            assert peer.pool == PoolCounts(lent=2, inline=1)

    run(main())
    gc.collect()


@pytest.mark.skipif(not LINUX, reason="only Linux tells what is mapped")
def test_views_outlive_the_connection_and_the_mapping_goes_with_the_last(
    run: Any, address: str
) -> None:
    before = mappings()

    async def main() -> memoryview:
        async with made(address), Client(address) as client:
            await settled(client)
            view = await client.call("echo", BIG, returns=memoryview)
            assert client.peer.pool.lent
            return view[1:]

    view = run(main())

    assert mappings() == before + 1
    assert view == BIG[1:]
    del view
    assert mappings() == before


def test_loan_is_built_in_place(run: Any, address: str) -> None:
    async def main() -> None:
        async with made(address), Client(address) as client:
            await settled(client)
            with client.loan(len(BIG)) as loan:
                assert loan.lent
                loan.view[:] = BIG
                assert await client.call("kind", loan) == "bytes"
            with client.loan(3) as small:
                small.view[:] = b"abc"
                assert await client.request([small]) == [b"abc"]
            assert Client("nowhere").loan(LARGE).lent is False

    run(main())


def test_pool_that_is_full_is_done_without_and_counted(run: Any, address: str) -> None:
    async def main() -> None:
        async with made(address), Client(address, limits=Limits(max_pool=len(BIG))) as client:
            await settled(client)
            loan = client.loan(len(BIG))
            before = client.peer.pool.inline

            assert await client.call("kind", BIG) == "bytes"

            assert client.peer.pool.inline == before + 1
            loan.close()
            assert await client.call("kind", BIG) == "bytes"
            assert client.peer.pool.inline == before + 1
            stats = await client.call("$stats", returns=Stats)
            assert stats.pool == PoolCounts(lent=0, inline=1)  # what `echo` answered

    run(main())


def test_messages_that_nobody_keeps_come_back_without_being_asked(run: Any, address: str) -> None:
    async def main() -> None:
        server = made(address)
        got: asyncio.Queue[int] = asyncio.Queue()
        server.on_message(lambda peer, data: got.put_nowait(len(data)))
        limits = Limits(max_pool=2 * len(BIG))
        async with server, Client(address, limits=limits) as client:
            await settled(client)
            for _ in range(20):
                await client.send(BIG)
                assert await got.get() == len(BIG)
                await client.ping()
            assert client.peer.pool == PoolCounts(lent=20, inline=1)

    run(main())


def test_many_at_once_are_all_right(run: Any, address: str) -> None:
    async def main() -> None:
        async with made(address), Client(address, limits=Limits(max_pool=2**22)) as client:
            await settled(client)
            values = [bytes([number]) * (LARGE + 1000 * number) for number in range(100)]
            answers = await asyncio.gather(
                *(client.call("echo", value, returns=memoryview) for value in values)
            )
            assert answers == values
            assert client.peer.pool.lent
            assert client.peer.pool.inline > 1

    run(main())


def test_request_that_is_cancelled_keeps_no_memory(run: Any, address: str) -> None:
    async def main() -> None:
        server = made(address)

        @server.method
        async def never(data: memoryview) -> None:
            await asyncio.Event().wait()

        async with server, Client(address, limits=Limits(max_pool=len(BIG))) as client:
            await settled(client)
            for _ in range(3):
                call = asyncio.ensure_future(client.call("never", BIG, timeout=None))
                await client.ping()
                assert not client.loan(len(BIG)).lent
                call.cancel()
                await asyncio.wait([call])
                del call
                await client.ping()
                gc.collect()
                await client.ping()
                assert client.loan(len(BIG)).lent

    run(main())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"limits": Limits(max_pool=0)}, {}),
        ({}, {"limits": Limits(max_pool=0)}),
        ({"dialect": "classic"}, {}),
        ({}, {"dialect": "classic"}),
    ],
    ids=["client without", "server without", "classic client", "classic server"],
)
def test_end_without_a_pool_is_sent_it_inline(
    run: Any, address: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    async def main() -> None:
        async with made(address, **theirs), Client(address, **ours) as client:
            for _ in range(3):
                assert await client.call("kind", BIG) == "bytes"
                assert await client.request(BIG, returns=bytes) == BIG
            assert client.peer.pool == PoolCounts()

    run(main())


@pytest.mark.parametrize(
    "call",
    ["memfds.os.memfd_create", "memfds.os.stat"]
    if LINUX
    else ["sections.mmap.mmap", "sections.is_committed"],
)
def test_system_that_refuses_is_done_without(run: Any, address: str, call: str) -> None:
    refuse = patch(f"interphone.transports.{call}", side_effect=PermissionError(1, "no"))

    async def main() -> None:
        async with made(address), Client(address) as client:
            with refuse:
                for _ in range(3):
                    assert await client.call("kind", BIG) == "bytes"
            assert client.peer.pool == PoolCounts(lent=0, inline=3)

    run(main())


def test_publications_stay_out_of_the_pool(run: Any, address: str) -> None:
    async def main() -> None:
        async with made(address), Client(address) as client, Client(address) as other:
            await settled(client)
            await settled(other)
            before = client.peer.pool.lent
            async with other.subscribe("a") as items:
                await client.publish("a", BIG)
                assert (await anext(items)).value == BIG
            assert client.peer.pool.lent == before

    run(main())


class Envelope(msgspec.Struct):
    content: msgspec.Raw


def test_what_is_passed_on_unread_is_what_was_sent(run: Any, address: str) -> None:
    async def main() -> None:
        server, heard = made(address), asyncio.Queue[Any]()

        @server.method
        async def relay(*envelopes: Envelope) -> None:
            for envelope in envelopes:
                await next(iter(server.peers.values())).send(envelope.content)

        async with server, Client(address) as to, Client(address) as client:
            to.on_message(heard.put_nowait)
            await settled(to)
            view = await to.call("echo", BIG, returns=memoryview)  # the first block of its pool
            await settled(client)
            with client.loan(LARGE) as loan:  # the first block of another
                loan.view[:] = BIG[:LARGE]
                await client.call("relay", {"content": loan}, {"content": [1]})
            assert await heard.get() == BIG[:LARGE]
            assert await heard.get() == [1]
            assert view == BIG

    run(main())


def test_reference_that_somebody_made_up_reads_nothing(run: Any, address: str) -> None:
    async def main() -> None:
        server, heard = made(address), asyncio.Queue[Any]()

        @server.method
        async def relay(data: msgspec.Raw) -> None:
            await next(iter(server.peers.values())).send(data)

        async with server, Client(address) as to, Client(address) as client:
            to.on_message(heard.put_nowait)
            await settled(to)
            view = await to.call("echo", BIG, returns=memoryview)
            for data in (bytes(8), bytes(16), b""):
                await client.call("relay", msgspec.msgpack.Ext(2, data))
                await client.call("relay", msgspec.msgpack.Ext(1, data))
            await client.call("relay", "end")
            assert await heard.get() == "end"
            assert to.peer.counts.unreadable == 6
            assert view == BIG

    run(main())


# Blocking


def test_blocking_client_sees_views(address: str) -> None:
    server = BlockingServer(address)

    @server.method
    def echo(data: memoryview) -> memoryview:
        return data

    with server, BlockingClient(address) as client:
        for _ in range(3):
            assert client.call("echo", BIG) == BIG
        view = client.call("echo", BIG, returns=memoryview)
        assert view.readonly
        with client.loan(len(BIG)) as loan:
            assert loan.lent
            loan.view[:] = BIG
            assert client.call("echo", loan) == BIG
        (peer,) = server.peers.values()
        assert peer.pool.lent >= 3
        client.on_message(lambda data: None)  # it moves to the portal, and takes its pools along
        assert client.call("echo", BIG) == view == BIG
        assert client.loan(len(BIG)).lent
        assert peer.loan(len(BIG)).lent
    assert view == BIG
    del view
    gc.collect()


def test_loan_is_sent_though_the_client_moves_meanwhile(address: str) -> None:
    from interphone.blocking.link import Link
    from support.threads import Worker

    server = BlockingServer(address)
    server.method("first")(lambda data: data[0])
    ask = Link.ask

    with server, BlockingClient(address) as client:
        while not (loan := client.loan(LARGE)).lent:
            client.call("first", BIG)

        def moved_meanwhile(link: Link, *args: Any, **options: Any) -> Any:
            Worker(lambda: client.on_message(lambda data: None)).result()  # it moves for that
            return ask(link, *args, **options)

        with loan, patch.object(Link, "ask", moved_meanwhile):
            loan.view[0] = 7
            assert client.call("first", loan) == 7
        assert client.peer.pool.lent >= 1


@pytest.mark.skipif(not LINUX, reason="a client of a pipe goes by the portal")
def test_message_on_its_way_keeps_its_memory_though_its_sender_is_interrupted(
    address: str,
) -> None:
    from interphone.blocking.link import Link

    server, guarded = BlockingServer(address), Link._guarded
    heard: list[bytes] = []
    server.on_message(lambda peer, data: heard.append(data))
    server.on_request(lambda peer, data: len(data))

    def interrupted(link: Link, *args: Any) -> None:
        guarded(link, *args)
        raise KeyboardInterrupt

    limits = Limits(max_pool=len(BIG))
    with server, BlockingClient(address, limits=limits) as client:
        for _ in range(2):
            client.request(BIG)
        while not client.loan(len(BIG)).lent:  # it is given back
            client.ping()
        (peer,) = server.peers.values()
        peer.pause()
        with patch.object(Link, "_guarded", interrupted), pytest.raises(KeyboardInterrupt):
            client.send(BIG)
        lent = client.loan(len(BIG)).lent
        peer.resume()
        client.ping()

    assert not lent
    assert heard == [BIG]


def test_threads_share_the_pool_of_a_client(address: str) -> None:
    from support.threads import Worker

    server = BlockingServer(address)
    server.method("total")(lambda data: len(data))

    with server, BlockingClient(address, limits=Limits(max_pool=2**22)) as client:

        def ask() -> None:
            for number in range(50):
                size = LARGE + 1000 * number
                assert client.call("total", bytes(size)) == size

        for worker in [Worker(ask) for _ in range(4)]:
            worker.result()


# Processes


SERVER = """
    import asyncio, os, sys
    from interphone import Server
    server = Server(sys.argv[1])
    @server.method
    async def echo(data: memoryview) -> memoryview:
        return data
    kept = []
    @server.method
    async def keep(data: memoryview) -> int:
        kept.append(data)
        return len(data)
    @server.on_ready
    def ready(_): print("ready", flush=True)
    asyncio.run(server.serve_forever())
"""


@contextmanager
def process(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(source), *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_large_bytes_may_be_the_first_thing_that_is_said(run: Any, address: str) -> None:
    async def main() -> None:
        server, came = Server(address), asyncio.Queue[bytes]()

        @server.on_connect
        async def greet(peer: Peer, payload: object) -> None:
            await peer.send(BIG)

        client = Client(address, backoff=None)
        client.on_message(came.put_nowait)
        async with server, client:
            assert await came.get() == BIG

    run(main())


def test_server_that_is_killed_frees_and_leaves_the_views(address: str) -> None:
    before = mappings()
    with process(SERVER, address) as server:
        assert line_of(server) == "ready"
        with BlockingClient(address, backoff=None) as client:
            client.call("echo", BIG)
            view = client.call("echo", BIG, returns=memoryview)
            assert client.call("keep", BIG) == len(BIG)  # never given back
            assert mappings() == before + 2 * LINUX

            server.kill()
            server.wait()
            with pytest.raises(ConnectionLost):
                client.call("echo", BIG)

            assert view == BIG
            assert mappings() == before + LINUX  # our own pool is gone, theirs has a view
    del view
    assert mappings() == before


def test_client_that_is_killed_frees_what_it_was_lent(address: str) -> None:
    source = """
        import sys
        from interphone.blocking import Client
        client = Client(sys.argv[1])
        client.connect()
        kept = [client.request(bytes(1 << 20), returns=memoryview) for _ in range(5)]
        print("kept", flush=True)
        sys.stdin.read()
    """
    before = mappings()
    gone = threading.Event()
    server = BlockingServer(address)
    server.on_request(lambda peer, data: data)
    server.on_disconnect(lambda peer, reason: gone.set())

    with server:
        with process(source, address) as client:
            assert line_of(client) == "kept"
            (peer,) = server.peers.values()
            assert peer.pool.lent == 4
            assert mappings() == before + 2 * LINUX
            client.kill()
            assert gone.wait(TIMEOUT)
        del peer

        assert mappings() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_forked_child_neither_writes_nor_frees(address: str) -> None:
    with process(SERVER, address) as server:
        assert line_of(server) == "ready"
        with BlockingClient(address) as client:
            client.call("echo", BIG)
            view = client.call("echo", BIG, returns=memoryview)
            loan = client.loan(len(BIG))
            loan.view[:] = BIG
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    assert view == BIG
                    del view
                    loan.close()
                    del loan
                    gc.collect()
                    try:
                        client.call("echo", BIG)
                    except ForkedError:
                        try:
                            client.loan(LARGE)
                        except ForkedError:
                            code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

            assert view == BIG
            assert client.call("echo", loan) == BIG


def test_program_in_development_mode_complains_of_nothing(address: str) -> None:
    source = """
        import sys
        from interphone.blocking import Client
        big = bytes(1 << 20)
        with Client(sys.argv[1]) as client:
            views = [client.call("echo", big, returns=memoryview) for _ in range(3)]
            loan = client.loan(1 << 20)
        assert all(view == big for view in views)
    """
    mode = ["-X", "dev"] if LINUX else []  # asyncio would complain that Wine is slow
    with process(SERVER, address) as server:
        assert line_of(server) == "ready"
        done = subprocess.run(
            [sys.executable, *mode, "-W", "error", "-c", textwrap.dedent(source), address],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_tap_names_what_is_lent(run: Any, address: str) -> None:
    async def main() -> None:
        async with made(address), Client(address) as client, Client(address) as other:
            await settled(client)
            async with other.stream("$tap", named={"kinds": ["call"]}) as seen:
                assert (await anext(seen))["kind"] == "tap"
                assert await client.call("kind", BIG) == "bytes"
                sighting = await anext(seen)
            assert (sighting["name"], sighting["value"]) == ("kind", '"<lent>"')

    run(main())
