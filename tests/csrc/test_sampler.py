"""The sampler of the engine (llama/csrc/sampling/sampler.h) against a full sort in float64 with numpy."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import Options, Refused, Sampler, Told, adjusted, allowed, coins, draw, likelihoods

from llama._engine import ffi, lib

thorough = settings(max_examples=600, deadline=None)

# ------------------------------------------------------------------------------------------------------
# Equality with the reference


@st.composite
def logit_arrays(draw_from: st.DrawFn) -> np.ndarray:
    """Logits on a grid, so that ties are exact and there are many."""
    n = draw_from(st.integers(1, 12) | st.integers(1, 2000))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    spread = draw_from(st.sampled_from([0, 1, 16, 64, 400]))
    logits = np.clip(rng.normal(0, spread, n), -4000, 4000).round() / 16
    logits[rng.integers(0, n, draw_from(st.integers(0, 5)))] += draw_from(st.integers(0, 160)) / 16
    return logits.astype(np.float32)


option_sets = st.builds(
    Options,
    temperature=st.sampled_from([0.0, 1e-45, 1e-30, 0.1, 0.5, 0.8, 1.0, 2.0, 100.0, 1e30]),
    top_p=st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0]) | st.floats(0, 1, width=32),
    min_p=st.sampled_from([0.0, 0.0, 1e-30, 0.01, 0.05, 0.3, 1.0]),
    top_k=st.sampled_from([0, 0, 0]) | st.integers(1, 60) | st.integers(1, 2500),
    repeat_penalty=st.sampled_from([1.0, 1.0, 1.25, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -0.125]),
    seed=st.integers(1, 2**64 - 1),
)


@st.composite
def tellings(draw_from: st.DrawFn, n: int) -> Told:
    tokens = st.integers(0, n - 1)
    bias = draw_from(st.dictionaries(tokens, st.sampled_from([-np.inf, -3.5, 0.0, 2.0, 7.25]), max_size=5))
    if len([b for b in bias.values() if b == -np.inf]) == n:
        bias = {}
    return Told(bias, draw_from(st.lists(tokens, max_size=8)), draw_from(st.lists(tokens, max_size=8)))


@thorough
@given(data=st.data(), logits=logit_arrays(), options=option_sets)
def test_every_combination_of_options_draws_what_the_full_sort_draws(
    data: st.DataObject, logits: np.ndarray, options: Options
) -> None:
    told = data.draw(tellings(len(logits)))
    sampler = Sampler(len(logits), told, **vars(options))
    x = adjusted(logits, options, told)
    if options.temperature == 0:
        assert sampler.draw(logits) == x.argmax()
        return
    e = likelihoods(x, options.temperature)
    for coin, _ in zip(coins(options.seed), range(5), strict=False):
        assert sampler.draw(logits) in allowed(e, options, coin)


def ordinary_logits(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, n).astype(np.float32)
    logits[rng.integers(0, n, 5)] = rng.uniform(12, 15, 5)
    return logits


@pytest.mark.parametrize(
    "options",
    [{}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 40}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.02}],
    ids=str,
)
@pytest.mark.parametrize("n", [512, 32000])
def test_a_draw_that_differs_by_rounding_is_rare(n: int, options: dict[str, float]) -> None:
    logits = ordinary_logits(n, seed=n)
    settings, sampler = Options(**options, seed=99), Sampler(n, **options, seed=99)
    e = likelihoods(logits.astype(np.float64), 1)
    different = 0
    for coin, _ in zip(coins(99), range(200), strict=False):
        token = sampler.draw(logits)
        if token != draw(e, settings, coin):
            different += 1
            assert token in allowed(e, settings, coin)
    assert different <= 1


def test_the_draw_follows_the_rule_of_llama2_c_by_hand() -> None:
    """Probabilities 0.1, 0.4, 0.3, 0.2: coins of seed 1 fall where one can check them."""
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2], dtype=np.float32))
    tossed = [coin for coin, _ in zip(coins(42), range(100), strict=False)]
    in_order = [next(i for i, edge in enumerate((0.1, 0.5, 0.8, 1)) if coin < edge) for coin in tossed]
    nucleus = [next(t for t, edge in ((1, 0.4), (2, 0.7)) if coin * 0.7 < edge) for coin in tossed]
    plain, top_p = Sampler(4, seed=42), Sampler(4, seed=42, top_p=0.6)
    assert [plain.draw(logits) for _ in tossed] == in_order
    assert [top_p.draw(logits) for _ in tossed] == nucleus


def test_coins_are_those_of_xorshift64_star() -> None:
    """With 2^24 equal tokens the token is the coin, to the last bit. Two states of seed 1 by hand."""
    first = 1 ^ (1 << 25)  # 1 >> 12 is 0, (1 + 2^25) >> 27 is 0
    second = first ^ (first >> 12)
    second = (second ^ (second << 25)) & (2**64 - 1)
    second ^= second >> 27
    expected = [(state * 0x2545F4914F6CDD1D % 2**64) >> 40 for state in (first, second)]
    sampler, equal = Sampler(2**24, seed=1), np.zeros(2**24, dtype=np.float32)
    assert [sampler.draw(equal) for _ in range(2)] == expected


def test_frequencies_are_those_of_the_softmax() -> None:
    logits, n = np.array([0.5, -1, 2, 0, 1.5, -0.5, 1, 0.25]), 20000
    sampler = Sampler(len(logits), temperature=0.7, seed=2024)
    counts = np.bincount([sampler.draw(logits) for _ in range(n)], minlength=len(logits))
    expected = likelihoods(logits, 0.7)
    expected *= n / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square, 7 degrees of freedom: p = 0.01


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.4426950408889634, 5.0])
def test_likelihoods_are_within_rounding_of_float64(temperature: float) -> None:
    """Powers of 2 to 1.5 ulp (at temperature 1 / ln 2, where nothing is rounded before); else the rounding of
    the exponent, at most 2^-23 of it, comes on top."""
    x = -np.concatenate([np.linspace(0, 80, 200001), np.linspace(0, 1, 100001)]).astype(np.float32)
    x[0] = 0
    left = Sampler(len(x), temperature=temperature).sample(x)[1]
    expected = likelihoods(x.astype(np.float64), temperature)
    exact = temperature == 1.4426950408889634
    exponent = -x / temperature
    if exact:
        expected = np.exp2(x.astype(np.float64))
    above = exponent < 85
    ulp = np.spacing(expected[above].astype(np.float32)).astype(np.float64)
    rounding = 0 if exact else exponent[above] * 2.0**-23 * expected[above]
    assert (np.abs(left[above] - expected[above]) <= 1.5 * ulp + rounding).all()
    assert left[0] == 1
    assert (left[exponent > 87] == 0).all()


# ------------------------------------------------------------------------------------------------------
# The passes over the vocabulary, and the sample that the selection starts from


def instruction_sets() -> list[str]:
    """Those of this CPU, in the engine's names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_ISA", "none")
        with pytest.raises(Refused) as refused:
            Sampler(1)
    return refused.value.args[1].split("has:")[1].split()


def hostile_logits(n: int) -> list[np.ndarray]:
    """Ties, zeros of both signs, denormals, the ends of the range, and ordinary ones."""
    rng = np.random.default_rng(n)
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    corners = np.array([0, -0.0, smallest, -smallest, 1e-40, -1e-40, 1, -1, 80, -80, -123], dtype=np.float32)
    return [
        rng.normal(0, 3, n),
        rng.normal(0, 20, n).round() / 4,
        rng.choice(corners, n),
        rng.choice([*corners, largest, -largest], n),
        np.zeros(n),
    ]


@pytest.mark.parametrize("n", [1, 15, 64, 255, 256, 257, 1000, 4099])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 40.0, "top_p": 0.95},
        {"top_p": 0.9},
        {"top_k": 40},
        {"min_p": 0.05},
        {"top_k": 700, "top_p": 0.99, "min_p": 1e-4},
    ],
    ids=str,
)
def test_every_instruction_set_leaves_the_same_bits_and_draws_the_same_tokens(
    n: int, options: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = Told(bias=dict.fromkeys(range(0, n - 1, 7), -np.inf))
    for told, logits in product((Told(), forbidden), hostile_logits(n)):
        found = []
        for name in instruction_sets():
            monkeypatch.setenv("LLAMA_ISA", name)
            sampler = Sampler(n, told, **options, seed=n)
            found.append(
                [(token, left.tobytes()) for token, left in (sampler.sample(logits) for _ in range(3))]
            )
        assert all(one == found[0] for one in found)


@pytest.mark.parametrize("n", [3000, 32000])
@pytest.mark.parametrize(
    "options",
    [{"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.9999}, {"top_k": 3}, {"top_k": 400}, {"top_k": 2900}],
    ids=str,
)
def test_a_misleading_sample_changes_nothing(n: int, options: dict[str, float]) -> None:
    """Likelihoods that repeat with the index as the sample does: it has all or none of the likely ones."""
    noise = np.random.default_rng(n).normal(0, 16, n).round() / 16
    for above in (-60, -6, 6, 60):
        logits = noise.astype(np.float32)
        logits[:: max(8, n // 1024)] += above
        e = likelihoods(logits.astype(np.float64), 1)
        sampler = Sampler(n, **options, seed=99)
        for coin, _ in zip(coins(99), range(3), strict=False):
            token = sampler.draw(logits)
            assert token == draw(e, Options(**options), coin) or token in allowed(e, Options(**options), coin)


def test_ties_at_the_end_of_a_run_are_kept_in_the_order_of_their_index() -> None:
    """In several blocks, with tokens above and below them."""
    logits = np.full(2000, -5.0)
    ties = np.random.default_rng(1).permutation(2000)[:500]
    logits[ties] = 1.0
    logits[ties[:10]] = 3.0
    above, equal = np.sort(ties[:10]), np.sort(ties[10:])
    for top_k in (11, 30, 400):
        kept = {*above, *equal[: top_k - 10]}
        assert drawn(Sampler(2000, top_k=top_k, temperature=50), logits, 100 + 15 * top_k) == kept
    mass = 490 + 10 * np.exp(2) + 1500 * np.exp(-6)
    top_p = (10 * np.exp(2) + 100.5) / mass  # 100 of the ties do not exceed it, 101 do
    assert drawn(Sampler(2000, top_p=top_p), logits) == {*above, *equal[:101]}


# ------------------------------------------------------------------------------------------------------
# Corners


def drawn(sampler: Sampler, logits: np.ndarray, times: int = 3000) -> set[int]:
    return {sampler.draw(logits) for _ in range(times)}


def test_equal_tokens_are_kept_in_the_order_of_their_index() -> None:
    equal = np.zeros(100)
    assert drawn(Sampler(100, top_p=0.5), equal) == set(range(51))  # 50 reach a half, 51 exceed it
    assert drawn(Sampler(100, top_k=7), equal) == set(range(7))
    assert drawn(Sampler(100, min_p=1.0), equal) == set(range(100))
    assert Sampler(100, temperature=0).draw(equal) == 0
    assert Sampler(3, temperature=0).draw(np.array([-1.0, 0.0, -0.0])) == 1
    assert Sampler(3, temperature=0).draw(np.array([-1.0, -0.0, 0.0])) == 1
    logits = np.full(2000, -1.0)
    logits[[333, 1444]] = -0.0, 0.0  # in different blocks
    assert Sampler(2000, temperature=0).draw(logits) == 333


def test_greedy_tells_neighbouring_floats_apart() -> None:
    for value in (-3.0, 0.0, 1.0):
        logits = np.full(100, value, dtype=np.float32)
        logits[70] = np.nextafter(np.float32(value), np.float32(9))
        assert Sampler(100, temperature=0).draw(logits) == 70


def test_top_k_counts_tokens_whatever_block_they_are_in() -> None:
    logits = np.zeros(1000)
    logits[100:140] = 5 + np.arange(40) / 64
    spread = np.zeros(1000)
    spread[np.arange(16) * 62] = 5 + np.arange(16) / 64  # one in each block of 64
    for top_k in (1, 3, 16, 17, 39):
        assert drawn(Sampler(1000, top_k=top_k), logits) == set(range(140 - top_k, 140))
    for top_k in (1, 2, 9, 15, 16):
        assert drawn(Sampler(1000, top_k=top_k), spread) == {62 * i for i in range(16 - top_k, 16)}


def test_tiny_top_p_keeps_one_token() -> None:
    logits = ordinary_logits(5000, seed=5)
    for top_p in (1e-45, 1e-9, 1e-4):
        assert drawn(Sampler(5000, top_p=top_p), logits, 50) == {logits.argmax()}
    assert drawn(Sampler(5000, top_p=1e-9), np.zeros(5000), 50) == {0}


def test_top_p_applies_to_what_top_k_left_and_min_p_to_what_top_p_left() -> None:
    logits = np.log(np.array([0.4, 0.2, 0.15, 0.15, 0.1]))
    assert drawn(Sampler(5, top_p=0.65), logits) == {0, 1, 2}
    assert drawn(Sampler(5, top_k=2, top_p=0.65), logits) == {0}  # 0.4 / 0.6 exceeds 0.65
    assert drawn(Sampler(5, top_k=3, top_p=0.65), logits) == {0, 1}  # 0.4 / 0.75 does not
    assert drawn(Sampler(5, min_p=0.3), logits) == {0, 1, 2, 3}
    assert drawn(Sampler(5, top_p=0.65, min_p=0.45), logits) == {0, 1}


def test_filters_that_keep_everything_are_off() -> None:
    """Then tokens are walked in the order of their index: the same coin gives another token."""
    logits = ordinary_logits(300, seed=3)
    plain = Sampler(300, seed=8)
    tokens = [plain.draw(logits) for _ in range(50)]
    for options in ({"top_p": 1.0}, {"top_k": 300}, {"top_k": 2**31 - 1}):
        sampler = Sampler(300, seed=8, **options)
        assert [sampler.draw(logits) for _ in range(50)] == tokens
    sorted_walk = Sampler(300, seed=8, top_k=299)
    assert [sorted_walk.draw(logits) for _ in range(50)] != tokens


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-3])
@pytest.mark.parametrize("top_p", [0.0, 0.9])
def test_tiny_temperatures_are_greedy(temperature: float, top_p: float) -> None:
    logits = ordinary_logits(1000, seed=1)
    assert drawn(Sampler(1000, temperature=temperature, top_p=top_p), logits, 50) == {logits.argmax()}
    logits[[3, 7]] = 3.4e38
    assert drawn(Sampler(1000, temperature=temperature), logits, 50) == {3, 7}


def test_huge_temperatures_are_uniform() -> None:
    left = Sampler(4, temperature=3e38).sample(np.array([-50, 0, 50, 1000]))[1]
    assert left.tolist() == [1, 1, 1, 1]


def test_penalties_by_hand() -> None:
    told = Told(prompt=[0, 1], generated=[0, 0, 2])
    options = {"repeat_penalty": 2.0, "presence_penalty": 0.25, "frequency_penalty": 0.5}
    logits = np.array([2, -1, 1, 0.375, 0])
    token, left = Sampler(5, told, temperature=0, **options).sample(logits)
    # 2 / 2 - 0.25 - 2 * 0.5;  -1 * 2, prompt only;  1 / 2 - 0.25 - 0.5;  never told
    assert (token, left.tolist()) == (3, [-0.25, -2, -0.25, 0.375, 0])


@pytest.mark.parametrize(
    ("options", "prompt", "generated"),
    [
        ({"repeat_penalty": 2.0}, 2, 2),
        ({"presence_penalty": 0.5}, 4, 3.5),
        ({"frequency_penalty": 0.25}, 4, 3.5),
    ],
    ids=str,
)
def test_each_penalty_acts_alone(options: dict[str, float], prompt: float, generated: float) -> None:
    """A token of the prompt, and one that was drawn twice."""
    left = Sampler(3, Told(prompt=[0], generated=[1, 1]), temperature=0, **options).sample(np.full(3, 4.0))[1]
    assert left.tolist() == [prompt, generated, 4]


def test_bias_comes_before_the_penalties() -> None:
    told = Told(bias={0: 3.0, 1: -3.0}, prompt=[0, 1])
    left = Sampler(2, told, temperature=0, repeat_penalty=2.0).sample(np.array([-1.0, 1.0]))[1]
    assert left.tolist() == [1, -4]


def test_a_later_bias_replaces_an_earlier_one() -> None:
    sampler = Sampler(3, Told(bias={1: -np.inf}), temperature=0)
    assert sampler.draw(np.array([0, 9, 1])) == 2
    sampler.bias(1, 0.0)
    assert sampler.draw(np.array([0, 9, 1])) == 1


def test_reset_forgets_the_tokens_told_and_keeps_bias_and_generator() -> None:
    told = Told(bias={1: 1.0, 3: -np.inf}, prompt=[0, 1, 2], generated=[3, 2])
    options = {"repeat_penalty": 4.0, "presence_penalty": 1.0}
    logits = np.array([1, 2, 3, 4, 5])
    sampler = Sampler(5, told, temperature=0, **options)
    sampler.reset()
    assert sampler.sample(logits)[1].tolist() == [1, 3, 3, -np.inf, 5]
    sampler.accept(1, 0)
    assert sampler.sample(logits)[1].tolist() == [1, 0.75, 3, -np.inf, 5]
    drawing, whole = Sampler(4096, seed=6), Sampler(4096, seed=6)
    flat = np.zeros(4096)
    first = drawing.draw(flat)
    drawing.reset()
    assert [first, drawing.draw(flat)] == [whole.draw(flat), whole.draw(flat)]


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 0.99}, {"top_k": 90}, {"min_p": 1e-30}, {"min_p": 1e-42}], ids=str
)
def test_forbidden_tokens_are_never_drawn(options: dict[str, float]) -> None:
    told = Told(bias={token: -np.inf for token in range(100) if token != 77 and token != 5})
    assert drawn(Sampler(100, told, temperature=1e6, **options), np.zeros(100)) == {5, 77}


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 95, 1000])
def test_a_mask_is_a_bias_of_minus_infinity_on_all_else(n: int) -> None:
    rng = np.random.default_rng(n)
    logits = rng.normal(0, 3, n).astype(np.float32)
    for count, told in product((1, 2, n // 2, n - 1, n), ({}, {0: 1.5})):
        tokens = rng.permutation(n)[: max(1, count)]
        others = dict.fromkeys(map(int, set(range(n)) - set(tokens)), -np.inf)
        masked, biased = Sampler(n, Told(told), seed=3), Sampler(n, Told(told | others), seed=3)
        masked.mask(map(int, tokens))
        for _ in range(5):
            (token, left), (expected, reference) = masked.sample(logits), biased.sample(logits)
            assert token == expected in tokens
            assert left.tobytes() == reference.tobytes()
    masked.mask(None)
    assert masked.sample(logits)[1].all()


def test_a_mask_that_allows_no_token_is_refused() -> None:
    sampler = Sampler(40, Told({39: -np.inf}))
    for tokens in ([], [39]):
        sampler.mask(tokens)
        with pytest.raises(Refused) as refused:
            sampler.draw(np.zeros(40))
        text = "the mask allows no token, or none without a bias of -inf"
        assert refused.value.args == (lib.LLAMA_ERROR_USAGE, text)


def test_sums_that_overflow_are_the_largest_float() -> None:
    largest = float(np.finfo(np.float32).max)
    told = Told(bias={0: largest, 1: -largest}, prompt=[2], generated=[3])
    options = {"repeat_penalty": 1e-30, "frequency_penalty": largest}
    sampler = Sampler(4, told, temperature=0, **options)
    left = sampler.sample(np.array([largest, -largest, 1e30, 1]))[1]
    assert left.tolist() == [largest, -largest, largest, -largest]


# ------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vocab_size": 0}, "vocab_size = 0, allowed 1 or more"),
        ({"vocab_size": -3}, "vocab_size = -3, allowed 1 or more"),
        ({"temperature": -1}, "temperature = -1, allowed 0 or more"),
        ({"temperature": np.inf}, "temperature = inf, allowed 0 or more"),
        ({"temperature": np.nan}, "temperature = nan, allowed 0 or more"),
        ({"top_p": -0.5}, "top_p = -0.5, allowed 0 to 1"),
        ({"top_p": 1.5}, "top_p = 1.5, allowed 0 to 1"),
        ({"top_p": np.nan}, "top_p = nan, allowed 0 to 1"),
        ({"min_p": -0.5}, "min_p = -0.5, allowed 0 to 1"),
        ({"min_p": 2}, "min_p = 2, allowed 0 to 1"),
        ({"top_k": -1}, "top_k = -1, allowed 0 or more"),
        ({"repeat_penalty": 0}, "repeat_penalty = 0, allowed more than 0"),
        ({"repeat_penalty": -1}, "repeat_penalty = -1, allowed more than 0"),
        ({"repeat_penalty": np.inf}, "repeat_penalty = inf, allowed more than 0"),
        ({"presence_penalty": np.nan}, "presence_penalty = nan, allowed any finite number"),
        ({"frequency_penalty": -np.inf}, "frequency_penalty = -inf, allowed any finite number"),
        ({"seed": 0}, "seed = 0, allowed any other number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], text: str) -> None:
    with pytest.raises(Refused) as refused:
        Sampler(**{"vocab_size": 8, **options})
    assert refused.value.args == (lib.LLAMA_ERROR_USAGE, text)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    sampler = Sampler(5, repeat_penalty=2.0)
    for token in (-1, 5, 2**31 - 1):
        for call in (lambda t: sampler.bias(t, 1.0), lambda t: sampler.accept(t, 1)):
            with pytest.raises(Refused) as refused:
                call(token)
            assert refused.value.args == (lib.LLAMA_ERROR_USAGE, f"token = {token}, allowed 0 to 4")


@pytest.mark.parametrize("bias", [np.nan, np.inf])
def test_a_bias_of_nan_or_infinity_is_refused(bias: float) -> None:
    with pytest.raises(Refused) as refused:
        Sampler(5).bias(3, bias)
    text = f"bias of token 3 = {bias}, allowed finite or -inf"
    assert refused.value.args == (lib.LLAMA_ERROR_USAGE, text)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", instruction_sets())
def test_a_logit_that_is_not_finite_is_refused(
    value: float, temperature: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ISA", name)
    for n, token in ((1, 0), (18, 17), (1000, 0), (1000, 255), (1000, 999)):
        logits = np.ones(n)
        logits[token] = value
        with pytest.raises(Refused) as refused:
            Sampler(n, Told(bias={token: -np.inf}), temperature=temperature).draw(logits)
        text = f"logit of token {token} is {value}, allowed finite numbers"
        assert refused.value.args == (lib.LLAMA_ERROR_FILE, text)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_vocabulary_forbidden_as_a_whole_is_refused(temperature: float) -> None:
    with pytest.raises(Refused) as refused:
        Sampler(3, Told(bias=dict.fromkeys(range(3), -np.inf)), temperature=temperature).draw(np.zeros(3))
    text = "every token has a bias of -inf, allowed all but one"
    assert refused.value.args == (lib.LLAMA_ERROR_USAGE, text)


def test_an_error_may_go_untold() -> None:
    out = ffi.new("LlamaSampler **")
    assert lib.llama_sampler_init(0, ffi.new("LlamaSampling *"), out, ffi.NULL) == lib.LLAMA_ERROR_USAGE
    assert out[0] == ffi.NULL
    lib.llama_sampler_free(ffi.NULL)
