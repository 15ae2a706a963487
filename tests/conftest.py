"""Settings of the whole suite."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the library asks for
# Compiling takes most of the time of the suite. Without LLVM's optimisations and the emitters of fusions it takes half as long.
# The arithmetic is the same, in another order. JAX 0.12 has no such emitters, and stops at an unknown flag.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # several threads take more time in sum, and every core has a test
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jax") < "0.11" else []),
    ]
)

import jax
import pytest

import catapult_jax
from tests import shapes

shapes.check_public_functions(catapult_jax)

gc.set_threshold(100_000, 50, 100)  # traced programs are many small objects; looking at all of them takes a tenth of the time

_EXCLUDED = ("0.10.2", "0.11.0", "0.11.1")
if jax.__version__ in _EXCLUDED:
    pytest.exit(
        f"jax {jax.__version__} is wrong or unusable on the CPU; the allowed versions are in requirements.txt", returncode=2
    )

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # for tests with a mesh; everything else runs on the first


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Compile a program that several tests build once, in the first worker that needs it."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp().parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def strict():
    """Make an implicit change of dtype or rank in our arithmetic an error."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def real_data() -> str:
    folder = os.environ.get("CATAPULT_DATA_DIR", "")
    if not folder or not Path(folder, "cifar10.npz").is_file():
        pytest.skip("CATAPULT_DATA_DIR names no folder with cifar10.npz")
    return folder


_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa471"
    "0000000049454e44ae426082"
)  # a PNG


@pytest.fixture
def plain_figures(monkeypatch):
    """Draw figures but do not render them: rendering takes most of the time of a small run. Other tests check whole figures."""
    from catapult_jax.report import figures

    def save(figure, path, note=""):
        path.with_suffix(".png").write_bytes(_PIXEL)
        return path.with_suffix(".png")

    monkeypatch.setattr(figures, "save", save)


@pytest.fixture(scope="module")
def shared_programs():
    """Share compiled programs among runs that differ only in data, members and length, as in a sweep."""
    from experiments.build import programs

    with programs.shared_programs():
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Forget the programs of a test file. The next one needs others, and thousands of programs slow down every call."""
    yield
    jax.clear_caches()
