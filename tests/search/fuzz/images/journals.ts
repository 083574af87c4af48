/**
 * Images whose resize was broken off, with their journals, and mutations of the journals.
 *
 * @module
 */
import { SystemError } from "../../../../ffi/errno.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import {
  decodeJournalEntry,
  decodeJournalHeader,
  JOURNAL_ENTRY_SIZE,
  JOURNAL_HEADER_SIZE,
  journalChecksum,
} from "../../../../src/vhd/format/journal_format.ts";
import { revertJournal } from "../../../../src/vhd/resize/journal_revert.ts";
import { resizeVhd } from "../../../../src/vhd/resize/resize.ts";
import { VHD_MAX_SIZE } from "../../../../src/vhd/format/units.ts";
import { getFile } from "../../../support/vhd.ts";
import { attempt, hold } from "./finding.ts";
import type { ImageCase } from "./image_case.ts";
import { drawMutations, drawNumber, hexOf } from "./mutate.ts";
import { type Mutation, pick, placesIn, putWorld } from "./mutations.ts";
import type { Field } from "./places.ts";
import type { Subject } from "./subject.ts";
import { FOLDER, type World, worldOf } from "./worlds.ts";

const MIB = 1024 * 1024;
const JOURNAL = `${FOLDER}/journal`;
/** What the names of these worlds begin with; the world, the size in MiB and the moment follow. */
export const JOURNAL_WORLD = "journal of ";
/** Worlds that can be resized. */
const RESIZED = ["dynamic", "chain", "raw", "fixed", "reserve", "encrypted"];
/** The last moment at which a resize is broken off; most are complete then. */
const MOMENTS = 24;

class Killed extends Error {}

/** The world of an image whose resize ended before its write number `moment`. */
export function journalWorld(name: string): World {
  const [, from, mib, moment] = /^journal of (.+), (\d+) MiB, (\d+)$/.exec(name) ?? [];
  if (moment === undefined) throw new TypeError(`There is no world ${name}`);
  const start = worldOf(from);
  const [path] = start.files.keys();
  using disk = new SimulatedDisk();
  putWorld(disk, start, []);
  let left = Number(moment);
  disk.beforeOperation = ({ kind }) => {
    if (kind === "write" || kind === "truncate" || kind === "remove") left--;
    if (left < 0) throw new Killed();
    return 0;
  };
  try {
    resizeVhd(path, { storage: disk, sizeBytes: Number(mib) * MIB, journal: JOURNAL });
  } catch (error) {
    if (!(error instanceof Killed) && !(error instanceof SystemError)) throw error;
  }
  disk.beforeOperation = null;
  disk.killProcesses();
  const paths = [...start.files.keys(), ...(disk.exists(JOURNAL) ? [JOURNAL] : [])];
  return { name, files: new Map(paths.map((each) => [each, getFile(disk, each)])) };
}

/** The name of a random world with a journal. */
export function drawJournalWorld(random: Random): string {
  const mib = pick(random, [1, 2, 8, 100]);
  return `${JOURNAL_WORLD}${pick(random, RESIZED)}, ${mib} MiB, ${1 + random.below(MOMENTS)}`;
}

/** The entries of a valid journal: where each begins, and its length with its data. */
function entriesOf(journal: Uint8Array<ArrayBuffer>): Field[] {
  const entries: Field[] = [];
  if (journal.length < JOURNAL_HEADER_SIZE) return entries;
  const { metadataEntries, dataEntries } = decodeJournalHeader(journal);
  let at = JOURNAL_HEADER_SIZE;
  for (let i = 0; i < metadataEntries + dataEntries; i++) {
    if (at + JOURNAL_ENTRY_SIZE > journal.length) break;
    const { sizeBytes } = decodeJournalEntry(journal.slice(at, at + JOURNAL_ENTRY_SIZE));
    entries.push([at, JOURNAL_ENTRY_SIZE + sizeBytes]);
    at += JOURNAL_ENTRY_SIZE + sizeBytes;
  }
  return entries;
}

const HEADER_FIELDS: readonly Field[] = [[8, 16], [24, 8], [32, 4], [36, 4], [40, 8], [48, 8]];
const ENTRY_FIELDS: readonly Field[] = [[8, 4], [12, 4], [16, 8]];

/** Mutations of the journal, which is the last file of a world. */
function drawOfJournal(random: Random, world: World): Mutation[] {
  const file = world.files.size - 1;
  const journal = [...world.files.values()][file];
  const entries = entriesOf(journal);
  const edges = [0, journal.length, ...entries.map(([start]) => start)];
  const near = (): number => Math.max(0, pick(random, edges) + random.below(96) - 32);
  switch (random.below(8)) {
    case 0:
      return [{ file, at: near(), flip: random.below(8) }];
    case 1:
      return [{ file, at: near(), noise: random.bits(), length: pick(random, [1, 4, 8, 512]) }];
    case 2:
      return [{ file, size: pick(random, edges) + pick(random, [0, 1, 31, 512]) }];
    case 3: {
      const [from, length] = entries.length > 0 ? pick(random, entries) : [0, 512];
      return [{ file, at: pick(random, edges), from, source: file, length }];
    }
    case 4: {
      const [at, length] = pick(random, HEADER_FIELDS);
      const value = drawNumber(random, numberIn(journal, at, length), placesIn(journal));
      return [{ file, at, bytes: hexOf(value, length) }];
    }
    default:
      return entries.length === 0 ? [] : [entryField(random, { file, journal, entries, world })];
  }
}

function numberIn(bytes: Uint8Array, at: number, length: number): bigint {
  return BigInt(`0x0${bytes.slice(at, at + length).toHex()}`);
}

/** Changes a field of an entry, or a byte of its data, with the right checksum. */
function entryField(
  random: Random,
  { file, journal, entries, world }: {
    file: number;
    journal: Uint8Array<ArrayBuffer>;
    entries: readonly Field[];
    world: World;
  },
): Mutation {
  const [start, length] = pick(random, entries);
  const entry = journal.slice(start, start + length);
  const view = new DataView(entry.buffer);
  if (random.chance(0.7)) {
    const [at, bytes] = pick(random, ENTRY_FIELDS);
    const [image] = world.files.values();
    const value = at === 8
      ? BigInt(random.below(10))
      : drawNumber(random, numberIn(entry, at, bytes), placesIn(image));
    entry.set(Uint8Array.fromHex(hexOf(value, bytes)), at);
  } else entry[JOURNAL_ENTRY_SIZE + random.below(64)] ^= 1 << random.below(8);
  const front = entry.subarray(0, JOURNAL_ENTRY_SIZE);
  const size = Math.min(view.getUint32(12), journal.length);
  const data = journal.slice(start + JOURNAL_ENTRY_SIZE, start + JOURNAL_ENTRY_SIZE + size);
  data.set(entry.subarray(JOURNAL_ENTRY_SIZE, JOURNAL_ENTRY_SIZE + Math.min(size, 64)));
  view.setUint32(24, journalChecksum(front, data));
  return { file, at: start, bytes: entry.subarray(0, JOURNAL_ENTRY_SIZE + 64).toHex() };
}

/** Draws a case of a journal. */
export function drawJournalCase(random: Random): ImageCase {
  let name: string;
  let world: World;
  do {
    name = drawJournalWorld(random);
    world = journalWorld(name);
  } while (!world.files.has(JOURNAL));
  const mutations: Mutation[] = [];
  for (let i = random.below(3); i >= 0; i--) {
    if (random.chance(0.75)) mutations.push(...drawOfJournal(random, world));
    else mutations.push(...drawMutations(random, world));
  }
  return { world: name, mutations, actions: [{ act: "revert", seed: 0 }] };
}

/** `revert`: what it refuses is not changed, and no journal makes a file longer than any VHD's. */
export function revert(subject: Subject): void {
  const { disk, path, stage } = subject;
  if (!disk.exists(path)) return;
  const longest = Math.max(2 * VHD_MAX_SIZE + 512, disk.status(path).sizeBytes);
  const end = attempt(() => revertJournal(path, { storage: disk, journal: JOURNAL }));
  stage.watch.requireWritten(path, JOURNAL);
  const { sizeBytes } = disk.status(path);
  hold(sizeBytes <= longest, () => `The image has ${sizeBytes} bytes`);
  if (end instanceof SystemError) return stage.watch.requireNotWritten(path);
  hold(!disk.exists(JOURNAL), "The journal is left");
}
