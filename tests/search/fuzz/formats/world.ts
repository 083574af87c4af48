import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { Simulation, stampedSectors } from "../../../support/sim.ts";
import { getFile } from "../../../support/vhd.ts";

/** Sectors of the disks of all images. */
export const DISK_SECTORS = 2048;
export const DISK_BYTES = DISK_SECTORS * 512;

/** A number in an image. */
export interface Field {
  readonly name: string;
  readonly at: number;
  readonly width: 1 | 2 | 4 | 8;
  /** Whether the lower byte comes first. */
  readonly isLittle: boolean;
}

/** A structure with a checksum over all of it, at its byte 4. */
export interface Sealed {
  readonly at: number;
  readonly lengthBytes: number;
}

/** A good image, and what in it can be made hostile. */
export interface World {
  readonly name: string;
  /** By what name a device opens it. */
  readonly image: string;
  readonly path: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Files that it needs: its parent, its data file. */
  readonly others: ReadonlyMap<string, Uint8Array<ArrayBuffer>>;
  readonly fields: readonly Field[];
  /** Lengths to which the file is cut; also one more and one less. */
  readonly cuts: readonly number[];
  readonly sealed: readonly Sealed[];
  readonly canWrite: boolean;
  /** Whether clusters are compressed: a check does not decompress them. */
  readonly isCompressed: boolean;
  /** Looks for faults that endanger data; returns the first one, or null. Refuses like the driver. */
  check(disk: SimulatedDisk): string | null;
  /** Mends it. */
  repair?(disk: SimulatedDisk): void;
  /** Opens a reader that shares nothing with the driver; null where there is none. */
  reader?(disk: SimulatedDisk): Reader;
}

/** Reads sectors of a disk from the tables of its image. */
export interface Reader {
  read(into: Uint8Array<ArrayBuffer>, sector: number): void;
  close(): void;
}

/** Numbers one after the other. */
export function numbers(
  name: string,
  at: number,
  count: number,
  width: 1 | 2 | 4 | 8,
  isLittle = false,
): Field[] {
  return Array.from({ length: count }, (_, i) => ({
    name: count === 1 ? name : `${name}[${i}]`,
    at: at + i * width,
    width,
    isLittle,
  }));
}

/** What a driver's disk has written, as the bytes of its file. */
export function written(
  image: string,
  path: string,
  make: (disk: SimulatedDisk) => void,
): Uint8Array<ArrayBuffer> {
  const simulation = new Simulation({ seed: 1 });
  make(simulation.disk);
  const device = simulation.open(image);
  for (const [sector, count] of [[0, 40], [100, 1], [900, 300], [DISK_SECTORS - 3, 3]]) {
    device.write(sector, stampedSectors(sector, count, 5));
    device.settle();
  }
  device.zero(1000, 128);
  device.settle();
  device.close();
  const bytes = getFile(simulation.disk, path);
  simulation.close();
  return bytes;
}

/** The number at a field. */
export function valueOf(bytes: Uint8Array<ArrayBuffer>, { at, width, isLittle }: Field): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (width === 8) return view.getBigUint64(at, isLittle);
  if (width === 4) return BigInt(view.getUint32(at, isLittle));
  return BigInt(width === 2 ? view.getUint16(at, isLittle) : view.getUint8(at));
}

/** Sets the number at a field, cut to its width. */
export function setValue(
  bytes: Uint8Array<ArrayBuffer>,
  { at, width, isLittle }: Field,
  value: bigint,
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const cut = BigInt.asUintN(8 * width, value);
  if (width === 8) view.setBigUint64(at, cut, isLittle);
  else if (width === 4) view.setUint32(at, Number(cut), isLittle);
  else if (width === 2) view.setUint16(at, Number(cut), isLittle);
  else view.setUint8(at, Number(cut));
}
