"""Detectors' networks: they learn what can be learned, balanced, the same each time, and go on where they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from killed import Killed, same
from torch.nn import functional as F

from fastadv.detection import Architecture, DetectionFileError, Examples, FitConfig, Network, auc, fit_network
from fastadv.detection.examples import Sampler, balanced_mean
from fastadv.detection.networks import standards

QUICK = FitConfig(kind="mlp", hidden=8, epochs=6, batch=16, lr=0.01, seed=3)


def examples(count=60, seed=0, shape=(4, 5), step=1.0):
    """Natural embeddings, and those of two attacks: `a` is further out from layer to layer, `b` swaps two layers."""
    generator = torch.Generator().manual_seed(seed)
    rise = torch.arange(shape[0])[None, :, None] * 3.0
    natural = torch.randn(count, *shape, generator=generator) + rise
    a = torch.randn(count // 2, *shape, generator=generator) + rise * (1 + step)
    b = torch.randn(count // 6, *shape, generator=generator) + rise[:, [1, 0, *range(2, shape[0])]] * step
    groups = torch.tensor([0] * count + [1] * len(a) + [2] * len(b))
    return Examples(embeddings=torch.cat([natural, a, b]), groups=groups, attacks=("a", "b"))


def scores(network, given):
    with torch.no_grad():
        made = network(given.embeddings)
    return made[given.groups == 0], made[given.groups > 0]


def alike(first, second):
    return first.history == second.history and same(first.network.state_dict(), second.network.state_dict())


@pytest.mark.parametrize("kind", ["linear", "mlp", "lstm"])
def test_a_separable_problem_is_learned(kind):
    config = FitConfig(kind=kind, hidden=12, epochs=25, batch=32, lr=0.02, seed=1)
    made = fit_network(config, examples(), held=examples(seed=1))
    assert auc(*scores(made.network, examples(seed=2))) > 0.98
    assert made.history[-1].loss < made.history[0].loss
    assert not made.network.training
    assert not any(p.requires_grad for p in made.network.parameters())


def test_only_the_lstm_and_not_the_flat_sum_sees_an_order():
    # Adversarial embeddings are natural ones with the layers in reverse: no linear function of one layer tells.
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, 1, 3, generator=generator) + torch.randn(200, 6, 3, generator=generator).cumsum(1)
    value = torch.cat([base, base.flip(1)])
    groups = torch.tensor([0] * 200 + [1] * 200)
    given = Examples(embeddings=value, groups=groups, attacks=("reversed",))
    fitted, held = given.split(torch.arange(400) % 200, share=0.3)
    made = fit_network(FitConfig(kind="lstm", hidden=24, epochs=30, batch=32, lr=0.02, patience=0), fitted, held=held)
    linear = fit_network(FitConfig(kind="linear", epochs=20, batch=32, lr=0.01), fitted, held=held)
    assert auc(*scores(made.network, held)) > 0.8
    assert auc(*scores(linear.network, held)) < 0.75


def test_the_networks_by_their_formulas():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for kind in ("linear", "mlp", "lstm"):
        network = Network(Architecture(kind=kind, layers=4, width=5, hidden=6)).eval()
        network.mean.fill_(0.5)
        network.scale.fill_(2.0)
        state = {k: v.double() for k, v in network.state_dict().items()}
        v = (x.double() - 0.5) / 2
        if kind == "linear":
            expected = v.flatten(1) @ state["logit.weight"].T + state["logit.bias"]
        elif kind == "mlp":
            hidden = F.relu(v.flatten(1) @ state["logit.0.weight"].T + state["logit.0.bias"])
            expected = hidden @ state["logit.3.weight"].T + state["logit.3.bias"]
        else:
            h = c = torch.zeros(3, 6, dtype=torch.float64)
            for t in range(4):
                gates = v[:, t] @ state["lstm.weight_ih_l0"].T + h @ state["lstm.weight_hh_l0"].T
                i, f, g, o = (gates + state["lstm.bias_ih_l0"] + state["lstm.bias_hh_l0"]).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            expected = h @ state["logit.weight"].T + state["logit.bias"]
        with torch.no_grad():
            torch.testing.assert_close(network(x).double(), expected[:, 0], rtol=1e-5, atol=1e-6)


def test_dropout_is_off_when_evaluating_and_the_lstm_can_be_differentiated():
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    for kind in ("mlp", "lstm"):
        network = Network(Architecture(kind=kind, layers=4, width=5, dropout=0.9)).eval()
        assert not network.training
        assert network.lstm is None or network.lstm.training  # cuDNN has no other backward pass
        assert torch.equal(network(x), network(x))
        (gradient,) = torch.autograd.grad(network(x).sum(), x)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("how", ["entry", "layer", "none"])
def test_standards(how):
    given = examples().embeddings
    rows = torch.arange(0, 60, 2)
    mean, scale = standards(given, rows, how)
    part = given[rows].double().numpy()
    axes = {"entry": (0,), "layer": (0, 2)}.get(how)
    want = (part.mean(axes), part.std(axes)) if axes else (np.zeros(()), np.ones(()))
    for made, expected in zip((mean, scale), want, strict=True):
        full = expected[:, None] if how == "layer" else expected
        np.testing.assert_allclose(made.numpy(), np.broadcast_to(full, (4, 5)), rtol=1e-5)


def test_a_number_that_never_varies_does_no_harm():
    given = examples()
    given.embeddings[:, 1, 2] = 7.0
    made = fit_network(replace(QUICK, epochs=2, standard="entry"), given)
    assert made.network.scale[1, 2] == 1
    assert torch.isfinite(made.network(given.embeddings)).all()


def test_draws_are_balanced_whatever_the_numbers():
    given = examples(600)
    rows = Sampler(given, 5).draw(1, 24_000)
    shares = torch.bincount(given.groups[rows], minlength=3) / len(rows)
    # 4 standard deviations of a share of 24,000 draws
    np.testing.assert_allclose(shares.numpy(), [0.5, 0.25, 0.25], atol=4 * 0.5 / 24_000**0.5)
    inside = torch.bincount(rows[given.groups[rows] == 0], minlength=600)[:600]
    assert inside.float().std() == pytest.approx((12_000 / 600) ** 0.5, rel=0.15)  # Poisson
    assert torch.equal(rows, Sampler(given, 5).draw(1, 24_000))
    assert not torch.equal(rows, Sampler(given, 5).draw(2, 24_000))
    assert not torch.equal(rows, Sampler(given, 6).draw(1, 24_000))


def test_kinds_of_natural_images_are_drawn_alike_often():
    given = examples(600)
    kinds = replace(given, groups=torch.where(torch.arange(len(given)) < 60, -1, given.groups))
    rows = Sampler(kinds, 5).draw(1, 24_000)
    shares = torch.bincount(kinds.groups[rows] + 1, minlength=4) / len(rows)
    np.testing.assert_allclose(shares.numpy(), [0.25, 0.25, 0.25, 0.25], atol=4 * 0.5 / 24_000**0.5)
    assert (kinds.kinds, kinds.counts.tolist()) == (2, [60, 540, 300, 100])
    losses = torch.tensor([3.0, 1.0, 2.0, 4.0])[kinds.groups + 1]
    assert balanced_mean(losses, kinds) == pytest.approx(0.25 * 3 + 0.25 * 1 + 0.25 * 2 + 0.25 * 4)
    same = fit_network(QUICK, kinds), fit_network(QUICK, given)
    assert same[0].history != same[1].history


def test_the_balanced_loss():
    given = examples(60)  # 60 natural, 30 of a, 10 of b
    losses = torch.where(given.groups == 0, 1.0, torch.where(given.groups == 1, 2.0, 4.0))
    assert balanced_mean(losses, given) == pytest.approx(0.5 * 1 + 0.25 * 2 + 0.25 * 4)


def test_the_seed_decides_and_pytorch_s_own_is_left_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = fit_network(QUICK, examples())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert alike(first, fit_network(QUICK, examples()))
    assert not alike(first, fit_network(replace(QUICK, seed=4), examples()))


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
@pytest.mark.parametrize(("every", "at", "saved"), [(1, 4, 4), (2, 3, 2), (10, 3, 0)])
def test_killed_and_started_again_is_as_never_interrupted(kind, every, at, saved, tmp_path):
    config = replace(QUICK, kind=kind, plateau=1, lr=0.05)
    held, path = examples(seed=1), tmp_path / "fit.pt"
    calm = fit_network(config, examples(), held=held)

    def kill(epoch, epochs):
        assert epochs == 6
        if epoch == at:
            raise Killed

    with pytest.raises(Killed):
        fit_network(config, examples(), held=held, checkpoint=path, checkpoint_epochs=every, progress=kill)
    again = fit_network(config, examples(), held=held, checkpoint=path, checkpoint_epochs=3)
    assert (again.resumed_at, again.best) == (saved, calm.best)
    assert alike(again, calm)


def test_a_finished_fit_is_only_read(tmp_path):
    path = tmp_path / "fit.pt"
    first = fit_network(QUICK, examples(), checkpoint=path)
    before = path.read_bytes()

    def never(epoch, epochs):
        raise AssertionError("an epoch was made")

    second = fit_network(QUICK, examples(), checkpoint=path, progress=never)
    assert alike(first, second)
    assert second.resumed_at == 6
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit.pt"]


def test_it_ends_early_and_keeps_the_best():
    noise = examples(step=0.0)
    shuffled = replace(noise, groups=noise.groups[torch.randperm(100, generator=torch.Generator().manual_seed(0))])
    config = replace(QUICK, epochs=80, patience=5, plateau=2, lr=0.05)
    made = fit_network(config, shuffled, held=examples(seed=1, step=0.0))
    assert made.best.epoch < len(made.history) == made.best.epoch + 5
    assert made.best.held == min(r.held for r in made.history)
    lrs = [r.lr for r in made.history]
    assert lrs[0] == 0.05
    assert min(lrs) == pytest.approx(0.05 / 10 ** round(np.log10(0.05 / min(lrs))))
    assert min(lrs) < 0.05
    again = fit_network(replace(config, epochs=made.best.epoch), shuffled, held=examples(seed=1, step=0.0))
    assert all(torch.equal(v, again.network.state_dict()[k]) for k, v in made.network.state_dict().items())


def test_the_rate_falls_after_so_many_epochs_without_a_fall():
    given = examples(step=0.0)
    made = fit_network(replace(QUICK, epochs=12, plateau=3, lr=1e-12, patience=0), given, held=given)  # nothing moves
    lrs = [r.lr for r in made.history]
    assert lrs[:4] == [1e-12] * 4
    assert lrs[4] == pytest.approx(1e-13)


def test_splitting_keeps_sources_together():
    given = examples(120)
    sources = torch.arange(len(given)) % 37
    rest, held = given.split(sources, share=0.25, seed=2)
    assert len(rest) + len(held) == len(given)
    row = {tuple(v.flatten().tolist()): int(s) for v, s in zip(given.embeddings, sources, strict=True)}
    sides = [{row[tuple(v.flatten().tolist())] for v in part.embeddings} for part in (rest, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == round(0.25 * 37)
    again = given.split(sources, share=0.25, seed=2)[1]
    assert torch.equal(again.embeddings, held.embeddings)
    assert not torch.equal(given.split(sources, share=0.25, seed=3)[1].groups, held.groups)


def test_mistakes_of_a_split():
    given = examples()
    for sources, share in ((torch.zeros(len(given), dtype=torch.int64), 0.2), (torch.arange(len(given)), 1.0)):
        with pytest.raises(
            ValueError, match="expected a number in (0, 1), of two or more".replace("(", r"\(").replace(")", r"\)")
        ):
            given.split(sources, share=share)
    with pytest.raises(ValueError, match="groups: expected one or more images of each, got none of a, b"):
        given.split(torch.arange(len(given)).clamp(max=1), share=0.5)
    with pytest.raises(ValueError, match=r"sources: expected .*, got \(3,\)"):
        given.split(torch.arange(3))


GOOD = {"embeddings": torch.randn(4, 2, 3), "groups": torch.tensor([0, 1, 0, 1]), "attacks": ("a",)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": [1.0]}, TypeError, "embeddings: expected a torch.float32 tensor, got list"),
        ({"embeddings": GOOD["embeddings"].double()}, TypeError, "embeddings: expected .*, got torch.float64"),
        (
            {"embeddings": torch.ones(4, 3)},
            ValueError,
            r"embeddings: expected shape \(N, L, K\), none of them 0, got \(4, 3\)",
        ),
        ({"embeddings": torch.ones(4, 0, 3)}, ValueError, r"embeddings: expected .*, got \(4, 0, 3\)"),
        (
            {"embeddings": torch.full((4, 2, 3), torch.nan)},
            ValueError,
            "embeddings: expected finite values, got NaN or infinity",
        ),
        ({"groups": [0, 1, 0, 1]}, TypeError, "groups: expected .*, got list"),
        ({"groups": torch.tensor([0, 1])}, ValueError, r"groups: expected shape \(4,\), got \(2,\)"),
        ({"groups": torch.ones(4)}, TypeError, "groups: expected .*, got torch.float32"),
        ({"groups": torch.tensor([0, 2, 1, 1])}, ValueError, "groups: expected at most 1, and no gaps, got 0 to 2"),
        ({"groups": torch.tensor([0, -4, 1, 1])}, ValueError, "groups: expected at most 1, and no gaps, got -4 to 1"),
        ({"groups": torch.tensor([0, -2, 1, 1])}, ValueError, "groups: expected .*, got none of natural kind 1"),
        (
            {"groups": torch.ones(4, dtype=torch.int64)},
            ValueError,
            "groups: expected one or more images of each, got none of natural",
        ),
        (
            {"groups": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            "groups: expected one or more images of each, got none of a",
        ),
        ({"attacks": ()}, ValueError, "attacks: expected distinct names, got 0, 0 of them distinct"),
        ({"attacks": "a"}, TypeError, "attacks: expected a sequence of names, got 'a'"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_mistakes_of_examples(change, error, message):
    with pytest.raises(error, match=message):
        Examples(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cnn"}, "kind: expected one of linear, mlp, lstm, got 'cnn'"),
        ({"standard": "max"}, "standard: expected one of entry, layer, none, got 'max'"),
        ({"hidden": 0}, "hidden: expected 1 or more, got 0"),
        ({"epochs": 0}, "epochs: expected .*, got 0"),
        ({"batch": 0}, "batch: expected .*, got 0"),
        ({"plateau": 0}, "plateau: expected .*, got 0"),
        ({"patience": -1}, "patience: expected 0 or more, got -1"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"lr": float("nan")}, "lr: expected .*, got nan"),
        ({"weight_decay": -1.0}, "weight_decay: expected .*, got -1.0"),
        ({"dropout": 1.0}, "dropout: expected a share"),
        ({"seed": -1}, "seed: expected .*, got -1"),
    ],
)
def test_mistakes_of_a_config(change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cnn"}, "kind: expected .*, got 'cnn'"),
        ({"layers": 0}, "layers: expected an integer from 1 to 1048576, got 0"),
        ({"width": 1 << 40}, "width: expected .*, got 1099511627776"),
        ({"hidden": 2.5}, "hidden: expected .*, got 2.5"),
        ({"dropout": float("nan")}, r"dropout: expected a share in \[0, 1\), got nan"),
    ],
)
def test_mistakes_of_an_architecture(change, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**{"kind": "mlp", "layers": 2, "width": 3, **change})


def test_mistakes_of_a_fit(tmp_path):
    with pytest.raises(ValueError, match=r"held: expected embeddings of \(4, 5\), like the examples, got \(3, 5\)"):
        fit_network(QUICK, examples(), held=examples(shape=(3, 5)))
    with pytest.raises(ValueError, match="checkpoint_epochs: expected .*, got 0"):
        fit_network(QUICK, examples(), checkpoint_epochs=0)
    huge = examples()
    huge.embeddings[70:] *= 1e30
    with pytest.raises(
        ValueError, match=r"loss: expected a finite number, got nan in epoch 1; try a lower lr than 1e\+30"
    ):
        fit_network(replace(QUICK, lr=1e30), huge)
    with pytest.raises(ValueError, match=r"embeddings: expected shape \(N, 4, 5\), got \(2, 3, 5\)"):
        fit_network(replace(QUICK, epochs=1), examples()).network(torch.ones(2, 3, 5))


@pytest.mark.parametrize("what", ["config", "examples", "held"])
def test_a_checkpoint_of_another_fit(what, tmp_path):
    path = tmp_path / "fit.pt"
    fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)
    config = replace(QUICK, epochs=1, lr=0.02 if what == "config" else QUICK.lr)
    given = examples(seed=9 if what == "examples" else 0)
    with pytest.raises(DetectionFileError, match=rf"fit\.pt: expected a fit with the same {what}, or no file"):
        fit_network(config, given, held=examples(seed=3) if what == "held" else None, checkpoint=path)


def test_damaged_checkpoints(damaged, tmp_path):
    path = tmp_path / "fit.pt"
    fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(
        DetectionFileError, match=r"fit\.pt: expected a whole checkpoint of a fit, got .*; remove it to begin again"
    ):
        fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)


def test_checkpoints_that_hold_something_else(tmp_path):
    path = tmp_path / "fit.pt"
    fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)
    state = torch.load(path, weights_only=True)
    for change in ({"network": {}}, {"best": {}}, {"history": [{"epoch": 1}]}, {"optimizer": 3}):
        torch.save({**state, **change}, path)
        with pytest.raises(
            DetectionFileError, match=r"fit\.pt: expected a checkpoint that fits this fit, got another: .*; remove it"
        ):
            fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)
    torch.save([1], path)
    with pytest.raises(DetectionFileError, match="expected a whole checkpoint of a fit, got "):
        fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)


def test_a_checkpoint_with_an_optimizer_of_other_sizes(tmp_path):
    path = tmp_path / "fit.pt"
    fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
    torch.save(state, path)
    with pytest.raises(
        DetectionFileError,
        match="expected a checkpoint that fits this fit, got another: optimizer: exp_avg: expected shape .*, got .7,.",
    ):
        fit_network(replace(QUICK, epochs=1), examples(), checkpoint=path)


@pytest.mark.gpu
def test_on_a_device():
    made = fit_network(replace(QUICK, kind="lstm", epochs=20), examples(), held=examples(seed=1), device="cuda")
    x = examples(seed=2).embeddings.cuda().requires_grad_(True)
    (gradient,) = torch.autograd.grad(made.network(x).sum(), x)
    assert gradient.isfinite().all()
    assert auc(*scores(made.network.cpu(), examples(seed=2))) > 0.9
