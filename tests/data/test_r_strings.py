import struct
import zlib

import pytest

from forgetmenot.data.r_strings import read_string_vectors


def vector(strings, flags=0x40009, kind=0x10, version=3):
    """A vector of strings as R writes it: header, name of the encoding, then each string."""
    packed = b"X\n" + struct.pack(">iiii", version, 0x040201, 0x030500, 5) + b"UTF-8"
    packed += struct.pack(">Ii", kind, len(strings))
    for string in strings:
        encoded = string.encode()
        packed += struct.pack(">Ii", flags if encoded.isascii() else 0x8009, len(encoded)) + encoded
    return packed


def database(*records):
    packed = b""
    for record in records:
        packed += struct.pack(">I", len(record)) + zlib.compress(record)
    return packed


def read(packed):
    return list(read_string_vectors(packed))


def test_vectors_in_order():
    assert read(database(vector(["a", "", "£ né"]), vector([]))) == [["a", "", "£ né"], []]
    assert read(b"") == []


def test_anything_else_is_refused():
    with pytest.raises(ValueError, match="byte 0: not a record compressed with zlib"):
        read(b"\0\0\0\1no zlib")
    with pytest.raises(ValueError, match=r"version 2; allowed: .* version 3"):
        read(database(vector(["a"], version=2)))
    with pytest.raises(ValueError, match="found type 0x13, allowed: 0x10"):
        read(database(vector(["a"], kind=0x13)))  # a list, which may hold code
    with pytest.raises(ValueError, match="flags 0x4009, allowed: UTF-8 or ASCII"):
        read(database(vector(["a"], flags=0x4009)))  # Latin-1
    with pytest.raises(ValueError, match="ends too early"):
        read(database(vector(["a", "b"])[:-6]))
    with pytest.raises(ValueError, match="ends too early"):
        read(database(vector(["a", "long"])[:-2]))
