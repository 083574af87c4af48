/**
 * What the simulator must know of a format of images. A format is a file here and a line in
 * `registry.ts`; `docs/searching.md` says more.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";

/** An image that was made. */
export interface MadeImage {
  readonly sectors: number;
  /** Sectors of a block of the format, around whose boundaries a world writes. */
  readonly blockSectors: number;
}

/** What a new image is to be. */
export interface Wish {
  readonly disk: SimulatedDisk;
  readonly path: string;
  readonly random: Random;
  /** The largest size that makes sense in the world, in sectors. */
  readonly mostSectors: number;
}

/** What an image is, as far as the images on it are concerned. */
export type Container = "vhd" | "raw" | "qcow2" | "qcow";

/** A layer of a chain. */
export interface Layer {
  readonly path: string;
  readonly sectors: number;
  /** A raw image is one of which nothing else is known. */
  readonly type: Container;
  readonly encrypted: boolean;
}

/** Reads a disk as programs do that serve none. */
export interface OfflineReader {
  read(into: Uint8Array<ArrayBuffer>, sector: number): void;
  close(): void;
}

/** How an image is looked at after a power cut. */
export interface LookOptions {
  /** Whether all data is read, too. */
  readonly data: boolean;
  /** Whether data may lie where a bitmap shows none: that of writes that failed, or were lost. */
  readonly mayHaveData: boolean;
}

/** A format of images. */
export interface SimFormat {
  readonly name: string;
  /** What an image of the format is, as a parent. A QCOW2 can be on all, a VHD not on a QCOW2. */
  readonly parentAs: Container;
  /** Whether its data is encrypted, with the key of `keys.ts`. */
  readonly encrypted: boolean;
  /** Whether an image is a block device, not a file. */
  readonly onDevice: boolean;
  /** Whether an image holds all of its sectors from the start. */
  readonly fixed: boolean;
  /** The name by which a device opens an image. */
  nameOf(path: string): string;
  /** Makes an image without a parent. */
  make(wish: Wish): MadeImage;
  /** What is wrong with an image; nothing if it is in order. */
  faults(disk: SimulatedDisk, path: string, options: LookOptions): string[];
  /** Puts an image in order after a power cut, as a user would; returns what was done. */
  repair(disk: SimulatedDisk, path: string): string[];
  /** Opens an image and all below it. */
  reader(disk: SimulatedDisk, path: string): OfflineReader;
  /** The layers of the chain of an image, its own first. */
  layers(disk: SimulatedDisk, path: string): Layer[];
  /** Which sectors of a range the image itself holds. */
  held(disk: SimulatedDisk, path: string, range: { sector: number; count: number }): Set<number>;
}
