"""The twin: what Sessions of the other form do, asked of a process of its own.

Where interphone is compiled the twin runs as it is written (`INTERPHONE_PURE=1`).

    with Twin() as twin:
        assert trace("server", JSON, True, [b"..."]) == twin.trace("server", JSON, True, [b"..."])
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import msgspec

from interphone.accelerator import PURE, compiled

from .rubbish import opened_for_rubbish

__all__ = ["Twin", "trace"]

Trace = tuple[str, bytes, str]
WHERE = re.compile(" at 0x[0-9A-Fa-f]+")  # an object without a text of its own


def trace(role: str, start: int, interphone: bool, chunks: list[bytes]) -> Trace:
    """What a session is told, what it says, and how it ends, as it is fed."""
    lone = opened_for_rubbish(role, start, interphone=interphone)
    told = [lone.feed(chunk) for chunk in chunks]
    said = lone.session.data_to_send()
    lone.session.tick(1e6, lone.seen.reactions)
    told.append(lone.seen.take())
    errors = [str(error) for error in lone.seen.errors]
    counts = msgspec.to_builtins(lone.session.counts)
    end = repr((lone.session.state, lone.session.pending, errors, counts))
    return WHERE.sub("", repr(told)), said + lone.session.data_to_send(), end


class Twin:
    """A process that traces."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.twin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, PURE: "1", "PYTHONPATH": os.pathsep.join(paths)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(10)

    def trace(self, *asked: Any) -> Trace:
        """As the function of that name."""
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        _write(into, asked)
        into.flush()
        told: Trace = _read(out, Trace)
        return told


def _write(stream: Any, value: object) -> None:
    body = msgspec.msgpack.encode(value)
    stream.write(len(body).to_bytes(4) + body)


def _read(stream: Any, of: Any = Any) -> Any:
    size = stream.read(4)
    return msgspec.msgpack.decode(stream.read(int.from_bytes(size)), type=of) if size else None


if __name__ == "__main__":
    assert not compiled()
    while (asked := _read(sys.stdin.buffer)) is not None:
        _write(sys.stdout.buffer, trace(*asked))
        sys.stdout.buffer.flush()
