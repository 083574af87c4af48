import type { HostSample } from "../../observe/sample.ts";
import { keysIn } from "./keys.ts";
import type { Screen } from "./screen.ts";
import { pressed, type Samples, screenLines, type View } from "./view.ts";

/** What the table is made of. */
export interface LiveOptions {
  readonly intervalMs: number;
  readonly view: View;
  readonly gather: () => Promise<HostSample>;
}

/** Signals that end the table, and the exit status after each: Ctrl-C is how it ends in order. */
const ENDS: readonly (readonly [signal: Deno.Signal, status: number])[] = [
  ["SIGINT", 0],
  ["SIGTERM", 143],
  ["SIGHUP", 129],
];

/** The table on a terminal, from the first sample until it ends. */
class Live {
  readonly #screen: Screen;
  readonly #options: LiveOptions;
  readonly #end = Promise.withResolvers<number>();
  #view: View;
  #samples: Samples | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(screen: Screen, options: LiveOptions) {
    this.#screen = screen;
    this.#options = options;
    this.#view = options.view;
  }

  /** Resolves with the exit status, when the terminal is as it was before. */
  async run(): Promise<number> {
    const listeners = this.#listeners();
    for (const [signal, listener] of listeners) Deno.addSignalListener(signal, listener);
    const reader = Deno.stdin.isTerminal() ? Deno.stdin.readable.getReader() : null;
    try {
      this.#screen.enter();
      this.#sample();
      if (reader !== null) this.#read(reader);
      return await this.#end.promise;
    } finally {
      clearTimeout(this.#timer);
      this.#screen.leave();
      reader?.cancel().catch(() => {});
      for (const [signal, listener] of listeners) Deno.removeSignalListener(signal, listener);
    }
  }

  #listeners(): [signal: Deno.Signal, listener: () => void][] {
    const ends = ENDS.map(([signal, status]): [Deno.Signal, () => void] => [
      signal,
      () => this.#end.resolve(status),
    ]);
    const draw = (): void => this.#attempt(() => this.#draw());
    const stop = (): void => {
      this.#screen.leave();
      Deno.kill(Deno.pid, "SIGSTOP");
    };
    const goOn = (): void =>
      this.#attempt(() => {
        this.#screen.enter();
        this.#draw();
      });
    return [...ends, ["SIGWINCH", draw], ["SIGTSTP", stop], ["SIGCONT", goOn]];
  }

  /** What fails ends the table; the error is reported when the terminal is as it was. */
  #attempt(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#end.reject(error);
    }
  }

  #sample(): void {
    const startMs = performance.now();
    this.#options.gather().then((now) => {
      this.#samples = { before: this.#samples?.now ?? null, now };
      this.#draw();
      // The first rates come soon.
      const periodMs = this.#samples.before === null
        ? Math.min(500, this.#options.intervalMs)
        : this.#options.intervalMs;
      const leftMs = Math.max(0, startMs + periodMs - performance.now());
      this.#timer = setTimeout(() => this.#sample(), leftMs);
    }).catch((error) => this.#end.reject(error));
  }

  #read(reader: ReadableStreamDefaultReader<Uint8Array>): void {
    const decoder = new TextDecoder();
    const next = async (): Promise<void> => {
      for (;;) {
        const { done, value } = await reader.read();
        // The terminal has gone. A signal mostly comes first.
        if (done) return this.#end.resolve(129);
        for (const key of keysIn(decoder.decode(value, { stream: true }))) this.#press(key);
      }
    };
    next().catch((error) => this.#end.reject(error));
  }

  #press(key: string): void {
    if (this.#samples === null) {
      if (key === "q") this.#end.resolve(0);
      return;
    }
    const view = pressed(this.#view, key, this.#samples, this.#screen.size);
    if (view === null) return this.#end.resolve(0);
    this.#view = view;
    this.#attempt(() => this.#draw());
  }

  #draw(): void {
    if (this.#samples === null) return;
    this.#screen.draw(screenLines(this.#view, this.#samples, this.#screen.size));
  }
}

/** Shows the table on a terminal until a key or a signal ends it; returns the exit status. */
export function runLive(screen: Screen, options: LiveOptions): Promise<number> {
  return new Live(screen, options).run();
}
