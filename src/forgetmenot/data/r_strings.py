"""Vectors of strings out of R's lazy-load databases (.rdb), without R.

A database is a run of records: four bytes of length, big-endian, then R's serialisation compressed
with zlib. Only what a vector of strings needs is read, and anything else is refused; R's format can
hold code, and none is ever run.
"""

import struct
import zlib
from collections.abc import Iterator

HEADER = b"X\n"  # big-endian binary form
STRINGS = 0x10  # type of a vector of strings (STRSXP) that has no attributes
CHARACTERS = 0x09  # type of one string (CHARSXP), in the low byte of its flags
ENCODINGS = (0x8000, 0x40000)  # flags of a string in UTF-8, in ASCII


def read_string_vectors(database: bytes) -> Iterator[list[str]]:
    """The vectors of an .rdb in order. Raises ValueError if it holds anything else."""
    start = 0
    while start < len(database):
        decompressor = zlib.decompressobj()
        try:
            record = decompressor.decompress(database[start + 4 :])
        except zlib.error as error:
            raise ValueError(f"byte {start}: not a record compressed with zlib ({error})") from None
        start = len(database) - len(decompressor.unused_data)
        try:
            yield _vector(record)
        except struct.error:
            raise ValueError("a vector of strings that ends too early") from None


def _vector(record: bytes) -> list[str]:
    version, _, _, name = struct.unpack_from(">iiii", record, 2)
    if record[:2] != HEADER or version != 3:
        raise ValueError(f"found {record[:2]!r}, version {version}; allowed: {HEADER!r}, version 3")
    place = 18 + name  # after the name of the encoding of the session that wrote it
    kind, count = struct.unpack_from(">Ii", record, place)
    if kind != STRINGS:
        raise ValueError(f"found type {kind:#x}, allowed: {STRINGS:#x} (a vector of strings)")
    place += 8
    strings = []
    for _ in range(count):
        flags, size = struct.unpack_from(">Ii", record, place)
        if flags & 0xFF != CHARACTERS or flags & ~0xFF not in ENCODINGS or size < 0:
            raise ValueError(f"found a string with flags {flags:#x}, allowed: UTF-8 or ASCII")
        place += 8
        (encoded,) = struct.unpack_from(f"{size}s", record, place)
        strings.append(encoded.decode())
        place += size
    return strings
