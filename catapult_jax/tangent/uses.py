"""Where a traced program uses its parameters: the equations that are linear in one of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from catapult_jax.tangent.equations import called_program, needed_equations, scan_operands
from catapult_jax.tangent.layers import RULES, Layer, over_steps
from catapult_jax.xla import first_example

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


class View(NamedTuple):
    """A parameter on its way to its use: ``value = factor * move(leaf)``, where ``move`` only moves or drops entries."""

    leaf: int  # its number among the leaves of params
    value: Array
    moves: tuple[tuple[Callable, str], ...] = ()  # operations in order, each with a text that tells it from others
    factor: Array | None = None  # scalar; None: one
    region: tuple[tuple[int, int], ...] = ()  # (start, stop) along each axis of the parameter, if the first move is a slice


def _moved(leaf: Array, moves: Sequence[tuple[Callable, str]]) -> Array:
    """An array like a parameter, with the moves of a view of it."""
    for move, _ in moves:
        leaf = move(leaf)
    return leaf


class Use(NamedTuple):
    """An equation that is linear in a parameter, and in which no other parameter enters directly."""

    leaf: int  # number of the parameter among the leaves of params
    layout: tuple  # uses of a parameter with equal layouts have gradients with the same entries, in one order or transposed
    region: tuple  # see :class:`View`
    shape: tuple[int, ...]  # of the pre-activations of one example
    dtype: np.dtype  # of the pre-activations
    layer: Layer  # how the inputs enter the weight
    weights: Callable  # array like the parameter -> (m, g, c), as in :class:`Layer`
    linear: Callable  # (parameter, inputs) -> pre-activations, without the factor of the view
    scan: int = -1  # number of the scan that the equation is in, among those that parameters enter; -1: in none
    inner: Use | None = None  # the use in the body of that scan; there, ``leaf`` is the number of the operand of the scan
    is_turned: bool = False  # the entries of its gradients are those of the first use of the same layout, transposed


class Plan(NamedTuple):
    """The program of a model for one example, and where its parameters enter."""

    program: ClosedJaxpr  # (leaves, one example) -> outputs
    uses: tuple[Use, ...]  # of the covered parameters, in the order of the program
    # Parameters whose every use is a :class:`Use`. Uses with different layouts take different entries.
    covered: frozenset[int]
    entrywise: frozenset[int]  # vectors, and parameters that enter entry by entry: their gradients are as small as they are


_EMPTY = jax.make_jaxpr(lambda: ())().jaxpr
# Operations that move the entries of an array, or drop some; the dtype may change.
_MOVES = {"reshape", "transpose", "squeeze", "rev", "slice", "copy", "copy_p", "name", "convert_element_type"}
# Operations whose derivative in a parameter has the size of that parameter.
_ENTRYWISE = {"add", "sub", "mul", "div", "max", "min", "add_any"}
# Calls whose program is followed. A custom derivative stays closed: inside it, other rules of differentiation hold.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}


def plan(apply_fn: Callable, params: PyTree, x: PyTree) -> Plan:
    """Find where the parameters enter the program of a model, from shapes alone.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Arrays or shapes.
      x: ``(b, ...)`` array or shape.

    Returns:
      The program, the uses of the parameters that they cover, and the parameters that enter entry by entry.

    >>> found = plan(lambda p, x: x @ p["w"] + p["b"], {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((1, 3)))
    >>> sorted(found.covered), sorted(found.entrywise)  # the leaves are b, w
    ([1], [0])
    """
    shapes, tree = jax.tree.flatten(jax.tree.map(_shape, params))
    example = first_example(x)
    program = jax.make_jaxpr(lambda leaves, example: apply_fn(jax.tree.unflatten(tree, leaves), example))(shapes, example)
    found = _Found([], set(), set())

    def collect(leaves, example):
        output = _of_example(program, leaves, example, _collecting(found))
        if isinstance(output, View):
            found.other.add(output.leaf)
        return _plain([output])

    jax.eval_shape(collect, shapes, example)
    uses, entrywise, other = found
    scalars = {i for i, shape in enumerate(shapes) if not shape.ndim}  # they are no views
    vectors = {i for i, shape in enumerate(shapes) if shape.ndim < 2}
    entrywise |= scalars
    uses_of: dict[int, list[Use]] = {}
    for use in uses:
        uses_of.setdefault(use.leaf, []).append(use)
    layouts = {leaf: _layouts(own, shapes[leaf].shape) for leaf, own in uses_of.items() if leaf not in entrywise | other}
    unused = frozenset(range(len(shapes))) - uses_of.keys() - entrywise - other
    covered = {leaf for leaf, names in layouts.items() if names is not None}
    entrywise = (entrywise - other - uses_of.keys()) | (vectors - unused - covered)
    covering = [use._replace(**(layouts[use.leaf] or {})[use.layout]) for use in uses if use.leaf in covered]
    return Plan(program, tuple(covering), unused | covered, frozenset(entrywise))


def _layouts(uses: Sequence[Use], shape: tuple[int, ...]) -> dict[tuple, dict[str, Any]] | None:
    """Layout of a use of one parameter -> its name in the plan, one for all uses that take the same entries.

    None: two uses have entries in common, and are not all of the same in one order or transposed.
    """
    firsts = {use.layout: use for use in reversed(uses)}
    firsts = {use.layout: firsts[use.layout] for use in uses}  # in the order of the program
    if _are_disjoint([use.region for use in firsts.values()]):
        return {layout: {} for layout in firsts}
    # The numbers of the entries take a few times the memory of the parameter, while it is planned.
    with jax.ensure_compile_time_eval():
        numbers = lambda: lax.iota(np.uint32, math.prod(shape)).reshape(shape)
        entries = {layout: np.asarray(use.weights(numbers())) for layout, use in firsts.items()}
    named: dict[tuple, dict[str, Any]] = {}
    for layout, own in entries.items():
        for known in [known for known, name in named.items() if not name]:
            is_same = np.array_equal(own, entries[known])
            if is_same or np.array_equal(own.T, entries[known]):
                named[layout] = {"layout": known, "is_turned": not is_same}
                break
            if np.isin(own, entries[known]).any():
                return None
        named.setdefault(layout, {})
    return named


def outputs_and_inputs(
    plan: Plan, leaves: Sequence[Array], example: PyTree, taps: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """Outputs of one example, and the inputs of each use. The taps, all zero, are added to the pre-activations.

    Args:
      plan: From :func:`plan`.
      leaves: Of the parameters.
      example: One example, without the axis of the batch.
      taps: One for each use. The derivative in it is that in the pre-activations, times the factor of the view.

    Returns:
      The outputs, with a first axis of size one; the inputs.
    """
    visit, inputs = _tapping(plan.uses, taps)
    (output,) = _plain([_of_example(plan.program, leaves, jax.tree.map(lambda a: a[None], example), visit)])
    return output, inputs


class _Visit(NamedTuple):
    """What is asked at the equations that parameters enter. Operands that are parameters are views."""

    # (eqn, operands, whether each of them depends on the example) -> output, or None: the equation is evaluated as it is
    use: Callable
    scan: Callable  # (eqn, operands) -> outputs, or None


class _Found(NamedTuple):
    uses: list[Use]
    entrywise: set[int]
    other: set[int]


def _collecting(found: _Found) -> _Visit:
    """Notes the uses of the parameters. It is for shapes: nothing is computed."""
    scans = [0]

    def use(eqn, operands, varies):
        views = [i for i, v in enumerate(operands) if isinstance(v, View)]
        use = _use(eqn, operands, views[0]) if len(views) == 1 else None
        if use is not None:
            found.uses.append(use)
        elif eqn.primitive.name == "broadcast_in_dim" or (eqn.primitive.name in _ENTRYWISE and any(varies)):
            found.entrywise.update(operands[i].leaf for i in views)
        else:
            found.other.update(operands[i].leaf for i in views)

    def scan(eqn, operands):
        number, scans[0] = scans[0], scans[0] + 1
        consts, carry, _ = scan_operands(eqn)
        inner, leaf_of = _Found([], set(), set()), {i: v.leaf for i, v in enumerate(operands) if isinstance(v, View)}
        if not eqn.params["length"]:
            found.other.update(leaf_of.values())
            return
        found.other.update(leaf_of[i] for i in carry if i in leaf_of)
        at = [v if i in consts or i in carry else jax.tree.map(lambda a: a[0], v) for i, v in enumerate(_plain(operands))]
        inputs = [_inside(i, view, value, i in carry) for i, (view, value) in enumerate(zip(operands, at, strict=True))]
        # A vector of one number for each step: each number may scale another parameter.
        inner.entrywise.update(i for i in leaf_of if i not in carry and not isinstance(inputs[i], View))
        within = [(value, i not in consts) for i, value in enumerate(inputs)]
        for output, _ in _run(*called_program(eqn), within, _collecting(inner)):
            inner.other.update([output.leaf] if isinstance(output, View) else [])
        found.entrywise.update(leaf_of[i] for i in inner.entrywise)
        found.other.update(leaf_of[i] for i in inner.other)
        steps = eqn.params["length"]
        found.uses.extend(_scanned(use, operands[use.leaf], steps, number, use.leaf not in consts) for use in inner.uses)

    return _Visit(use, scan)


def _tapping(uses: Sequence[Use], taps: Sequence[Array]) -> tuple[_Visit, list[Array]]:
    """Adds the taps to the pre-activations of the uses. The list gets their inputs while the program is evaluated."""
    inputs: list = [None] * len(uses)
    here, scans = [i for i, use in enumerate(uses) if use.inner is None], [0]
    covered = {uses[i].leaf for i in here}

    def use(eqn, operands, varies):
        i = next(i for i, v in enumerate(operands) if isinstance(v, View))
        if operands[i].leaf not in covered:
            return None
        number = here.pop(0)
        view, tap, inputs[number] = operands[i], taps[number], operands[1 - i]
        return _bind(eqn, _plain(operands))[0] + (tap if view.factor is None else (view.factor * tap).astype(tap.dtype))

    def scan(eqn, operands):
        number, scans[0] = scans[0], scans[0] + 1
        inner = {i: use.inner for i, use in enumerate(uses) if use.inner is not None and use.scan == number}
        if not inner:
            return None
        consts, carry, xs = scan_operands(eqn)
        values = _plain(operands)

        def body(carried, at_step):
            slices, taps = at_step
            at = [*values[: len(consts)], *carried, *slices]
            visit, inputs = _tapping([*inner.values()], taps)
            within = [_inside(i, view, value, i in carry) for i, (view, value) in enumerate(zip(operands, at, strict=True))]
            outputs = _plain([v for v, _ in _run(*called_program(eqn), [(v, True) for v in within], visit)])
            return outputs[: len(carry)], (outputs[len(carry) :], inputs)

        start, over = [values[i] for i in carry], ([values[i] for i in xs], [taps[i] for i in inner])
        options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
        end, (ys, stacked) = lax.scan(body, start, over, **options)
        for i, h in zip(inner, stacked, strict=True):
            inputs[i] = h
        return [*end, *ys]

    return _Visit(use, scan), inputs


def _are_disjoint(regions: Sequence[tuple]) -> bool:
    """Whether no two of these parts of a parameter have an entry in common; () is all of it."""
    apart = lambda a, b: any(first[1] <= second[0] or second[1] <= first[0] for first, second in zip(a, b, strict=False))
    return all(apart(a, b) for a, b in itertools.combinations(regions, 2))


def _inside(i: int, operand: Any, value: Array, is_carry: bool) -> Any:
    """Operand ``i`` of a scan in its body: a view, if it is one outside and stays an array."""
    if not isinstance(operand, View) or is_carry or not jnp.ndim(value):
        return value
    return View(i, value, factor=operand.factor)


def _scanned(use: Use, view: View, steps: int, number: int, is_stacked: bool) -> Use:
    """A use in the body of a scan, seen from outside. ``is_stacked``: each step has a weight of its own."""
    layer, moves = over_steps(use.layer._replace(weights=use.weights), steps, is_stacked=is_stacked), view.moves
    over = jax.vmap(use.linear, (0 if is_stacked else None, 0))
    return Use(
        view.leaf,
        (*(text for _, text in moves), f"scan {is_stacked}", *use.layout),
        view.region,
        (steps, *use.shape),
        use.dtype,
        layer,
        lambda leaf: layer.weights(_moved(leaf, moves)),
        lambda weight, h: over(_moved(weight, moves), h),
        scan=number,
        inner=use,
    )


def _of_example(program: ClosedJaxpr, leaves: Sequence[Array], example: PyTree, visit: _Visit) -> Any:
    """The output of a program for one example; a view if it is a parameter."""
    views = [View(i, leaf) if jnp.ndim(leaf) else leaf for i, leaf in enumerate(leaves)]  # a number may scale another parameter
    inputs = [*((view, False) for view in views), *((leaf, True) for leaf in jax.tree.leaves(example))]
    ((output, _),) = _run(program.jaxpr, program.consts, inputs, visit)
    return output


def _run(jaxpr: Jaxpr, consts: Sequence, inputs: Sequence[tuple[Any, bool]], visit: _Visit) -> list[tuple[Any, bool]]:
    """The outputs of a program; each value comes with whether it depends on the example."""
    values = dict(zip(jaxpr.constvars, ((const, False) for const in consts), strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: (atom.val, False) if isinstance(atom, Literal) else values[atom]
    for eqn in needed_equations(jaxpr):
        values |= dict(zip(eqn.outvars, _step(eqn, [read(atom) for atom in eqn.invars], visit), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(eqn, inputs: list[tuple[Any, bool]], visit: _Visit) -> list[tuple[Any, bool]]:
    """The outputs of an equation."""
    operands, varies = [value for value, _ in inputs], [varies for _, varies in inputs]
    outputs, name = None, eqn.primitive.name
    if any(isinstance(operand, View) for operand in operands):
        if name in _CALLS:
            return _run(*called_program(eqn), inputs, visit)
        if name == "scan":
            outputs = visit.scan(eqn, operands)
        else:
            output = _view(eqn, operands)
            output = visit.use(eqn, operands, varies) if output is None else output
            outputs = None if output is None else [output]
    outputs = _bind(eqn, _plain(operands)) if outputs is None else outputs
    return [(value, any(varies)) for value in outputs]


def _bind(eqn, operands: Sequence[Array]) -> list[Array]:
    """The outputs of an equation, as JAX evaluates it."""
    inputs = {atom: value for atom, value in zip(eqn.invars, operands, strict=True) if not isinstance(atom, Literal)}
    program = _EMPTY.replace(invars=list(inputs), outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects)
    return jaxpr_as_fun(ClosedJaxpr(program, ()))(*inputs.values())


def _plain(operands: Sequence) -> list:
    return [operand.value if isinstance(operand, View) else operand for operand in operands]


def _view(eqn, operands: Sequence) -> View | None:
    """The output of an equation as a view of the same parameter, or None: it is none."""
    name = eqn.primitive.name
    (i, view), *others = [(i, v) for i, v in enumerate(operands) if isinstance(v, View)]
    if others:
        return None
    value = lambda: _bind(eqn, _plain(operands))[0]
    if name in _MOVES and len(operands) == 1:
        if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            return None
        if name == "convert_element_type":  # the moves are those of the entries alone
            return view._replace(value=value())
        view = view._replace(value=value(), moves=(*view.moves, (lambda a: _bind(eqn, [a])[0], f"{name} {eqn.params}")))
        if name == "slice" and len(view.moves) == 1:
            ends = zip(eqn.params["start_indices"], eqn.params["limit_indices"], strict=True)
            return view._replace(region=tuple(ends))
        return view
    if (
        name == "broadcast_in_dim" and eqn.outvars[0].aval.size == view.value.size and len(operands) == 1
    ):  # new axes of size one
        shape = eqn.outvars[0].aval.shape
        return view._replace(value=value(), moves=(*view.moves, (lambda a: a.reshape(shape), f"reshape {shape}")))
    one = jnp.ones((), view.value.dtype) if view.factor is None else view.factor
    if name == "neg":
        return view._replace(value=value(), factor=-one)
    is_scaled = name == "mul" or (name == "div" and i == 0)
    if is_scaled and jnp.ndim(operands[1 - i]) == 0:
        return view._replace(value=value(), factor=one * operands[1 - i] if name == "mul" else one / operands[1 - i])
    return None


def _use(eqn, operands: Sequence, i: int) -> Use | None:
    """An equation as a use of the parameter that is its operand ``i``, or None: it has no rule."""
    rule, moves = RULES.get(eqn.primitive.name), operands[i].moves  # without the value: it belongs to the trace
    layer = None if rule is None else rule(eqn, i)
    if layer is None:
        return None
    dtype, out = eqn.invars[i].aval.dtype, eqn.outvars[0].aval

    def linear(weight, inputs):
        weight = _moved(weight, moves).astype(dtype)
        return _bind(eqn, (weight, inputs) if i == 0 else (inputs, weight))[0]

    layout = (*(text for _, text in moves), layer.layout)
    weights = lambda leaf: layer.weights(_moved(leaf, moves))
    return Use(operands[i].leaf, layout, operands[i].region, out.shape, out.dtype, layer, weights, linear)


def _shape(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
