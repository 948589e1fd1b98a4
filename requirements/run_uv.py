"""uv with the indexes that pip is configured for: ``python requirements/run_uv.py pip install ...``.

Needs nothing but the standard library and pip. uv reads none of pip's settings, so a machine whose pip
finds its packages in a mirror or in a folder would have to be configured a second time. Whatever a ``UV_``
variable says already stays. The version is the lock's.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LOCK = Path(__file__).with_name("cpu.lock")

VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}
"""A setting of pip, the variable by which uv takes it, and what stands between several values.

Variables, not options: a URL may hold a password, and everyone can read the options of a process."""

SECTIONS = ("global", "install", ":env:")
"""Where pip's settings come from, the strongest last."""


def pip_settings(listing: str) -> dict[str, str]:
    """Read the output of ``pip config list``: the strongest value of every setting."""
    values: dict[tuple[int, str], str] = {}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in SECTIONS:
            values[SECTIONS.index(section), name] = str(ast.literal_eval(value))
    return {name: value for (_, name), value in sorted(values.items())}


def uv_environment(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Translate pip's settings into variables for uv; what ``environ`` sets already stays as it is."""
    translated = {
        variable: separator.join(settings[name].split())
        for name, (variable, separator) in VARIABLES.items()
        if settings.get(name)
    }
    # As pip does: the best version of all indexes, not the first index that knows the name.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **translated, **environ}


def locked_version(lock: str, name: str) -> str:
    """Return the version of a package that a lock pins."""
    pins = (line.partition(";")[0].partition("==") for line in lock.splitlines())
    return {package: version.strip() for package, _, version in pins}[name]


def main() -> int:
    """Install uv into this environment unless it is there, and run it."""
    pip = [sys.executable, "-m", "pip"]
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pinned = f"uv=={locked_version(LOCK.read_text(), 'uv')}"
        installed = subprocess.run([*pip, "install", "--quiet", "--no-deps", pinned], check=False)
        if installed.returncode:
            return installed.returncode
    listing = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    environment = uv_environment(pip_settings(listing.stdout), os.environ)
    environment["VIRTUAL_ENV"] = sys.prefix
    return subprocess.run([uv, *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
