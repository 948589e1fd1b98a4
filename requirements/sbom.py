"""The lock as a software bill of materials: ``python requirements/sbom.py > sbom.json``.

CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/), the pinned packages alone, without a time: the same
lock gives the same bytes. Needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("cpu.lock")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?==(?P<version>[^\s;\\]+)")


def pins(lock: str) -> dict[str, str]:
    """Read the version of every package of a lock, by its normalised name."""
    matches = filter(None, map(PIN.match, lock.splitlines()))
    return {re.sub(r"[-_.]+", "-", pin["name"]).lower(): pin["version"] for pin in matches}


def bill(lock: str) -> dict[str, Any]:
    """Return the bill of a lock."""
    digest = hashlib.sha256(lock.encode()).hexdigest()
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
        }
        for name, version in sorted(pins(lock).items())
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32])}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "keel", "name": "keel-align"}},
        "components": components,
    }


if __name__ == "__main__":
    print(json.dumps(bill(LOCK.read_text()), indent=1))
