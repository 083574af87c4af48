/** Told how far a long piece of work has come. */
export type ProgressListener = (done: number, total: number) => void;
