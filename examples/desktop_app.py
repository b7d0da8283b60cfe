"""A window in Node, an engine in Python: progress, a mistake, and a call that is taken back.

Both are processes of their own: `desktop/window.js` and `desktop/engine.py`. The window uses the
package net-ipc (`make setup` gets it). Where there is no Node, Python stands in front.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import interphone
from interphone import Backoff, Client, InvalidParams

HERE = Path(__file__).resolve().parent / "desktop"
NODE_MODULES = HERE.parents[1] / ".cache" / "node" / "node_modules"


async def main() -> None:
    name = f"desktop-{os.getpid()}"
    engine = await asyncio.create_subprocess_exec(sys.executable, str(HERE / "engine.py"), name)
    try:
        # The client knocks until the engine is up; when the last one leaves the engine ends.
        async with Client(name, backoff=Backoff(cap=0.05)) as client:
            told = await in_node(client) or await in_python(client)
        await engine.wait()
    finally:
        if engine.returncode is None:
            engine.kill()
            await engine.wait()
    print("progress:", *(f"{step['loss']:.3f}" for step in told["progress"]))
    print("report:  ", told["report"])
    print("refused: ", told["refused"])
    print("stopped: ", told["cancelled"], f"after {told['epochs']} of 1,000,000 epochs")


async def in_node(client: Client) -> dict[str, Any] | None:
    """Open the window; None where there is no Node, or no net-ipc."""
    node = shutil.which("node")
    modules = Path(os.environ.get("NODE_PATH", NODE_MODULES))
    if node is None or not (modules / "net-ipc").is_dir():
        return None
    process = await asyncio.create_subprocess_exec(
        node,
        str(HERE / "window.js"),
        str(client.address).removeprefix("\\\\.\\pipe\\"),  # net-ipc adds that on Windows
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=subprocess.PIPE,
    )
    told, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("the window failed")
    answer: dict[str, Any] = json.loads(told)
    return {key: _sentence(value) for key, value in answer.items()}


def _sentence(value: Any) -> Any:
    return value["message"] if isinstance(value, dict) and "code" in value else value


async def in_python(client: Client) -> dict[str, Any]:
    """The same from Python."""
    progress: list[Any] = []
    steps: list[Any] = []
    begun = asyncio.Event()
    report = await client.call("train", 4, 0.5, on_progress=progress.append)
    try:
        await client.call("train", "four")
    except InvalidParams as error:
        refused = str(error)

    def note(step: Any) -> None:
        steps.append(step)
        begun.set()

    long = asyncio.create_task(client.call("train", 10**6, timeout=None, on_progress=note))
    await begun.wait()
    long.cancel()
    await asyncio.wait([long])
    return {
        "progress": progress,
        "report": report,
        "refused": refused,
        "cancelled": "the request was cancelled",
        "epochs": len(steps),
    }


if __name__ == "__main__":
    interphone.run(main())
