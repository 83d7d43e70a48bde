"""The loop under every training, on a task of one number: what it calls, when it saves, where it ends and resumes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from killed import Killed

from fastadv.core.errors import ArgumentError
from fastadv.models.training_loop import Memory, Training, descend

EPOCHS, PER_EPOCH = 4, 3


@dataclass(frozen=True, kw_only=True)
class Epoch:
    epoch: int
    loss: float


class Number:
    """Moves one weight towards 1; `losses` stand for what a validation measures."""

    def __init__(self, losses=None):
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.5)
        self.parts = {"network": self.network, "optimizer": self.optimizer}
        self.losses, self.made = losses, []

    def steps(self, epoch, first):
        for step in range(first, PER_EPOCH):
            self.made.append((epoch, step))
            yield descend(self.optimizer, (self.network.weight - 1).square().sum())

    def record(self, epoch, loss):
        return Epoch(epoch=epoch, loss=loss if self.losses is None else self.losses[epoch - 1])

    def best(self, history):
        return min(history, key=lambda r: r.loss)

    def weights(self):
        return {"weight": self.network.weight.detach().clone()}


class Shelf(Memory):
    """Keeps states as a file would; is killed after so many of them."""

    def __init__(self, limit=None):
        self.states, self.limit = [], limit

    def save(self, training):
        kept = {"done": training.done, "sum": float(training.sum)}
        self.states.append(copy.deepcopy({**training.state(), **kept}))
        if len(self.states) == self.limit:
            raise Killed

    def record(self, training, *, improved):
        super().record(training, improved=improved)
        self.save(training)

    def restore(self, training):
        if self.states:
            state = self.states[-1]
            training.restore(state, [Epoch(**row) for row in state["history"]])
            training.done, training.sum = state["done"], state["sum"]


def trained(store, task=None, **options):
    training = Training(task or Number(), store, epochs=EPOCHS, per_epoch=PER_EPOCH, **options)
    return training, training.complete()


def test_every_step_is_made_once_and_in_order():
    task, told = Number(), []
    training, resumed = trained(Memory(), task, progress=lambda done, total: told.append((done, total)))
    assert task.made == [(epoch, step) for epoch in range(EPOCHS) for step in range(PER_EPOCH)]
    assert told == [(epoch, EPOCHS) for epoch in range(1, EPOCHS + 1)]
    assert resumed == 0
    assert training.done == EPOCHS * PER_EPOCH
    assert training.history[0].loss > training.history[-1].loss


# after an epoch's steps, after its record, and every 2 steps: 3 states an epoch
@pytest.mark.parametrize("limit", range(1, 3 * EPOCHS))
def test_killed_after_any_state_it_ends_as_never_interrupted(limit):
    calm = Shelf()
    expected, _ = trained(calm, save_steps=2)
    assert [state["done"] for state in calm.states] == [2, 3, 3, 5, 6, 6, 8, 9, 9, 11, 12, 12]
    killed, again = Shelf(limit), Number()
    with pytest.raises(Killed):
        trained(killed, save_steps=2)
    killed.limit = None
    made, resumed = trained(killed, again, save_steps=2)
    assert resumed == calm.states[limit - 1]["done"]
    assert len(again.made) == EPOCHS * PER_EPOCH - resumed
    assert made.history == expected.history
    assert torch.equal(again.network.weight, expected.task.network.weight)


def test_the_best_epoch_is_kept_and_the_wait_for_a_better_one_ends():
    task = Number(losses=[3.0, 1.0, 2.0, 1.0])
    store = Memory()
    training, _ = trained(store, task)
    assert training.best.epoch == 2  # the earlier of equal ones
    assert len(training.history) == 4
    early = Number(losses=[3.0, 1.0, 2.0, 1.0])
    ended, _ = trained(Memory(), early, patience=1)
    assert [r.epoch for r in ended.history] == [1, 2, 3]
    two = Training(Number(losses=[3.0, 1.0]), Memory(), epochs=2, per_epoch=PER_EPOCH)
    two.complete()
    assert torch.equal(store.best()["weight"], two.store.best()["weight"])
    assert not torch.equal(store.best()["weight"], task.weights()["weight"])


def test_the_steps_are_closed_when_a_state_cannot_be_kept():
    closed = []

    class Watched(Number):
        def steps(self, epoch, first):
            try:
                yield from super().steps(epoch, first)
            finally:
                closed.append(epoch)

    with pytest.raises(Killed):
        trained(Shelf(1), Watched(), save_steps=1)
    assert closed == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: o["state"][0].update(momentum_buffer=torch.zeros(7)),
            r"optimizer: momentum_buffer: expected shape \(1, 1\), got \(7,\)",
        ),
        (
            lambda o: o["param_groups"][0].update(lr="fast"),
            "optimizer: lr: expected a float in every group, got something else",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(change, message):
    store = Shelf()
    trained(store)
    change(store.states[-1]["optimizer"])
    with pytest.raises(ArgumentError, match=message):
        trained(store)
