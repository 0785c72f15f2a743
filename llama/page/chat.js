/** Chat mode: messages of the reader and answers of the model, each answer as tokens. */

import { answer } from "./api.js";
import { appendTokens, createPassage } from "./passage.js";
import { kindOf, textOf } from "./tokens.js";
import { Work, replaced } from "./work.js";

const asMessage = ({ role, content, tokens }) => ({ role, content: tokens ? textOf(tokens) : content });

export class Chat extends Work {
    /** state: [{role: "user", content: string} or {role: "assistant", tokens: Token[]}]. system: its prompt, now. */
    constructor(element, system) {
        super("chat", element, []);
        this.system = system;
        this.render();
    }

    get isEmpty() {
        return !this.state.length;
    }

    /** All that is on screen with a probability. */
    get tokens() {
        return this.state.flatMap(({ tokens }) => tokens ?? []);
    }

    begin(text) {
        this.remember();
        if (this.state.at(-1)?.role === "user") this.state.pop(); // it was never answered
        this.state.push({ role: "user", content: text });
        this.render();
    }

    /** The stream of what comes next: an answer, or more of the last one. */
    request(model, sampling, signal) {
        const system = this.system();
        const messages = [...(system ? [{ role: "system", content: system }] : []), ...this.state.map(asMessage)];
        return answer(model, messages, sampling, signal);
    }

    receive(tokens) {
        if (this.state.at(-1).role === "user") this.#show(this.#add({ role: "assistant", tokens: [] }));
        const { tokens: there } = this.state.at(-1);
        appendTokens(this.element.lastElementChild.querySelector(".passage"), tokens, there.length);
        there.push(...tokens);
    }

    /** Puts an alternative in its place and drops what followed. Returns whether the answer goes on from there. */
    choose(choice, passage) {
        const at = [...this.element.children].indexOf(passage.closest(".message"));
        const ends = kindOf(choice.name) === "end";
        this.state = this.state.slice(0, at + 1);
        this.state[at].tokens = replaced(this.state[at].tokens, choice, ends);
        return !ends;
    }

    #add(message) {
        this.state.push(message);
        return message;
    }

    #show({ role, content, tokens }) {
        const article = document.createElement("article");
        article.className = `message ${role}`;
        if (tokens) {
            const passage = createPassage("The answer");
            appendTokens(passage, tokens, 0);
            article.append(passage);
        } else {
            article.textContent = content;
        }
        this.element.append(article);
    }

    render() {
        this.element.replaceChildren();
        this.state.forEach((message) => this.#show(message));
    }
}
