"""Cost of the exact kernel and of a measured step: python -m benchmarks.run [--only=NAME].

Each network is measured in a process of its own (so that peak memory means something); within it the variants take turns, and
the medians and their ratios to the bare step are written to benchmarks/results/cost.json and cost.md. Data: 128 random images
of the size of CIFAR-10 (speed does not depend on their content).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
NETWORKS = {
    "fcn": ("FCN", dict(depth=5, width=1024)),
    "cnn_config": ("CNN", dict(depth=5, width=512, strides=(4, 2, 1, 1))),
    "cnn_64": ("CNN", dict(depth=5, width=64)),
}
# What each row promises; "-" rows are for information.
TARGETS = {
    ("fcn", "measured step"): ("at most 2.0 bare steps", lambda r: r["measured step"] <= 2.0 * r["bare step"]),
    ("cnn_config", "measured step"): ("at most 2.5 bare steps", lambda r: r["measured step"] <= 2.5 * r["bare step"]),
    ("cnn_64", "measured step"): ("at most 2.5 bare steps", lambda r: r["measured step"] <= 2.5 * r["bare step"]),
    ("fcn", "neural_tangents 1"): ("80 times slower than ours", lambda r: r["neural_tangents 1"] >= 80 * r["kernel"]),
    ("fcn", "neural_tangents 2"): ("80 times slower than ours", lambda r: r["neural_tangents 2"] >= 80 * r["kernel"]),
    ("fcn", "neural_tangents 3"): ("no faster than ours", lambda r: r["neural_tangents 3"] >= r["kernel"]),
    ("cnn_config", "neural_tangents 3"): ("no faster than ours", lambda r: r["neural_tangents 3"] >= r["kernel"]),
    ("cnn_64", "neural_tangents 3"): ("no faster than ours", lambda r: r["neural_tangents 3"] >= r["kernel"]),
}


def variants(network: str):
    """Name -> jitted function of the parameters; and the parameters."""
    import jax
    import jax.numpy as jnp

    from catapult_jax import batch_loss, models, split_loss, tangent_kernel
    from catapult_jax.tangent_kernel import neural_tangents

    kind, arguments = NETWORKS[network]
    model = getattr(models, kind)(**arguments)
    x = jax.random.normal(jax.random.key(0), (128, 32, 32, 3))
    y = jnp.sign(jax.random.normal(jax.random.key(1), (128, 1)))
    params = model.init(jax.random.key(2), x)
    f = model.apply

    def bare(params):
        loss = lambda p: batch_loss(f(p, x), y, loss="mse")
        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, params, gradient), value

    def measured(params):
        loss = lambda p: (lambda out: (batch_loss(out, y, loss="mse"), out))(f(p, x))
        (value, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        split = split_loss(tangent_kernel(f, params, x), outputs, y, loss="mse", k=5)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, params, gradient), value, split

    made = {"bare step": bare, "measured step": measured, "kernel": lambda p: tangent_kernel(f, p, x)}
    for i in neural_tangents.IMPLEMENTATIONS:
        made[f"neural_tangents {i}"] = lambda p, i=i: neural_tangents.empirical_kernel(f, p, x, implementation=i)
    if network != "fcn":  # minutes a call, and more memory than a desktop has
        del made["neural_tangents 1"], made["neural_tangents 2"]
    return {name: jax.jit(g) for name, g in made.items()}, params


def time_all(network: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run of each variant, taken in turn."""
    import jax

    functions, params = variants(network)
    for g in functions.values():
        jax.block_until_ready(g(params))
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, g in functions.items():
            if name[-1] in "12" and len(times[name]) >= 3:
                continue
            start = time.perf_counter()
            jax.block_until_ready(g(params))
            times[name].append(time.perf_counter() - start)
    return times


def peak_memory(network: str, variant: str) -> float:
    """Peak resident MiB of a process that runs one variant."""
    import jax

    functions, params = variants(network)
    jax.block_until_ready(functions[variant](params))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(*arguments: str):
    done = subprocess.run([sys.executable, "-m", "benchmarks.run", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, network, *rest = arguments.child
        print(json.dumps(time_all(network, int(rest[0])) if what == "time" else peak_memory(network, rest[0])))
        return

    from catapult_jax import records

    results = {"environment": records.environment(), "networks": {}}
    lines = ["| network | what | median s | / bare step | peak MiB | promise | met |", "|---|---|---|---|---|---|---|"]
    for network in [arguments.only] if arguments.only else NETWORKS:
        rounds = arguments.rounds if network == "fcn" else max(3, arguments.rounds // 3)
        raw = _child("--child", "time", network, str(rounds))
        seconds = {name: statistics.median(values) for name, values in raw.items()}
        memory = {name: _child("--child", "memory", network, name) for name in ("bare step", "kernel", "neural_tangents 3")}
        results["networks"][network] = {"arguments": NETWORKS[network][1], "seconds": raw, "peak_mib": memory}
        for name, value in seconds.items():
            promise, met = TARGETS.get((network, name), ("-", None))
            said = "-" if met is None else "yes" if met(seconds) else "NO"
            peak = f"{memory[name]:.0f}" if name in memory else "-"
            if network == "cnn_64" and name == "kernel":
                promise, said = (
                    "less memory than neural_tangents 3",
                    "yes" if memory[name] < memory["neural_tangents 3"] else "NO",
                )
            ratio = value / seconds["bare step"]
            lines.append(f"| {network} | {name} | {value:.4f} | {ratio:.2f} | {peak} | {promise} | {said} |")
    table = "\n".join(lines)
    print(table)
    if not arguments.only:
        (HERE / "results").mkdir(exist_ok=True)
        records.write_json(HERE / "results" / "cost.json", results)
        (HERE / "results" / "cost.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
