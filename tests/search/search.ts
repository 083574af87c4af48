/**
 * What the searches of this folder have in common. A search runs cases from seeds; a seed decides
 * everything that a case does. `run.ts` runs a search in several processes.
 *
 * @module
 */

/** What a search may use beside its seed. */
export interface SearchContext {
  /** Whether one seed is replayed, with a trace that a person reads. */
  readonly tracing: boolean;
  /** A part of the search that `--only` names; null for all. */
  readonly only: string | null;
  /** A folder for files; it is removed at the end. */
  readonly folder: string;
  /** Writes a line of the trace; without `tracing`, does nothing. */
  trace(line: string): void;
  /** Counts something that the report names. */
  count(what: string, increment?: number): void;
}

/** A search through a space of cases. */
export interface Search {
  /** What is counted: `cuts`, `cases`. */
  readonly unit: string;
  /** The most seconds that one seed may take. */
  readonly secondsPerSeed: number;
  /** The most memory that a process of the search may have resident, in bytes. */
  readonly residentBytes: number;
  /** Prepares a process: starts servers, builds images. */
  setUp?(context: SearchContext): void | Promise<void>;
  /**
   * Runs the cases of one seed.
   *
   * @returns The number of units searched.
   * @throws Where something is found that must not be.
   */
  run(seed: number, context: SearchContext): number | Promise<number>;
  /** Ends what `setUp` began, also after a finding. */
  tearDown?(context: SearchContext): void | Promise<void>;
}
