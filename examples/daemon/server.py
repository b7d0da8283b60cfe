"""A warm daemon: it reads every docstring of the standard library once, then answers searches.

    python server.py NAME [IDLE]

Any number of clients, in Python or in Node, may connect to NAME and ask for

    "merge sorted inputs"                            the five best hits
    {"search": "merge sorted inputs", "limit": 3}    as many as they like
    {"stats": true}                                  what is in the index
    {"stop": true}                                   the end of the daemon

While it reads it publishes on the topic `progress`. It ends by itself when it has had no
client for IDLE seconds (a minute, if not told otherwise).
"""

from __future__ import annotations

import ast
import asyncio
import heapq
import math
import os
import re
import signal
import sys
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import interphone
from interphone import Peer, RemoteError, Server

LIBRARY = Path(sysconfig.get_path("stdlib"))
SKIPPED = {"site-packages", "test", "tests", "idle_test"}
COMMON = {
    "a",
    "an",
    "and",
    "as",
    "be",
    "by",
    "for",
    "if",
    "in",
    "is",
    "it",
    "of",
    "or",
    "the",
    "to",
}
NAME_COUNTS = 5  # a word in a name says more than one in the text
MAX_LIMIT = 100
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Documented = Definition | ast.Module
PAUSE = 0.01  # seconds of reading after which the clients have their turn


# The index, which knows nothing of interphone


@dataclass(frozen=True)
class Hit:
    name: str  # as heapq.merge
    line: int
    summary: str
    score: float


class Index:
    """An inverted index: for each word, in which docstrings it is and how often."""

    def __init__(self) -> None:
        self.docs: list[tuple[str, int, str]] = []
        self.lengths: list[int] = []
        self.postings: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self.modules = 0

    def add_module(self, path: Path) -> None:
        """Read the docstrings of a module from its source; nothing is imported."""
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # the templates of lib2to3 and their like
            return
        self.modules += 1
        for name, line, doc in docstrings(tree, module_name(path)):
            self.add(name, line, doc)

    def add(self, name: str, line: int, doc: str) -> None:
        number = len(self.docs)
        words = Counter(split(doc))
        for word in split(name):
            words[word] += NAME_COUNTS
        for word, count in words.items():
            self.postings[word].append((number, count))
        self.docs.append((name, line, doc.strip().partition("\n")[0]))
        self.lengths.append(words.total())

    def search(self, text: str, limit: int) -> list[Hit]:
        """Rank by BM25: rare words count more, and so do words that a short text repeats."""
        scores: defaultdict[int, float] = defaultdict(float)
        average = sum(self.lengths) / len(self.lengths)
        for word in set(split(text)):
            found = self.postings.get(word, [])
            rarity = math.log(1 + len(self.docs) / (1 + len(found)))
            for number, count in found:
                scores[number] += rarity * count / (count + 0.5 + self.lengths[number] / average)
        best = heapq.nlargest(limit, scores, key=lambda number: scores[number])
        return [Hit(*self.docs[number], round(scores[number], 2)) for number in best]


def sources() -> list[Path]:
    """The source of everything that has a name one could import."""
    found = []
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if SKIPPED.isdisjoint(parts) and all(map(str.isidentifier, parts)):
            found.append(path)
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
    """Everything below a node that has a docstring: its name, its line and the text."""
    if isinstance(node, Documented) and (doc := ast.get_docstring(node, clean=False)):
        yield name, getattr(node, "lineno", 1), doc
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield from docstrings(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt):  # an `if` or a `try` around definitions
            yield from docstrings(child, name)


def split(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in COMMON]


# The daemon


@dataclass(frozen=True)
class Progress:
    done: int
    total: int
    docs: int


async def serve(name: str, idle: float) -> None:
    """Serve until somebody asks for the end, or nobody is interested any more."""
    started = time.monotonic()
    index = Index()
    ready, stop = asyncio.Event(), asyncio.Event()
    server = Server(name)

    @server.on_request
    async def answer(peer: Peer, request: object) -> object:
        match request:
            case str(text):
                return await search(text, 5)
            case {"search": str(text), "limit": int(limit), **rest} if not rest:
                if 0 < limit <= MAX_LIMIT:
                    return await search(text, limit)
            case {"search": str(text), **rest} if not rest:
                return await search(text, 5)
            case {"stats": True}:
                return stats()
            case {"stop": True}:
                stop.set()
                return "good night"
        # Meant for the asker, so it goes over as it is, and nothing is logged here.
        raise RemoteError(
            f"a search is text and a limit from 1 to {MAX_LIMIT}", kind="BadRequest", data=request
        )

    async def search(text: str, limit: int) -> list[Hit]:
        await ready.wait()  # whoever asks early is answered as soon as it can be
        return index.search(text, limit)

    def stats() -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "modules": index.modules,
            "docs": len(index.docs),
            "words": len(index.postings),
            "uptime": time.monotonic() - started,
            "clients": len(server.peers),
        }

    async def leave_when_idle() -> None:
        unused = 0.0
        while unused < idle:
            await asyncio.sleep(0.5)
            unused = 0.0 if server.peers else unused + 0.5
        stop.set()

    async def read_library() -> None:
        paths = sources()
        told = time.monotonic()
        for done, path in enumerate(paths, start=1):
            index.add_module(path)
            if time.monotonic() - told >= PAUSE or done == len(paths):
                await server.publish("progress", Progress(done, len(paths), len(index.docs)))
                await asyncio.sleep(0)
                told = time.monotonic()
        ready.set()

    if sys.platform != "win32":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with server:
        tasks = [asyncio.create_task(read_library()), asyncio.create_task(leave_when_idle())]
        await stop.wait()
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    address, *more = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        interphone.run(serve(address, float(more[0]) if more else 60.0))
