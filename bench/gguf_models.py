"""The random models of models.py as GGUF files, which llama.cpp reads. Needs `pip install gguf`.

Matrices get the type that comes nearest to ours, norms stay fp32. llama.cpp's "llama" turns the pairs of RoPE
that Meta's files have, as we do, so the weights go in as they are.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from bench.models import SPECIAL, RandomWeights, pieces
from bench.shapes import TYPES, Shape
from formats.source import tensor_shapes
from model import Config

NAMES = {  # ours and theirs, of tensors that are in no layer, then of those in a layer
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1  # types of tokens


def gguf_name(name: str) -> str:
    """For layers.3.attention.wq.weight it is blk.3.attn_q.weight."""
    parts = name.removesuffix(".weight").split(".", 2)
    if parts[0] != "layers":
        return f"{NAMES[parts[0]]}.weight"
    return f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"


def add_config(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def add_vocabulary(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    texts = pieces(vocab_size)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text.replace(" ", "▁") for text in texts])
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types(types + [NORMAL] * (len(texts) - len(types)))
    writer.add_bos_token_id(SPECIAL.index("<s>"))
    writer.add_eos_token_id(SPECIAL.index("</s>"))


def write_gguf(folder: Path, shape: Shape, kind: str) -> Path:
    """A random model with the weights of write_bin, in a file of its own."""
    config, path = Config(**shape), folder / f"{kind}.gguf"
    shapes, weights = tensor_shapes(config), RandomWeights(config)
    matrix, vector = gguf.GGMLQuantizationType[TYPES[kind].gguf or "F32"], gguf.GGMLQuantizationType.F32
    types = {name: matrix if len(size) == 2 else vector for name, size in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, config)
    add_vocabulary(writer, config.vocab_size)
    for name, size in shapes.items():
        block, block_bytes = gguf.GGML_QUANT_SIZES[types[name]]
        n_bytes = int(np.prod(size, dtype=np.int64)) // block * block_bytes
        writer.add_tensor_info(gguf_name(name), size, np.dtype(np.float32), n_bytes, raw_dtype=types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in shapes:
        writer.write_tensor_data(gguf.quants.quantize(weights[name].numpy(), types[name]))
    writer.close()
    return path
