"""The HTTP upgrade that may stand in front of a connection instead of ``IPC``.

Strict on purpose (guarantees.md T21): one exact request line, CRLF line ends, at most
`MAX_HEADERS` headers in `MAX_HEAD` bytes, tokens compared as tokens, no body, and nothing
a browser would send. Bytes behind the blank line belong to the first frame.
"""

from __future__ import annotations

import re

from ..errors import HandshakeError, RemoteProtocolError

__all__ = [
    "MAX_HEAD",
    "MAX_HEADERS",
    "NAMES",
    "REFUSAL",
    "check_reply",
    "read_request",
    "reply",
    "request",
    "split_head",
]

NAMES = ("isdk-ipc", "net-ipc")
"""The protocol names of the two Node packages; a server accepts either."""

MAX_HEAD = 4096
MAX_HEADERS = 16

_BLANK_LINE = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HEADER = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*?)[ \t]*\Z"
)  # RFC 9112, 5
_BODY = {"content-length", "transfer-encoding"}
_SWITCHING = "HTTP/1.1 101 Switching Protocols"

REFUSAL = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


def request(name: str, host: str | None = None) -> bytes:
    """Return the head a client sends, as the Node packages do."""
    head = (
        f"GET / HTTP/1.1\r\nHost: {host or name}\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n\r\n"
    )
    return head.encode("ascii")


def reply(name: str) -> bytes:
    """Return the head a server answers with."""
    return f"{_SWITCHING}\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n\r\n".encode("ascii")


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """Return (head, what is behind it), or None while the head is incomplete.

    Raises:
        RemoteProtocolError: The head is over `MAX_HEAD` bytes, or not made of CRLF lines.
    """
    end = data.find(_BLANK_LINE, 0, MAX_HEAD)
    head = data[: end if end >= 0 else MAX_HEAD]
    if _BARE_LF.search(head):
        raise RemoteProtocolError("an HTTP line that does not end in CRLF", code="bad-upgrade")
    if end >= 0:
        return head, data[end + len(_BLANK_LINE) :]
    if len(data) >= MAX_HEAD:
        raise RemoteProtocolError(f"an HTTP head of over {MAX_HEAD} bytes", code="bad-upgrade")
    return None


def read_request(head: bytes) -> str:
    """Return the protocol name a client asks for.

    Raises:
        RemoteProtocolError: The request is anything but a plain upgrade to one of `NAMES`.
    """
    line, headers = _parse(head)
    if line != "GET / HTTP/1.1":
        raise RemoteProtocolError(
            f"an HTTP request that is no upgrade: {line[:75]!r}", code="bad-upgrade"
        )
    for name in headers:
        if name in _BODY or name == "origin" or name.startswith("sec-"):
            raise RemoteProtocolError(f"an upgrade with the header {name!r}", code="bad-upgrade")
    name = headers.get("upgrade", "")
    if not _has_token(headers.get("connection", ""), "upgrade") or name not in NAMES:
        raise RemoteProtocolError(
            f"an upgrade to {name[:75]!r}, not to one of {NAMES}", code="bad-upgrade"
        )
    return name


def check_reply(head: bytes, name: str) -> None:
    """Raise `HandshakeError` unless `head` accepts the upgrade to `name`."""
    try:
        line, headers = _parse(head)
    except RemoteProtocolError as exc:
        raise HandshakeError(f"the server's HTTP answer is broken: {exc}") from exc
    if line != _SWITCHING:
        raise HandshakeError(f"the server refused the HTTP upgrade: {line[:75]!r}")
    if not _has_token(headers.get("connection", ""), "upgrade") or headers.get("upgrade") != name:
        raise HandshakeError(
            f"the server upgraded to {headers.get('upgrade', '')[:75]!r}, not {name!r}"
        )


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    if len(lines) - 1 > MAX_HEADERS:
        raise RemoteProtocolError(f"over {MAX_HEADERS} HTTP headers", code="bad-upgrade")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        match = _HEADER.match(line)
        if match is None:
            raise RemoteProtocolError(f"a broken HTTP header: {line[:75]!r}", code="bad-upgrade")
        name = match[1].lower()
        if name in headers:
            raise RemoteProtocolError(f"the HTTP header {name!r} twice", code="bad-upgrade")
        headers[name] = match[2]
    return lines[0], headers


def _has_token(value: str, token: str) -> bool:
    return token in (part.strip().lower() for part in value.split(","))
