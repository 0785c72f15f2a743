/** The settings: what is sent with a request, what each control says it does, and keeping them. */

import { SENTENCES } from "./sampling.js";
import { load, save } from "./store.js";

const OFF = { top_p: 1, top_k: 0, min_p: 0 };
const form = document.getElementById("controls");
const inputs = [...form.querySelectorAll("input, textarea")];

/** The numbers that decide which token is drawn. */
export function sampling() {
    return Object.fromEntries(Object.keys(SENTENCES).map((id) => [id, form.elements[id].valueAsNumber]));
}

/** The fields of a request. */
export function requested() {
    const seed = form.elements.seed.valueAsNumber;
    const length = form.elements.max_tokens.valueAsNumber;
    return { ...sampling(), max_tokens: length || 200, ...(Number.isInteger(seed) && { seed }) };
}

export const systemPrompt = () => form.elements.system.value.trim();

/** Says beside each control what it does to the tokens on screen. */
export function explain(tokens) {
    const settings = sampling();
    const known = tokens.filter(({ top, logprob }) => top.length && logprob !== null);
    for (const [id, sentence] of Object.entries(SENTENCES)) {
        const value = settings[id];
        form.querySelector(`output[for=${id}]`).value = value === OFF[id] ? "off" : String(value);
        document.getElementById(`${id}-says`).textContent = sentence(settings, known);
    }
}

/** Puts the kept settings in, and tells of each change. */
export function listen(onChange) {
    const kept = load("settings", {});
    for (const input of inputs) {
        if (kept[input.id] !== undefined) input.value = kept[input.id];
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
        save("settings", Object.fromEntries(inputs.map((input) => [input.id, input.value])));
        onChange();
    });
}
