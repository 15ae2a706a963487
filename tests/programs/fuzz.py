"""Random data files and random command lines. Each either works or is refused in one line."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import random
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from catapult_jax import checkpoints, data
from configs import default, quickstart
from experiments import config as configs
from experiments.command_line import parse
from experiments.rules import check

_NAMES = ("x_train", "y_train", "x_test", "y_test")
_DTYPES = ("uint8", "int32", "int64", "float16", "float32", "float64", "bool", "complex64", "U3", "S2", "O", "datetime64[s]")


def _good() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    split = lambda n: (draw.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8), np.arange(n) % 2)
    return dict(zip(_NAMES, (*split(12), *split(8)), strict=True))


@st.composite
def npz_files(draw) -> bytes:
    """A good file with some of its arrays changed, and then perhaps some of its bytes."""
    arrays = _good()
    for name in draw(st.lists(st.sampled_from(_NAMES), max_size=2, unique=True)):
        how = draw(st.sampled_from(("drop", "dtype", "shape", "empty", "numbers", "one class")))
        array = arrays[name]
        if how == "drop":
            del arrays[name]
        elif how == "dtype":
            arrays[name] = array.astype(draw(st.sampled_from(_DTYPES)))
        elif how == "shape":
            arrays[name] = np.zeros(tuple(draw(st.lists(st.integers(0, 5), max_size=5))), array.dtype)
        elif how == "empty":
            arrays[name] = array[:0]
        elif how == "numbers":
            arrays[name] = array.astype(float)
            arrays[name].flat[0] = draw(st.sampled_from((np.nan, np.inf, -np.inf, 1e300, -1.0, 0.5)))
        else:
            arrays[name] = np.zeros_like(array)
    file = io.BytesIO()
    save = draw(st.sampled_from((np.savez, np.savez_compressed)))
    save(file, **arrays)
    content = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


@st.composite
def models(draw) -> bytes:
    """A saved model with another description, another kind of array, some bytes changed, or truncated."""
    about = draw(st.sampled_from(('{"data": {}}',) * 5 + ("[1]", "{", "1", "null")))
    dtype = draw(st.sampled_from(("float32",) * 5 + _DTYPES))
    file = io.BytesIO()
    np.savez(file, about=np.array(about), **{"params/a/kernel": np.ones((3, 2), dtype)})
    content = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 2))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


def bomb(claimed_shape: tuple[int, ...], *, honest: bool) -> bytes:
    """A small file that claims a large array: in the header of the array alone, or with bytes that are there once it is unpacked."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": claimed_shape})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as stored:
        for name in _NAMES:
            stored.writestr(f"{name}.npy", header.getvalue() + bytes(int(np.prod(claimed_shape)) if honest else 10))
    return file.getvalue()


def outcome_of_file(content: bytes, folder: Path) -> str:
    """``read``, or ``refused`` with one line that names the file or the data set."""
    (folder / "given.npz").write_bytes(content)
    try:
        arrays = data.read("given", directory=str(folder))
        prepared = data.prepare(arrays, classes=(0, 1), train_size=6, test_size=4, scaling="sqrt_d", target_encoding="sign")
    except ValueError as error:
        line = configs.one_line(error)
        assert ("given" in line or "data." in line) and "allowed" in line, line
        return "refused"
    finally:
        assert [path.name for path in folder.iterdir()] == ["given.npz"]
    assert all(np.isfinite(array).all() for array in prepared[:4])
    return "read"


def outcome_of_model(content: bytes, folder: Path) -> str:
    """``read``, or ``refused`` with one line that names the file."""
    (folder / "model.npz").write_bytes(content)
    try:
        _, about, _ = checkpoints.load_model(folder / "model.npz")
    except ValueError as error:
        line = configs.one_line(error)
        assert "model.npz is no saved model" in line and "allowed" in line, line
        return "refused"
    assert isinstance(about, dict)
    return "read"


_VALUES = (
    "0", "1", "2", "-1", "3", "1000000000", "-0.5", "0.5", "1e-30", "1e30", "nan", "inf", "-inf", "None", "True", "False", "''", "()",
    "(0,)", "(0,1)", "(0.5,1.5)", "(-1,)", "('a',)", "(nan,)", "digits", "cifar10", "synthetic", "relu", "cnn", "vit", "wide_resnet",
    "staircase", "cyclic", "relative_to_critical", "adam", "adadelta", "mse", "logistic", "softmax_cross_entropy", "one_hot", "integer",
    "binary", "value", "full", "economy", "matrix_free", "auto", "closed_form", "<script>", "../../x", "a b", "\x00", "é",
)  # fmt: skip


@st.composite
def command_lines(draw) -> list[str]:
    names = draw(st.lists(st.sampled_from(sorted(configs.flat(default.get_config()))), min_size=1, max_size=4, unique=True))
    values = st.one_of(st.sampled_from(_VALUES), st.integers().map(str), st.floats().map(str), st.text(max_size=5))
    return [f"--config.{name}={draw(values)}" for name in names]


def outcome_of_command_line(arguments: list[str]) -> str:
    """``allowed``, or ``refused`` with one line that names a field or the flag."""
    argv = ["main", "--config=configs/quickstart.py:smoke", *arguments]
    values = flags.FlagValues()
    flags.DEFINE_string("compilation_cache", None, "", flag_values=values)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        parse(argv, values)
        check(values.config)
    except configs.ConfigError as error:
        line = str(error)
        assert "\n" not in line, line
        given = [argument.split("=")[0].removeprefix("--config.") for argument in arguments]
        assert any(name in line or name.split(".")[-1] in line for name in given), (line, arguments)
        return "refused"
    return "allowed"


# Values of runs that take seconds, in any combination.
_TO_RUN = {
    "steps": (1, 4, 7),
    "members.seed": (None, (0, 3)),
    "members.lr": (None, (0.5, 2.0), (1e8,)),
    "optimizer.lr_unit": ("absolute", "critical_lr0"),
    "data.name": ("digits", "natural_patches", "synthetic"),
    "data.classes": (None, (0, 1), (1,)),
    "data.train_size": (1, 2, 12),
    "data.validation_size": (0, 3),
    "data.scaling": ("none", "sqrt_d", "standardize"),
    "data.target_encoding": ("sign", "one_hot", "integer", "binary", "value"),
    "model.name": ("fcn", "cnn", "vit", "wide_resnet"),
    "model.depth": (1, 2, 10),
    "model.width": (1, 8),
    "model.activation": ("relu", "tanh", "linear"),
    "model.bias": (False, True),
    "model.readout": ("flatten", "average"),
    "loss": ("mse", "logistic", "softmax_cross_entropy"),
    "optimizer.name": ("sgd", "heavy_ball", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "adadelta"),
    "optimizer.batch_size": (None, 1, 5),
    "optimizer.momentum": (0.0, 0.9),
    "optimizer.nesterov": (False, True),
    "optimizer.weight_decay": (None, 0.0, 0.1),
    "schedule.name": ("constant", "warm_up", "cyclic", "exponential_cyclic", "staircase", "relative_to_critical"),
    "schedule.cap": (None, 0.9),
    "schedule.period": (2, 5),
    "schedule.settle_steps": (1, 3),
    "measure.preset": (None, "economy", "standard", "full"),
    "measure.method": (None, "exact", "matrix_free", "auto"),
    "measure.chunk_size": (None, 1, 5),
    "measure.lambda_max_batch_every": (0, 1, 2),
    "measure.top_k": (1, 5, 20),
    "measure.top_k_max": (None, 5, 25),
    "measure.loss_train_every": (0, 1, 3),
    "measure.lambda_max_train_every": (0, 2),
    "measure.loss_batch_after_every": (0, 1),
    "measure.preconditioner_min_every": (0, 1),
    "measure.loss_test_every": (0, 1, 3),
    "measure.probe_size": (None, 1, 9),
    "events.horizon": (1, 1000),
    "run.chunk_steps": (1, 3, 10),
    "run.checkpoint_every": (1, 6),
    "run.stop_loss": (None, 0.5, 1e9),
    "run.save_model": (False, True),
}  # fmt: skip


def config_to_run(seed: int) -> dict[str, object]:
    """Three to ten fields of a run of seconds; the target encoding is mostly one that the loss allows, since nearly all configs would be refused otherwise."""
    draw = random.Random(seed)
    fields = {name: draw.choice(_TO_RUN[name]) for name in draw.sample(sorted(_TO_RUN), draw.randint(3, 10))}
    if draw.random() < 0.9:
        synthetic = fields.get("data.name") == "synthetic"
        fields["loss"] = "mse" if synthetic else fields.get("loss", "mse")
        allowed = [name for name in data.TARGET_ENCODINGS_OF_LOSS[fields["loss"]] if (name == "value") == synthetic]
        fields["data.target_encoding"] = draw.choice(allowed)
        if synthetic:
            fields |= {"data.scaling": "none", "data.classes": None, "model.name": "fcn"}
    return fields


def outcome_of_run(fields: dict[str, object], folder: Path) -> str:
    """``complete`` or ``diverged``, with its report, or ``refused`` with one line and nothing left behind."""
    from experiments import main

    config = quickstart.get_config("smoke")
    config.claims = ()
    config.model.width, config.model.depth, config.model.patch_size = (
        8,
        2 if fields.get("model.name") != "wide_resnet" else 10,
        4,
    )
    config.data.name = "digits"
    config.update_from_flattened_dict(fields)
    workdir = folder / configs.identity(config)
    try:
        main.run(config, workdir)
    except configs.ConfigError as error:
        assert "\n" not in str(error) and not workdir.exists(), error
        return "refused"
    shown = (workdir / "report.html").read_text().lower()
    assert ">nan<" not in shown and ">inf<" not in shown, fields
    return json.loads((workdir / "run.json").read_text())["status"]


def _tried(strategy, outcome, count: int) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()

    @settings(max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def every(value):
        counts[outcome(value)] += 1

    every()
    return dict(counts)


def files(count: int) -> dict[str, int]:
    """How many random files were read, and how many refused.

    Raises:
      AssertionError: or whatever else one of them raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _tried(npz_files(), lambda content: outcome_of_file(content, Path(folder)), count)


def models_tried(count: int) -> dict[str, int]:
    """How many random files of a model were read, and how many refused."""
    with tempfile.TemporaryDirectory() as folder:
        return _tried(models(), lambda content: outcome_of_model(content, Path(folder)), count)


def runs(count: int) -> dict[str, int]:
    """How many random configs were run to their end, with their status, and how many refused.

    Raises:
      AssertionError: or whatever else one of them raised.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return dict(collections.Counter(outcome_of_run(config_to_run(seed), Path(folder)) for seed in range(count)))


def command_lines_tried(count: int) -> dict[str, int]:
    """How many random command lines were allowed, and how many refused."""
    return _tried(command_lines(), outcome_of_command_line, count)
