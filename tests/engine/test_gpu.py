"""The engine on a CUDA device: the captured tick, precisions, and the float32 verdict."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import fastadv as fa
from fastadv import attacks
from fastadv.attacks import Evade, Impersonate, Linf, SignGradient
from fastadv.engine import Engine
from fastadv.models import load

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*had reached the goal:fastadv.AttackWarning")]


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(1)
    x, targets = (torch.round(torch.rand(21, 3, 112, 112, generator=generator) * 255) / 255 for _ in range(2))
    model = load("mobileface_v2", random_weights_seed=0, device="cuda").eval()
    return model, x, targets


ATTACKS = {
    "fim": attacks.fim(eps=8 / 255),
    "pgd": attacks.pgd(eps=8 / 255, steps=6),
    "m-fim": attacks.m_fim(eps=8 / 255, steps=6),
    "mi-fgsm-l2": attacks.mi_fgsm_l2(eps=2.0, steps=6),
    "df": attacks.df(eps=8 / 255, steps=8),
    "lbfgs": fa.Recipe(attacks.LBFGS(searches=2, steps_each=4)),
    "stop": fa.Recipe(SignGradient(budget=Linf(8 / 255), steps=20, step_size=1 / 255, stop_at_success=True)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_captured_tick_gives_the_eager_ones_bits(case, name):
    model, x, targets = case
    goal = Impersonate(targets, threshold=0.9)
    made = [
        fa.run(
            ATTACKS[name],
            goal,
            model,
            x,
            seed=3,
            engine=Engine(precision="fp32", slots=8, batch=8, capture=capture, poll=poll),
        )
        for capture, poll in ((False, 1), (True, 1), (True, 4))
    ]
    for other in made[1:]:
        assert torch.equal(other.images, made[0].images)
        assert torch.equal(other.ticks, made[0].ticks)


@pytest.mark.parametrize("name", ["fim", "lbfgs", "stop"])
def test_the_captured_tick_of_several_goals_gives_the_eager_ones_bits(case, name):
    model, x, targets = case
    goal = Impersonate(targets, threshold=0.9) & Impersonate(targets.flip(0), threshold=0.9) & Evade(threshold=0.5)
    made = [
        fa.run(
            ATTACKS[name], goal, model, x, seed=3, engine=Engine(precision="fp32", slots=8, batch=8, capture=capture)
        )
        for capture in (False, True)
    ]
    assert torch.equal(made[1].images, made[0].images)
    assert torch.equal(made[1].ticks, made[0].ticks)


def test_slots_change_no_bit_at_a_fixed_batch(case):
    model, x, targets = case
    goal = Impersonate(targets, threshold=0.9)
    few, many = (
        fa.run(ATTACKS["pgd"], goal, model, x, seed=3, engine=Engine(precision="fp32", slots=s, batch=8))
        for s in (8, 24)
    )
    assert torch.equal(few.images, many.images)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_every_precision_is_judged_in_float32(case, precision):
    model, x, targets = case
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    made = fa.run(ATTACKS["fim"], Impersonate(targets, threshold=0.9), model, x, engine=Engine(precision=precision))
    assert before == (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
    cpu = load("mobileface_v2", random_weights_seed=0).eval()
    with torch.no_grad():
        score = (cpu(made.images) * cpu(targets)).sum(1)
    torch.testing.assert_close(made.score_after, score, rtol=0, atol=1e-4)
    assert bool((made.score_after > made.score_before).all())
    assert bool(Linf(8 / 255).inside(made.images, x).all())


def test_the_optimum_of_a_linear_model_is_reached_on_the_device():
    torch.manual_seed(0)
    size = (6, 5)
    model = fa.FaceModel(
        nn.Flatten(), input_size=size, mean=(0, 0, 0), std=(1, 1, 1), name="linear", head=nn.Linear(90, 2)
    ).eval()
    x = torch.round(torch.rand(5, 3, *size) * 255) / 255
    label = torch.zeros(5, dtype=torch.int64)
    direction = (model.head.weight[1] - model.head.weight[0]).detach().view(1, 3, *size)
    best = torch.round((x + 8 / 255 * direction.sign()).clamp(0, 1) * 255) / 255
    made = fa.run(attacks.bim(eps=8 / 255), fa.Misclassify(label), model.cuda(), x)
    torch.testing.assert_close(made.images, best, rtol=0, atol=1e-6)


def test_real_memory_running_out_means_fewer_slots():
    free, _ = torch.cuda.mem_get_info()

    class Greedy(nn.Module):
        def forward(self, x):
            return (x.flatten(1) + torch.empty(len(x) * free // 12, dtype=torch.uint8, device=x.device)[:1])[:, :16]

    model = fa.FaceModel(Greedy(), input_size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), name="greedy").cuda().eval()
    x = torch.rand(20, 3, 8, 8)
    with pytest.warns(fa.AttackWarning, match="out of memory with 16 slots"):
        fa.run(
            attacks.fim(steps=2),
            Impersonate(torch.rand(20, 16), threshold=0.999),
            model,
            x,
            engine=Engine(precision="fp32", slots=16, batch=16, capture=False),
        )
    torch.cuda.empty_cache()  # or later tests find no memory


def test_two_runs_on_two_streams_at_once_are_those_of_one(case):
    model, x, targets = case
    goal = Impersonate(targets, threshold=0.9)
    names = ("pgd", "m-fim")
    engine = Engine(precision="fp32", slots=8, batch=8)
    expected = [fa.run(ATTACKS[name], goal, model, x, seed=3, engine=engine).images for name in names]

    def on_a_stream(name: str) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            return fa.run(ATTACKS[name], goal, model, x, seed=3, engine=engine).images

    with ThreadPoolExecutor(2) as pool:
        made = [future.result() for future in [pool.submit(on_a_stream, name) for name in names]]
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_two_generators_in_turn_on_two_streams(case):
    model, x, targets = case
    goal = Impersonate(targets, threshold=0.9)
    jobs = [fa.Job(name=str(i), id=i, image=x[i], goal=goal.row(i)) for i in range(16)]
    engine = Engine(precision="fp32", slots=8, batch=8)
    expected = {r.name: r.image for r in fa.stream_jobs(ATTACKS["pgd"], jobs, model, seed=3, engine=engine)}
    sides = [
        (torch.cuda.Stream(), fa.stream_jobs(ATTACKS["pgd"], jobs, model, seed=3, engine=engine)) for _ in range(2)
    ]
    for _ in jobs:
        for stream, results in sides:
            with torch.cuda.stream(stream):
                r = next(results)
            assert torch.equal(r.image, expected[r.name])


def test_two_devices_at_once_and_neither_is_the_current_one(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    _, x, targets = case
    goal, engine = Impersonate(targets, threshold=0.9), Engine(precision="fp32", slots=8, batch=8)
    models = [load("mobileface_v2", random_weights_seed=0, device=f"cuda:{k}").eval() for k in (0, 1)]
    expected = fa.run(ATTACKS["pgd"], goal, models[0], x, seed=3, engine=engine).images
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(fa.run, ATTACKS["pgd"], goal, m, x, seed=3, engine=engine) for m in models]
        made = [job.result().images for job in jobs]
    assert all(torch.equal(each, expected) for each in made)
    assert torch.cuda.current_device() == 0


def test_memory_that_runs_out_while_the_tick_is_recorded():
    limit = [4]

    class Greedy(nn.Module):
        def forward(self, x):
            if len(x) > limit[0] and torch.cuda.is_current_stream_capturing():
                raise torch.OutOfMemoryError("no more")
            return x.flatten(1)[:, :16] * 2

    model = fa.FaceModel(Greedy(), input_size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), name="greedy").cuda().eval()
    x, goal = torch.rand(20, 3, 8, 8), Impersonate(torch.rand(20, 16), threshold=0.999)
    before = torch.cuda.current_stream()
    with pytest.warns(fa.AttackWarning, match="out of memory"):
        made = fa.run(attacks.fim(steps=2), goal, model, x, engine=Engine(precision="fp32", slots=16, batch=16))
    assert torch.cuda.current_stream() == before
    limit[0] = 64
    expected = fa.run(attacks.fim(steps=2), goal, model, x, engine=Engine(precision="fp32", slots=4, batch=4))
    assert torch.equal(made.images, expected.images)
