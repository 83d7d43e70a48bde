"""Philox against the vectors that its authors publish, and what the attacks rely on."""

import math

import pytest
import torch

from fastadv.ops import philox

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [  # Random123, kat_vectors, philox4x32: rounds, counter, key, words
    (10, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    (7, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (ONES,) * 4, (ONES, ONES), (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, PI, (0xA4093822, 0x299F31D0), (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
]
IDS = torch.tensor([0, 1, 5, 2**62 + 3])


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), KNOWN)
def test_known_answers(rounds, counter, key, expected):
    made = philox.block(tuple(torch.tensor([c]) for c in counter), key, rounds)
    assert tuple(int(word) for word in made) == expected


@pytest.mark.parametrize("known", [KNOWN[0], KNOWN[3]], ids=lambda known: str(known[0]))
def test_the_published_vector_through_the_public_words(known):
    # Counter (element // 4, layer * 2**20 + tick, id_lo, id_hi) and key (seed_lo, seed_hi): 0 is 0.
    words = philox.words(0, torch.tensor([0]), 0, 0, 4, rounds=known[0])
    assert words.tolist() == [list(known[3])]


def test_ten_rounds_unless_seven_are_asked_for():
    assert torch.equal(philox.words(3, IDS, 4, 1, 9), philox.words(3, IDS, 4, 1, 9, rounds=10))
    with pytest.raises(ValueError, match="rounds: expected 7 or 10, got 8"):
        philox.words(3, IDS, 4, 1, 9, rounds=8)


def test_the_counter_is_laid_out_as_documented():
    ident = 0x0370734413198A2E
    expected = philox.block(tuple(torch.tensor([c]) for c in (7, 3 * 2**20 + 9, 0x13198A2E, 0x03707344)), (5, 6))
    words = philox.words(5 + (6 << 32), torch.tensor([ident]), 9, 3, 32)
    assert words[0, 28:].tolist() == [int(word) for word in expected]


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (3, 17, 19), (3, 112, 112), (0,), (2, 0)])
def test_the_compiled_form_gives_the_same_bits(shape):
    for seed in (0, 2**64 - 1, 12345678901234567890):
        native = philox.uniform(seed, IDS, 3, 2, shape, backend="cpu")
        assert native.shape == (4, *shape)
        assert torch.equal(native, philox.uniform(seed, IDS, 3, 2, shape, backend="reference"))


def test_uniform_is_the_upper_24_bits():
    values = philox.uniform(9, IDS, 1, 0, (6,))
    assert torch.equal(values, (philox.words(9, IDS, 1, 0, 6) >> 8).double().mul(2.0**-24).float())


def test_an_image_draws_the_same_numbers_with_any_neighbours():
    together = philox.uniform(3, IDS, 4, 1, (3, 8, 8))
    for slot in range(4):
        alone = philox.uniform(3, IDS[slot : slot + 1], 4, 1, (3, 8, 8))
        assert torch.equal(together[slot : slot + 1], alone)


def test_a_tick_for_each_image():
    ticks = torch.tensor([0, 7, 7, 2**20 - 1])
    for backend in ("cpu", "reference"):
        together = philox.uniform(3, IDS, ticks, 5, (9,), backend=backend)
        for slot in range(4):
            assert torch.equal(together[slot], philox.uniform(3, IDS, int(ticks[slot]), 5, (9,))[slot])


@pytest.mark.parametrize("change", [{"seed": 4}, {"tick": 5}, {"layer": 2}, {"ids": IDS + 1}])
def test_every_part_of_the_key_matters(change):
    base = {"seed": 3, "ids": IDS, "tick": 4, "layer": 1, "shape": (64,)}
    assert not torch.equal(philox.uniform(**base), philox.uniform(**{**base, **change}))


def test_moments():
    ids = torch.arange(8)
    u = philox.uniform(1, ids, 0, 0, (3, 64, 64)).double()
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    deviation = 5 / math.sqrt(u.numel())
    assert abs(float(u.mean()) - 0.5) < deviation
    z = philox.normal(1, ids, 0, 0, (3, 64, 64)).double()
    assert z.shape == (8, 3, 64, 64)
    assert abs(float(z.mean())) < deviation
    assert abs(float(z.var()) - 1.0) < 2 * deviation


def test_normal_is_box_muller_of_the_words():
    for size in (1, 2, 5):
        words = philox.words(2, IDS, 0, 0, 6) >> 8
        z = philox.normal(2, IDS, 0, 0, (size,))
        for e in range(size):
            u = (words[:, 2 * (e // 2)] + 1).double() / 2**24
            v = words[:, 2 * (e // 2) + 1].double() / 2**24
            turn = torch.cos(2 * math.pi * v) if e % 2 == 0 else torch.sin(2 * math.pi * v)
            assert torch.allclose(z[:, e].double(), (-2 * u.log()).sqrt() * turn, rtol=1e-6, atol=1e-7)
    assert philox.normal(2, IDS, 0, 0, (0,)).shape == (4, 0)


def test_compiled_graphs_draw_the_same():
    drawn = torch.compile(lambda ids: philox.uniform(3, ids, 1, 0, (3, 5)), backend="eager", fullgraph=True)
    assert torch.equal(drawn(IDS), philox.uniform(3, IDS, 1, 0, (3, 5)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, IDS, 0, 0, (1,)), ValueError, "seed: expected .*, got -1"),
        ((2**64, IDS, 0, 0, (1,)), ValueError, "seed: expected .*, got 18446744073709551616"),
        ((0, IDS.int(), 0, 0, (1,)), TypeError, "ids: expected .*, got torch.int32"),
        ((0, [1], 0, 0, (1,)), TypeError, "ids: expected .*, got list"),
        ((0, IDS[None], 0, 0, (1,)), TypeError, "ids: expected .*, got torch.int64"),
        ((0, IDS, -1, 0, (1,)), ValueError, "tick: expected .*, got -1"),
        ((0, IDS, 2**20, 0, (1,)), ValueError, "tick: expected .*, got 1048576"),
        ((0, IDS, IDS[:2], 0, (1,)), TypeError, "tick: expected .*, got torch.int64"),
        ((0, IDS, 0, 4096, (1,)), ValueError, "layer: expected .*, got 4096"),
        ((0, IDS, 0, 0, (2**35,)), ValueError, "at most"),
    ],
)
def test_errors(arguments, error, message):
    for function in (philox.uniform, philox.normal):
        with pytest.raises(error, match=message):
            function(*arguments)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend: expected .*, got 'fast'"):
        philox.uniform(0, IDS, 0, 0, (1,), backend="fast")


@pytest.mark.gpu
def test_the_gpu_draws_the_same():
    for shape in ((3, 17, 19), (1,)):
        here = philox.uniform(77, IDS, 3, 2, shape)
        there = philox.uniform(77, IDS.cuda(), 3, 2, shape)
        assert torch.equal(there.cpu(), here)
        z = philox.normal(77, IDS.cuda(), 3, 2, shape).cpu()
        assert torch.allclose(z, philox.normal(77, IDS, 3, 2, shape), rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_uniform_numbers_of_a_gpu_are_two_launches():
    ids, ticks, seed = IDS.cuda(), torch.tensor([0, 7, 7, 2**20 - 1]).cuda(), torch.tensor(3).cuda()

    def draw():
        return philox.uniform(seed, ids, ticks, 2, (3, 5, 7))

    assert torch.equal(draw().cpu(), philox.uniform(3, IDS, ticks.cpu(), 2, (3, 5, 7)))
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as trace:
        draw()
        torch.cuda.synchronize()
    assert sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events()) == 2
