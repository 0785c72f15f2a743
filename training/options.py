"""The options of train.py: a dataclass, a TOML recipe and `--key=value`, of which the later ones win.

Left out on purpose: nested tables. A recipe is a flat list of the fields below.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama.errors import UsageError
from model import Config, ffn_hidden_dim
from training.defaults import recipe_for
from training.llama2c_options import our_name
from training.mixture import parse_mixture

LLAMA2_VOCAB_SIZE = 32000
STORED = "stored"  # in the place of teachers: what one of them expects lies beside the data
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

# What a number may be: from the first to the last, and of BELOW_ONE less than that.
LARGEST = {int: 2**31 - 1, float: 1e18}  # the product of two such floats is one that fp32 holds
SMALLEST = 1e-30  # of floats but for 0, as in the file of a model
POSITIVE = (
    *("dim", "n_layers", "n_heads", "multiple_of", "max_seq_len", "batch_size", "max_steps"),
    *("replicas", "tensor_parallel", "eval_interval", "log_interval", "keep"),
)
UP_TO_ONE = (
    *("decay_fraction", "min_learning_rate", "teacher_share", "lora_dropout", "dpo_smoothing"),
    *("beta1", "beta2", "dropout"),
)
BELOW_ONE = ("beta1", "beta2", "dropout")
MOST = {"threads": 1024, "seed": 2**64 - 1, **dict.fromkeys(UP_TO_ONE, 1.0)}
NEVER_EMPTY = ("out_dir", "init_from")  # paths


def seconds_of(text: str) -> float:
    """A time such as 90s, 45m, 11.5h or 2d, in seconds; empty: without an end. Raises UsageError."""
    if not text:
        return math.inf
    try:
        seconds = float(text[:-1]) * SECONDS[text[-1]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"max_time = {text!r}, allowed a number with s, m, h or d behind it")
    return seconds


@dataclass
class Options:
    """Everything that a run of train.py depends on. Sizes are in sequences and steps, times in steps."""

    # what to train on, and where to
    data: str = ""  # a folder of tokens; empty: data/tok4096, or the only one in data
    mixture: str = ""  # instead: several, each with its share, as data/a:0.7,data/b:0.3
    vocab_source: Literal["", "llama2", "custom"] = ""  # instead: data/tok32000, or that of vocab_size
    vocab_size: int = 0  # instead: data/tok<vocab_size>
    out_dir: str = "out"
    init_from: str = "scratch"  # scratch, resume (from out_dir), or a model to start from
    auto_resume: bool = False  # resume whatever init_from says, if out_dir has a checkpoint: for restarts

    # the model; the vocabulary is the data's. With init_from a checkpoint, the shape is the checkpoint's.
    dim: int = 288
    n_layers: int = 6
    n_heads: int = 6
    n_kv_heads: int = 0  # 0: n_heads
    hidden_dim: int = 0  # 0: 8/3 dim, rounded up to multiple_of
    multiple_of: int = 32
    max_seq_len: int = 256
    norm_eps: float = 1e-5
    tied: bool = True
    dropout: float = 0.0

    # how far it sees: RoPE, of a fresh model or one to start from (training/context.py)
    rope_theta: float = 0.0  # base of its angles; 0: that of the model to start from, else 10000
    rope_scaling: Literal["", "linear", "llama3", "yarn"] = ""  # empty: that of the model to start from
    rope_factor: float = 0.0  # how far angles are stretched; 0: max_seq_len / rope_original_len
    rope_original_len: int = 0  # context of the first training; 0: that of the model to start from

    # what is trained of it
    train: str = ""  # words of the names of parameters, such as norm; empty: all
    freeze: str = ""  # the same of those that stay, such as tok_embeddings,layers.0-7
    lora_rank: int = 0  # train adapters of that rank beside a model to start from; 0: the model itself
    lora_alpha: float = 16.0  # they count alpha / rank
    lora_dropout: float = 0.0
    lora_targets: str = "all"  # or some of wq,wk,wv,wo,w1,w2,w3
    qlora: bool = False  # the matrices that stay are held in 4 bits (training/few_bits.py)
    qat: Literal["", "int8", "int4"] = ""  # round as a file of that type does (training/qat.py)

    # one step
    batch_size: int = 128  # sequences, over all ranks and micro batches
    micro_batch_size: int = 0  # sequences that one rank runs at once, at most; 0: batch_size / ranks
    documents: bool = False  # tokens attend within their document only

    # what is learnt of other models (training/distillation.py)
    teachers: str = ""  # models with the data's tokens, as a,b; stored: what dataset.py expect wrote
    teacher_share: float = 0.5  # what they count, instead of the text

    # of data of pairs (training/objectives.py)
    dpo_beta: float = 0.1  # how far from the model to start from: the smaller the farther
    dpo_smoothing: float = 0.0  # the part of pairs that may be the wrong way round
    dpo_positive: float = 0.0  # how much a chosen answer counts that becomes less likely

    # optimizer
    max_steps: int = 10000
    epochs: float = 0.0  # instead: so many that the data is seen that often; 0: max_steps
    max_time: str = ""  # save and end after 45m, 11.5h or 2d of this start; empty: never
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"  # the last two for matrices of blocks alone
    learning_rate: float = 5e-4
    muon_learning_rate: float = 0.0  # of the matrices that Muon trains; 0: learning_rate
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.2  # wsd: the part of max_steps, at the end, in which the rate falls
    min_learning_rate: float = 0.0  # as a part of learning_rate, at the end
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0  # 0: off

    # machine
    device: str = ""  # cpu, cuda, cuda:1, mps; empty: the best there is
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # with more than one rank
    replicas: int = 1  # of fsdp: groups of ranks that keep a whole model each (HSDP)
    tensor_parallel: int = 1  # of fsdp: neighbouring ranks that share each product
    offload: bool = False  # of fsdp: weights, gradients and optimizers in the memory of the CPU
    defer_reduction: bool = False  # of fsdp: whole gradients until the last micro batch, exchanged once
    compile: bool = False
    checkpointing: bool = False  # compute activations again instead of keeping them
    checkpointing_keeps: Literal["nothing", "attention", "products"] = "nothing"  # but for what these give
    threads: int = 0  # of the CPU; 0: PyTorch's choice
    seed: int = 1337

    # evaluation, checkpoints, reports
    eval_only: bool = False  # evaluate what init_from says, print it and end: nothing is trained or written
    eval_interval: int = 500
    eval_windows: int = 0  # of the validation shard; 0: all
    estimate_batches: int = 0  # llama2.c's estimate besides: mean over that many random batches; 0: none
    sample_tokens: int = 120  # of the story told at each evaluation; 0: none
    sample_prompt: str = ""
    save_interval: int = 0  # 0: eval_interval
    keep: int = 2  # newest checkpoints, besides the best
    log_interval: int = 10
    profile: str = ""  # steps to look into, such as 10-12 (training/profiling.py)
    tensorboard: bool = False
    wandb: str = ""  # name of a project; empty: off

    def __post_init__(self) -> None:
        for name in TYPES:
            check_bounds(name, getattr(self, name))
        if self.offload and self.dtype == "float16":  # whose scaler looks at gradients on the GPU
            raise UsageError("dtype = float16, allowed float32 or bfloat16 with offload")
        self.check_qat()
        self.check_few_bits()
        self.check_rope()
        self.save_interval = self.save_interval or self.eval_interval
        seconds_of(self.max_time)
        self.data = self.data_folder()
        if self.mixture:
            self.data = self.first_of_mixture()

    def first_of_mixture(self) -> str:
        """The folder whose tokenizer and texts are those of a mixture. Raises UsageError."""
        if self.data:
            raise UsageError(f"data = {self.data}, mixture = {self.mixture}: allowed one of them")
        return parse_mixture(self.mixture)[0][0]

    def check_qat(self) -> None:
        """Raises UsageError for options that do not go with rounded weights."""
        if not self.qat:
            return
        found = f"qat = {self.qat!r}, allowed ''"
        if self.lora_rank:
            raise UsageError(f"{found} with lora_rank = {self.lora_rank}")
        if self.tensor_parallel > 1:
            raise UsageError(f"{found} with tensor_parallel = {self.tensor_parallel}")
        if self.parallel == "fsdp" and self.dtype != "float32":
            both = f"parallel = fsdp and dtype = {self.dtype}"
            raise UsageError(f"{found} with {both}, which rounds weights before it gathers them")

    def check_few_bits(self) -> None:
        """Raises UsageError for options that do not go with what is held in 4 or 8 bits."""
        if self.qlora and not self.lora_rank:
            raise UsageError("qlora = True, allowed False without lora_rank")
        if self.qlora and self.parallel == "fsdp":
            raise UsageError("qlora = True, allowed False with parallel = fsdp")
        if self.optimizer == "adamw_8bit" and self.parallel == "fsdp":
            raise UsageError("optimizer = adamw_8bit, allowed adamw or muon with parallel = fsdp")

    def check_rope(self) -> None:
        """Raises UsageError for options of RoPE that would be passed over."""
        for name in ("rope_factor", "rope_original_len"):
            if getattr(self, name) and not self.rope_scaling:
                raise UsageError(f"{name} = {getattr(self, name)}, allowed 0 without rope_scaling")
        if self.lora_rank and (self.rope_theta or self.rope_scaling):
            found = f"rope_theta = {self.rope_theta}, rope_scaling = {self.rope_scaling!r}"
            raise UsageError(f"{found}: adapters (lora_rank = {self.lora_rank}) go with their model's RoPE")

    def data_folder(self) -> str:
        """The folder of tokens; empty where nothing says which. Raises UsageError."""
        source, size = self.vocab_source, self.vocab_size
        if not source and not size:
            return self.data
        if source == "llama2" and size not in (0, LLAMA2_VOCAB_SIZE):
            raise UsageError(f"vocab_size = {size}, allowed {LLAMA2_VOCAB_SIZE} with vocab_source = llama2")
        if source != "llama2" and size < 1:
            raise UsageError(f"vocab_size = {size}, allowed that of a vocabulary that tinystories.py trained")
        folder = f"data/tok{size or LLAMA2_VOCAB_SIZE}"
        if self.data not in ("", folder):
            raise UsageError(f"data = {self.data}, allowed {folder}, or neither vocab_source nor vocab_size")
        return folder

    def model_config(self, vocab_size: int) -> Config:
        """The shape of a fresh model, but for its RoPE. Raises UsageError where it does not fit together."""
        names = [name for name in Config.__dataclass_fields__ if not name.startswith("rope_")]
        shape = {name: getattr(self, name) for name in names if hasattr(self, name)}
        shape["hidden_dim"] = self.hidden_dim or ffn_hidden_dim(self.dim, self.multiple_of)
        shape["vocab_size"] = vocab_size
        try:
            return Config(**shape)
        except ValueError as error:
            raise UsageError(str(error)) from None


TYPES = typing.get_type_hints(Options)


def check_bounds(name: str, value: Any) -> None:
    """Raises UsageError for a number out of range, and for a path that is empty."""
    if name in NEVER_EMPTY and not value:
        raise UsageError(f"{name} is empty, allowed is a path")
    if (kind := TYPES[name]) not in LARGEST:
        return
    if kind is float and 0 < value < SMALLEST:
        raise UsageError(f"{name} = {value}, allowed 0, or {SMALLEST} and more")
    least, most = int(name in POSITIVE), MOST.get(name, LARGEST[kind])
    if not least <= value <= most or (name in BELOW_ONE and value == most):
        below = "below " if name in BELOW_ONE else ""
        raise UsageError(f"{name} = {value}, allowed {least} to {below}{most:{'' if kind is int else 'g'}}")


# What a recipe says of a choice gives way to the command line.
CHOICES = ({"data", "mixture", "vocab_source", "vocab_size"}, {"max_steps", "epochs"})


def unknown(key: str) -> UsageError:
    near = difflib.get_close_matches(key, TYPES, n=1)
    hint = f"did you mean {near[0]}?" if near else "train.py --help lists the options"
    return UsageError(f"unknown option {key}: {hint}")


def name_of(kind: Any) -> str:
    choices = typing.get_args(kind)
    return " or ".join(map(repr, choices)) if choices else kind.__name__


def parse(key: str, text: str) -> Any:
    """The value of `--key=text`. Raises UsageError."""
    if key not in TYPES:
        raise unknown(key)
    kind = TYPES[key]
    words = {"true": True, "false": False, "1": True, "0": False}
    try:
        value = words[text.lower()] if kind is bool else kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        raise UsageError(f"{key} = {text!r}, allowed {name_of(kind)}") from None
    return check(key, value)


def check(key: str, value: Any) -> Any:
    """A value of a recipe, if it is of the right type and in its bounds. Raises UsageError."""
    if key not in TYPES:
        raise unknown(key)
    kind = TYPES[key]
    choices = typing.get_args(kind)
    if value not in choices if choices else type(value) not in (kind, int if kind is float else kind):
        raise UsageError(f"{key} = {value!r}, allowed {name_of(kind)}")
    check_bounds(key, value)  # before an int that no float holds becomes one
    return float(value) if kind is float else value


def read_recipe(path: Path) -> dict[str, Any]:
    """The options of a TOML file. Raises UsageError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return {our_name(key): check(our_name(key), value) for key, value in values.items()}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # no TOML, no UTF-8, a number of too many digits, or a UsageError
        raise UsageError(f"{path}: {error}") from None


def split(arguments: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """The recipes and the options of a command line. Raises UsageError."""
    recipes: list[Path] = []
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument:
            raise UsageError("a recipe is empty, allowed is a path")
        if not argument.startswith("--"):
            recipes.append(Path(argument))
            continue
        key, equals, text = argument[2:].partition("=")
        key = our_name(key)
        if (
            not equals
            and TYPES.get(key) is bool
            and (not rest or rest[0].startswith("-") or ".toml" in rest[0])
        ):
            text = "true"
        elif not equals:
            if key not in TYPES:
                raise unknown(key)
            if not rest:
                raise UsageError(f"--{key} needs a value")
            text = rest.pop(0)
        values[key] = parse(key, text)
    return recipes, values


def from_arguments(arguments: list[str]) -> tuple[Options, list[Path]]:
    """Options from a command line of recipes (.toml) and --key=value or --key value, and those recipes.

    Options win over recipes, and what comes later wins. Without a recipe the one of the machine is taken.
    Raises UsageError.
    """
    recipes, line = split(arguments)
    recipes = recipes or [recipe_for(line.get("device", ""))]
    values: dict[str, Any] = {}
    for recipe in recipes:
        values |= read_recipe(recipe)
    for choice in CHOICES:
        if choice & line.keys():
            values = {key: value for key, value in values.items() if key not in choice}
    if "max_steps" in line and line.get("epochs"):
        raise UsageError(f"max_steps = {line['max_steps']}, epochs = {line['epochs']}: allowed one of them")
    return Options(**values | line), recipes


def said(arguments: list[str]) -> dict[str, str]:
    """The options that a command line and its recipes say, with what names the recipe. Raises UsageError."""
    recipes, line = split(arguments)
    of_recipes = {key: f"{recipe}: " for recipe in recipes for key in read_recipe(recipe)}
    return of_recipes | dict.fromkeys(line, "")


def describe() -> str:
    """One line an option for --help: name, default, and the comment that stands behind it above."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    fields = {field.name: field for field in dataclasses.fields(Options)}
    text = []
    for line in lines:
        name = line.strip().partition(":")[0]
        if line.startswith("    # "):
            text.append(f"\n{line.strip()[2:]}")
        elif line.startswith("    ") and name in fields and " = " in line:
            comment = line.partition("  # ")[2]
            default = fields[name].default
            text.append(f"  --{name}={default!r}".ljust(38) + comment)
        elif line.startswith("    def "):
            break
    return "\n".join(text)


def to_dict(options: Options) -> dict[str, Any]:
    return dataclasses.asdict(options)
