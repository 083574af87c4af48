/**
 * Called with the progress of a long operation.
 *
 * @param done The number of units that are done.
 * @param total The total number of units.
 */
export type ProgressListener = (done: number, total: number) => void;
