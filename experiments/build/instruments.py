"""The instruments of a run: which series it measures, with which method, and how often."""

from __future__ import annotations

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from catapult_jax import data, training
from catapult_jax.losses import hessian_range
from catapult_jax.training import criteria_instrument, directional_instruments, instruments
from catapult_jax.training.measurement import Instrument
from experiments import optimizers
from experiments.build import overhead
from experiments.build.reference import CHUNK
from experiments.build.trainer import LARGEST, build_trainer, rows_of
from experiments.values import CADENCES, PRESETS, RELATIVE

KERNELS = ("lambda_max_batch", "lambda_max_train")  # the instruments with two methods, exact and matrix_free
_REUSE = 5  # so many measurements on the same examples reuse one bound on the eigenvalues below the tracked ones


def cadences_of(config: ConfigDict) -> dict[str, int]:
    """The instruments that a config asks for, each with its cadence in steps. With a preset the cadences are 1 at first.

    >>> from configs import quickstart
    >>> cadences_of(quickstart.get_config("smoke"))
    {'lambda_max_batch': 1, 'loss_test': 10}
    """
    m = config.measure
    cadences = {name: m[f"{name}_every"] for name in CADENCES}
    if m.preset:
        cadences = dict.fromkeys(PRESETS[m.preset], 1)
        if m.agop_reference is None:
            cadences.pop("agop_alignment", None)
    if _is_full_batch(config):
        cadences.pop("loss_train", None)  # the batch loss is the training loss
    if cadences.get("loss_test") and config.data.validation_size:
        cadences["loss_val"] = cadences["loss_test"]
    return {name: every for name, every in cadences.items() if every}


def build_instruments(
    config: ConfigDict,
    model: Any,
    arrays: data.Data,
    cadences: dict[str, int],
    methods: dict[str, str],
) -> dict[str, Instrument]:
    """Build the instruments.

    Args:
      config: of the run.
      model: from that config.
      arrays: data of the run.
      cadences: name -> steps between two measurements.
      methods: name -> exact or matrix_free, for each of ``KERNELS`` that has a cadence.

    Returns:
      Name -> instrument.

    Raises:
      ValueError: measure.loss_modes is above the number of rows of its kernel.
    """
    m, apply_fn, rows = config.measure, model.apply, rows_of(config, arrays)
    _check_modes(config, arrays)
    k = 1 if m.preset == "economy" else m.top_k
    reuse_bound = _REUSE if _is_full_batch(config) else 0
    of_kernel = partial(partial, apply_fn=apply_fn, loss=config.loss, chunk_size=m.chunk_size)
    search = dict(tol=m.tolerance, max_products=m.max_products)
    score = partial(instruments.loss_test, apply_fn, loss=config.loss, target_encoding=config.data.target_encoding)
    makers = {
        ("lambda_max_batch", "exact"): of_kernel(
            instruments.lambda_max_batch,
            follow=_is_full_batch(config),
            k=k,
            modes=m.loss_modes if _is_full_batch(config) else 0,
        ),
        ("lambda_max_batch", "matrix_free"): of_kernel(
            instruments.lambda_max_batch_matrix_free,
            k=min(k, rows["lambda_max_batch"]),
            k_max=m.top_k_max and min(m.top_k_max, rows["lambda_max_batch"]),
            reuse_bound=reuse_bound,
            **search,
        ),
        ("lambda_max_train", "exact"): of_kernel(
            instruments.lambda_max_train, probe_size=m.probe_size, k=k, modes=0 if _is_full_batch(config) else m.loss_modes
        ),
        ("lambda_max_train", "matrix_free"): of_kernel(
            instruments.lambda_max_train_matrix_free,
            probe_size=m.probe_size,
            k=min(k, rows["lambda_max_train"]),
            reuse_bound=_REUSE,
            **search,
        ),
        "weight_norm": instruments.weight_norm,
        "loss_train": partial(instruments.loss_train, apply_fn, loss=config.loss),
        "loss_batch_after": partial(instruments.loss_batch_after, apply_fn, loss=config.loss),
        "directional_batch": partial(directional_instruments.directional_batch, apply_fn, loss=config.loss),
        "directional_train": partial(directional_instruments.directional_train, apply_fn, loss=config.loss),
        "criteria": partial(
            criteria_instrument.criteria, apply_fn, loss=config.loss, momentum=optimizers.momentum(config.optimizer)
        ),
        "preconditioner_min": partial(instruments.preconditioner_min, apply_fn, loss=config.loss),
        "loss_test": partial(score, split="test"),
        "loss_val": partial(score, split="val"),
        "agop_alignment": partial(instruments.agop_alignment, apply_fn, size=m.agop_size, chunk_size=CHUNK),
    }
    maker = lambda name: makers[(name, methods[name]) if name in methods else name]
    return {name: maker(name)(every=every) for name, every in sorted(cadences.items())}


def choose_instruments(config: ConfigDict, model: Any, arrays: data.Data, members: training.Members) -> dict[str, Any]:
    """Choose cadences and methods: those of the config, or, with a preset or the method auto, from the measured cost of each instrument.

    Args:
      config: of the run.
      model: from that config.
      arrays: data of the run.
      members: of the run.

    Returns:
      ``cadences`` and ``methods``. If costs were measured also ``costs``, in bare steps, and ``expected_overhead``, the cost of a
      measured step over that of a bare step.
    """
    m, cadences = config.measure, cadences_of(config)
    kernels = [name for name in KERNELS if name in cadences]
    if m.method != "auto" and not m.preset:
        return {"cadences": cadences, "methods": dict.fromkeys(kernels, m.method or "exact")}
    methods_of = {name: _methods_to_try(config, rows_of(config, arrays)[name]) for name in kernels}
    make = partial(build_instruments, config, model, arrays)
    build = lambda chosen: build_trainer(config, model, arrays, {name.split(",")[0]: i for name, i in chosen.items()})
    all_costs = overhead.measure(build, _candidates(make, cadences, methods_of, bool(m.preset)), members)
    methods = {
        name: min(names, key=lambda method, name=name: all_costs[f"{name}, {method}"]) for name, names in methods_of.items()
    }
    costs = {name: all_costs[f"{name}, {methods[name]}" if name in methods else name] for name in cadences}
    apart = {
        name: max(all_costs.get(f"{name}, {methods.get(name)}, apart", 0.0), costs[name])
        for name in ("lambda_max_batch",)
        if name in costs
    }
    always = _needed_at_every_step(config) & set(costs)
    if m.preset:
        longest = config.run.chunk_steps if config.run.stop_loss else None
        cadences = overhead.cadences(costs, always, m.max_overhead, longest, apart)
    costs = {name: cost if cadences[name] == 1 else apart.get(name, cost) for name, cost in costs.items()}
    expected = 1 + sum(costs[name] / cadences[name] for name in costs)
    _print_costs(m.max_overhead, costs, cadences, methods_of, methods, all_costs, expected, always)
    return {"cadences": cadences, "methods": methods, "costs": all_costs, "expected_overhead": expected}


def _is_full_batch(config: ConfigDict) -> bool:
    return config.optimizer.batch_size in (None, config.data.train_size)


def _check_modes(config: ConfigDict, arrays: data.Data) -> None:
    """Refuse more modes than the kernel of the training set has rows: one for each output, one less for each example with softmax."""
    per_example = hessian_range(arrays.outputs, loss=config.loss).shape[1]
    rows = rows_of(config, arrays)["lambda_max_batch" if _is_full_batch(config) else "lambda_max_train"]
    if config.measure.loss_modes > (most := rows // arrays.outputs * per_example):
        raise ValueError(f"measure.loss_modes={config.measure.loss_modes}; allowed for a kernel of {most} rows: 0 to {most}")


def _methods_to_try(config: ConfigDict, rows: int) -> tuple[str, ...]:
    """The methods to choose from, for a kernel of so many rows. The method of the config is the only choice, if there is one."""
    if config.measure.method not in (None, "auto"):
        return (config.measure.method,)
    return ("matrix_free",) if rows > LARGEST else ("exact", "matrix_free")


def _candidates(make, cadences: dict[str, int], methods_of: dict[str, tuple[str, ...]], preset: bool) -> dict:
    """The instruments whose costs are measured, by "NAME" or "NAME, METHOD"."""
    candidates = {name: make({name: 1}, {})[name] for name in cadences if name not in methods_of}
    for name, methods in methods_of.items():
        candidates |= {f"{name}, {method}": make({name: 1}, {name: method})[name] for method in methods}
    batch = "lambda_max_batch"
    if preset and "exact" in methods_of.get(
        batch, ()
    ):  # at a cadence of 1 it shares the derivatives of the step, at others it can't
        candidates[f"{batch}, exact, apart"] = make({batch: 2}, {batch: "exact"})[batch]
    return candidates


def _needed_at_every_step(config: ConfigDict) -> set[str]:
    """With a preset: the instruments that the run needs at every step, at any cost."""
    if not config.measure.preset:
        return set()
    needed = set() if _is_full_batch(config) else {"lambda_max_batch", "loss_train"}
    relative = config.schedule.name in RELATIVE or config.schedule.cap or config.members.cap
    return needed | {"lambda_max_batch"} if relative else needed


def _print_costs(max_overhead, costs, cadences, methods_of, methods, all_costs, expected, always) -> None:
    print("cost of each measurement in bare steps, from the first steps:")
    for name, cost in costs.items():
        tried = ", ".join(f"{method} {all_costs[f'{name}, {method}']:.2f}" for method in methods_of.get(name, ()))
        how = f" ({methods[name]})" if len(methods_of.get(name, ())) == 1 else f" ({methods[name]}; {tried})" if tried else ""
        print(f"  {name}{how}: {cost:.2f}, {'every step' if cadences[name] == 1 else f'every {cadences[name]} steps'}")
    reason = (
        f"; this is above measure.max_overhead={max_overhead}, since the run needs {', '.join(sorted(always))} at every step"
        if always and expected > max_overhead * 1.05
        else ""
    )
    print(f"  expected cost of a measured step: {expected:.2f} bare steps{reason}")
