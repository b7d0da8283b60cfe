from __future__ import annotations

import pytest

from interphone.errors import HandshakeError, RemoteProtocolError
from interphone.protocol.upgrade import (
    MAX_HEAD,
    MAX_HEADERS,
    NAMES,
    check_reply,
    read_request,
    reply,
    request,
    split_head,
)

BLANK = b"\r\n\r\n"


def head(*headers: str, line: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([line, *headers]).encode("latin-1")


UPGRADE = ("Connection: Upgrade", "Upgrade: net-ipc")
SWITCHED = "HTTP/1.1 101 Switching Protocols"


# The head


def test_head_ends_at_the_blank_line() -> None:
    assert split_head(b"GET / HTTP/1.1\r\nA: b\r\n\r\nrest") == (b"GET / HTTP/1.1\r\nA: b", b"rest")


@pytest.mark.parametrize("name", NAMES)
def test_head_is_incomplete_until_its_last_byte(name: str) -> None:
    whole = request(name)

    assert all(split_head(whole[:size]) is None for size in range(len(whole)))
    assert split_head(whole) == (whole[: -len(BLANK)], b"")


@pytest.mark.parametrize("size", [MAX_HEAD - 1, MAX_HEAD])
def test_head_may_have_so_many_bytes(size: int) -> None:
    data = (b"GET " + b"x" * size)[: size - len(BLANK)] + BLANK

    assert split_head(data + b"more") == (data[: -len(BLANK)], b"more")


def test_head_over_the_limit_is_refused() -> None:
    data = b"x" * (MAX_HEAD + 1 - len(BLANK)) + BLANK

    with pytest.raises(RemoteProtocolError, match="over 4096 bytes") as caught:
        split_head(data)

    assert caught.value.code == "bad-upgrade"


def test_head_without_end_is_refused_at_the_limit() -> None:
    assert split_head(b"x" * (MAX_HEAD - 1)) is None
    with pytest.raises(RemoteProtocolError, match="over 4096 bytes"):
        split_head(b"x" * MAX_HEAD)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\nA: b", b"GET / HTTP/1.1\r\nA: b\n\n", b"GET / HTTP/1.1\nA\r\n\r\n"]
)
def test_bare_line_feed_is_refused_as_soon_as_it_comes(data: bytes) -> None:
    at = data.index(b"\n") + 1 if data[data.index(b"\n") - 1] != 13 else data.rindex(b"b\n") + 2

    assert split_head(data[: at - 1]) is None
    for size in range(at, len(data) + 1):
        with pytest.raises(RemoteProtocolError, match="CRLF"):
            split_head(data[:size])


def test_line_feeds_behind_the_head_are_not_its_own() -> None:
    assert split_head(b"A\r\n\r\n\n\n") == (b"A", b"\n\n")


# The request


@pytest.mark.parametrize("name", NAMES)
def test_own_request_is_understood(name: str) -> None:
    assert read_request(request(name)[: -len(BLANK)]) == name


def test_host_may_be_named() -> None:
    assert b"\r\nHost: there\r\n" in request("net-ipc", "there")


@pytest.mark.parametrize(
    "headers",
    [
        ("connection: upgrade", "upgrade: net-ipc"),
        ("Connection: keep-alive, Upgrade", "Upgrade: net-ipc"),
        ("Connection:Upgrade", "Upgrade:\t net-ipc \t"),
        ("Host: x", "User-Agent: y", *UPGRADE),
    ],
)
def test_request_may_be_written_so(headers: tuple[str, ...]) -> None:
    assert read_request(head(*headers)) == "net-ipc"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(*UPGRADE, line="POST / HTTP/1.1"), id="method"),
        pytest.param(head(*UPGRADE, line="GET /x HTTP/1.1"), id="path"),
        pytest.param(head(*UPGRADE, line="GET / HTTP/1.0"), id="version"),
        pytest.param(head(*UPGRADE, line="GET  / HTTP/1.1"), id="two blanks"),
        pytest.param(head("Upgrade: net-ipc"), id="no Connection"),
        pytest.param(head("Connection: Upgrade"), id="no Upgrade"),
        pytest.param(head("Connection: Upgraded", "Upgrade: net-ipc"), id="no token"),
        pytest.param(head("Connection: Upgrade", "Upgrade: websocket"), id="another name"),
        pytest.param(head("Connection: Upgrade", "Upgrade: net-ipc, x"), id="two names"),
        pytest.param(head("Connection: Upgrade", "Upgrade: NET-IPC"), id="name in capitals"),
        pytest.param(head(*UPGRADE, "Origin: http://evil"), id="a browser"),
        pytest.param(head(*UPGRADE, "Sec-Fetch-Mode: cors"), id="a browser, too"),
        pytest.param(head(*UPGRADE, "Content-Length: 3"), id="a body"),
        pytest.param(head(*UPGRADE, "Transfer-Encoding: chunked"), id="a body in chunks"),
        pytest.param(head(*UPGRADE, "Upgrade: net-ipc"), id="a header twice"),
        pytest.param(head(*UPGRADE, "no colon"), id="no header"),
        pytest.param(head(*UPGRADE, "A : b"), id="a blank before the colon"),
        pytest.param(head("A: b", " folded", *UPGRADE), id="a folded header"),
        pytest.param(head(*UPGRADE, "A: \x00"), id="a control character"),
        pytest.param(head(*UPGRADE, "A: é"), id="no ASCII"),
        pytest.param(head(*UPGRADE, ": x"), id="no name"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_request_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_request(data)

    assert caught.value.code == "bad-upgrade"


@pytest.mark.parametrize("count", [MAX_HEADERS - 1, MAX_HEADERS])
def test_request_may_have_so_many_headers(count: int) -> None:
    others = [f"X-{number}: x" for number in range(count - len(UPGRADE))]

    assert read_request(head(*UPGRADE, *others)) == "net-ipc"


def test_one_header_more_is_refused() -> None:
    others = [f"X-{number}: x" for number in range(MAX_HEADERS + 1 - len(UPGRADE))]

    with pytest.raises(RemoteProtocolError, match="over 16"):
        read_request(head(*UPGRADE, *others))


# The reply


@pytest.mark.parametrize("name", NAMES)
def test_own_reply_is_understood(name: str) -> None:
    check_reply(reply(name)[: -len(BLANK)], name)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(head(line="HTTP/1.1 404 Not Found"), "refused", id="refusal of isdk"),
        pytest.param(head(line="HTTP/1.1 418 I'm a Teapot"), "refused", id="refusal of net-ipc"),
        pytest.param(head(*UPGRADE, line="HTTP/1.1 101 Whatever"), "refused", id="other words"),
        pytest.param(head("Upgrade: net-ipc", line=SWITCHED), "upgraded", id="no Connection"),
        pytest.param(head("Connection: Upgrade", line=SWITCHED), "upgraded", id="no Upgrade"),
        pytest.param(
            head("Connection: Upgrade", "Upgrade: isdk-ipc", line=SWITCHED), "upgraded", id="name"
        ),
        pytest.param(head("no colon", line=SWITCHED), "broken", id="no header"),
    ],
)
def test_reply_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(HandshakeError, match=why):
        check_reply(data, "net-ipc")
