"""Accelerator: whether the hot modules run compiled, or as they are written.

A wheel may have some modules twice: as source, and compiled from that source by mypyc
(hatch_build.py has the list). Python imports the compiled ones; with ``INTERPHONE_PURE=1`` in
the environment the sources are imported, to debug, or to compare.
"""

from __future__ import annotations

import os
import sys

__all__ = ["PURE", "compiled", "prefer_sources"]

PURE = "INTERPHONE_PURE"


def prefer_sources(package: str) -> None:
    """Have everything below this directory imported from its sources."""
    from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader

    for directory, _, _ in os.walk(package):
        finder = FileFinder(directory, (SourceFileLoader, SOURCE_SUFFIXES))
        sys.path_importer_cache[directory] = finder


def compiled() -> bool:
    """Whether the hot modules are the compiled ones."""
    from importlib.util import find_spec

    spec = find_spec("interphone.protocol.wire")
    return spec is not None and not str(spec.origin).endswith(".py")
