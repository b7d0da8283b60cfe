"""Record conversations between two of us, for `tests/protocol/vectors/native.json`.

    python tools/vectors.py > tests/protocol/vectors/native.json

It was run once, when version 1 of the wire was finished. What it wrote is the wire: it is not run
again to make a test pass. A later version adds a file of its own beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from interphone.protocol.messages import Failure  # noqa: E402
from interphone.protocol.shapes import Marks, Posting, Terms  # noqa: E402
from support.sessions import SessionPair  # noqa: E402
from support.stranger import conversation  # noqa: E402

VALUES: list[Any] = [None, True, -1, 2**53, 1.5, "hé", [1, [2]], {"a": {"b": None}}, 0, ""]
MOMENT = datetime(2026, 11, 22, 13, 15, 51, tzinfo=UTC)


def messages(ends: SessionPair) -> None:
    for value in VALUES:
        ends.say("client", "send", value)
        ends.say("server", "send", value)


def only_messagepack(ends: SessionPair) -> None:
    for value in (b"\x00\xff", MOMENT, 2**64 - 1, -(2**63), "x" * 40, list(range(20)), b"y" * 300):
        ends.say("client", "send", value)


def requests(ends: SessionPair) -> None:
    ask = ends.say("client", "request", {"q": 1}, "a", timeout=2.5)
    ends.deliver()
    ends.say("server", "respond", ask, [1, 2])
    back = ends.say("server", "request", None, "b")
    ends.deliver()
    failure = Failure("failed", "no such key", "KeyError", {"key": "x"})
    ends.client.fail(back, failure)
    ping = ends.client.ping("p", now=0.0, timeout=1.0)
    assert ping is not None
    ends.deliver()


def calls(ends: SessionPair) -> None:
    asked = {"method": "add", "params": [1, 2], "named": {"c": 3}}
    one = ends.say("client", "call", asked, "a", timeout=10.0, progress=True)
    two = ends.say("client", "call", {"method": "wait"}, "b")
    ends.deliver()
    ends.server.report_progress(one, ends.server.codec.encode(0.5))
    ends.say("server", "respond", one, 6)
    ends.client.forget(two)
    ends.deliver()
    ends.server.fail(two, Failure("cancelled", "the request was cancelled"))
    ends.deliver()


def streams(ends: SessionPair) -> None:
    asked = {"method": "double", "params": [2]}
    nonce = ends.say("client", "open_stream", asked, "s", window=2, timeout=60.0)
    ends.deliver()
    encode = ends.server.codec.encode
    ends.server.streams.demand(nonce, 3)
    ends.deliver()
    for number in (1, 2):
        assert ends.client.streams.question(nonce, encode(number))
        ends.deliver()
        assert ends.server.streams.item(nonce, encode(2 * number))
        ends.deliver()
        ends.client.streams.taken(nonce, 1)
        ends.server.streams.used(nonce, 1)
        ends.deliver()
    ends.client.streams.finish(nonce)
    ends.deliver()
    ends.say("server", "respond", nonce, None)
    ends.deliver()


def topics(ends: SessionPair) -> None:
    client, server, encode = ends.client, ends.server, ends.server.codec.encode
    asks: list[Callable[[str], Any]] = [
        lambda token: client.subscribe(["a.*"], token, terms=Terms(1, credit=(10, 1000))),
        lambda token: client.subscribe(["jobs"], token, terms=Terms(2, group="workers")),
        lambda token: client.ask_to_publish("a.b", encode(1), token, posting=Posting(retain=True)),
        lambda token: client.ask_to_publish("a.b", encode("x"), token),
        lambda token: client.ask_to_forget("a.b", token),
        lambda token: client.unsubscribe(["jobs"], token, terms=Terms(2)),
    ]
    for number, ask in enumerate(asks):
        nonce = ask(f"t{number}")
        ends.deliver()
        ends.say("server", "respond", nonce, {"result": True})
        ends.deliver()
    server.deliver(server.publication("a.b", encode(1), None, Marks((1,), retained=True)))
    server.deliver(server.publication("a.b", encode(2), None, Marks((1, 3))))
    server.miss(1, 4, "a.b")
    client.allow(1, 5, 300)
    ends.deliver()


def goodbye(ends: SessionPair) -> None:
    ends.client.say_goodbye("enough")
    ends.deliver()


CONVERSATIONS = [messages, requests, calls, streams, topics, goodbye]


def record(name: str, dialect: str, talk: Callable[[SessionPair], None]) -> dict[str, Any]:
    dialects = ("native", "classic") if dialect == "native" else ("classic",)
    ends = SessionPair(dialects=dialects).open({"who": "me"})
    talk(ends)
    said = dict.fromkeys(("client", "server"), b"")
    for role, data in ends.wire:
        said[role] += data
    by_client, by_server = conversation(said["client"], said["server"])
    return {
        "name": name,
        "dialect": dialect,
        "client": said["client"].hex(),
        "server": said["server"].hex(),
        "client says": by_client,
        "server says": by_server,
    }


def main() -> None:
    recorded = [
        record(talk.__name__, dialect, talk)
        for dialect in ("native", "classic")
        for talk in CONVERSATIONS
    ]
    recorded.append(record("only_messagepack", "native", only_messagepack))
    json.dump(recorded, sys.stdout, indent=1, ensure_ascii=True)
    print()


if __name__ == "__main__":
    main()
