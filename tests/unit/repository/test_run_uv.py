"""Setting up: uv is given what pip is configured with, and its version is the lock's."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "requirements" / "run_uv.py"


@pytest.fixture(scope="module")
def run_uv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_uv", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LISTING = """\
:env:.find-links='/wheels'
:env:.disable-pip-version-check='1'
global.extra-index-url='file:///one/simple\\nhttps://two.example/simple'
global.find-links='/weaker /and /more'
global.timeout='60'
install.constraint='/etc/constraints.txt'
"""


def test_the_strongest_of_pips_settings_is_passed_on(run_uv: ModuleType) -> None:
    assert run_uv.uv_environment(run_uv.pip_settings(LISTING), {"PATH": "/bin"}) == {
        "PATH": "/bin",
        "UV_CONSTRAINT": "/etc/constraints.txt",
        "UV_FIND_LINKS": "/wheels",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INDEX": "file:///one/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_several_folders_are_one_list(run_uv: ModuleType) -> None:
    settings = run_uv.pip_settings("global.find-links='/one /two'")
    assert run_uv.uv_environment(settings, {})["UV_FIND_LINKS"] == "/one,/two"


def test_what_uv_is_told_already_stays(run_uv: ModuleType) -> None:
    mine = {"UV_INDEX": "https://mine.example", "UV_INDEX_STRATEGY": "first-index"}
    assert run_uv.uv_environment({"extra-index-url": "https://pips.example"}, mine) == mine


def test_nothing_is_configured(run_uv: ModuleType) -> None:
    assert run_uv.pip_settings("") == {}


def test_the_version_is_the_locks(run_uv: ModuleType) -> None:
    assert run_uv.locked_version("absl-py==2.5.1\nuv==0.13.8\nuvicorn==0.54.0\n", "uv") == "0.13.8"
    marked = 'uv==0.13.8 ; python_version >= "3.11"\ntomli==2.0 ; python_version == "3.10"\n'
    assert run_uv.locked_version(marked, "uv") == "0.13.8"
    assert run_uv.locked_version(run_uv.LOCK.read_text(), "uv")


def test_uv_finds_a_wheel_where_pip_does(tmp_path: Path) -> None:
    """The real programs: a folder that only pip's configuration names."""
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    write_wheel(wheels)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
    command = ["pip", "install", "--no-deps", "--target", str(target), "adrift"]
    ran = subprocess.run(
        [sys.executable, SCRIPT, *command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "adrift==1.0" in ran.stderr
    assert (target / "adrift.py").read_text() == "LOST = True\n"


def write_wheel(folder: Path) -> None:
    """A package of one file."""
    tree = folder / "tree"
    info = tree / "adrift-1.0.dist-info"
    info.mkdir(parents=True)
    (tree / "adrift.py").write_text("LOST = True\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adrift\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").write_text("")
    archive = shutil.make_archive(str(folder / "adrift"), "zip", tree)
    Path(archive).rename(folder / "adrift-1.0-py3-none-any.whl")
    shutil.rmtree(tree)
