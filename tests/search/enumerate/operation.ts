/**
 * What the enumeration knows of an operation: a row of the tables in `operations/`. The engine in
 * `enumerate.ts` finds everything else by a run without faults: the calls that the operation makes,
 * the contents of all images before and after each of its stages.
 *
 * To add an operation, of a new format too, add a row: how the images are made (`make`), which
 * images there are (`images`), and what is done (`run`). What a row does not say has a default that
 * asks for most.
 *
 * @module
 */
import type { SimulatedDisk } from "../../../src/testing/simulated_disk.ts";

/** How an operation tells the engine how far it is. */
export interface Stages {
  /** A stage has ended: a process that dies from here on has done it. */
  ended(): void;
  /** All stages that have ended are on stable storage. */
  flushed(): void;
}

/** One operation on images. */
export interface Operation {
  readonly name: string;
  /** Makes the images. They are durable when the operation starts. */
  readonly make: (disk: SimulatedDisk) => void;
  /** Damages the images, whose contents must come back. */
  readonly damage?: (disk: SimulatedDisk) => void;
  /**
   * The operation. An operation of one stage ends with the call, and is durable then; others say
   * when each of their stages has ended, and when those are durable.
   */
  readonly run: (disk: SimulatedDisk, stages: Stages) => unknown;
  /** The operation once more, after it has ended in part; by default the same; null: not at all. */
  readonly again?: ((disk: SimulatedDisk, stages: Stages) => unknown) | null;
  /** The images that exist before and after, the parents first. */
  readonly images: readonly string[];
  /** An image that exists, whole, once the operation has ended; before that, perhaps. */
  readonly made?: string;
  /** The journal of the operation, and the image that it belongs to. */
  readonly journal?: { readonly path: string; readonly image: string };
  /**
   * What `repair` may have to do after a power cut, beyond a footer that is missing: lines of its
   * output. Without it, `check` finds no error but a missing footer.
   */
  readonly repairs?: RegExp;
  /** Whether a sector is discarded: it may show any of its versions at any time. */
  readonly isDiscarded?: (sector: number) => boolean;
  /** Errors that the operation answers in its own way, which a test of its own covers. */
  readonly leavesOut?: readonly number[];
  /** Throws unless the change of the operation is present. Called once it has ended. */
  readonly verify?: (disk: SimulatedDisk) => void;
  /** Reads the contents of an image for the comparison; by default, its chain through `readRange`. */
  readonly contents?: (disk: SimulatedDisk, path: string) => Uint8Array;
}
