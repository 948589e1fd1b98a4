"""Environment variables of other processes: those that they need by name, and none that holds a secret.

A list of what looks secret is never complete (``DATABASE_URL``, ``GITHUB_PAT``, ``MYSQL_PASS``), so what is
passed on is listed instead, and what a listed variable holds is looked at too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

PASSED = frozenset((
    "CURL_CA_BUNDLE", "HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LANGUAGE", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "LOGNAME", "MASTER_ADDR", "MASTER_PORT", "NO_PROXY", "PATH", "PWD",
    "REQUESTS_CA_BUNDLE", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TEMP", "TERM", "TMP", "TMPDIR",
    "TZ", "USER", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy",
))  # fmt: skip
"""Variables that a process of Keel's own code gets."""
FAMILIES = (
    "CUBLAS_", "CUDA_", "CUDNN_", "FI_", "GLIBC_", "GLOO_", "GOMP_", "GOTO_", "GPU_", "HF_", "HIP_",
    "HSA_", "HUGGINGFACE_", "KEEL_", "KMP_", "LC_", "MALLOC_", "MKL_", "NCCL_", "NUMEXPR_", "NVIDIA_",
    "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "RAY_", "ROCR_", "SAFETENSORS_", "TOKENIZERS_", "TORCH",
    "TRANSFORMERS_", "TRITON_", "UCX_", "VLLM_", "XDG_",
)  # fmt: skip
"""Beginnings of the names of further ones: libraries' own settings."""

SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
NOT_SECRET = ("RAY_AUTH_TOKEN", "TOKENIZERS_")
"""Prefixes that contain a secret word and that actors need."""
LEAST_SECRET = 8
"""Least length of a value that is looked for: shorter ones stand everywhere."""
MASK = "***"

PASSWORD = re.compile(
    r"(?P<before>[a-z][a-z0-9+.-]{0,30}://[^\s/:@'\"]*:)(?!(?:\*{3}|(?-i:PASSWORD))@)[^\s/@'\"]+(?=@)",
    re.I,
)
"""Password of a URL, behind what stands before it; the word PASSWORD is a placeholder of messages. A scheme
has few letters, so that a long word without a colon is not read again from each of its letters."""
TOKEN = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
      hf_[A-Za-z0-9]{20,}                              # Hugging Face
    | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,}  # GitHub
    | glpat-[\w-]{16,}                                 # GitLab
    | sk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}                 # OpenAI and those who follow it
    | xox[abprs]-[A-Za-z0-9-]{10,}                     # Slack
    | (?:AKIA|ASIA)[A-Z0-9]{16}                        # Amazon
    | AIza[\w-]{30,}                                   # Google
    | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}         # JSON web tokens
    )""",
    re.X,
)
"""Shapes of tokens that well-known services hand out."""
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S
)
"""Key in PEM, whose headers may have hyphens of their own; one that was cut short goes on to the end."""
KEYED_URL = re.compile(r"https?://[0-9a-f]{32}@[\w.-]+", re.I)
"""Address of an error tracker, whose user is its key."""


def is_secret(name: str) -> bool:
    """Tell if a variable of this name holds a secret, by its name."""
    upper = name.upper()
    return any(word in upper for word in SECRET_WORDS) and not upper.startswith(NOT_SECRET)


def holds_secret(value: str) -> bool:
    """Tell if a text has the shape of a token or a key in it, or a URL with a password.

    >>> holds_secret("postgresql://keel:hunter2@db/keel"), holds_secret("postgresql://db/keel")
    (True, False)
    """
    return any(shape.search(value) for shape in (PASSWORD, TOKEN, PRIVATE_KEY, KEYED_URL))


def passed_on(
    environ: Mapping[str, str], granted: Collection[str] = (), families: Iterable[str] = FAMILIES
) -> dict[str, str]:
    """Return the variables that a process of Keel's own code gets.

    Args:
        granted: names that a person lists; they are passed on whatever they hold.
    """
    beginnings = tuple(families)
    return {
        name: value
        for name, value in environ.items()
        if name in granted
        or (
            (name in PASSED or name.startswith(beginnings))
            and not is_secret(name)
            and not holds_secret(value)
        )
    }


def said_of(granted: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each listed variable that is not set, or that holds a secret."""
    sentences = []
    for name in granted:
        if name not in environ:
            sentences.append(f"{name} is listed and not set")
        elif is_secret(name) or holds_secret(environ[name]):
            sentences.append(f"{name} holds a secret and is passed on, as it is listed")
    return sentences


def masked(text: str, environ: Mapping[str, str]) -> str:
    """Return a text without the secrets of an environment, and without what has the shape of one.

    >>> masked("no server at postgresql://keel:hunter2@db/keel", {})
    'no server at postgresql://keel:***@db/keel'
    """
    for value in sorted(secret_values(environ), key=len, reverse=True):
        text = text.replace(value, MASK)
    text = PASSWORD.sub(rf"\g<before>{MASK}", text)
    for shape in (TOKEN, PRIVATE_KEY, KEYED_URL):
        text = shape.sub(MASK, text)
    return text


def secret_values(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values of variables whose names say that they are secret, with these names.

    The path of a file is no secret.
    """
    return {
        value: name
        for name, value in environ.items()
        if (is_secret(name) or name in NOT_SECRET)
        and len(value) >= LEAST_SECRET
        # Not Path.exists: it raises for what cannot be a path, and the message repeats the value.
        and not os.path.exists(os.path.expanduser(value))
    }
