/**
 * What temperature, top-k, top-p and min-p do to the likeliest tokens, by the rules of the engine: temperature
 * first, then the cuts, each of what the one before left.
 *
 * The server names the five likeliest tokens of each place. Their ratios are exact; what all others weigh after a
 * temperature is a bound, as each of them is at most as likely as the fifth.
 */

import { ALTERNATIVES } from "./tokens.js";

/** What all tokens that are not listed weigh, on a scale where the listed ones are p ** (1 / temperature). */
function weightOfOthers(top, temperature) {
    const rest = Math.max(0, 1 - top.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0));
    return rest * Math.exp(top.at(-1)[1] * (1 / temperature - 1));
}

/**
 * The listed tokens as the sampler sees them.
 *
 * @param {[string, number][]} top names and logprobs, best first
 * @returns {{p: number, cut: string|null}[]} probability of being drawn, and the control that leaves it out
 */
export function drawn(top, { temperature, top_p: topP, top_k: topK, min_p: minP }) {
    if (temperature === 0) return top.map((_, i) => ({ p: i ? 0 : 1, cut: i ? "temperature" : null }));
    const weights = top.map(([, logprob]) => Math.exp(logprob / temperature));
    const others = weightOfOthers(top, temperature);
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    const all = topK > 0 && topK <= top.length ? sum(weights.slice(0, topK)) : sum(weights) + others;
    let before = 0;
    const cuts = weights.map((weight, rank) => {
        const reached = before;
        before += weight;
        if (topK > 0 && rank >= topK) return "top_k";
        if (topP > 0 && topP < 1 && reached > topP * all) return "top_p";
        return weight < minP * weights[0] ? "min_p" : null;
    });
    const kept = sum(weights.filter((_, i) => !cuts[i])) + (cuts.some(Boolean) ? 0 : others);
    return weights.map((weight, i) => ({ p: cuts[i] ? 0 : weight / kept, cut: cuts[i] }));
}

/** The control that keeps a token from being drawn in its place, or null. @param {Token} token */
export function cutBy(token, settings) {
    if (!token.top.length) return null;
    const rank = token.top.findIndex(([, logprob]) => logprob <= token.logprob);
    const seen = drawn(token.top, settings);
    if (rank >= 0) return seen[rank].cut;
    const last = seen.at(-1).cut; // it is less likely than all that are listed
    if (last) return last;
    if (settings.top_k > 0 && settings.top_k <= token.top.length) return "top_k";
    const ratio = Math.exp((token.logprob - token.top[0][1]) / settings.temperature);
    return ratio < settings.min_p ? "min_p" : null;
}

const share = (count, of) => `${count} of the ${of} tokens on screen`;

/** What each control does, in a sentence or two, on tokens where there are any. */
export const SENTENCES = {
    temperature(settings, tokens) {
        const t = settings.temperature;
        if (t === 0) {
            const rare = tokens.filter((token) => token.logprob < token.top[0][1]).length;
            const here = tokens.length ? ` ${share(rare, tokens.length)} were not it.` : "";
            return `Always the likeliest token, so the same text every time.${here}`;
        }
        if (t === 1) return "The model's own odds, as they are.";
        const effect =
            t < 1 ? "Sharpens the odds: likely tokens win more often." : "Flattens the odds: rare tokens get a chance.";
        if (!tokens.length) return effect;
        const mean = (temperature) => {
            const plain = { temperature, top_p: 1, top_k: 0, min_p: 0 };
            return percentOf(tokens.map(({ top }) => drawn(top, plain)[0].p));
        };
        return `${effect} The first choice has ${mean(t)} here on average instead of ${mean(1)}.`;
    },
    top_p(settings, tokens) {
        const p = settings.top_p;
        if (p <= 0 || p >= 1) return "Off. Lower it to leave out the long tail of unlikely tokens.";
        const alone = tokens.filter(({ top }) => drawn(top, { ...settings, top_k: 0, min_p: 0 })[1]?.cut).length;
        const here = tokens.length ? ` At ${share(alone, tokens.length)} a single one does.` : "";
        return `Draws from the fewest tokens that together reach ${Math.round(p * 100)}\u202F%.${here}`;
    },
    top_k(settings, tokens) {
        const k = settings.top_k;
        if (!k) return "Off. Set it to draw from that many of the likeliest tokens.";
        const all = `Draws from the ${k} likeliest tokens, however close the next one is.`;
        const effect = k === 1 ? "Only the likeliest token is left." : all;
        if (!tokens.length) return effect;
        const known = Math.min(k, ALTERNATIVES);
        const lower = tokens.filter(({ top, logprob }) => top.filter((other) => other[1] > logprob).length >= known);
        const first = known === 1 ? "the first" : `the first ${known}`;
        return `${effect} ${share(lower.length, tokens.length)} ranked below ${first}.`;
    },
    min_p(settings, tokens) {
        const p = settings.min_p;
        if (!p) return "Off. Raise it to leave out what is far less likely than the best.";
        const only = { ...settings, top_p: 1, top_k: 0 };
        const below = tokens.filter((token) => cutBy(token, only)).length;
        const here = tokens.length ? ` That is so for ${share(below, tokens.length)}.` : "";
        return `Leaves out tokens less than ${Math.round(p * 100)}\u202F% as likely as the best in their place.${here}`;
    },
};

function percentOf(values) {
    return `${Math.round((100 * values.reduce((a, b) => a + b, 0)) / values.length)}\u202F%`;
}
