/**
 * QCOW images of version 1, of all sizes of clusters and tables. Nothing else is put on them.
 *
 * @module
 */
import { checkQcow } from "../../../../src/qcow/check.ts";
import { clusterSector, encodeHeader, l1Entries } from "../../../../src/qcow/format.ts";
import { openQcow, type QcowImage } from "../../../../src/qcow/image.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { putFile, syncFile } from "../../../support/vhd.ts";
import { SECTOR_BYTES } from "../stamps.ts";
import type { MadeImage, OfflineReader, SimFormat, Wish } from "./format.ts";

const MOST_SECTORS = 65536;

function make({ disk, path, random, mostSectors }: Wish): MadeImage {
  const clusterBits = 9 + random.below(8);
  const sectors = Math.min(1 + random.below(MOST_SECTORS), mostSectors);
  const header = {
    backingOffsetBytes: 0,
    backingLengthBytes: 0,
    mtime: 0,
    sizeBytes: sectors * SECTOR_BYTES,
    clusterBits,
    l2Bits: 6 + random.below(8),
    cryptMethod: 0,
    l1OffsetBytes: 48,
  };
  const front = new Uint8Array(48 + 8 * l1Entries(header));
  front.set(encodeHeader(header));
  putFile(disk, path, front);
  syncFile(disk, path);
  return { sectors, blockSectors: 2 ** clusterBits / SECTOR_BYTES };
}

/** Reads an image without backing file and compressed clusters, sector by sector, from its tables. */
class QcowReader implements OfflineReader {
  readonly #image: QcowImage;

  constructor(storage: SimulatedDisk, path: string) {
    this.#image = openQcow(path, { storage });
  }

  /** Sector of the file at which a sector lies; 0: it is a hole. */
  placeOf(sector: number): number {
    const { header: { clusterBits, l2Bits }, l1, file } = this.#image;
    const clusterSectors = 2 ** clusterBits / SECTOR_BYTES;
    const cluster = Math.floor(sector / clusterSectors);
    const table = l1[Math.floor(cluster / 2 ** l2Bits)];
    if (table === 0) return 0;
    const entry = new Uint8Array(8);
    file.readAt(entry, table * SECTOR_BYTES + 8 * (cluster % 2 ** l2Bits));
    const place = clusterSector(new DataView(entry.buffer), 0);
    return place > 0 ? place + sector % clusterSectors : 0;
  }

  read(into: Uint8Array<ArrayBuffer>, sector: number): void {
    into.fill(0);
    for (let i = 0; i < into.length / SECTOR_BYTES; i++) {
      const place = this.placeOf(sector + i);
      const part = into.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
      if (place > 0) this.#image.file.readAt(part, place * SECTOR_BYTES);
    }
  }

  close(): void {
    this.#image.close();
  }
}

/** QCOW images of version 1. */
export const qcowFormat: SimFormat = {
  name: "qcow",
  parentAs: "qcow",
  encrypted: false,
  onDevice: false,
  fixed: false,
  nameOf: (path) => `qcow:${path}`,
  make,
  faults: (disk, path) =>
    checkQcow(path, { storage: disk }).findings
      .filter(({ severity }) => severity === "error").map(({ message }) => message),
  repair: () => [],
  reader: (disk, path) => new QcowReader(disk, path),
  layers(disk, path) {
    const image = openQcow(path, { storage: disk });
    image.close();
    return [{ path, sectors: image.sectors, type: "qcow", encrypted: false }];
  },
  held(disk, path, { sector, count }) {
    const reader = new QcowReader(disk, path);
    const found = new Set<number>();
    for (let i = 0; i < count; i++) if (reader.placeOf(sector + i) > 0) found.add(sector + i);
    reader.close();
    return found;
  },
};
