"""The state of the slots: an attack declares its own fields, and the rest is there."""

from dataclasses import dataclass, fields

import pytest
import torch
from small import grey_images as faces
from torch import Tensor, nn

import fastadv as fa
from fastadv.attacks import CATALOG, Box, Evaluation, Goal, Misclassify, Rows, SlotState, by_name
from fastadv.attacks.bracket import Bracket
from fastadv.attacks.state import RowState, boolean, image, integer, number, part, row
from fastadv.engine import Engine

SINGLE = [name for name, entry in CATALOG.items() if not entry.ensemble]

BOX = Box()


@dataclass(frozen=True, kw_only=True)
class FadingState(RowState):
    """The slots of ``Fading``.

    Attributes:
        share: ``(N,)``, how much of the image is left.
        bounces: ``(N,)`` int64.
        seen: ``(N,)`` bool.
        wide: ``(N, 2)`` float64.
        before: ``(N, D)``.
        mask: ``(N, 3, H, W)`` bool.
        bracket: A part.
    """

    share: Tensor = number(1.0)
    bounces: Tensor = integer()
    seen: Tensor = boolean()
    wide: Tensor = number(dtype=torch.float64, shape=(2,))
    before: Tensor = row()
    mask: Tensor = image(True, dtype=torch.bool)
    bracket: Bracket = part(Bracket.allocate)


@dataclass(frozen=True, kw_only=True)
class Fading:
    """Darkens an image by a quarter a tick."""

    steps: int = 3
    margin: float = 0.0
    name: str = "fading"
    budget: Box = BOX
    needs_gradient: bool = False

    def objective(self, goal: Goal, outputs: Tensor, rows: Rows, query: Tensor | None) -> Tensor:
        return goal.loss(outputs, rows)

    def allocate(self, like: Tensor) -> FadingState:
        return FadingState.allocate(like)

    def start(self, state: FadingState, slots: Tensor, images: Tensor, *, ids: Tensor, seed: int) -> None:
        state.begin(slots, images)

    def tick(self, state: FadingState, evaluation: Evaluation) -> None:
        state.ticks.add_(state.active)
        state.share.mul_(torch.where(state.active, 0.75, 1.0))
        state.trial.copy_(state.origin * state.share[:, None, None, None])
        state.active.logical_and_(state.ticks < self.steps)


def test_an_attack_of_declared_fields_runs_in_slots_that_are_used_again():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(90, 8))
    model = fa.FaceModel(net, input_size=(6, 5), mean=(0,) * 3, std=(1,) * 3, name="flat", head=nn.Linear(8, 3)).eval()
    x = faces(5)
    with torch.no_grad():
        label = model.logits(x).argmax(1)
    made = fa.run(fa.Recipe(Fading()), Misclassify(label), model, x, engine=Engine(slots=2, batch=2))
    assert made.ticks.tolist() == [3] * 5
    torch.testing.assert_close(made.images, x * 0.75**3, rtol=0, atol=1 / 255)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_field_has_its_declared_shape_and_type_and_every_slot_is_idle(layout):
    like = faces(4).contiguous(memory_format=layout)
    state = FadingState.allocate(like)
    shapes = {"share": (4,), "bounces": (4,), "seen": (4,), "wide": (4, 2), "before": (4, 90), "mask": like.shape}
    types = (torch.float32, torch.int64, torch.bool, torch.float64, torch.float32, torch.bool)
    for (name, shape), dtype in zip(shapes.items(), types, strict=True):
        held = getattr(state, name)
        assert held.shape == shape, name
        assert held.dtype == dtype, name
        assert not held.any(), name
    for images in (state.trial, state.origin, state.mask):
        assert images.stride() == like.stride()
    assert not state.active.any()
    assert state.query is None


def test_an_image_finds_every_field_at_its_start_and_the_other_slots_keep_theirs():
    state = FadingState.allocate(faces(4))
    held = (state.trial, state.origin, state.active, state.ticks, state.stats)
    held += (state.share, state.bounces, state.seen, state.wide, state.before, state.mask)
    for tensor in held:
        tensor.fill_(7)
    before = [tensor.clone() for tensor in held]
    x = faces(2)
    state.begin(torch.tensor([3, 1]), x)
    for tensor, was in zip(held, before, strict=True):
        assert torch.equal(tensor[[0, 2]], was[[0, 2]])
    assert torch.equal(state.trial[[3, 1]], x)
    assert torch.equal(state.origin[[3, 1]], x)
    assert state.active[[3, 1]].all()
    assert state.share[[3, 1]].tolist() == [1.0, 1.0]
    assert state.mask[[3, 1]].all()
    for tensor in (state.ticks, state.stats, state.bounces, state.seen, state.wide):
        assert not tensor[[3, 1]].any()
    assert bool((state.before == 7).all())  # the attack writes it first


def test_what_is_given_is_taken_as_it_is_and_what_is_missing_is_named():
    @dataclass(frozen=True, kw_only=True)
    class Sized(SlotState):
        table: Tensor
        spare: Tensor | None = row(0.0)

    table = torch.ones(4, 9)
    state = Sized.allocate(faces(4), table=table, spare=None)
    state.begin(torch.tensor([2]), faces(1))
    assert state.table is table
    assert state.spare is None
    with pytest.raises(TypeError, match="table"):
        Sized.allocate(faces(4))


def tensors(state: object) -> list[Tensor]:
    """Those of a state and of its parts."""
    found = []
    for f in fields(state):
        held = getattr(state, f.name)
        found += [held] if isinstance(held, Tensor) else tensors(held) if hasattr(held, "__dataclass_fields__") else []
    return found


@pytest.mark.parametrize("name", SINGLE)
def test_the_tensors_of_every_attack_stay_where_they_are(name):
    """A recorded CUDA graph writes to their addresses."""
    attack = by_name(name).attack
    x = faces(4)
    state = attack.allocate(x)
    assert isinstance(state, SlotState)
    places = [t.data_ptr() for t in tensors(state)]
    assert len(places) >= 5
    for order in ([0, 1, 2, 3], [2, 0]):
        slots = torch.tensor(order)
        attack.start(state, slots, x[slots], ids=slots, seed=3)
        attack.tick(
            state,
            Evaluation(
                loss=-torch.ones(4),
                achieved=torch.zeros(4, dtype=torch.bool),
                gradient=x - 0.5,
                outputs=torch.zeros(4, 6),
            ),
        )
        assert state.ticks[slots].tolist() == [1] * len(order)
    assert [t.data_ptr() for t in tensors(state)] == places
