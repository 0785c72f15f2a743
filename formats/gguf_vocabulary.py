"""The tokenizer in a GGUF file, of the two kinds that Llamas have.

"llama" is sentencepiece's BPE: pieces with scores, in which U+2581 stands for a space; what a tokenizer.bin
holds. "gpt2" with the splits "llama-bpe" is Llama 3's: tokens spelt in GPT-2's alphabet, a letter for each
byte, and merges.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import tokenizer as tokenizers
from formats.gguf_file import GgufFile, gguf
from formats.vocabulary import count_bin
from tokenizer import Tokenizer
from training.command import BadInput

Keys, TokenType = gguf.Keys.Tokenizer, gguf.TokenType
SPACE, UNKNOWN, BOS, EOS = "\u2581", "<unk>", "<s>", "</s>"
SPLITS = ("llama-bpe", "llama3", "llama-v3")  # names of Llama 3's pattern
STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")  # of Llama 3


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a file has it.

    kind: "llama" or "gpt2". types: of the tokens, by gguf.TokenType. scores: of "llama". merges: of "gpt2",
    two tokens with a space between, the first merge first. bos, eos: -1 where there is none. stops: ids that
    end a text besides EOS. template: of chats, "none", "llama2" or "llama3".
    """

    kind: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    bos: int = -1
    eos: int = -1
    stops: tuple[int, ...] = ()
    template: str = "none"


# --- sentencepiece: tokenizer.bin and tokenizer.model


def piece_type(piece: str) -> TokenType:
    """The type of a piece of a tokenizer.bin, which says no more than its name."""
    if piece.strip("\n") in (BOS, EOS):
        return TokenType.CONTROL
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return TokenType.BYTE
    return TokenType.UNKNOWN if piece == UNKNOWN else TokenType.NORMAL


def from_bin(path: Path, data: bytes) -> Vocabulary:
    """A vocabulary from the bytes of a tokenizer.bin. path: for messages. Raises BadInput."""
    tokens, types, scores, at = [], [], [], 4
    for n in range(count_bin(path, data)):
        score, length = struct.unpack_from("<fi", data, at)
        try:
            piece = data[at + 8 : at + 8 + length].decode()
        except UnicodeDecodeError:
            raise BadInput(f"{path}: token {n} is not UTF-8, allowed is nothing else in GGUF") from None
        types.append(piece_type(piece))
        tokens.append(piece.strip("\n") if types[-1] == TokenType.CONTROL else piece.replace(" ", SPACE))
        scores.append(score)
        at += 8 + length
    bos, eos = (tokens.index(name) if name in tokens else -1 for name in (BOS, EOS))
    return Vocabulary("llama", tokens, types, scores, bos=bos, eos=eos)


def from_sentencepiece(tokenizer: Tokenizer) -> Vocabulary:
    """A vocabulary from a sentencepiece model, which knows the type of every piece. Raises BadInput."""
    vocabulary, sp = from_bin(tokenizer.path, tokenizers.to_llama2c_bin(tokenizer)), tokenizer.model
    tests = {
        TokenType.UNKNOWN: sp.is_unknown,
        TokenType.CONTROL: sp.is_control,
        TokenType.BYTE: sp.is_byte,
        TokenType.UNUSED: sp.is_unused,
    }
    types = [
        next((kind for kind, is_kind in tests.items() if is_kind(i)), TokenType.NORMAL)
        for i in range(sp.vocab_size())
    ]
    return replace(vocabulary, types=types)


def to_bin(vocabulary: Vocabulary) -> bytes:
    """The bytes of a tokenizer.bin, from a vocabulary of kind "llama"."""
    names = {i: UNKNOWN for i, kind in enumerate(vocabulary.types) if kind == TokenType.UNKNOWN}
    names |= {vocabulary.bos: f"\n{BOS}\n", vocabulary.eos: f"\n{EOS}\n"}
    pieces = [names.get(i, token.replace(SPACE, " ")).encode() for i, token in enumerate(vocabulary.tokens)]
    pairs = zip(vocabulary.scores, pieces, strict=True)
    records = (struct.pack("<fi", score, len(piece)) + piece for score, piece in pairs)
    return struct.pack("<I", max(map(len, pieces))) + b"".join(records)


# --- Byte pairs


def byte_letters() -> list[str]:
    """GPT-2's alphabet: a letter for each byte, its own in Latin-1 where that is visible."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def from_ranks(ranks: Mapping[bytes, int], special: Mapping[str, int]) -> Vocabulary:
    """A vocabulary from the ranks of a Llama 3 and the special tokens that follow them.

    Two neighbours merge if together they are a token, that of the lowest rank first: so all ways to cut a
    token in two are merges, with its rank.
    """
    letters, eos = byte_letters(), special.get("<|end_of_text|>", -1)
    ordered, names = sorted(ranks, key=ranks.__getitem__), sorted(special, key=special.__getitem__)
    spelt = {token: "".join(letters[byte] for byte in token) for token in ordered}
    cuts = ((token[:i], token[i:]) for token in ordered for i in range(1, len(token)))
    return Vocabulary(
        "gpt2",
        [*spelt.values(), *names],
        [TokenType.NORMAL] * len(spelt) + [TokenType.CONTROL] * len(names),
        merges=[f"{spelt[a]} {spelt[b]}" for a, b in cuts if a in ranks and b in ranks],
        bos=special.get("<|begin_of_text|>", -1),
        eos=eos,
        stops=tuple(sorted(special[name] for name in STOPS if special.get(name, eos) != eos)),
    )


# --- In the file

LLAMA2 = """\
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0].content.strip() + '\\n<</SYS>>\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{ message.content.strip() + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3}  # Jinja, as llama.cpp and its users render them


def template_of(text: str) -> str:
    """Which template a file's Jinja is, by what only that one writes."""
    if "<|start_header_id|>" in text:
        return "llama3"
    return "llama2" if "[INST]" in text and "<<SYS>>" in text else "none"


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary | None) -> None:
    """Adds the keys of a vocabulary to a file that is to be written. None: it gets none."""
    if vocabulary is None:
        return writer.add_tokenizer_model("no_vocab")
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre("default" if vocabulary.kind == "llama" else SPLITS[0])
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(True)
    else:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos >= 0:
        writer.add_bos_token_id(vocabulary.bos)
    if vocabulary.eos >= 0:
        writer.add_eos_token_id(vocabulary.eos)
    writer.add_add_bos_token(vocabulary.bos >= 0)
    writer.add_add_eos_token(False)
    if vocabulary.template in TEMPLATES:
        writer.add_chat_template(TEMPLATES[vocabulary.template])
    return None


def find_stops(file: GgufFile, tokens: list[str], eos: int) -> tuple[int, ...]:
    """Ids that end a text besides EOS: those with a key of their own, and Llama 3's by name."""
    stops = {file.one(key, int, -1) for key in (Keys.EOT_ID, Keys.EOM_ID)}
    stops |= {tokens.index(name) for name in STOPS if name in tokens}
    return tuple(sorted(token for token in stops - {eos} if 0 <= token < len(tokens)))


def find_vocabulary(file: GgufFile) -> Vocabulary | None:
    """The vocabulary of a file, None where there is none. Raises BadInput."""
    kind, splits = file.one(Keys.MODEL, str, "none"), file.one(Keys.PRE, str, "default")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("llama", "gpt2"):
        raise file.wrong(Keys.MODEL, "'llama' and 'gpt2'")
    if kind == "gpt2" and splits not in SPLITS:
        raise file.wrong(Keys.PRE, " and ".join(map(repr, SPLITS)))
    if kind == "llama" and not file.get(Keys.ADD_PREFIX, True):
        raise file.wrong(Keys.ADD_PREFIX, "True")
    tokens = file.many(Keys.LIST, str)
    usual = {Keys.BOS_ID: 1, Keys.EOS_ID: 2} if kind == "llama" else {Keys.BOS_ID: -1, Keys.EOS_ID: -1}
    bos, eos = (file.one(key, int, token) for key, token in usual.items())
    for key, token in zip(usual, (bos, eos), strict=True):
        if not -1 <= token < len(tokens):
            raise file.wrong(key, f"0 to {len(tokens) - 1}")
    return Vocabulary(
        kind,
        tokens,
        types=file.many(Keys.TOKEN_TYPE, int, len(tokens)),
        scores=file.many(Keys.SCORES, float, len(tokens)) if kind == "llama" else [],
        merges=file.many(Keys.MERGES, str) if kind == "gpt2" else [],
        bos=bos,
        eos=eos,
        stops=find_stops(file, tokens, eos),
        template=template_of(file.one(Keys.CHAT_TEMPLATE, str, "")),
    )
