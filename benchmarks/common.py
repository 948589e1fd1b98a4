"""Shared parts of the benchmarks: models to measure on, clocks for process trees, servers, tables, JSON.

`prepare` must run before torch is imported: it sets variables that OpenMP and the Hugging Face libraries
read only once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from rollouts.machine.device import resolve_device
from rollouts.machine.processor import (
    CPUINFO,
    Dtype,
    bfloat16_by,
    flags_in,
    processor_flags,
    quickest_dtype,
    usable,
)

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    # Waiting threads must sleep: spinning ones double the time beside any other busy process.
    "OMP_WAIT_POLICY": "PASSIVE",
}

SIZES: dict[str, dict[str, int]] = {
    "3M": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    },
    "28M": {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096,
    },
}  # fmt: skip
"""Sizes of Llama models by their rough number of parameters; tied output layer, head size 64."""

QWEN = "0.5B"
QWEN_SHAPE = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
}  # fmt: skip
"""Sizes of Qwen2-0.5B, for machines with a GPU."""

PASSED, FAILED = "[green]passed[/green]", "[red]FAILED[/red]"


def prepare() -> None:
    """Set the environment variables that libraries read at import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def quickest() -> Dtype:
    """Return the dtype in which this machine multiplies matrices fastest."""
    return quickest_dtype(resolve_device("auto"))


def parser(description: str) -> argparse.ArgumentParser:
    """Make a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="a smoke run: figures mean nothing")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the raw figures here"
    )
    return options


def letter_share(completions: Sequence[Any]) -> list[float]:
    """Reward completions by the share of the letter a, which costs next to nothing."""
    return [text.count("a") / len(text) if text else 0.0 for text in map(str, completions)]


def write_model(
    folder: Path,
    size: str,
    seed: int = 0,
    *,
    with_eos: bool = False,
    shapes: Mapping[str, dict[str, int]] = SIZES,
) -> Path:
    """Write a random Llama, or Qwen2 of the size `QWEN`, with a tokenizer of single characters.

    Without an end-of-sequence token every completion has exactly the requested length, so two systems do
    the same work. ``with_eos`` adds one for libraries that require it.

    Args:
        shapes: sizes of Llamas by name.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    family, shape = (Qwen2Config, QWEN_SHAPE) if size == QWEN else (LlamaConfig, shapes[size])
    config = family(
        **shape,
        max_position_embeddings=4096 if size == QWEN else 512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END if with_eos else None,
        pad_token_id=PAD,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _tokenizer(with_eos).save_pretrained(folder)
    return folder


def without_end(model: Path, folder: Path) -> Path:
    """Copy a model without its end-of-sequence token, so that every completion has the largest length.

    The weights are links to the model's files.
    """
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file.resolve())
        elif file.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            settings = json.loads(file.read_text())
            ends = [key for key in settings if key in ("eos_token_id", "eos_token")]
            (folder / file.name).write_text(json.dumps(settings | dict.fromkeys(ends)))
        elif file.is_file():
            copyfile(file, folder / file.name)
    return folder


PAD, END, UNKNOWN = 0, 1, 2


def _tokenizer(with_eos: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *map(chr, range(32, 127))]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"eos_token": "<eos>"} if with_eos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", **special
    )


class Tree:
    """Process with all its descendants, without the subtrees of some of them."""

    def __init__(self, root: int | None = None, without: Sequence[int] = ()) -> None:
        self._root, self._without = psutil.Process(root), set(without)

    def processes(self) -> list[psutil.Process]:
        """List the processes of the tree that are alive."""
        alive, pending = [], [self._root]
        while pending:
            process = pending.pop()
            if process.pid in self._without:
                continue
            alive.append(process)
            try:
                pending.extend(process.children())
            except psutil.NoSuchProcess:
                continue
        return alive

    def cpu_s(self) -> float:
        """Sum the CPU seconds used so far by the processes that are alive."""
        return float(sum(sum(times[:2]) for times in self._each("cpu_times")))

    def memory_mib(self) -> float:
        """Sum the resident memory of all processes in MiB; pages that several share count once."""
        return float(sum(info.pss for info in self._each("memory_full_info"))) / 2**20

    def _each(self, name: str) -> Iterator[Any]:
        for process in self.processes():
            try:
                yield getattr(process, name)()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


LOOK_PAUSE = 40
"""Pause between two readings of a tree's memory, as a multiple of the time of a reading."""


@dataclass(kw_only=True, slots=True)
class Peak:
    """Largest resident memory of a tree, read four times a second.

    Readings are less frequent where they would take more than a fortieth of a core: the kernel walks a
    process's pages, which slows the process down.
    """

    tree: Tree
    mib: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Read the memory while the block runs."""
        self._stop.clear()
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while True:
            start = time.perf_counter()
            self.mib = max(self.mib, self.tree.memory_mib())
            if self._stop.wait(max(0.25, LOOK_PAUSE * (time.perf_counter() - start))):
                return


@contextmanager
def keel_server(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a command of Keel that listens; yield its process and address, and end it in any case.

    Raises:
        RuntimeError: the command ended before it listened.
    """
    code = "from launch.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening on " in line:
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(lines))
        yield process, line.partition("listening on ")[2].strip()
    finally:
        process.terminate()
        process.wait(60.0)


def middle(values: Sequence[float]) -> float:
    """Return the median, or NaN for no values."""
    return median(values) if values else float("nan")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Format values as ``median [lowest, highest]``."""
    low, high = min(values), max(values)
    return f"{middle(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def verdict(passed: bool) -> str:
    """Return the word for a claim that passed or failed, coloured for a table."""
    return PASSED if passed else FAILED


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> None:
    """Print the one table of a benchmark, and lines below it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in (f"on {processor()}", *notes):
        console.print(note)


def save(path: Path | None, name: str, arguments: argparse.Namespace, data: Any) -> None:
    """Write the raw figures as JSON, with the machine and the arguments they were measured with."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name, "machine": machine(), "arguments": vars(arguments), "data": data
    }  # fmt: skip
    path.write_text(json.dumps(record, indent=1, sort_keys=True, default=str) + "\n")


INSTRUCTIONS = {"avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""Instruction sets that decide the speed of matrix products, the widest first, by the kernel's names."""


def processor(cpuinfo: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """Describe this machine's processor: its cores, its instructions, and limits by the environment."""
    text = CPUINFO.read_text() if cpuinfo is None else cpuinfo
    pairs = (line.partition(":") for line in text.splitlines())
    names = {value.strip() for key, _, value in pairs if key.strip() == "model name"}
    flags = flags_in(text)
    usable_flags = usable(flags, os.environ if environ is None else environ)
    has, used = _widest(flags), _widest(usable_flags)
    limited = f" (limited from {has})" if used != has else ""
    cores = len(os.sched_getaffinity(0))
    return f"{' and '.join(sorted(names)) or platform.machine()}, {cores} cores, {used}{limited}"


def _widest(flags: frozenset[str]) -> str:
    return next((name for flag, name in INSTRUCTIONS.items() if flag in flags), "no AVX2")


def machine() -> Mapping[str, Any]:
    """Describe the machine and the versions of packages that figures depend on."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "ray", "trl")
    return {
        "bfloat16": bfloat16_by(processor_flags()),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
