"""Overlapping memory, and tensors of other forms: sparse, nested, without memory, negated, requiring grad."""

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastadv import ops
from fastadv.testing.tolerances import assert_same_bits

SHAPE = (2, 3, 4, 5)
SIZE = 120
IDS = torch.arange(2)
KEY = {"seed": 3, "ids": IDS, "tick": 1}


def batch(value=0.5, shape=SHAPE):
    return torch.full(shape, value)


def sign(**change):
    return ops.sign_step_(**{"x": batch(), "grad": batch(), "origin": batch(), "alpha": 0.1, "eps": 0.2, **change})


def momentum(**change):
    given = {"x": batch(), "grad": batch(), "origin": batch(), "velocity": batch(), "alpha": 0.1, "eps": 0.2, "mu": 1.0}
    return ops.momentum_step_(**{**given, **change})


def noise(**change):
    return ops.add_noise_(**{"x": batch(), "scale": 0.1, **KEY, **change})


def shared(step, first, second, distance, dtype=torch.float32, shape=SHAPE):
    """Two arguments in one piece of memory, ``distance`` bytes apart, in either order."""
    memory = torch.zeros(4096, dtype=torch.uint8)
    count = 4 * SIZE
    size = dtype.itemsize * int(np.prod(shape))
    if distance == "before":
        distance = dtype.itemsize - size
    x = memory[1024 : 1024 + count].view(torch.float32).view(SHAPE)
    other = memory[1024 + distance : 1024 + distance + size].view(dtype).view(shape)
    return step(**{first: x, second: other})


@pytest.mark.parametrize("distance", [0, 16, 4 * SIZE - 8, "before"])
@pytest.mark.parametrize(
    ("step", "first", "second", "options"),
    [
        (sign, "x", "grad", {}),
        (sign, "x", "origin", {}),
        (sign, "x", "alpha", {"shape": (2,)}),
        (sign, "x", "eps", {"shape": (2,)}),
        (sign, "x", "active", {"dtype": torch.bool, "shape": (2,)}),
        (sign, "x", "stats", {"dtype": torch.int64, "shape": (2, 2)}),
        (momentum, "x", "velocity", {}),
        (momentum, "velocity", "grad", {}),
        (momentum, "velocity", "origin", {}),
        (momentum, "velocity", "stats", {"dtype": torch.int64, "shape": (2, 2)}),
        (momentum, "velocity", "workspace", {"dtype": torch.float64, "shape": (4,)}),
        (momentum, "x", "alpha", {"shape": (2,)}),
        (noise, "x", "origin", {}),
        (noise, "x", "scale", {"shape": (2,)}),
        (noise, "x", "ids", {"dtype": torch.int64, "shape": (2,)}),
        (noise, "x", "seed", {"dtype": torch.int64, "shape": (1,)}),
        (noise, "x", "tick", {"dtype": torch.int64, "shape": (2,)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_written_tensor_overlaps_no_other(step, first, second, distance, options):
    with pytest.raises(
        ValueError, match=rf"({first}, {second}|{second}, {first}): expected separate tensors, got shared memory"
    ):
        shared(step, first, second, distance, **options)


def test_neighbours_in_one_piece_of_memory_are_apart(backend):
    for distance in (4 * SIZE, -4 * SIZE):
        shared(lambda **both: sign(**both, backend=backend), "x", "grad", distance)
        shared(lambda **both: momentum(**both, backend=backend), "x", "velocity", distance)
    pair = torch.zeros(2, *SHAPE)
    noise(x=pair[0], origin=pair[1], backend=backend)


def test_what_is_only_read_may_overlap(backend):
    memory = torch.rand(SIZE + 7)
    grad, origin = memory[:SIZE].view(SHAPE), memory[7:].view(SHAPE)
    made, expected = (
        sign(grad=g, origin=o, backend=backend) for g, o in ((grad, origin), (grad.clone(), origin.clone()))
    )
    assert_same_bits(made, expected)


@pytest.mark.parametrize("step", [sign, momentum])
def test_strided_arguments_count_from_the_first_to_the_last_byte(step):
    wide = torch.zeros(2, 3, 4, 10)
    with pytest.raises(ValueError, match="x, grad: expected separate tensors, got shared memory; clone one"):
        step(x=wide.view(-1)[40 : 40 + SIZE].view(SHAPE), grad=wide[..., 1::2])
    row = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ValueError, match="x, origin: expected separate tensors, got shared memory; clone one"):
        step(
            **{name: value[:1] for name, value in {"x": row, "grad": batch()}.items()},
            **alone(step),
            origin=row[:, :1].expand(1, 3, 4, 5),
        )
    step(x=torch.zeros(SHAPE), grad=wide[..., ::2], origin=wide[..., 1::2])


def alone(step):
    return {"velocity": torch.zeros(1, 3, 4, 5)} if step is momentum else {}


def test_a_written_tensor_does_not_overlap_itself():
    with pytest.raises(
        ValueError, match=r"x: expected a dense batch, one image after the other \(contiguous or channels-last\), sinc"
    ):
        sign(x=torch.zeros(1, 3, 4, 5).expand(SHAPE))
    with pytest.raises(
        ValueError, match=r"x: expected a dense batch, one image after the other \(contiguous or channels-last\), sinc"
    ):
        noise(x=torch.zeros(SIZE).as_strided(SHAPE, (30, 20, 5, 1)))
    with pytest.raises(ValueError, match=r"velocity: expected strides \(60, 20, 5, 1\), the layout of x, since it is"):
        momentum(velocity=torch.zeros(2, 3, 4, 1).expand(SHAPE))
    with pytest.raises(ValueError, match="stats: expected .*, got strides"):
        sign(stats=torch.zeros(1, 2, dtype=torch.int64).expand(2, 2))
    with pytest.raises(ValueError, match="workspace: expected .*, got strides"):
        momentum(workspace=torch.zeros(1, dtype=torch.float64).expand(4))


def test_arrays_that_overlap():
    memory = np.zeros(SIZE + 3, np.float32)
    x, grad = memory[:SIZE].reshape(SHAPE), memory[3:].reshape(SHAPE)
    with pytest.raises(ValueError, match="x, grad: expected separate tensors, got shared memory; clone one"):
        sign(x=x, grad=grad, origin=np.zeros(SHAPE, np.float32))
    with pytest.raises(ValueError, match="x, velocity: expected separate tensors, got shared memory"):
        momentum(x=x, velocity=grad, grad=np.zeros(SHAPE, np.float32), origin=np.zeros(SHAPE, np.float32))


def test_empty_tensors_overlap_nothing():
    x = torch.zeros(0, 3, 4, 5)
    ops.sign_step_(x, x, x, alpha=0.1, eps=0.1)


def sparse(value):
    return value.to_sparse()


def nested(value):
    return torch.nested.nested_tensor(list(value))


def mkldnn(value):
    return value.to_mkldnn()


def dropout(x, **change):
    return ops.PreparedDropout(rate=0.3, layer=0)(x, **{**KEY, **change})


def fused(x=None, **change):
    given = {"scale": torch.ones(3), "shift": torch.ones(3), "slope": torch.ones(3), **change}
    return ops.feature_dropout_bn_prelu(batch() if x is None else x, rate=0.3, layer=0, **KEY, **given)


def fixed(**change):
    given = {"scale": torch.ones(3), "shift": torch.ones(3), "slope": torch.ones(3), **change}
    return ops.PreparedDropout(rate=0.3, layer=0, **given)


def prepared_score(centroids=None, mean=None):
    return ops.PreparedScore(
        centroids=[batch(0.25, (4, 3)) if centroids is None else centroids],
        metric="l2",
        mean=batch(0.0, (1, 4)) if mean is None else mean,
        scale=batch(1.0, (1, 4)),
        hidden=None,
        last=torch.nn.Linear(4, 1),
    )


def score(maps, images=None):
    with torch.no_grad():
        return prepared_score()([maps], batch() if images is None else images)


def distances(features=None, centroids=None):
    return ops.centroid_distances(
        [batch(0.5, (2, 3)) if features is None else features],
        [batch(0.25, (4, 3)) if centroids is None else centroids],
    )


LABELS = torch.zeros(2, 3, dtype=torch.int64)

#: Every argument that is a map, a batch or rows, and how it is called in an error.
GIVEN = {
    "x": [lambda v: sign(x=v), lambda v: momentum(x=v), lambda v: noise(x=v), ops.box_blur, dropout, fused],
    "grad": [lambda v: sign(grad=v), lambda v: momentum(grad=v)],
    "origin": [lambda v: sign(origin=v), lambda v: momentum(origin=v), lambda v: noise(origin=v)],
    "velocity": [lambda v: momentum(velocity=v)],
    "maps": [
        lambda v: ops.average_pool([v]),
        lambda v: ops.pooled_centroid_distances([v], [batch(shape=(4, 3))]),
        lambda v: ops.pooled_relative_distances([v], [batch(shape=(4, 3))]),
        score,
    ],
    "images": [lambda v: score(batch(), v)],
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # nested tensors are a prototype
@pytest.mark.parametrize("form", [sparse, nested, mkldnn])
@pytest.mark.parametrize("name", GIVEN)
def test_other_forms_are_one_sentence(name, form):
    for call in GIVEN[name]:
        with pytest.raises(
            TypeError, match=rf"{name}(\[0\])?: expected an ordinary tensor of layout torch.strided, got"
        ) as e:
            call(form(batch()))
        assert "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", [sparse, nested])
def test_other_forms_of_rows_and_keys(form):
    rows, ids = form(batch(shape=(2, 3))), form(torch.zeros(2, 1, dtype=torch.int64))
    calls = [
        lambda: distances(features=rows),
        lambda: distances(centroids=rows),
        lambda: ops.relative_distances([batch(0.5, (2, 3))], [batch(0.25, (4, 3))], ids),
        lambda: ops.knn_score(rows, LABELS, LABELS[:, 0]),
        lambda: ops.knn_score(batch(shape=(2, 3)), form(LABELS), LABELS[:, 0]),
        lambda: sign(alpha=rows),
        lambda: momentum(workspace=rows),
        lambda: ops.momentum_workspace(rows),
        lambda: fused(scale=rows),
        lambda: fixed(slope=rows),
        lambda: prepared_score(centroids=rows),
        lambda: noise(ids=ids),
        lambda: noise(tick=ids),
        lambda: dropout(batch(), ids=ids),
        lambda: ops.philox.uniform(1, ids, 0, 0, (3,)),
        lambda: ops.philox.normal(1, ids, 0, 0, (3,)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="expected an ordinary tensor of layout torch.strided, got"):
            call()


def fake(value):
    with FakeTensorMode():
        return torch.empty(value.shape, dtype=value.dtype)


class Wrapped(torch.Tensor):
    """A tensor whose elements only the dispatcher finds."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"asked for {function}")


@pytest.mark.parametrize("form", [fake, Wrapped, torch._to_functional_tensor])
def test_what_passes_the_dispatcher_by_needs_memory(form):
    with pytest.raises(TypeError, match=r"maps\[0\]: expected a tensor with memory of its own, got a"):
        score(form(batch()))
    with pytest.raises(TypeError, match="images: expected a tensor with memory of its own, got a"):
        score(batch(), form(batch()))
    for name in ("scale", "slope"):
        with pytest.raises(TypeError, match=f"{name}: expected a tensor with memory of its own, got a"):
            fixed(**{name: form(torch.ones(3))})


@pytest.mark.parametrize("form", [fake, Wrapped])
def test_the_dispatcher_takes_what_has_no_memory(form):
    # The prepared form hands it on, as the operation does; both fail as PyTorch's own operations would.
    calls = [
        lambda: dropout(form(batch())),
        lambda: dropout(batch(), ids=form(IDS)),
        lambda: ops.philox.uniform(1, form(IDS), 0, 0, (3,)),
        lambda: sign(grad=form(batch())),
    ]
    for call in calls:
        with pytest.raises((AssertionError, RuntimeError), match="FakeTensor|asked for"):
            call()


def test_fake_tensors_among_themselves():
    with FakeTensorMode():
        made = ops.PreparedDropout(rate=0.3, layer=0)(torch.empty(SHAPE), seed=1, ids=torch.empty(2).long(), tick=0)
    assert made.shape == SHAPE
    key = {"seed": 1, "ids": IDS.to("meta"), "tick": 0}
    assert ops.PreparedDropout(rate=0.3, layer=0)(batch().to("meta"), **key).is_meta


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantised_tensor_is_of_another_type():
    quantised = torch.quantize_per_tensor(batch(), 0.1, 0, torch.quint8)
    for calls in GIVEN.values():
        for call in calls:
            with pytest.raises(TypeError, match=r"torch\.quint8"):
                call(quantised)


def negated(value):
    """The imaginary part of a conjugate: the memory holds ``-value``."""
    view = torch.complex(torch.zeros_like(value), -value).conj().imag
    assert view.is_neg()
    return view


READ = {
    "grad": lambda v, b: sign(grad=v, backend=b),
    "origin": lambda v, b: momentum(origin=v, backend=b),
    "noise": lambda v, b: noise(origin=v, backend=b),
    "box_blur": lambda v, b: ops.box_blur(v, backend=b),
    "average_pool": lambda v, b: ops.average_pool([v], backend=b)[0],
    "pooled": lambda v, b: ops.pooled_centroid_distances([v], [batch(0.25, (4, 3))], backend=b),
    "dropout": lambda v, b: ops.feature_dropout(v, rate=0.3, layer=0, **KEY, backend=b),
    "fused": lambda v, b: fused(v, backend=b),
    "prepared": lambda v, b: ops.PreparedDropout(rate=0.3, layer=0, backend=b)(v, **KEY),
    "prepared fused": lambda v, b: fixed(backend=b)(v, **KEY),
    "relative": lambda v, b: ops.relative_distances([v.flatten(1)], [batch(0.25, (4, 60))], backend=b),
    "features": lambda v, b: ops.centroid_distances([v.flatten(1)], [batch(0.25, (4, 60))], backend=b),
    "scale": lambda v, b: fixed(scale=v[0, :, 0, 0], backend=b)(batch(), **KEY),
    "slope": lambda v, b: fused(slope=v[0, :, 0, 0], backend=b),
}


@pytest.mark.parametrize("name", READ)
def test_a_view_that_negates_is_read_as_it_is(name, backend):
    value = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) + 0.1
    assert_same_bits(READ[name](negated(value), backend), READ[name](value, backend))


def test_a_prepared_score_of_views_that_negate():
    value = torch.rand(SHAPE)
    with torch.no_grad():
        held = prepared_score()
        other = ops.PreparedScore(
            centroids=[negated(batch(0.25, (4, 3)))],
            metric="l2",
            mean=negated(batch(0.0, (1, 4))),
            scale=negated(batch(1.0, (1, 4))),
            hidden=None,
            last=torch.nn.Linear(4, 1),
        )
        expected = held([value], value)
        for maps, images in ((value, value), (negated(value), value), (value, negated(value))):
            assert_same_bits(held([maps], images), expected)
        assert_same_bits(held.pool(negated(value)), held.pool(value))
        assert other([value], value).isfinite().all()


def test_a_gradient_that_negates():
    made = []
    for form in (negated, torch.clone):
        x = batch().requires_grad_(True)
        dropout(x).backward(form(torch.ones(SHAPE)))
        made.append(x.grad)
    assert_same_bits(*made)


def test_a_view_that_negates_is_not_written(backend):
    for name, call in (("x", sign), ("x", noise), ("velocity", momentum)):
        with pytest.raises(ValueError, match=f"{name}: expected a tensor to write into, got a view that negates"):
            call(**{name: negated(batch())}, backend=backend)


def test_what_a_written_tensor_is_made_of_must_not_require_grad(backend):
    leaf = batch().requires_grad_(True)
    each = torch.full((2,), 0.1, requires_grad=True)
    calls = [(sign, "grad", leaf), (sign, "alpha", each), (momentum, "origin", leaf), (momentum, "eps", each)]
    for call, name, value in [*calls, (noise, "origin", leaf), (noise, "scale", each)]:
        with pytest.raises(RuntimeError, match=f"reads {name}, which requires grad, and has no derivative; pass a det"):
            call(**{name: value}, backend=backend)
        with torch.no_grad():
            made = call(**{name: value}, backend=backend)
        assert not made.requires_grad


def test_what_has_no_derivative_raises_in_the_backward_pass(backend):
    rows = batch(shape=(2, 3)).requires_grad_(True)
    made = ops.knn_score(rows, LABELS, LABELS[:, 0], backend=backend)
    with pytest.raises(NotImplementedError, match="knn_score has no derivative"):
        made.sum().backward()
    with torch.no_grad():
        assert not ops.knn_score(rows, LABELS, LABELS[:, 0], backend=backend).requires_grad
    with pytest.raises(RuntimeError, match="maps require grad, and a PreparedScore has no derivative"):
        prepared_score()([batch().requires_grad_(True)], batch())


def test_a_leaf_that_requires_grad_is_not_overwritten():
    leaf = torch.rand(SHAPE, requires_grad=True)
    before = leaf.detach().clone()
    owner = ops.PreparedDropout(rate=0.3, layer=0, overwrite_map=True)
    made = owner(leaf, **KEY)
    assert_same_bits(leaf.detach(), before)
    assert_same_bits(made.detach(), dropout(before))
    made.sum().backward()
    assert_same_bits(leaf.grad, dropout(torch.ones(SHAPE)))
