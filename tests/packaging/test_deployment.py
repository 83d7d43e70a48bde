"""The container file and the systemd unit: what can be said of them without building or starting either."""

from __future__ import annotations

import http.server
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tomllib
from typer.main import get_command

from fastadv.cli import app

pytest.importorskip("fastapi", reason="fastapi is not installed: the extra `serve`")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: the extra `serve`")

from fastadv.detection import connections
from fastadv.detection.access import OPEN
from fastadv.detection.service_config import ServiceConfig
from fastadv.detection.service_metrics import LIMITS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
SERVING, DEPLOYMENT = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("serving", "deployment"))
SERVE = get_command(app).commands["serve"]


def instructions(text):
    """The lines of a container file, continued ones joined, as instruction and arguments."""
    whole = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", text))
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]


def settings(text):
    """The settings of a unit: the values of each name, in order."""
    found = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


CONTAINER = instructions((DEPLOY / "Containerfile").read_text(encoding="utf-8"))
STAGES = [CONTAINER[i:] for i, (name, _) in enumerate(CONTAINER) if name == "FROM"]
IMAGE = dict(STAGES[-1])
UNIT = settings((DEPLOY / "fastadv.service").read_text(encoding="utf-8"))


def parsed(words):
    """The options of a command line of `fastadv serve`; M stands for a network on the pages."""
    assert words[:1] == ["serve"]
    words = ["synth-vgg" if word == "M" else word for word in words]
    return SERVE.make_context("serve", list(words[1:])).params


def documented():
    """The command lines of `fastadv serve` on the two pages."""
    blocks = re.findall(r"(?ms)^```sh(?: run)?\n(.*?)^```$", SERVING + DEPLOYMENT)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    return [re.sub(r" (2>|&).*", "", line) for line in lines if line.startswith("fastadv serve")]


def container_line():
    return json.loads(IMAGE["ENTRYPOINT"])[1:] + json.loads(IMAGE["CMD"])


def test_every_command_line_is_one_of_this_command():
    (unit,) = UNIT["ExecStart"]
    assert (json.loads(IMAGE["ENTRYPOINT"])[0], shlex.split(unit)[0]) == ("fastadv", "/opt/fastadv/bin/fastadv")
    assert len(documented()) >= 3
    for words in (container_line(), shlex.split(unit)[1:], *(shlex.split(line)[1:] for line in documented())):
        assert parsed(words)["detector"]
    with pytest.raises(Exception, match="No such option: --max-quue"):
        parsed(["serve", "--detector", "x", "--max-quue", "3"])


def test_an_address_that_others_reach_has_a_token():
    for words in (container_line(), shlex.split(UNIT["ExecStart"][0])[1:]):
        found = parsed(words)
        assert found["token_file"] is not None
        assert (found["host"], found["port"]) in (("0.0.0.0", 8000), ("127.0.0.1", 8000))
    assert UNIT["IPAddressAllow"] == ["localhost"]


def test_a_stop_is_waited_for():
    needed = ServiceConfig().drain + connections._LINGER + connections._CLOSING
    assert float(UNIT["TimeoutStopSec"][0]) > needed
    assert int(re.findall(r"--stop-timeout=(\d+)", DEPLOYMENT)[0]) > needed
    assert IMAGE["STOPSIGNAL"] == "SIGTERM"
    assert int(UNIT["LimitNOFILE"][0]) > 1128  # as many connections as are served by default


def test_the_container_is_made_of_files_that_are_here_and_runs_as_nobody():
    assert [line.split()[0] for name, line in CONTAINER if name == "FROM"] == ["docker.io/library/python:3.11-slim"] * 2
    copied = [line.split() for name, line in CONTAINER if name == "COPY"]
    sources = [source for words in copied if words[0] != "--from=build" for source in words[:-1]]
    assert [source for source in sources if not (ROOT / source).exists() and "*" not in source] == []
    assert {"pyproject.toml", "CMakeLists.txt", "csrc", "kernels", "fastadv", "LICENSE"} <= set(sources)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", IMAGE["USER"])
    extras = re.findall(r"\.whl\)\[(\w+)\]", "\n".join(line for _, line in CONTAINER))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (extras, "serve" in project["optional-dependencies"]) == (["serve"], True)
    for option in ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"):
        assert option in DEPLOYMENT


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_of_the_container(status, code):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path in OPEN else 404)
            self.end_headers()

        def log_message(self, *words):
            pass

    _, name, script = json.loads(IMAGE["HEALTHCHECK"].partition("CMD ")[2])
    assert name == "-c"
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        own = script.replace(":8000/", f":{server.server_port}/")
        done = subprocess.run([sys.executable, "-c", own], capture_output=True, timeout=60, check=False)
        thread.join(20)
    assert (script.count(":8000/"), done.returncode) == (1, code)


def test_the_unit_is_one_of_systemd(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "fastadv.service"
    text = (DEPLOY / "fastadv.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/fastadv/bin/fastadv ", f"{sys.executable} "))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", unit]  # exposure 1.5
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_on_serving_has_every_limit():
    limits = [option for option in SERVE.params if option.rich_help_panel == "Limits"]
    rows = re.findall(r"(?m)^\| `(--[a-z-]+)` \| `(\w+)` \|", SERVING)
    assert {option.opts[0] for option in limits} == {option for option, _ in rows} | {"--max-batch", "--max-wait-ms"}
    assert {field for _, field in rows} <= set(ServiceConfig.__dataclass_fields__)
    table = SERVING.partition("fastadv_refused_total")[2].partition("| --- |")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\| `(\w+)` \|", table) == list(LIMITS)
