/**
 * The page: a story or a chat, a line to write in, and one run at a time.
 *
 *     page.js         what is pressed and what follows
 *     story.js chat.js   the two modes, on work.js (undo, keeping)
 *     passage.js alternatives.js   tokens on screen, and what could have stood in their place
 *     controls.js sampling.js      the settings, and what they do to tokens
 *     api.js tokens.js run.js      the server, its tokens, their speed
 *
 * Left out on purpose: Markdown, files, many conversations. Nothing is loaded from elsewhere.
 */

import * as alternatives from "./alternatives.js";
import { ApiError, describeModel, setKey } from "./api.js";
import { Chat } from "./chat.js";
import * as controls from "./controls.js";
import { strikeOut } from "./passage.js";
import { Run } from "./run.js";
import { load, save } from "./store.js";
import { Story } from "./story.js";

const $ = (id) => document.getElementById(id);
const WORDS = {
    story: { go: "Tell", placeholder: "How it begins", hint: "Write a beginning. The model goes on from it." },
    chat: { go: "Send", placeholder: "Say something", hint: "Ask the model something." },
};
const NO_CHAT = "This model has no chat template: it goes on with a text, but does not answer. Story mode is for it.";
const NO_KEY = "Without its key the server does nothing.";
const TOUCH = "Point at a token, or tap it, to see what else it could have been.";

const works = { story: new Story($("story")), chat: new Chat($("chat"), controls.systemPrompt) };
const drafts = load("drafts", { story: "Once upon a time", chat: "" });
let model = null; // what describeModel says, once the server has answered
let mode = load("mode", "story");
let run = null; // the one that goes on
let again = null; // what "Try again" does

// --- What is seen

/** Whether the model can do what the mode asks of it. */
const able = () => model && (mode === "story" || model.chat);

/** What is said below the text. */
function hint(work) {
    if (model && !able()) return NO_CHAT;
    if (work.isEmpty) return WORDS[mode].hint;
    return work.tokens.length ? TOUCH : "";
}

/** Shows what may be pressed now. */
function refresh() {
    const work = works[mode];
    $("go").textContent = run ? "Stop" : WORDS[mode].go;
    $("go").classList.toggle("stop", Boolean(run));
    $("go").disabled = !run && !able();
    $("go-on").disabled = Boolean(run) || !able() || work.isEmpty;
    $("undo").disabled = Boolean(run) || !work.earlier.length;
    $("clear").disabled = Boolean(run) || work.isEmpty;
    $("hint").textContent = hint(work);
    $("legend").hidden = !work.tokens.length;
    work.element.setAttribute("aria-busy", String(Boolean(run)));
}

/** Says what the settings do to what is on screen. */
function reconsider() {
    controls.explain(works[mode].tokens);
    strikeOut(works[mode].element, controls.sampling());
}

function setMode(next) {
    mode = next;
    save("mode", mode);
    for (const name of Object.keys(works)) {
        const chosen = name === mode;
        $(name).hidden = !chosen;
        $(`${name}-tab`).setAttribute("aria-selected", String(chosen));
        $(`${name}-tab`).tabIndex = chosen ? 0 : -1;
    }
    $("system-field").hidden = mode !== "chat";
    $("text").placeholder = WORDS[mode].placeholder;
    $("text").value = drafts[mode];
    $("status").textContent = "";
    alternatives.hide();
    clearError();
    fit();
    refresh();
    reconsider();
    scrollTo(0, mode === "chat" ? document.body.scrollHeight : 0);
}

/** As high as its text, up to what style.css allows. */
function fit() {
    const text = $("text");
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + text.offsetHeight - text.clientHeight}px`;
}

/** Keeps the end in sight, for a reader who is there already. */
function follow(change) {
    const page = document.documentElement;
    const atEnd = page.scrollHeight - innerHeight - page.scrollTop < 60;
    change();
    if (atEnd) page.scrollTop = page.scrollHeight;
}

// --- What goes wrong

function clearError() {
    $("error").hidden = true;
}

/** Asks for the API key, then does what the server refused. */
function askKey(message, repeat) {
    const dialog = $("key-dialog");
    $("key-why").textContent = message;
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
        if (dialog.returnValue !== "ok") return showError(new ApiError(NO_KEY), repeat);
        setKey($("key").value);
        return repeat();
    }, { once: true });
    dialog.showModal();
}

/** Says what went wrong, with a way to try again. What is no ApiError is a fault of this page. */
function showError(error, repeat) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) return askKey(error.message, repeat);
    again = repeat;
    const said = error.message.replace(/\.$/, "");
    const busy = error.status === 429 ? "The server is busy: " : "";
    const wait = error.retryAfter === null ? "" : ` It asks to wait ${error.retryAfter} s.`;
    $("error").firstElementChild.textContent = `${busy}${said}.${wait}`;
    follow(() => { $("error").hidden = false; });
    return undefined;
}

// --- What is done

/** Lets the model write on. */
async function write() {
    const work = works[mode];
    clearError();
    alternatives.hide();
    run = new Run();
    refresh();
    $("status").textContent = "Reading…";
    const start = (signal) => work.request(model.name, controls.requested(), signal);
    const receive = (tokens) => follow(() => work.receive(tokens));
    const report = (words) => { $("status").textContent = words; };
    try {
        await run.read(start, receive, report, model.context);
    } catch (error) {
        $("status").textContent = "";
        showError(error, write);
    } finally {
        run = null;
        work.keep();
        refresh();
        reconsider();
    }
}

function submit() {
    if (run) return run.stop();
    const text = $("text").value;
    if (!able() || (mode === "chat" && !text.trim())) return undefined;
    works[mode].begin(text);
    if (mode === "chat") setDraft("");
    if (mode === "chat") scrollTo(0, document.body.scrollHeight);
    return write();
}

function setDraft(text) {
    $("text").value = text;
    drafts[mode] = text;
    save("drafts", drafts);
    fit();
}

/** Undo and clear: both change the work and leave the model alone. */
function change(action) {
    alternatives.hide();
    clearError();
    works[mode][action]();
    $("status").textContent = "";
    refresh();
    reconsider();
    $("text").focus();
}

function onKey(event) {
    if (event.key === "Escape") {
        alternatives.hide();
        run?.stop();
    }
    if (event.target === $("text") && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!run) submit();
    }
    if (event.target.matches("[role=tab]") && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
        const other = $(mode === "story" ? "chat-tab" : "story-tab");
        other.click();
        if (!run) other.focus();
    }
}

/** Learns what model there is. */
async function connect() {
    try {
        model = await describeModel();
    } catch (error) {
        return showError(error, connect);
    }
    clearError();
    $("model").textContent = model.name + (model.context ? ` · ${model.context} positions` : "");
    return refresh();
}

for (const [name, work] of Object.entries(works)) {
    $(`${name}-tab`).addEventListener("click", () => run || setMode(name));
    work.addEventListener("chosen", ({ detail: goesOn }) => {
        if (goesOn) return write();
        work.keep();
        refresh();
        return reconsider();
    });
}
$("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
});
$("text").addEventListener("input", () => setDraft($("text").value));
$("go-on").addEventListener("click", () => {
    works[mode].remember();
    write();
});
$("undo").addEventListener("click", () => change("undo"));
$("clear").addEventListener("click", () => change("clear"));
$("retry").addEventListener("click", () => again());
document.addEventListener("keydown", onKey);
if (matchMedia("(width < 60rem)").matches) $("settings").open = false;
controls.listen(reconsider);
alternatives.listen(controls.sampling);
setMode(mode);
connect();
