"""Files beside the record. That model.npz holds the end of a run is in test_main.py."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, records
from experiments import main, outputs
from tests.helpers_runs import spoil, tiny


@pytest.mark.long
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_lost_model_is_written_again(tmp_path, damage, monkeypatch, plain_figures, capsys):
    """The same command writes it from the last checkpoint, with the same bits."""
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    config = tiny(run__save_model=True)
    main.run(config, tmp_path / "run")
    file = tmp_path / "run" / "model.npz"
    whole = dict(np.load(file))
    file.unlink() if damage == "missing" else spoil(file, "truncated")
    assert outputs.lost(tmp_path / "run", records.read_json(tmp_path / "run" / "run.json")) == ["model.npz"]

    main.run(config, tmp_path / "run")

    again = dict(np.load(file))
    assert "model.npz is missing or damaged; it is written again" in capsys.readouterr().err
    assert json.loads(str(again.pop("about"))) == json.loads(str(whole.pop("about")))
    assert set(again) == set(whole) and all(np.array_equal(again[name], whole[name]) for name in whole)


def test_lost_of_a_run_that_wrote_no_model(tmp_path):
    assert outputs.lost(tmp_path, {"status": "complete", "model_saved": True}) == []  # no checkpoint
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "6.npz").write_bytes(b"")
    assert outputs.lost(tmp_path, {"status": "complete"}) == []
    assert outputs.lost(tmp_path, {"status": "running", "model_saved": True}) == []
    assert outputs.lost(tmp_path, {"status": "complete", "instruments": {"cadences": {"agop_alignment": 2}}}) == ["agop.npz"]


def test_finite_of_members():
    params = {"w": np.array([[1.0, 2.0], [1.0, np.inf], [1.0, 2.0]]), "b": np.array([0.0, 0.0, np.nan])}

    assert outputs.finite(SimpleNamespace(members=SimpleNamespace(params=params))).tolist() == [True, False, False]


def test_write_directions_are_eigenvectors_of_the_explicit_agop(tmp_path):
    model, x = FCN(depth=2, width=16), np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    seeds = np.array([0, 1, 0])
    params = jax.vmap(lambda key: model.init(key, x[:1]))(jax.random.split(jax.random.key(0), 3))
    reference = np.tile(np.eye(5, dtype=np.float32)[1], (24, 1))  # the gradient of x_2 at every example
    built = SimpleNamespace(model=model, data=SimpleNamespace(x_train=x, agop_reference=reference))
    config = SimpleNamespace(measure=SimpleNamespace(agop_size=24))
    state = SimpleNamespace(members=SimpleNamespace(params=params))
    coordinates = {"seed": seeds, "lr_given": np.array([0.5, 0.5, 2.0])}

    outputs.write_directions(config, tmp_path, built, state, coordinates, np.ones(3, bool))

    stored = np.load(tmp_path / "agop.npz")
    assert stored["names"].tolist() == ["reference", "lr_given 0.5", "lr_given 2"]  # of the first seed
    assert stored["vectors"].shape == (3, 3, 5) and stored["shape"].tolist() == [5]
    np.testing.assert_allclose(np.abs(stored["vectors"][0, 0]), np.eye(5)[1], atol=1e-5)
    for row, m in ((1, 0), (2, 2)):
        member = jax.tree.map(lambda leaf, m=m: leaf[m], params)
        gradients = jax.vmap(jax.grad(lambda z: model.apply(member, z[None])[0, 0]))(jnp.asarray(x))  # noqa: B023
        _, vectors = np.linalg.eigh(np.asarray(gradients).T @ np.asarray(gradients))
        assert abs(vectors[:, -1] @ stored["vectors"][row, 0]) > 1 - 1e-4
