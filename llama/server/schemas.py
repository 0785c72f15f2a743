"""What requests may say. A field of another type, or one that is not known, is refused by name.

null counts as a field that is not there: OpenAI's clients send it so. Of what is wrong one thing is told, so
lists are looked at up to the first, and what has names may not have many: an error for each of a million
takes minutes, in which nobody else is answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_CHOICES = 128  # texts of one request
MAX_TEXT = 4 << 20  # characters: more than any body holds
MAX_NAMES = 1024  # fields of an object
MAX_MESSAGES = 1 << 14  # of a chat, and parts of one: each takes a third of a millisecond
MAX_IDS = 1 << 17  # to be text again, 30 microseconds each
MAX_BIAS = 3e38  # more is no float of C
TAGS = ("<a text>", "<a list>", "<text>", "<other>")  # kinds of a value, which are part of an error's place

Ids = Annotated[list[int], Field(fail_fast=True)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
Likely = Annotated[int, Field(ge=0, le=20)]  # most likely tokens to report
Penalty = Annotated[float, Field(ge=-2, le=2)]
Weight = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
TopK = Annotated[int, Field(ge=-1, lt=2**31), AfterValidator(lambda k: max(0, k))]  # -1: off, as 0


def few(value: Any) -> Any:
    """An object, before its fields are looked at. Raises PydanticCustomError for too many."""
    if isinstance(value, dict) and len(value) > MAX_NAMES:
        found = f"has {len(value)} fields, allowed {MAX_NAMES}"
        raise PydanticCustomError("too_many_fields", "{found}", {"found": found})
    return value


def one_of(allowed: str) -> WrapValidator:
    """For a value that may be of several kinds: one error in place of one for each of them."""

    def checked(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError as error:
            if any(one["type"] == "string_unicode" for one in error.errors(include_input=False)):
                raise PydanticCustomError("lone_surrogate", LONE) from None
            raise PydanticCustomError("one_of", "allowed {allowed}", {"allowed": allowed}) from None

    return WrapValidator(checked)


def only(allowed: float) -> AfterValidator:
    """For a field of what is not here: allowed is the number that turns it off."""

    def checked(value: float) -> float:
        if value != allowed:
            raise PydanticCustomError("one_of", "allowed {allowed}", {"allowed": allowed})
        return value

    return AfterValidator(checked)


def limit(value: int) -> int:
    """How many tokens to write at most, negative for any number. Raises PydanticCustomError for none."""
    if not value:
        raise PydanticCustomError("no_tokens", "allowed -1 for no limit, and 1 and more")
    return value


LONE = "has a lone surrogate, allowed is what UTF-8 can hold"
AnyPrompt = Text | Ids | Texts | Annotated[list[Ids], Field(fail_fast=True)]
Prompt = Annotated[AnyPrompt, one_of("are a text, a list of ids, and a list of either")]
Mixed = Annotated[list[int | Text], Field(fail_fast=True)]  # ids and texts, which are one prompt
AnyMixed = Text | Mixed | Annotated[list[Text | Mixed], Field(fail_fast=True)]
MixedPrompt = Annotated[AnyMixed, one_of("are a text, a list of ids and texts, and a list of either")]
Most = Annotated[int, Field(ge=-1), AfterValidator(limit)]
Zero, One = Annotated[float, only(0)], Annotated[float, only(1)]
Stop = Annotated[Text | Texts, one_of("are a text, and a list of texts")]
Bias = Annotated[dict[str, Weight], Field(max_length=MAX_NAMES), BeforeValidator(few)]


class Body(BaseModel):
    """Any request."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in few(data).items() if value is not None}


class Neutral(Body):
    """Fields of llama.cpp that change no answer: hints, and what turns off that which is not here."""

    id_slot: int = Field(-1, ge=-1, description="a text goes to any slot that is free")
    cache_prompt: bool = Field(True, description="what is known of a prompt is never run again")
    n_keep: int = Field(0, ge=-1, description="a text ends with the context, and is never shifted")
    timings_per_token: bool = Field(False, description="timings are told once, at the end")
    return_progress: bool = Field(False, description="no progress is told")
    dynatemp_range: Zero = 0.0
    dynatemp_exponent: float = 1.0
    typical_p: One = 1.0
    typ_p: One = 1.0
    tfs_z: One = 1.0
    top_n_sigma: float = Field(-1.0, le=0)
    xtc_probability: Zero = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: Zero = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    mirostat: Zero = 0.0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: Zero = 0.0
    n_indent: Zero = 0.0
    t_max_predict_ms: int = Field(0, le=0)
    grammar: Literal[""] = ""
    lora: list[Any] = Field([], max_length=0)
    post_sampling_probs: Literal[False] = False


class Sampling(Neutral):
    """How tokens are drawn: OpenAI's fields, and those of llama.cpp that it has not."""

    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: TopK = 0
    min_p: float = Field(0.0, ge=0, le=1)
    repeat_penalty: float = Field(1.0, gt=0, le=100)
    repeat_last_n: int = Field(
        -1, ge=-1, description="with a penalty: all tokens, -1 or the context and more"
    )
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Stop = []
    logit_bias: Bias = {}
    ignore_eos: bool = Field(False, description="never end a text before max_tokens")


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class OpenAIBody(Sampling):
    """What the two kinds of completions share."""

    model: str = ""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    # not looked at, as they don't change an answer
    user: str = ""
    metadata: dict[str, Any] = {}
    service_tier: str = ""
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    prompt_cache_retention: str = ""
    prompt_cache_options: dict[str, Any] = {}
    store: bool = Field(False, description="nothing is stored")


class CompletionBody(OpenAIBody):
    prompt: Prompt = ""
    suffix: Text | None = None
    max_tokens: int = Field(16, ge=-1)
    best_of: int = 1
    echo: bool = False
    logprobs: Likely | None = None
    special: bool = Field(False, description="names of special tokens in the prompt mean the tokens")


class TextPart(Body):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Text
    # not looked at, as they don't change an answer
    cache_control: dict[str, Any] = {}
    prompt_cache_breakpoint: dict[str, Any] = {}


class OtherPart(Body):
    """A part of a message of another type, which is refused."""

    model_config = ConfigDict(extra="allow")

    type: str


def kind_of_part(value: Any) -> str:
    """The tag of a part."""
    said = value.get("type") if isinstance(value, dict) else value
    return "<other>" if isinstance(said, str) and said != "text" else "<text>"


def kind_of_content(value: Any) -> str:
    """The tag of the content of a message."""
    return "<a list>" if isinstance(value, list) else "<a text>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[OtherPart, Tag("<other>")], Discriminator(kind_of_part)
]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Content = Annotated[
    Annotated[Text, Tag("<a text>")] | Annotated[Parts, Tag("<a list>")], Discriminator(kind_of_content)
]


class Message(Body):
    """A message of a chat, or an answer of before as clients send it back."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    # not looked at, as they don't change an answer
    name: str = ""
    annotations: list[Any] = []
    reasoning_content: str = Field("", description="what was thought is not part of a conversation")
    reasoning: str = Field("", description="the same, as others call it")
    # refused by what they ask for, unless they are empty
    tool_calls: list[Any] = []
    tool_call_id: str = ""
    function_call: Any = None
    audio: Any = None

    @model_validator(mode="after")
    def has_content(self) -> Message:
        if self.content is None and self.role in ("system", "developer", "user"):
            raise PydanticCustomError(
                "no_content", "content is missing, allowed are a text, and a list of parts"
            )
        return self


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


Schema = Annotated[dict[str, Any] | bool, one_of("are an object, true and false")]


class JsonSchema(Body):
    name: str = ""
    description: str = ""
    schema_: Schema = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(None, alias="schema", description="of a json_object, as llama.cpp has it")


class ChatBody(OpenAIBody):
    messages: Messages
    max_tokens: Most | None = None
    max_completion_tokens: Most | None = None
    logprobs: bool = False
    top_logprobs: Likely = 0
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: list[Any] = Field([], description="refused unless empty")
    tool_choice: Any = Field(None, description="refused unless none or auto")
    functions: list[Any] = Field([], description="refused unless empty")
    function_call: Any = Field(None, description="refused unless none or auto")
    parallel_tool_calls: bool = True
    modalities: list[Literal["text", "audio"]] = Field(["text"], fail_fast=True)
    prediction: Any = Field(None, description="a guess, which changes no answer")
    # what is done without them: medium is as the model does by itself, none is of models that don't think
    reasoning_effort: Literal["none", "medium"] | None = None
    reasoning_format: Literal["none", "auto"] | None = Field(None, description="all that is written is told")
    verbosity: Literal["medium"] | None = None


class EmbeddingBody(Body):
    input: Prompt
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = "mean"
    user: str = ""


# --- llama.cpp's


def no_bias(value: Any) -> Any:
    """logit_bias as llama.cpp takes it: false, pairs of a token and a bias (false: never), or a dict.

    Raises PydanticCustomError for a token that comes twice.
    """
    if value is False:
        return {}
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return value
    found = {str(token): -100.0 if bias is False else bias for token, bias in value}
    if len(found) < len(value):
        raise PydanticCustomError("twice", "has a token twice, allowed is each once")
    return found


class NativeBody(Sampling):
    """What /completion and /infill share; the defaults are llama.cpp's."""

    temperature: float = Field(0.8, ge=0, le=100)
    top_p: float = Field(0.95, ge=0, le=1)
    top_k: TopK = 40
    min_p: float = Field(0.05, ge=0, le=1)
    logit_bias: Annotated[Bias, BeforeValidator(no_bias)] = {}
    n_predict: Annotated[int, Field(ge=-2), AfterValidator(limit)] = -1
    stream: bool = False
    n_probs: Likely = 0
    return_tokens: bool = False
    json_schema: Schema | None = None


class NativeCompletionBody(NativeBody):
    prompt: MixedPrompt


class InfillBody(NativeBody):
    input_prefix: Text = ""
    input_suffix: Text = ""
    input_extra: list[Any] = Field([], max_length=0)
    prompt: Text = Field("", description="what is written already of what is between the two")


class NativeEmbeddingBody(Body):
    content: MixedPrompt = Field(validation_alias=AliasChoices("content", "input"))
    model: str = ""
    pooling: Literal["mean", "last"] = "mean"
    embd_normalize: int = Field(2, ge=-1, le=100, description="-1: not, 0: by the largest, else by a p-norm")


class TokenizeBody(Body):
    content: Text
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    tokens: Ids = Field(max_length=MAX_IDS)


class TemplateBody(Body):
    messages: Messages
    add_generation_prompt: bool = True


class SlotBody(Body):
    filename: str = Field("", max_length=128)


# --- allamo's


class AllamoBody(Body):
    prompt: Text


class AllamoCompletionBody(AllamoBody):
    num_samples: int = Field(1, ge=1, le=MAX_CHOICES)
    max_new_tokens: int = Field(50, ge=1)
    temperature: float = Field(0.8, ge=0, le=100)
    top_k: int = Field(100, ge=0, lt=2**31)

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k)
