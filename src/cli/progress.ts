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
  start(total: number, value: number, payload: { left: string }): void;
  update(value: number, payload: { left: string }): void;
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
    format: `${label} [{bar}] {percentage}%  {duration_formatted}{left}`,
    barCompleteChar: "#",
    barIncompleteChar: ".",
    clearOnComplete: true,
    fps: REDRAWS_PER_SECOND,
    hideCursor: null,
    stopOnComplete: false,
  });
  bar.start(1, 0, { left: "" });
  const betweenMs = 1000 / REDRAWS_PER_SECOND;
  const startedMs = performance.now();
  let drawnMs = 0;
  return {
    update(done: number, total: number): void {
      const nowMs = performance.now();
      if (nowMs < drawnMs + betweenMs && done < total) return;
      drawnMs = nowMs;
      bar.setTotal(total);
      bar.update(done, { left: timeLeft(done, total, nowMs - startedMs) });
    },
    stop: () => bar.stop(),
  };
}

/** Before this nothing can be said of the time that is left. */
const LEAST_ELAPSED_MS = 500;
/** What is further away is not told. */
const MOST_SECONDS = 100 * 3600;

/**
 * How long the rest of the work takes if it goes on as it went: `, 3m05s left`; empty while too little
 * is done to tell.
 */
export function timeLeft(done: number, total: number, elapsedMs: number): string {
  if (done <= 0 || elapsedMs < LEAST_ELAPSED_MS) return "";
  const seconds = Math.ceil((elapsedMs * Math.max(0, total - done)) / done / 1000);
  return seconds <= MOST_SECONDS ? `, ${formatSeconds(seconds)} left` : "";
}

function formatSeconds(seconds: number): string {
  const two = (value: number): string => String(value).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  if (minutes === 0) return `${seconds}s`;
  if (minutes < 60) return `${minutes}m${two(seconds % 60)}s`;
  return `${Math.floor(minutes / 60)}h${two(minutes % 60)}m`;
}

/** Prints percentages over each other, as vhd-util has always done it. */
export function percentProgress(print: (text: string) => void): ProgressBar {
  let last = "";
  return {
    update(done: number, total: number): void {
      const text = `\r${(total === 0 ? 100 : (done / total) * 100).toFixed(2).padStart(6)}%`;
      if (text !== last) print(done === total ? `${text}\n` : text);
      last = text;
    },
    stop: () => {},
  };
}
