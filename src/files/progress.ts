/**
 * Called as long work goes on.
 *
 * @param done Units of work that are done.
 * @param total How many there are.
 */
export type ProgressListener = (done: number, total: number) => void;
