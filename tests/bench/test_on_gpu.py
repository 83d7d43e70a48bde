"""The script for a machine with a GPU: steps with a time limit, of which none ends the run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from bench import subset
from fastadv.data import LFW

ROOT = Path(__file__).parents[2]
# stands for Python: notes what it is asked; the guard takes too long, peers fail
PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
  *"bench.run guard"*) exec sleep 60 ;;
  *"bench.run peers"*) echo "no such library"; exit 3 ;;
  *"pip install"*) exit "${BUILD:-0}" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="there is no timeout command")


@pytest.fixture
def script(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("FASTADV_DATA", "WHEELS", "FASTADV_CUDA_ARCHITECTURES")}

    def run(*steps, **more):
        places = {"OUT": tmp_path / "out", "WORK": tmp_path / "work", "PYTHON": python, "CALLS": tmp_path / "calls"}
        environment = {**kept, **{k: str(v) for k, v in places.items()}, "COMMIT": "abc", **more}
        command = ["bash", str(ROOT / "bench" / "on_gpu.sh"), *steps]
        (tmp_path / "calls").write_text("")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
        calls = [line for line in (tmp_path / "calls").read_text().splitlines() if line != "--version"]
        summary = done.stdout.partition("== summary")[2].splitlines()[1:]
        return done, calls, {line.split()[0]: line.split("s  ")[-1] for line in summary if " s  " in line}

    return run


def test_a_step_that_fails_or_takes_too_long_keeps_no_other_from_running(script, tmp_path):
    done, calls, states = script(LIMIT="2")
    assert done.returncode == 1, done.stderr
    assert states == {
        "build": "succeeded",
        "tests": "succeeded",
        "engine-fim": "skipped: FASTADV_DATA is not set",
        "engine-overhead": "succeeded",
        "peers": "failed with status 3",
        "surrogates": "succeeded",
        "guard": "stopped at its limit of 2 s",
        "depthwise": "succeeded",
        "ops": "succeeded",
    }
    out = tmp_path / "out"
    measured = f"--json --device cuda --out {out} --commit abc"
    assert [call for call in calls if "bench.run" in call] == [
        f"-m bench.run engine-overhead {measured}",
        f"-m bench.run peers {measured} --only pgd,fim",
        f"-m bench.run surrogates {measured}",
        f"-m bench.run guard {measured}",
        f"-m bench.run depthwise {measured}",
        f"-m bench.run ops {measured} --only momentum_step_,average_pool,centroid_distances --no-compile",
    ]
    assert any("-m pytest" in call and "-m gpu" in call for call in calls)
    assert "no such library" in (out / "on-gpu.log").read_text()
    assert done.stdout.rstrip().endswith("on-gpu.log")


def test_a_build_is_kept_while_the_sources_are_the_same(script):
    for expected in (1, 0):
        done, calls, states = script("build", "engine-overhead")
        assert done.returncode == 0
        assert states == {"build": "succeeded", "engine-overhead": "succeeded"}
        assert sum("pip install" in call for call in calls) == expected
    done, calls, _ = script("build", FASTADV_CUDA_ARCHITECTURES="80-real")
    assert sum("pip install" in call for call in calls) == 1


def test_without_a_build_nothing_is_measured(script):
    done, calls, states = script("build", "ops", BUILD="1")
    assert done.returncode == 1
    assert states == {"build": "failed with status 1", "ops": "not run: nothing is built"}
    assert not any("bench.run" in call for call in calls)


def test_no_step_begins_when_the_time_is_over(script):
    done, calls, states = script("ops", TOTAL="0")
    assert (done.returncode, calls, states) == (1, [], {"ops": "not run: no time is left"})


def test_an_unknown_step(script):
    done, calls, _ = script("build", "opps")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith("STEP: expected one of build tests")
    assert done.stderr.rstrip().endswith("got opps")


def test_a_copy_of_the_data_has_what_is_read(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    people = {"Ada": 4, "Bo": 1, "Cy": 2, "Di": 2}
    for person, count in people.items():
        (data / "lfw" / "images" / person).mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", (112, 112), (40 * i, 0, 0))
            image.save(data / "lfw" / "images" / person / f"{person}_{i + 1:04d}.png")
    (data / "weights").mkdir()
    (data / "weights" / "a.safetensors").write_bytes(b"1")
    lines = ["3\t1", "Ada\t1\t2", "Ada\t1\tBo\t1", "Cy\t1\t2", "Ada\t3\tBo\t1", "Di\t1\t2", "Ada\t1\tDi\t1"]
    (data / "lfw" / "pairs.txt").write_text("\n".join(lines) + "\n")
    assert subset.copy(data, out) == 7
    whole, part = LFW(data / "lfw"), LFW(out / "lfw")
    assert part.names == tuple(name for name in whole.names if not name.startswith("Di"))
    assert part.pairs == whole.pairs[:4]
    assert (out / "weights" / "a.safetensors").is_file()
    assert part.path("Ada/Ada_0004").read_bytes() == whole.path("Ada/Ada_0004").read_bytes()
