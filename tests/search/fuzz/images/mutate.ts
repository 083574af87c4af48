/**
 * Draws mutations: of raw bytes, and of the format's structures with right checksums.
 *
 * @module
 */
import type { Random } from "../../../../src/testing/random.ts";
import { VHD_MAX_SIZE } from "../../../../src/vhd/format/units.ts";
import { FOOTER_OFFSETS } from "../../../../src/vhd/format/footer.ts";
import { HEADER_OFFSETS } from "../../../../src/vhd/format/header.ts";
import { FIELDS, locatorFields, type Places, type StructureName } from "./places.ts";
import { drawName } from "./hostile_names.ts";
import { type Mutation, pick, placesIn } from "./mutations.ts";
import { uuidOf } from "./build_image.ts";
import type { World } from "./worlds.ts";

/** Numbers at which sizes and offsets go wrong. */
const NUMBERS = [
  0n,
  1n,
  2n,
  3n,
  4n,
  511n,
  512n,
  513n,
  1024n,
  4096n,
  65536n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_fffen,
  0xffff_ffffn,
  0x1_0000_0000n,
  0x1f_ffff_ffff_ffffn,
  0x20_0000_0000_0000n,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0xffff_ffff_ffff_fe00n,
  0xffff_ffff_ffff_ffffn,
  BigInt(VHD_MAX_SIZE),
  BigInt(VHD_MAX_SIZE) + 512n,
  BigInt(2 * VHD_MAX_SIZE),
  0x0100_0000n,
  0x0100_0001n,
];

/** A number in big-endian bytes, in hexadecimal. */
export function hexOf(value: bigint, lengthBytes: number): string {
  const bits = BigInt.asUintN(lengthBytes * 8, value);
  return bits.toString(16).padStart(lengthBytes * 2, "0");
}

function numberAt(bytes: Uint8Array, at: number, lengthBytes: number): bigint {
  let value = 0n;
  for (let i = 0; i < lengthBytes; i++) value = value * 256n + BigInt(bytes[at + i] ?? 0);
  return value;
}

/** A number for a field whose value is `current`. */
export function drawNumber(random: Random, current: bigint, { edges }: Places): bigint {
  const near = BigInt([-513, -512, -1, 0, 1, 2, 511, 512, 513][random.below(9)]);
  switch (random.below(8)) {
    case 0:
    case 1:
      return current + near;
    case 2:
      return pick(random, [current * 2n, current / 2n, current ^ 1n, -current, current << 9n]);
    case 3:
      return BigInt(pick(random, edges)) + near;
    case 4:
      return BigInt(Math.floor(pick(random, edges) / 512)) + near / 512n;
    case 5:
      return 1n << BigInt(random.below(64));
    default:
      return pick(random, NUMBERS) + (random.chance(0.3) ? near : 0n);
  }
}

interface Subject {
  readonly file: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly places: Places;
  readonly world: World;
}

type Maker = (random: Random, subject: Subject) => Mutation[];

/** A field of a structure, with the right checksum; the footers are mostly changed alike. */
function field(random: Random, { file, bytes, places }: Subject): Mutation[] {
  const structures = Object.keys(places.structures) as StructureName[];
  if (structures.length === 0) return [];
  const structure = pick(random, structures);
  const at = places.structures[structure] ?? 0;
  const [offset, length] = pick(random, FIELDS[structure]);
  const value = length <= 8
    ? hexOf(drawNumber(random, numberAt(bytes, at + offset, length), places), length)
    : Uint8Array.from({ length: Math.min(length, 16) }, () => random.below(256)).toHex();
  const isFooter = structure === "footer" || structure === "backup";
  const both = isFooter && places.structures.backup !== undefined && random.chance(0.7);
  const targets: StructureName[] = both ? ["footer", "backup"] : [structure];
  return targets.map((name) => {
    const start = places.structures[name] ?? 0;
    const sum = random.chance(0.95) ? name : undefined;
    return { file, at: start + offset, bytes: value, ...(sum === undefined ? {} : { sum }) };
  });
}

/** Sizes of the disk, which footers, BAT and blocks must agree on. */
function size(random: Random, { file, places }: Subject): Mutation[] {
  const most = BigInt(places.entries) * 65536n;
  const sizes = [0n, 512n, 4096n, 65024n, 65536n, 66048n, most, 262144n, 262656n, 1n << 40n];
  const value = pick(random, sizes) + BigInt(random.below(3) - 1) * 512n;
  return (["footer", "backup"] as const).flatMap((name) => {
    const at = places.structures[name];
    if (at === undefined) return [];
    return [{ file, at: at + FOOTER_OFFSETS.currentSize, bytes: hexOf(value, 8), sum: name }];
  });
}

/** A table of as many entries as there may be, or one more, behind everything else. */
function huge(random: Random, { file, bytes, places }: Subject): Mutation[] {
  const at = places.structures.header;
  if (at === undefined || places.structures.backup === undefined) return [];
  const entries = random.chance(0.95)
    ? pick(random, [4096, 70_000, 300_000])
    : pick(random, [2 ** 24, 2 ** 24 + 1, 2 ** 28, 2 ** 30]);
  const blockBytes = 512 << random.below(4);
  const tableAt = Math.ceil(bytes.length / 512) * 512;
  const put = (offset: number, value: number, length: number): Mutation => (
    { file, at: at + offset, bytes: hexOf(BigInt(value), length), sum: "header" }
  );
  const sizeBytes = BigInt(entries) * BigInt(blockBytes);
  return [
    put(HEADER_OFFSETS.blockSize, blockBytes, 4),
    put(HEADER_OFFSETS.maxBatEntries, entries, 4),
    put(HEADER_OFFSETS.tableOffset, tableAt, 8),
    { file, at: FOOTER_OFFSETS.currentSize, bytes: hexOf(sizeBytes, 8), sum: "backup" },
    { file, size: tableAt + entries * 4 + 1024 },
  ];
}

/** Entries of the BAT: duplicated, out of order, in the metadata, beyond the end. */
function bat(random: Random, { file, bytes, places }: Subject): Mutation[] {
  const { batAt, entries, edges } = places;
  if (entries === 0) return [];
  const view = new DataView(bytes.buffer);
  const block = random.below(entries);
  const other = view.getUint32(batAt + 4 * random.below(entries));
  const put = (index: number, value: number): Mutation => (
    { file, at: batAt + 4 * index, bytes: hexOf(BigInt(value), 4) }
  );
  switch (random.below(5)) {
    case 0: {
      const second = random.below(entries);
      return [put(block, view.getUint32(batAt + 4 * second)), put(second, other)];
    }
    case 1:
      return [put(block, other + random.below(5) - 2)];
    case 2:
      return [put(block, Math.floor(pick(random, edges) / 512) + random.below(5) - 2)];
    case 3:
      return [put(block, pick(random, [0, 1, 2, 3, 4, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe]))];
    default:
      return [put(block, 0xffff_ffff)];
  }
}

/** A locator: where its name is, how long, and what it says. */
function locator(random: Random, subject: Subject): Mutation[] {
  const { file, bytes, places } = subject;
  const at = places.structures.header;
  if (at === undefined) return [];
  const index = random.below(8);
  const fields = locatorFields(index);
  const [code, space, length, , offset] = fields;
  const put = ([start, lengthBytes]: readonly [number, number], value: bigint): Mutation => (
    { file, at: at + start, bytes: hexOf(value, lengthBytes), sum: "header" }
  );
  const codes = [0n, 0x5732_7275n, 0x5732_6b75n, 0x4d61_6358n, 0x4d61_6320n, 0x5769_326bn, 1n];
  const mutations: Mutation[] = [];
  if (random.chance(0.4)) mutations.push(put(code, pick(random, codes)));
  for (const each of [space, length, offset]) {
    if (!random.chance(0.4)) continue;
    mutations.push(put(each, drawNumber(random, numberAt(bytes, at + each[0], each[1]), places)));
  }
  if (places.names.length > 0 && random.chance(0.6)) mutations.push(...name(random, subject));
  return mutations;
}

/** A hostile name of a parent, in a locator's room or in the header. */
function name(random: Random, { file, places }: Subject): Mutation[] {
  const at = places.structures.header;
  if (at === undefined) return [];
  const index = random.below(8);
  const hostile = drawName(random);
  if (random.chance(0.3) || places.names.length === 0) {
    const text = hostile.header.slice(0, 1024);
    return [{ file, at: at + HEADER_OFFSETS.parentName, bytes: text, sum: "header" }];
  }
  const which = index % places.names.length;
  const [start] = places.names[which];
  const [code, space, length] = locatorFields(which);
  const lengthBytes = hostile.bytes.length / 2;
  return [
    { file, at: start, bytes: hostile.bytes },
    { file, at: at + code[0], bytes: hexOf(BigInt(hostile.code), 4) },
    { file, at: at + space[0], bytes: hexOf(BigInt(Math.ceil(lengthBytes / 512) * 512), 4) },
    { file, at: at + length[0], bytes: hexOf(BigInt(lengthBytes), 4), sum: "header" },
  ];
}

/** Another parent: by UUID, none, a raw one, the image itself. */
function parent(random: Random, { file, places }: Subject): Mutation[] {
  const at = places.structures.header;
  if (at === undefined) return [];
  const uuid = uuidOf(pick(random, [0, 1, 2, 3, 5, 6, 99])).toHex();
  const mutations: Mutation[] = [{
    file,
    at: at + HEADER_OFFSETS.parentUuid,
    bytes: uuid,
    sum: "header",
  }];
  if (random.chance(0.5)) {
    const type = hexOf(BigInt(pick(random, [2, 3, 4])), 4);
    for (const structure of ["footer", "backup"] as const) {
      const start = places.structures[structure] ?? 0;
      mutations.push({ file, at: start + FOOTER_OFFSETS.diskType, bytes: type, sum: structure });
    }
  }
  return mutations;
}

/** The bits of a block, or those of the batmap. */
function bits(random: Random, { file, places }: Subject): Mutation[] {
  const { mapAt, mapBytes, edges } = places;
  const bytes = pick(random, ["ff", "00", "aa", "ffff", "0000", "01"]);
  if (mapBytes > 0 && random.chance(0.5)) {
    const sum = random.chance(0.7) ? { sum: "batmap" } as const : {};
    return [{ file, at: mapAt + random.below(4), bytes, ...sum }];
  }
  return [{ file, at: pick(random, edges) + random.below(16), bytes }];
}

function flip(random: Random, { file, bytes, places }: Subject): Mutation[] {
  const near = pick(random, places.edges) + random.below(1024) - 256;
  const at = random.chance(0.7) ? Math.max(0, near) : random.below(bytes.length);
  return [{ file, at, flip: random.below(8) }];
}

function cut(random: Random, { file, bytes, places }: Subject): Mutation[] {
  const at = random.chance(0.6)
    ? pick(random, places.edges) + pick(random, [-512, -511, -1, 0, 1, 511, 512, 1024])
    : random.below(bytes.length * 2);
  if (random.chance(0.03)) return [{ file, size: 2 ** (30 + random.below(15)) }];
  return [{ file, size: Math.max(0, at) }];
}

function noise(random: Random, { file, places, bytes }: Subject): Mutation[] {
  const length = pick(random, [1, 4, 8, 64, 512, 1024, 4096]);
  const at = random.chance(0.6) ? pick(random, places.edges) : random.below(bytes.length);
  return [{ file, at, noise: random.bits(), length }];
}

/** Bytes of one place, at another: of this file or of another file of the world. */
function splice(random: Random, { file, world, places }: Subject): Mutation[] {
  const source = random.below(world.files.size);
  const from = pick(random, placesIn([...world.files.values()][source]).edges);
  const length = pick(random, [512, 1024, 4096, 16384]);
  return [{ file, at: pick(random, places.edges), from, source, length }];
}

function whole(random: Random, { file, world }: Subject): Mutation[] {
  if (random.chance(0.3)) return [{ file, remove: true }];
  if (random.chance(0.3)) {
    return [{ file, size: 0 }, {
      file,
      at: 0,
      noise: random.bits(),
      length: random.below(8192) + 1,
    }];
  }
  return [{ file, become: random.below(world.files.size) }];
}

/** The kinds of mutation, and how often each is drawn. */
const MAKERS: readonly (readonly [Maker, number])[] = [
  [field, 25],
  [size, 6],
  [bat, 18],
  [locator, 12],
  [name, 8],
  [parent, 5],
  [bits, 8],
  [flip, 8],
  [cut, 8],
  [noise, 4],
  [splice, 6],
  [whole, 2],
  [huge, 1],
];
const TOTAL = MAKERS.reduce((sum, [, weight]) => sum + weight, 0);

function drawMaker(random: Random): Maker {
  let at = random.below(TOTAL);
  for (const [make, weight] of MAKERS) {
    at -= weight;
    if (at < 0) return make;
  }
  return field;
}

/** Draws the mutations of a case; the top image is hit most. */
export function drawMutations(random: Random, world: World): Mutation[] {
  const all = [...world.files.values()];
  const mutations: Mutation[] = [];
  do {
    const file = random.chance(0.6) ? 0 : random.below(all.length);
    const bytes = all[file];
    mutations.push(...drawMaker(random)(random, { file, bytes, places: placesIn(bytes), world }));
  } while (random.chance(0.5) && mutations.length < 12);
  return mutations;
}
