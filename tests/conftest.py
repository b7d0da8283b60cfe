from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Container, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

pytest.register_assert_rewrite("support")

hypothesis.settings.register_profile("interphone", deadline=None)
hypothesis.settings.load_profile("interphone")


# Modules about one kind of system, which are not collected on another.
UNIX_ONLY = [
    "transports/test_unix.py",
    "transports/test_memfds.py",
    "test_blocking_direct.py",  # a client of a pipe goes by the portal
    "test_host_timers.py",  # needs a virtual screen
]
WINDOWS_ONLY = ["transports/test_pipe.py", "transports/test_sections.py"]
collect_ignore = UNIX_ONLY if sys.platform == "win32" else WINDOWS_ONLY


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background like that, and children would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Blocking calls on a loop


class Every(Container[str]):
    def __contains__(self, name: object) -> bool:
        return True


# Where a loop's thread may block, and why.
MAY_BLOCK: dict[str, Container[str]] = {
    "interphone/transports/unix.py": Every(),  # a socket's file: stat, lock, bind, unlink
    "interphone/transports/claim.py": Every(),
    "interphone/transports/memfds.py": Every(),  # /proc, which never waits
    "interphone/transports/places/unix.py": Every(),  # only commands look, and nothing else runs
    "interphone/address.py": Every(),  # which directory is ours
    "asyncio/base_events.py": {"subprocess_exec"},  # starting Node waits for its exec
    "asyncio/unix_events.py": {"_make_subprocess_transport"},
    "asyncio/subprocess.py": {"create_subprocess_exec"},
    "support/node.py": {"require_node", "node_command"},  # asked once, before anything runs
    "_pytest/assertion/rewrite.py": Every(),
    "importlib/_bootstrap_external.py": Every(),
    "<frozen importlib._bootstrap>": Every(),
    "<frozen importlib._bootstrap_external>": Every(),
    "traceback.py": Every(),  # reading the lines to show
    "linecache.py": Every(),
}


@pytest.fixture(scope="session", autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Every test fails that blocks the thread of a running loop."""
    with blockbuster_ctx() as watch:
        for function in watch.functions.values():
            for place, names in MAY_BLOCK.items():
                function.can_block_in(place, names)  # type: ignore[arg-type]  # only asked `in`
        yield watch


# Loops


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if sys.version_info >= (3, 12):

    def eager_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOPS["eager"] = eager_loop
if sys.platform != "win32" and sys.implementation.name == "cpython":
    LOOPS["uvloop"] = uvloop_loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a coroutine to its end on the loop under test.

    The test fails if a run leaves a task, or an exception that nobody took, and if the test
    leaves a file descriptor. `@pytest.mark.parametrize("run", ["uvloop"], indirect=True)` asks for
    one loop only.
    """
    if request.param not in LOOPS:
        pytest.skip(f"no {request.param} here")
    new_loop = LOOPS[request.param]

    def run_on_loop(main: Coroutine[Any, Any, Any]) -> Any:
        complaints: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=new_loop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            result = runner.run(main)
            runner.run(asyncio.sleep(0))  # who was cancelled last may end
            left = asyncio.all_tasks(loop)
        assert not left, f"tasks left over: {left}"
        assert not complaints, f"nobody took: {complaints}"
        return result

    new_loop().close()  # libuv keeps a pipe for the whole process from its first loop on
    before = open_files()
    yield run_on_loop
    if leaked_since(before):
        gc.collect()
    leaked = leaked_since(before)
    assert not leaked, f"file descriptors left open: {leaked}"


def leaked_since(before: dict[str, str]) -> dict[str, str]:
    return {fd: what for fd, what in open_files().items() if before.get(fd) != what}


def open_files() -> dict[str, str]:
    """This process's file descriptors and what each is; nothing where nobody tells."""
    if not sys.platform.startswith("linux"):
        return {}
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that was listing
            continue
    return found


# Addresses


@pytest.fixture
def address() -> Iterator[str]:
    """A name that no other test has: a short path in a private directory, or a pipe's name."""
    if sys.platform == "win32":
        yield f"\\\\.\\pipe\\interphone-test-{uuid.uuid4().hex}"
        return
    # Not tmp_path: a socket's path has 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="ip-", dir="/tmp"))
    yield str(directory / "s")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def may_block(blockbuster: BlockBuster) -> Iterator[None]:
    """For a test that blocks a running loop on purpose."""
    blockbuster.deactivate()
    yield
    blockbuster.activate()
