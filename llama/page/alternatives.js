/**
 * What else could have stood in a token's place: shown on hover, tap or by keyboard, and chosen by a click.
 *
 * A choice is an event "choose" of the passage, with {index, name, token} as its detail.
 */

import { described, neighbour, setCurrent, shownBy } from "./passage.js";
import { drawn } from "./sampling.js";
import { kindOf, percent, spelled } from "./tokens.js";

const FOOT = "Drawn: its chance with these settings. Choose one to go on from there.";
const GRACE = 180; // milliseconds for the pointer to reach the box
const CUT = { temperature: "temperature 0", top_k: "top-k", top_p: "top-p", min_p: "min-p" };

const box = document.getElementById("alternatives");
let anchor = null; // the span whose alternatives are shown
let leaving = 0;
let settingsNow = () => ({});

function make(tag, className, text) {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
}

/** A row: the alternative, a bar and its probability by the model, and what the settings make of it. */
function row([name, logprob], { p, cut }, { token, index }) {
    const kind = kindOf(name);
    const button = make("button", cut ? "cut" : "", "");
    button.type = "button";
    button.disabled = kind === "part";
    if (logprob === token.logprob) button.setAttribute("aria-current", "true");
    const bar = make("span", "bar", "");
    bar.append(make("i", "", ""));
    bar.firstChild.style.width = `${100 * Math.exp(logprob)}%`;
    const label = kind === "end" ? "the end" : kind === "part" ? "part of a character" : spelled(name);
    button.append(make("span", kind === "text" ? "name" : "name special", label));
    button.append(bar, make("span", "model", percent(Math.exp(logprob))));
    button.append(make("span", "drawn", cut ? CUT[cut] : percent(p)));
    if (cut) button.lastChild.title = `left out by ${CUT[cut]}`;
    const detail = { index, name, token };
    button.addEventListener("click", () => {
        const passage = anchor.closest(".passage");
        hide();
        passage.dispatchEvent(new CustomEvent("choose", { detail, bubbles: true }));
    });
    return button;
}

function fill(shown) {
    const { token } = shown;
    const title = make("p", "title", described(token));
    title.id = "alternatives-title";
    const head = make("p", "head", "");
    head.append(make("span", "", "instead"), make("span", "model", "model"), make("span", "drawn", "drawn"));
    const seen = drawn(token.top, settingsNow());
    const rows = token.top.map((other, i) => row(other, seen[i], shown));
    box.replaceChildren(title, head, ...rows, make("p", "foot", FOOT));
}

/**
 * Below its token, or above where there is no room, and not over the settings; a narrow screen has it at the
 * bottom, by style.css.
 */
function place() {
    const at = anchor.getClientRects()[0];
    const { width, height } = box.getBoundingClientRect();
    const right = document.querySelector("main").getBoundingClientRect().right;
    const left = Math.max(8, Math.min(at.left, right - width - 8));
    const below = at.bottom + 6;
    box.style.left = `${left}px`;
    box.style.top = `${below + height > innerHeight - 8 ? Math.max(8, at.top - height - 6) : below}px`;
}

function show(span) {
    clearTimeout(leaving);
    const shown = shownBy(span);
    if (span === anchor || !shown?.token.top.length) return;
    anchor?.classList.remove("open");
    anchor = span;
    anchor.classList.add("open");
    fill(shown);
    box.showPopover();
    place();
}

/** Takes the box away. */
export function hide() {
    clearTimeout(leaving);
    if (!anchor) return;
    anchor.classList.remove("open");
    anchor = null;
    box.hidePopover();
}

function leave() {
    clearTimeout(leaving);
    leaving = setTimeout(() => box.contains(document.activeElement) || hide(), GRACE);
}

function onHover(event) {
    if (event.pointerType !== "mouse" || event.buttons) return;
    if (event.target.closest(".passage .token")) show(event.target.closest(".token"));
    else if (!box.contains(event.target)) leave();
    else clearTimeout(leaving);
}

function onPassageKey(event) {
    const passage = event.target;
    if (!passage.classList.contains("passage") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && anchor) {
        event.preventDefault();
        box.querySelector("button:enabled")?.focus();
        return;
    }
    const next = neighbour(passage, event.key);
    if (!next) return;
    event.preventDefault();
    setCurrent(next);
    show(next);
}

function onBoxKey(event) {
    const buttons = [...box.querySelectorAll("button:enabled")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
        event.preventDefault();
        buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length).focus();
    } else if (event.key === "Escape") {
        event.stopPropagation(); // or it would stop the text that is being written
        const passage = anchor.closest(".passage");
        hide();
        passage.focus();
    }
}

/** Listens. settings: a function that returns those in force. */
export function listen(settings) {
    settingsNow = settings;
    const main = document.querySelector("main");
    document.addEventListener("pointerover", onHover);
    document.addEventListener("pointerdown", ({ target }) => {
        if (!box.contains(target) && !target.closest(".passage .token")) hide();
    });
    main.addEventListener("click", ({ target }) => {
        const span = target.closest(".passage .token");
        if (span) show(span);
    });
    main.addEventListener("keydown", onPassageKey);
    main.addEventListener("focusout", ({ relatedTarget }) => {
        setCurrent(null);
        if (relatedTarget && !box.contains(relatedTarget)) hide();
    });
    box.addEventListener("keydown", onBoxKey);
    for (const moves of ["scroll", "resize"]) addEventListener(moves, () => anchor && place(), { passive: true });
}
