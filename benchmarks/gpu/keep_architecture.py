#!/usr/bin/env python3
# benchmarks/gpu/keep_architecture.py: blanks GPU code for all architectures but one, to pack small.
"""keep_architecture.py LIBRARY SM: changes LIBRARY in place; its size and layout stay as they are.

A fat binary begins with the magic 0xBA55ED50, a version, its header's size and its own; then come
entries with a kind (1: PTX, 2: machine code), the size of their header, that of their payload and
an architecture. Only payloads are blanked.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
PTX, MACHINE_CODE = 1, 2


def keep(data: bytearray, architecture: int) -> int:
    """Blanks the others' payloads; returns how many are kept."""
    kept = position = 0
    while (start := data.find(MAGIC, position)) >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, start + 4)
        if (version, header) != (1, 16) or start + header + size > len(data):
            position = start + len(MAGIC)
            continue
        entry = start + header
        position = entry + size
        while entry < position:
            kind, _, head, payload = struct.unpack_from("<HHIQ", data, entry)
            (found,) = struct.unpack_from("<I", data, entry + 28)
            if kind not in (PTX, MACHINE_CODE):
                raise SystemExit(f"unknown entry in a fat binary at {entry:#x}")
            if kind == MACHINE_CODE and found == architecture:
                kept += 1
            else:
                data[entry + head : entry + head + payload] = bytes(payload)
            entry += head + payload
    return kept


def main() -> None:
    library, architecture = Path(sys.argv[1]), int(sys.argv[2])
    data = bytearray(library.read_bytes())
    if not keep(data, architecture):
        raise SystemExit(f"{library} holds no code for sm_{architecture}")
    library.write_bytes(data)


if __name__ == "__main__":
    main()
