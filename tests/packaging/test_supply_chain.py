"""Packages by their hashes; what a wheel holds, its licences and its bill of materials; the promises of SECURITY.md."""

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / ".ci" / "requirements").glob("*.txt")}
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the locks --


def entries(text):
    """The lines of a lock: the requirement, and its hashes."""
    joined = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", "")
    return [(Requirement(line.split(" --hash=")[0]), line.split()) for line in joined.splitlines() if line.strip()]


def pinned(text):
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement, _ in entries(text)}


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in found}


def needed(*lines):
    """The names that requirements bring on this machine, torch and fastadv left out, as the installed packages say."""

    def asked(lines, extras):
        found = map(Requirement, lines)
        return [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]

    todo, seen = asked(lines, {""}), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name == "torch" or (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            todo += asked(metadata.requires(name) or [], requirement.extras or {""})
        except metadata.PackageNotFoundError:
            continue
    return {name for name, _ in seen} - {"fastadv"}


def declared(*extras):
    """What pyproject.toml asks for, with extras; those of our own are followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines, todo = list(project["dependencies"]), list(extras)
    while todo:
        for line in project["optional-dependencies"][todo.pop()]:
            requirement = Requirement(line)
            todo += requirement.extras if requirement.name == "fastadv" else ()
            lines += [] if requirement.name == "fastadv" else [line]
    return lines


def test_each_package_of_a_lock_has_one_version_and_its_hashes():
    assert set(LOCKS) == {"run", "ci", "peers"}
    for text in LOCKS.values():
        assert "://" not in text  # of no index
        for requirement, words in entries(text):
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
            hashes = [word for word in words if word.startswith("--hash=")]
            assert hashes, requirement
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
    assert "torch" not in {name for text in LOCKS.values() for name in pinned(text)}


def test_the_versions_of_the_locks_are_those_of_the_constraints():
    versions = constraints()
    for text in LOCKS.values():
        assert {name: versions.get(name) for name in pinned(text)} == pinned(text)
    assert pinned(LOCKS["run"]).items() <= pinned(LOCKS["ci"]).items()


@pytest.mark.parametrize(("lock", "extras"), [("run", ()), ("ci", ("test", "fuzz", "lint", "docs"))])
def test_a_lock_has_everything_that_is_needed(lock, extras):
    torch = [line for line in metadata.requires("torch") or () if not line.startswith(("cuda", "nvidia", "triton"))]
    assert needed(*declared(*extras), *torch) - set(pinned(LOCKS[lock])) == set()


def test_what_continuous_integration_installs_has_hashes():
    """But PyTorch, which has a version, and our own wheel, which may fetch nothing."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"(?m)^(\S[^:=\n]*):(?!=).*\n((?:\t.*\n)*)", text)
    lines = {name: re.findall(r"pip install (.*)", recipe) for name, recipe in targets}
    of_ci = {name: found for name, found in lines.items() if found and name not in OTHER_TARGETS}
    assert len(of_ci) == 4, of_ci
    for found in of_ci.values():
        for line in found:
            assert re.search(r"\$\(LOCKED\)|--no-deps|--no-index|torch==[0-9.]+$", line), line
    assert "--require-hashes --only-binary :all:" in text.partition("LOCKED := ")[2].partition("\n")[0]


OTHER_TARGETS = {"lock", "audit", "install-test", "gpu-check"}  # of developers; install-test is what a user does


# -- the wheel --

CHECK = script("check_wheel") if importlib.util.find_spec("elftools") else None
needs_tools = pytest.mark.skipif(CHECK is None or shutil.which("cc") is None, reason="needs pyelftools and a compiler")
INFO = "fastadv-1.0.dist-info"
MODULE = "fastadv/_C.cpython-311-x86_64-linux-gnu.so"
PACKAGE = {"fastadv/__init__.py": b"x = 1\n", "fastadv/weights/a.safetensors": b"weights"}


def built(folder, source="", *options):
    """A shared library."""
    (folder / "a.c").write_text(source)
    subprocess.run(["cc", "-shared", "-o", folder / "a.so", folder / "a.c", *options], check=True)
    return (folder / "a.so").read_bytes()


def linked(folder):
    """A shared library that needs another."""
    other = folder / "libother.so"
    other.write_bytes(built(folder, "", "-Wl,-soname,libother.so.1"))
    return built(folder, "", "-Wl,--no-as-needed", str(other))


def packed(folder, change):
    """A wheel of `PACKAGE` whose files were changed; None leaves one out."""
    held = {
        **PACKAGE,
        MODULE: built(folder),
        f"{INFO}/METADATA": b"License-Expression: MIT\nLicense-File: LICENSE\nLicense-File: NOTICE\n\n",
        f"{INFO}/WHEEL": b"",
        f"{INFO}/entry_points.txt": b"[console_scripts]\nfastadv = fastadv.cli:main\n",
        f"{INFO}/licenses/LICENSE": b"",
        f"{INFO}/licenses/NOTICE": b"",
    }
    held.update(change(folder))
    held = {name: data for name, data in held.items() if data is not None}
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in held.items()
    ]
    held.setdefault(f"{INFO}/RECORD", "\n".join([*rows, f"{INFO}/RECORD,,"]).encode())
    wheel = folder / "fastadv-1.0-cp311-cp311-manylinux_2_35_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return wheel


@needs_tools
def test_a_wheel_of_the_files_that_are_tracked_is_right(tmp_path):
    assert CHECK.faults(packed(tmp_path, lambda folder: {}), PACKAGE) == []


@needs_tools
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: {"fastadv/kernels/cuda/a.cu": b""}, "fastadv/kernels/cuda/a.cu: expected no such file"),
        (lambda at: {"tests/test_a.py": b""}, "tests/test_a.py: expected no such file"),
        (lambda at: {"fastadv.libs/libgomp.so.1": b""}, "fastadv.libs/libgomp.so.1: expected no such file"),
        (lambda at: {"fastadv/__init__.py": None}, "fastadv/__init__.py: expected a file, got none"),
        (lambda at: {"fastadv/__init__.py": b"x = 2\n"}, "fastadv/__init__.py: expected the bytes of the checkout"),
        (lambda at: {MODULE: None}, r"fastadv/_C\.\*\.so: expected a file, got none"),
        (lambda at: {"fastadv/_D.so": b""}, "fastadv/_D.so: expected no such file"),
        (lambda at: {f"{INFO}/licenses/NOTICE": None}, "licenses/NOTICE: expected a file, got none"),
        (
            lambda at: {f"{INFO}/RECORD": b"fastadv/__init__.py,sha256=x,6\n"},
            "expected sha256=.* in RECORD, got sha256=x",
        ),
        (lambda at: {f"{INFO}/entry_points.txt": b"[console_scripts]\nx = y:z\n"}, "entry_points.txt: expected "),
        (lambda at: {f"{INFO}/METADATA": b"License-Expression: MIT\n\n"}, "METADATA: expected the licence MIT with"),
        (lambda at: {MODULE: built(at, "", "-Wl,-rpath,/x")}, "expected no search path, got /x"),
        (lambda at: {MODULE: built(at, f'char *x = "{ROOT}/csrc/a.cpp";')}, f"no folder of this machine, got {ROOT}"),
        (lambda at: {MODULE: linked(at)}, "expected libraries of the system, got libother.so.1"),
    ],
)
def test_what_a_wheel_should_not_be_is_one_line_each(change, message, tmp_path):
    found = CHECK.faults(packed(tmp_path, change), PACKAGE)
    assert any(re.search(message, line) for line in found), found


@needs_tools
def test_a_new_kind_of_file_is_decided_by_its_suffix(tmp_path):
    wanted = {**PACKAGE, "fastadv/notes.bak": b""}
    (line,) = CHECK.faults(packed(tmp_path, lambda folder: {"fastadv/notes.bak": b""}), wanted)
    assert line.startswith("fastadv/notes.bak: expected one of .css, .html, .py, .safetensors, .typed")


# -- the licences --


def test_the_notice_names_every_file_of_weights():
    weights = {file.stem for file in (ROOT / "fastadv").rglob("*.safetensors")}
    assert set(re.findall(r"(?m)^Weights: (.*)$", NOTICE)[0].split(", ")) == weights
    for maker in re.findall(r"bench/\w+\.py", NOTICE):
        assert (ROOT / maker).is_file()


def test_the_notice_has_the_licence_of_what_is_compiled_in():
    files = metadata.files("pybind11") or ()
    (licence,) = [file.read_text(encoding="utf-8") for file in files if file.name == "LICENSE"]
    assert " ".join(licence.split()) in " ".join(NOTICE.split())


# -- the bill of materials --

SBOM = script("sbom")


def wheel_that_asks_for(folder, *lines):
    wheel = folder / "fastadv-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fastadv/weights/a.safetensors", b"weights")
        archive.writestr("fastadv/_C.so", b"... cudart ...")
        archive.writestr(f"{INFO}/METADATA", "".join(f"Requires-Dist: {line}\n" for line in lines) + "\n")
    return wheel


def test_the_bill_names_the_wheel_its_parts_and_what_it_needs(tmp_path):
    wheel = wheel_that_asks_for(tmp_path, "needed-one[more]", 'absent; extra == "x"', 'other; python_version < "3"')
    names = ("fastadv", "Needed_One", "needed.two", "pip")
    components = [{"bom-ref": f"{name}==1.0", "name": name, "version": "1.0", "type": "library"} for name in names]
    rows = [
        ("needed-one", "1", ['needed-two; extra == "more"', 'pip; extra == "test"']),
        ("Needed.Two", "2", ["needed-one"]),  # a circle
    ]
    installed = [
        {
            "metadata": {"name": name, "requires_dist": asked},
            "download_info": {"archive_info": {"hashes": {"sha256": digit * 64}}},
        }
        for name, digit, asked in rows
    ]
    (tmp_path / "report.json").write_text(json.dumps({"install": installed}))
    files = SBOM.installed([tmp_path / "report.json"])
    made = SBOM.bill({"metadata": {}, "components": components}, wheel, files)
    subject = made["metadata"]["component"]
    assert (subject["name"], subject["hashes"]) == ("fastadv", SBOM.sha256(wheel.read_bytes()))
    parts = {part["name"]: part for part in subject["components"]}
    assert set(parts) == {"pybind11", "CUDA runtime", "a"}
    assert parts["a"]["hashes"][0]["content"] == hashlib.sha256(b"weights").hexdigest()
    hashes = {component["name"]: component["hashes"][0]["content"] for component in made["components"]}
    assert hashes == {"Needed_One": "1" * 64, "needed.two": "2" * 64}
    assert {row["ref"]: row["dependsOn"] for row in made["dependencies"]} == {
        "fastadv==1.0": ["Needed_One==1.0"],
        "Needed_One==1.0": ["needed.two==1.0"],
        "needed.two==1.0": ["Needed_One==1.0"],
    }
    assert json.dumps(made) == json.dumps(SBOM.bill({"metadata": {}, "components": components}, wheel, files))
    with pytest.raises(SystemExit, match=r"needed-one: expected a package that pip installed, got none in its reports"):
        SBOM.bill({"metadata": {}, "components": components}, wheel, {})


@pytest.mark.slow
def test_the_bill_of_this_environment_is_by_the_schema_and_complete(tmp_path, monkeypatch):
    pytest.importorskip("cyclonedx_py", reason="cyclonedx-bom is not installed")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    wheel = wheel_that_asks_for(tmp_path, *declared())
    files = {
        canonicalize_name(found.metadata["Name"]): ("0" * 64, found.requires or [])
        for found in metadata.distributions()
    }
    made = SBOM.bill(SBOM.listed(Path(sys.executable)), wheel, files)
    text = json.dumps(made)
    SBOM.validate(text)
    listed = {canonicalize_name(component["name"]): component for component in json.loads(text)["components"]}
    assert set(listed) >= needed(*declared()) | {"torch"}
    assert "pip" not in listed
    assert {name: component["version"] for name, component in listed.items()} == {
        name: metadata.version(name) for name in listed
    }
    assert [name for name, component in listed.items() if not component.get("licenses")] == []
    assert not {"timestamp", "serialNumber"} & {*made, *made["metadata"]}
    assert str(ROOT) not in text
    with pytest.raises(SystemExit, match="expected CycloneDX"):
        SBOM.validate(text.replace('"fastadv"', "7"))


# -- the audit --

KNOWN = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("rows", "status", "lines"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, ["1 packages checked"]),
        (
            [{"name": "a", "version": "1", "vulns": [KNOWN]}, {"name": "b", "version": "1", "vulns": []}],
            1,
            ["a 1: expected no known vulnerability, got PYSEC-1; fixed in 2", "2 packages checked"],
        ),
        (
            [{"name": "a", "skip_reason": "not found"}],
            2,
            ["a: expected advisories, got not found", "0 packages checked"],
        ),
        ([], 2, ["0 packages checked"]),
    ],
)
def test_what_an_audit_says(rows, status, lines):
    assert script("audit").judge(json.dumps({"dependencies": rows, "fixes": []}), "") == (status, lines)


@pytest.mark.parametrize(
    ("output", "errors", "got"),
    [("", "Traceback\nConnectionError: no route\n", "ConnectionError: no route"), ("[]", "", "no output")],
)
def test_an_audit_without_an_advisory_service_is_no_success(output, errors, got):
    status, lines = script("audit").judge(output, errors)
    assert (status, lines) == (2, [f"advisory service: expected an answer, got {got}; nothing was checked"])


# -- the promises --


def test_each_promise_names_the_tests_that_check_it():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [
        row for row in re.findall(r"(?m)^\| (.*) \|$", text) if not row.startswith(("from others", "promise", "---"))
    ]
    assert len(rows) > 12
    for row in rows:
        files = re.findall(r"`((?:tests|\.ci)/[^`]+\.py)`", row.rpartition(" | ")[2])
        assert files, row
        assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_page_on_security_is_that_file():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert page.startswith("```{include} ../SECURITY.md\n")
