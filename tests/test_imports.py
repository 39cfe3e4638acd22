"""Imports go one way: a module may import only from the layers before its own, and from its own (`LAYERS`)."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("eagle_jax", "experiments", "configs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

LAYERS = [
    ["eagle_jax.types", "eagle_jax.files", "eagle_jax.processes", "eagle_jax.platforms", "eagle_jax.accelerators"],
    ["eagle_jax.journal"],
    ["eagle_jax.kernels"],
    ["eagle_jax.tree", "eagle_jax.sampling", "eagle_jax.cache"],
    ["eagle_jax.verify", "eagle_jax.models", "eagle_jax.penalties", "eagle_jax.logprobs"],
    ["eagle_jax.sharding", "eagle_jax.provenance"],
    ["eagle_jax.drafters.base"],
    [f"eagle_jax.drafters.{name}" for name in ("head", "best_first", "draft_model", "ngram_pool", "placement")],
    ["eagle_jax.drafters"],
    ["eagle_jax.decode", "eagle_jax.generator", "eagle_jax.give_up", "eagle_jax.continuous"],
    ["eagle_jax.checkpoint", "eagle_jax.chat", "eagle_jax.testing"],
    ["eagle_jax.training"],
    ["eagle_jax.evaluation"],
    ["eagle_jax.figures"],
    ["configs"],
    ["experiments"],
]

# Closer rules than the layers give: the first may not import the second.
FORBIDDEN = [
    ("eagle_jax.models", "eagle_jax.tree"),  # a model knows masks, not trees
    ("eagle_jax.models", "eagle_jax.verify"),
    ("eagle_jax.verify", "eagle_jax.models"),
    ("eagle_jax.decode", "eagle_jax.drafters"),  # the loop knows the protocol and no drafter by name
    ("eagle_jax.training", "eagle_jax.drafters"),
    ("eagle_jax.training", "eagle_jax.decode"),
]
ALLOWED = {("eagle_jax.decode", "eagle_jax.drafters.base"), ("eagle_jax.drafters.eagle3", "eagle_jax.drafters.eagle2")}
# Published .bin heads are read with PyTorch, and speed is measured against it.
MAY_IMPORT_TORCH = {"experiments.convert", "experiments.bench.torch_baseline"}


def module_name(path: Path) -> str:
    """Dotted name of a file; a package stands for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module or name that a file imports, anywhere in it, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def inside(module: str, package: str) -> bool:
    """Whether `module` is `package` or lies in it."""
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> int | None:
    """Index in LAYERS by the longest prefix that matches."""
    found = [(len(name), index) for index, names in enumerate(LAYERS) for name in names if inside(module, name)]
    return max(found)[1] if found else None


def may_import(module: str, other: str) -> bool:
    """The rule of this file."""
    if any(inside(module, a) and inside(other, b) for a, b in ALLOWED):
        return True
    if any(inside(module, a) and inside(other, b) for a, b in FORBIDDEN):
        return False
    here, there = layer_of(module), layer_of(other)
    if here is None or there is None:
        return module == "eagle_jax"  # the package itself re-exports from everywhere; nobody imports from it
    if inside(module, "eagle_jax.drafters") and inside(other, "eagle_jax.drafters") and here == there:
        return module == "eagle_jax.drafters"  # drafters never import each other; their __init__ lists them
    return there <= here


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path: Path) -> None:
    module = module_name(path)
    for other, line in imported(path):
        if other.split(".")[0] in FOLDERS:
            assert may_import(module, other), f"{path}:{line}: {module} must not import {other}"
        if other.split(".")[0] == "torch":
            assert module in MAY_IMPORT_TORCH, f"{path}:{line}: {module} must not import torch"


def test_every_module_has_a_layer() -> None:
    modules = [module_name(path) for path in FILES]
    assert [name for name in modules if layer_of(name) is None and name != "eagle_jax"] == []


@pytest.mark.parametrize(
    ("module", "other", "allowed"),
    [
        ("eagle_jax.tree", "eagle_jax.types.NO_PARENT", True),
        ("eagle_jax.types", "eagle_jax.tree", False),
        ("eagle_jax.models.layers", "eagle_jax.tree", False),
        ("eagle_jax.drafters.eagle3", "eagle_jax.drafters.eagle2.expand", True),
        ("eagle_jax.drafters.chain", "eagle_jax.drafters.vanilla", False),
        ("eagle_jax.drafters.chain", "eagle_jax.drafters.base.Drafter", True),
        ("eagle_jax.decode", "eagle_jax.drafters.base.Drafter", True),
        ("eagle_jax.decode", "eagle_jax.drafters.chain", False),
        ("eagle_jax.evaluation.tasks", "experiments.cli.launch", False),
    ],
)
def test_rule(module: str, other: str, allowed: bool) -> None:
    assert may_import(module, other) == allowed


def test_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """Run where the clone lies, a script must not take the clone's folder for the package."""
    (tmp_path / "eagle_jax").mkdir()
    command = [sys.executable, "-c", "import eagle_jax; eagle_jax.load_target"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)


@pytest.mark.parametrize(
    ("missing", "module"),
    [("matplotlib", "eagle_jax.figures.charts"), ("tensorboardX", "eagle_jax.training.run")],
)
def test_decoding_needs_no_package_for_figures_or_logs(missing: str, module: str) -> None:
    """A missing package is named where it is first used, and not before."""
    steps = f"import sys; sys.modules[{missing!r}] = None; import eagle_jax, experiments.generate; print('ready')"
    command = [sys.executable, "-c", f"{steps}; import {module}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout == "ready\n", run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert missing in last


def test_setup_requires_what_is_imported() -> None:
    """And nothing else; what only some comparisons use is an extra."""
    text = (ROOT / "setup.py").read_text().partition("RUNTIME = [")[2].partition("]")[0]
    required = {name.lower().replace("-", "_") for name in re.findall(r'"([\w-]+)>=', text)}
    names = {other.split(".")[0] for path in FILES for other, _ in imported(path)}
    names -= {*sys.stdlib_module_names, *FOLDERS, "torch", "openvino", "openvino_genai"}
    names -= {"jaxlib", "ml_dtypes"}  # come with jax
    distributions = importlib.metadata.packages_distributions()
    owners = {name: {owner.lower().replace("-", "_") for owner in distributions[name]} for name in names}
    assert [name for name, own in owners.items() if not own & required] == []
    assert required <= set().union(*owners.values())
