"""Digests of the code behind names: files and modules by their content, installed packages by version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from rewards.imports import code_digest


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("origin", "file"),
    [("own.py", "own.py"), ("shop", "shop/__init__.py"), ("shop.till", "shop/till.py"),
     ("plain.deep.desk", "plain/deep/desk.py")],
)  # fmt: skip
def test_code_is_followed_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str, file: str
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "plain/deep").mkdir(parents=True)
    for text in ("a = 1", "a = 2"):
        (tmp_path / file).write_text(text)
        assert code_digest(f"{origin}:Class", tmp_path) == sha(text)
        with monkeypatch.context() as within:
            within.chdir(tmp_path)
            assert code_digest(f"{origin}:Class") == sha(text)


def test_an_installed_package_is_followed_by_its_version() -> None:
    assert str(code_digest("yaml.loader:Loader")).lower() == f"pyyaml=={yaml.__version__}"
    own = Path(__file__).parents[3] / "rewards/imports.py"
    assert code_digest("rewards.imports:code_digest", own.parents[1]) == sha(own.read_text())


@pytest.mark.parametrize(
    "name", ["exact_match", "openenv://host:1", "nothing.here:f", "gone.py:f", "sys:exit", "a b:c"]
)
def test_names_without_code_have_none(name: str, tmp_path: Path) -> None:
    assert code_digest(name, tmp_path) is None
