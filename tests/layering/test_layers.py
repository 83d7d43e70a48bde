"""Imports go down only: read from the syntax tree of every module of the package."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

import pytest

import fastadv

ROOT = Path(fastadv.__file__).parent

# from the top to the bottom; modules of one line do not import each other
LAYERS = (
    ("fastadv.__main__",),
    ("fastadv.cli",),
    ("fastadv.report",),
    ("fastadv.studies",),
    ("fastadv.distributed",),
    ("fastadv.runs",),
    ("fastadv.compat", "fastadv.defences", "fastadv.training"),
    ("fastadv.engine",),
    ("fastadv.attacks", "fastadv.detection"),
    ("fastadv.surrogates", "fastadv.recognition"),
    ("fastadv.models", "fastadv.data"),
    ("fastadv.ops",),
    ("fastadv.backends", "fastadv.ops.reference", "fastadv.kernels"),
    ("fastadv._native",),
    ("fastadv.core",),
    ("fastadv._version",),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def layer_of(module: str) -> str | None:
    """The longest listed name that the module lies in."""
    found = [name for name in DEPTH if module == name or module.startswith(name + ".")]
    return max(found, key=len, default=None)


def module_name(path: Path) -> str:
    parts = ("fastadv", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            assert node.module is not None
            names.add(node.module)
            names.update(f"fastadv.{alias.name}" for alias in node.names if node.module == "fastadv")
    return {name for name in names if name == "fastadv" or name.startswith("fastadv.")}


# an installed package holds the Triton kernels too: they import nothing of the package, which a test of their own says
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py" and ROOT / "kernels" not in p.parents)
PRODUCT = [p for p in MODULES if p.relative_to(ROOT).parts[0] != "testing"]


def test_every_module_has_a_layer():
    assert len(PRODUCT) > 30
    assert [module_name(p) for p in PRODUCT if layer_of(module_name(p)) is None] == []


def violations(path: Path) -> list[str]:
    own = layer_of(module_name(path))
    assert own is not None
    wrong = []
    for name in imported(path):
        other = layer_of(name)
        if other is None:
            if name != "fastadv":  # the parts of `from fastadv import x` are judged on their own
                wrong.append(name)
        elif other != own and DEPTH[other] <= DEPTH[own]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", PRODUCT, ids=module_name)
def test_imports_go_down_only(path):
    assert violations(path) == []


def test_the_check_can_fail(tmp_path, monkeypatch):
    upward = tmp_path / "ops" / "bad.py"
    upward.parent.mkdir()
    upward.write_text(
        "from fastadv.engine import Engine\nfrom fastadv.testing import cases\nimport fastadv.ops.checks\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert sorted(violations(upward)) == ["fastadv.engine", "fastadv.testing"]


def test_kernels_import_nothing_of_the_package():
    spec = importlib.util.find_spec("fastadv.kernels.triton")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    kernels = [p for place in spec.submodule_search_locations for p in Path(place).glob("*.py")]
    assert len(kernels) > 5
    for path in kernels:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.level, (node.module or "").split(".")[0]) != (0, "fastadv"), path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("fastadv") for alias in node.names), path


def test_only_one_file_names_the_compiled_module():
    def names_it(path: Path) -> bool:
        constants = {
            n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)
        }
        return bool({"fastadv._C", "_C"} & (imported(path) | constants))

    naming = [module_name(p) for p in PRODUCT if names_it(p)]
    assert naming == ["fastadv._native"]


LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# loops over gradients that are no attack on an image; each with its reason
OTHER_LOOPS = {
    "defences/suspicion.py": "batches of images, one gradient of each: a measurement",
    "models/dataflow.py": "which elements of its input an operation reads, asked once of each",
    "surrogates/gd_uap.py": "one perturbation for all images, made once before the attack from no image at all",
    "training/loop.py": "steps of an optimizer over weights",
}


def takes_gradient(node: ast.AST) -> bool:
    """Whether it is a call of `torch.autograd.grad` or of a `backward`."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".autograd.grad", ".backward"))


def gradient_loops(tree: ast.Module) -> list[int]:
    """The lines of loops whose bodies take a gradient, themselves or by a function of the same file."""
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    taking: set[str] = set()
    if not any(takes_gradient(n) for n in ast.walk(tree)):
        return []

    def takes(node: ast.AST) -> bool:
        called = {ast.unparse(n.func).split(".")[-1] for n in ast.walk(node) if isinstance(n, ast.Call)}
        return any(takes_gradient(n) for n in ast.walk(node)) or bool(called & taking)

    while found := {f.name for f in functions if f.name not in taking and takes(f)}:
        taking |= found
    return [n.lineno for n in ast.walk(tree) if isinstance(n, LOOPS) and takes(n)]


def test_there_is_one_loop_for_all_attacks():
    """No loop outside the engine takes a gradient: what an attack does is a tick."""
    looping = set()
    for path in PRODUCT:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("engine/") and gradient_loops(ast.parse(path.read_text(encoding="utf-8"))):
            looping.add(name)
    assert looping == set(OTHER_LOOPS)


@pytest.mark.parametrize(
    ("source", "loops"),
    [
        ("for _ in range(steps):\n    g = torch.autograd.grad(loss(x), x)", 1),
        ("while True:\n    loss(x).backward()", 1),
        ("gs = [torch.autograd.grad(loss, x) for x in xs]", 1),
        ("def one(x):\n    return torch.autograd.grad(loss(x), x)\ndef all(x):\n    for _ in x: one(x)", 1),
        ("g = torch.autograd.grad(loss(x), x)\nfor _ in g:\n    print(_)", 0),
    ],
)
def test_loops_over_gradients_are_seen(source, loops):
    assert len(gradient_loops(ast.parse(source))) == loops


def test_there_is_one_loop_for_all_trainings():
    """Only `fastadv.models.training_loop` goes through epochs; whatever makes steps of an optimizer is a task of it."""
    loops = []
    for path in sorted((ROOT / "training").glob("*.py")) + sorted((ROOT / "detection").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        optimizes = any(
            isinstance(n, ast.Attribute) and ast.unparse(n).startswith("torch.optim.") for n in ast.walk(tree)
        )
        if optimizes and "fastadv.models.training_loop" not in imported(path):
            loops.append(path.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.For) and "epochs" in ast.unparse(node.iter) and "range(" in ast.unparse(node.iter):
                loops.append(f"{path.name}:{node.lineno}")
    assert loops == []


def test_nothing_is_forked():
    """PyTorch's threads do not survive a fork: all but one module work in threads, that one in spawned processes."""

    def forks(path: Path) -> bool:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "multiprocessing" in ast.unparse(node):
                return True
            if isinstance(node, (ast.Attribute, ast.Name)):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                if name in ("fork", "forkpty", "ProcessPoolExecutor"):
                    return True
        return False

    spawning = [p for p in PRODUCT if forks(p)]
    assert [module_name(p) for p in spawning] == ["fastadv.studies.workers"]
    calls = [n for n in ast.walk(ast.parse(spawning[0].read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    made = {ast.unparse(call) for call in calls if ast.unparse(call.func).startswith("multiprocessing.")}
    assert made == {"multiprocessing.get_context('spawn')", "multiprocessing.parent_process()"}
