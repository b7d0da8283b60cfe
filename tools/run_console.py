"""Run the ``console`` blocks of a Markdown page in a shell: `run_console.py PAGE`.

A line that begins with `$ ` is typed; the lines up to the next one are what it must print, on
stdout and stderr together. `...` in such a line stands for anything, a line of nothing else for any
lines, and some spaces for any number. A block right under `<!-- file: NAME -->` is saved under that
name first.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- file: (?P<name>\S+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
END = "--- end of"


class Shell:
    """One bash, in which the commands of a page run one after the other."""

    def __init__(self) -> None:
        self._count = 0
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """Run a command; return what it printed."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._count += 1
        end = f"{END} {self._count}\n"
        # The status is kept for the page's own `echo $?`.
        self._bash.stdin.write(f"(exit $status); {command}\nstatus=$?; echo '{end.strip()}'\n")
        self._bash.stdin.flush()
        printed = ""
        while not printed.endswith(end):
            line = self._bash.stdout.readline()
            if not line:
                raise SystemExit(f"the shell ended at: {command}\n{printed}")
            printed += line
        return printed.removesuffix(end)

    def close(self) -> None:
        """End it, and everything that it has started."""
        os.killpg(self._bash.pid, signal.SIGTERM)
        self._bash.communicate()


def commands(block: str) -> list[tuple[str, str]]:
    """What is typed in a block, and what must be printed each time."""
    typed = re.split(r"^\$ ", block, flags=re.M)
    pairs = [each.partition("\n") for each in typed if each]
    return [(command, expected) for command, _, expected in pairs]


def pattern_of(expected: str) -> re.Pattern[str]:
    lines = []
    for line in expected.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        words = (re.sub(r"(\\ )+", " +", re.escape(part)) for part in line.split("..."))
        lines.append(".*".join(words) + r" *\n")
    return re.compile("".join(lines))


def run_page(page: Path) -> int:
    """Run the page's blocks; how many commands there were."""
    shell, count = Shell(), 0
    try:
        for block in BLOCK.finditer(page.read_text("utf-8")):
            if block["name"] is not None:
                Path(block["name"]).write_text(block["text"], "utf-8")
            if block["language"] != "console":
                continue
            for command, expected in commands(block["text"]):
                printed = shell.run(command)
                if not pattern_of(expected).fullmatch(printed):
                    raise SystemExit(f"$ {command}\nprinted\n{printed}\nnot\n{expected}")
                count += 1
    finally:
        shell.close()
    return count


if __name__ == "__main__":
    print(f"{run_page(Path(sys.argv[1]))} commands ran")
