"""Run the Python blocks of a Markdown page, top to bottom, in one namespace: `run_page.py PAGE`.

`await` may stand at the top of a block; such blocks share one event loop, which lives until the
page ends. A block right under the line `<!-- not run -->` is left out.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NOT_RUN = "<!-- not run -->"
FENCE = re.compile(r"^(?P<indent> *)(?P<marks>```+|~~~+) *(?P<language>[\w.+-]*)")


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The Python blocks of a page that are to run, each with its first line's number."""
    lines = text.splitlines()
    number, previous = 0, ""
    while number < len(lines):
        opened = FENCE.match(lines[number])
        if opened is None:
            previous = lines[number].strip() or previous
            number += 1
            continue
        first = number = number + 1
        closing = re.compile(rf"^ *{re.escape(opened['marks'])} *$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        if opened["language"] == "python" and previous != NOT_RUN:
            width = len(opened["indent"])
            yield first, "\n".join(line[width:] for line in lines[first:number])
        previous, number = "", number + 1


def run_page(page: Path) -> int:
    """Run the page's blocks; how many there were."""
    namespace: dict[str, object] = {"__name__": "__main__", "__file__": str(page)}
    count = 0
    with asyncio.Runner() as runner:
        for first, source in blocks(page.read_text("utf-8")):
            padded = "\n" * first + source  # so that a traceback shows the page's own lines
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(padded, str(page), "exec", flags=flags, dont_inherit=True)
            waiting = eval(code, namespace)
            if inspect.iscoroutine(waiting):
                runner.run(waiting)
            count += 1
    return count


if __name__ == "__main__":
    print(f"{run_page(Path(sys.argv[1]))} blocks ran")
