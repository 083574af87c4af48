import type { DeviceAddress } from "../control/client/client.ts";
import type { LayerDescription } from "../pictures/descriptions.ts";

/** What a process of its own does for the page, since it may wait for a disk or a server. */
export type Work =
  | { readonly kind: "chain"; readonly image: string }
  | {
    readonly kind: "map";
    readonly image: string;
    readonly startBytes: number;
    /** Null for all that is behind `startBytes`. */
    readonly lengthBytes: number | null;
  }
  | { readonly kind: "scan"; readonly folders: readonly string[] }
  | ({
    readonly kind: "snapshot";
    readonly path: string;
    readonly rename: boolean;
    readonly timeoutSeconds: number;
  } & DeviceAddress);

/** A chain, as far as its files say. */
export interface ChainFacts {
  /** The topmost image first. */
  readonly layers: readonly LayerDescription[];
  /** Why the chain cannot be opened; null when it can. */
  readonly problem: string | null;
}

/** Which image holds what in a part of a disk: `Buckets` of `src/pictures`, as JSON can have it. */
export interface MapFacts {
  readonly sizeBytes: number;
  readonly layers: readonly string[];
  readonly startBytes: number;
  readonly endBytes: number;
  readonly bucketBytes: number;
  readonly count: number;
  readonly heldBytes: readonly number[];
  readonly totals: readonly number[];
}

/** An image file that was found. */
export interface FoundImage {
  /** `vhd:/srv/disk.vhd`. */
  readonly name: string;
  /** Where the file is, without links; null when it cannot be read. */
  readonly realPath: string | null;
  /** Length of the file, and the room that it takes. */
  readonly fileBytes: number | null;
  readonly roomBytes: number | null;
  /** What its header says, for people; empty for raw images. */
  readonly facts: string;
  /** Why it cannot be read; null when it can. */
  readonly problem: string | null;
}

/** What was found in folders. */
export interface ScanFacts {
  readonly images: readonly FoundImage[];
  /** Folders that could not be read, and why. */
  readonly problems: readonly string[];
  /** Whether there is more than was looked at. */
  readonly isCut: boolean;
}

/** A snapshot that was made. */
export interface SnapshotFacts {
  readonly image: string;
  readonly parent: string;
  readonly stallMs: number;
}
