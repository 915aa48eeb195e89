"""Packed files: what comes back of what was packed, and files that make no sense."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from phema_cli.errors import InputError
from phema_cli.formats import chains, packing, read
from tests.hostile_packing import HOSTILE, chain, crafted
from tests.packing import packed_chain, sealed, tensor_of, walk
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "packing.md"
LARGEST = np.finfo(np.float32).max
#: of a scale; a quotient of 15 bits is rounded to 24.
HALF = 0.501
TAGS = [(10 * (i // 2 + 1), (5.0, 10.0)[i % 2]) for i in range(40)]

bits_of = pytest.mark.parametrize("bits", [16, 8, 4])
quick = settings(max_examples=200, derandomize=True, deadline=None)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, float(LARGEST), -float(LARGEST), 3.3e38]
)
residues = arrays_of.arrays(np.float32, st.integers(0, 100), elements=floats)


def scales_of(raw):
    """A scale for each element, in float64."""
    return np.repeat((raw.astype(np.uint32) << 16).view(np.float32), packing.BLOCK).astype(float)


def check_pack(residue, bits):
    """Nothing is clipped, and readers get what the writer says that they do."""
    integers, raw, made = packing.pack(residue, bits)
    specs = packing.packed_specs("w", len(residue), bits)
    assert [a.shape for a in (integers, raw)] == [shape for _, shape in specs.values()]
    assert [8 * a.dtype.itemsize for a in (integers, raw)] == [d.bits for d, _ in specs.values()]
    out = np.full(len(residue), np.nan, np.float32)
    packing.unpack(integers.view(np.uint8), packing.numbers_of(raw), bits, out)
    assert (out == made).all()
    assert np.isfinite(out).all()
    scales = scales_of(raw)[: len(residue)]
    most = 2 ** (bits - 1) - 1
    assert (np.abs(residue.astype(float)) <= most * scales).all()
    # A product that float32 cannot hold has a smaller integer.
    held = np.where(most * scales > LARGEST, 1.0, HALF)
    error = np.abs(out.astype(float) - residue)
    assert (error <= held * scales).all()


@bits_of
@quick
@given(residues)
def test_residues_come_back(bits, residue):
    """Within half a scale, whatever their number and size."""
    check_pack(residue, bits)


@bits_of
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1003])
@pytest.mark.parametrize("size", [1.0, 1e-45, 1e-40, 1e-38, 1e38, LARGEST])
def test_sizes_and_magnitudes(bits, count, size):
    """Odd sizes, denormals and the ends of float32."""
    random = np.random.default_rng(count)
    residue = (random.uniform(-1, 1, count) * size).astype(np.float32)
    residue[:1] = size
    residue[64:96] = 0
    check_pack(residue, bits)
    assert not packing.pack(residue, bits)[2][64:96].any()


@bits_of
def test_snapshots_come_back(tmp_path, bits):
    """Each within half a scale of its own file, through two keyframes; all else as it was."""
    snapshots = walk(12, (7, 13))
    files = packed_chain(tmp_path, snapshots, TAGS[:12], bits, keyframe_every=8)
    for number, (path, arrays) in enumerate(zip(files, snapshots, strict=True)):
        held = read(path)
        assert {n: e.shape for n, e in held.content.items()} == {
            name: array.shape for name, array in arrays.items()
        }
        assert (tensor_of(path, "twin") == arrays["twin"]).all()
        error = np.abs(tensor_of(path, "w").astype(float) - arrays["w"])
        if number % 8 == 0:
            assert not error.any()
            assert held.files == (path,)
        else:
            last = path.read_bytes()[2 * (-91 // packing.BLOCK) :]
            scales = scales_of(np.frombuffer(last, "<u2"))[:91].reshape(7, 13)
            assert (error <= HALF * scales + 2**-23).all()
            assert set(held.files) == set(files[number // 8 * 8 : number + 1])


@bits_of
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_either_sign(bits, zero):
    """The scale of a block of zeros is 0, which is not negative."""
    integers, raw, made = packing.pack(np.full(130, zero, np.float32), bits)
    assert not raw.any()
    assert not made.any()
    assert set(integers.tolist()) == ({0x88} if bits == 4 else {0})


@bits_of
@pytest.mark.parametrize("shape", [(0,), (1,), (), (65,), (3, 0, 2)])
def test_small_tensors(tmp_path, bits, shape):
    """None, one, and odd numbers of elements; beside a large one, so that a chain is made."""
    snapshots = [s | {"v": s["w"].reshape(-1)[:1]} for s in walk(4, shape)]
    for number, arrays in enumerate(snapshots):
        arrays["v"] = np.full(3, number, np.float32)
    files = packed_chain(tmp_path, snapshots, TAGS[:4], bits)
    for path, arrays in zip(files, snapshots, strict=True):
        assert tensor_of(path, "w").shape == shape
        assert np.abs(tensor_of(path, "w") - arrays["w"]).max(initial=0) < 0.01


@bits_of
def test_parts_are_slices_of_the_whole(tmp_path, bits):
    """A read from any element on, also across what is summed at a time."""
    *_, path = packed_chain(tmp_path, walk(4, (70_001,)), TAGS[:4], bits)
    whole = tensor_of(path, "w")
    for start, stop in ((0, 1), (1, 2), (31, 33), (77, 577), (5, 70_001), (65_535, 65_600), (9, 9)):
        assert (tensor_of(path, "w", start, stop) == whole[start:stop]).all()


def test_exact_relations_are_foretold():
    """Least squares finds the coefficients of a relation that holds."""
    random = np.random.default_rng(0)
    movements = list(random.standard_normal((4, 1000)))
    wanted = np.tensordot([2.0, -1.0, 0.25, 0.0], movements, 1)
    assert np.allclose(packing.fit(movements, wanted, 0.0), [2.0, -1.0, 0.25, 0.0], atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 1e-14, 1.0, 1e6])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-20, 1.0, 3e38])
def test_singular_movements_give_finite_coefficients(noise, size):
    """Equal ones, none, and others that say nothing; without a warning."""
    one = np.random.default_rng(0).standard_normal(50) * size
    for movements in ([one, one], [one, 0 * one], [one, -one, one], [0 * one], []):
        found = packing.fit(movements, one, noise)
        assert len(found) == len(movements)
        assert np.isfinite(found).all()
        assert np.abs(found).max(initial=0) < 1e6
    assert packing.fit([np.zeros(0)] * 2, np.zeros(0), noise) == (0.0, 0.0)


@bits_of
def test_the_reader_of_the_page(tmp_path, bits):
    """It gives bit for bit what phema gives."""
    (code,) = blocks(PAGE, "python")
    space = {}
    exec(code.text, space)  # noqa: S102 - the page's own
    for number, path in enumerate(
        packed_chain(tmp_path, walk(20, (9, 111)), TAGS[:20], bits, keyframe_every=16)
    ):
        found = space["unpacked"](path)
        assert set(found) == ({"w"} if number % 16 else set())
        for name, values in found.items():
            assert values.tobytes() == tensor_of(path, name).tobytes()


def test_the_entry_of_the_page(tmp_path):
    """It is one that phema understands, and writes with the same fields."""
    (example,) = blocks(PAGE, "json")
    found = packing.parse({packing.KEY: sealed(example.text.strip())}, tmp_path)
    assert [f.coefficient for f in found.follows] == [1.25, -0.25]
    assert json.loads(found.text().rpartition(" ")[0]) == json.loads(example.text)
    assert packing.parse({packing.KEY: found.text()}, tmp_path) == found
    assert f"`{packing.Packing().text().rpartition(' ')[0]}`" in PAGE.read_text()


@pytest.mark.parametrize("bit", [0, 3, 5, 7])
def test_no_flipped_bit_of_the_entry_is_missed(tmp_path, bit):
    """Each byte of the entry, and of its name, as they stand in the header."""
    *_, path = chain(tmp_path)
    data = path.read_bytes()
    start = data.index(f'"{packing.KEY}"'.encode())
    checksum = read(path).metadata[packing.KEY][-8:].encode()
    stop = data.index(checksum, start) + len(checksum)
    for place in range(start, stop):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(InputError):
            read(path)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_chains(tmp_path, case):
    """An error that says what is wrong, in one line and without a warning."""
    change, message = HOSTILE[case]
    files = chain(tmp_path / "in")
    tensor_of(files[-1], "w")
    change(files)
    with pytest.raises(InputError, match=message) as caught:
        tensor_of(files[-1], "w")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("warm", [False, True])
def test_the_longest_chain(tmp_path, warm):
    """It is read, whether or not the files before it were; one more is refused."""
    files = crafted(tmp_path, packing.LONGEST_CHAIN + 1, 1.0)
    for path in files[:-2] if warm else []:
        read(path)
    assert (tensor_of(files[-2], "w") == 1 + packing.LONGEST_CHAIN).all()
    with pytest.raises(InputError, match="follows too many others"):
        read(files[-1])


def test_files_that_are_copied_back_are_read_again(tmp_path):
    """What was known of a chain is forgotten where a file of it changed."""
    files = chain(tmp_path / "in")
    other = tmp_path / "x.safetensors"
    before = [tensor_of(path, "w") for path in files]
    shutil.move(files[1], other)
    with pytest.raises(InputError, match="is missing"):
        read(files[-1])
    shutil.copy(other, files[1])
    shutil.copy(shutil.move(files[0], other), files[0])
    chains._KNOWN.popitem()  # noqa: SLF001 - as if room was made
    for path, values in zip(reversed(files), reversed(before), strict=True):
        assert (tensor_of(path, "w") == values).all()


def test_links_within_one_directory_are_followed(tmp_path):
    """As caches have them: each file is a link into a directory of all."""
    files = chain(tmp_path / "blobs")
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in files:
        (cache / path.name).symlink_to(path)
    assert (tensor_of(cache / files[-1].name, "w") == tensor_of(files[-1], "w")).all()


def test_a_link_in_a_circle(tmp_path):
    """It is no file."""
    files = chain(tmp_path)
    files[3].unlink()
    files[3].symlink_to(files[3].name)
    with pytest.raises(InputError, match="is missing"):
        read(files[-1])


def test_sums_beyond_float32_are_infinite(tmp_path):
    """Without a warning; whoever averages them counts them."""
    files = crafted(tmp_path, 2, 1e9)
    for path in files[1:]:
        path.write_bytes(path.read_bytes()[:-2] + b"\x7f\x7f")
    assert np.isfinite(tensor_of(files[1], "w")).all()
    assert np.isinf(tensor_of(files[2], "w")).all()
