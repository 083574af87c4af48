/**
 * What cases start from: a few files each, an image with its parents, and files that no image may
 * lead to. The bytes never change, so that recipes in the corpus stay what they are; a new world is
 * added to the list.
 *
 * @module
 */
import {
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
} from "../../../../src/vhd/format/locator.ts";
import { buildImage, type BuiltBlock, contentOf } from "./build_image.ts";

/** The folder of the images; parents may be here. */
export const FOLDER = "/srv/vm";
/** Files in these places must never be opened. */
export const FORBIDDEN = ["/srv/secret.vhd", "/etc/secret.vhd", "/secret.vhd"];

/** Some files, of which the first is the image that is worked on. */
export interface World {
  readonly name: string;
  /** Contents by path; the first is the top image. */
  readonly files: ReadonlyMap<string, Uint8Array<ArrayBuffer>>;
}

const KIB = 1024;
const ALL_CODES = [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU];

/** Blocks, each with some of its sectors, none or all, in turn. */
function someBlocks(...numbers: number[]): BuiltBlock[] {
  return numbers.map((block, i): BuiltBlock => ({
    block,
    holds: i % 4 === 3 ? "none" : i % 2 === 0 ? "all" : "some",
  }));
}

function at(...files: [string, Uint8Array<ArrayBuffer>][]): Map<string, Uint8Array<ArrayBuffer>> {
  return new Map(files.map(([name, bytes]) => [`${FOLDER}/${name}`, bytes]));
}

function base(number: number, blockSizeBytes = 16 * KIB): Uint8Array<ArrayBuffer> {
  const blocks = someBlocks(0, 3, 7, 9);
  return buildImage({ number, sizeBytes: 256 * KIB, blockSizeBytes, blocks });
}

const MAKERS: Readonly<Record<string, () => Map<string, Uint8Array<ArrayBuffer>>>> = {
  dynamic: () => at(["disk.vhd", base(1)]),

  chain: () =>
    at(
      [
        "top.vhd",
        buildImage({
          number: 3,
          sizeBytes: 256 * KIB,
          blockSizeBytes: 16 * KIB,
          blocks: someBlocks(1, 3, 9, 15),
          parent: { number: 2, name: "mid.vhd", codes: ALL_CODES },
          spareEntries: 40,
        }),
      ],
      [
        "mid.vhd",
        buildImage({
          number: 2,
          sizeBytes: 256 * KIB,
          blockSizeBytes: 4 * KIB,
          blocks: someBlocks(0, 2, 12, 13, 40, 63),
          creator: "win ",
          parent: { number: 1, name: "base.vhd", codes: [PLAT_CODE_W2RU] },
        }),
      ],
      ["base.vhd", base(1)],
    ),

  raw: () =>
    at(
      [
        "child.vhd",
        buildImage({
          number: 4,
          sizeBytes: 192 * KIB,
          blockSizeBytes: 64 * KIB,
          blocks: someBlocks(2, 0),
          parent: { number: 0, name: "base.raw", codes: [PLAT_CODE_MACX] },
        }),
      ],
      ["base.raw", contentOf(77, 100 * KIB + 300)],
    ),

  fixed: () => at(["disk.vhd", buildImage({ number: 5, sizeBytes: 64 * KIB, blockSizeBytes: 0 })]),

  "fixed parent": () =>
    at(
      [
        "child.vhd",
        buildImage({
          number: 6,
          sizeBytes: 128 * KIB,
          blockSizeBytes: 8 * KIB,
          blocks: someBlocks(5, 1),
          parent: { number: 5, name: "base.vhd", codes: ALL_CODES },
        }),
      ],
      ["base.vhd", buildImage({ number: 5, sizeBytes: 64 * KIB, blockSizeBytes: 0 })],
    ),

  foreign: () =>
    at([
      "disk.vhd",
      buildImage({
        number: 7,
        sizeBytes: 300 * KIB,
        blockSizeBytes: 32 * KIB,
        blocks: someBlocks(9, 0, 4, 2),
        creator: "win ",
        slackSectors: 5,
      }),
    ]),

  "header last": () =>
    at([
      "disk.vhd",
      buildImage({
        number: 8,
        sizeBytes: 128 * KIB,
        blockSizeBytes: 16 * KIB,
        blocks: someBlocks(0, 5),
        creator: "qem2",
        headerLast: true,
      }),
    ]),

  encrypted: () =>
    at([
      "disk.vhd",
      buildImage({
        number: 9,
        sizeBytes: 128 * KIB,
        blockSizeBytes: 16 * KIB,
        blocks: someBlocks(1, 4),
        isEncrypted: true,
      }),
    ]),

  empty: () =>
    at(
      [
        "child.vhd",
        buildImage({
          number: 10,
          sizeBytes: 64 * KIB,
          blockSizeBytes: 4 * KIB,
          parent: { number: 1, name: "base.vhd", codes: ALL_CODES },
        }),
      ],
      ["base.vhd", base(1, 32 * KIB)],
    ),

  // The layout of `vhd-util create`, whose disk grows within its metadata.
  reserve: () =>
    at([
      "disk.vhd",
      buildImage({
        number: 11,
        sizeBytes: 4096 * KIB,
        blockSizeBytes: 2048 * KIB,
        spareEntries: 200,
      }),
    ]),
};

const made = new Map<string, World>();

/** The world of a name. */
export function worldOf(name: string): World {
  const known = made.get(name);
  if (known !== undefined) return known;
  const make = MAKERS[name];
  if (make === undefined) throw new TypeError(`There is no world ${name}`);
  const world = { name, files: make() };
  made.set(name, world);
  return world;
}

/** The names of all worlds. */
export const WORLDS: readonly string[] = Object.keys(MAKERS);
