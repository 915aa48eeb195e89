"""Averages of tiles: the bits of one chain, whatever sums them, and care where values are odd."""

import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phema_cli.errors import StorageError
from phema_cli.formats.base import DTYPES
from phema_cli.synthesis.averaging import Averager
from phema_cli.synthesis.memory import buffers, tile_elements
from phema_cli.synthesis.sums import _bag, add_blocks_up, add_up, is_chain
from phema_cli.synthesis.tensors import Kind
from phema_cli.system.pools import forked, threaded

F16, BF16, F32, F64 = (DTYPES[n] for n in ("F16", "BF16", "F32", "F64"))


def weights_of(sources, targets, seed=0):
    """Weights of both signs that sum to 1."""
    weights = np.random.default_rng(seed).uniform(-1, 1, (sources, targets))
    return weights + (1 - weights.sum(axis=0)) / sources


def averages(kind, weights, values, width):
    """What a tile gives, target by target, in pieces of at most ``width`` elements."""
    types = [getattr(torch, d.label) for d in kind.stored or [kind.dtype] * len(values)]
    owner = Averager([kind], weights, np.ones(weights.shape[1]), width)
    made = [[] for _ in range(weights.shape[1])]
    for start in range(0, values.shape[1], width):
        part = values[:, start : start + width]
        for row, source, dtype in zip(owner.rows(kind, part.shape[1]), part, types, strict=True):
            row[:] = source.to(dtype).contiguous().view(torch.uint8).numpy().data
        for k, data in enumerate(owner.averages(kind, part.shape[1])):
            made[k].append(bytes(data))
    out = getattr(torch, kind.out.label)
    return torch.stack([torch.frombuffer(bytearray(b"".join(m)), dtype=out) for m in made])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("targets", [1, 3, 4, 8, 31])
@pytest.mark.parametrize("rows", [1, 7, 32])
@pytest.mark.parametrize("count", [3, 1999])
def test_sums_are_the_chain_bit_for_bit(count, rows, targets, dtype):
    """Whatever function is chosen gives the bits of adding one row after the other."""
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((max(targets, 4), rows))).to(dtype)
    values = torch.from_numpy(random.standard_normal((rows, 2048))).to(dtype)
    out = torch.full((max(targets, 4), 2048), math.nan, dtype=dtype)
    add_up(weights, targets, values, count, out)
    for k in range(targets):
        chain = torch.zeros(count, dtype=dtype)
        for row, weight in zip(values, weights[k].tolist(), strict=True):
            chain.add_(row[:count], alpha=weight)
        assert torch.equal(out[k, :count], chain)


@pytest.mark.parametrize("targets", [1, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 7, 32])
def test_sums_of_blocks_are_the_chain_bit_for_bit(rows, targets):
    """Also where each block of a row has a weight of its own, and rows lie apart."""
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((50, max(targets, 4), rows))).float()
    values = torch.from_numpy(random.standard_normal((rows, 2048))).float()[:, :1600]
    sums = add_blocks_up(weights, targets, values, torch.empty(max(targets, 4), 1600))
    for k in range(targets):
        chain = torch.zeros(50, 32)
        for row, own in zip(values, weights[:, k].T, strict=True):
            chain.addcmul_(row.view(50, 32), own[:, None])
        assert torch.equal(sums[k], chain)


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_a_bag_has_the_right_rows(rows):
    """To rounding on any machine: with others it would never be used, which shows in no bytes."""
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((3, rows)))
    values = torch.from_numpy(random.standard_normal((rows, 2048)))[:, :1024]
    made = _bag(weights, values, 4, 256).transpose(0, 1).reshape(3, 1024)
    torch.testing.assert_close(made, weights @ values)


@pytest.mark.parametrize(
    ("targets", "holder", "name"),
    [(4, torch, "mm"), (1, torch.nn.functional, "embedding_bag")],
)
def test_a_faster_sum_with_other_bits_is_not_used(targets, holder, name, monkeypatch):
    """Where a function sums in another order the chain itself is taken."""
    real = getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *a, **k: real(*a, **k).mul(1 + 1e-6))
    is_chain.cache_clear()
    try:
        weights = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 5))).float()
        out = torch.empty(4, 512)
        add_up(weights, targets, torch.ones(5, 512), 512, out)
    finally:
        is_chain.cache_clear()
    expected = torch.zeros(4)
    for column in weights.T:
        expected += column
    assert torch.equal(out[:targets, 0], expected[:targets])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(
        [
            *(Kind(d, d) for d in (F16, BF16, F32)),
            *(Kind(F16, F32), Kind(F32, BF16), Kind(F64, F32)),
            Kind(F32, F16, (F16, BF16) * 35),
        ]
    ),
    sources=st.integers(1, 70),
    width=st.sampled_from([256, 512, 1280]),
)
def test_a_target_has_the_same_bits_alone_and_among_others(kind, sources, width):
    """Neither the other targets nor their sources nor the size of tiles show in any."""
    kind = replace(kind, stored=kind.stored[:sources])
    weights = weights_of(sources, 10)
    # One large, one that is a source, some of a few sources each.
    weights[:, 2] *= 3e4
    weights[:, 3] = np.eye(sources)[sources // 2]
    weights[1:, 4] = weights[sources // 2 :, 5] = weights[: sources // 2, 6] = 0.0
    weights = weights[:, np.abs(weights).sum(axis=0) > 0]
    values = torch.randn(sources, 1500, generator=torch.Generator().manual_seed(0))
    values[:, ::9] = -0.0
    together = averages(kind, weights, values, 1536)
    for k in range(weights.shape[1]):
        used = weights[:, k].nonzero()[0]
        own = replace(kind, stored=tuple(kind.stored[i] for i in used) if kind.stored else ())
        own = own.of(range(len(used)))
        alone = averages(own, weights[used][:, [k]], values[used], width)
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize("targets", [1, 8, 9])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_direct_sums_are_as_good_as_float64_rounded(dtype, targets):
    """Values of 16 bits: few in a hundred are not the nearest to the sum in float64, by little."""
    weights = weights_of(40, targets)
    kind = Kind(dtype, dtype)
    assert all(kind.is_direct(column) for column in weights.T)
    values = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    values = values.to(getattr(torch, dtype.label))
    made = averages(kind, weights, values, 2048)
    exact = torch.from_numpy(weights.T) @ values.double()
    assert (made != exact.to(made.dtype)).float().mean() < 0.02
    unit = 2.0 ** (torch.frexp(exact).exponent - 1 - dtype.mantissa_bits)
    lost = torch.from_numpy(np.abs(weights).T) @ values.double().abs() * 2.0**-17
    assert bool(((made.double() - exact).abs() <= 0.5 * unit + lost).all())


@pytest.mark.parametrize("sources", [32, 33, 64, 65, 100])
def test_every_group_of_sources_counts(sources):
    """Values of 32 bits are summed some sources at a time; none of the groups is lost."""
    weights = weights_of(sources, 3)
    values = torch.randn(sources, 1000, generator=torch.Generator().manual_seed(0))
    made = averages(Kind(F32, F32), weights, values, 1024)
    exact = torch.from_numpy(weights.T) @ values.double()
    torch.testing.assert_close(made.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("targets", [1, 9])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_every_number_that_all_sources_share_comes_out(dtype, targets):
    """All 65,536 patterns of 16 bits but those of NaN, among them zeros of both signs."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    shared = bits.view(torch.float16 if dtype is F16 else torch.bfloat16)
    shared = shared.to(getattr(torch, dtype.label))
    made = averages(Kind(dtype, dtype), weights_of(30, targets), shared.repeat(30, 1), 4096)
    numbers = ~shared.isnan()
    for row in made:
        raw = [x[numbers].contiguous().view(torch.uint8) for x in (row, shared)]
        assert torch.equal(*raw)


@pytest.mark.parametrize("targets", [1, 3, 9])
def test_kinds_of_several_widths_share_buffers(targets):
    """Tiles of float32 beside others, in the same memory."""
    kinds = [Kind(F32, F32), Kind(F16, BF16)]
    weights = weights_of(5, targets)
    owner = Averager(kinds, weights, np.ones(targets), 154_112)
    values = torch.randn(5, 154_112, generator=torch.Generator().manual_seed(0))
    for kind in kinds:
        stored = values.to(getattr(torch, kind.dtype.label))
        for row, source in zip(owner.rows(kind, 154_112), stored, strict=True):
            row[:] = source.view(torch.uint8).numpy().data
        exact = torch.from_numpy(weights.T) @ stored.double()
        for data, expected in zip(owner.averages(kind, 154_112), exact, strict=True):
            out = getattr(torch, kind.out.label)
            made = torch.frombuffer(bytearray(data), dtype=out)
            torch.testing.assert_close(made, expected.to(out))


@pytest.mark.parametrize("targets", [1, 3, 9])
def test_what_is_odd_stays_where_it_is(targets):
    """Infinities and NaN in some elements change no other element, whatever the tile."""
    kind, weights = Kind(F16, F16), weights_of(6, targets)
    values = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0)).half()
    plain = averages(kind, weights, values, 3072)
    values[:, 100] = math.inf
    values[:, 200] = -math.inf
    values[2, 300] = math.inf
    values[3, 400] = math.nan
    for width in (256, 3072):
        made = averages(kind, weights, values, width)
        assert bool((made[:, 100] == math.inf).all())
        assert bool((made[:, 200] == -math.inf).all())
        assert not made[:, 300].isfinite().any()
        assert bool(made[:, 400].isnan().all())
        rest = [i for i in range(3000) if i not in {100, 200, 300, 400}]
        assert torch.equal(made[:, rest], plain[:, rest])


@pytest.mark.parametrize("sources", [3, 40, 300])
@pytest.mark.parametrize("kind", [Kind(F16, F16), Kind(F32, F32), Kind(F16, F64)])
def test_a_target_that_is_a_source_is_copied_beside_others(kind, sources):
    """Weight 1 on one source gives its bits, also -0.0, among targets that are sums."""
    weights = np.column_stack([np.eye(sources)[sources - 2], weights_of(sources, 1)])
    values = torch.randn(sources, 700, generator=torch.Generator().manual_seed(0))
    values[:, ::7] = -0.0
    values = values.to(getattr(torch, kind.dtype.label))
    made = averages(kind, weights, values, 512)
    expected = values[sources - 2].to(made.dtype)
    assert torch.equal(made[0].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize(
    ("weights", "direct"),
    [([0.5, 0.5], True), ([60.0, -59.0], True), ([9000.0, -8999.0], False)],
)
def test_large_weights_are_not_summed_directly(weights, direct):
    """Where errors of the sum could move a shared number, sums are differences."""
    assert Kind(F16, F16).is_direct(np.array(weights)) is direct
    assert not Kind(F16, F32).is_direct(np.array(weights))
    assert not Kind(F32, F32).is_direct(np.array(weights))


@pytest.mark.parametrize("targets", [1, 9])
@pytest.mark.parametrize("kind", [Kind(F16, F16), Kind(F32, F32), Kind(F64, F16)])
def test_the_buffers_that_are_planned_are_those_that_are_made(kind, targets):
    """A worker's tensors take no more than the plan says, and not much less."""
    weights = weights_of(50, targets)
    owner = Averager([kind], weights, np.ones(targets), 1 << 16)
    tensors = [t for t in vars(owner).values() if isinstance(t, torch.Tensor)]
    made = sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
    planned = buffers([kind], 50, targets, 1 << 16).size_bytes
    assert planned / 3 < made <= planned


@pytest.mark.parametrize("memory", [1 << 20, 256 << 20, 4 << 30])
def test_tiles_are_the_largest_that_memory_allows(memory):
    """Half of the memory is kept to, and no wider tile would."""
    kinds = [Kind(F16, F16), Kind(F32, F32)]
    tile, size = tile_elements(kinds, 16, 1, 2, memory)
    assert tile % 256 == 0
    assert size <= memory // 2
    wider = 2 * buffers(kinds, 16, 1, tile + 256).size_bytes
    assert wider > memory // 2 or tile == (5 << 20) // (16 * 4 + 4) // 256 * 256


@pytest.mark.parametrize("run", [threaded, forked])
def test_pools_hand_out_each_number_once(run):
    """Workers share the numbers, and every report is counted."""
    reported = []

    def work(pool):
        taken = []
        for number in iter(pool.take, 50):
            taken.append(number)
            pool.report(number)
        return taken

    found = run(work, 50, 3, reported.append, lambda _: None)
    assert sorted(itertools.chain(*found)) == list(range(50))
    assert sum(reported) == sum(range(50))


@pytest.mark.parametrize("run", [threaded, forked])
def test_one_failure_stops_a_pool(run):
    """The error that a worker raised arrives whole, and the others take no more."""
    seen = []

    def work(pool):
        while not pool.stopped():
            if pool.take() == 3:
                raise StorageError("no", where="here", remedy="try")
        return []

    with pytest.raises(StorageError, match="here: no; try"):
        run(work, 10**6, 2, seen.append, lambda _: None)


def test_a_worker_that_is_killed_is_an_error():
    """A forked worker that the system ends, as it does when memory runs out, is said so."""

    def work(pool):
        if pool.take() == 0:
            os._exit(9)
        return []

    with pytest.raises(StorageError, match=r"was killed.*memory"):
        forked(work, 2, 2, lambda _: None, lambda _: None)
