import { Errno } from "../../../../ffi/errno.ts";
import { osStorage, type Storage } from "../../../../src/files/storage.ts";
import { createDynamic } from "../../../../src/vhd/create.ts";
import type { SimulatedDisk } from "../../../../src/testing/simulated_disk.ts";
import { type OpenOptions, Vbd } from "../../../../src/vbd/vbd.ts";
import { SECTOR_BYTES, SimulatedDevice, Simulation, stampedSectors } from "../../../support/sim.ts";
import { putFile } from "../../../support/vhd.ts";
import { hold } from "./finding.ts";
import { Watch } from "./watch.ts";
import { FOLDER, FORBIDDEN, worldOf } from "./worlds.ts";

const NEIGHBOUR = `${FOLDER}/neighbour.vhd`;
const NEIGHBOUR_SECTORS = 8192;

/**
 * A process that serves images of a simulated disk. One disk of it is well-behaved and in use all the
 * time; the images of cases come and go beside it.
 */
export class Stage {
  readonly #simulation = new Simulation({ seed: 1 });
  readonly disk: SimulatedDisk = this.#simulation.disk;
  readonly watch: Watch;
  readonly #vbd = new Vbd(this.#simulation.context, 1);
  readonly #neighbour: SimulatedDevice;
  /** What each sector of the neighbour must hold: a stamp; 0 for zeros. */
  readonly #stamps = new Int32Array(NEIGHBOUR_SECTORS);
  #stamp = 0;

  constructor() {
    const { disk } = this;
    createDynamic(NEIGHBOUR, { storage: disk, sizeBytes: NEIGHBOUR_SECTORS * SECTOR_BYTES });
    const [secret] = worldOf("dynamic").files.values();
    for (const path of FORBIDDEN) putFile(disk, path, secret);
    this.#neighbour = this.#simulation.open(`vhd:${NEIGHBOUR}`);
    this.watch = new Watch(disk);
  }

  /** Opens the VHD of a case; throws a refusal. */
  serve(path: string, options: OpenOptions): SimulatedDevice {
    return this.serveImage(`vhd:${path}`, options);
  }

  /** Opens an image of any type; throws a refusal. */
  serveImage(name: string, options: OpenOptions): SimulatedDevice {
    this.#vbd.open(name, options);
    return new SimulatedDevice(this.#simulation, this.#vbd);
  }

  /** Closes the image that `serve` opened; returns an errno. */
  endService(): number {
    // Each run of the loop looks through the log for faults.
    this.#simulation.log.length = 0;
    let result: number | null = null;
    this.#vbd.close((error) => result = error?.errno ?? 0);
    this.#simulation.runUntil(() => result !== null, "Closing");
    return result ?? Errno.EIO;
  }

  /** Uses the neighbour: a write, and a read of something that was written before. */
  useNeighbour(): void {
    const stamp = ++this.#stamp;
    const sector = (stamp * 7919) % (NEIGHBOUR_SECTORS - 8);
    const write = this.#neighbour.write(sector, stampedSectors(sector, 8, stamp));
    this.#stamps.fill(stamp, sector, sector + 8);
    this.#neighbour.settle();
    const from = (stamp * 104_729) % (NEIGHBOUR_SECTORS - 64);
    const read = this.#neighbour.read(from, 64);
    this.#neighbour.settle();
    hold(write.errno === 0 && read.errno === 0 && read.data !== null, "The neighbour fails");
    const words = new Uint32Array(read.data.buffer, read.data.byteOffset, 64 * 128);
    for (let i = 0; i < 64; i++) {
      const wanted = this.#stamps[from + i];
      const right = words[i * 128 + 127] === wanted &&
        words[i * 128] === (wanted === 0 ? 0 : from + i);
      hold(right, () => `Sector ${from + i} of the neighbour is wrong`);
    }
  }

  /** Runs something whose files are those of the simulated disk. */
  async onDisk<T>(work: () => Promise<T>): Promise<T> {
    const before = { ...osStorage };
    Object.assign(osStorage, methodsOf(this.disk));
    try {
      return await work();
    } finally {
      Object.assign(osStorage, before);
    }
  }

  /** Removes the files of a case. Every file must be closed. */
  clear(): void {
    for (const path of this.disk.paths) {
      if (path === NEIGHBOUR || FORBIDDEN.includes(path)) continue;
      this.disk.remove(path);
    }
    this.requireClosed();
  }

  /** Requires that a case has left no file open. */
  requireClosed(): void {
    const { openFiles } = this.disk;
    hold(openFiles === 2, () => `${openFiles - 2} files of the case are still open`);
  }

  close(): void {
    this.#neighbour.close();
    this.#vbd.destroy();
    this.#simulation.close();
  }
}

function methodsOf(disk: SimulatedDisk): Storage {
  return {
    open: (path, mode, options) => disk.open(path, mode, options),
    realPath: (path) => disk.realPath(path),
    locate: (path) => disk.locate(path),
    status: (path) => disk.status(path),
    exists: (path) => disk.exists(path),
    workingDirectory: () => disk.workingDirectory(),
    rename: (from, to) => disk.rename(from, to),
    renameToNew: (from, to) => disk.renameToNew(from, to),
    link: (from, to) => disk.link(from, to),
    remove: (path) => disk.remove(path),
  };
}
