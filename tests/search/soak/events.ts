/**
 * What happens to a disk while its clients work. Each event holds the disk's lock.
 *
 * @module
 */
import { openDisk } from "../../../mod.ts";
import type { Random } from "../../../src/testing/random.ts";
import type { Soak } from "./context.ts";
import { type Layer, LOST_MS, MOST_MIB, type SoakDisk } from "./disk.ts";
import { Finding } from "./finding.ts";
import type { Moment } from "./model.ts";
import { makeSnapshot, serve, unserve } from "./place.ts";
import { SECTOR_BYTES } from "./stamps.ts";
import { warmUp } from "./warm.ts";

const MOST_LAYERS = 6;
const MOST_SMALL_LAYERS = 2;
const GROWTH_MIB = 8;
const PIECE_BYTES = 1 << 20;

/** Something that happens to a disk. */
export interface DiskEvent {
  readonly name: string;
  /** How often it is chosen, compared with the others. */
  readonly weight: number;
  suits(disk: SoakDisk): boolean;
  run(soak: Soak, disk: SoakDisk, random: Random): Promise<void>;
}

async function pause(soak: Soak, disk: SoakDisk): Promise<void> {
  const lostMs = performance.now() - LOST_MS;
  await soak.tapCtl(disk.name, "pause", ...disk.address);
  disk.model.settle(lostMs);
}

/** Releases the requests; the disk goes on with `path`, if it is given. */
async function unpause(soak: Soak, disk: SoakDisk, path?: string): Promise<void> {
  const image = path === undefined ? disk.image : disk.imageOf(path);
  const other = path === undefined ? [] : ["-a", image];
  await soak.tapCtl(disk.name, "unpause", ...disk.address, ...other);
  disk.image = image;
}

async function pauseAndGoOn(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  await pause(soak, disk);
  await soak.sleep(random.below(1500));
  await unpause(soak, disk);
}

async function snapshotLive(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  // The name says what an image is, so a VHD does not take the name of a raw image.
  const renames = disk.isVhd && random.chance(0.5);
  const work = () => snapshotNow(soak, disk, renames);
  // Half of the snapshots are of a known content, the others are made below running writers.
  await (random.chance(0.5) ? disk.whileQuiet(work) : work());
}

async function snapshotNow(soak: Soak, disk: SoakDisk, renames: boolean): Promise<void> {
  const { path: old } = disk;
  const before = disk.model.moment();
  const path = disk.newPath();
  const how = renames ? ["--rename"] : [];
  const args = [...disk.address, "-n", path, ...how, "--json"];
  const output = await soak.tapCtl(disk.name, "snapshot", ...args);
  const { image, parent }: { image: string; parent: string } = JSON.parse(output);
  disk.image = image;
  if (parent !== (renames ? path : old)) throw new Finding(`The snapshot's parent is ${parent}`);
  disk.pushLayer({ path: parent, before, after: disk.model.moment() });
}

/** As XenServer's storage manager makes a snapshot. */
async function snapshotPaused(soak: Soak, disk: SoakDisk): Promise<void> {
  await pause(soak, disk);
  const path = await makeSnapshot(soak, disk, disk.path);
  await unpause(soak, disk, path);
}

/** A program that is killed has started by then. */
const KILL_AFTER_MS = 60;
const KILL_WITHIN_MS = 200;

/** Merges an image into its parent. Sometimes the program is killed first, and run again. */
async function coalesce(
  soak: Soak,
  { disk, path, random }: { disk: SoakDisk; path: string; random: Random },
): Promise<void> {
  if (random.chance(0.3)) {
    const afterMs = KILL_AFTER_MS + random.below(KILL_WITHIN_MS);
    await soak.vhdUtilKilled(disk.name, afterMs, "coalesce", "-n", path);
  }
  await soak.vhdUtil(disk.name, "coalesce", "-n", path);
}

/** Merges the image below the served one into its parent, and relinks the served one. */
async function coalesceBelow(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const [merged, target] = disk.layers;
  await coalesce(soak, { disk, path: merged.path, random });
  const raw = target.path.endsWith(".raw") ? ["-m"] : [];
  await soak.vhdUtil(disk.name, "modify", "-n", disk.path, "-p", target.path, ...raw);
  await pause(soak, disk);
  await unpause(soak, disk);
  disk.layers.splice(0, 2, { ...merged, path: target.path });
  Deno.removeSync(merged.path);
}

/** Merges the served image into its parent, which is served then. */
async function coalesceLeaf(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const { path } = disk;
  await pause(soak, disk);
  await coalesce(soak, { disk, path, random });
  await unpause(soak, disk, disk.layers[0].path);
  disk.layers.shift();
  Deno.removeSync(path);
}

function sectorsOf({ before }: Layer): number {
  return before.generations.length;
}

async function resize(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const mib = disk.model.sectors / 2048 + GROWTH_MIB;
  await pause(soak, disk);
  await resizeImage(soak, disk, { mib, random });
  await unpause(soak, disk, disk.path);
  disk.model.grow(mib * 2048);
}

async function resizeImage(
  soak: Soak,
  disk: SoakDisk,
  { mib, random }: { mib: number; random: Random },
): Promise<void> {
  const { name } = disk;
  const image = ["-n", disk.path];
  const room = Number(await soak.vhdUtil(name, "query", ...image, "-S"));
  if (room >= mib && random.chance(0.5)) {
    await soak.vhdUtil(name, "resize", ...image, "-s", `${mib}`, "-f");
    return;
  }
  const journal = disk.newPath("journal");
  const args = ["resize", ...image, "-s", `${mib}`, "-j", journal];
  if (random.chance(0.4)) {
    const afterMs = KILL_AFTER_MS + random.below(KILL_WITHIN_MS);
    await soak.vhdUtilKilled(name, afterMs, ...args);
    if (exists(journal)) await soak.vhdUtil(name, "revert", ...image, "-j", journal);
    await soak.vhdUtil(name, "check", ...image, "-p", "-b");
    if (Number(await soak.vhdUtil(name, "query", ...image, "-v")) === mib) return;
  }
  await soak.vhdUtil(name, ...args);
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Copies the image below the served one, and compares the copy. */
async function copyLayer(soak: Soak, disk: SoakDisk): Promise<void> {
  const [layer] = disk.layers;
  const copy = `${soak.folder}/copy-of-${disk.name}.vhd`;
  const key = disk.plan.isEncrypted ? ["-K", disk.keyFile] : [];
  await soak.vhdUtil(disk.name, "copy", "-n", layer.path, "-N", copy, ...key);
  await compareImage(disk, { ...layer, path: copy });
  Deno.removeSync(copy);
}

async function checkLayers(soak: Soak, disk: SoakDisk): Promise<void> {
  const layer = disk.layers.find(({ path }) => path.endsWith(".vhd"));
  if (layer === undefined) return;
  await soak.vhdUtil(disk.name, "check", "-n", layer.path, "-p", "-b");
  if (!disk.plan.isEncrypted) await compareImage(disk, layer);
}

/** Compares an image that nobody writes with what the disk held between two moments. */
export async function compareImage(disk: SoakDisk, layer: Layer): Promise<void> {
  const { path, before, after } = layer;
  const how = `in ${path}`;
  await eachPiece(path, sectorsOf(layer), (data, sector) => {
    disk.model.checkBetween(data, sector, { before, after, how });
  });
}

/** Reads an image piece by piece with the library; others have turns in between. */
export async function eachPiece(
  path: string,
  sectors: number,
  use: (data: Uint8Array, sector: number) => void,
): Promise<void> {
  const piece = new Uint8Array(PIECE_BYTES);
  using image = path.endsWith(".raw") ? new RawFile(path) : openDisk(path);
  for (let at = 0; at < sectors * SECTOR_BYTES; at += PIECE_BYTES) {
    const part = piece.subarray(0, Math.min(PIECE_BYTES, sectors * SECTOR_BYTES - at));
    image.read(part, at);
    use(part, at / SECTOR_BYTES);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
}

class RawFile implements Disposable {
  readonly #file: Deno.FsFile;

  constructor(path: string) {
    this.#file = Deno.openSync(path);
  }

  read(into: Uint8Array<ArrayBuffer>, offset: number): void {
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    for (let got = 0; got < into.length;) {
      const more = this.#file.readSync(into.subarray(got));
      if (more === null) throw new Finding("A raw image is too short");
      got += more;
    }
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

async function closeAndOpen(soak: Soak, disk: SoakDisk): Promise<void> {
  const { address, place } = disk;
  const options = disk.plan.isEncrypted ? ["-k", disk.keyFile] : [];
  disk.interrupt();
  await soak.tapCtl(disk.name, "close", ...address);
  if (disk.isVolatile) disk.model.reset();
  await soak.tapCtl(
    disk.name,
    "open",
    ...address,
    "-a",
    disk.image,
    ...disk.plan.options,
    ...options,
  );
  if (place === null) return;
  if (!soak.groupOf(disk).isKilled) await warmUp(place.pid, place.socket);
  disk.served(place);
}

async function destroyAndCreate(soak: Soak, disk: SoakDisk, random: Random): Promise<void> {
  const group = soak.groupOf(disk);
  await unserve(soak, group, disk);
  if (disk.isVhd && random.chance(0.5)) {
    await soak.vhdUtil(disk.name, "check", "-n", disk.path, "-p", "-b");
  }
  await serve(soak, group, disk);
}

/** Copies a disk that is being written with nbdcopy. */
async function copyServed(soak: Soak, disk: SoakDisk): Promise<void> {
  const before = disk.model.moment();
  const copy = `${soak.folder}/copy-of-${disk.name}.raw`;
  await soak.tool(disk.name, "nbdcopy", disk.uri, copy);
  const after = disk.model.moment();
  const layer = { path: copy, before, after };
  await compareCopy(disk, layer, before);
  Deno.removeSync(copy);
}

/** A copy of a running disk is of different moments in each place. */
async function compareCopy(disk: SoakDisk, layer: Layer, before: Moment): Promise<void> {
  await eachPiece(layer.path, before.generations.length, (data, sector) => {
    disk.model.checkBetween(data, sector, { ...layer, how: "copied with nbdcopy" });
  });
}

async function mapServed(soak: Soak, disk: SoakDisk): Promise<void> {
  const map = await soak.tool(disk.name, "nbdinfo", "--map", "--json", disk.uri);
  const extents: { offset: number; length: number }[] = JSON.parse(map);
  const lengthBytes = extents.reduce((sum, { length }) => sum + length, 0);
  if (lengthBytes !== disk.model.sectors * SECTOR_BYTES) {
    throw new Finding(`nbdinfo --map tells of ${lengthBytes} bytes`);
  }
}

async function changeLog(soak: Soak, disk: SoakDisk): Promise<void> {
  const output = await soak.tapCtl(disk.name, "log", ...disk.address, "--json", "--clear");
  const { sectors, runs }: { sectors: number; runs: [number, number][] } = JSON.parse(output);
  const wrong = runs.find(([sector, count]) => count <= 0 || sector + count > sectors);
  if (wrong !== undefined) throw new Finding(`The change log has the run ${wrong.join(" ")}`);
}

const isFile = ({ plan }: SoakDisk): boolean => ["dynamic", "fixed", "raw"].includes(plan.base);
/** Disks on the small filesystem stay small, so that it is only full when it is filled. */
const isSmall = ({ plan }: SoakDisk): boolean => plan.medium === "small";
const mayGrow = (disk: SoakDisk): boolean =>
  disk.isVhd && disk.plan.base !== "fixed" && disk.model.sectors / 2048 < MOST_MIB &&
  !isSmall(disk);
const hasRoom = (disk: SoakDisk): boolean =>
  isFile(disk) && disk.layers.length < (isSmall(disk) ? MOST_SMALL_LAYERS : MOST_LAYERS);

/** All events of disks. */
export const DISK_EVENTS: readonly DiskEvent[] = [
  { name: "pause and unpause", weight: 10, suits: () => true, run: pauseAndGoOn },
  { name: "live snapshot", weight: 14, suits: hasRoom, run: snapshotLive },
  { name: "snapshot of a paused disk", weight: 8, suits: hasRoom, run: snapshotPaused },
  {
    name: "coalesce below the served image",
    weight: 14,
    suits: ({ layers }) => layers.length >= 2 && sectorsOf(layers[0]) === sectorsOf(layers[1]),
    run: coalesceBelow,
  },
  {
    name: "coalesce of the served image",
    weight: 7,
    suits: ({ layers, model }) => layers.length >= 1 && sectorsOf(layers[0]) === model.sectors,
    run: coalesceLeaf,
  },
  { name: "resize", weight: 4, suits: mayGrow, run: resize },
  {
    name: "copy of a parent",
    weight: 4,
    suits: ({ layers }) => layers[0]?.path.endsWith(".vhd") === true,
    run: copyLayer,
  },
  {
    name: "check of parents",
    weight: 8,
    suits: ({ layers }) => layers.some(({ path }) => path.endsWith(".vhd")),
    run: checkLayers,
  },
  { name: "close and open", weight: 6, suits: () => true, run: closeAndOpen },
  { name: "destroy and create", weight: 6, suits: () => true, run: destroyAndCreate },
  { name: "nbdcopy", weight: 3, suits: ({ plan }) => plan.base !== "ram", run: copyServed },
  { name: "nbdinfo --map", weight: 3, suits: () => true, run: mapServed },
  {
    name: "tap-ctl log",
    weight: 2,
    suits: ({ plan }) => plan.filters.includes("log:"),
    run: changeLog,
  },
];
