"""The command line of the programs: flags, and one-line errors with their exit status."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from catapult_jax.records import DamagedFile
from configs import default
from experiments import signals
from experiments.config import TYPE_NAMES, ConfigError, RunError, flat, home, no_field, one_line, types_of_fields

CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Directory that keeps compiled programs for later runs; default: $JAX_COMPILATION_CACHE_DIR, or none.",
)
try:
    CONFIG = config_flags.DEFINE_config_file(
        "config", None, "Config file, with a variant after a colon. --config.FIELD=VALUE changes a field."
    )
except (flags.Error, UnicodeDecodeError) as error:  # a flag file on the command line, which is read here already
    print(f"error: {one_line(error).removeprefix('ERROR:: ')}; allowed: a flag file that is there, of text", file=sys.stderr)
    sys.exit(2)
_NONE = re.compile(r"--?config\.([\w.]+)=None$")
_FIELD = re.compile(r"--?config\.([\w.]+)(?:=(.*))?$", re.DOTALL)
_REPLACED = {
    "seed": "members.seed",
    "optimizer.lr": "members.lr",
    "schedule.raises": "members.raises",
    "schedule.cap": "members.cap",
}
FIELDS_HELP = "The fields of a config, with defaults and meanings, are in configs/default.py."


def program(main: Callable, parser: Callable | None = None) -> None:
    """Run a program. An error becomes one line on stderr, and the exit status 2 (config) or 1 (run).

    Args:
      main: the program; takes the result of the parser.
      parser: of the command line; None: :func:`parse`, for programs that run a config.
    """
    logging.set_verbosity(logging.FATAL)  # TFDS logs every file, and also the errors that it raises
    signals.end_in_one_line()
    try:
        with explain_output_errors():
            app.run(main, flags_parser=parser or parse)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RunError, DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def explain_output_errors() -> Iterator[None]:
    """Print any letter, and end with one line where the output can't be written: who read it has ended, or its disk is full."""
    for stream in (sys.stdout, sys.stderr):  # the terminal's encoding may lack letters of a title
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # None: closed
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or sys.stdout is None:  # not of the output
            raise
        if not isinstance(error, BrokenPipeError):  # as in: ... | head -1
            print(f"error: the output can't be written ({error.strerror}); the files of the run are whole", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the command line of a program that runs a config (for ``app.run(flags_parser=...)``).

    Args:
      argv: the command line; the name of the program comes first.
      values: flags that are set from it.

    Returns:
      The name of the program, which is left of ``argv``.

    Raises:
      ConfigError: an unknown flag or field, a value of the wrong type, an argument that is not a flag, or a config file that can't be
        loaded.
    """
    try:
        argv = _written_out(argv, values)
        rest = parse_flags([a for a in argv if not _NONE.match(a)], values)
        if "reproduce" in values and values.reproduce:
            if values.config is not None:
                raise ConfigError(
                    "--reproduce and --config are both given; allowed: one of them, since a run contains its config"
                )
            keep_compiled(values.compilation_cache)
            return rest
        if values.config is None:
            raise ConfigError("--config is missing; allowed: a config file, for example --config=configs/cifar_gd.py")
        if re.search(r"--xla_gpu_deterministic_ops=(?!true)", os.environ.get("XLA_FLAGS", "")):
            raise ConfigError(
                "XLA_FLAGS has --xla_gpu_deterministic_ops other than true; allowed: true, so that a config gives the same bits"
            )
        _load(values)
        _set_none(values.config, argv)
        _refuse_replaced(values.config, argv)
        keep_compiled(values.compilation_cache)
    except (AttributeError, KeyError) as error:
        raise ConfigError(_of_config_file(error, argv) or _unknown_field(argv) or one_line(error)) from error
    except BrokenPipeError:  # of --help
        raise
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise ConfigError(_missing_file(argv) or one_line(error)) from error
    return rest


def _written_out(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """The command line with the contents of flag files, and with ``--config.FIELD=VALUE`` for ``--config.FIELD VALUE``.

    Raises:
      ConfigError: an argument that is no text.
      flags.Error: a flag file that can't be read.
    """
    parts = [_text(a) for a in argv]
    parts = [parts[0], *values.read_flags_from_files(parts[1:], force_gnu=False)]
    written = []
    for part in parts:
        is_value = not part.startswith("-") or re.match(r"-\.?\d", part)
        if written and is_value and (match := _FIELD.match(written[-1])) and match[2] is None:
            written[-1] += f"={part}"
        else:
            written.append(part)
    return written


def _text(argument: str) -> str:
    """An argument in UTF-8, also where the locale is ASCII."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"argument {argument!r} is not in UTF-8; allowed: text in UTF-8") from error


def given_fields(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> dict[str, str]:
    """The fields of the config on a command line, flag files included, as text.

    Args:
      argv: the command line; the name of the program comes first.
      values: the flags of the program.

    Returns:
      Full names and values.

    >>> given_fields(["main", "--config.optimizer.lr=2", "--config.steps", "3"])
    {'optimizer.lr': '2', 'steps': '3'}
    """
    return _fields(_written_out(argv, values))


def _fields(written: Sequence[str]) -> dict[str, str]:
    """The fields on a command line that is written out; the last value counts."""
    matches = map(_FIELD.match, written)
    return {match[1]: match[2] for match in matches if match and match[2] is not None}


def _load(values: flags.FlagValues) -> None:
    """Load the config file.

    Raises:
      ConfigError: it gives no config.
    """
    config = values.config
    getattr(config, "get", lambda _: None)("steps")  # raises the error of a file that could not be loaded
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"the config file gives {type(config).__name__}; allowed: a ConfigDict, from configs.default.get_config()"
        )
    if lacking := sorted(set(flat(default.get_config())) - set(flat(config))):
        raise ConfigError(
            f"the config has no field {lacking[0]!r}; allowed: a config from configs.default.get_config(), changed"
        )


def _missing_file(argv: Sequence[str]) -> str | None:
    """The message for a config on the command line that is not a file, or None."""
    files = [match[1] for a in argv if (match := re.match(r"--?config=([^:]*)", a))]
    if not files or Path(files[-1]).expanduser().is_file():
        return None
    return f"config={files[-1]!r} is not a file; allowed: a config file, for example configs/cifar_gd.py"


def _of_config_file(error: Exception, argv: Sequence[str]) -> str | None:
    """The message for an error of the code of the config file: no ``get_config``, or a field that no config has. None: it is another error."""
    files = [match[1] for a in argv if (match := re.match(r"--?config=([^:]*)", a))]
    words = one_line(error)
    if field := re.search(r'^\W*Key "(\w+)" does not exist', words):
        reason = no_field(field[1])
    elif re.search(r"has no attribute 'get_config'", words):
        reason = "it has no function get_config"
    else:
        return None
    given = {match[1].rpartition(".")[2] for a in argv if (match := _FIELD.match(a))}
    if field and field[1] in given:  # of the command line
        return None
    return f"config={files[-1] if files else ''!r}: {reason}; allowed: get_config(variant) that changes configs.default.get_config()"


def _set_none(config: ConfigDict, argv: Sequence[str]) -> None:
    """Apply ``--config.FIELD=None``, which ml_collections can't parse."""
    names = [match[1] for a in argv if (match := _NONE.match(a))]
    if missing := [name for name in names if name not in flat(config)]:
        raise ConfigError(no_field(missing[0]))
    config.update_from_flattened_dict(dict.fromkeys(names))


def _refuse_replaced(config: ConfigDict, argv: Sequence[str]) -> None:
    """Refuse a field on the command line that has no effect, since the config has a tuple in its place."""
    given = _fields(argv)
    for name, tuple_name in _REPLACED.items():
        value, several = given.get(name, "None"), flat(config)[tuple_name]
        if value != "None" and several is not None:
            raise ConfigError(
                f"{name}={value} has no effect, since {tuple_name}={several!r} replaces it; allowed: "
                f"--config.{tuple_name}={value}, or --config.{tuple_name}=None beside it"
            )


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse flags. ``--help`` prints them and ends the program.

    Args:
      argv: the command line; the name of the program comes first.
      values: flags that are set from it.

    Returns:
      The name of the program, which is left of ``argv``.

    Raises:
      ConfigError: an unknown flag, a value of the wrong type, an argument that is not a flag, or a platform that is not available.
    """
    if any(re.fullmatch(r"--?(h|help|helpshort|helpfull)", argument) for argument in argv[1:]):
        print(help_text(values))
        sys.exit(0)
    try:
        rest = values([re.sub(r"^(--?config=)(~.*)", lambda m: m[1] + os.path.expanduser(m[2]), a) for a in argv])
    except flags.Error as error:
        allowed = (
            "; allowed: --config.FIELD=VALUE, and the flags of --help" if isinstance(error, flags.UnrecognizedFlagError) else ""
        )
        raise ConfigError(_wrong_type(error) or one_line(error) + allowed) from error
    except (AttributeError, KeyError, ValueError, TypeError, OSError):
        raise  # of a field or a value, which parse explains
    except Exception as error:  # any error of the code of the config file
        raise ConfigError(
            f"the config file ends in {type(error).__name__}: {one_line(error)}; allowed: a file that gives a config"
        ) from error
    if len(rest) > 1:
        field = rest[1].partition("=")[0]
        hint = f"--config.{rest[1]}" if field in flat(default.get_config()) else "flags, which begin with --; see --help"
        raise ConfigError(f"argument {rest[1]!r} is not a flag; allowed: {hint}")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r} can't be used ({one_line(error)[:200] or 'it is not available'}); "
            "allowed: platforms of this machine, or none, so that JAX chooses"
        ) from error
    return rest


def help_text(values: flags.FlagValues = flags.FLAGS) -> str:
    """The text of ``--help``.

    Args:
      values: the flags of all modules.

    Returns:
      The docstring of the program, and one line for each flag.
    """
    script, modules = sys.modules["__main__"], values.flags_by_module_dict()
    listed = modules.get(sys.argv[0], [])
    if not any(flag.name == "only" for flag in listed):  # experiments.claims has its own configs
        listed = [*modules.get(__name__, []), *modules.get("experiments.main", []), *listed]
    lines = [f"  --{flag.name}: {' '.join(flag.help.split())}" for flag in listed]
    return "\n".join([(script.__doc__ or "").strip(), "", "Flags:", *lines, "", FIELDS_HELP])


def keep_compiled(directory: str | None) -> None:
    """Tell JAX to keep compiled programs in a directory. JAX creates it with the first program.

    Args:
      directory: its path; None or empty: no change.

    Raises:
      ConfigError: the directory can't be created.

    >>> keep_compiled(None)
    """
    if not directory:
        return
    path = home(directory, "compilation_cache").resolve()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"compilation_cache={directory!r} can't be created in {nearest}; allowed: a directory that you can write to"
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _wrong_type(error: flags.Error) -> str | None:
    """The message for ``--config.FIELD=VALUE`` with a value of the wrong type, or None."""
    match = re.match(r"flag --config\.(([\w.]+)=.*?): ", str(error))
    types = types_of_fields(default.get_config())
    return f"{match[1]}; allowed: {TYPE_NAMES[types[match[2]]]}" if match and match[2] in types else None


def _unknown_field(argv: Sequence[str]) -> str | None:
    """The message for the first field on the command line that the config file does not have, or None."""
    if not any(re.match(r"--?config\.", a) for a in argv[1:]):
        return None
    plain = [argv[0], *(a for a in argv[1:] if re.match(r"--?config=", a))]  # loads the file again, without overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=plain)
    values(plain)
    fields = flat(values.config)
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in fields:
            return no_field(match[1])
    return None
