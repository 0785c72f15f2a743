/**
 * Tokens of a text with what the model thought of them, from either form of the API.
 *
 * @typedef {object} Token
 * @property {string} text what it adds to the text: empty while it is a part of a character
 * @property {number|null} logprob natural logarithm of its probability by the model, before any sampling
 * @property {[string, number][]} top the likeliest tokens in its place and their logprob, best first
 */

export const ALTERNATIVES = 5; // asked for at each place: the most that OpenAI's completions allow

/** How a choice of /v1/completions shows its tokens. @returns {Token[]} */
export function completionTokens({ text, logprobs }) {
    const listed = (logprobs?.tokens ?? []).map((name, i) => ({
        name,
        logprob: logprobs.token_logprobs?.[i] ?? null,
        top: Object.entries(logprobs.top_logprobs?.[i] ?? {}),
    }));
    return spread(text ?? "", listed);
}

/** How a choice of /v1/chat/completions shows its tokens. @returns {Token[]} */
export function messageTokens({ delta, logprobs }) {
    const listed = (logprobs?.content ?? []).map(({ token, logprob, top_logprobs: top }) => ({
        name: token,
        logprob,
        top: (top ?? []).map((other) => [other.token, other.logprob]),
    }));
    return spread(delta?.content ?? "", listed);
}

/**
 * Gives tokens their share of the text of one event. Names and text differ where a character takes several
 * tokens: the last one then stands for all of it. Text without a token is one of unknown probability. A server may
 * list the token that was drawn behind the likeliest, which are kept alone.
 */
function spread(text, listed) {
    if (!listed.length) return text ? [{ text, logprob: null, top: [] }] : [];
    const plain = listed.map(({ name }) => name).join("") === text;
    return listed.map(({ name, logprob, top }, i) => ({
        text: plain ? name : i === listed.length - 1 ? text : "",
        logprob,
        top: top.sort((a, b) => b[1] - a[1]).slice(0, ALTERNATIVES),
    }));
}

export const textOf = (tokens) => tokens.map(({ text }) => text).join("");

/** What an alternative would do: "end" the text, add a piece of a "part" of a character, or add its "text". */
export function kindOf(name) {
    if (name === "" || /^<(\/?s|eos|\|.*\||.*_of_.*)>$/.test(name)) return "end";
    if (name.includes("\uFFFD") || /^bytes:|^<0x[0-9A-F]{2}>$/.test(name)) return "part";
    return "text";
}

/** A token's text with its spaces and line ends to be seen. */
export function spelled(text) {
    return text.replaceAll(" ", "\u2423").replaceAll("\n", "\u21B5").replaceAll("\t", "\u21E5");
}

/** A probability for people: 62 %, 0.4 %, < 0.1 %. */
export function percent(p) {
    if (p >= 0.995) return p < 0.9995 ? "> 99\u202F%" : "100\u202F%";
    if (p >= 0.01) return `${Math.round(p * 100)}\u202F%`;
    return p < 0.001 ? "< 0.1\u202F%" : `${(p * 100).toFixed(1)}\u202F%`;
}
