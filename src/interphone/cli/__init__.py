"""The command line: ``interphone``, or ``python -m interphone``.

It needs the extra ``cli``; without it there is one sentence that says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

try:
    from .app import run_app
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] not in ("rich", "typer"):
        raise
    run_app = None  # type: ignore[assignment]  # said by `main`
except KeyboardInterrupt:  # it takes a while, and whoever ends it wants no traceback
    raise SystemExit(130) from None

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; `docs/reference/cli.md` lists both."""
    if run_app is None:
        print(
            "interphone: the command line needs two more packages:"
            " install them by pip install 'interphone[cli]'",
            file=sys.stderr,
        )
        return 2
    return run_app(sys.argv[1:] if argv is None else list(argv))
