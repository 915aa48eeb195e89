"""The CRC-32 of data from those of its parts, as polynomials over GF(2).

What workers read and write piece by piece need not be read again for its CRC-32.

A CRC-32 is a polynomial of degree below 32 modulo P; bit 31 of the number is the coefficient of
x^0. Appending n bytes multiplies what came before by x^(8n), and adds the CRC of the bytes.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BufferedIOBase

#: ranges that are held at most, which bounds the memory of the largest files.
_MOST_RANGES = 1 << 15
#: bytes that are read at a time.
_PIECE = 256 << 10
_MODULUS = 0xEDB88320
_ONE = 1 << 31
_BYTE = 1 << 23


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo P."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_MODULUS if b & 1 else 0)
    return product


def combine(first: int, second: int, length: int) -> int:
    """CRC-32 of two strings of bytes, one after the other, from that of each.

    ``length`` counts the bytes of the second.
    """
    return _times(_shift(length), first) ^ second


@lru_cache
def _shift(length: int) -> int:
    """What appending so many bytes multiplies a CRC-32 by."""
    power, shift = _BYTE, _ONE
    while length:
        if length & 1:
            shift = _times(shift, power)
        power = _times(power, power)
        length >>= 1
    return shift


def crc32_from(
    stream: BufferedIOBase, start: int, stop: int, stopped: Callable[[], bool] = lambda: False
) -> int:
    """CRC-32 of a file's bytes from ``start`` to ``stop``; of some if it is stopped.

    Raises:
        OSError: the file ends before, or the operating system failed.
    """
    stream.seek(start)
    crc, left = 0, stop - start
    # The same memory again and again: new memory takes as long as a CRC-32.
    held = memoryview(bytearray(min(_PIECE, left)))
    while left and not stopped():
        count = stream.readinto(held[:left])
        if not count:
            raise OSError(errno.EIO, "the file is too short")
        crc = zlib.crc32(held[:count], crc)
        left -= count
    return crc


class Ranges:
    """CRC-32 of ranges of bytes of several things, by their names.

    Ranges that follow on one another are one.
    """

    def __init__(self) -> None:
        #: of a range, by its first byte: CRC-32, and the byte behind it.
        self._by_name: dict[str, dict[int, tuple[int, int]]] = {}
        #: first bytes, by name and the byte behind.
        self._firsts: dict[tuple[str, int], int] = {}

    def add(self, name: str, start: int, data: memoryview) -> None:
        """Take in the bytes from ``start`` on, unless a range begins there already."""
        own = self._by_name.setdefault(name, {})
        first = self._firsts.pop((name, start), start)
        if first == start and (start in own or len(self._firsts) >= _MOST_RANGES):
            return
        crc, stop = own[first][0] if first < start else 0, start + len(data)
        own[first] = zlib.crc32(data, crc), stop
        self._firsts[name, stop] = first

    def update(self, others: Ranges) -> None:
        """Take in all ranges of others, which none is added to any more."""
        for name, ranges in others._by_name.items():
            self._by_name.setdefault(name, {}).update(ranges)

    def crc32(self, name: str, start: int, stop: int, rest: Callable[[int, int], int]) -> int:
        """CRC-32 of all bytes from ``start`` to ``stop``.

        Args:
            name: of what.
            start: the first byte.
            stop: the byte behind the last.
            rest: gives the CRC-32 of bytes that no range has, from one byte to another.
        """
        crc, done = 0, start
        for first, (part, end) in sorted(self._by_name.get(name, {}).items()):
            if not done <= first <= end <= stop:
                continue
            if done < first:
                crc = combine(crc, rest(done, first), first - done)
            crc, done = combine(crc, part, end - first), end
        return combine(crc, rest(done, stop), stop - done) if done < stop else crc
