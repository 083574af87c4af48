/**
 * How far a long piece of work has come: a bar on standard error where that is a terminal, nothing
 * where it is not. The library that draws it is loaded only for a terminal.
 *
 * @module
 */

/** Shows progress; the calls cost nothing when there is nothing to show. */
export interface ProgressBar {
  /** Bound, so that it can be handed on as it is. */
  readonly update: (done: number, total: number) => void;
  /** Takes the bar off the screen; call it however the work ended. */
  stop(): void;
}

/** The part of the library's class that is used; it comes without types. */
interface Bar {
  start(total: number, value: number): void;
  update(value: number): void;
  setTotal(total: number): void;
  stop(): void;
}

/** How often a bar is drawn anew at most. */
const REDRAWS_PER_SECOND = 10;

const nothing: ProgressBar = { update: () => {}, stop: () => {} };

/**
 * Opens a progress bar.
 *
 * ```ts
 * import { openProgress } from "./progress.ts";
 *
 * const progress = await openProgress("fill");
 * progress.update(1, 2);
 * progress.stop();
 * ```
 *
 * @param label What is being done, in a word.
 */
export async function openProgress(label: string): Promise<ProgressBar> {
  if (!Deno.stderr.isTerminal()) return nothing;
  const { default: { SingleBar } } = await import("cli-progress");
  const bar: Bar = new SingleBar({
    format: `${label} [{bar}] {percentage}%  {duration_formatted}, {eta_formatted} left`,
    barCompleteChar: "#",
    barIncompleteChar: ".",
    clearOnComplete: true,
    fps: REDRAWS_PER_SECOND,
    hideCursor: null,
    stopOnComplete: false,
  });
  bar.start(1, 0);
  const betweenMs = 1000 / REDRAWS_PER_SECOND;
  let drawnMs = 0;
  return {
    update(done: number, total: number): void {
      const nowMs = performance.now();
      if (nowMs < drawnMs + betweenMs && done < total) return;
      drawnMs = nowMs;
      bar.setTotal(total);
      bar.update(done);
    },
    stop: () => bar.stop(),
  };
}

/** Prints percentages over each other, as vhd-util has always done it. */
export function percentProgress(print: (text: string) => void): ProgressBar {
  let last = "";
  return {
    update(done: number, total: number): void {
      const text = `\r${((done / total) * 100).toFixed(2).padStart(6)}%`;
      if (text !== last) print(done === total ? `${text}\n` : text);
      last = text;
    },
    stop: () => {},
  };
}
