"""A Llama as lm-evaluation-harness asks it: how likely answers are, and what it writes.

Tokens, windows and answers are those of the library's own `--model hf`, so scores compare with published
ones. Imported only where tasks are asked for: the library (extra: evaluate) takes seconds. Left out on
purpose: batches of questions, which are read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llama.engine import Llama
from llama.errors import UsageError
from llama.templates import render_chat

MOST_TOKENS = 256  # of an answer, where a task does not say
KNOWN = ("temperature", "top_k", "top_p", "min_p")  # what a task may say of drawing
SEED = 1234  # the library's own

Ids = Sequence[int]
Asked = tuple[Any, Ids, Ids]  # what the library knows it by, ids of the context, of the answer


class Harness(TemplateLM):
    """A Llama with the methods of lm_eval.api.model.LM.

    Raises UsageError for one whose tokenizer has neither BOS nor EOS, which an empty context is.
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self.llama = llama
        if max(llama.tokenizer.bos_id, llama.tokenizer.eos_id) < 0:
            raise UsageError("the tokenizer has neither BOS nor EOS, of which tasks need one")

    # --- Tokens

    @property
    def eot_token_id(self) -> int:
        return self.llama.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is."""
        ends = self.llama.tokenizer
        return ends.bos_id if ends.bos_id >= 0 else ends.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The ids of a text, in which names of special tokens mean them. add_special_tokens: None: BOS if
        the model's tokenizer puts it there, unless the text has it already.
        """
        bos = add_special_tokens
        if bos is None and string.startswith(self.llama.tokenizer.name(self.prefix_token_id)):
            bos = False
        return self.llama.encode(string, bos=bos, special=True)

    # --- Chats

    @property
    def tokenizer_name(self) -> str:
        return self.llama.path

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation. add_generation_prompt: False: it ends within its last message.

        Raises UsageError without a template, or where it refuses the conversation.
        """
        model, tokenizer = self.llama._model, self.llama.tokenizer.handle
        text = render_chat(model, tokenizer, chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        said = chat_history[-1]["content"]
        said = said if said in text else said.strip()  # as templates take it
        return text[: text.rindex(said) + len(said)]

    # --- How likely an answer is

    def answer(self, context: Ids, continuation: Ids) -> tuple[float, bool]:
        """The log-probability of ids after others, and whether each is the most likely one.

        A text longer than the model's context loses its beginning.
        """
        ids = [*context, *continuation][-(self.llama.context + 1) :]
        scored = self.llama.logprobs(ids, top=1)[len(ids) - len(continuation) :]
        answer = zip(scored, ids[len(ids) - len(continuation) :], strict=True)
        greedy = all(token == found.top[0][0] for found, token in answer)
        return math.fsum(found.logprob or 0.0 for found in scored), greedy

    def _loglikelihood_tokens(
        self, requests: Sequence[Asked], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        shown = tqdm(requests, "answers", disable=disable_tqdm or None)  # None: on a terminal alone
        return [self.answer(context, continuation) for _, context, continuation in shown]

    def windows(self, text: str) -> Iterable[tuple[Ids, Ids]]:
        """Pieces of a text of any length: ids before, and those to judge, each token once."""
        ids, most = self.tok_encode(text), self.llama.context
        pieces = get_rolling_token_windows(ids, self.prefix_token_id, most, context_len=1)
        return map(make_disjoint_window, pieces)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = (request.args[0] for request in tqdm(requests, "texts", disable=disable_tqdm or None))
        return [math.fsum(self.answer(*window)[0] for window in self.windows(text)) for text in texts]

    # --- What it writes

    def write(self, context: str, said: dict[str, Any]) -> str:
        """The answer to a text, up to where one of the strings of said["until"], or the model, ends it.

        Raises UsageError for an answer that leaves no room for the context.
        """
        options = normalize_gen_kwargs(said, MOST_TOKENS)
        room = self.llama.context - (most := options["max_gen_toks"])
        if room < 1:
            raise UsageError(f"max_gen_toks = {most}, allowed less than the context of {self.llama.context}")
        sampling = {name: options[name] for name in KNOWN if options.get(name) is not None}
        sampling = {"top_p": 1.0} | sampling if options["do_sample"] else {"temperature": 0.0}
        stop = [text for text in options["until"] if text]
        ids = self.tok_encode(context)[-room:]
        return "".join(self.llama.generate(ids, max_tokens=most, stop=stop, seed=SEED, **sampling))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        shown = tqdm(requests, "answers", disable=disable_tqdm or None)
        return [self.write(*request.args) for request in shown]


def manager_of(tasks: Sequence[str], folder: str | None) -> TaskManager:
    """Who knows the tasks. Raises UsageError for a name that nobody knows.

    The library's own thousands are looked through, which takes half a minute, only if folder lacks one.
    """
    for all_of_them in (False, True) if folder else (True,):
        manager = TaskManager(include_path=folder, include_defaults=all_of_them)
        unknown = [name for name in tasks if name not in manager.all_tasks]
        if not unknown:
            return manager
    raise UsageError(f"tasks: {', '.join(unknown)}: not known to lm_eval, nor in the folder of --include")


def run_tasks(
    llama: Llama,
    tasks: Sequence[str],
    folder: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """What simple_evaluate finds: its "results" have the metrics of each task.

    tasks: names of the library's, or of those whose .yaml files are in folder. shots: examples before each
    question, None: as the task says. limit: questions of each task, None: all. chat: ask by the template of
    the model, examples being what was said before.
    Raises UsageError for a name that there is not, OSError where a task's data can't be had.
    """
    asked = {"num_fewshot": shots, "limit": limit, "task_manager": manager_of(tasks, folder)}
    asked |= {"apply_chat_template": chat}
    return simple_evaluate(Harness(llama), tasks=list(tasks), log_samples=False, **asked)
