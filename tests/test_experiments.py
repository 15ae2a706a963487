"""The package of the programs: where Matplotlib keeps its files."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import experiments


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_private_folder_is_for_this_user_only(tmp_path):
    folder = experiments._private_folder(str(tmp_path / "new"))
    assert folder == str(tmp_path / "new") and mode(folder) == 0o700

    (tmp_path / "readable").mkdir(mode=0o755)
    assert mode(experiments._private_folder(str(tmp_path / "readable"))) == 0o700


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_private_folder_is_a_new_one_where_it_can_not_be_trusted(kind, tmp_path):
    path, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "writable":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_text("")

    folder = experiments._private_folder(str(path))

    assert folder != str(path) and mode(folder) == 0o700 and os.stat(folder).st_uid == os.getuid()
    os.rmdir(folder)


def test_matplotlib_keeps_to_the_place_that_the_user_named(tmp_path):
    code = "import os, experiments; print(os.environ['MPLCONFIGDIR'])"
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "mine")}
    root = Path(__file__).parents[1]

    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )

    assert process.stdout.strip() == str(tmp_path / "mine")
