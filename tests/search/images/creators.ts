/**
 * Programs that make VHDs, and the fields by which their images differ.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import {
  type Footer,
  HD_COOKIE,
  HD_FF_VERSION,
  HD_RESERVED,
  HD_TEMPORARY,
  VHD_NO_OFFSET,
} from "../../../src/vhd/format/footer.ts";
import { geometryOfSize, packGeometry } from "../../../src/vhd/format/geometry.ts";
import { pick } from "./sizes.ts";

/** A program, by the fields of the footer. */
export interface Creator {
  /** Four characters. */
  readonly application: string;
  readonly version: number;
  readonly hostOs: number;
}

/** "Wi2k" and "Mac ". */
const WINDOWS = 0x5769_326b;
const MACINTOSH = 0x4d61_6320;

/** Programs whose images have no batmap. */
const OTHERS: readonly Creator[] = [
  { application: "vpc ", version: 0x0005_0003, hostOs: WINDOWS },
  { application: "vpc ", version: 0x0005_0000, hostOs: MACINTOSH },
  { application: "vs  ", version: 0x0001_0000, hostOs: WINDOWS },
  { application: "win ", version: 0x0006_0003, hostOs: WINDOWS },
  { application: "win ", version: 0x000a_0000, hostOs: WINDOWS },
  { application: "qemu", version: 0x0005_0003, hostOs: WINDOWS },
  { application: "qem2", version: 0x0005_0003, hostOs: WINDOWS },
  { application: "d2v ", version: 0x0001_0000, hostOs: WINDOWS },
  { application: "vbox", version: 0x0006_0001, hostOs: WINDOWS },
  { application: "CTXS", version: 0x0001_0000, hostOs: 0 },
  { application: "\0\0\0\0", version: 0, hostOs: 0 },
];

/** The versions of tapdisk. From 1.2 on its images have a batmap; in 1.1 its checksum is signed. */
const TAPS: readonly Creator[] = [0x0001_0001, 0x0001_0002, 0x0001_0003].map((version) => ({
  application: "tap\0",
  version,
  hostOs: 0,
}));

/** Draws a program. */
export function someCreator(random: Random, { isTap }: { isTap: boolean }): Creator {
  return pick(random, isTap ? TAPS : OTHERS);
}

/** Whether a program's images may have a batmap. */
export function isTap({ application }: Creator): boolean {
  return application === "tap\0";
}

/** A UUID of these random numbers. */
export function someUuid(random: Random): Uint8Array {
  const uuid = Uint8Array.from({ length: 16 }, () => random.below(256));
  uuid[0] |= 1;
  return uuid;
}

/** Geometries that say nothing, too little, the most that there is, or nonsense. */
function someGeometry(random: Random, sizeBytes: number): number {
  switch (random.below(6)) {
    case 0:
      return 0;
    case 1:
      return 0xffff_10ff;
    case 2:
      return random.bits();
    default:
      return packGeometry(geometryOfSize(sizeBytes));
  }
}

/** Draws a footer. Its `dataOffset` is that of a fixed image. */
export function someFooter(
  random: Random,
  { creator, diskType, sectors }: { creator: Creator; diskType: number; sectors: number },
): Footer {
  const sizeBytes = sectors * 512;
  return {
    cookie: HD_COOKIE,
    features: random.chance(0.1) ? HD_RESERVED | HD_TEMPORARY : HD_RESERVED,
    fileFormatVersion: HD_FF_VERSION,
    dataOffset: VHD_NO_OFFSET,
    timestamp: random.below(700_000_000),
    creatorApplication: creator.application,
    creatorVersion: creator.version,
    creatorHostOs: creator.hostOs,
    originalSize: BigInt(random.chance(0.2) ? 512 * (1 + random.below(sectors)) : sizeBytes),
    currentSize: BigInt(sizeBytes),
    geometry: someGeometry(random, sizeBytes),
    diskType,
    checksum: 0,
    uuid: someUuid(random),
    savedState: random.chance(0.1) ? 1 : 0,
    hidden: random.chance(0.15) ? 1 : 0,
    reserved: new Uint8Array(426),
  };
}
