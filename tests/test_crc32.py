"""CRC-32 of data that comes in parts, in any order, with holes, and twice."""

import io
import itertools
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phema_cli.formats import crc32
from phema_cli.formats.crc32 import Ranges, combine, crc32_from


@given(parts=st.lists(st.binary(max_size=70), max_size=6))
def test_joined_checksums(parts):
    """CRC-32 of parts, joined, is that of the whole."""
    crc = 0
    for part in parts:
        crc = combine(crc, zlib.crc32(part), len(part))
    assert crc == zlib.crc32(b"".join(parts))


def test_joined_checksum_of_large_parts():
    """Lengths of many bits are handled alike."""
    a, b = bytes(range(250)) * 4, bytes(5_000_000)
    assert combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


@given(
    ends=st.lists(st.integers(0, 99), min_size=2, unique=True).map(sorted),
    workers=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_what_no_range_has_is_read(ends, workers, seed):
    """Whoever took in which ranges, in whatever order: the CRC-32 of all, and no byte twice."""
    data = bytes(range(100, 200))
    chance = random.Random(seed)  # noqa: S311 - no secret
    pieces = list(itertools.pairwise(ends))
    taken = [piece for piece in pieces if chance.random() < 0.7]
    own = [Ranges() for _ in range(workers)]
    for start, stop in chance.sample(taken, len(taken)) if seed % 2 else taken:
        chance.choice(own).add("file", start, memoryview(data)[start:stop])
    whole = Ranges()
    for ranges in own:
        whole.update(ranges)
    read = []

    def rest(start, stop):
        read.extend(range(start, stop))
        return zlib.crc32(data[start:stop])

    assert whole.crc32("file", 0, 100, rest) == zlib.crc32(data)
    assert sorted(read) == sorted(set(range(100)) - {i for a, b in taken for i in range(a, b)})


def test_bytes_that_were_read_twice():
    """A tile that was read anew counts once, and so do ranges that overlap or lie beyond."""
    data = memoryview(bytes(range(100)))
    ranges = Ranges()
    for start, stop in ((10, 30), (10, 30), (10, 20), (30, 40), (20, 50), (90, 100)):
        ranges.add("file", start, data[start:stop])
    whole = ranges.crc32("file", 0, 95, lambda start, stop: zlib.crc32(data[start:stop]))
    assert whole == zlib.crc32(data[:95])


def test_ranges_take_little_memory(monkeypatch):
    """Beyond a number of ranges new ones are left to be read again; those that grow still grow."""
    monkeypatch.setattr(crc32, "_MOST_RANGES", 3)
    ranges = Ranges()
    for start in (0, 20, 40, 60, 80, 10):
        ranges.add("file", start, memoryview(bytes(10)))
    read = []

    def rest(start, stop):
        read.append((start, stop))
        return zlib.crc32(bytes(stop - start))

    assert ranges.crc32("file", 0, 100, rest) == zlib.crc32(bytes(100))
    assert read == [(30, 40), (50, 100)]


def test_a_file_that_ends_early():
    """What is missing is an error, not fewer bytes."""
    stream = io.BytesIO(bytes(10))
    assert crc32_from(stream, 2, 10) == zlib.crc32(bytes(8))
    with pytest.raises(OSError, match="too short"):
        crc32_from(stream, 2, 11)
