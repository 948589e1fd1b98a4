"""lm_eval, imported when a suite needs it: it takes 2.5 s and is an extra.

Nothing here starts its command line or its `simple_evaluate`, which run git and draw progress bars.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from io import StringIO
from types import ModuleType

from rollouts.errors import UserError


def require_lm_eval(where: str) -> ModuleType:
    """Import the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lm_eval.api.metrics
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(
            f"a harness suite needs a package that is not installed ({error})",
            where=where,
            remedy="pip install 'keel-align[harness]', or leave the suite out",
        ) from error
    return lm_eval  # type: ignore[no-any-return]


def lm_eval_version() -> str:
    """Return the version of the package: two versions may word the same task differently."""
    return version("lm_eval")


@contextmanager
def quietly() -> Iterator[None]:
    """Hide the progress bars and hints that lm_eval and datasets write while a task is loaded."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def harmless_templates() -> Iterator[None]:
    """Put Jinja's sandbox around the templates of task files.

    lm_eval renders them without one, so ``doc_to_text`` could call anything that Python can reach.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    sandbox = SandboxedEnvironment(
        loader=plain.loader,
        undefined=plain.undefined,
        keep_trailing_newline=plain.keep_trailing_newline,
    )
    sandbox.filters.update(plain.filters)
    utils.env = sandbox
    try:
        yield
    finally:
        utils.env = plain
