"""Work-arounds for XLA and JAX, and the constants of one machine.

Each entry says what XLA does, the public issue, the releases of JAX that do it, what the work-around saves, and what fails once it is
needed no longer. Tried: 0.9.2, 0.10.1, 0.11.2 and 0.12.0.1, on the CPU. ``pytest -m xla`` runs all the tests; they are in
``tests/test_xla.py`` where no file is named. A test that fails on a new release says that its entry can go, once the oldest allowed
release of JAX does without it too (``test_oldest_jax_needs_every_workaround``). Numbers are of two cores with JAX 0.10.1, each from
one script where no command is named.

In this file:

- :func:`loops_are_slow`. Inside loops and branches XLA leaves the convolutions of a gradient in a layout for which it has no fast routine.
  jax issue 12868 (open); all four releases. Four steps of a small CNN take 25 times as long in a scan (``benchmarks --only loops``).
  Test: ``test_loops_are_slow_for_convolutions``. What goes with it: the trainer drives such nets by Python, products are driven by
  Python or unrolled (``tangent/products.py``), and chunks are unrolled (``tangent/kernel.py``, ``outer_product.py``).
- :func:`after`. XLA works on what is independent at the same time, so that buffers are not reused, and drops ``lax.optimization_barrier``
  before it orders the program. No public issue known; openxla/xla issue 20440 (open) is near. Planned memory of the kernel of a CNN: 36 MiB,
  82 without. From 0.11.2 on the barrier does as well for the kernel, but not for chunks that are calls of a compiled function, as those
  of ``input_jacobian`` are. In a loop XLA copies what is read after it is written in place: the basis of a search, twice in each step.
  Tests: ``test_after_orders_what_is_independent``, ``test_after_orders_calls``, two of ``tests/test_kernel.py``, one of
  ``tests/test_outer_product.py``, and the planned memory in ``tests/test_operators.py``.
- :func:`placed_like`. XLA places the result of a gradient on every device, also where the parameters are cut. No public issue known; all
  releases that were tried. Directions then hold as many copies of a model as there are devices. Test: ``test_directions_are_placed_as_the_parameters``
  of ``tests/test_placement.py``.
- :func:`computed_after`, :func:`entry`. XLA merges equal computations, and holds the result, as large as the weights, from the first use
  to the last. No public issue known; all four releases. A measured step with Adam took 26.3 ms and planned 73 MiB, now 21.9 and 33.
  Tests: ``test_computed_after_holds_no_diagonal``, ``test_entry_keeps_readings_apart``.
- :func:`sum_of_products`. XLA writes the products of a sum to memory before it adds them. openxla/xla issue 16792 (closed); 0.9.2 and
  0.10.1. Of 3072 x 1024 entries: 1.3 ms, 3.2 without (``benchmarks --only loops``). From 0.11.2 on it is the slower way: 7.5 ms, 3.6
  without, on 0.12.0.1. Test: ``test_sum_of_products_holds_no_products``.
- :func:`every_precision_is_highest`. XLA does not merge equal products that name different precisions, also on the CPU, where all are
  computed alike. No public issue known; all four releases. One forward pass for each measurement (counted by the test).
  Test: ``test_every_precision_is_highest``.
- :func:`fresh_jaxpr`. JAX caches traces by the function, so that a new value of what it closes over is missed. Meant so by JAX: see jax
  issue 12773 (closed); all four releases. It saves no time: results would be wrong. Test: ``test_fresh_jaxpr_sees_new_values``.
- ``QUICK``. Compilation for a program that runs a few times. No public issue known; 0.9.2 and 0.10.1, and less later. A Wide ResNet compiles in
  0.3 s, 0.5 without. Only time shows it, in two rows of ``benchmarks --only loops``.
- :func:`eigh`, :func:`eigvalsh`. On the CPU a batched eigendecomposition hands its matrices to the threads of XLA and waits inside one of them. Two of them at the
  same time leave no thread on a machine of two cores, and the program never ends. No public issue known for LAPACK (the traces of a run that hung
  are those of ``ParallelBatchMap``); seen on 0.10.1, in runs of many members with several kernels in a step. It saves no time, and takes none
  (25 matrices of 128 rows beside 25 of 64, 200 steps: 12.2 s, 11.9 batched). Nothing but a hang shows it;
  ``test_eigh_of_members_is_no_batch`` shows what it does.
- :func:`warn_of_lapack_threads`. Threads of LAPACK and of XLA wait for each other. jax issue 39292 (open), which is of a crash by the
  same cause; all four releases. 400 steps of ``cifar_gd``: 28 s, 40 without (``python -m experiments.main
  --config=configs/cifar_gd.py --config.members.seed="(0,)" --config.steps=400``). Only time shows it, in the last two rows of
  ``benchmarks --only loops``.

In other files, of which each is a part:

- ``models/vit.py``: patches are cut by a reshape and multiplied, which a convolution of that stride would do too. For loops, as above:
  ``test_loops_are_slow_for_convolutions``.
- ``tangent/layers.py``: patches are slices. ``lax.conv_general_dilated_patches`` is a convolution with a matrix of ones and zeros: jax issue
  6594 (open) asks for another; all four releases. Patches of 32 x 32 x 32 x 16 entries: 7 ms, 30 without (one script, JAX 0.10.1).
  Test: ``test_patch_extraction_is_a_convolution``.
- ``training/chunks.py``: one member is not vmapped. XLA transposes the gradient of a single member. No public issue known; all four releases.
  A step of Adam on the FCN: 21 ms, 55 without. Test: ``test_vmap_of_one_member_transposes``.
- ``catapult_jax/__init__.py``: releases that are wrong on the CPU are warned of. jax issues 39103 and 40412 (closed); 0.10.2, 0.11.0, 0.11.1.
  Test: ``test_the_sum_that_jax_0_10_2_gets_wrong`` of ``tests/test_package.py``.
- ``experiments/__init__.py``: LAPACK has one thread, as above; sums on GPUs have one order, which is a choice and no work-around.
- ``tests/conftest.py``: the suite compiles without optimisations, as ``QUICK``.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

# Constants of one machine: two CPU cores, JAX 0.10.1. Each bounds time or memory; results stay the same up to the order of sums.

# Chunks, at most, whose pairs are programs of their own where loops are slow. Eight take 33 s to compile for a Wide ResNet; in return
# memory does not grow with the batch: 210 MiB for 64 and for 128 examples. `benchmarks --only loops`
UNROLLED_KERNEL_CHUNKS = 8
# The same for the rows of input Jacobians, which are no pairs: 0.87 of the time of all at once, 2.8 in a loop. `benchmarks --only loops`
UNROLLED_JACOBIAN_CHUNKS = 32
# Products by default where they are unrolled; each one takes seconds to compile. `benchmarks --only eigen`
UNROLLED_PRODUCTS = 2
# Numbers in the rows of a layer from which on it waits for the layer before. To wait costs the ViT, whose layers are smaller, a sixth of
# its time, and would save it 4 MiB. `benchmarks --only kernel`
ORDERED_NUMBERS = 2**18
# Numbers that are held at a time: in the per-example gradients, and in the rows they are made of; 64 MiB. `benchmarks --only kernel`
HELD_NUMBERS = 2**24
# Strips of a sum over pairs of places, at most: each is a program of its own, to be compiled. `benchmarks --only kernel`
MOST_STRIPS = 16
# Multiplications of a matrix product that take as long as one number written and read again. By this the cheapest order of the sums of a
# layer is chosen: a Wide ResNet with ten outputs takes 0.14 s, 0.24 without the third order. `benchmarks --only kernel`
PRODUCTS_PER_NUMBER = 256
# Numbers in the arrays of a program that `tangent/coupling.py` evaluates some ten times: 32 MiB.
PROBED_NUMBERS = 2**23
# Numbers of a constant whose values `tangent/batch_axis.py` looks at: a few milliseconds.
INSPECTED_NUMBERS = 2**20
# Entries of parameters from which on per-example Jacobians are slow enough to be warned of. `benchmarks --only kernel`
SLOW_JACOBIAN_ENTRIES = 100_000
# Numbers in a vector from which on the residuals of a search come from inner products, to save memory, and an output space that large is
# left for the space of the parameters, if that is smaller: 4 MiB. `benchmarks --only eigen`
LARGE_VECTOR = 2**20
# Numbers in the basis of a search by default: 512 MiB.
SPACE_NUMBERS = 2**27
# Parts of a sum, and the rows that a matrix must have for each of them. `benchmarks --only loops`
SUM_PARTS, SUM_ROWS = 8, 64

# Compiler options that take a fraction of the time, for a program that runs a few times.
QUICK = {"xla_backend_optimization_level": 0}


def loops_are_slow(apply_fn: Callable, params, x) -> bool:
    """Whether a model has convolutions and runs on the CPU: XLA runs them slowly inside loops and branches there.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: Parameters, or their shapes.
      x: Inputs.

    Returns:
      True or False.

    Source: jax issue 12868, open for every version of JAX that is allowed (0.9.2 to 0.12); measured in ``benchmarks --only loops``.
    """
    if jax.default_backend() != "cpu":
        return False
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, first_example(x)))
    return "conv_general_dilated" in str(jax.make_jaxpr(apply_fn)(*shapes))


def first_example(x: PyTree) -> PyTree:
    """The first example of a batch, with the axis of the batch, as shapes.

    Args:
      x: Arrays or shapes ``(b, ...)``.

    Returns:
      Shapes ``(1, ...)``.

    >>> first_example(jnp.ones((3, 2))).shape
    (1, 2)
    """
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *jnp.shape(a)[1:]), jnp.result_type(a)), x)


def after(done: Array, tree: PyTree) -> PyTree:
    """Identity on ``tree`` that depends on ``done``, so that XLA computes it later and reuses the buffers.

    On the CPU XLA runs independent computations at the same time, and drops ``lax.optimization_barrier`` before it schedules them. There
    the arrays are multiplied by a one that XLA can't simplify away. On other devices it is the barrier.

    Args:
      done: An array of one entry or more that must be computed first.
      tree: Arrays.

    Returns:
      ``tree``, with the same values.

    >>> after(jnp.ones(3), {"a": jnp.arange(2.0)})["a"].tolist()
    [0.0, 1.0]
    """
    if jax.default_backend() != "cpu":
        return lax.optimization_barrier((done, tree))[1]
    one = _one(done.reshape(-1)[0])
    later = lambda a: a * one.astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.number) else a
    return jax.tree.map(later, tree)


@jax.custom_batching.custom_vmap
def _one(number: Array) -> Array:
    return jnp.where(number * number < -1, 0, 1)  # no square is below -1, and NaN is not either


@_one.def_vmap
def _one_for_all(size, batched, numbers):
    """Under vmap the one is not batched: it is the same for all members."""
    del size, batched
    return _one(numbers[0]), False


def placed_like(stacked: PyTree, params: PyTree) -> PyTree:
    """Identity on vectors that are stacked along a first axis, which the compiler then places as the parameters.

    Otherwise XLA may hold each of them whole on every device: the directions of a sharded model would be copies of all of it.

    Args:
      stacked: A pytree like ``params`` with one more axis in front.
      params: Arrays.

    Returns:
      ``stacked``, with the same values where ``params`` is finite. On a single device nothing is computed.

    >>> placed_like(jnp.ones((1, 2)), jnp.zeros(2)).tolist()
    [[1.0, 1.0]]
    """
    if jax.device_count() == 1:
        return stacked
    return jax.tree.map(lambda a, p: a + 0 * p[None].astype(a.dtype), stacked, params)


def computed_after(make: Callable[[], PyTree]) -> Callable[[Array], PyTree]:
    """``make`` as a function of an array, computed anew after that array.

    Otherwise XLA sees that the diagonal of a preconditioner is part of the optimizer's update, and holds it, as large as the weights,
    from there on.

    Args:
      make: A function of no arguments. What it closes over may be traced.

    Returns:
      A function of an array that returns ``make()``.

    >>> float(computed_after(lambda: jnp.float32(2))(jnp.ones(3)))
    2.0
    """
    closed, shapes = fresh_jaxpr(make)
    traced = {i: c for i, c in enumerate(closed.consts) if isinstance(c, jax.core.Tracer)}

    def make_after(done):
        later = after(done, traced)
        leaves = jax.core.eval_jaxpr(closed.jaxpr, [later.get(i, c) for i, c in enumerate(closed.consts)])
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return make_after


def entry(tree: PyTree, i: int) -> Array:
    """One entry of the first (``i = 0``) or the last (``i = -1``) array that is not empty.

    Two readings of :func:`computed_after` that wait for different entries are computed twice: XLA does not merge them.

    Args:
      tree: Arrays.
      i: 0 or -1.

    Returns:
      A scalar.

    >>> float(entry({"a": jnp.ones((2, 2)), "b": jnp.zeros(0)}, -1))
    1.0
    """
    leaf = [leaf for leaf in jax.tree.leaves(tree) if leaf.size][i]
    return leaf[(i,) * leaf.ndim]


def sum_of_products(a: Array, b: Array) -> Array:
    """Inner product of two arrays of one shape, in eight parts: XLA's sum to one number is three times slower on the CPU.

    The parts of a matrix are rows, so that XLA computes ``b`` on the fly.

    Args:
      a: Any array.
      b: An array of the same shape.

    Returns:
      A scalar, float32 or float64.

    >>> float(sum_of_products(jnp.arange(3.0), jnp.ones(3)))
    3.0
    """
    dtype = max(at_least_float32(a.dtype), at_least_float32(b.dtype), key=lambda dtype: dtype.itemsize)
    products = a.astype(dtype) * b.astype(dtype)
    many_rows = products.ndim > 1 and products.size >= SUM_ROWS * products.shape[-1] > 0
    products = products.reshape(-1, products.shape[-1]) if many_rows else products.reshape(-1)
    part = len(products) // SUM_PARTS
    parts = [products[i * part : (i + 1) * part] for i in range(SUM_PARTS)]
    return functools.reduce(jnp.add, parts).sum() + products[SUM_PARTS * part :].sum()


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors. Under ``vmap`` on the CPU the matrices take turns; see the docstring of the module.

    Args:
      matrix: symmetric, ``(n, n)``.

    Returns:
      As :func:`jax.numpy.linalg.eigh`, ``(n,)`` and ``(n, n)``, the same bits.

    >>> eigh(jnp.diag(jnp.array([2.0, 1.0])))[0].tolist()
    [1.0, 2.0]
    """
    return _in_turn(lambda m: tuple(jnp.linalg.eigh(m)), matrix)


def eigvalsh(matrix: Array) -> Array:
    """Eigenvalues as :func:`eigh` gives them, without eigenvectors.

    Args:
      matrix: symmetric, ``(n, n)``.

    Returns:
      As :func:`jax.numpy.linalg.eigvalsh`, ``(n,)``.

    >>> eigvalsh(jnp.diag(jnp.array([2.0, 1.0]))).tolist()
    [1.0, 2.0]
    """
    return _in_turn(lambda m: jnp.linalg.eigvalsh(m), matrix)  # a lambda: sequential_vmap binds the defaults of its function


def _in_turn(decompose: Callable, matrix: Array):
    """``decompose(matrix)``, under ``vmap`` on the CPU one matrix after the other. Its derivative is the usual one."""
    if jax.default_backend() != "cpu":
        return decompose(matrix)
    one_by_one = jax.custom_jvp(lambda m: sequential_vmap(decompose)(m))
    one_by_one.defjvp(lambda primals, tangents: jax.jvp(decompose, primals, tangents))  # sequential_vmap has no reverse mode
    return one_by_one(matrix)


def every_precision_is_highest() -> bool:
    """Whether every matmul precision is the highest, as on the CPU.

    There the step names it too, so that XLA merges the forward pass of a measurement with that of the step.

    Returns:
      True or False.
    """
    return jax.default_backend() == "cpu"


def highest_precision() -> AbstractContextManager:
    """Matmul precision ``highest``; on the CPU that of the caller, where all are computed alike.

    So XLA merges a measurement with the passes of the caller's step, see :func:`every_precision_is_highest`.

    Returns:
      A context manager.

    >>> with highest_precision():
    ...     pass
    """
    return nullcontext() if every_precision_is_highest() else jax.default_matmul_precision("highest")


def fresh_jaxpr(function: Callable, *arguments) -> tuple[jax.extend.core.ClosedJaxpr, PyTree]:
    """The program of ``function(*arguments)``, traced again, and the shapes of its result.

    JAX caches traces by the function, so a new one is traced: it sees new values of what ``function`` closes over.

    Args:
      function: Any function that JAX can trace.
      arguments: Its arguments, or their shapes.

    Returns:
      The program, and the shapes of the result.

    >>> fresh_jaxpr(jnp.sin, 1.0)[1].dtype
    dtype('float32')
    """
    return jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*arguments)


def at_least_float32(dtype) -> jnp.dtype:
    """The dtype of sums: ``float64`` for ``float64``, ``float32`` for every other. Works under strict dtype promotion too.

    Args:
      dtype: Of the terms.

    Returns:
      The dtype.

    >>> at_least_float32(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(dtype) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


@functools.cache
def warn_of_lapack_threads() -> None:
    """Warns once if LAPACK may run threads of its own beside XLA's: the two slow each other down.

    LAPACK reads the variable when NumPy or SciPy is first imported, so it must be set before Python starts.
    """
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    if jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1 and not any(os.environ.get(name) == "1" for name in names):
        warnings.warn(
            "LAPACK runs threads of its own beside XLA's, which can make eigendecompositions many times slower; set "
            "OPENBLAS_NUM_THREADS=1 before Python starts",
            stacklevel=3,
        )
