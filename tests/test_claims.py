"""The program that tests the claims."""

from types import SimpleNamespace

import pytest

from catapult_jax import records
from experiments import claims
from experiments.config import ConfigError


def set_flags(monkeypatch, **values):
    for name in ("scale", "only", "claims_dir", "page"):
        monkeypatch.setattr(claims, f"_{name.upper()}", SimpleNamespace(value=values.get(name)))


@pytest.fixture
def reasons(monkeypatch):
    """No experiment is run; each fails for this reason, or succeeds."""
    reasons = {}
    monkeypatch.setattr(claims, "run_experiment", lambda experiment, scale, workdir: reasons.get(experiment.name))
    monkeypatch.setattr(claims.jax, "clear_caches", lambda: None)
    return reasons


def test_main_of_a_name_that_is_not_an_experiment(tmp_path, reasons, capsys, monkeypatch):
    set_flags(monkeypatch, scale="smoke", only=["cifar"], claims_dir=str(tmp_path / "runs"))

    assert claims.main([]) == 2

    assert capsys.readouterr().err.startswith("error: only='cifar'; allowed: cifar_gd:fcn, ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["config", "workdir", "reproduce"])
def test_main_refuses_flags_of_one_run(flag, reasons, monkeypatch):
    set_flags(monkeypatch, scale="smoke", only=[])
    monkeypatch.setattr(claims.flags.FLAGS[flag], "present", 1)

    with pytest.raises(ConfigError, match=f"--{flag} with experiments.claims; allowed: --(only|claims_dir), since"):
        claims.main([])


def test_main_keeps_the_reasons_of_failure_until_an_experiment_succeeds(tmp_path, reasons, capsys, monkeypatch):
    reasons["cifar_gd:cnn"] = "data.name='cifar10' is not available: no file /home/me/cifar10.npz; allowed: another name"
    set_flags(monkeypatch, scale="smoke", only=["cifar_gd"], claims_dir=str(tmp_path))

    assert claims.main([]) == 0
    assert "not tested: cifar_gd:cnn: data.name=" in capsys.readouterr().err
    assert records.read_json(tmp_path / "claims" / "failures.json") == {
        "cifar_gd:cnn": "data.name='cifar10' is not available: no file cifar10.npz"
    }
    page = (tmp_path / "claims" / "cifar_gd.md").read_text()
    assert "not available: no file cifar10.npz" in page and "/home" not in page and "another name" not in page

    reasons.clear()
    assert claims.main([]) == 0
    assert records.read_json(tmp_path / "claims" / "failures.json") == {}


@pytest.mark.parametrize(
    ("error", "public"),
    [
        ("no file /a/b.c/x.npz. Ways out: download it", "no file x.npz"),
        ("workdir='/tmp/run' is a file; allowed: a directory", "workdir='run' is a file"),
        ("diverged.", "diverged"),
    ],
)
def test_public_of_an_error(error, public):
    assert claims._public(error) == public


def test_main_of_a_page_that_can_not_be_written(tmp_path, reasons, monkeypatch):
    """Nothing is run first."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for page, message in (("folder", "is a directory; allowed: a file to write"), ("file/claims.md", "can't be created")):
        set_flags(
            monkeypatch, scale="smoke", only=["cifar_gd:fcn"], claims_dir=str(tmp_path / "runs"), page=str(tmp_path / page)
        )
        with pytest.raises(ConfigError, match=message):
            claims.main([])
    assert not (tmp_path / "runs").exists()


def test_main_of_a_result_that_was_edited(tmp_path, reasons, capsys, monkeypatch):
    set_flags(monkeypatch, scale="smoke", only=["cifar_gd:fcn"], claims_dir=str(tmp_path))
    (tmp_path / "claims").mkdir()
    records.write_json(tmp_path / "claims" / "cifar_gd-fcn.json", {"seeds": 5})
    file = tmp_path / "claims" / "cifar_gd-fcn.json"
    file.write_text(file.read_text().replace("5", "50", 1))

    assert claims.main([]) == 1

    message = capsys.readouterr().err
    assert message.startswith("error: ") and "cifar_gd-fcn.json is damaged" in message and message.count("\n") == 1
