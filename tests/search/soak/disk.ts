/**
 * A disk of a soak: what it is, where it is served, and what it must hold.
 *
 * @module
 */
import { DiskModel, type Moment } from "./model.ts";

/** Sectors in front of this one belong to fio and qemu-io; ours lie behind. */
export const FOREIGN_SECTORS = 8 * 2048;

/** Disks do not grow beyond this. */
export const MOST_MIB = 72;

/** A request that was lost so long ago has arrived, or never will. */
export const LOST_MS = 5000;

/** What a disk is made of. */
export interface DiskPlan {
  readonly name: string;
  /** What the report calls it: `vhd`, `chain`, `encrypted`. */
  readonly kind: string;
  /** Filters in front of the image, each with its colon: `log:bc:8:`. */
  readonly filters: string;
  readonly base: "dynamic" | "fixed" | "raw" | "ram" | "nbdkit" | "qemu-nbd";
  /** Images above the base when the soak starts. */
  readonly snapshots: number;
  readonly isEncrypted: boolean;
  readonly sizeMib: number;
  /** Verifying clients; each has every n-th stripe. */
  readonly writers: number;
  /** Where the files are: on tmpfs, on a disk, or on a filesystem that will be full for a while. */
  readonly medium: "tmpfs" | "disk" | "small";
  /** Options of `tap-ctl open`. */
  readonly options: readonly string[];
}

/** Where a disk is served. */
export interface Place {
  readonly pid: number;
  readonly minor: number;
  readonly socket: string;
}

/** An image below the served one: what it holds lies between two moments of the disk. */
export interface Layer {
  readonly path: string;
  readonly before: Moment;
  readonly after: Moment;
}

/** Lets one holder at a time in, in order. */
class Lock {
  #tail: Promise<void> = Promise.resolve();
  #holders = 0;

  get isHeld(): boolean {
    return this.#holders > 0;
  }

  async take(): Promise<() => void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const before = this.#tail;
    this.#tail = before.then(() => promise);
    this.#holders++;
    await before;
    return () => {
      this.#holders--;
      resolve();
    };
  }
}

export class SoakDisk {
  readonly model: DiskModel;
  /** Held by the event that changes the disk. */
  readonly lock = new Lock();
  /** The served image: `vhd:/path`, with filters in front. */
  image = "";
  /** Images below the served one that we know the content of, the newest first. */
  readonly layers: Layer[] = [];
  /** Rises each time that the disk's clients lose their connections for a reason of ours. */
  interruptions = 0;
  /** fio or another foreign program writes to the disk's first part. */
  hasGuest = false;
  /** Clients are asked to send nothing. */
  #quiet = 0;
  #place: Place | null = null;
  #ended = false;
  #waiting: PromiseWithResolvers<void> = Promise.withResolvers();
  #names = 0;
  #busyWriters = 0;

  constructor(readonly plan: DiskPlan, number: number, readonly folder: string) {
    const { sizeMib, isEncrypted } = plan;
    const sectors = sizeMib * 2048;
    this.model = new DiskModel(number, { firstSector: FOREIGN_SECTORS, sectors, isEncrypted });
  }

  get name(): string {
    return this.plan.name;
  }

  get place(): Place | null {
    return this.#place;
  }

  get uri(): string {
    return `nbd+unix:///?socket=${this.#place?.socket ?? ""}`;
  }

  /** Options that name the device for tap-ctl. Throws when the disk is not served. */
  get address(): string[] {
    if (this.#place === null) throw new Error(`${this.name} is not served`);
    return ["-p", `${this.#place.pid}`, "-m", `${this.#place.minor}`];
  }

  /** Whether the served image is a VHD. */
  get isVhd(): boolean {
    return this.image.startsWith(`${this.plan.filters}vhd:`);
  }

  /** Whether the disk loses its content when its image is closed. */
  get isVolatile(): boolean {
    return this.plan.base === "ram";
  }

  /** The file of the served image. */
  get path(): string {
    return this.image.slice(this.image.indexOf("/"));
  }

  get keyFile(): string {
    return `${this.folder}/disk,aes-xts-plain,512.key`;
  }

  /** The name of an image with the disk's filters in front. */
  imageOf(path: string): string {
    return `${this.plan.filters}${path.endsWith(".raw") ? "aio" : "vhd"}:${path}`;
  }

  /** A path that was not used before. */
  newPath(extension = "vhd"): string {
    return `${this.folder}/${++this.#names}.${extension}`;
  }

  /**
   * The disk is served again, by a new process or after a close. What was lost before has been done
   * or is gone, except at a server that is still at work for a client that was killed.
   */
  served(place: Place): void {
    const isRemote = ["nbdkit", "qemu-nbd"].includes(this.plan.base);
    this.model.settle(performance.now() - (isRemote ? LOST_MS : 0));
    this.#place = place;
    this.#wake();
  }

  /** The connections of all clients are about to be lost. */
  interrupt(): void {
    this.#place = null;
    this.interruptions++;
  }

  /** Clients have nothing to wait for any more. */
  end(): void {
    this.#ended = true;
    this.#wake();
  }

  #wake(): void {
    this.#waiting.resolve();
    this.#waiting = Promise.withResolvers();
  }

  /** Waits until the disk is served; null when the soak ends. */
  async whenServed(): Promise<Place | null> {
    for (;;) {
      if (this.#ended) return null;
      if (this.#place !== null) return this.#place;
      await this.#waiting.promise;
    }
  }

  /** A writer calls this around each group of its requests. */
  async whileLoud<T>(work: () => Promise<T>): Promise<T> {
    while (this.#quiet > 0) await this.#waiting.promise;
    this.#busyWriters++;
    try {
      return await work();
    } finally {
      this.#busyWriters--;
      this.#wake();
    }
  }

  /** Runs `work` while our writers send nothing. */
  async whileQuiet<T>(work: () => Promise<T>): Promise<T> {
    this.#quiet++;
    try {
      while (this.#busyWriters > 0) await this.#waiting.promise;
      return await work();
    } finally {
      this.#quiet--;
      this.#wake();
    }
  }

  /** A layer between two moments is now right below the served image. */
  pushLayer(layer: Layer): void {
    this.layers.unshift(layer);
  }
}
