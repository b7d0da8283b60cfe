from __future__ import annotations

import msgspec
import pytest

from interphone.errors import (
    ConnectionClosed,
    InterphoneError,
    Overloaded,
    PayloadError,
    RemoteError,
    Unhandled,
    Unsupported,
)
from interphone.protocol.messages import (
    CONNECTION,
    END,
    MESSAGE,
    NODE_CODES,
    PING,
    PONG,
    REQUEST,
    RESPONSE,
    Failure,
    Goodbye,
    Hello,
    Packet,
    Welcome,
    error_of,
    failure_of,
    read_failure,
)
from interphone.protocol.payload import ABSENT


def test_types_are_the_numbers_of_the_wire() -> None:
    types = [CONNECTION, MESSAGE, REQUEST, RESPONSE, PING, PONG, END]

    assert types == list(range(7))


@pytest.mark.parametrize("of", [Packet, Hello, Welcome, Goodbye])
def test_unknown_keys_are_ignored(of: type) -> None:
    needed = {"t": 1} if of is Packet else {}

    assert msgspec.json.decode(msgspec.json.encode({**needed, "later": [1]}), type=of) is not None


def test_packet_without_payload_has_an_absent_one() -> None:
    packet = msgspec.json.decode(b'{"t":1}', type=Packet)

    assert packet.d is ABSENT
    assert (packet.n, packet.k, packet.e) == (None, None, None)


def test_flags_that_are_not_there_are_told_from_false() -> None:
    silent, says_no = (
        msgspec.json.decode(body, type=Hello) for body in (b"{}", b'{"compress":false}')
    )

    assert silent.compress is msgspec.UNSET
    assert says_no.compress is False


def test_failure_is_written_without_what_it_lacks() -> None:
    assert msgspec.json.encode(Failure("unhandled")) == b'{"code":"unhandled"}'


# Failures and errors


def test_asker_is_told_the_class_and_the_message() -> None:
    assert failure_of(KeyError("x")) == Failure("failed", "'x'", "KeyError")


def test_remote_error_goes_over_as_it_is() -> None:
    error = RemoteError("no such user", kind="NotFound", data={"id": 7})

    assert failure_of(error) == Failure("failed", "no such user", "NotFound", {"id": 7})


def test_failure_comes_back_as_the_error_it_was() -> None:
    error = error_of(failure_of(RemoteError("no such user", kind="NotFound", data=[1])))

    assert isinstance(error, RemoteError)
    assert (error.message, error.kind, error.data) == ("no such user", "NotFound", [1])


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("unhandled", Unhandled),
        ("invalid", PayloadError),
        ("failed", RemoteError),
        ("overloaded", Overloaded),
        ("closing", ConnectionClosed),
        ("unsupported", Unsupported),
    ],
)
def test_code_has_its_error(code: str, error: type[InterphoneError]) -> None:
    assert code in NODE_CODES
    assert type(error_of(Failure(code, "why"))) is error


def test_declared_failure_says_so_and_goes_over_again_as_it_came() -> None:
    failure = Failure("declared", "no user 7", "NoSuchUser", {"id": 7}, ("a note",))

    error = error_of(failure)

    assert isinstance(error, RemoteError)
    assert (error.declared, error.data, error.notes) == (True, {"id": 7}, ("a note",))
    assert failure_of(error) == failure


def test_traceback_of_the_other_end_is_never_in_a_failure_of_ours() -> None:
    error = error_of(Failure("failed", "x", "KeyError", traceback="Traceback …"))

    assert isinstance(error, RemoteError)
    assert error.traceback == "Traceback …"
    assert failure_of(error) == Failure("failed", "x", "KeyError")


def test_failure_for_older_ends_has_the_members_they_know() -> None:
    failure = Failure("declared", "no user 7", "NoSuchUser", {"id": 7}, ("a note",), "Traceback …")

    assert failure.plain() == Failure("failed", "no user 7", "NoSuchUser", {"id": 7})


def test_lesser_failures_end_with_one_that_can_always_be_sent() -> None:
    *_, least = Failure("declared", "\ud800", "\ud800", object(), ("\ud800",)).lesser()

    assert msgspec.json.encode(least)
    assert least.code == "failed"


@pytest.mark.parametrize(
    "value",
    [None, 7, {}, {"code": 7}, {"code": "failed", "notes": 7}, {"code": "failed", "notes": [7]}],
)
def test_failure_that_cannot_be_read_is_a_remote_error(value: object) -> None:
    error = error_of(read_failure(value))

    assert isinstance(error, RemoteError)
    assert error.message == "a failure that cannot be read"


def test_unknown_members_of_a_failure_are_ignored() -> None:
    assert read_failure({"code": "failed", "later": [1]}) == Failure("failed")


def test_unknown_code_is_a_remote_error() -> None:
    error = error_of(Failure("from-the-future", "why"))

    assert isinstance(error, RemoteError)
    assert (error.kind, error.message) == ("RemoteError", "why")


def test_request_refused_by_a_closing_peer_was_not_sent() -> None:
    error = error_of(Failure("closing", "the peer is closing"))

    assert isinstance(error, ConnectionClosed)
    assert (error.by_peer, error.delivery, error.reason) == (
        True,
        "not_sent",
        "the peer is closing",
    )


def test_codes_towards_node_are_those_of_json_rpc_or_of_its_range_for_servers() -> None:
    shared = {
        "unhandled": "method-not-found",
        "invalid": "invalid-params",
        "declared": "failed",
    }

    own = {word: code for word, code in NODE_CODES.items() if word not in shared}

    assert len(set(own.values())) == len(own)
    assert all(NODE_CODES[word] == NODE_CODES[twin] for word, twin in shared.items())
