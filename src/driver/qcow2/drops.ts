import { assert } from "../../../ffi/assert.ts";
import type { Flights } from "./flights.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { Refcounts } from "./refcounts.ts";

/** Clusters that can wait for their references to be taken away; a power of 2. */
const MOST = 16384;
/** Room that is left for the commit that is under way. */
const KEPT = 4096;

/**
 * Clusters that no entry in memory refers to any more. A reference is taken away only when the entry
 * in the file is durable, and when all operations on the cluster that began before have ended: the
 * cluster may be given to something else right after. After a crash it has a reference too many,
 * which wastes its room and nothing else.
 */
export class Drops {
  readonly #file: Qcow2File;
  readonly #refcounts: Refcounts;
  readonly #flights: Flights;
  readonly #clusters = new Float64Array(MOST);
  /** Counts since the image was opened: how many came, are durable, have landed, are done. */
  #came = 0;
  #durable = 0;
  #landed = 0;
  #done = 0;
  #syncing = 0;
  readonly #changed: () => void;

  /** @param changed Called when reference counts may have changed. */
  constructor(
    { file, refcounts, flights, changed }: {
      file: Qcow2File;
      refcounts: Refcounts;
      flights: Flights;
      changed: () => void;
    },
  ) {
    this.#file = file;
    this.#refcounts = refcounts;
    this.#flights = flights;
    this.#changed = changed;
  }

  /** How many more can come. */
  get room(): number {
    return MOST - (this.#came - this.#done);
  }

  /** Whether there is room for others than those of commits; otherwise their clusters are lost. */
  get hasSpareRoom(): boolean {
    return this.room > KEPT;
  }

  /** Whether some wait for a sync. */
  get wantSync(): boolean {
    return this.#came > this.#durable;
  }

  /** Whether none is left. */
  get isIdle(): boolean {
    return this.#came === this.#done;
  }

  /** The entry that referred to a cluster has been overwritten in the file. */
  add(cluster: number): void {
    assert(this.room > 0, "Too many clusters wait for their references to be taken away");
    this.#clusters[this.#came++ & (MOST - 1)] = cluster;
  }

  /** A sync starts. */
  syncStarts(): void {
    this.#syncing = this.#came;
  }

  /** The sync ended well. */
  synced(): void {
    this.#durable = Math.max(this.#durable, this.#syncing);
  }

  /** Takes references away, as far as that can be done now. */
  run(): void {
    if (this.#durable > this.#landed && !this.#flights.isTurning) {
      const target = this.#durable;
      this.#flights.turnOver(() => {
        this.#landed = target;
        this.#changed();
      });
    }
    let start = -1;
    let end = -1;
    while (this.#done < this.#landed) {
      const cluster = this.#clusters[this.#done & (MOST - 1)];
      const left = this.#refcounts.drop(cluster);
      if (left === -1) break;
      this.#done++;
      if (left !== 0) continue;
      if (cluster !== end) {
        this.#punch(start, end);
        start = cluster;
      }
      end = cluster + 1;
    }
    this.#punch(start, end);
  }

  /** The next reference cannot be read: its cluster keeps it. */
  giveUpNext(): void {
    if (this.#done < this.#landed) this.#done++;
  }

  #punch(start: number, end: number): void {
    if (start >= 0) this.#file.punch(start, end - start);
  }
}
