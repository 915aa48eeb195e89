"""Parsers under bytes that nobody wrote: each ends in a result or in an error of phema's."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phema_cli.errors import PhemaError
from phema_cli.formats.base import DTYPES
from tests.hostile_pickles import get, plain, put, text
from tests.parsers import check, parsers

# torch warns that it was asked for what it was asked for (no_dist).
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
NAMES = (
    *("safetensors", "index", "packed", "packing", "torch", "torch-pickle", "edm2"),
    *("dcp-metadata", "dcp-chunk", "toml", "toml-run", "csv"),
    *("template", "law", "globs", "provenance", "diffusers", "weights", "profile"),
)
#: the same examples in every run.
quick = settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_all_parsers():
    """No parser is left out, and each reads the files that it begins with."""
    assert set(NAMES) == set(parsers())
    for name, parser in parsers().items():
        for seed in parser.seeds:
            assert not isinstance(check(name, seed), PhemaError), name


@st.composite
def mutated(draw, seeds):
    """A file with bytes changed, cut out, put in or repeated, a few times over."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        put_in = draw(
            st.binary(max_size=8)
            | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", data[at : at + 64]])
        )
        data = data[:at] + put_in + data[at + length :]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_mutated_files(name):
    """A valid file with bytes changed anywhere is read within its bounds or refused."""

    @quick
    @given(mutated(parsers()[name].seeds))
    def run(data):
        check(name, data, memory=len(data) % 8 == 0)

    run()


numbers = st.integers(-2, 8) | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**70, True, 0.5, None])
shapes = st.lists(numbers, max_size=4) | numbers
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPES, "F31", 5, None]),
        "shape": shapes,
        "data_offsets": st.lists(numbers, max_size=3),
    },
)
values = st.recursive(entries | numbers | st.text(max_size=3), lambda v: st.lists(v, max_size=3))
headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", "\ud800"]),
    values | st.dictionaries(st.sampled_from(["a", "format"]), values, max_size=2),
    max_size=3,
)


@pytest.mark.slow
@quick
@given(headers, st.binary(max_size=16))
def test_headers(header, data):
    """A header of the right parts in wrong places is read within its bounds or refused."""
    raw = json.dumps(header).encode()
    check("safetensors", len(raw).to_bytes(8, "little") + raw + data, memory=False)


shards = st.sampled_from(["x.safetensors", "../x.safetensors", "/x.safetensors", "", "\0", "y"])


@pytest.mark.slow
@quick
@given(st.dictionaries(st.sampled_from(["w", "v", "u"]), shards | values, max_size=3) | values)
def test_indexes(weight_map):
    """An index of the right parts in wrong places gives tensors of the shard beside it, or none."""
    found = check("index", json.dumps({"weight_map": weight_map}).encode(), memory=False)
    if not isinstance(found, PhemaError):
        assert {e.file.name for e in found.tensors.values()} <= {"x.safetensors"}


pieces = st.sampled_from(
    [
        *(b"}", b"]", b")", b"(", b"N", b"0", b"2", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d"),
        *(b"s", b"u", b"a", b"e", b"R", b"\x81", b"b", b"Q", b"\x8f", b"\x90", b"\x91", b"\x94"),
        *(b"K\x00", b"K\x02", b"\x88", b"J\xff\xff\xff\xff", b"\x8a\x01\x05", b"o"),
        *(put(0), put(1), get(0), get(1), text("storage"), text("w"), text("0"), text("cpu")),
        *(text("_parameters"), text("_modules"), text("state"), b"B\x02\0\0\0ab"),
        plain("torch", "FloatStorage"),
        plain("torch", "Size"),
        plain("torch._utils", "_rebuild_tensor_v2"),
        plain("torch.storage", "_load_from_bytes"),
        plain("torch.nn.modules.module", "Module"),
        plain("torch_utils.persistence", "_reconstruct_persistent_obj"),
        plain("torch.distributed.checkpoint.metadata", "Metadata"),
        plain("collections", "OrderedDict"),
        plain("argparse", "Namespace"),
        plain("some.library", "Thing"),
        plain("copyreg", "_reconstructor"),
        plain("numpy._core.multiarray", "scalar"),
        plain("builtins", "dict"),
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch-pickle", "edm2", "dcp-metadata"])
def test_pickles_of_any_opcodes(name):
    """Opcodes in any order are read or refused, by the one machine for all three formats."""

    @quick
    @given(st.lists(pieces, max_size=40))
    def run(parts):
        check(name, b"\x80\x04" + b"".join(parts) + b".", memory=False)

    run()
