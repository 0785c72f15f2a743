/** Tokens on screen: a span each, tinted by probability, which a keyboard can walk through. */

import { cutBy } from "./sampling.js";
import { percent, spelled } from "./tokens.js";

const LEVELS = [0.8, 0.5, 0.2, 0.05]; // from here on up, tints 0 to 3; below is 4: as the page's legend says
const ofSpan = new WeakMap();

/** The token that a span shows, and which one of its passage it is. @returns {{token: Token, index: number}} */
export const shownBy = (span) => ofSpan.get(span);

function level(logprob) {
    const p = Math.exp(logprob);
    const found = LEVELS.findIndex((least) => p >= least);
    return found < 0 ? LEVELS.length : found;
}

/** The spaces in front of a word are of its token, but are not tinted: words are what is read. */
function tokenSpan(token, index) {
    const span = document.createElement("span");
    const mark = document.createElement("mark");
    const [spaces] = token.text.match(/^ *(?=\S)|^/);
    span.className = "token";
    mark.textContent = token.text.slice(spaces.length);
    span.append(spaces, mark);
    if (token.logprob !== null) span.dataset.level = level(token.logprob);
    if (/^\n+$/.test(token.text)) span.classList.add("break");
    ofSpan.set(span, { token, index });
    return span;
}

/** An element for tokens. label: what a screen reader calls it. */
export function createPassage(label) {
    const element = document.createElement("div");
    element.className = "passage";
    element.tabIndex = 0;
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", `${label}. Left and right go through its tokens, Enter to their alternatives.`);
    return element;
}

/** Adds tokens to a passage, of which `from` are there. Parts of characters take no space, so have no span. */
export function appendTokens(passage, tokens, from) {
    const spans = tokens.map((token, i) => token.text && tokenSpan(token, from + i)).filter(Boolean);
    passage.append(...spans);
}

/** Strikes out the tokens that these settings could not have drawn. */
export function strikeOut(root, settings) {
    for (const span of root.querySelectorAll(".passage .token")) {
        const { token } = shownBy(span);
        span.classList.toggle("cut", token.logprob !== null && cutBy(token, settings) !== null);
    }
}

/** The token that the keyboard has come to; null lets go. */
export function setCurrent(span) {
    document.querySelector(".token.current")?.classList.remove("current");
    span?.classList.add("current");
    span?.scrollIntoView({ block: "nearest" });
}

/** The token that a key leads to in a passage, or null for a key that leads nowhere. */
export function neighbour(passage, key) {
    const spans = [...passage.querySelectorAll(".token")];
    const at = spans.findIndex((span) => span.classList.contains("current"));
    const last = spans.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? last : at - 1, Home: 0, End: last }[key];
    return spans[to] ?? null;
}

/** A token in words, for screen readers. */
export function described({ text, logprob }) {
    return `“${spelled(text)}”${logprob === null ? "" : `, ${percent(Math.exp(logprob))}`}`;
}
