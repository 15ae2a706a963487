"""Settings of the whole suite."""

import os
from pathlib import Path

# LLVM's optimisations take a fifth of the time of the suite; what XLA makes of a program is the same without them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the library asks for
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import jax
import pytest

_EXCLUDED = ("0.10.2", "0.11.0", "0.11.1")
if jax.__version__ in _EXCLUDED:
    pytest.exit(
        f"jax {jax.__version__} is wrong or unusable on the CPU; the allowed versions are in requirements.txt", returncode=2
    )

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # for what is shared over a mesh; everything else runs on the first


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Programs that several tests build are compiled once, by whichever worker comes first."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp().parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def strict():
    """No implicit change of dtype or rank in our own arithmetic."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def real_data() -> str:
    folder = os.environ.get("CATAPULT_DATA_DIR", "")
    if not folder or not Path(folder, "cifar10.npz").is_file():
        pytest.skip("CATAPULT_DATA_DIR names no folder with cifar10.npz")
    return folder


@pytest.fixture
def plain_figures(monkeypatch):
    """Figures are drawn, but without layout, small and as PNG alone: seconds a run. Other tests look at them in full."""
    from experiments import figures

    def save(figure, path):
        figure.savefig(path.with_suffix(".png"), dpi=20)
        figures.plt.close(figure)
        return path.with_suffix(".png")

    monkeypatch.setattr(figures, "save", save)
