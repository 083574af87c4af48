/**
 * The end of a soak: everything is compared, checked and closed, and nothing is left.
 *
 * @module
 */
import { createHash } from "node:crypto";
import { NbdClient } from "../../support/nbd_client.ts";
import { isRunning, openDescriptors, privateMemoryKib, waitUntil } from "../../support/served.ts";
import type { Group, Soak } from "./context.ts";
import type { SoakDisk } from "./disk.ts";
import { compareImage, eachPiece } from "./events.ts";
import { Finding } from "./finding.ts";
import { descriptorTargets, ioMemoryKib } from "./measure.ts";
import { unserve } from "./place.ts";
import type { RemoteServer } from "./servers.ts";
import { SECTOR_BYTES } from "./stamps.ts";
import { SILENCE_MS } from "./writer.ts";

const PIECE_BYTES = 1 << 20;
const PARALLEL = 3;
/**
 * How much more memory a tapdisk may have with one disk at the end than at the start. The runtime
 * has compiled code and room for objects at the end. I/O memory is given back with each disk.
 */
const MOST_MORE_KIB = { private: 48 * 1024, io: 400 };

/** What a tapdisk takes while it serves one disk, which no client uses. */
export interface Baseline {
  readonly descriptors: readonly string[];
  readonly privateKib: number;
  readonly ioKib: number;
}

export function baselineOf(pid: number): Baseline {
  return {
    descriptors: descriptorTargets(pid),
    privateKib: privateMemoryKib(pid),
    ioKib: ioMemoryKib(pid),
  };
}

/** Runs work on many things, a few at a time. */
export async function inParallel<T>(
  things: readonly T[],
  work: (thing: T) => Promise<void>,
): Promise<void> {
  const rest = [...things];
  const lane = async (): Promise<void> => {
    for (let thing = rest.shift(); thing !== undefined; thing = rest.shift()) await work(thing);
  };
  await Promise.all(Array.from({ length: PARALLEL }, lane));
}

/** Compares and closes all disks. */
export async function closeAll(
  soak: Soak,
  servers: ReadonlyMap<SoakDisk, RemoteServer>,
  baselines: ReadonlyMap<Group, Baseline>,
): Promise<void> {
  // The first disk of a tapdisk that is measured is closed last.
  const keepers = new Set([...baselines.keys()].map(({ disks }) => disks[0]));
  const close = async (disk: SoakDisk): Promise<void> => {
    try {
      await closeOne(soak, disk, servers.get(disk));
    } catch (error) {
      soak.fail(disk.name, error);
    }
  };
  await inParallel(soak.disks.filter((disk) => !keepers.has(disk)), close);
  for (const [group, baseline] of baselines) await compareBaseline(soak, group, baseline);
  await inParallel([...keepers], close);
}

async function compareBaseline(soak: Soak, group: Group, start: Baseline): Promise<void> {
  if (soak.finding !== null) return;
  const { name, pid } = group;
  const { length } = start.descriptors;
  try {
    await waitUntil(() => openDescriptors(pid) <= length, "all descriptors are closed");
  } catch {
    const known = new Set(start.descriptors);
    const left = descriptorTargets(pid).filter((target) => !known.has(target));
    throw new Finding(
      `${name}: ${
        openDescriptors(pid) - length
      } descriptors are left after all disks but one are ` +
        `closed; new ones: ${left.join(" ")}`,
    );
  }
  const more = {
    private: privateMemoryKib(pid) - start.privateKib,
    io: ioMemoryKib(pid) - start.ioKib,
  };
  for (const kind of ["private", "io"] as const) {
    soak.journal.note(
      name,
      `${more[kind]} KiB more ${kind} memory than at the start, with one disk`,
    );
    soak.journal.count(
      `KiB more ${kind} memory than at the start, with one disk: ${name}`,
      more[kind],
    );
    if (more[kind] <= MOST_MORE_KIB[kind]) continue;
    throw new Finding(
      `${name}: ${more[kind]} KiB more ${kind} memory than at the start is in use with one disk`,
    );
  }
}

/** Compares what is served with the model, closes, checks, and compares what is in the file. */
async function closeOne(
  soak: Soak,
  disk: SoakDisk,
  server: RemoteServer | undefined,
): Promise<void> {
  const served = await digestServed(disk);
  const { path } = disk;
  await unserve(soak, soak.groupOf(disk), disk);
  const { base, isEncrypted } = disk.plan;
  if (disk.isVhd) await soak.vhdUtil(disk.name, "check", "-n", path, "-p", "-b");
  if (server !== undefined) await server.kill("SIGTERM");
  if (base === "ram") return;
  const file = server?.file ?? (isEncrypted ? await decrypted(soak, disk, path) : path);
  if (await digestFile(file, disk.model.sectors) !== served) {
    throw new Finding(`${file} does not hold what was served`);
  }
  soak.journal.count("disks whose content is right at the end");
  const layer = disk.layers[soak.random(`layer of ${disk.name}`).below(disk.layers.length || 1)];
  if (layer !== undefined && !isEncrypted) await compareImage(disk, layer);
}

async function decrypted(soak: Soak, disk: SoakDisk, path: string): Promise<string> {
  const copy = `${soak.folder}/copy-of-${disk.name}.vhd`;
  await soak.vhdUtil(disk.name, "copy", "-n", path, "-N", copy, "-K", disk.keyFile);
  return copy;
}

/** Reads a whole disk and compares it with the model; returns a digest of what was read. */
async function digestServed(disk: SoakDisk): Promise<string> {
  const hash = createHash("sha1");
  const socket = disk.place?.socket ?? "";
  const { client, info } = await NbdClient.open(socket, { silenceMs: SILENCE_MS });
  using _closing = client;
  if (info.sizeBytes !== disk.model.sectors * SECTOR_BYTES) {
    throw new Finding(`The disk has ${info.sizeBytes} bytes, not ${disk.model.sectors} sectors`);
  }
  for (let at = 0; at < info.sizeBytes; at += PIECE_BYTES) {
    const data = await client.read(at, Math.min(PIECE_BYTES, info.sizeBytes - at));
    // The quiet disk's content is the probe's.
    if (disk.plan.writers > 0) disk.model.check(data, at / SECTOR_BYTES, "read at the end");
    hash.update(data);
  }
  return hash.digest("hex");
}

async function digestFile(path: string, sectors: number): Promise<string> {
  const hash = createHash("sha1");
  await eachPiece(path, sectors, (data) => void hash.update(data));
  return hash.digest("hex");
}

/** Throws when something of the soak is left: a process, a minor, a socket. */
export async function requireNothingLeft(soak: Soak, tapdisks: readonly number[]): Promise<void> {
  for (const pid of tapdisks) {
    await waitUntil(() => !isRunning(pid), `tapdisk ${pid} ends with its last disk`, 30_000);
  }
  if (soak.processes.size > 0) {
    throw new Finding(`Processes are left: ${[...soak.processes.values()].join(", ")}`);
  }
  const left = stateFiles(soak.tapdisks.controlFolder);
  if (left.length > 0) throw new Finding(`Left in the control folder: ${left.join(" ")}`);
  const list = await soak.tapdisks.tapCtlOk("list");
  if (list !== "") throw new Finding(`tap-ctl list still prints: ${list}`);
}

/** Minors, sockets and names; the log and the lock of the minors stay. */
function stateFiles(folder: string): string[] {
  const found: string[] = [];
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (name === "log" || name === "tapdisk") continue;
    if (!isDirectory) found.push(name);
    else {found.push(...Array.from(Deno.readDirSync(`${folder}/${name}`), (e) =>
        `${name}/${e.name}`));}
  }
  const minors = Array.from(Deno.readDirSync(`${folder}/tapdisk`), ({ name }) => name);
  return [...found, ...minors.filter((name) => /^tapdisk-\d+$/.test(name))];
}
