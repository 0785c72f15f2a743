/** Story mode: a beginning, and what the model makes of it. */

import { complete } from "./api.js";
import { appendTokens, createPassage } from "./passage.js";
import { kindOf, textOf } from "./tokens.js";
import { Work, replaced } from "./work.js";

export class Story extends Work {
    /** state: {prompt: string, tokens: Token[]} */
    constructor(element) {
        super("story", element, { prompt: "", tokens: [] });
        this.render();
    }

    get isEmpty() {
        return !this.state.prompt && !this.state.tokens.length;
    }

    /** All that is on screen with a probability. */
    get tokens() {
        return this.state.tokens;
    }

    begin(text) {
        this.remember();
        this.state = { prompt: text, tokens: [] };
        this.render();
    }

    /** The stream of what comes next. */
    request(model, sampling, signal) {
        return complete(model, this.state.prompt + textOf(this.state.tokens), sampling, signal);
    }

    receive(tokens) {
        appendTokens(this.passage, tokens, this.state.tokens.length);
        this.state.tokens.push(...tokens);
    }

    /** Puts an alternative in its place. Returns whether the text goes on from there. */
    choose(choice) {
        const ends = kindOf(choice.name) === "end";
        this.state.tokens = replaced(this.state.tokens, choice, ends);
        return !ends;
    }

    render() {
        this.passage = createPassage("The story");
        const given = document.createElement("span");
        given.className = "given";
        given.textContent = this.state.prompt;
        this.passage.append(given);
        appendTokens(this.passage, this.state.tokens, 0);
        this.element.replaceChildren(...(this.isEmpty ? [] : [this.passage]));
    }
}
