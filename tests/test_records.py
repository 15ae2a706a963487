"""A record on disk: written, read, damaged, and the environment beside it."""

import numpy as np
import pytest
import zarr

import catapult_jax
from catapult_jax import records
from tests.helpers_runs import spoil


def small_record(run_dir):
    """Ten steps of two members in chunks of four, half of them the fill value."""
    values = {"lr": np.arange(20, dtype=np.float32).reshape(2, 10), "spikes": np.full((2, 10), -1, np.int32)}
    values["lr"][:, 4:8] = np.nan
    records.create(run_dir, members={"seed": np.zeros(2, np.int32)}, steps=12, shapes=values, chunk=4, about={"title": "small"})
    records.write(run_dir, 0, values)
    return values


def files_of(run_dir):
    return sorted(path for path in [*run_dir.rglob("*")] if path.is_file())


def test_write_of_a_region_twice_is_as_once(tmp_path):
    values = {"loss_batch": np.arange(12, dtype=np.float32).reshape(2, 6), "diverged": np.zeros((2, 6), bool)}
    part = lambda a, b: {name: value[:, a:b] for name, value in values.items()}
    records.create(tmp_path, members={"seed": np.arange(2)}, steps=6, shapes=part(0, 2), chunk=4, about={})
    for first, last in ((0, 2), (2, 5), (2, 5), (3, 6), (0, 6)):
        records.write(tmp_path, first, part(first, last))
        assert records.steps_done(tmp_path) == last
    record = catapult_jax.open_record(tmp_path)
    for name, value in values.items():
        np.testing.assert_array_equal(record[name], value)


def test_create_makes_few_long_files(tmp_path):
    shapes = {"lr": np.zeros((2, 1), np.float32)}
    for steps, files in ((20_000, 5), (1_000_000, 50)):
        records.create(tmp_path, members={"seed": np.arange(2)}, steps=steps, shapes=shapes, about={})
        chunks = zarr.open_group(str(tmp_path / "record.zarr"), mode="r")["lr"].chunks
        assert -(-steps // chunks[1]) == files


def test_open_record_notices_each_damaged_and_each_missing_file(tmp_path):
    values = small_record(tmp_path)
    assert not records.damage(tmp_path)
    np.testing.assert_array_equal(records.open_record(tmp_path)["lr"], values["lr"])
    draw = np.random.default_rng(0)
    paths = files_of(tmp_path)
    assert len(paths) == 2 + 4 + 2 + 2 * 3  # progress and whole; arrays; coordinates; three chunks of two series
    for path in paths:
        content = path.read_bytes()
        for damage in ("deleted", "emptied", "truncated", *(["flipped"] * 8)):
            changed = bytearray(content)
            if damage == "flipped":
                changed[draw.integers(len(content))] ^= 1 << draw.integers(8)
            if damage == "deleted":
                path.unlink()
            else:
                path.write_bytes({"emptied": b"", "truncated": content[: len(content) // 2]}.get(damage, bytes(changed)))
            try:
                record = records.open_record(tmp_path).load()
            except records.DamagedFile as error:
                assert str(path) in str(error) and "is damaged: " in str(error) and "\n" not in str(error)
            else:  # white space in JSON
                assert path.suffix == ".json" and damage == "flipped"
                np.testing.assert_array_equal(record["lr"], values["lr"])
            path.write_bytes(content)


def test_damage_names_array_and_steps(tmp_path):
    small_record(tmp_path)
    spoil(tmp_path / "record.zarr" / "lr" / "c" / "0" / "1", "one bit")
    (tmp_path / "record.zarr" / "spikes" / "c" / "0" / "2").unlink()
    assert [str(record) for record in records.damage(tmp_path)] == [
        "record.zarr/lr/c/0/1 is damaged: its checksum differs (array lr, steps 4 to 7)",
        "record.zarr/spikes/c/0/2 is damaged: it is missing (array spikes, steps 8 to 9)",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [('"steps_done": 6', '"steps_done": 7'), ("sha256", "sha257"), ("false", "true"), ("{", ""), ("}", "} x")],
)
def test_read_json_of_a_changed_file(tmp_path, old, new):
    path = tmp_path / "progress.json"
    records.write_json(path, {"steps_done": 6, "over": False, "lr": float("nan"), "nested": {"a": (1, 2.5)}})
    assert records.read_json(path) == {"steps_done": 6, "over": False, "lr": None, "nested": {"a": [1, 2.5]}}
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(records.DamagedFile, match=r"progress.json is damaged: "):
        records.read_json(path)


def test_read_json_of_an_earlier_version_has_no_checksum(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "complete"}')
    assert records.read_json(tmp_path / "run.json") == {"status": "complete"}


def test_read_json_lines_of_a_changed_file(tmp_path):
    path = tmp_path / "events.jsonl"
    records.write_json_lines(path, [{"onset": 3}, {"onset": 5}])
    assert records.read_json_lines(path) == [{"onset": 3}, {"onset": 5}]
    path.write_text(path.read_text().replace("5", "6"))
    with pytest.raises(records.DamagedFile, match=r"events.jsonl is damaged: its checksum differs"):
        records.read_json_lines(path)
