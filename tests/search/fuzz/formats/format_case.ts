import { SystemError } from "../../../../ffi/errno.ts";
import { Random } from "../../../../src/testing/random.ts";
import { type SimulatedDevice, stampedSectors } from "../../../support/sim.ts";
import { putFile } from "../../../support/vhd.ts";
import { crc32c } from "../../../support/vhdx.ts";
import { attempt, hold } from "../images/finding.ts";
import { Stage } from "../images/stage.ts";
import { FOLDER } from "../images/worlds.ts";
import { qcow2Worlds } from "./qcow2_worlds.ts";
import { qcowWorlds } from "./qcow_worlds.ts";
import { vhdxWorlds } from "./vhdx_worlds.ts";
import { DISK_SECTORS, type Field, setValue, type World } from "./world.ts";

const SECTOR = 512;
/** Requests never fail for good here: an error that is met is the image's. */
const NO_RETRY = { timeoutMs: 0 };
/** Fields that make an image need another file. */
const NAMES = /incompatible_features|extension|name|backing/;
/** Where data is, and where it ends. */
const PLACES = [0, 92, 900, 1000, 1130, DISK_SECTORS - 16];

/** A number that is set. */
export interface Edit {
  readonly field: Field;
  readonly value: bigint;
}

/** A hostile image, and what is done with it. */
export interface FormatCase {
  readonly world: World;
  readonly edits: readonly Edit[];
  /** Whether checksums are right. */
  readonly isSealed: boolean;
  /** The length to which the file is cut; null for its own. */
  readonly cutTo: number | null;
  /** Decides the requests. */
  readonly seed: number;
}

/** All worlds. */
export function allWorlds(): World[] {
  return [...qcow2Worlds(FOLDER), ...qcowWorlds(FOLDER), ...vhdxWorlds(FOLDER)];
}

/** A case as a line of text. */
export function describeCase({ world, edits, isSealed, cutTo, seed }: FormatCase): string {
  const set = edits.map(({ field, value }) => `${field.name} (byte ${field.at}) = ${value}`);
  const cut = cutTo === null ? "" : `, cut to ${cutTo}`;
  return `${world.name}: ${set.join(", ")}${isSealed ? "" : ", unsealed"}${cut}, seed ${seed}`;
}

/** A process with the files of all worlds, in which cases run. */
export class FormatStage {
  readonly worlds: readonly World[];
  readonly #stage = new Stage();

  constructor(worlds: readonly World[]) {
    this.worlds = worlds;
    for (const world of worlds) this.#putWhole(world);
  }

  #putWhole({ path, bytes, others }: World): void {
    putFile(this.#stage.disk, path, bytes);
    for (const [other, content] of others) putFile(this.#stage.disk, other, content);
  }

  /** Runs a case; throws what it finds. Returns how it went. */
  run(drawn: FormatCase): string {
    const { world } = drawn;
    const { watch, disk } = this.#stage;
    const changed = this.#put(drawn);
    watch.start();
    const verdict = attempt(() => world.check(disk));
    if (!world.canWrite || drawn.seed % 2 === 0) this.#readOnly(drawn, verdict);
    watch.requireWritten();
    if (world.canWrite && drawn.seed % 4 !== 0) this.#write(drawn, verdict);
    const wasWritten = watch.wrote(world.path) || drawn.cutTo !== null;
    this.#stage.requireClosed();
    if (wasWritten) this.#putWhole(world);
    else this.#restore(world, changed);
    if (drawn.seed % 16 === 0) this.#stage.useNeighbour();
    if (verdict === null) return "without a fault";
    return verdict instanceof SystemError ? "refused" : "with faults";
  }

  /** Puts the case into the file. Returns the ranges that differ from the world's bytes. */
  #put({ world, edits, isSealed, cutTo }: FormatCase): [at: number, end: number][] {
    const { bytes, sealed } = world;
    const changed: [number, number][] = [];
    const before: Uint8Array[] = [];
    const keep = (at: number, end: number): void => {
      changed.push([at, end]);
      before.push(bytes.slice(at, end));
    };
    for (const { field, value } of edits) {
      keep(field.at, field.at + field.width);
      setValue(bytes, field, value);
    }
    for (const { at, lengthBytes } of isSealed ? sealed : []) {
      if (!edits.some(({ field }) => field.at >= at && field.at < at + lengthBytes)) continue;
      keep(at + 4, at + 8);
      const view = new DataView(bytes.buffer);
      view.setUint32(at + 4, 0, true);
      view.setUint32(at + 4, crc32c(bytes.subarray(at, at + lengthBytes)), true);
    }
    this.#restore(world, changed);
    if (cutTo !== null) {
      const file = this.#stage.disk.open(world.path, "write");
      file.truncate(cutTo);
      file.close();
    }
    for (const [i, [at]] of [...changed.entries()].reverse()) bytes.set(before[i], at);
    return changed;
  }

  /** Writes ranges of a world's bytes to its file. */
  #restore({ path, bytes }: World, ranges: readonly [at: number, end: number][]): void {
    const file = this.#stage.disk.open(path, "write");
    for (const [at, end] of ranges) file.writeAt(bytes.slice(at, end), at);
    file.close();
  }

  #serve(world: World, readOnly: boolean): SimulatedDevice | SystemError {
    const options = { readOnly, retry: NO_RETRY };
    return attempt(() => this.#stage.serveImage(world.image, options));
  }

  /** Reads, and asks for extents. */
  #readOnly(drawn: FormatCase, verdict: SystemError | string | null): void {
    const { world, edits } = drawn;
    const isSound = verdict === null;
    const device = this.#serve(world, true);
    if (device instanceof SystemError) {
      // A check does not look for other files.
      const mayBe = !isSound || world.others.size > 0 ||
        edits.some(({ field }) => NAMES.test(field.name));
      hold(mayBe, () => `A sound image is refused: ${device.message}`);
      return;
    }
    hold(!(verdict instanceof SystemError) || world.repair === undefined, "The check is stricter");
    const { sectors } = device.vbd;
    const places = [...PLACES, sectors - 8].filter((at) => at >= 0 && at + 8 <= sectors);
    const reads = places.map((at) => ({ at, outcome: device.read(at, 8) }));
    if (sectors > 0) device.status(0, Math.min(sectors, 65536));
    device.settle();
    if (isSound) this.#compare(drawn, reads);
    const errno = this.#stage.endService();
    hold(errno === 0, () => `Closing what was only read ends with error ${errno}`);
  }

  #compare(
    drawn: FormatCase,
    reads: readonly { at: number; outcome: ReturnType<SimulatedDevice["read"]> }[],
  ): void {
    const { world } = drawn;
    const reader = world.reader?.(this.#stage.disk) ?? null;
    for (const { at, outcome: { errno, data } } of reads) {
      // A check does not look into compressed clusters.
      hold(
        errno === 0 || isCompressed(drawn),
        () => `Reading sector ${at} ends with error ${errno}`,
      );
      if (reader === null || data === null) continue;
      const wanted = new Uint8Array(8 * SECTOR);
      reader.read(wanted, at);
      requireSame(data, wanted, at);
    }
    reader?.close();
  }

  /** Writes, and reads that back, or mends the image. A sound image stays sound. */
  #write(drawn: FormatCase, verdict: SystemError | string | null): void {
    const { world, seed } = drawn;
    const random = new Random(seed);
    const { disk, watch } = this.#stage;
    if (world.repair !== undefined && random.chance(0.15)) {
      const refusal = attempt(() => world.repair?.(disk));
      if (refusal instanceof SystemError) hold(verdict !== null, () => refusal.message);
      else this.#requireSound(world, "a repair");
    }
    const device = this.#serve(world, false);
    if (device instanceof SystemError) return;
    const model = this.#makeRequests(device, random, verdict === null && !isCompressed(drawn));
    const errno = this.#stage.endService();
    watch.requireWritten(world.path, ...world.others.keys());
    if (verdict === null) {
      hold(errno === 0 || isCompressed(drawn), () => `Closing ends with error ${errno}`);
      this.#requireSound(world, "writes");
    } else if (typeof verdict === "string") {
      const after = attempt(() => world.check(disk));
      hold(!(after instanceof SystemError), () => `An image that opened does not: ${after}`);
    }
    if (model !== null && random.chance(0.3)) this.#compareModel(world, model);
  }

  #requireSound(world: World, after: string): void {
    const fault = attempt(() => world.check(this.#stage.disk));
    hold(fault === null, () => `After ${after}: ${fault}`);
  }

  /** Returns what sectors hold afterwards, when all requests must end well. */
  #makeRequests(
    device: SimulatedDevice,
    random: Random,
    isSound: boolean,
  ): Map<number, number> | null {
    const { sectors } = device.vbd;
    const model = new Map<number, number>();
    for (let i = 0; i < 5 && sectors > 0; i++) {
      const count = 1 + random.below(40);
      const sector = random.chance(0.5)
        ? PLACES[random.below(PLACES.length)] - random.below(4)
        : random.below(Math.min(sectors, DISK_SECTORS));
      if (sector < 0 || sector + count > sectors) continue;
      const dice = random.below(8);
      const outcome = dice < 5
        ? device.write(sector, stampedSectors(sector, count, 9 + i), dice === 0)
        : dice < 7
        ? device.zero(sector, count)
        : device.discard(sector, count);
      if (random.chance(0.3)) device.flush();
      device.settle();
      hold(!isSound || outcome.errno === 0, () => `A change ends with error ${outcome.errno}`);
      const read = device.read(sector, count);
      device.settle();
      if (!isSound) continue;
      hold(read.data !== null, () => `A read of what was written ends with ${read.errno}`);
      for (let k = 0; k < count; k++) {
        if (dice >= 7) model.delete(sector + k);
        else model.set(sector + k, dice < 5 ? 9 + i : 0);
      }
      if (dice < 7) requireModel(read.data, model, sector);
    }
    return isSound ? model : null;
  }

  /** What was written is there when the image is opened again. */
  #compareModel(world: World, model: ReadonlyMap<number, number>): void {
    if (model.size === 0) return;
    const device = this.#serve(world, true);
    if (device instanceof SystemError) throw device;
    for (const sector of model.keys()) {
      if (model.has(sector - 1)) continue;
      let end = sector + 1;
      while (model.has(end)) end++;
      const { data } = settledRead(device, sector, Math.min(end - sector, 400));
      requireModel(data, model, sector);
    }
    this.#stage.endService();
  }
}

/** Whether clusters are compressed: in the world, or by a flag that was set. */
function isCompressed({ world, edits }: FormatCase): boolean {
  const flag = world.image.startsWith("qcow:") ? 63n : 62n;
  return world.isCompressed ||
    edits.some(({ field, value }) => field.name.startsWith("l2[") && (value >> flag & 1n) === 1n);
}

function settledRead(device: SimulatedDevice, sector: number, count: number): { data: Uint8Array } {
  const outcome = device.read(sector, count);
  device.settle();
  const { data, errno } = outcome;
  hold(data !== null, () => `A read after the close ends with ${errno}`);
  return { data };
}

function requireModel(data: Uint8Array, model: ReadonlyMap<number, number>, first: number): void {
  const words = new Uint32Array(data.buffer, data.byteOffset, data.length / 4);
  for (let i = 0; i < data.length / SECTOR; i++) {
    const stamp = model.get(first + i);
    if (stamp === undefined) continue;
    const isRight = words[i * 128] === (stamp === 0 ? 0 : first + i) &&
      words[i * 128 + 127] === stamp;
    hold(isRight, () => `Sector ${first + i} has stamp ${words[i * 128 + 127]}, not ${stamp}`);
  }
}

function requireSame(got: Uint8Array, wanted: Uint8Array, sector: number): void {
  for (let i = 0; i < got.length; i++) {
    if (got[i] === wanted[i]) continue;
    hold(false, `Sector ${sector + Math.floor(i / SECTOR)} differs from what its tables say`);
  }
}
