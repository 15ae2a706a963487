"""The house: names, the direction of imports, and the size of rooms."""

import ast
import graphlib
import importlib
import pkgutil
from pathlib import Path

import catapult_jax
import experiments

ROOT = Path(__file__).parents[1]
_MOST_LINES = {"file": 450, "function": 80}
# Over these limits, each with the reason; a row that is not needed any more fails the test.
_LONG_FILES = {
    "catapult_jax/records.py": "one file format: writing, checking, repairing",
}

_LONG_FUNCTIONS = {}

# Modules of the library from the ground up; each imports from itself and from those before it.
_FLOORS = (
    "xla", "losses", "models", "data", "tangent", "optimizer_links", "optimizer_rules", "preconditioners", "critical", "eigenspace",
    "outer_product", "directional", "events", "detection", "spikes", "criteria", "metrics", "schedules", "training", "records", "checkpoints", "report", "sinks", "watched_step", "monitor", "recorder",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the library, the programs and the configs, by name."""
    paths = {}
    for top in ("catapult_jax", "experiments", "configs"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(path: Path, paths: dict[str, Path]) -> set[str]:
    """Modules of ours that a module imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in paths else node.module)
    return {name for name in names if name in paths}


def test_no_public_name_shadows_a_module():
    for top in (catapult_jax, experiments):
        for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
            imported = importlib.import_module(module.name)
            parent, _, leaf = module.name.rpartition(".")
            assert getattr(importlib.import_module(parent), leaf) is imported, module.name


def test_imports_make_no_cycle_and_point_downwards():
    paths = modules()
    needs = {name: imports(path, paths) - {name} for name, path in paths.items()}
    assert len(list(graphlib.TopologicalSorter(needs).static_order())) == len(paths)  # raises CycleError
    layers = ("catapult_jax", "configs", "experiments")  # configs hold fields alone
    layer = lambda name: layers.index(name.partition(".")[0])
    for name, needed in needs.items():
        assert all(layer(other) <= layer(name) for other in needed), name
        assert not name.startswith("configs.") or all(other.startswith("configs") for other in needed), name
    floors = {f"catapult_jax.{room}": i for i, room in enumerate(_FLOORS)}
    floor = lambda name: floors.get(".".join(name.split(".")[:2]))  # None: on no floor
    for name, needed in needs.items():
        if floor(name) is not None:
            assert all(floor(other) is None or floor(other) <= floor(name) for other in needed), name


def test_report_imports_records_and_events_only():
    paths = modules()
    for name, path in paths.items():
        needed = imports(path, paths)
        if name.startswith("catapult_jax.report"):
            rooms = ("report", "records", "events", "detection", "spikes", "criteria", "metrics")
            allowed = tuple(f"catapult_jax.{room}" for room in rooms)
            assert all(other == "catapult_jax" or other.startswith(allowed) for other in needed), name
        elif name.startswith("catapult_jax"):
            assert not any(other.startswith("catapult_jax.report") for other in needed), name


def test_the_library_needs_no_package_of_the_programs():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            needed = [node.module] if isinstance(node, ast.ImportFrom) else []
            needed += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            tops = {str(module).partition(".")[0] for module in needed}
            assert not (name.startswith("catapult_jax") and tops & {"experiments", "configs", "absl", "ml_collections"}), name


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}
    assert {name for name, lines in lengths.items() if lines > _MOST_LINES["file"]} == set(_LONG_FILES)


def test_functions_are_short():
    """Without their docstrings."""
    long = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                text = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)
                if lines > _MOST_LINES["function"] and not name.startswith("configs."):
                    long.add(f"{name}.{node.name}")
    assert long == set(_LONG_FUNCTIONS)
