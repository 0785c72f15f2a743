/**
 * What the reader works on: a story or a chat. Both are written to by a run, gone back to by undo, and kept over a
 * reload; story.js and chat.js say how they look and what is asked of the server.
 */

import { load, save } from "./store.js";

const UNDOS = 20;

export class Work extends EventTarget {
    /** name: what it is kept as. element: where it is shown. empty: its state before anything is written. */
    constructor(name, element, empty) {
        super();
        this.name = name;
        this.element = element;
        this.empty = empty;
        this.state = load(name, structuredClone(empty));
        this.earlier = [];
        element.addEventListener("choose", ({ detail, target }) => {
            this.remember();
            const goesOn = this.choose(detail, target);
            this.render();
            this.dispatchEvent(new CustomEvent("chosen", { detail: goesOn }));
        });
    }

    /** A state to come back to. */
    remember() {
        this.earlier = [...this.earlier.slice(1 - UNDOS), structuredClone(this.state)];
    }

    undo() {
        this.state = this.earlier.pop();
        this.keep();
        this.render();
    }

    clear() {
        this.remember();
        this.state = structuredClone(this.empty);
        this.keep();
        this.render();
    }

    keep() {
        save(this.name, this.state);
    }
}

/** Tokens with the one at index replaced, what followed gone, and whether there is anything left to write. */
export function replaced(tokens, { index, name, token }, ends) {
    const kept = tokens.slice(0, index);
    if (ends) return kept;
    const logprob = token.top.find(([other]) => other === name)[1];
    return [...kept, { text: name, logprob, top: token.top }];
}
