import type { ProgressListener } from "../files/progress.ts";

/** Options of work that takes time. */
export interface WorkOptions {
  /** Called with what is done and the total, in units of the work. */
  readonly onProgress?: ProgressListener;
  /** Cancels the work, which then fails with ECANCELED. */
  readonly signal?: AbortSignal;
}
