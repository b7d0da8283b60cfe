"""A Windows library that has no code: it only names functions of other libraries.

Wine 8 has no bcryptprimitives.dll, which whatever Rust 1.78 or later has built asks for random
bytes. The function is there under another name; a table of exports that says where is enough, and
needs no compiler. The words are those of Microsoft's "PE Format".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

__all__ = ["forwarder"]

PAGE = 0x1000  # how sections are aligned in memory
SECTOR = 0x200  # … and in the file
HEADERS = 24 + 240  # bytes from "PE" to the table of sections
AMD64, DLL = 0x8664, 0x2022  # executable image, large addresses, library
READ_ONLY_DATA = 0x4000_0040


def forwarder(library: str, functions: Mapping[str, str]) -> bytes:
    """A library that has these functions, each where `other_library.function` says."""
    exports = export_table(library, functions, at=PAGE)
    length = len(exports)
    exports += bytes(-length % SECTOR)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    file = struct.pack("<4sHHIIIHH", b"PE", AMD64, 1, 0, 0, 0, 240, DLL)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        *(0x20B, 14, 0, 0, len(exports), 0, 0, PAGE),  # PE32+, and no code
        *(0x1_8000_0000, PAGE, SECTOR, 6, 0, 0, 0, 6, 0, 0),  # where it likes to be; Windows 6.0
        *(PAGE + PAGE * -(-length // PAGE), SECTOR, 0, 3, 0x100),  # may be relocated, has no stack
        *(0x10_0000, 0x1000, 0x10_0000, 0x1000, 0, 16),
    )
    directories = struct.pack("<II", PAGE, length).ljust(16 * 8, b"\0")
    section = struct.pack(
        "<8sIIIIIIHHI", b".rdata", length, PAGE, len(exports), SECTOR, 0, 0, 0, 0, READ_ONLY_DATA
    )
    assert len(file + optional + directories) == HEADERS
    return (dos + file + optional + directories + section).ljust(SECTOR, b"\0") + exports


def export_table(library: str, functions: Mapping[str, str], *, at: int) -> bytes:
    """The directory of exports, to lie at this address: names are sorted, as the loader wants."""
    names = sorted(functions)
    count = len(names)
    addresses_at = at + 40
    names_at = addresses_at + 4 * count
    ordinals_at = names_at + 4 * count
    texts_at = ordinals_at + 2 * count
    texts = b""
    places = []
    for text in (library, *names, *(functions[name] for name in names)):
        places.append(texts_at + len(texts))
        texts += text.encode("ascii") + b"\0"
    named = places[1 : count + 1]
    forwarded = places[count + 1 :]  # an address within the directory itself is such a text
    directory = struct.pack(
        "<IIHHIIIIIII",
        *(0, 0, 0, 0, places[0], 1, count, count, addresses_at, names_at, ordinals_at),
    )
    table = struct.pack(f"<{2 * count}I{count}H", *forwarded, *named, *range(count))
    return directory + table + texts
