"""A chat template that comes with a model, tried once in a process that can be ended.

transformers renders templates in Jinja's immutable sandbox: they reach no attribute of Python's own and
change nothing. The sandbox bounds neither time nor memory, and a model's folder is somebody else's text. So
a template renders a small chat first under a deadline and a limit of memory, with nothing of this process.
One that is slow for other chats alone is not found that way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache

from rollouts.errors import RunError, UserError

DEADLINE_S = 20.0
"""Seconds for a process to start and to render three turns, which takes milliseconds."""
MEMORY_BYTES = 1 << 30
EXHAUSTED = 3
"""Exit code for a template that asked for more memory or a longer text."""
LONGEST = 1 << 20
"""Characters of a small chat at most."""

PROGRAM = """
import json, resource, sys
given = json.load(sys.stdin)
sys.path[:] = given["path"]
resource.setrlimit(resource.RLIMIT_AS, (given["memory"], given["memory"]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from jinja2.sandbox import ImmutableSandboxedEnvironment
world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                      extensions=["jinja2.ext.loopcontrols"])
world.globals |= {"raise_exception": lambda text: 1 / 0, "strftime_now": lambda form: form}
world.filters["tojson"] = lambda value, **_: json.dumps(value)
try:
    text = world.from_string(given["template"]).render(
        messages=given["messages"], tools=[], add_generation_prompt=True, bos_token="", eos_token="")
except (MemoryError, OverflowError):
    sys.exit(given["exhausted"])
except Exception:
    sys.exit(0)
sys.exit(given["exhausted"] if len(text) > given["longest"] else 0)
"""
"""Renders one template. Whatever else goes wrong is said where prompts are rendered."""

TURNS = [{"role": role, "content": "Keel"} for role in ("user", "assistant", "user")]


@lru_cache(maxsize=64)
def check_bounded(template: str, where: str, deadline_s: float = DEADLINE_S) -> None:
    """Refuse a chat template that does not end, or asks for far more memory than a chat.

    Raises:
        UserError: it was ended.
        RunError: it could not be tried.
    """
    task = {
        "template": template,
        "messages": TURNS,
        "memory": MEMORY_BYTES,
        "exhausted": EXHAUSTED,
        "longest": LONGEST,
        # Packages may come by PYTHONPATH, which the process does not look at.
        "path": [os.path.abspath(folder) for folder in sys.path],
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", PROGRAM],
            input=json.dumps(task).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=deadline_s,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(where, f"does not end within {deadline_s:g} s") from None
    if (
        done.returncode == EXHAUSTED or done.returncode < 0
    ):  # Or the system ended it for its memory.
        raise _refused(where, "asks for more memory, or writes a longer text, than a chat needs")
    if done.returncode != 0:
        raise RunError(
            "the chat template could not be tried",
            where=where,
            cause="jinja2 cannot be imported in a process of its own",
            remedy="install jinja2 where transformers is installed",
        )


def _refused(where: str, what: str) -> UserError:
    return UserError(
        f"the chat template {what} for three turns of four characters",
        where=where,
        cause="it was damaged, or made to stop whoever loads the model",
        remedy="read chat_template in the model's folder, and use the one that the model was trained with",
    )
