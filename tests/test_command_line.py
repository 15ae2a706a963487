"""Errors of a command line are one line, with exit status 2, before anything is written."""

import doctest
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from configs import quickstart
from experiments import command_line
from experiments import config as configs
from experiments.config import ConfigError

ROOT = Path(__file__).parents[1]


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "experiments.main", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/quickstart.py", "--config.optimizer.lr_relativ=2"],
            "no field 'optimizer.lr_relativ'; nearest: 'optimizer.lr_unit'",
        ),
        (["--config=configs/quickstart.py", "--config.steps=many"], "error: steps=many; allowed: a whole number"),
        (["--config=configs/quickstart.py:huge"], "variant 'huge'; allowed: full, smoke"),
        (["--config=configs/quickstart.py", "--config.model.depth=0"], "model.depth=0; allowed: 1 or more"),
        ([], "--config is missing"),
        (
            ["--config=configs/quickstart.py", "--config.optimizer.lr=3.3"],
            "optimizer.lr=3.3 has no effect, since members.lr=(0.5, 1.67) replaces it; allowed: --config.members.lr=3.3",
        ),
        (["--config=configs/quickstart.py", "--config.members.seed=1,2", "--config.seed=3"], "members.seed=(1, 2) replaces it"),
    ],
)
def test_parse_errors_are_one_line(arguments, message, tmp_path):
    done = command(*arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_parse_of_a_missing_file_and_an_unknown_flag(tmp_path):
    for arguments, message in (
        (["--config=configs/none.py"], "error: config='configs/none.py' is not a file; allowed: a config file, for example"),
        (["--config=configs/none.py:smoke", "--config.steps=3"], "error: config='configs/none.py' is not a file; allowed"),
        (["--config=configs/quickstart.py", "--wrker=1"], "error: Unknown command line flag 'wrker'"),
        (
            ["--config=configs/cifar_gd.py:width"],
            "error: sweep=('model.width=256,512,1024,2048,4096',) with experiments.main; allowed",
        ),
        (["--config=configs/quickstart.py", "--flagfile=none"], "error: Unable to open flagfile"),
    ):
        done = command(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(message) and "allowed: " in done.stderr


def test_parse_of_a_misspelt_field_in_a_config_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import quickstart\ndef get_config():\n    c = quickstart.get_config()\n    c.optimizer.lr_relativ = 2.0\n    return c\n"
    )
    done = command(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"config='{file}': config has no field 'lr_relativ'; nearest: " in done.stderr and not (tmp_path / "run").exists()


def test_parse_of_a_config_file_without_get_config(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    done = command(f"--config={tmp_path / 'mine.py'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "mine.py': it has no function get_config; allowed: get_config(variant)" in done.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(:", "the config file ends in SyntaxError"),
        ("def get_config():\n    return 1 / 0", "the config file ends in ZeroDivisionError: division by zero"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'steps': 3})",
            "the config has no field",
        ),
        ("def get_config():\n    return 3", "the config file gives int; allowed: a ConfigDict"),
    ],
)
def test_parse_of_a_config_file_that_fails(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    done = command(f"--config={tmp_path / 'mine.py'}")

    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr and "allowed: " in done.stderr


def test_text_of_bytes_that_are_no_utf8():
    assert command_line._text("--config.title=Gr\udcc3\udcb6\u00dfe") == "--config.title=Gr\u00f6\u00dfe"
    with pytest.raises(ConfigError, match="is not in UTF-8; allowed: text in UTF-8"):
        command_line._text("--config.title=Gr\udcf6")


def parsed(*arguments):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["main", *arguments])
    return command_line.parse_flags(["main", *arguments], values), values


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_parse_of_none_takes_a_value_away(tmp_path):
    def parsed_fields(*overrides):
        argv = ["main", "--config=configs/quickstart.py:smoke", *overrides]
        values = flags.FlagValues()
        flags.DEFINE_string("compilation_cache", None, "", flag_values=values)
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        command_line.parse(argv, values)
        return configs.flat(values.config)

    given = parsed_fields("--config.schedule.cap=0.5", "--config.members.seed=3,4")
    assert given["schedule.cap"] == 0.5 and given["members.seed"] == (3, 4)

    emptied = parsed_fields("--config.schedule.cap=0.5", "--config.schedule.cap=None", "--config.members.seed=None")
    assert emptied["schedule.cap"] is None and emptied["members.seed"] is None
    with pytest.raises(ConfigError, match=r"no field 'schedule\.capp'; nearest: 'schedule\.cap'"):
        parsed_fields("--config.schedule.capp=None")

    single = parsed_fields("--config.optimizer.lr=3.3", "--config.members.lr=None")
    assert single["optimizer.lr"] == 3.3 and single["members.lr"] is None

    # With a space, and from a file of flags.
    assert parsed_fields("--config.optimizer.lr", "3.3", "--config.members.lr", "None")["members.lr"] is None
    (tmp_path / "flags").write_text("--config.optimizer.lr=3.3\n")
    for overrides in (["--config.optimizer.lr", "3.3"], [f"--flagfile={tmp_path / 'flags'}"]):
        with pytest.raises(ConfigError, match=r"optimizer\.lr=3\.3 has no effect, since members\.lr="):
            parsed_fields(*overrides)
    (tmp_path / "flags").write_text("--config.optimizer.lr=3.3\n--config.members.lr=None\n")
    assert parsed_fields(f"--flagfile={tmp_path / 'flags'}")["members.lr"] is None


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_parse_flags_of_an_argument_that_is_not_a_flag():
    for argument, allowed in {"steps=3": "--config.steps=3", "quickstart": "flags, which begin with --"}.items():
        with pytest.raises(ConfigError, match=f"argument '{argument}' is not a flag; allowed: {allowed}"):
            parsed("--config=configs/quickstart.py:smoke", argument)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_parse_flags_of_a_flagfile(tmp_path):
    """The config is the one that the file names, and so is the directory of the run."""
    (tmp_path / "flags").write_text("--config=configs/quickstart.py:smoke\n--config.steps=3\n")
    _, values = parsed(f"--flagfile={tmp_path / 'flags'}")
    assert values.config.steps == 3
    assert config_flags.get_config_filename(values["config"]) == "configs/quickstart.py:smoke"


@pytest.mark.parametrize("program", ["main", "sweep", "claims", "report"])
def test_help_text_lists_flags(program):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr and "configs/default.py" in done.stdout
    flags_of = {"main": ("config", "workdir", "reproduce", "compilation_cache"), "claims": ("only", "scale", "page")}
    flags_of["sweep"] = (*flags_of["main"], "grid", "processes")
    assert all(f"\n  --{flag}: " in done.stdout for flag in flags_of.get(program, ()))


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_parse_flags_of_a_platform_that_is_not_there(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for error in (RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()):
        monkeypatch.setattr(command_line.jax, "devices", mock.Mock(side_effect=error))
        with pytest.raises(ConfigError, match=r"JAX_PLATFORMS='cuda' can't be used .*; allowed: platforms of this machine"):
            parsed("--config=configs/quickstart.py:smoke")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections loads a config file
def test_parse_flags_of_a_config_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(quickstart.__file__, tmp_path / "mine.py")
    _, values = parsed("--config=~/mine.py:smoke")
    assert values.config.steps == 6


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device"),
            "error: the output can't be written (No space left on device); the files of the run are whole\n",
        ),
        (BrokenPipeError(32, "Broken pipe"), ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line(error, line, tmp_path, monkeypatch, capsys):
    class Output:
        def __init__(self):
            self.file = (tmp_path / "out").open("w")
            self.fileno = self.file.fileno

        def flush(self):
            raise error

    monkeypatch.setattr("sys.stdout", Output())
    with pytest.raises(SystemExit) as ended, command_line.explain_output_errors():
        pass

    assert ended.value.code == 1 and capsys.readouterr().err == line


def test_a_file_that_cannot_be_read_is_no_error_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), command_line.explain_output_errors():
        (tmp_path / "none").read_text()


def test_keep_compiled_in_a_directory(tmp_path, monkeypatch):
    updated = {}
    monkeypatch.setattr(command_line.jax.config, "update", updated.__setitem__)
    command_line.keep_compiled(str(tmp_path / "a" / "b"))
    assert updated["jax_compilation_cache_dir"] == str(tmp_path / "a" / "b") and not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"compilation_cache='.*file' can't be created"):
        command_line.keep_compiled(str(tmp_path / "file"))


def test_examples_in_docstrings():
    assert not doctest.testmod(command_line).failed
