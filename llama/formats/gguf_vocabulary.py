"""The tokenizer in a GGUF file, of the two kinds that Llamas have.

"llama" is sentencepiece's BPE: pieces with scores, in which U+2581 stands for a space; where all scores are
alike, the pairs that merge are in a list or found in the order of the tokens. "gpt2" is byte-level: tokens
spelt in GPT-2's alphabet, a letter for each byte, pairs that merge, and the name of a pattern.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from llama.errors import BadFileError
from llama.formats import vocabulary as tokens
from llama.formats.chat_templates import Chat
from llama.formats.gguf_file import GgufFile
from llama.formats.gguf_keys import Keys, TokenType
from llama.formats.merge_order import are_alike, with_order
from llama.formats.spelling import merges_of, pieces_problem, spellings
from llama.formats.tokenizer_fields import refuse
from llama.formats.tokenizer_json import (
    BYTE_NAMES,
    bytes_missing,
    is_made,
    may_come,
    merging_by,
    parts_of,
    piece_bytes,
    read_merges,
    refuse_some_bytes,
    scores_of,
)
from llama.formats.vocabulary import Vocabulary

SPLITS: dict[
    tuple[int, int], tuple[str, ...]
] = {  # llama.cpp's names of patterns with flags; the first is written
    # pattern and flags
    (tokens.LLAMA3, tokens.WHOLE_WORDS): (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    (tokens.LLAMA3, 0): ("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"),
    (tokens.GPT2, 0): (
        "gpt-2",
        "phi-2",
        "gigachat",
        "a.x-4.0",
        "mellum",
        "exaone4",
        "mpt",
        "olmo",
        "jais",
        "trillion",
    ),
    (tokens.GPT2_DIGITS, 0): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    (tokens.QWEN2, 0): ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo", "solar-open"),
    (tokens.TEKKEN, tokens.WHOLE_WORDS): ("tekken",),
    (tokens.DEEPSEEK_LLM, 0): ("deepseek-llm",),
    (tokens.DEEPSEEK_CODER, 0): ("deepseek-coder",),
    (tokens.LLAMACPP_DEFAULT, 0): ("default",),
}
PATTERNS = {name: split for split, names in SPLITS.items() for name in names}
BEGIN_WITH_BOS = (*SPLITS[tokens.LLAMA3, tokens.WHOLE_WORDS], "tekken")  # unless the file says otherwise
SAYS_NO_PATTERN = (
    "the file does not name the pattern that splits text: it is llama.cpp's for such files, "
    "and texts may get other ids than the model was trained with"
)
BY_PIECES = (
    "llama.cpp merges any two tokens that make one, in the order of what they make: where pairs that the "
    "tokenizer lists overlap and make the same, or pairs are not listed, texts may get other ids there"
)
NO_EDGES = "a GGUF file does not say that white space beside some special tokens goes with them"
OTHERWISE = {  # what llama.cpp does with a pattern that the model's own tokenizer does not
    tokens.TEKKEN: "llama.cpp's tekken knows the case of ASCII letters alone, and no marks",
    tokens.DEEPSEEK_LLM: "llama.cpp's deepseek-llm does not part the digits of a number",
}
ENDS = (  # tokens that end a text by their names, in llama.cpp; those of Gemma 4 and of infilling left out
    *("</s>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|end|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
TYPES = {
    TokenType.NORMAL: tokens.TEXT,
    TokenType.UNKNOWN: tokens.UNKNOWN,
    TokenType.CONTROL: tokens.CONTROL,
    TokenType.USER_DEFINED: tokens.USER,
    TokenType.BYTE: tokens.BYTE,
    TokenType.UNUSED: tokens.CONTROL,  # without its name: no text means it
}
AFTER_ADDED = tokens.PREFIX | tokens.PREFIX_UNLESS_SPACE | tokens.STRIP  # of a folder that adds tokens
TYPES_WRITTEN = {ours: theirs for theirs, ours in TYPES.items() if theirs != TokenType.UNUSED}

# --- Writing


def problem_of(vocabulary: Vocabulary) -> str | None:
    """What GGUF, as llama.cpp reads it, can't hold of a vocabulary: field, found, allowed. None: nothing."""
    v, flags = vocabulary, vocabulary.flags & ~tokens.SEARCHES
    if v.eos < 0:  # llama.cpp has one for such a file
        return f"eos = {v.eos}, allowed is one of its tokens"
    if v.kind == tokens.BYTES:
        if not (allowed := [of for pattern, of in SPLITS if pattern == v.pattern]):
            known = dict.fromkeys(str(pattern) for pattern, _ in SPLITS)
            return f"pattern = {v.pattern}, allowed {', '.join(known)}"
        if flags not in allowed:
            return f"flags = {flags}, allowed {' and '.join(map(str, allowed))} with pattern {v.pattern}"
    elif v.kind == tokens.UNIGRAM:
        return "kind = Unigram, allowed pieces that merge"
    elif flags not in (0, tokens.SENTENCEPIECE, AFTER_ADDED) or v.pattern != tokens.NO_PATTERN:
        return (
            f"flags = {flags}, pattern = {v.pattern}, allowed 0 and {tokens.SENTENCEPIECE} without a pattern"
        )
    elif (known := v.types.count(tokens.BYTE)) < 256:
        return f"byte tokens = {known}, allowed all 256"
    return pieces_problem(v)


def notes_of(vocabulary: Vocabulary) -> list[str]:
    """What llama.cpp does otherwise than the tokenizer, as it would with a file of its own converter."""
    v, notes = vocabulary, []
    if v.kind == tokens.CHARACTERS and tokens.USER in v.types and not v.flags & tokens.USER_FIRST:
        notes.append("user-defined pieces are text like any other in a GGUF file: their names may be cut")
    if v.kind == tokens.CHARACTERS and v.flags & ~tokens.SEARCHES == AFTER_ADDED:
        notes.append("llama.cpp puts a space in front of text that follows a special token, too")
    if v.kind == tokens.CHARACTERS and v.merges is not None:
        notes.append(BY_PIECES)
    if v.edges:
        notes.append(NO_EDGES)
    if v.kind == tokens.BYTES and v.pattern in OTHERWISE:
        notes.append(f"{OTHERWISE[v.pattern]}: texts may get other ids there")
    return notes


def written_types(vocabulary: Vocabulary) -> list[TokenType]:
    """The type of each token in the file.

    User-defined pieces of sentencepiece are text, as llama.cpp's converter has them: those of llama.cpp are
    found before a space is put in front.
    """
    v, written = vocabulary, dict(TYPES_WRITTEN)
    if v.kind == tokens.CHARACTERS and not v.flags & tokens.USER_FIRST:
        written[tokens.USER] = TokenType.NORMAL
    typed = zip(v.pieces, v.types, strict=True)
    return [written[of] if piece else TokenType.UNUSED for piece, of in typed]


def names_of_ends(names: Collection[str]) -> list[str]:
    """Those of some tokens that end a text, as llama.cpp has it.

    <|end|> does not where <|call|> does, and <|return|>, or <|flush|>: there it ends a part of an answer.
    """
    calls = "<|call|>" in names or "<|calls|>" in names
    parts = calls and ("<|return|>" in names or "<|flush|>" in names)
    return [name for name in ENDS if name in names and not (name == "<|end|>" and parts)]


def other_stops(vocabulary: Vocabulary, stops: tuple[int, ...]) -> list[int]:
    """Ids that end a text which llama.cpp does not know by themselves."""
    special = vocabulary.special
    known = {special[name] for name in names_of_ends(special)} | {vocabulary.eos}
    return [token for token in stops if token not in known]


def written_scores(vocabulary: Vocabulary) -> list[float]:
    """The score of each token in the file: of a list of pairs, by the first that makes the token."""
    v = vocabulary
    if v.merges is None:
        return list(v.scores)
    made = dict.fromkeys(left + right for left, right in v.merges)
    return scores_of(v.pieces, {piece: i for i, piece in enumerate(made)})


def add_vocabulary(
    writer: Any,
    vocabulary: Vocabulary,
    template: str = "",
    stops: tuple[int, ...] = (),
    add_bos: bool = True,
    add_eos: bool = False,
) -> None:
    """Adds the keys of a vocabulary to a file that is to be written.

    vocabulary: one without a problem_of. template: of chats, in Jinja. stops: ids that end a text, at most
    two of them other_stops. add_bos, add_eos: whether a text begins and ends with one.
    """
    v, byte_level = vocabulary, vocabulary.kind == tokens.BYTES
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre(SPLITS[v.pattern, v.flags & tokens.WHOLE_WORDS][0] if byte_level else "default")
    types = written_types(v)
    writer.add_token_list(spellings(replace(v, types=[TYPES[of] for of in types])))
    writer.add_token_types(types)
    if byte_level:
        writer.add_token_merges(merges_of(v))
    else:
        writer.add_token_scores(written_scores(v))
        writer.add_add_space_prefix(bool(v.flags & tokens.PREFIX))
    ids = {Keys.BOS_ID: v.bos, Keys.EOS_ID: v.eos, Keys.UNK_ID: v.unknown}
    ids |= zip((Keys.EOT_ID, Keys.EOM_ID), other_stops(v, stops), strict=False)
    for key, token in ids.items():
        if token >= 0:
            writer.add_uint32(key, token)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
    if template:
        writer.add_chat_template(template)


# --- Reading


def has_vocabulary(file: GgufFile) -> bool:
    return file.one(Keys.MODEL, str, "none") not in ("none", "no_vocab")


def token_names(file: GgufFile) -> list[str]:
    """The tokens as the file spells them. Raises BadFileError."""
    return file.many(Keys.LIST, str) if has_vocabulary(file) else []


def find_id(file: GgufFile, key: str, usual: int = -1) -> int:
    """The id of a token that has a key, -1 for none. usual: where the file does not say.

    Raises BadFileError.
    """
    n = len(token_names(file))
    if not n or file.get(key) is None:
        return usual if usual < n else -1
    if not 0 <= (found := file.one(key, int)) < n:
        raise file.wrong(key, f"0 to {n - 1}")
    return found


def find_add_bos(file: GgufFile) -> bool:
    """Whether a text begins with BOS, if the file is silent by llama.cpp's rule. Raises BadFileError."""
    usual = file.get(Keys.MODEL) != "gpt2" or file.get(Keys.PRE) in BEGIN_WITH_BOS
    return file.one(Keys.ADD_BOS, bool, usual)


def find_ends(file: GgufFile) -> tuple[int, int]:
    """BOS and EOS, -1 where there is none. Raises BadFileError."""
    bos, eos = (1, 2) if file.get(Keys.MODEL) == "llama" else (-1, -1)  # as in llama.cpp
    if not find_add_bos(file):  # a guess that nothing needs
        bos = -1
    return find_id(file, Keys.BOS_ID, bos), find_id(file, Keys.EOS_ID, eos)


def find_stops(file: GgufFile) -> tuple[int, ...]:
    """Ids that end a text: EOS, those with a key of their own, and ENDS by name. Raises BadFileError."""
    ids, keys = {name: i for i, name in enumerate(token_names(file))}, (Keys.EOT_ID, Keys.EOM_ID)
    stops = [find_ends(file)[1], *(find_id(file, key) for key in keys), *map(ids.get, names_of_ends(ids))]
    return tuple(dict.fromkeys(token for token in stops if token is not None and token >= 0))


def find_chat(file: GgufFile) -> Chat:
    """The chat template of a file: the one without a name. Raises BadFileError."""
    text = file.one(Keys.CHAT_TEMPLATE, str, "")
    return Chat("other", text) if text else Chat()


def token_types(file: GgufFile, names: list[str], byte_level: bool) -> list[int]:
    """The type of each token. Where a file has none all are text but bytes, which llama.cpp finds by name.

    As there, ENDS are control tokens, of which a user's text writes none. Raises BadFileError.
    """
    if file.get(Keys.TOKEN_TYPE) is not None:
        types = file.many(Keys.TOKEN_TYPE, int, len(names))
    else:
        is_byte = (not byte_level and name in BYTE_NAMES for name in names)
        types = [TokenType.BYTE if found else TokenType.NORMAL for found in is_byte]
    ends, texts = set(names_of_ends(set(names))), (TokenType.NORMAL, TokenType.USER_DEFINED)
    typed = zip(names, types, strict=True)
    return [TokenType.CONTROL if name in ends and of in texts else of for name, of in typed]


def read_pieces(file: GgufFile, byte_level: bool) -> tuple[list[bytes], list[int]]:
    """What each token prints, or its name, and its type. Raises BadFileError."""
    names = token_names(file)
    types, pieces = [], []
    for name, of in zip(names, token_types(file, names, byte_level), strict=True):
        if of not in TYPES:
            raise BadFileError(f"{file.path}: {Keys.TOKEN_TYPE} = {of} of {name!r:.80}, allowed 1 to 6")
        if of == TokenType.BYTE and name not in BYTE_NAMES:
            refuse(file.path, Keys.LIST, name, "<0x00> to <0xFF> for bytes")
        types.append(TYPES[TokenType(of)])
        if of == TokenType.UNUSED:
            pieces.append(b"")
        elif types[-1] == tokens.TEXT:
            pieces.append(piece_bytes(file.path, name, byte_level, Keys.LIST))
        else:
            pieces.append(bytes([BYTE_NAMES[name]]) if types[-1] == tokens.BYTE else name.encode())
    refuse_some_bytes(file.path, pieces, types, Keys.LIST)
    return pieces, types


def read_sentencepiece(file: GgufFile) -> Vocabulary:
    """A vocabulary of kind "llama". Raises BadFileError."""
    if (prefix := file.get(Keys.ADD_PREFIX, True)) not in (True, False):
        raise file.wrong(Keys.ADD_PREFIX, "True and False")
    n = len(token_names(file))
    scores = [0.0] * n if file.get(Keys.SCORES) is None else file.many(Keys.SCORES, float, n)
    tokens.checked_scores(file.path, Keys.SCORES, scores)
    pieces, types = read_pieces(file, False)
    flags = (tokens.SENTENCEPIECE if prefix else 0) | (tokens.USER_FIRST if tokens.USER in types else 0)
    usual = types.index(tokens.UNKNOWN) if tokens.UNKNOWN in types else -1
    ids = (*find_ends(file), find_id(file, Keys.UNK_ID, usual))
    if ids[-1] < 0 and (missing := bytes_missing(pieces, types, tokens.BYTE)):
        refuse(file.path, Keys.LIST, f"{missing} bytes without a token", "all 256, or an unknown token")
    vocabulary = Vocabulary(tokens.CHARACTERS, pieces, scores, types, *ids, flags=flags)
    return ordered(file, vocabulary) if are_alike(vocabulary) else vocabulary


def ordered(file: GgufFile, vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary whose scores are all alike, merging by the pairs that the file lists or its ids tell.

    Raises BadFileError.
    """
    if file.get(Keys.MERGES) is None:
        return with_order(vocabulary)
    return by_list(file, vocabulary, False)


def by_list(file: GgufFile, vocabulary: Vocabulary, byte_level: bool) -> Vocabulary:
    """The vocabulary, merging by the pairs that a file lists. Raises BadFileError."""
    names, merges = token_names(file), file.many(Keys.MERGES, str)
    parts, textual = parts_of(merges), set[int]()
    for i, (name, of) in enumerate(zip(names, vocabulary.types, strict=True)):
        special = of == tokens.CONTROL
        named = vocabulary.pieces[i] and (special or of == tokens.USER)
        if named and is_made(name, parts, byte_level):
            textual |= {i} if may_come(file.path, name, special, byte_level, Keys.LIST) else set()
    typed = zip(names, vocabulary.types, strict=True)
    left_out = {name for i, (name, of) in enumerate(typed) if of != tokens.TEXT and i not in textual}
    pairs = read_merges(file.path, merges, {*names}, left_out, byte_level, Keys.MERGES)
    return merging_by(replace(vocabulary, textual=frozenset(textual)), pairs)


def read_byte_level(file: GgufFile) -> Vocabulary:
    """A vocabulary of kind "gpt2". Raises BadFileError."""
    splits = file.one(Keys.PRE, str, "default")
    if splits not in PATTERNS:
        raise file.wrong(Keys.PRE, " and ".join(map(repr, PATTERNS)))
    (pattern, flags), (pieces, types) = PATTERNS[splits], read_pieces(file, True)
    notes = (SAYS_NO_PATTERN,) if pattern == tokens.LLAMACPP_DEFAULT else ()
    rest = {"pattern": pattern, "flags": flags, "notes": notes}
    vocabulary = Vocabulary(tokens.BYTES, pieces, [0.0] * len(pieces), types, *find_ends(file), **rest)
    return by_list(file, vocabulary, True)


def find_vocabulary(file: GgufFile) -> Vocabulary | None:
    """The vocabulary of a file, None where there is none. Raises BadFileError."""
    if not has_vocabulary(file):
        return None
    read = {"llama": read_sentencepiece, "gpt2": read_byte_level}.get(file.one(Keys.MODEL, str))
    if read is None:
        raise file.wrong(Keys.MODEL, "'llama' and 'gpt2'")
    return read(file)
