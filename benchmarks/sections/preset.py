"""Cost of a preset over the bare step: requested, expected from the first steps, and measured.

mse, gradient descent on 128 natural patches. A run is long enough for every instrument to be due as often as its cadence says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "preset": "preset",
    "variant": "variant",
    "seconds": "median s",
    "ratio": "/ bare step",
    "expected": "expected",
    "cadences": "cadences",
    "above_mib": "above MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
CASES = {"cpu": ("fcn", "cnn", "vit"), "smoke": ("fcn",)}
PRESETS = ("economy", "standard")
REQUEST, NOISE = 1.5, 1.1  # measure.max_overhead; noise of one timing


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model in CASES.get(scale, CASES["cpu"]):
        for preset in PRESETS:
            case = {"model": model, "preset": preset}
            make = lambda c=case: child.call("benchmarks.sections.preset:achieved", c | {"scale": scale})
            yield from child.rows_or_reason(case, make)


def achieved(model: str, preset: str, scale: str) -> list[dict[str, Any]]:
    import contextlib
    import io

    import jax
    import jax.numpy as jnp

    from configs import quickstart
    from experiments import build
    from experiments.build.instruments import build_instruments
    from experiments.build.trainer import build_trainer

    config = quickstart.get_config("smoke" if scale == "smoke" else "full")
    kind, arguments = house.NETWORKS[model]
    config.model.update({name: value for name, value in (arguments | (house.SMOKE[model] if scale == "smoke" else {})).items()})
    config.model.name = {"FCN": "fcn", "CNN": "cnn", "ViT": "vit"}[kind]
    config.members.seed, config.members.lr, config.claims = (0,), (0.5,), ()
    config.measure.preset, config.measure.max_overhead = preset, REQUEST
    arrays, _ = build.load_data(config)
    net, members = build.build_model(config.model, arrays.outputs), build.build_members(config)
    with contextlib.redirect_stdout(io.StringIO()):
        plan = build.choose_instruments(config, net, arrays, members)
    chosen = build_instruments(config, net, arrays, plan["cadences"], plan["methods"])
    steps = max(plan["cadences"].values(), default=1)
    steps *= -(-4 // steps)

    def call_of(trainer):
        state = jax.tree.map(jnp.copy, trainer.init(members)[0])

        def call():
            nonlocal state
            state, measured = trainer.run(state, steps, steps)
            return measured

        return call

    trainers = {
        "bare step": build_trainer(config, net, arrays, {}),
        "measured": build_trainer(config, net, arrays, chosen),
    }
    timings = timing.take_turns({name: call_of(trainer) for name, trainer in trainers.items()}, rounds=timing.ROUNDS[scale])
    seconds = {name: row["seconds"] / steps for name, row in timings.items()}
    ratio = seconds["measured"] / seconds["bare step"]
    cadences = ", ".join(f"{name} {every}" for name, every in plan["cadences"].items())
    return [
        {"variant": "bare step", "seconds": seconds["bare step"], "ratio": 1.0, "above_mib": timings["bare step"]["above_mib"]},
        {
            "variant": "measured",
            "seconds": seconds["measured"],
            "ratio": ratio,
            "above_mib": timings["measured"]["above_mib"],
            "expected": plan["expected_overhead"],
            "cadences": cadences,
        }
        | tables.promise(f"at most {REQUEST}, and a tenth for noise", ratio <= REQUEST * NOISE),
    ]
