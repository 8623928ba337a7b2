"""Imports go one way."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "imgrec_jax"

# What each part may import from the package; "" stands for the modules directly in it, of which only those listed.
PURE = {"ops", "losses", "metrics", "detection", "segmentation"}
ALLOWED = {
    "ops": {"ops"},
    "losses": {"ops"},
    "metrics": {"losses"},
    "detection": PURE,
    "segmentation": PURE,
    "models": PURE | {"models"},
    "tasks": PURE | {"models", "tasks"},
    "at_hand": set(),
    "pretrained": PURE | {"at_hand", "models", "pretrained"},
    "data": {"at_hand", "data"},
    "stats": set(),
    "config": {"config"},
    "optim": set(),
    "step": {"metrics", "tasks"},
    "machine": set(),
    "compiled": {"machine"},
    "distributed": set(),
    "parallel": {"data", "distributed"},
    "experiment": {"data", "parallel", "tasks"},
    "run": {
        "compiled",
        "config",
        "data",
        "distributed",
        "experiment",
        "machine",
        "metrics",
        "ops",
        "parallel",
        "run",
        "step",
    },
    "assemble": PURE
    | {
        "assemble",
        "config",
        "data",
        "experiment",
        "models",
        "optim",
        "parallel",
        "pretrained",
        "run",
        "stats",
        "step",
        "tasks",
    },
    "inference": PURE | {"assemble", "at_hand", "compiled", "data", "inference", "parallel", "pretrained", "run", "tasks"},
    "attribution": {"attribution", "inference", "tasks"},
    "serving": {"attribution", "data", "inference", "pages", "serving"},
    "pages": PURE | {"assemble", "at_hand", "config", "data", "experiment", "inference", "pages", "parallel", "run", "stats"},
}
# The commands: flags only, logic below.
COMMANDS = {"explain", "export", "main", "predict", "report", "serve", "sweep"}
NEVER_IN_DATA = {"jax", "flax", "optax", "tensorflow", "torch"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    names = imports(path)
    own = {name.split(".")[1] for name in names if name.startswith("imgrec_jax.")}
    allowed = ALLOWED.get(part(path))
    if allowed is not None:
        assert own <= allowed, f"{path.name} imports {sorted(own - allowed)}"
    assert not own & COMMANDS
    assert not {name.split(".")[0] for name in names} & {"configs", "experiments", "tests", "tensorflow", "torch"}
    if part(path) == "data":
        assert not {name.split(".")[0] for name in names} & NEVER_IN_DATA


def test_gradients_are_taken_in_one_file():
    found = [p.name for p in PACKAGE.rglob("*.py") if "value_and_grad(" in p.read_text()]
    assert found == ["step.py"]


def test_flags_live_in_the_commands_alone():
    found = {p.stem for p in PACKAGE.rglob("*.py") if "absl" in {n.split(".")[0] for n in imports(p)}}
    assert found <= COMMANDS and all((PACKAGE / f"{name}.py").exists() for name in COMMANDS)


def module_of(path: Path) -> str:
    parts = ["imgrec_jax", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_imports_go_in_circles():
    """Imports inside functions count, too."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}

    def target(name: str) -> str | None:
        """The module of the package that an imported name is, or is in."""
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or None

    # Whoever imports a module imports the packages above it, but these do not depend on it for that.
    graph = {name: {target(n) for n in imports(path)} - {None, name, "imgrec_jax"} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"imports go in a circle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        if name != "imgrec_jax":  # the door: everything may be behind it
            visit(name, ())


def test_every_part_is_packed_into_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == there | {"imgrec_jax.configs"}
