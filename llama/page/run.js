/** One text being written: its speed, its end, and how it is stopped. */

const FRAME = 30; // milliseconds
const ENDS = { stop: "the model ended it", length: "the length was reached", stopped: "stopped" };

/** What a run has measured so far. Times are in milliseconds of performance.now(). */
class Speed {
    constructor() {
        this.sent = performance.now();
        this.count = 0;
    }

    add(n) {
        this.last = performance.now();
        this.first ??= this.last;
        this.firstCount ??= n;
        this.count += n;
    }

    /** "120 tokens · 310 tokens/s · first after 12 ms"; the first event came with no time between its tokens. */
    get words() {
        if (!this.count) return "";
        const words = [`${this.count} token${this.count === 1 ? "" : "s"}`];
        const between = this.count - this.firstCount;
        if (between && this.last > this.first) {
            const rate = (1000 * between) / (this.last - this.first);
            words.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
        }
        words.push(`first after ${Math.round(this.first - this.sent)} ms`);
        return words.join(" · ");
    }
}

/**
 * Hands on what comes in a frame's time at once: a server may be faster than a browser lays out lines, and a page
 * that does nothing else could not be stopped.
 */
class Frames {
    #tokens = [];
    #timer = 0;

    constructor(show) {
        this.show = show;
    }

    add(tokens) {
        this.#tokens.push(...tokens);
        this.#timer ||= setTimeout(() => this.flush(), FRAME);
    }

    flush() {
        clearTimeout(this.#timer);
        this.#timer = 0;
        if (this.#tokens.length) this.show(this.#tokens);
        this.#tokens = [];
    }
}

/** How full the model's context is: "132 of 512 positions". */
function positions(usage, context) {
    return usage && context ? `${usage.total_tokens} of ${context} positions` : "";
}

export class Run {
    #controller = new AbortController();

    stop() {
        this.#controller.abort();
    }

    /**
     * Reads a stream to its end.
     *
     * @param {(signal: AbortSignal) => AsyncGenerator} start sends the request
     * @param {(tokens: Token[]) => void} receive takes what is written
     * @param {(words: string) => void} report takes how fast it goes
     * @param {number|null} context positions of the model
     * @throws {ApiError} but not for being stopped
     */
    async read(start, receive, report, context) {
        const speed = new Speed();
        const frames = new Frames((tokens) => {
            receive(tokens);
            report(speed.words);
        });
        let finish = null;
        let usage = null;
        try {
            for await (const event of start(this.#controller.signal)) {
                finish = event.finish ?? finish;
                usage = event.usage ?? usage;
                if (!event.tokens.length) continue;
                speed.add(event.tokens.length);
                frames.add(event.tokens);
            }
        } catch (error) {
            if (error.name !== "AbortError") throw error;
            finish = "stopped";
        } finally {
            frames.flush();
        }
        report([speed.words, ENDS[finish] ?? finish, positions(usage, context)].filter(Boolean).join(" · "));
    }
}
