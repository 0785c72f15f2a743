"""The page of the server, in a browser: Chromium, driven by Playwright.

    python -m pytest tests/llama/test_page.py

Each test ends with two more claims: nothing was asked of another server, and the console has no error.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from serving import Server, serving
from tiny_models import write_chain

from llama import Llama

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--no-sandbox", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]  # Chromium asks its makers else
PATIENCE = 60_000  # milliseconds: machines that do much else are slow
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 780}
BUSY = {"error": {"message": "64 texts wait", "type": "rate_limit_error", "code": "429"}}

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stories() -> Iterator[Server]:
    """The model that ships, which has no chat template."""
    with Llama(threads=1) as llama, serving(llama) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Iterator[Server]:
    """A model that says " a b c a b c ..." for ever, after what it does not know as well.

    It can chat: a v0 file has the template of Llama 2.
    """
    words = [" a", " b", " c"]
    successors = {"<unk>": " a", "<s>": " a", " a": " b", " b": " c", " c": " a"}
    path = write_chain(tmp_path_factory.mktemp("chain"), words, successors, context=5_000)
    with Llama(path, threads=1) as llama, serving(llama) as server:
        yield server


@pytest.fixture
def visit(browser):
    """Opens the page of a server, in a browser that has never been there."""

    @contextmanager
    def visit(server: Server, errors: int = 0, **options) -> Iterator[Page]:
        """errors: answers of 400 and more that the test provokes, each of which the console tells of."""
        context = browser.new_context(**{"viewport": WIDE} | options)
        context.set_default_timeout(PATIENCE)
        page, told, asked = context.new_page(), [], []
        page.on("console", lambda message: message.type in ("error", "warning") and told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        yield page
        assert [url for url in asked if not url.startswith(f"{server.url}/")] == []
        assert len(told) == errors, told
        context.close()

    return visit


def send(page: Page, text: str) -> None:
    expect(page.locator("#go")).to_be_enabled()
    page.fill("#text", text)
    page.press("#text", "Enter")


def await_end(page: Page) -> None:
    """Waits for the text to be written."""
    expect(page.locator("#status")).to_have_text(re.compile("ended|reached|stopped"))
    expect(page.locator("#go")).not_to_have_text("Stop")


def tell(page: Page, length: int = 40, seed: int = 5) -> Locator:
    """A story, and its tokens."""
    page.fill("#max_tokens", str(length))
    page.fill("#seed", str(seed))
    send(page, "Once upon a time")
    await_end(page)
    return page.locator("#story .passage .token")


# --- Stories


def test_a_story_is_told_token_by_token(stories, visit):
    with visit(stories) as page:
        tokens = tell(page)
        body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 5}
        choice = stories.post("/v1/completions", body | {"logprobs": 0}).json["choices"][0]
        assert "".join(tokens.all_text_contents()) == choice["text"]
        assert tokens.count() == len(choice["logprobs"]["tokens"])
        assert page.locator("#story .passage").text_content() == "Once upon a time" + choice["text"]
        words = r"40 tokens · \d+ tokens/s · first after \d+ ms · the length was reached · 4\d of 512"
        expect(page.locator("#status")).to_have_text(re.compile(words))


def test_tokens_are_marked_by_their_probability(stories, visit):
    with visit(stories) as page:
        tell(page)
        body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.8, "top_p": 0.9, "seed": 5}
        choice = stories.post("/v1/completions", body | {"logprobs": 0}).json["choices"][0]
        levels = page.locator("#story .token").evaluate_all("spans => spans.map(span => +span.dataset.level)")
        bounds = [-0.22314, -0.69315, -1.60944, -2.99573]  # ln of 80, 50, 20 and 5 %
        assert levels == [sum(p < bound for bound in bounds) for p in choice["logprobs"]["token_logprobs"]]


def test_go_on_adds_to_a_story_and_undo_takes_it_back(stories, visit):
    with visit(stories) as page:
        tokens = tell(page, 10)
        before = tokens.all_text_contents()
        page.click("#go-on")
        expect(tokens).to_have_count(20)
        await_end(page)
        assert tokens.all_text_contents()[:10] == before
        page.click("#undo")
        expect(tokens).to_have_count(10)


def test_a_story_outlives_a_reload(stories, visit):
    with visit(stories) as page:
        told = tell(page).all_text_contents()
        page.fill("#min_p", "0.1")
        page.reload()
        assert page.locator("#story .token").all_text_contents() == told
        expect(page.locator("#min_p")).to_have_value("0.1")


@pytest.mark.parametrize("how", ["button", "key"])
def test_a_text_is_stopped(endless, visit, how, monkeypatch):
    step = endless.engine.texts.step

    def slowly():
        time.sleep(0.005)  # or the text is there before it can be stopped
        return step()

    monkeypatch.setattr(endless.engine.texts, "step", slowly)
    with visit(endless) as page:
        page.fill("#max_tokens", "4000")
        send(page, " a")
        page.locator("#story .token").nth(20).wait_for()
        page.click("#go") if how == "button" else page.keyboard.press("Escape")
        expect(page.locator("#status")).to_have_text(re.compile("stopped"))
        assert 20 < page.locator("#story .token").count() < 4000
        send(page, " b")  # the server is free again, and so is the page
        page.locator("#story .token").nth(5).wait_for()
        page.keyboard.press("Escape")


# --- Alternatives


def uncertain(tokens: Locator) -> int:
    """The first token that has alternatives worth choosing."""
    return tokens.evaluate_all("spans => spans.findIndex((span, i) => i > 3 && span.dataset.level > 1)")


def test_pointing_at_a_token_shows_its_alternatives(stories, visit):
    with visit(stories) as page:
        tokens = tell(page)
        tokens.nth(uncertain(tokens)).hover()
        box = page.locator("#alternatives")
        expect(box).to_be_visible()
        expect(box.locator("button")).to_have_count(5)
        page.mouse.move(5, 5)
        expect(box).to_be_hidden()


@pytest.mark.parametrize("phone", [False, True])
def test_the_story_goes_on_from_an_alternative(stories, visit, phone):
    with visit(stories, viewport=PHONE if phone else WIDE, has_touch=phone) as page:
        if phone:
            page.click("summary")
        tokens = tell(page)
        if phone:
            page.click("summary")
        before, at = tokens.all_text_contents(), uncertain(tokens)
        tokens.nth(at).tap() if phone else tokens.nth(at).hover()
        other = page.locator("#alternatives button:not([aria-current]):enabled").first
        name = other.locator(".name").text_content().replace("␣", " ")
        other.click()
        expect(tokens).to_have_count(at + 1 + 40)
        assert tokens.all_text_contents()[: at + 1] == [*before[:at], name]
        await_end(page)
        page.click("#undo")
        expect(tokens).to_have_count(40)
        assert tokens.all_text_contents() == before


def test_a_keyboard_is_enough(stories, visit):
    with visit(stories) as page:
        tokens = tell(page)
        page.locator("#story .passage").focus()
        for _ in range(uncertain(tokens) + 1):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#alternatives")).to_be_visible()
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#alternatives button").nth(1)).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#alternatives")).to_be_hidden()
        expect(page.locator("#story .passage")).to_be_focused()


def test_settings_say_and_show_what_they_do(stories, visit):
    with visit(stories) as page:
        tokens = tell(page)
        expect(page.locator("#story .token.cut")).to_have_count(0)  # they were drawn with these settings
        expect(page.locator("#temperature-says")).to_contain_text("on average instead of")
        page.fill("#top_k", "1")
        expect(page.locator("#top_k-says")).to_contain_text("Only the likeliest token is left.")
        said = int(re.search(r"(\d+) of the 40", page.locator("#top_k-says").text_content())[1])
        expect(page.locator("#story .token.cut")).to_have_count(said)
        tokens.nth(uncertain(tokens)).hover()
        assert page.locator("#alternatives .drawn").all_text_contents()[2:] == ["top-k"] * 4


# --- Chats


def test_two_turns_of_a_chat(endless, visit):
    with visit(endless) as page:
        page.click("#chat-tab")
        page.fill("#max_tokens", "6")
        for turn in range(2):
            send(page, " a b")
            expect(page.locator(".message")).to_have_count(2 * turn + 2)
            await_end(page)
        assert page.locator(".message.user").all_text_contents() == [" a b"] * 2
        assert page.locator(".message.assistant .passage").all_text_contents() == [" a b c a b c"] * 2


def test_an_answer_goes_on_from_an_alternative(endless, visit):
    with visit(endless) as page:
        page.click("#chat-tab")
        page.fill("#max_tokens", "6")
        for _ in range(2):
            send(page, " a b")
            await_end(page)
        page.locator(".message.assistant").first.locator(".token").nth(2).hover()
        page.locator("#alternatives button", has_text="␣a").click()
        tokens = page.locator(".message.assistant .token")
        expect(tokens).to_have_count(3 + 6)  # the second turn is gone
        assert "".join(tokens.all_text_contents()[2:6]) == " a b c a"


def test_a_model_without_a_template_says_that_it_cannot_chat(stories, visit):
    with visit(stories) as page:
        page.click("#chat-tab")
        expect(page.locator("#hint")).to_contain_text("no chat template")
        expect(page.locator("#go")).to_be_disabled()


# --- Colours, keys, errors


def test_light_and_dark(stories, visit):
    def paper() -> str:
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    with visit(stories, color_scheme="dark") as page:
        button, dark = page.locator("#theme"), paper()
        button.click()
        expect(button).to_have_text("Light")
        light = paper()
        button.click()
        assert (paper(), light) == (dark, "rgb(251, 250, 247)")
        page.reload()
        expect(button).to_have_text("Dark")


def test_a_server_with_a_key_is_given_it(visit):
    with (
        Llama(threads=1) as llama,
        serving(llama, keys=["secret"]) as server,
        visit(server, errors=4) as page,
    ):
        page.fill("#key", "wrong")  # the page asks for the model and its properties: two refusals each time
        page.press("#key", "Enter")
        expect(page.locator("#key-why")).not_to_be_empty()
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        assert tell(page, 5).count() == 5


def test_a_busy_server_says_for_how_long(stories, visit):
    with visit(stories, errors=1) as page:
        headers = {"Retry-After": "3"}
        page.route("**/v1/completions", lambda route: route.fulfill(status=429, json=BUSY, headers=headers))
        send(page, "Once")
        expect(page.locator("#error")).to_contain_text("64 texts wait. It asks to wait 3 s.")
        page.unroute("**/v1/completions")
        page.click("#retry")
        await_end(page)
        expect(page.locator("#error")).to_be_hidden()


def test_a_refusal_is_told_in_the_words_of_the_server(stories, visit):
    with visit(stories, errors=1) as page:
        send(page, "long " * 600)
        expect(page.locator("#error")).to_contain_text("512")
