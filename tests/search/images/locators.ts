/**
 * The names of parents that programs write into a child: in the header, and in locators of all
 * platforms, right and wrong.
 *
 * @module
 */
import { encodeName } from "../../../ffi/names.ts";
import type { Random } from "../../../src/testing/random.ts";
import { pick } from "./sizes.ts";

/** "MacX": a file URL. */
const MACX = 0x4d61_6358;
/** "W2ku", "W2ru": little-endian UTF-16. */
const W2KU = 0x5732_6b75;
const W2RU = 0x5732_7275;
/** Codes whose names nobody reads any more: "Wi2r", "Wi2k", "Mac ", and one that nobody knows. */
const UNREADABLE = [0x5769_3272, 0x5769_326b, 0x4d61_6320, 0x7856_3412];

/** A name to be placed in the file, and its entry of the header. */
export interface PlannedLocator {
  readonly what: string;
  readonly code: number;
  readonly name: Uint8Array;
  /** The room that is left for it in the file, in sectors; 0: it is placed nowhere. */
  readonly roomSectors: number;
  /** Bytes from the start of a sector to the name. */
  readonly shift: number;
  /** The entry's fields, where they are not those of the name and the room. */
  readonly dataSpace?: number;
  readonly dataLength?: number;
  readonly dataOffset?: bigint;
}

/** What names a parent. */
export interface ParentNames {
  /** The text of the header's field. */
  readonly headerName: string;
  readonly locators: readonly PlannedLocator[];
}

/** Where a child and its parent lie. */
export interface ParentPlace {
  readonly childPath: string;
  readonly parentPath: string;
  /** Whether the parent is a raw file: only a locator leads to it. */
  readonly isRaw: boolean;
}

function utf16(text: string): Uint8Array {
  const units = new Uint16Array(text.length);
  for (let i = 0; i < text.length; i++) units[i] = text.charCodeAt(i);
  return new Uint8Array(units.buffer);
}

/** A path from the folder of one file to another file. */
export function relativePath(from: string, to: string): string {
  const a = from.split("/").slice(0, -1);
  const b = to.split("/");
  let same = 0;
  while (same < a.length && same < b.length - 1 && a[same] === b[same]) same++;
  return [...a.slice(same).map(() => ".."), ...b.slice(same)].join("/");
}

function windows(path: string): string {
  return path.replaceAll("/", "\\");
}

type Maker = (place: ParentPlace) => { what: string; code: number; name: Uint8Array };

/** Locators that lead to the parent. */
const RIGHT: readonly Maker[] = [
  ({ childPath, parentPath }) => {
    const relative = relativePath(childPath, parentPath);
    const name = encodeName(`file://${relative.startsWith("..") ? "" : "./"}${relative}`);
    return { what: "MacX", code: MACX, name };
  },
  ({ parentPath }) => ({
    what: "MacX absolute",
    code: MACX,
    name: encodeName(`file://${parentPath}`),
  }),
  ({ childPath, parentPath }) => {
    const relative = windows(relativePath(childPath, parentPath));
    const name = utf16(relative.startsWith("..") ? relative : `.\\${relative}`);
    return { what: "W2ru", code: W2RU, name };
  },
  ({ childPath, parentPath }) => ({
    what: "W2ru without .\\",
    code: W2RU,
    name: utf16(windows(relativePath(childPath, parentPath))),
  }),
  ({ parentPath }) => ({ what: "W2ku", code: W2KU, name: utf16(windows(parentPath)) }),
  ({ parentPath }) => ({ what: "W2ku on C:", code: W2KU, name: utf16(`C:${windows(parentPath)}`) }),
  ({ childPath, parentPath }) => ({
    what: "W2ku relative, ended by NULs",
    code: W2KU,
    name: utf16(`.\\${windows(relativePath(childPath, parentPath))}\0\0`),
  }),
];

/** Locators that lead to nothing, or to another image. */
const WRONG: readonly Maker[] = [
  () => ({ what: "MacX to nothing", code: MACX, name: encodeName("file://./not here.vhd") }),
  () => ({ what: "W2ku to nothing", code: W2KU, name: utf16("D:\\Hyper-V\\Disks\\base 1.vhd") }),
  () => ({
    what: "W2ru of lone surrogates",
    code: W2RU,
    name: utf16(".\\\ud83d\udc7f\ud800\udfff\ud800"),
  }),
  () => ({ what: "W2ku of an odd length", code: W2KU, name: utf16("E:\\x").subarray(0, 7) }),
  () => ({ what: "MacX that is no URL", code: MACX, name: encodeName("../parent.vhd") }),
];

/** A locator to the child itself, whose UUID is not the parent's. */
const TO_ITSELF: Maker = ({ childPath }) => ({
  what: "MacX to the child",
  code: MACX,
  name: encodeName(`file://${childPath}`),
});

function unreadable(random: Random): Maker {
  const name = Uint8Array.from({ length: 1 + random.below(200) }, () => random.below(256));
  const code = pick(random, UNREADABLE);
  return () => ({ what: `of platform 0x${code.toString(16)}`, code, name });
}

/** Gives a name its room, and the entry's fields. */
function placed(
  random: Random,
  { what, code, name }: { what: string; code: number; name: Uint8Array },
): PlannedLocator {
  const shift = random.chance(0.3) ? 1 + random.below(511) : 0;
  const needed = Math.max(1, Math.ceil(name.length / 512));
  const space = needed + (random.chance(0.3) ? random.below(4) : 0);
  const roomSectors = Math.ceil((shift + space * 512) / 512);
  const base = { what: `${what}${shift > 0 ? ` at byte ${shift}` : ""}`, code, name, shift };
  switch (random.below(8)) {
    case 0:
    case 1:
    case 2:
      return { ...base, what: `${base.what} in sectors`, roomSectors, dataSpace: space };
    case 3:
      // Some programs write the length here.
      return {
        ...base,
        what: `${base.what} in a room of its length`,
        roomSectors,
        dataSpace: name.length,
      };
    case 4:
      return { ...base, what: `${base.what} in no room`, roomSectors, dataSpace: 0 };
    default:
      return { ...base, roomSectors, dataSpace: space * 512 };
  }
}

/** A locator whose entry leads out of the file, or is longer than a name can be. */
function broken(random: Random): PlannedLocator {
  const base = { code: MACX, name: encodeName("file://./x"), roomSectors: 0, shift: 0 };
  return pick(random, [
    { ...base, what: "past the end of the file", dataOffset: 2n ** 62n, dataSpace: 512 },
    { ...base, what: "of 4 GiB", dataOffset: 1536n, dataLength: 0xffff_ffff, dataSpace: 1 },
    { ...base, what: "without a name", dataOffset: 1536n, dataLength: 0, dataSpace: 1 },
  ]);
}

/** Draws the names of a parent. At least one of them leads to it. */
export function someNames(random: Random, place: ParentPlace): ParentNames {
  const sameFolder = relativePath(place.childPath, place.parentPath).indexOf("/") < 0;
  const fileName = place.parentPath.slice(place.parentPath.lastIndexOf("/") + 1);
  const byHeader = sameFolder && !place.isRaw && fileName.length <= 200 && random.chance(0.15);
  const locators: PlannedLocator[] = [];
  const right = byHeader ? 0 : 1 + random.below(3);
  for (let i = 0; i < right; i++) {
    locators.push(placed(random, pick(random, RIGHT)(place)));
  }
  const wrong = random.chance(0.5) ? random.below(4) : 0;
  for (let i = 0; i < wrong; i++) {
    const locator = random.chance(0.2)
      ? broken(random)
      : placed(random, wrongMaker(random, place)(place));
    locators.splice(random.below(locators.length + 1), 0, locator);
  }
  return { headerName: headerName(random, { fileName, byHeader, place }), locators };
}

function wrongMaker(random: Random, { isRaw }: ParentPlace): Maker {
  if (random.chance(0.3)) return unreadable(random);
  // A raw parent has no UUID, so it is the first file that a locator names.
  if (!isRaw && random.chance(0.2)) return TO_ITSELF;
  return pick(random, WRONG);
}

function headerName(
  random: Random,
  { fileName, byHeader, place }: { fileName: string; byHeader: boolean; place: ParentPlace },
): string {
  // The check of a raw parent compares the names, as nothing else identifies it.
  if (place.isRaw) return fileName;
  if (random.chance(0.2)) return `C:\\VMs\\${fileName}`;
  return !byHeader && random.chance(0.1) ? "" : fileName;
}
