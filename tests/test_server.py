from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from interphone import (
    AddressInUse,
    Client,
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    Limits,
    LocalProtocolError,
    MemoryAddress,
    PayloadError,
    Peer,
    Refuse,
    Refused,
    RemoteError,
    Server,
    Status,
    TcpAddress,
    TopicError,
    tcp_address,
)
from interphone.protocol.wire import tag
from interphone.transports import own_credentials
from support.ends import Raw, frame, meeting, raised_by, until
from support.node import open_streams

# Life


def test_server_is_ready_between_start_and_close(run, address):
    async def main() -> None:
        server, log = Server(address), []
        server.on_ready(lambda where: log.append(str(where)))
        server.on_close(lambda: log.append("close"))
        assert not server.ready
        await server.start()
        assert server.ready
        assert await asyncio.to_thread(os.path.exists, address)
        assert repr(server) == f"<Server {address} ready, 0 peers>"
        await server.close()
        await server.close()
        assert not server.ready
        assert not await asyncio.to_thread(os.path.exists, address)
        assert log == [address, "close"]

    run(main())


def test_server_can_be_started_again_after_close(run, address):
    async def main() -> None:
        server = Server(address)
        for _ in range(3):
            async with meeting(server) as client:
                assert await client.ping() > 0

    run(main())


def test_second_start_and_second_server_are_refused(run, address):
    async def main() -> None:
        async with Server(address) as server:
            with pytest.raises(LocalProtocolError, match="started already"):
                await server.start()
            with pytest.raises(AddressInUse):
                await Server(address).start()
            async with Client(address) as client:
                assert await client.ping() > 0

    run(main())


def test_serve_forever_ends_with_close_and_closes_when_cancelled(run, address):
    async def main() -> None:
        server = Server(address)
        for end in ("close", "cancel"):
            serving = asyncio.ensure_future(server.serve_forever())
            await until(lambda: server.ready)
            if end == "close":
                await server.close()
                await serving
            else:
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
            assert not server.ready
            assert not await asyncio.to_thread(os.path.exists, address)

    run(main())


@pytest.mark.parametrize("where", ["memory", "tcp"])
def test_server_serves_other_addresses_alike(run, where):
    async def main() -> None:
        server = Server(MemoryAddress() if where == "memory" else tcp_address("127.0.0.1", 0))
        server.on_request(lambda peer, data: data)
        async with meeting(server) as client:
            assert await client.request({"a": "x" * 300_000}) == {"a": "x" * 300_000}
            assert isinstance(server.address, TcpAddress) is (where == "tcp")

    run(main())


@pytest.mark.parametrize("reconnect", [True, False])
def test_close_tells_clients_whether_they_may_come_back(run, address, reconnect):
    async def main() -> None:
        server = Server(address)
        async with server:
            client = await Client(address).connect()
            await server.close("maintenance", allow_reconnect=reconnect)
            if reconnect:
                await until(lambda: client.outage)
                async with server:
                    assert await client.ping() > 0
                    await client.close()
            else:
                assert await client.wait_closed() == "maintenance"
                assert client.status is Status.IDLE

    run(main())


def test_leaving_by_an_exception_does_not_wait_for_handlers(run, address):
    async def main() -> None:
        server = Server(address)

        @server.on_request
        async def stuck(peer: Peer, data: object) -> None:
            await asyncio.Event().wait()

        client = Client(address, backoff=None)
        pending = None
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(3), server:
                await client.connect()
                pending = asyncio.ensure_future(raised_by(client.request("x")))
                await until(lambda: next(iter(server.peers.values())).inflight)
                raise ZeroDivisionError
        assert isinstance(await pending, ConnectionClosed)
        await client.close()

    run(main())


def test_client_left_by_an_exception_does_not_wait_for_handlers_either(run, address):
    async def main() -> None:
        server = Server(address)
        async with server:
            with pytest.raises(ZeroDivisionError):
                async with asyncio.timeout(3), Client(address) as client:

                    @client.on_request
                    async def stuck(data: object) -> None:
                        await asyncio.Event().wait()

                    (peer,) = server.peers.values()
                    pending = asyncio.ensure_future(raised_by(peer.request("x")))
                    await until(lambda: client.peer.inflight)
                    raise ZeroDivisionError
            assert isinstance(await pending, ConnectionClosed)

    run(main())


def test_worker_thread_is_not_waited_for_beyond_the_grace_but_at_exit(address):
    program = f"""
        import asyncio, threading
        from interphone import Client, Server

        gate = threading.Event()

        async def main():
            server, started = Server({address!r}), asyncio.Event()
            loop = asyncio.get_running_loop()

            @server.method
            def work():
                loop.call_soon_threadsafe(started.set)
                gate.wait()
                print("thread")

            async with server, Client({address!r}) as client:
                calling = asyncio.ensure_future(client.call("work", timeout=None))
                await started.wait()
                await server.close(grace=0)
                print("closed")
                await asyncio.wait([calling])

        asyncio.run(main())
        print("end")
        gate.set()
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], timeout=60, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout.split()) == (0, ["closed", "end", "thread"]), done.stderr


def test_close_cancels_handlers_that_do_not_end_in_time(run, address):
    async def main() -> None:
        server, ended = Server(address), []

        @server.on_connect
        async def for_ever(peer: Peer, payload: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(peer.id)

        async with server:
            client = await Client(address).connect()
            await server.close(grace=0.01)
            assert ended == [client.id]
            await client.close()

    run(main())


def test_request_that_does_not_end_in_its_grace_is_cancelled(run, address):
    async def main() -> None:
        server, log = Server(address), []

        @server.on_request
        async def stuck(peer: Peer, data: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append(data)

        async with server:
            client = await Client(address, backoff=None).connect()
            asking = asyncio.ensure_future(raised_by(client.request("x", timeout=None)))
            (peer,) = server.peers.values()
            await until(lambda: peer.inflight)
            await peer.close("bye", grace=0.01)
            assert log == ["x"]
            assert isinstance(await asking, ConnectionClosed)
            await client.close()

    run(main())


def test_coroutines_of_on_close_are_awaited_by_close(run, address):
    async def main() -> None:
        server, client, log = Server(address), Client(address), []

        async def tidy(*reason: object) -> None:
            await asyncio.sleep(0)
            log.append(reason)

        server.on_close(tidy)
        client.on_close(tidy)
        async with server:
            await client.connect()
            await client.close("bye", grace=0)
            assert log == [("bye",)]
            await server.close(grace=0)
            assert log == [("bye",), ()]

    run(main())


# Letting in


def test_authorize_turns_away_before_anything_else_happens(run, address):
    async def main() -> None:
        server, log = Server(address), []

        @server.authorize
        async def decide(peer: Peer, payload: Any) -> None:
            await asyncio.sleep(0)
            if payload != "sesame":
                raise Refuse({"why": "bad word"})

        server.on_connect(lambda peer, payload: log.append(payload))
        async with server:
            client = Client(address)
            error = await raised_by(client.connect("open"))
            assert isinstance(error, Refused)
            assert (error.reason, error.code) == ({"why": "bad word"}, "refused")
            assert client.status is Status.IDLE
            assert log == []
            await client.connect("sesame")
            assert log == ["sesame"]
            await client.close()

    run(main())


def test_authorize_ends_before_the_answer_and_on_connect_begins_behind_it(run, address):
    async def main() -> None:
        server, gate, log = Server(address), asyncio.Event(), []

        @server.authorize
        async def decide(peer: Peer, payload: object) -> None:
            if payload:
                log.append("authorize")
                await gate.wait()
                log.append("authorized")

        @server.on_connect
        async def connected(peer: Peer, payload: object) -> None:
            if payload:
                log.append("on_connect")
                await peer.send("hello")  # the reply has gone before it
                log.append("on_connect goes on")

        server.on_message(lambda peer, data: log.append(data))
        server.on_request(on="inline")(lambda peer, data: log.append(data))
        async with server, Raw.connect(address) as raw:
            asked = {"t": 2, "d": "request", "n": "1"}
            raw.write(b"IPC", {"t": 0, "d": {"extras": 1}}, {"t": 1, "d": "message"}, asked)
            await until(lambda: log)
            reply = asyncio.ensure_future(raw.packet())
            async with Client(address) as bystander:
                for _ in range(3):
                    await bystander.ping()
            assert not reply.done()
            assert log == ["authorize"]
            gate.set()
            assert (await reply)["t"] == 0
            assert await raw.packet() == {"t": 1, "d": "hello"}
            assert (await raw.packet())["t"] == 3
            begun = log.index("on_connect")
            assert log[: begun + 1] == ["authorize", "authorized", "on_connect"]
            assert [each for each in log[begun:] if "on_" not in each] == ["message", "request"]

    run(main())


def test_authorize_lets_in_and_its_result_is_the_session(run, address):
    async def main() -> None:
        server, log = Server(address), []
        server.authorize(lambda peer, payload: {"user": payload})
        server.on_connect(lambda peer, payload: log.append((payload, peer.session)))
        async with server:
            client = await Client(address).connect("ali")
            assert log == [("ali", {"user": "ali"})]
            assert next(iter(server.peers.values())).payload == "ali"
            await client.close()

    run(main())


def test_authorize_that_raises_refuses_and_is_reported(run, address):
    async def main() -> None:
        server, errors = Server(address), []
        server.on_error(lambda error, peer: errors.append(error))

        @server.authorize
        def broken(peer: Peer, payload: object) -> None:
            raise ZeroDivisionError

        async with server:
            error = await raised_by(Client(address).connect())
            assert isinstance(error, Refused)
            assert "ZeroDivision" not in str(error)
        assert [type(error) for error in errors] == [ZeroDivisionError]

    run(main())


def test_second_authorize_is_an_error():
    server = Server("x")
    server.authorize(lambda peer, payload: None)
    with pytest.raises(ValueError, match="already"):
        server.authorize(lambda peer, payload: None)


def test_refused_node_client_gets_reply_and_goodbye_and_is_never_served(run, address):
    async def main() -> None:
        server, served = Server(address), []
        server.authorize(lambda peer, payload: (_ for _ in ()).throw(Refuse("no")))
        server.on_message(lambda peer, data: served.append(data))
        server.on_request(lambda peer, data: served.append(data))
        server.on_disconnect(lambda peer, reason: served.append(reason))
        async with server, Raw.connect(address) as raw:
            reply = await raw.open()
            assert (reply["t"], set(reply["d"])) == (0, {"id", "compress", "messagepack"})
            assert await raw.packet() == {"t": 6, "d": {"m": "no", "a": False}}
            raw.write({"t": 1, "d": "still here"}, {"t": 2, "d": "x", "n": "1"})
            assert await raw.packet() is None
        assert served == []

    run(main())


def test_hooks_see_a_peer_from_connect_to_disconnect(run, address):
    async def main() -> None:
        server, log = Server(address), []

        @server.on_connect
        async def connected(peer: Peer, payload: object) -> None:
            log.append(("connect", payload, peer.id in server.peers))

        server.on_message(lambda peer, data: log.append(("message", data)))
        server.on_disconnect(
            lambda peer, reason: log.append(("disconnect", reason, peer.id in server.peers))
        )
        async with server:
            async with Raw.connect(address) as raw:
                raw.write(b"IPC", {"t": 0, "d": {"extras": 7}}, {"t": 1, "d": 1}, {"t": 1, "d": 2})
                await until(lambda: len(log) == 3)
            await until(lambda: len(log) == 4)
        assert log[:3] == [("connect", 7, True), ("message", 1), ("message", 2)]
        assert log[3][0] == "disconnect"
        assert log[3][2] is False

    run(main())


def test_handler_that_raises_disturbs_no_other(run, address, caplog):
    async def main() -> None:
        server, log = Server(address), []

        @server.on_connect
        def broken(peer: Peer, payload: object) -> None:
            raise ZeroDivisionError

        @server.on_connect
        async def broken_later(peer: Peer, payload: object) -> None:
            raise KeyError

        @server.on_error
        def broken_too(error: Exception, peer: Peer | None) -> None:
            log.append(type(error))
            raise LookupError

        server.on_connect(lambda peer, payload: log.append("fine"))
        async with meeting(server) as client:
            assert await client.ping() > 0
        assert sorted(map(str, log)) == sorted(map(str, ["fine", ZeroDivisionError, KeyError]))

    run(main())
    assert caplog.text.count("a handler raised") == 4


# Ids


def test_ids_are_unique_and_kept_and_may_be_made_by_the_user(run, address):
    async def main() -> None:
        names = iter(["a", "b", "a", 7, "c"])
        server, errors = Server(address, generate_id=lambda: next(names)), []
        server.on_error(lambda error, peer: errors.append(str(error)))
        async with server:
            clients = [await Client(address).connect() for _ in range(4)]
            ids = [client.id for client in clients]
            assert ids[:2] == ["a", "b"]
            assert len(set(ids)) == 4
            assert set(server.peers) == set(ids)
            assert len(errors) == 2
            for client in clients:
                await client.close()

    run(main())


def test_id_somebody_living_has_is_not_given_again(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_request(lambda peer, data: peer.id)
        async with meeting(server) as victim, Raw.connect(address) as raw:
            reply = await raw.open(id=victim.id)
            assert reply["d"]["id"] != victim.id
            raw.write({"t": 0, "d": {"id": victim.id}}, {"t": 2, "d": 1, "n": "1"})
            assert await raw.packet() == {"t": 3, "d": reply["d"]["id"], "n": "1"}
            assert len(server.peers) == 2

    run(main())


@pytest.mark.parametrize("wanted", [7, True, {"a": 1}, "", "x" * 256, [], 1.5])
def test_id_that_is_no_text_is_replaced(run, address, wanted):
    async def main() -> None:
        async with Server(address), Raw.connect(address) as raw:
            reply = await raw.open(id=wanted)
            assert isinstance(reply["d"]["id"], str)
            assert reply["d"]["id"] != wanted

    run(main())


def test_credentials_come_from_the_kernel(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            (peer,) = server.peers.values()
            assert peer.credentials == client.peer.credentials == own_credentials()
            assert peer.credentials.pid == os.getpid()

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="users have no number")
def test_stranger_is_turned_away_unread(run, address):
    async def main() -> None:
        server = Server(address, allowed_uids=[os.geteuid() + 1])
        async with server:
            error = await raised_by(
                Client(address, connect_timeout=0.1, allowed_uids=[os.geteuid()]).connect()
            )
            assert isinstance(error, ConnectError)
            assert server.peers == {}
        async with Server(address):
            trusting_nobody = Client(address, allowed_uids=[os.geteuid() + 1])
            error = await raised_by(trusting_nobody.connect())
            assert isinstance(error, ConnectError)
            assert not error.transient
            assert "not allowed" in str(error)

    run(main())


# Limits


@pytest.mark.parametrize(("clients", "fits"), [(1, True), (2, True), (3, False)])
def test_connections_are_limited(run, address, clients, fits):
    async def main() -> None:
        async with Server(address, max_connections=2) as server:
            made = [Client(address) for _ in range(clients)]
            errors = [await raised_by(client.connect()) for client in made]
            assert [type(error) for error in errors if error] == ([] if fits else [Refused])
            if not fits:
                assert errors[-1].code == "full"
                await made[0].close()
                await until(lambda: len(server.peers) < 2)
                await made[-1].connect()
            for client in made:
                await client.close()

    run(main())


@pytest.mark.parametrize(("others", "evicted"), [(1, False), (2, False), (3, True)])
def test_unfinished_handshakes_are_limited_and_the_oldest_pays(run, address, others, evicted):
    async def main() -> None:
        async with Server(address, max_incomplete=3) as server, Raw.connect(address) as oldest:
            await until(lambda: len(server._admission._incomplete) == 1)
            raws = [await open_streams(address) for _ in range(others)]
            await until(lambda: len(server._admission._incomplete) == min(others + 1, 3))
            if evicted:
                assert await oldest.rest() is not None
            else:
                assert (await oldest.open())["t"] == 0
            assert not oldest.reader.at_eof() or evicted
            async with Client(address) as client:
                assert await client.ping() > 0
            for _, writer in raws:
                writer.transport.abort()

    run(main())


def test_flood_of_unfinished_handshakes_holds_no_more_than_its_slots(run, address):
    async def main() -> None:
        server, errors = Server(address, max_incomplete=5), []
        server.on_error(lambda error, peer: errors.append(error))
        admission = server._admission
        async with server:
            raws = []
            for _ in range(200):
                _, writer = await open_streams(address)
                writer.write(b"I")
                raws.append(writer)
            await until(lambda: admission.evicted == 195)
            assert len(admission.waiting) == 5
            assert len(errors) < 10
            async with Client(address) as client:
                assert await client.ping() > 0
            for writer in raws:
                writer.transport.abort()
            await until(lambda: not admission.waiting)

    run(main())


def test_silent_client_is_hung_up_on_after_the_handshake_timeout(run, address):
    async def main() -> None:
        limits = Limits(handshake_timeout=0.05)
        async with Server(address, limits=limits) as server, Raw.connect(address) as raw:
            raw.write(b"IPC")
            assert await raw.packet() == {"t": 6, "d": {"a": False}}
            assert await raw.packet() is None
            await until(lambda: not server._admission._incomplete)

    run(main())


def test_payload_over_the_handshake_limit_is_refused_before_anything_is_sent(run, address):
    async def main() -> None:
        async with Server(address):
            client = Client(address)
            error = await raised_by(client.connect("x" * 20_000))
            assert "over the limit" in str(error)
            assert client.status is Status.IDLE
            assert await raised_by(client.connect("x" * 15_000)) is None
            await client.close()

    run(main())


@pytest.mark.parametrize(
    "sent",
    [
        b"XYZ",
        b"GET / HTTP/1.1\r\n\r\n",
        b"IPC\x00\x00\x00\x00\x00\x00",
        b"IPC\x7f\x7f\x7f\x7f\xff",
        b"IPC\x817",
        b"IPC\x81{",
        b"IPC\x80",
        b'IPC\x90{"t":1,"d":"hi"}',
        b"\x00" * 100,
    ],
    ids=repr,
)
def test_rubbish_is_hung_up_on_and_nobody_else_notices(run, address, sent):
    async def main() -> None:
        server = Server(address)
        server.on_error(lambda error, peer: None)
        async with meeting(server) as client, Raw.connect(address) as raw:
            raw.write(sent)
            await raw.rest()
            assert await client.ping() > 0
            await until(lambda: not server._admission._incomplete)

    run(main())


# To many


def test_broadcast_reaches_everybody_but_the_dead(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with server:
            clients = [await Client(address, backoff=None).connect() for _ in range(5)]
            for client in clients:
                client.on_message(got.append)
            clients[2].abort()
            receipt = await server.broadcast({"n": 0})
            await until(lambda: len(got) == 4)
            assert receipt
            assert receipt.matched in (4, 5)
            with pytest.raises(PayloadError):
                await server.broadcast(object())
            for client in clients:
                await client.close()

    run(main())


def test_survey_has_one_outcome_for_each_peer(run, address):
    async def main() -> None:
        server, gate = Server(address), asyncio.Event()
        async with server:
            clients = [await Client(address, backoff=None).connect() for _ in range(4)]
            clients[0].on_request(lambda data: data + 1)

            @clients[1].on_request
            async def fail(data: int) -> None:
                raise KeyError(data)

            @clients[3].on_request
            async def leave(data: int) -> None:
                clients[3].abort("off")
                await gate.wait()

            outcomes = await server.survey(1)
            assert [outcome.ok for outcome in outcomes] == [True, False, False, False]
            assert [outcome.peer.id for outcome in outcomes] == [client.id for client in clients]
            assert outcomes[0].value == 2
            assert isinstance(outcomes[1].error, RemoteError)
            assert isinstance(outcomes[3].error, ConnectionLost)
            pings = await server.ping()
            assert [outcome.ok for outcome in pings] == [True] * 3
            assert all(0 < (outcome.value or 0) < 5 for outcome in pings)
            for client in clients:
                await client.close()
            assert await server.survey(1) == []

    run(main())


def test_new_peers_of_a_paused_server_are_paused_too(run, address):
    async def main() -> None:
        server, got = Server(address), []
        server.on_message(lambda peer, data: got.append(data))
        async with server:
            server.pause()
            async with Client(address) as client:
                await client.send(1)
                assert next(iter(server.peers.values())).paused
                server.resume()
                await client.ping()
                assert got == [1]

    run(main())


def test_bad_topic_is_refused(run, address):
    async def main() -> None:
        server = Server(address)
        async with meeting(server) as client:
            for topic in ("", "$info", "a\nb", "x" * 256):
                for publish in (server.publish, client.publish):
                    with pytest.raises(TopicError):
                        await publish(topic, 1)
                with pytest.raises(TopicError):
                    client.subscribe(topic)
            assert await client.publish("x" * 255, 1)

    run(main())


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="max_connections"):
        Server("x", max_connections=0)
    with pytest.raises(ValueError, match="max_frame"):
        Limits(max_frame=2**31)
    with pytest.raises(ValueError, match="max_depth"):
        Limits(max_depth=0)
    with pytest.raises(ValueError, match="connect_timeout"):
        Client("x", connect_timeout=0)


def test_coroutine_that_authorizes_takes_no_slot_of_unfinished_handshakes(run, address):
    async def main() -> None:
        server, gate = Server(address, max_incomplete=2), asyncio.Event()

        @server.authorize
        async def decide(peer: Peer, payload: object) -> None:
            if payload:
                await gate.wait()

        async with server:
            slow = [asyncio.ensure_future(Client(address).connect(1)) for _ in range(4)]
            await until(lambda: len(server._admission._deciding) == 4)
            fast = [await Client(address).connect(0) for _ in range(4)]
            gate.set()
            clients = [*fast, *await asyncio.gather(*slow)]
            assert len(server.peers) == 8
            assert (server._admission._deciding, server._admission._incomplete) == ({}, {})
            for client in clients:
                await client.close()

    run(main())


def test_handler_may_close_its_server(run, address):
    async def main() -> None:
        for verb in ("request", "send"):
            server = Server(address)

            async def stop(peer: Peer, data: object, server: Server = server) -> None:
                await server.close("stopped")

            server.on_request(stop)
            server.on_message(stop)
            await server.start()
            client = await Client(address).connect()
            async with asyncio.timeout(3):
                await raised_by(getattr(client, verb)("stop"))
                assert await client.wait_closed() == "stopped"
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
            assert not server.ready

    run(main())


def test_cancelled_close_can_be_followed_by_another(run, address):
    async def main() -> None:
        server, serving = Server(address), []

        @server.on_connect
        async def slow(peer: Peer, payload: object) -> None:
            await asyncio.sleep(60)

        await server.start()
        serving = [asyncio.ensure_future(server.serve_forever()) for _ in range(2)]
        client = await Client(address).connect()
        await client.close()
        closing = asyncio.ensure_future(server.close(grace=20))
        await until(lambda: not server.peers)
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        async with asyncio.timeout(5):
            await server.close(grace=0)
            await asyncio.gather(*serving)
            server.on_connect.remove(slow)
            async with meeting(server) as client:
                assert await client.ping() > 0

    run(main())


def test_authorize_that_awaits_something_cancelled_refuses(run, address):
    async def main() -> None:
        server = Server(address)

        @server.authorize
        async def decide(peer: Peer, payload: object) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async with server:
            assert isinstance(await raised_by(Client(address).connect()), Refused)

    run(main())


def test_deadline_no_clock_can_hold_is_no_deadline(run, address):
    async def main() -> None:
        server = Server(address)
        server.on_request(lambda peer, data: data)
        async with server, Raw.connect(address) as raw:
            hello = frame({"t": 0, "d": {"interphone": {"version": 1}}})
            body = b'{"t":2,"d":7,"n":"1","o":{"deadline":1%b}}' % (b"0" * 400)
            raw.write(b"IPC", hello, tag(len(body)) + body)
            assert (await raw.packet())["t"] == 0
            assert await raw.packet() == {"t": 3, "d": 7, "n": "1"}

    run(main())
