"""Files of manifests, each held against the types that its cluster has, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.kubernetes.schema import KINDS, Crds, Problem, identity, problems
from launch.kubernetes.stream import objects
from rollouts.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedManifest:
    """Manifest with the problems that were found in it."""

    file: str
    kind: str
    name: str
    against: str
    """Origin of the types that it is held against, such as ``KubeRay v1.7.0`` or the path of a CRD."""
    problems: tuple[Problem, ...]
    not_evaluated: tuple[str, ...] = ()
    """CEL rules of the CRD that only the API server evaluates."""


def check_file(path: Path, crds: Crds | None = None) -> list[CheckedManifest]:
    """Check every manifest of a file.

    Raises:
        UserError: it cannot be read, has none, or one of a kind that nothing is known of.
    """
    results = [_checked(path, manifest, crds) for manifest in objects(path)]
    if not results:
        raise UserError("there is no manifest in it", where=str(path))
    return results


def _checked(path: Path, manifest: dict[str, Any], crds: Crds | None) -> CheckedManifest:
    wrong = problems(manifest, crds)
    kind = identity(manifest)
    crd = (crds or {}).get(kind)
    metadata = manifest.get("metadata")
    return CheckedManifest(
        file=str(path),
        kind=kind[1],
        name=str(metadata.get("name", "")) if isinstance(metadata, dict) else "",
        against=KINDS[kind] if crd is None else _named(crd.path, crd.generator),
        problems=tuple(wrong),
        not_evaluated=() if crd is None else tuple(crd.not_evaluated(manifest)),
    )


def _named(path: Path, generator: str | None) -> str:
    return str(path) if generator is None else f"{path} (controller-gen {generator})"


def lines(checked: Sequence[CheckedManifest]) -> Iterator[str]:
    """Format results as lines for people."""
    for result in checked:
        verdict = f"{len(result.problems)} wrong" if result.problems else "fits"
        yield f"{result.file}: {result.kind} {result.name}: {verdict} ({result.against})"
        yield from (f"  {problem}" for problem in result.problems)
        yield from (f"  left to the API server: {rule}" for rule in result.not_evaluated)
