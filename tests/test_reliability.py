"""A run is never lost and never lies: kills, damaged files, full disks, two processes, divergence, random input, reproduction."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import zarr
from absl import flags
from absl.testing import flagsaver

import catapult_jax
from catapult_jax import data, records
from catapult_jax.report.analysis import run_events, uncertain_steps
from catapult_jax.report.members import until_diverged
from experiments import build, directory, main, report, reproduce, sweep
from experiments import config as configs
from experiments.command_line import parse
from experiments.settings import settings_of
from tests.helpers_runs import spoil, tiny
from tests.programs import fuzz, soak

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("plain_figures", "shared_programs")]


def test_killed_at_a_random_moment_it_is_the_same_run_bit_for_bit(tmp_path):
    """One kill; ``make soak`` makes many, and of more kinds of runs; docs/soak.json has their number."""
    command = [
        *soak.COMMANDS["one member"],
        "--config.members.seed=(0,1)",
        "--config.optimizer.batch_size=4",
        "--config.steps=80",
    ]
    counts = soak.kill_and_resume(command, tmp_path, kills=1, seed=1)
    assert counts["kills"] == 1 and counts["runs_compared"] >= 1


def test_a_run_whose_newest_checkpoint_is_damaged_says_so_and_is_the_same_run(tmp_path, capsys):
    config = tiny(steps=9, run__checkpoint_every=3)
    main.run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    about = json.loads((tmp_path / "parts" / "run.json").read_text())
    records.write_json(tmp_path / "parts" / "run.json", about | {"status": "running"})  # as if it had been killed at the end
    spoil(tmp_path / "parts" / "checkpoints" / "9.npz", "truncated")
    capsys.readouterr()
    main.run(config, tmp_path / "parts")
    said = capsys.readouterr()
    assert "WARNING: the checkpoint of step 9 is damaged" in said.err and "resuming from step 6" in said.err
    assert "resuming at step 6 of 9" in said.out
    assert reproduce.compare(tmp_path / "whole", tmp_path / "parts").same


def test_a_run_that_ended_early_and_was_killed_after_that_takes_no_further_step(tmp_path, monkeypatch):
    config = tiny(steps=60, run__stop_loss=0.9, run__chunk_steps=5, run__checkpoint_every=5, measure__loss_test_every=5)
    main.run(config, tmp_path / "whole")
    steps = catapult_jax.open_record(tmp_path / "whole").sizes["step"]
    assert steps < 60
    about = json.loads((tmp_path / "whole" / "run.json").read_text())
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    records.write_json(tmp_path / "parts" / "run.json", about | {"status": "running"})  # as if it had been killed at the end
    main.run(config, tmp_path / "parts")
    assert catapult_jax.open_record(tmp_path / "parts").sizes["step"] == steps
    assert reproduce.compare(tmp_path / "whole", tmp_path / "parts").same


def test_a_run_without_a_readable_checkpoint_is_left_alone(tmp_path):
    """It may be whole, and the versions or the machine others: beginning again would destroy it."""
    config = tiny(steps=9)
    main.run(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    records.write_json(tmp_path / "run" / "run.json", about | {"status": "running"})
    spoil(tmp_path / "run" / "checkpoints" / "9.npz", "truncated")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(
        configs.RunError, match=r"has no checkpoint that can be read: the checkpoint of step 9 .*; nothing was changed"
    ):
        main.run(config, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    main.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_a_second_process_is_refused(tmp_path, capsys):
    with directory.lock(tmp_path / "run"):
        for attempt in (lambda: main.run(tiny(), tmp_path / "run"), lambda: sweep.run_sweep(tiny(), [], tmp_path / "run", 1)):
            with pytest.raises(configs.ConfigError, match="is in use by another process; allowed: another workdir"):
                attempt()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [directory.LOCK]
    main.run(tiny(), tmp_path / "run")  # what it leaves behind is no obstacle
    with directory.lock(tmp_path / "run"):
        assert report.main(["report", str(tmp_path / "run")]) == 2
    assert "is in use by another process" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_run_goes_on_elsewhere_and_on_eight_devices(tmp_path):
    """Files may have so many kilobytes and no more: the checkpoint does not fit, then the first file."""
    program = [sys.executable, "-m", *soak.COMMANDS["one member"], "--config.steps=12", f"--workdir={tmp_path / 'run'}"]
    limited = ["bash", "-c", 'ulimit -f 10; exec "$@"', "bash", *program]
    done = subprocess.run(limited, cwd=soak.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "can't be written" in done.stderr and "the files in it are whole; allowed: the same command again" in done.stderr
    # Nothing is written outside of the run, but for Matplotlib's list of fonts in the temporary folder.
    for name in ("home", "cwd", "tmp"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(soak.ROOT)}
    program = [part.replace("--config=", f"--config={soak.ROOT}/") for part in program]
    done = subprocess.run(program, cwd=tmp_path / "cwd", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "resuming at step 0 of 12" in done.stdout, done.stderr
    assert catapult_jax.open_record(tmp_path / "run").sizes["step"] == 12
    left = [path for name in ("home", "cwd", "tmp") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert all(path.parent == tmp_path / "tmp" / f"matplotlib-{os.getuid()}" for path in left), left

    # That process had one device, this one has eight. The sums may be divided otherwise: equal to 1e-5, a hundred roundings.
    main.run(reproduce.stored_config(tmp_path / "run"), tmp_path / "on eight")
    assert jax.device_count() == 8
    single, eight = (catapult_jax.open_record(tmp_path / name) for name in ("run", "on eight"))
    for name in single.data_vars:
        np.testing.assert_allclose(eight[name], single[name], rtol=1e-5, err_msg=name)


def test_a_disk_that_is_full_in_the_middle_of_the_record(tmp_path, monkeypatch):
    config, whole, calls = tiny(steps=9, run__checkpoint_every=3), records.write, []
    main.run(config, tmp_path / "whole")

    def fails(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return whole(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(records, "write", fails)
        with pytest.raises(configs.RunError, match=r"can't be written .No space left on device.; the files in it are whole"):
            main.run(config, tmp_path / "run")
    main.run(config, tmp_path / "run")
    assert reproduce.compare(tmp_path / "whole", tmp_path / "run").same


def test_a_run_that_ended_before_its_first_file_was_whole_left_nothing(tmp_path):
    for name in (directory.LOCK, "config.json.tmp"):
        (tmp_path / name).write_text("{")
    assert directory.is_new(tmp_path) and directory.is_new(tmp_path / "none")
    (tmp_path / "other").touch()
    assert not directory.is_new(tmp_path)


def test_a_member_that_diverges_is_marked_and_changes_no_bit_of_the_others(tmp_path):
    rates = {"calm": (0.5, 0.6), "lost": (0.5, 1e12)}
    for name, lr_relative in rates.items():
        main.run(tiny(steps=9, members__lr=lr_relative), tmp_path / name)
    calm, lost = (catapult_jax.open_record(tmp_path / name) for name in rates)
    for name in calm.data_vars:
        np.testing.assert_array_equal(calm[name].values[0], lost[name].values[0], err_msg=name)
    about = json.loads((tmp_path / "lost" / "run.json").read_text())
    (member,) = about["lost"]
    assert about["status"] == "complete" and (member["member"], member["cause"]) == (1, "the loss was not finite")
    diverged = lost["diverged"].values[1]
    assert not diverged[: member["step"]].any() and diverged[member["step"] :].all()
    html = (tmp_path / "lost" / "report.html").read_text()
    assert "Members that diverged" in html and ">nan<" not in html.lower() and ">inf<" not in html.lower()
    main.run(tiny(steps=9, members__lr=(1e12, 1e13)), tmp_path / "all")
    assert json.loads((tmp_path / "all" / "run.json").read_text())["status"] == "diverged"


def test_a_member_that_does_not_come_back_is_frozen_too(tmp_path):
    config = tiny(steps=20, members__lr=(0.5, 1.67), events__horizon=2, model__width=256, data__name="natural_patches")
    main.run(config, tmp_path / "run")
    (member,) = json.loads((tmp_path / "run" / "run.json").read_text())["lost"]
    assert (member["member"], member["cause"]) == (1, "a spike did not close within 2 steps")
    record = catapult_jax.open_record(tmp_path / "run").load()
    loss, last = record["loss_batch"].values[1], member["step"]
    assert np.isfinite(loss).all() and len(set(loss[last:].tolist())) == 1  # frozen on the weights of that step
    # What is measured of it afterwards is in no figure and no count.
    shown = until_diverged(record)["loss_batch"].values
    assert np.isfinite(shown[0]).all() and np.isfinite(shown[1, : last + 1]).all() and np.isnan(shown[1, last + 1 :]).all()
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    for shown in (record, until_diverged(record)):
        (event,) = run_events(shown, settings_of(settings))[1]
        assert (event.kind, event.end) == ("divergence", -1)


def test_seeds_side_by_side_are_those_alone_up_to_rounding(tmp_path):
    """Another batch layout of the same arithmetic: equal to 1e-4 over these steps (rounding, which training lets grow), not bit for bit."""
    main.run(tiny(members__seed=(0, 1, 2)), tmp_path / "three")
    main.run(tiny(members__seed=(1,)), tmp_path / "one")
    three, alone = (catapult_jax.open_record(tmp_path / name) for name in ("three", "one"))
    settings = len(alone.member)
    mine = np.flatnonzero(three["seed"].values == 1)
    assert len(mine) == settings
    for name in ("loss_batch", "critical_lr_batch", "lr"):
        np.testing.assert_allclose(three[name].values[mine], alone[name].values, rtol=1e-4, err_msg=name)


def test_reproduced_or_not(tmp_path, capsys, monkeypatch):
    main.run(tiny(), tmp_path / "run")
    flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(main.build, "choose_instruments", None)  # found from costs, which are never twice the same: taken over
    with flagsaver.flagsaver(reproduce=str(tmp_path / "run"), workdir=str(tmp_path / "again")):
        assert main.main([]) == 0
    assert "reproduced: " in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "reproduction.json").read_text())["same"] is True
    zarr.open_group(str(tmp_path / "run" / "record.zarr"), mode="r+")["lr"][0, 4] *= 1 + 1e-6
    comparison = reproduce.compare(tmp_path / "run", tmp_path / "again")
    assert not comparison.same and re.match(
        r"lr differs from step 4 on, by (9|1)\.\de-0[67] relative at most", reproduce.lines(comparison)[0]
    )
    events = (tmp_path / "again" / "events.jsonl").read_text()
    (tmp_path / "again" / "events.jsonl").write_text(events + "{}\n")
    assert set(reproduce.compare(tmp_path / "run", tmp_path / "again").differing) == {"lr", "events"}
    with monkeypatch.context() as patched:  # what a third run would give
        patched.setattr(main, "run", lambda config, workdir, like: shutil.copytree(tmp_path / "again", workdir))
        with flagsaver.flagsaver(reproduce=str(tmp_path / "run"), workdir=str(tmp_path / "third")):
            assert main.main([]) == 1
    with pytest.raises(configs.ConfigError, match="holds a comparison; allowed: a new directory"):
        main.run_again(tmp_path / "run", tmp_path / "again")
    for where, message in (
        (tmp_path / "none", "holds no run"),
        (tmp_path, "holds no run"),
    ):
        with pytest.raises(configs.ConfigError, match=message):
            main.run_again(where, tmp_path / "new")
    with pytest.raises(configs.ConfigError, match="is the run itself"):
        main.run_again(tmp_path / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["data"]["sha256"] = "0" * 64
    records.write_json(tmp_path / "run" / "run.json", about)
    with pytest.raises(configs.ConfigError, match="other data"):
        main.run_again(tmp_path / "run", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_comes_from_the_outside_is_escaped(tmp_path):
    main.run(tiny(title=r"<script>alert(1)</script> & $\no formula$"), tmp_path / "run")
    html = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html


def test_steps_too_near_to_tell_are_marked(tmp_path):
    main.run(tiny(), tmp_path / "run")
    record = catapult_jax.open_record(tmp_path / "run").load()
    margin = record.attrs["critical_lr_margin"]
    assert 1e-6 <= margin < 1e-3
    assert f"No side is certain within {margin:.1e} of the critical lr" in (tmp_path / "run" / "report.html").read_text()
    assert not uncertain_steps(record).any()
    record.attrs["critical_lr_margin"] = margin = 1e-4
    is_measured = np.isfinite(record["critical_lr_batch"].values)
    for distance, expected in ((0.5, True), (-0.5, True), (2.0, False), (-2.0, False)):
        record["lr"][:] = record["critical_lr_batch"].astype(np.float64) * (1 + distance * margin)
        assert is_measured.any() and (uncertain_steps(record)[is_measured] == expected).all(), distance


def test_random_runs():
    tried = fuzz.runs(3)
    assert sum(tried.values()) == 3 and {"refused", "complete"} <= set(tried)  # which ones changes with the names of the fields


def test_random_models():
    tried = fuzz.models_tried(100)
    assert tried["read"] >= 2 and tried["refused"] >= 30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"events__horizon": 10**12}, "events.horizon=1000000000000; allowed: whole numbers up to 2147483647"),
        ({"members__seed": (0, 10**12)}, "members.seed"),
        ({"data__name": "x" * 300}, "data.name='x+' is not available .*File name too long"),
        ({"measure__agop_alignment_every": 1, "measure__agop_reference": "."}, "is no saved model"),
        (
            {
                "data__name": "synthetic", "data__target_encoding": "value", "data__scaling": "none", "data__classes": None, "data__test_size": 2,
                "data__synthetic__dimension": 2**31 - 1, "data__train_size": 2**31 - 1,
            },
            "data.synthetic.dimension=2147483647, data.train_size=2147483647, .*allowed: examples of less than",
        ),
    ],
)  # fmt: skip
def test_sizes_and_names_that_can_not_be(tmp_path, monkeypatch, fields, message):
    monkeypatch.setenv("CATAPULT_DATA_DIR", str(tmp_path))
    with pytest.raises(configs.ConfigError, match=message):
        main.run(tiny(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sweep_on_a_bad_file_or_in_another_folder_leaves_nothing(tmp_path):
    Path(tmp_path, "given.npz").write_bytes(b"none")
    with pytest.raises(configs.ConfigError, match=r"given.npz can't be read"):
        sweep.run_sweep(tiny(data__name="given", data__dir=str(tmp_path)), [], tmp_path / "sweep", 1)
    with pytest.raises(configs.ConfigError, match="holds something else than a sweep"):
        sweep.run_sweep(tiny(), [], tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["given.npz"]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_sums_in_one_order_are_demanded(monkeypatch):
    assert "--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    with pytest.raises(configs.ConfigError, match="XLA_FLAGS has --xla_gpu_deterministic_ops other than true; allowed: true"):
        parse(["main", "--config=configs/quickstart.py:smoke"])


def test_a_kernel_of_zero_has_no_critical_lr_to_be_relative_to(tmp_path):
    """Its network is dead, so that no example has a gradient: with an absolute lr it stays where it is."""
    dead = {"model__width": 1, "data__train_size": 1, "members__lr": None, "members__seed": (0,)}
    with pytest.raises(
        configs.ConfigError, match=r"members.seed=0, optimizer.lr_unit='critical_lr0'; the critical lr at initialisation is inf"
    ):
        main.run(tiny(**dead, optimizer__lr=0.5), tmp_path / "relative")
    assert not (tmp_path / "relative").exists()
    main.run(tiny(**dead, optimizer__lr=0.5, optimizer__lr_unit="absolute"), tmp_path / "absolute")
    record = catapult_jax.open_record(tmp_path / "absolute").load()
    assert np.isinf(record["critical_lr_batch"].values).all() and len(np.unique(record["loss_batch"])) == 1


def test_random_files():
    tried = fuzz.files(150)
    assert tried["read"] >= 2 and tried["refused"] >= 50 and sum(tried.values()) >= 150


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections loads a config file
def test_random_command_lines():
    tried = fuzz.command_lines_tried(150)
    assert tried["allowed"] >= 2 and tried["refused"] >= 50


@pytest.mark.parametrize(
    ("shape", "honest"), [((10**6, 10**6), False), ((2**40,), False), ((3, 2**62), False), ((50, 10**6), True)], ids=str
)
def test_a_bomb_is_refused_before_memory_is_taken(tmp_path, monkeypatch, shape, honest):
    Path(tmp_path, "given.npz").write_bytes(fuzz.bomb(shape, honest=honest))
    if honest:  # as on a machine with less memory than that
        monkeypatch.setattr(data.npz.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ValueError, match="claim"):
        data.read("given", directory=str(tmp_path))


def test_a_bad_file_leaves_nothing_behind(tmp_path):
    Path(tmp_path, "given.npz").write_bytes(b"PK\x03\x04 no archive")
    config = tiny(data__name="given", data__dir=str(tmp_path))
    with pytest.raises(configs.ConfigError, match=r"given.npz can't be read .*; allowed: an .npz file"):
        main.run(config, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["given.npz"]


@pytest.fixture
def whole_run(tmp_path, monkeypatch, capsys):
    """A finished run of 14 steps in chunks of four, with checkpoints at 12 and 14; a second one to be damaged."""
    monkeypatch.setattr(records, "_CHUNK", 4)
    config = tiny(steps=14, run__checkpoint_every=6)
    main.run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    capsys.readouterr()
    return config


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("record.zarr/lr/c/0/1", "one bit", "computing steps 4 to 7 of the record again, from step 0"),
        ("record.zarr/spikes/c/0/3", "deleted", "computing steps 12 to 13 of the record again, from step 12"),
        ("record.zarr/diverged/zarr.json", "deleted", "resuming at step 14 of 14"),
        ("record.zarr/zarr.json", "truncated", "resuming at step 14 of 14"),
        ("record.zarr/seed/c/0", "deleted", "resuming at step 14 of 14"),
        ("progress.json", "emptied", "resuming at step 14 of 14"),
        ("record.zarr", "deleted", "the run starts again from step 0"),
    ],
)
def test_the_same_command_makes_a_damaged_record_again(tmp_path, whole_run, capsys, file, damage, said):
    path = tmp_path / "run" / file
    if damage == "deleted":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        spoil(path, damage)
    main.run(whole_run, tmp_path / "run")
    out = capsys.readouterr()
    assert said in out.out and f"WARNING: {path}" in out.err and "Traceback" not in out.err
    assert reproduce.compare(tmp_path / "whole", tmp_path / "run").same
    assert not records.damage(tmp_path / "run")


def test_steps_that_come_out_otherwise_are_not_mixed_into_a_record(tmp_path, whole_run):
    zarr.open_group(str(tmp_path / "run" / "record.zarr"), mode="r+")["loss_batch"][0, 5] *= 2  # as of another machine
    spoil(tmp_path / "run" / "record.zarr" / "lr" / "c" / "0" / "1", "one bit")
    with pytest.raises(configs.RunError, match=r"lr/c/0/1 is damaged: .* loss_batch differs from the record"):
        main.run(whole_run, tmp_path / "run")


@pytest.mark.parametrize("file", ["run.json", "config.json"])
def test_a_damaged_small_file_is_one_line(tmp_path, whole_run, capsys, file):
    path = tmp_path / "run" / file
    path.write_text(path.read_text().replace("digits", "digitz"))
    with pytest.raises(configs.ConfigError, match=rf"{file} is damaged: its checksum differs; allowed: a copy of that file"):
        main.run(whole_run, tmp_path / "run")
    with pytest.raises(configs.ConfigError, match=rf"reproduce: .*{file} is damaged: its checksum differs"):
        main.run_again(tmp_path / "run", tmp_path / "again")
    assert report.main(["report", str(tmp_path / "run")]) == 2
    assert re.search(rf"^error: .*{file} is damaged: its checksum differs$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("file", ["record.zarr/lr/c/0/1", "events.jsonl", "checkpoints/14.npz"])
def test_reproduce_refuses_a_damaged_run(tmp_path, whole_run, file):
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes() + b"x") if file == "events.jsonl" else spoil(path, "one bit")
    with pytest.raises(configs.ConfigError, match=rf"reproduce: .*{file} is damaged: .*; allowed: a run whose files"):
        main.run_again(tmp_path / "run", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_report_of_a_run_without_steps_is_one_line(tmp_path, whole_run, capsys):
    records.write_json(tmp_path / "run" / "progress.json", {"steps_done": 0, "over": False, "metadata": None})
    assert report.main(["report", str(tmp_path / "run")]) == 2
    assert "has no step on record yet" in capsys.readouterr().err


def test_where_checkpoints_fall_changes_no_bit(tmp_path):
    for name, fields in {
        "one": {},
        "every": {"run__checkpoint_every": 1},
        "seconds": {"run__checkpoint_seconds": 1e-6},
    }.items():
        main.run(tiny(steps=9, **fields), tmp_path / name)
    assert all(reproduce.compare(tmp_path / "one", tmp_path / name).same for name in ("every", "seconds"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys, number):
    main.run(tiny(steps=9), tmp_path / "whole")
    whole_trainer, handlers = build.trainer_of, [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def trainer(*arguments, **keywords):
        trained = whole_trainer(*arguments, **keywords)

        def run(state, *rest):
            if int(state.step) == 3:
                os.kill(os.getpid(), number)
            return trained.run(state, *rest)

        return trained._replace(run=run)

    with monkeypatch.context() as patched:
        patched.setattr(build, "trainer_of", trainer)
        with pytest.raises(SystemExit) as stopped:
            main.run(tiny(steps=9), tmp_path / "parts")
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name} at step 6 of 9; record and checkpoint are written" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["6.npz"]
    main.run(tiny(steps=9), tmp_path / "parts")
    assert "resuming at step 6 of 9" in capsys.readouterr().out
    assert reproduce.compare(tmp_path / "whole", tmp_path / "parts").same


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, time\nfrom experiments import signals\nwith signals.collect() as received:\n"
        "  for _ in range(2): os.kill(os.getpid(), signal.SIGTERM); print(received, flush=True)\nprint('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=soak.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM and done.stdout == "[15]\n"


def test_a_run_whose_members_have_all_diverged_ends(tmp_path):
    config = tiny(steps=3000, members__lr=(1e12, 1e13))
    main.run(config, tmp_path / "run")
    about = records.read_json(tmp_path / "run" / "run.json")
    record = catapult_jax.open_record(tmp_path / "run")
    last = max(member["step"] for member in about["lost"])
    assert about["status"] == "diverged" and record.sizes["step"] == 3 * (last // 3 + 2)  # one chunk after the last of them
    assert f"{record.sizes['step']} of 3000 steps" in (tmp_path / "run" / "report.html").read_text()
    before = (tmp_path / "run" / "report.html").read_text()
    main.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text() == before


def test_nan_in_the_loss_is_found_where_jax_is_asked_to(tmp_path):
    with jax.debug_nans(True):
        main.run(tiny(measure__lambda_max_batch_every=2), tmp_path / "healthy")
        with pytest.raises(configs.RunError, match=r"JAX_DEBUG_NANS: the loss of member 1 is NaN at step \d"):
            main.run(tiny(steps=12, members__lr=(0.5, 1e30)), tmp_path / "sick")
    assert records.read_json(tmp_path / "healthy" / "run.json")["status"] == "complete"
