"""What a prompt means: escapes in options, files that were written on Windows, and one that is too long.

Left out on purpose: the ids of a text (test_tokenizer.py), chats (test_converse.py).
"""

from __future__ import annotations

import codecs

import pytest
from helpers import assert_refused, both
from tiny_models import write_chain

BOM = codecs.BOM_UTF8

# --- Escapes


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\nb", b"a\nb"),
        (r"\n\t\r\\\"\'", b"\n\t\r\\\"'"),
        (r"\x41\x6d\x6D\xC3\xa9", "Ammé".encode()),
        (r"\x00\xff", b"\0\xff"),
        (r"\\n", rb"\n"),
        (r"\\\n", b"\\\n"),
        ("plain é 🦙", "plain é 🦙".encode()),
        ("", b""),
        *(
            (bad, bad.encode())
            for bad in ("\\", r"\q", r"\x", r"\x4", r"\xg1", r"\x4g", r"a\ b", r"\u00e9", r"\N")
        ),
        (r"\x4\n", b"\\x4\n"),
    ],
)
def test_an_escape_is_the_character_that_it_names(noise, typed, meant):
    (noise / "meant.txt").write_bytes(meant + b"\n")
    expected = both(noise / "v0.bin", "-t", "0", "-n", "60", "-f", "meant.txt").stdout
    for option in ("-e", "--escape"):
        assert both(noise / "v0.bin", "-t", "0", "-n", "60", option, "-i", typed).stdout == expected
    plain = both(noise / "v0.bin", "-t", "0", "-n", "60", "-i", typed).stdout
    assert plain.startswith(typed.encode())  # without the option they are not looked for


def test_escapes_are_for_options_alone(noise):
    result = both(noise / "v0.bin", "-t", "0", "-e", "-f", "-", stdin=rb"the\ntin")
    assert result.stdout.startswith(rb"the\ntin")


def test_escapes_are_for_both_texts_of_a_chat(noise):
    options = ("-m", "chat", "-s", "1", "-n", "120")
    meant = both(noise / "v0.bin", *options, "-y", "be\nkind", "-i", "the\ttin").stdout
    assert both(noise / "v0.bin", *options, "-e", "-y", r"be\nkind", "-i", r"the\ttin").stdout == meant
    assert both(noise / "v0.bin", *options, "-y", r"be\nkind", "-i", r"the\ttin").stdout != meant


# --- Files of Windows


@pytest.mark.parametrize(
    ("data", "meant"),
    [
        (BOM + b"the tin", b"the tin"),
        (BOM + b"the tin\r\n", b"the tin"),
        (b"the\r\ntin\r\n\r\n", b"the\ntin\n"),
        (b"the\rtin\r", b"the\rtin\r"),
        (b"the\r\r\ntin", b"the\r\ntin"),
        (b"the " + BOM + b"tin", b"the " + BOM + b"tin"),
        (BOM + BOM + b"tin", BOM + b"tin"),
        (BOM[:2], BOM[:2]),
        (BOM, b""),
        (b"\r\n", b""),
        (b"\r", b"\r"),
    ],
)
def test_a_byte_order_mark_and_carriage_returns_are_not_part_of_a_prompt(noise, data, meant):
    (noise / "windows.txt").write_bytes(data)
    options = ("-t", "0", "-n", "60")
    expected = both(noise / "v0.bin", *options, "-i", meant).stdout
    assert both(noise / "v0.bin", *options, "-f", "windows.txt").stdout == expected
    assert both(noise / "v0.bin", *options, "-f", "-", stdin=data).stdout == expected


# --- Prompts that are too long


@pytest.fixture
def loop(tmp_path):
    """Writes x for ever, in a context of 64; a prompt of x is BOS and one token."""
    return write_chain(tmp_path, [" x"], {"<s>": " x"})


STEPS = "--steps = {} has room for no more than that: -n 0 takes the whole context of {}"


@pytest.mark.parametrize(
    ("options", "tokens", "message"),
    [
        ([], 65, "the context has room for 64"),
        (["-n", "0"], 65, "the context has room for 64"),
        (["-n", "10"], 65, "the context has room for 64"),  # more steps would not help
        (["-n", "10"], 11, STEPS.format(10, 64)),
        (["-n", "10"], 64, STEPS.format(10, 64)),
        (["-c", "5"], 6, "--context = 5; this model may have up to 64"),
        (["-c", "5", "-n", "0"], 64, "--context = 5; this model may have up to 64"),
        (["-c", "5"], 65, "the context has room for 64"),
        (["-c", "20", "-n", "10"], 11, STEPS.format(10, 20)),
        (["-c", "20", "-n", "10"], 21, "--context = 20; this model may have up to 64"),
        (["-c", "10", "-n", "20"], 11, "--context = 10; this model may have up to 64"),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_what_to_change(loop, options, tokens, message):
    result = both(loop, "-f", "-", *options, stdin=" ".join("x" * (tokens - 1)).encode())
    assert_refused(result, 2, f"the prompt has {tokens} tokens, {message}")
    assert result.stdout == b""


def test_a_prompt_longer_than_the_default_of_steps_is_told_of_it(tmp_path):
    model = write_chain(tmp_path, [" x"], {"<s>": " x"}, context=512)
    prompt = " ".join("x" * 301).encode()
    result = both(model, "-f", "-", stdin=prompt)
    assert_refused(result, 2, f"the prompt has 302 tokens, {STEPS.format(256, 512)}")
    assert both(model, "-f", "-", "-n", "0", stdin=prompt).returncode == 0


@pytest.mark.parametrize("options", [["-n", "10"], ["-c", "10"], []])
def test_a_prompt_that_just_fits_is_run(loop, options):
    room = 10 if options else 64
    result = both(loop, "--no-echo", "-f", "-", *options, stdin=" ".join("x" * (room - 1)).encode())
    assert (result.returncode, result.stdout) == (0, b" x\n")


def test_the_first_message_of_a_chat_is_told_the_same(loop):
    message = f"the prompt has 13 tokens, {STEPS.format(10, 64)}"
    result = both(loop, "-m", "chat", "-y", "", "-n", "10", "-i", "x " * 10)
    assert_refused(result, 2)
    assert STEPS.format(10, 64) in result.stderr.decode(), message
