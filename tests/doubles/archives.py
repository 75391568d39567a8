"""Zip archives without their checksums, as torch.save writes them when it is told not to compute any."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping


class _Line(io.BytesIO):
    """Where nothing can be written again, zipfile puts checksums behind the bytes, as torch does."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise OSError("a line")


def archive(entries: Mapping[str, bytes], *, behind: bool = True, wide: bool = False) -> bytes:
    """A whole archive; `behind`: checksums follow the bytes; `wide`: with an end for 64-bit positions, as torch's."""
    out = _Line() if behind else io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    whole = out.getvalue()
    return _widened(whole) if wide else whole


def unsealed(whole: bytes) -> bytes:
    """The same archive with zeros where each checksum was."""
    bare = bytearray(whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        entries, line = opened.infolist(), opened.start_dir
    for entry in entries:
        name, extra = struct.unpack_from("<2H", whole, entry.header_offset + 26)
        behind = entry.header_offset + 30 + name + extra + entry.file_size + 4
        at = behind if entry.flag_bits & 8 else entry.header_offset + 14
        bare[at : at + 4] = bare[line + 16 : line + 20] = bytes(4)
        line += 46 + sum(struct.unpack_from("<3H", whole, line + 28))
    return bytes(bare)


def _widened(whole: bytes) -> bytes:
    *_, here, count, size, start, _ = struct.unpack("<4s4H2LH", whole[-22:])
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, here, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(whole) - 22, 1)
    return (
        whole[:-22] + end + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, size, 2**32 - 1, 0)
    )
