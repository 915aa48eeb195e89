"""The CRC-32 of data from those of its parts, as polynomials over GF(2).

A CRC-32 is a polynomial of degree below 32 modulo P; bit 31 of the number is the coefficient of
x^0. Appending n bytes multiplies what came before by x^(8n), and adds the CRC of the bytes.
"""

from __future__ import annotations

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
    """CRC-32 of two strings of bytes, one after the other.

    Args:
        first: CRC-32 of the first, as ``zlib.crc32`` gives it.
        second: CRC-32 of the second.
        length: bytes of the second.
    """
    power, shift = _BYTE, _ONE
    while length:
        if length & 1:
            shift = _times(shift, power)
        power = _times(power, power)
        length >>= 1
    return _times(shift, first) ^ second
