"""A model server: arrays in and out, words one by one, and work that stops when nobody listens.

The model is a small one that was really trained, here and now: it counts which word follows which
in its own documentation. Arrays go as what they are: a shape, a type and the bytes.
"""

from __future__ import annotations

import array
import asyncio
import collections
import itertools
import math
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import interphone
from interphone import Client, MemoryAddress, Server, contract


@dataclass
class Array:
    """A row-major array; numpy makes one with ``np.frombuffer(data, dtype).reshape(shape)``."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes


@contract("embed")
def embed(vectors: Array) -> Array:
    """Scale every row to the length of one."""
    raise NotImplementedError


@contract("generate")
def generate(prompt: str, *, words: int = 20) -> AsyncIterator[str]:
    """Go on with the text, word by word."""
    raise NotImplementedError


server = Server(MemoryAddress("model"))
text = " ".join((__doc__, collections.__doc__ or "", random.__doc__ or "")).split()
follows: dict[str, list[str]] = collections.defaultdict(list)
for word, following in itertools.pairwise(text):
    follows[word].append(following)
stopped = asyncio.Event()


@server.method(embed, limit=2)
def embed_rows(vectors: Array) -> Array:  # a plain function: it runs in a worker thread
    rows, columns = vectors.shape
    numbers = array.array("f", vectors.data)
    for row in range(rows):
        part = numbers[row * columns : (row + 1) * columns]
        length = math.sqrt(sum(x * x for x in part)) or 1.0
        numbers[row * columns : (row + 1) * columns] = array.array("f", (x / length for x in part))
    return Array(vectors.shape, "float32", numbers.tobytes())


@server.method(generate, limit=8)
async def generate_words(prompt: str, *, words: int = 20) -> AsyncIterator[str]:
    dice, word = random.Random(prompt), prompt.split()[-1]
    try:
        for _ in range(words):
            word = dice.choice(follows.get(word) or text)
            yield word
    finally:
        stopped.set()


async def main() -> None:
    async with server, Client(server.address) as client:
        rows = Array((2, 3), "float32", array.array("f", [3, 4, 0, 1, 2, 2]).tobytes())
        embedded = await client.call(embed, rows)
        numbers = array.array("f", embedded.data)
        print("embedded:", *(f"{number:.2f}" for number in numbers))

        async with client.stream(generate, "arrays in and", words=12) as words:
            print("generated:", *[word async for word in words])

        stopped.clear()
        async with client.stream(generate, "one by", words=10**9) as words:
            async for word in words:
                print("the reader leaves at:", word)
                break
        await stopped.wait()
        print("and the model stops")


if __name__ == "__main__":
    interphone.run(main())
