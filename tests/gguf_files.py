"""What the tests of GGUF files share: random models, files by the gguf library alone, models in llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from helpers import write_ranked
from torch_formats import open_gguf

from llama.errors import BadFileError
from llama.formats.source import Source, tensor_shapes
from model import Config, Llama

Type = gguf.GGMLQuantizationType
SMALL = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 300, "max_seq_len": 128}
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " "]
PIECES += [space + letter for space in ("", " ") for letter in "abcdefghijklmnopqrst"]  # 300 with those


def random_source(config: Config, seed: int = 0) -> Source:
    """Weights whose logits spread over a few units; special tokens and bytes are not likely."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = torch.rand(shape, generator=random) + 0.5
        else:
            tensors[name] = torch.randn(shape, generator=random) * shape[-1] ** -0.5
    tensors["tok_embeddings.weight" if config.tied else "output.weight"][:259] *= 0.1
    return Source("random", config, tensors)


def tokenizer_bin(folder: Path) -> bytes:
    """A tokenizer.bin for SMALL."""
    return write_ranked(folder / "tokenizer.bin", PIECES).read_bytes()


def logits_of(source: Source, ids: list[int]) -> np.ndarray:
    """Logits (T, vocab_size) of model.py."""
    model = Llama(source.config).eval()
    model.load_state_dict({name: source.tensors[name].float() for name in source.tensors}, strict=False)
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def distance(found: Any, expected: Any) -> float:
    return float(
        np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(np.asarray(expected))
    )


def library_file(
    path: Path, source: Source, kind: Type = Type.F32, keys: Mapping[str, Any] | None = None
) -> None:
    """A model as llama.cpp's converters write it, in code of its own. keys: more of them; None: left out."""
    config, writer = source.config, gguf.GGUFWriter(path, "llama")
    values = {
        "context_length": config.max_seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    for key, value in ({f"llama.{key}": value for key, value in values.items()} | dict(keys or {})).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    names = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
    parts = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"}
    parts |= {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    parts |= {"attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
    for name, tensor in source.tensors.items():
        words = name.split(".")
        other = (
            f"blk.{words[1]}.{parts[words[-2]]}" if words[0] == "layers" else names.get(words[0], words[0])
        )
        own = kind if tensor.dim() == 2 else Type.F32
        data = gguf.quants.quantize(tensor.numpy(), own)
        writer.add_tensor(f"{other}.weight", data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A file in llama.cpp, with a cache in fp32. One thread."""

    def __init__(self, path: Path) -> None:
        import llama_cpp  # in tests marked needs_llama_cpp

        cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        options = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": 0, **cache}
        self._model = llama_cpp.Llama(str(path), logits_all=True, verbose=False, **options)

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, vocab_size)"""
        self._model.eval(ids)
        return np.array(self._model.scores[: len(ids)])

    def ids(self, text: str) -> list[int]:
        return self._model.tokenize(text.encode(), add_bos=False, special=False)

    def text(self, prompt: str, n: int) -> str:
        """The n most likely tokens one after the other."""
        return self._model.create_completion(prompt, max_tokens=n, temperature=0)["choices"][0]["text"]


def refuses(path: Path, message: str, read: Callable[[Path], object] = open_gguf) -> None:
    """Reading raises one line that begins with the file and goes on with message, a regular expression."""
    with pytest.raises(BadFileError, match=f"{re.escape(str(path))}: {message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)
