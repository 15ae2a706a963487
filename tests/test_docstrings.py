"""Docstrings of the library: each public function says what it takes, what it returns, and shows it."""

import ast
import inspect
from pathlib import Path

import pytest

import catapult_jax

ROOT = Path(__file__).parents[1]


def public_functions():
    """Name and node of each public function at the top of a module."""
    for path in sorted((ROOT / "catapult_jax").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield pytest.param(node, id=f"{path.relative_to(ROOT)}:{node.name}")


def returns_a_value(node: ast.FunctionDef) -> bool:
    return not (node.returns is None or (isinstance(node.returns, ast.Constant) and node.returns.value is None))


@pytest.mark.parametrize("node", list(public_functions()))
def test_a_public_function_has_args_and_returns(node):
    text = ast.get_docstring(node) or ""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    assert "Args:" in text or not arguments
    assert "Returns:" in text or not returns_a_value(node)


@pytest.mark.parametrize("name", [name for name in catapult_jax.__all__ if inspect.isfunction(getattr(catapult_jax, name))])
def test_a_function_of_the_package_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(catapult_jax, name))
