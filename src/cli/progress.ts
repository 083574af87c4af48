/**
 * Shows the progress of long work: a bar on standard error if that is a terminal, otherwise nothing.
 * The library that draws the bar is loaded only for a terminal.
 *
 * @module
 */

/** Shows progress. The calls cost nothing when no bar is shown. */
export interface ProgressBar {
  /** Bound to the bar: can be passed on as a function. */
  readonly update: (done: number, total: number) => void;
  /** Removes the bar. Must be called on success and on failure. */
  stop(): void;
}

/** The used part of the library's class. The library has no types. */
interface Bar {
  start(total: number, value: number, payload: { left: string }): void;
  update(value: number, payload: { left: string }): void;
  setTotal(total: number): void;
  stop(): void;
}

/** The highest rate at which a bar is drawn. */
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
 * @param label One word for the work.
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

/** The remaining time is not estimated before this. */
const LEAST_ELAPSED_MS = 500;
/** A longer remaining time is not printed. */
const MOST_SECONDS = 100 * 3600;

/**
 * The remaining time at the speed so far: `, 3m05s left`. Empty while too little is done for an
 * estimate.
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

/** Prints percentages over each other, in the format of the original vhd-util. */
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
