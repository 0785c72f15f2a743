"""Options of llama2.c's train.py that have another name or another meaning here.

The others (dim, n_layers, max_seq_len, learning_rate, vocab_source ...) mean here what they mean there, with
one exception that no table can catch: batch_size is that of a whole step here, over all processes and micro
batches, and that of a micro batch there.
"""

from __future__ import annotations

from llama.errors import UsageError

RENAMED = {"max_iters": "max_steps", "warmup_iters": "warmup_steps"}
ACCUMULATION = "batch_size is that of a whole step here, micro_batch_size what a process runs at once"
CHANGED = {
    "gradient_accumulation_steps": f"{ACCUMULATION}: --batch_size=512 --micro_batch_size=128 accumulates 4",
    "decay_lr": "is called schedule here: cosine, as there, wsd or constant",
    "eval_iters": "is called eval_windows here, and counts sequences (0: the whole of the validation split)",
    "always_save_checkpoint": "is always so here, and --keep says how many stay besides the best",
    "wandb_log": "is called wandb here, and names the project",
    "wandb_project": "is called wandb here",
    "wandb_run_name": "is not here, a run goes by its out_dir",
}


def our_name(key: str) -> str:
    """The name here of an option. Raises UsageError for one of llama2.c's whose meaning is not the same."""
    if key in CHANGED:
        raise UsageError(f"{key}: {CHANGED[key]}")
    return RENAMED.get(key, key)
