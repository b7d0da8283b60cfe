from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from interphone.address import MemoryAddress, TcpAddress, UnixAddress, tcp_address
from interphone.errors import AddressError, AddressInUse, ConnectError, HandshakeError
from interphone.transports import connect, listen
from support.transports import CHECKS, Check, OpenPair, Pair, Recorder, finish

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost with its key in one file."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(path.with_name("ca.pem")))
    path.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    return path


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def pair_maker(
    server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
) -> OpenPair:
    @asynccontextmanager
    async def open_pair() -> AsyncIterator[Pair]:
        near, far = Recorder(), Recorder()
        listener = await listen(tcp_address(port=0), lambda: far, tls=server)
        await connect(
            listener.address,
            lambda: near,
            tls=client,
            server_hostname="localhost" if client else None,
        )
        await far.until_called("made")
        try:
            yield near, far
        finally:
            listener.close()
            await finish(near, far)

    return open_pair


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(run: Run, check: Check) -> None:
    run(check(pair_maker()))


@pytest.mark.parametrize(
    "check", [c for c in CHECKS if "abort" not in c.__name__], ids=lambda check: check.__name__
)
def test_contract_with_tls(run: Run, check: Check, certificate: Path) -> None:
    client = ssl.create_default_context(cafile=certificate.with_name("ca.pem"))

    run(check(pair_maker(server_tls(certificate), client)))


def test_the_port_that_was_chosen_is_told(run: Run) -> None:
    async def main() -> None:
        listener = await listen(tcp_address(port=0), Recorder)
        assert isinstance(listener.address, TcpAddress)
        assert listener.address.port > 0
        with pytest.raises(AddressInUse):
            await listen(listener.address, Recorder)
        listener.close()
        listener.close()

    run(main())


def test_small_writes_are_not_held_back(run: Run) -> None:
    async def main() -> None:
        async with pair_maker()() as (near, far):
            for end in (near, far):
                sock = end.transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert end.transport.get_extra_info("credentials") is None

    run(main())


def test_nobody_listens(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async def main() -> None:
        with pytest.raises(ConnectError, match=f"tcp://127.0.0.1:{port}") as caught:
            await connect(tcp_address(port=port), Recorder)
        assert caught.value.transient

    run(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::", "127.0.0.1.evil"])
def test_without_tls_only_loopback(run: Run, host: str) -> None:
    async def main() -> None:
        with pytest.raises(AddressError, match="TLS"):
            await listen(tcp_address(host, 0), Recorder)
        with pytest.raises(AddressError, match="TLS"):
            await connect(tcp_address(host, 1), Recorder)

    run(main())


@pytest.mark.parametrize("address", [UnixAddress("/nowhere/s"), MemoryAddress()], ids=str)
def test_tls_is_for_tcp(run: Run, address: UnixAddress | MemoryAddress) -> None:
    async def main() -> None:
        tls = ssl.create_default_context()
        with pytest.raises(ValueError, match="TLS is for TCP"):
            await listen(address, Recorder, tls=tls)
        with pytest.raises(ValueError, match="TLS is for TCP"):
            await connect(address, Recorder, tls=tls)

    run(main())


def test_a_certificate_of_somebody_else_is_a_handshake_error(run: Run, certificate: Path) -> None:
    server, client = server_tls(certificate), ssl.create_default_context()

    async def main() -> None:
        # In debug mode the loop tells of the client that did not trust us.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        listener = await listen(tcp_address(port=0), Recorder, tls=server)
        with pytest.raises(HandshakeError) as caught:
            await connect(listener.address, Recorder, tls=client, server_hostname="localhost")
        assert not caught.value.transient
        listener.close()
        await asyncio.sleep(0)

    run(main())


def test_a_server_without_tls_is_a_handshake_error(run: Run) -> None:
    async def main() -> None:
        far = Recorder()
        listener = await listen(tcp_address(port=0), lambda: far)
        far.on_bytes = lambda: far.transport.write(b"what?\n" * 10)
        with pytest.raises(HandshakeError):
            await connect(listener.address, Recorder, tls=ssl.create_default_context())
        listener.close()
        await finish(far)

    run(main())


def test_a_server_that_hangs_up_is_a_handshake_error(run: Run) -> None:
    async def main() -> None:
        far = Recorder()
        listener = await listen(tcp_address(port=0), lambda: far)
        far.on_bytes = lambda: far.transport.abort()
        with pytest.raises(HandshakeError):
            await connect(listener.address, Recorder, tls=ssl.create_default_context())
        listener.close()
        await finish(far)

    run(main())
