from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap

import pytest

from interphone import Client, ConnectionLost, Limits, MemoryAddress, Server
from interphone.connection import Connection
from interphone.protocol import Reactions, Session
from support.ends import Raw, meeting, raised_by, until
from support.sessions import LoneSession


def test_interphone_peer_that_falls_silent_is_given_up(run, address):
    async def main() -> None:
        server, reasons, errors = Server(address, heartbeat=0.03), [], []
        server.on_disconnect(lambda peer, reason: reasons.append(reason))
        server.on_error(lambda error, peer: errors.append(str(error)))
        async with server, Raw.connect(address) as raw:
            await raw.open(interphone={"version": 1})
            assert await raw.packet() == {"t": 4, "n": "heartbeat"}
            raw.write({"t": 5, "n": "heartbeat"})
            assert await raw.packet() == {"t": 4, "n": "heartbeat"}
            while (end := await raw.packet())["t"] == 4:
                pass  # on a busy machine our answer came after the second question
            assert (end["t"], end["e"]) == (6, {"code": "silent"})
            await until(lambda: reasons)
            assert "no sign of life" in errors[0]

    run(main())


def test_node_peer_is_never_asked_for_a_sign_of_life(run, address):
    async def main() -> None:
        async with Server(address, heartbeat=0.01) as server, Raw.connect(address) as raw:
            await raw.open()
            (peer,) = server.peers.values()
            assert peer.protocol.next_tick is None
            raw.write({"t": 4, "d": 1, "n": "x"})
            assert await raw.packet() == {"t": 5, "d": 1, "n": "x"}

    run(main())


def test_idle_ends_keep_each_other_alive(run, address):
    async def main() -> None:
        server = Server(address, heartbeat=0.02)
        async with meeting(server, heartbeat=0.02, backoff=None) as client:
            pings = 0
            while pings < 5:
                before = client.peer.counts.late
                await until(lambda n=before: client.peer.counts.late > n)
                pings += 1
            assert client.peer.open

    run(main())


def test_asker_that_is_gone_while_its_requests_keep_us_busy_is_noticed(run, address):
    async def main() -> None:
        server, cancelled = Server(address, limits=Limits(max_inflight=2)), []

        @server.on_request
        async def never(peer: object, data: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(data)

        async with server:
            async with Raw.connect(address) as raw:
                await raw.open()
                raw.write(*({"t": 2, "d": n, "n": str(n)} for n in range(1, 6)))
                (peer,) = server.peers.values()
                await until(lambda: peer.connection.stopped)
            await until(lambda: not server.peers)
            assert set(cancelled) >= {1, 2}

    run(main())


@pytest.mark.parametrize("size", [65_536 * k + 1 for k in (1, 2, 3)])
def test_write_to_isdk_never_leaves_a_byte_alone_behind_a_boundary(run, address, size):
    async def main() -> None:
        async with Raw.serve(address) as comers:
            client = Client(address, backoff=None)
            connecting = asyncio.ensure_future(client.connect())
            raw = await comers.get()
            await raw.let_in(compress=None, messagepack=None)
            await connecting
            envelope = len('{"t":1,"d":""}') + 3  # and a tag of three digits
            await client.send("x" * (size - envelope))
            assert len((await raw.packet())["d"]) == size - envelope
            assert await raw.packet() == {"t": 7}
            client.abort()

    run(main())


def test_connection_is_freed_without_the_collector(run):
    async def main() -> None:
        server = Server(MemoryAddress())
        server.on_request(lambda peer, data: data)
        async with server:
            for _ in range(3):
                async with Client(server.address) as client:
                    await client.request(1)
            assert not server.peers

    run(main())
    gc.collect()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_forked_child_cannot_use_the_connection_of_its_parent(address):
    program = f"""
        import asyncio, os, sys
        from interphone import Client, ForkedError, Server

        async def main():
            server = Server({address!r})
            server.on_request(lambda peer, data: data)
            async with server, Client({address!r}) as client:
                peer = client.peer
                pid = os.fork()
                if not pid:
                    asyncio._set_running_loop(None)
                    try:
                        asyncio.run(peer.request("from the child"))
                    except ForkedError:
                        os._exit(7)
                    os._exit(1)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
                assert await client.request("from the parent") == "from the parent"

        asyncio.run(main())
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], timeout=60, capture_output=True
    )

    assert done.returncode == 0, done.stderr.decode()


def test_many_clients_connect_at_once(run, address):
    async def main() -> None:
        server = Server(address, max_incomplete=4)
        server.on_request(lambda peer, data: data)
        async with server:
            clients = [Client(address) for _ in range(300)]
            await asyncio.gather(*(client.connect() for client in clients))
            assert len(server.peers) == 300
            await asyncio.gather(*(client.close() for client in clients))
            await until(lambda: not server.peers)

    run(main())


def test_lost_connection_says_where_the_stream_ended(run, address):
    async def main() -> None:
        server, reasons = Server(address), []
        server.on_disconnect(lambda peer, reason: reasons.append(reason))
        async with server:
            for last, why in ((b"", "hung up"), (b"\x90{", "within a frame")):
                async with Raw.connect(address) as raw:
                    await raw.open()
                    raw.write(last)
                    raw.end()
                    await raw.rest()
                await until(lambda: reasons)
                assert why in reasons.pop()

    run(main())


def test_peer_that_writes_and_does_not_read_its_answers_is_cut_off(run, address):
    async def main() -> None:
        server = Server(address, limits=Limits(hard_queue=100_000))
        server.on_request(on="inline")(lambda peer, data: "x" * 20_000)
        server.on_error(lambda error, peer: None)
        async with meeting(server) as bystander, Raw.connect(address) as hog:
            await hog.open()
            hog.writer.transport.pause_reading()
            for n in range(1, 200):
                hog.write({"t": 2, "n": str(n)})
            await until(lambda: len(server.peers) == 1)
            assert await bystander.ping() > 0

    run(main())


def test_error_of_a_waiting_sender_is_its_own(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def never(peer: object, data: object) -> None:
            await asyncio.Event().wait()

        async with meeting(server, backoff=None) as client:
            asked = [asyncio.ensure_future(raised_by(client.request(n))) for n in range(3)]
            await until(lambda: client.peer.pending == 3)
            client.peer.abort("off")
            errors = await asyncio.gather(*asked)
            assert len({id(error) for error in errors}) == 3
            assert all(isinstance(error, ConnectionLost) for error in errors)

    run(main())


def test_a_small_write_behind_a_large_one_is_no_reason_to_cut_a_peer_off(run):
    """However many large ones there were before, and whichever was larger."""

    async def main() -> None:
        session = LoneSession("client", limits=Limits(hard_queue=1000)).open().session
        nothing = Reactions(*[lambda *_: None] * len(Reactions._fields))
        connection = Connection(
            session, nothing, made=bool, lost=lambda error: None, abandoned=lambda: None
        )
        transport = Stuck()
        connection.connection_made(transport)
        for size in (100_000, 100_000, 80_000, 120_000):
            transport.size = 0  # all is taken
            connection.resume_writing()
            session.send(session.codec.pack("x" * size))
            connection.departure()
            connection.pause_writing()
            session.send(session.codec.pack("small"))
            connection.departure()
            assert not transport.aborted
            assert transport.size > size
        transport.size += 2000
        session.send(session.codec.pack("small"))
        connection.departure()
        assert transport.aborted
        connection.connection_lost(None)

    run(main())


class Stuck(asyncio.Transport):
    """A transport whose peer takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def get_write_buffer_size(self) -> int:
        return self.size

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.size += len(data)

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("waiting", "cut"), [(999, False), (1000, False), (1001, True)])
def test_bytes_waiting_for_a_peer_are_limited_to_the_queue_and_one_message(run, waiting, cut):
    async def main() -> None:
        session = Session("client", limits=Limits(hard_queue=1000))
        nothing = Reactions(*[lambda *_: None] * len(Reactions._fields))
        connection = Connection(
            session, nothing, made=bool, lost=lambda error: None, abandoned=lambda: None
        )
        transport = Stuck()
        connection.connection_made(transport)
        transport.size = waiting
        connection.pause_writing()
        session.open()
        connection.flush_soon()
        assert transport.aborted is cut
        assert (getattr(session.error, "code", None) == "slow-consumer") is cut
        connection.connection_lost(None)

    run(main())
