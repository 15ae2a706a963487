"""The command line of the programs: flags, and one-line errors with their exit status."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from catapult_jax.records import DamagedFile
from configs import default
from experiments import signals
from experiments.config import ConfigError, RunError, flat, no_field, one_line

CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Directory in which compiled programs are kept and found again; default: none, or $JAX_COMPILATION_CACHE_DIR.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon; --config.FIELD=VALUE changes one of its fields."
)
_NONE = re.compile(r"--?config\.([\w.]+)=None$")
FIELDS_HELP = "The fields of a config, their defaults and what they mean are in configs/default.py."


def program(main: Callable, parser: Callable | None = None) -> None:
    """Runs a program; an error is one line on stderr, and exit status 2 (config) or 1 (run).

    Args:
      main: of the program; gets what the parser returns.
      parser: of the command line; None: :func:`parse`, for programs that run a config.
    """
    logging.set_verbosity(logging.FATAL)  # TFDS tells of every file, and of what it raises as well
    signals.end_in_one_line()
    for stream in (sys.stdout, sys.stderr):  # a title may have letters that the terminal's encoding has not
        stream.reconfigure(errors="backslashreplace")
    try:
        app.run(main, flags_parser=parser or parse)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RunError, DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line of a program that runs a config (for ``app.run(flags_parser=...)``).

    Args:
      argv: the command line, with the name of the program first.
      values: flags that take their values from it.

    Returns:
      What is left of ``argv``: the name of the program.

    Raises:
      ConfigError: unknown flag, unknown field, wrong type, an argument that is no flag, a config file that can't be loaded.
    """
    try:
        rest = parse_flags([a for a in argv if not _NONE.match(a)], values)
        if "reproduce" in values and values.reproduce:
            if values.config is not None:
                raise ConfigError("reproduce and config are both given; allowed: one, since a run has its config with it")
            keep_compiled(values.compilation_cache)
            return rest
        if values.config is None:
            raise ConfigError("--config is missing; allowed: a config file, for example --config=configs/cifar_gd.py")
        if re.search(r"--xla_gpu_deterministic_ops=(?!true)", os.environ.get("XLA_FLAGS", "")):
            raise ConfigError(
                "XLA_FLAGS has --xla_gpu_deterministic_ops other than true; allowed: true, so that a config gives the same bits"
            )
        values.config.get("steps")  # a file that could not be loaded says so only when it is touched
        _set_none(values.config, argv)
        keep_compiled(values.compilation_cache)
    except (AttributeError, KeyError) as error:
        raise ConfigError(_unknown_field(argv) or one_line(error)) from error
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise ConfigError(one_line(error)) from error
    return rest


def _set_none(config: ConfigDict, argv: Sequence[str]) -> None:
    """Applies ``--config.FIELD=None``, which the flags of a config can't parse."""
    names = [match[1] for a in argv if (match := _NONE.match(a))]
    if missing := [name for name in names if name not in flat(config)]:
        raise ConfigError(no_field(missing[0]))
    config.update_from_flattened_dict(dict.fromkeys(names))


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses flags; ``--help`` prints them and ends the program.

    Args:
      argv: the command line, with the name of the program first.
      values: flags that take their values from it.

    Returns:
      What is left of ``argv``: the name of the program.

    Raises:
      ConfigError: an unknown flag, an argument that is no flag, a platform that is not available.
    """
    if any(re.fullmatch(r"--?(h|help|helpshort|helpfull)", argument) for argument in argv[1:]):
        print(help_text(values))
        sys.exit(0)
    try:
        rest = values([re.sub(r"^(--?config=)(~.*)", lambda m: m[1] + os.path.expanduser(m[2]), a) for a in argv])
    except flags.Error as error:
        raise ConfigError(one_line(error)) from error
    if len(rest) > 1:
        field = rest[1].partition("=")[0]
        hint = f"--config.{rest[1]}" if field in flat(default.get_config()) else "flags, which begin with --; see --help"
        raise ConfigError(f"argument {rest[1]!r} is no flag; allowed: {hint}")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r} can't be used ({one_line(error)[:200] or 'it is not there'}); "
            "allowed: platforms of this machine, or none, so that JAX takes the best"
        ) from error
    return rest


def help_text(values: flags.FlagValues = flags.FLAGS) -> str:
    """What the program does, and its flags.

    Args:
      values: the flags of all modules.

    Returns:
      The docstring of the program, and one line for each flag.
    """
    script, modules = sys.modules["__main__"], values.flags_by_module_dict()
    listed = modules.get(sys.argv[0], [])
    if not any(flag.name == "only" for flag in listed):  # the program of the claims brings its configs itself
        listed = [*modules.get(__name__, []), *modules.get("experiments.main", []), *listed]
    lines = [f"  --{flag.name}: {' '.join(flag.help.split())}" for flag in listed]
    return "\n".join([(script.__doc__ or "").strip(), "", "Flags:", *lines, "", FIELDS_HELP])


def keep_compiled(directory: str | None) -> None:
    """Tells JAX to keep compiled programs in a directory. JAX creates it with the first program.

    Args:
      directory: its path; None or empty: nothing is changed.

    Raises:
      ConfigError: the directory can't be created.

    >>> keep_compiled(None)
    """
    if not directory:
        return
    path = Path(directory).expanduser().resolve()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"compilation_cache={directory!r} can't be made in {nearest}; allowed: a directory to write in")
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
