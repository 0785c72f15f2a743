/** What outlives a reload: settings, the story and the chat, in the browser's localStorage. */

const PREFIX = "cria.";

/** The value kept under a name, or the fallback where there is none or it can't be read. */
export function load(name, fallback) {
    try {
        return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback;
    } catch {
        return fallback;
    }
}

/** Keeps a value. Where storage is full or forbidden the page works on and forgets. */
export function save(name, value) {
    try {
        localStorage.setItem(PREFIX + name, JSON.stringify(value));
    } catch {
        localStorage.removeItem(PREFIX + name);
    }
}
