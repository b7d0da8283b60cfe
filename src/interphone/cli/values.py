"""Values: what is typed becomes what is sent.

| typed | is |
|---|---|
| JSON: `3`, `true`, `null`, `"3"`, `[1,2]`, `{"a": 1}` | that value |
| `-` | what stdin has: JSON, or a text |
| `@file` | what the file has: JSON, or a text |
| anything else | that text |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from .ending import Misuse
from .output import escape

__all__ = ["arguments", "value_of", "value_of_line"]

_named = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
STDIN = 0


def arguments(typed: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional parameters, and those typed as ``key=value``."""
    texts: list[str] = []
    named: dict[str, str] = {}
    for each in typed:
        found = _named.fullmatch(each)
        if found is None:
            texts.append(each)
        elif found[1] in named:
            raise Misuse(f"{found[1]} is given twice")
        else:
            named[found[1]] = found[2]
    if [*texts, *named.values()].count("-") > 1:
        raise Misuse("stdin can be read only once: give '-' for one parameter")
    params = [value_of(text) for text in texts]
    return params, {name: value_of(text) for name, text in named.items()}


def value_of(typed: str) -> Any:
    """The value that somebody typed; see the table on top."""
    if typed == "-":
        return _content(_read(STDIN), "stdin")
    if typed.startswith("@"):
        return _content(_read(typed[1:]), escape(typed[1:]))
    return _parsed(typed, escape(typed))


def value_of_line(line: bytes) -> Any:
    """The value in a line of input."""
    return _content(line, "a line of input")


def _read(what: str | int) -> bytes:
    try:
        with open(what, "rb", closefd=what != STDIN) as file:
            return file.read()
    except OSError as exc:
        name = "stdin" if what == STDIN else escape(str(what))
        raise Misuse(f"cannot read {name}: {exc.strerror}") from exc


def _content(data: bytes, where: str) -> Any:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Misuse(f"{where} is no UTF-8 text, and has no JSON") from None
    return _parsed(text.removesuffix("\n").removesuffix("\r"), where)


def _parsed(text: str, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        what = where if len(where) <= 40 else f"{where[:40]}..."
        raise Misuse(f"{what} nests too deeply: 64 levels are the most") from None
    except (msgspec.DecodeError, UnicodeEncodeError) as exc:
        if text.lstrip()[:1] in ("{", "[", '"'):  # a slip rather than a text
            raise Misuse(f"{where} is no JSON: {exc}") from None
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise Misuse(f"{where} is no UTF-8 text")
    return text
