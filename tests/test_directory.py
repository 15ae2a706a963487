"""The directory of a run: what it may hold, its name, its lock."""

import doctest
import errno
import fcntl
import json

import pytest

from configs import default, quickstart
from experiments import config as configs
from experiments import directory
from experiments.directory import earlier_run


def test_earlier_run_ignores_the_other_runs_of_a_sweep(tmp_path):
    config = default.get_config()
    (tmp_path / "config.json").write_text(config.to_json())
    config.sweep = ("steps=1,2",)
    assert earlier_run(tmp_path, json.loads(config.to_json())) is None
    config.steps += 1
    with pytest.raises(configs.ConfigError, match="holds a run with steps="):
        earlier_run(tmp_path, json.loads(config.to_json()))


def test_earlier_run_of_a_version_with_fewer_fields(tmp_path):
    """A field that the stored config lacks has its default."""
    config = quickstart.get_config()
    stored = json.loads(config.to_json())
    del stored["run"]["float64"]
    (tmp_path / "config.json").write_text(json.dumps(stored))

    assert earlier_run(tmp_path, json.loads(config.to_json())) is None
    config.run.float64 = True
    with pytest.raises(configs.ConfigError, match=r"holds a run with run.float64=False, not True; allowed: the same config"):
        earlier_run(tmp_path, json.loads(config.to_json()))


@pytest.mark.parametrize("kept", ["checkpoints", "record.zarr"])
def test_earlier_run_without_the_file_that_says_what_made_it(tmp_path, kept):
    config = json.loads(quickstart.get_config().to_json())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert earlier_run(tmp_path, config) is None  # killed before it trained
    (tmp_path / kept).mkdir()

    with pytest.raises(configs.ConfigError, match=rf"has {kept} but no run\.json, which says what made them; allowed: a copy"):
        earlier_run(tmp_path, config)


def test_earlier_run_of_a_directory_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(configs.ConfigError, match="is not empty and holds no run; allowed: a new directory"):
        earlier_run(tmp_path, json.loads(default.get_config().to_json()))


@pytest.mark.parametrize(
    ("files", "new"), [((), True), (("lock", "config.json.tmp"), True), (("config.json",), False), (("lock", "notes"), False)]
)
def test_is_new_of_a_directory_with_files(tmp_path, files, new):
    for name in files:
        (tmp_path / name).touch()

    assert directory.is_new(tmp_path) == new
    assert directory.is_new(tmp_path / "none")


def test_check_writable_leaves_nothing(tmp_path):
    directory.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(
        configs.ConfigError, match=r"can't be created or written to .Not a directory.; allowed: a directory that"
    ):
        directory.check_writable(tmp_path / "file" / "run")


def test_directory_name_of_a_long_text(tmp_path):
    name = directory.directory_name("ü" * 200, "0123abcd")

    assert len(name.encode()) <= 255 and name.endswith("ü-0123abcd") and directory.directory_name("short", "1") == "short-1"
    (tmp_path / name).mkdir()


def test_directory_of_run_with_many_axes(tmp_path):
    point = {f"optimizer.setting_{i}": 0.123456789 for i in range(20)}

    run_dir = directory.directory_of_run(tmp_path, point, quickstart.get_config("smoke"))

    run_dir.mkdir()
    assert run_dir.name.startswith("setting_0=0.123456789-setting_1=")


def test_directory_of_run_tells_configs_apart(tmp_path):
    config = quickstart.get_config("smoke")
    first = directory.directory_of_run(tmp_path, {"data.name": "a/b"}, config)
    config.steps += 1

    second = directory.directory_of_run(tmp_path, {"data.name": "a/b"}, config)

    assert first.parent == second.parent == tmp_path and first != second


def test_lock_is_exclusive_and_ends_with_its_block(tmp_path):
    with directory.lock(tmp_path / "run"):
        with (tmp_path / "run" / directory.LOCK).open("a") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "run" / directory.LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_explain_write_errors_of_a_full_disk(tmp_path):
    with pytest.raises(configs.RunError, match=r"run' can't be written \(No space left on device\); the files in it are whole"):
        with directory.explain_write_errors(tmp_path / "run"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(
        configs.RunError, match=r"/config\.json can't be read or written \(No such file or directory\); allowed: the file"
    ):
        with directory.explain_write_errors(tmp_path):
            (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="other"), directory.explain_write_errors(tmp_path):
        raise ValueError("other")


def test_examples_in_docstrings():
    assert not doctest.testmod(directory).failed
