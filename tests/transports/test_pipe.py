from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interphone.address import resolve
from interphone.transports import connect, listen
from support.transports import OWN_CHECKS, Check, OpenPair, Pair, Recorder, finish

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def pair_maker(address: str) -> OpenPair:
    @asynccontextmanager
    async def open_pair() -> AsyncIterator[Pair]:
        near, far = Recorder(), Recorder()
        where = resolve(address)
        listener = await listen(where, lambda: far)
        await connect(where, lambda: near)
        await far.until_called("made")
        try:
            yield near, far
        finally:
            listener.close()
            await finish(near, far)

    return open_pair


@pytest.mark.parametrize("check", OWN_CHECKS, ids=lambda check: check.__name__)
def test_contract(run: Run, address: str, check: Check) -> None:
    run(check(pair_maker(address)))
