"""Hugging Face transformers, as one of the programs that are measured. Weights are random but not ours.

python -m bench.programs.hf FOLDER STEPS     writes a text of so many tokens
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, TopPLogitsWarper

from bench.shapes import Case, Shape, arbitrary_ids, ordinary_logits
from bench.turns import Work

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def model_config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape["dim"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        intermediate_size=shape["hidden_dim"],
        vocab_size=shape["vocab_size"],
        max_position_embeddings=shape["max_seq_len"],
        tie_word_embeddings=shape["tied"],
    )


class Model:
    """A random model of a shape, on a number of threads. dtype: a name of torch's."""

    def __init__(self, shape: Shape, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        torch.manual_seed(1)
        self._vocab_size = shape["vocab_size"]
        self._model = LlamaForCausalLM._from_config(model_config(shape), dtype=getattr(torch, dtype)).eval()

    def work(self, case: Case) -> Work:
        n = case.prompt + case.tokens
        ids = torch.tensor(arbitrary_ids(case.sequences * n, self._vocab_size)).view(case.sequences, n)
        cache = DynamicCache()
        self._run(ids[:, : case.prompt], cache)
        if case.what == "prefill":

            def read() -> None:
                cache.crop(case.prompt - cache.get_seq_length())  # so many are dropped
                self._run(ids[:, case.prompt :], cache)

            return Work(read, case.tokens)

        def step() -> None:
            position = cache.get_seq_length()
            if position == n:
                cache.crop(case.prompt - n)  # so many are dropped
                position = case.prompt
            self._run(ids[:, position : position + 1], cache)

        return Work(step, case.sequences)

    def _run(self, ids: torch.Tensor, cache: DynamicCache) -> None:
        """ids (sequences, n) after what the cache holds; the last one of each gets logits."""
        if ids.numel():
            self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


class Sampler:
    """Top-p, a softmax and a draw."""

    def __init__(self, top_p: float) -> None:
        torch.set_num_threads(1)
        self._warper = TopPLogitsWarper(top_p)

    def work(self, case: Case) -> Work:
        logits = torch.tensor([ordinary_logits(case.tokens)])  # (1, vocab_size)

        def step() -> None:
            likely = torch.softmax(self._warper(None, logits), dim=-1)
            torch.multinomial(likely, num_samples=1)

        return Work(step)


def about() -> str:
    """The versions."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def save(folder: Path, shape: Shape) -> Path:
    """A random model as its folder of files."""
    LlamaForCausalLM(model_config(shape)).save_pretrained(folder / "hf")
    return folder / "hf"


def main() -> None:
    folder, steps = sys.argv[1:]
    model = LlamaForCausalLM.from_pretrained(folder)
    new = int(steps)
    ids = model.generate(torch.tensor([[1]]), do_sample=False, min_new_tokens=new, max_new_tokens=new)
    print(ids.tolist())


if __name__ == "__main__":
    main()
