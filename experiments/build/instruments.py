"""What a run measures, how and how often."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from catapult_jax import data, training
from catapult_jax.training import instruments
from experiments.build import overhead
from experiments.build.reference import CHUNK
from experiments.build.trainer import LARGEST, build_trainer, rows_of
from experiments.values import CADENCES, PRESETS, RELATIVE

KERNELS = ("lambda_max_batch", "lambda_max_train")  # instruments that have a method, exact or matrix_free
_REUSE = 5  # measurements of the same examples that reuse a bound on the eigenvalues below the tracked ones


def cadences_of(config: ConfigDict) -> dict[str, int]:
    """Cadence of each instrument that the config asks for; what a preset asks for, at every step."""
    m = config.measure
    cadences = {name: m[f"{name}_every"] for name in CADENCES}
    if m.preset:
        cadences = dict.fromkeys(PRESETS[m.preset], 1)
        if m.agop_reference is None:
            cadences.pop("agop_alignment", None)
    if _is_full_batch(config):
        cadences.pop("loss_train", None)  # it is the batch loss
    if cadences.get("loss_test") and config.data.validation_size:
        cadences["loss_val"] = cadences["loss_test"]
    return {name: every for name, every in cadences.items() if every}


def build_instruments(
    config: ConfigDict, model, arrays: data.Data, reference, cadences: dict[str, int], methods: dict[str, str]
) -> dict[str, instruments.Instrument]:
    """The instruments with these cadences. ``methods``: exact or matrix_free, for each of ``KERNELS``."""
    m, apply_fn, rows = config.measure, model.apply, rows_of(config, arrays)
    k = 1 if m.preset == "economy" else m.top_k
    reuse_bound = _REUSE if _is_full_batch(config) else 0
    of_kernel = partial(partial, apply_fn=apply_fn, loss=config.loss, chunk_size=m.chunk_size)
    search = dict(tol=m.tolerance, max_products=m.max_products)
    score = partial(instruments.loss_test, apply_fn, loss=config.loss, target_encoding=config.data.target_encoding)
    makers = {
        ("lambda_max_batch", "exact"): of_kernel(instruments.lambda_max_batch, follow=_is_full_batch(config), k=k),
        ("lambda_max_batch", "matrix_free"): of_kernel(
            instruments.lambda_max_batch_matrix_free,
            k=min(k, rows["lambda_max_batch"]),
            k_max=m.top_k_max and min(m.top_k_max, rows["lambda_max_batch"]),
            reuse_bound=reuse_bound,
            **search,
        ),
        ("lambda_max_train", "exact"): of_kernel(instruments.lambda_max_train, probe_size=m.probe_size, k=k),
        ("lambda_max_train", "matrix_free"): of_kernel(
            instruments.lambda_max_train_matrix_free,
            probe_size=m.probe_size,
            k=min(k, rows["lambda_max_train"]),
            reuse_bound=_REUSE,
            **search,
        ),
        "loss_train": partial(instruments.loss_train, apply_fn, loss=config.loss),
        "loss_batch_after": partial(instruments.loss_batch_after, apply_fn, loss=config.loss),
        "preconditioner_min": partial(instruments.preconditioner_min, apply_fn, loss=config.loss),
        "loss_test": partial(score, split="test"),
        "loss_val": partial(score, split="val"),
        "agop_alignment": lambda every: instruments.agop_alignment(
            apply_fn, every=every, reference=jax.numpy.asarray(reference), size=m.agop_size, chunk_size=CHUNK
        ),
    }
    maker = lambda name: makers[(name, methods[name]) if name in methods else name]
    return {name: maker(name)(every=every) for name, every in sorted(cadences.items())}


def choose_instruments(config: ConfigDict, model, arrays: data.Data, members: training.Members, reference) -> dict[str, Any]:
    """What is measured, how and how often: as the config says, or as found from the cost of each instrument in the first steps.

    Returns:
      ``cadences`` and ``methods``; where costs were measured, ``costs`` over the bare step and the ``expected_overhead`` too.
    """
    m, cadences = config.measure, cadences_of(config)
    kernels = [name for name in KERNELS if name in cadences]
    if m.method != "auto" and not m.preset:
        return {"cadences": cadences, "methods": dict.fromkeys(kernels, m.method or "exact")}
    methods_of = {name: _methods_to_try(config, rows_of(config, arrays)[name]) for name in kernels}
    make = partial(build_instruments, config, model, arrays, reference)
    build = lambda chosen: build_trainer(config, model, arrays, {name.split(",")[0]: i for name, i in chosen.items()})
    all_costs = overhead.measure(build, _candidates(make, cadences, methods_of, bool(m.preset)), members)
    methods = {
        name: min(tried, key=lambda method, name=name: all_costs[f"{name}, {method}"]) for name, tried in methods_of.items()
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


def _methods_to_try(config: ConfigDict, rows: int) -> tuple[str, ...]:
    """The methods for a kernel of so many rows: that of the config, or those to choose from."""
    if config.measure.method not in (None, "auto"):
        return (config.measure.method,)
    return ("matrix_free",) if rows > LARGEST else ("exact", "matrix_free")


def _candidates(make, cadences: dict[str, int], methods_of: dict[str, tuple[str, ...]], preset: bool) -> dict:
    """Instruments to measure the costs of, by name and method."""
    candidates = {name: make({name: 1}, {})[name] for name in cadences if name not in methods_of}
    for name, methods in methods_of.items():
        candidates |= {f"{name}, {method}": make({name: 1}, {name: method})[name] for method in methods}
    batch = "lambda_max_batch"
    if preset and "exact" in methods_of.get(batch, ()):  # at every step it shares the step's derivatives; at others it can't
        candidates[f"{batch}, exact, apart"] = make({batch: 2}, {batch: "exact"})[batch]
    return candidates


def _needed_at_every_step(config: ConfigDict) -> set[str]:
    """With a preset: instruments that the run needs at every step, whatever they cost."""
    if not config.measure.preset:
        return set()
    needed = set() if _is_full_batch(config) else {"lambda_max_batch", "loss_train"}
    relative = config.schedule.name in RELATIVE or config.schedule.cap or config.members.cap
    return needed | {"lambda_max_batch"} if relative else needed


def _print_costs(max_overhead, costs, cadences, methods_of, methods, all_costs, expected, always) -> None:
    print("cost of each instrument over the bare step, measured in the first steps:")
    for name, cost in costs.items():
        tried = ", ".join(f"{method} {all_costs[f'{name}, {method}']:.2f}" for method in methods_of.get(name, ()))
        how = f" ({methods[name]}; {tried})" if tried else ""
        print(f"  {name}{how}: {cost:.2f}, {'every step' if cadences[name] == 1 else f'every {cadences[name]} steps'}")
    over = (
        f", above measure.max_overhead={max_overhead}: the run needs at every step: {', '.join(sorted(always))}"
        if always and expected > max_overhead * 1.05
        else ""
    )
    print(f"  a measured step is expected to cost {expected:.2f} bare ones{over}")
