/**
 * The HTTP API of the server: what model there is, and texts as they are being written.
 *
 * Addresses are relative to the page, so that it also works below a path of a proxy.
 */

import { ALTERNATIVES, completionTokens, messageTokens } from "./tokens.js";

const KEY = "cria.key";
const BROKEN = "The server broke off before the text ended.";

/** What went wrong, as a sentence for the reader. status 0: the server was not reached. */
export class ApiError extends Error {
    constructor(message, status = 0, retryAfter = null) {
        super(message);
        this.status = status;
        this.retryAfter = retryAfter; // seconds, or null
    }
}

/** Keeps the API key for as long as the tab is open: it is a secret, so it is not written to disk. */
export function setKey(key) {
    sessionStorage.setItem(KEY, key);
}

function headers() {
    const key = sessionStorage.getItem(KEY);
    return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** The error that a response with a status of 400 or more stands for. */
async function failure(response) {
    const body = await response.json().catch(() => null);
    const message = body?.error?.message ?? body?.detail ?? `${response.status} ${response.statusText}`;
    const seconds = parseInt(response.headers.get("Retry-After"), 10);
    return new ApiError(String(message), response.status, Number.isNaN(seconds) ? null : seconds);
}

async function request(path, options = {}) {
    let response;
    try {
        response = await fetch(path, { headers: headers(), ...options });
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The server does not answer. Is it still running?");
    }
    if (!response.ok) throw await failure(response);
    return response;
}

/** @returns {Promise<{name: string, context: number|null, chat: boolean}>} */
export async function describeModel() {
    const [models, props] = await Promise.all([
        request("v1/models").then((r) => r.json()),
        request("props").then((r) => r.json()),
    ]);
    return {
        name: models.data[0].id,
        context: props.n_ctx ?? props.default_generation_settings?.n_ctx ?? null,
        chat: Boolean(props.chat_template),
    };
}

/** What comes next of a stream. A connection that breaks is an ApiError, a stop by the reader is not. */
async function read(reader) {
    try {
        return await reader.read();
    } catch (error) {
        throw error.name === "AbortError" ? error : new ApiError(BROKEN);
    }
}

/** The data of server-sent events, parsed, until the server says [DONE]. */
async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
        const { value, done } = await read(reader);
        if (done) throw new ApiError(BROKEN);
        const lines = (rest + value).split(/\r?\n/);
        rest = lines.pop();
        for (const line of lines) {
            if (!line.startsWith("data:")) continue;
            const data = line.slice(5).trim();
            if (data === "[DONE]") return;
            yield JSON.parse(data);
        }
    }
}

/**
 * Posts a request and yields what is written.
 *
 * @returns {AsyncGenerator<{tokens: Token[], finish: string|null, usage: object|null}>}
 */
async function* stream(path, body, tokensOf, signal) {
    const options = { stream: true, stream_options: { include_usage: true } };
    const response = await request(path, {
        method: "POST",
        body: JSON.stringify({ ...body, ...options }),
        signal,
    });
    for await (const event of events(response.body)) {
        if (event.error) throw new ApiError(event.error.message, event.error.code);
        const choice = event.choices?.[0];
        yield {
            tokens: choice ? tokensOf(choice) : [],
            finish: choice?.finish_reason ?? null,
            usage: event.usage ?? null,
        };
    }
}

/** Goes on from a text. sampling: the fields of a request that say how tokens are drawn. */
export function complete(model, prompt, sampling, signal) {
    const body = { model, prompt, ...sampling, logprobs: ALTERNATIVES };
    return stream("v1/completions", body, completionTokens, signal);
}

/** Answers a conversation; an answer that comes last in it is gone on with. */
export function answer(model, messages, sampling, signal) {
    const body = { model, messages, ...sampling, logprobs: true, top_logprobs: ALTERNATIVES };
    return stream("v1/chat/completions", body, messageTokens, signal);
}
