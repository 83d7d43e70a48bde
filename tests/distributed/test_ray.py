"""Attacks on a Ray cluster of this machine: the bytes of one process, in a folder, at a URL and in a pipeline."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import fastadv as fa
from fastadv.data import SyntheticFaces, face_id, to_tensor, to_uint8
from fastadv.distributed import Cluster
from fastadv.engine import Engine, Job, stream_jobs
from fastadv.studies.attack import attack_on_ray

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

BUCKET = "faces"


def test_two_workers_write_the_bytes_of_one_process_to_a_url(ray, s3, plan, single):
    said = []
    attack_on_ray(plan(f"s3://{BUCKET}/run"), Cluster(workers=2), progress=lambda *told: said.append(told))
    assert {path.removeprefix(f"{BUCKET}/run/"): s3.cat_file(path) for path in s3.find(f"{BUCKET}/run")} == single()
    assert (said[0], said[-1]) == (("attacking", 0, 18), ("attacking", 18, 18))


NET = fa.load("synth-mobile")
DRAWN = SyntheticFaces(identities=5, per_identity=2, seed=3)


def test_a_users_pipeline_gets_the_results_of_one_engine(ray):
    images = [to_uint8(DRAWN.load(name).image) for name in DRAWN.names]
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        files.append(file.getvalue())
    with torch.no_grad():
        targets = NET(torch.stack([to_tensor(images[k - 1]) for k in range(len(images))]))
    recipe, engine = fa.attacks.fim(eps=8 / 255, steps=3), Engine(batch=4)
    jobs = [
        Job(name=n, id=face_id(n), image=to_tensor(i), goal=fa.Impersonate(targets[k : k + 1], threshold=0.5))
        for k, (n, i) in enumerate(zip(DRAWN.names, images, strict=True))
    ]
    expected = {r.name: r for r in stream_jobs(recipe, jobs, NET, seed=2, engine=engine)}
    faces = ray.data.from_items(
        [{"name": n, "image": f, "place": k} for k, (n, f) in enumerate(zip(DRAWN.names, files, strict=True))]
    )

    def goal(row):
        return fa.Impersonate(targets[int(row["place"])][None], threshold=0.5)

    made = fa.distributed.run(recipe, goal, NET, faces, seed=2, engine=engine).take_all()
    assert sorted(row["name"] for row in made) == sorted(DRAWN.names)
    for row in made:
        result = expected[row["name"]]
        assert np.array_equal(row["image"], to_uint8(result.image))
        assert DRAWN.names[row["place"]] == row["name"]
        assert (row["success"], row["ticks"], row["flags"]) == (result.success, result.ticks, ";".join(result.flags))
        assert (row["linf"], row["score_after"]) == (result.linf, result.score_after)
