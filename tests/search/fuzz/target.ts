import type { Random } from "../../../src/testing/random.ts";
import type { SearchContext } from "../search.ts";

/** Something that hostile input is fed to. */
export interface Target {
  /** Starts what all cases of a process share. It is called before the first `run`. */
  setUp?(context: SearchContext): void | Promise<void>;
  /**
   * Runs a batch of cases: what a seed decides. A batch takes about 0.2 s, so that a seed is
   * replayed quickly and a run ends soon after its last second.
   *
   * @returns The number of cases.
   * @throws Where something is found that must not be. The message says how to see it again.
   */
  run(random: Random, context: SearchContext): number | Promise<number>;
  /** Ends what `setUp` began. It is called after a finding too. */
  tearDown?(context: SearchContext): void | Promise<void>;
}

/** A target in the list. */
export interface TargetEntry {
  /** What `--only` names. */
  readonly name: string;
  /** How often a seed chooses this target, next to the others. */
  readonly weight: number;
  /** Loads the target's code, when the first seed has chosen it. */
  load(): Promise<Target>;
}
