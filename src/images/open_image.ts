import { assert } from "../../ffi/assert.ts";
import { Errno, SystemError, systemError } from "../../ffi/errno.ts";
import {
  type ImageDriver,
  type ImageSpec,
  REQUEST_SECTORS,
  REQUEST_SLOTS,
  type RequestSink,
} from "../driver/driver.ts";
import { fileInName, firstLayer } from "../driver/layers.ts";
import { PieceTable } from "../driver/pieces.ts";
import { RetainedState } from "../driver/retained_state.ts";
import { isOpenHere } from "../files/lock.ts";
import { isSameFile } from "../files/open_file.ts";
import { osStorage } from "../files/storage.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import { ownedBy } from "../scheduler/scheduler.ts";
import { closeImage, openImages } from "../vbd/chain.ts";
import { Preparation } from "../vbd/preparation.ts";
import type { Engine } from "./engine.ts";

/** Is told of the requests of an open image. */
export interface ImageUser {
  /** The request of a slot has ended. */
  requestDone(slot: number, errno: number): void;
  /** Extents of a status request, in order, as `RequestSink.extent` has them. */
  extent?(slot: number, sectors: number, isData: boolean): void;
}

const noUser: ImageUser = { requestDone: () => {} };

/** An image and what is below it, open for one operation. A slot has one request at a time. */
export class OpenImage implements RequestSink, FaultOwner {
  failed = false;
  /** Whose requests they are. */
  user: ImageUser = noUser;
  readonly #name: string;
  readonly #left = new Float64Array(REQUEST_SLOTS);
  readonly #errno = new Int32Array(REQUEST_SLOTS);
  readonly #retained = new RetainedState();
  readonly #log: (message: string) => void;
  #images: readonly ImageDriver[] = [];
  #fault: unknown = null;

  private constructor(name: string, log: (message: string) => void) {
    this.#name = name;
    this.#log = log;
  }

  /**
   * Opens an image of any type and the images below it.
   *
   * @param name As for tapdisk: `vhd:/disk.vhd`.
   * @param findsHoles `status` looks for holes of the files in what the images hold, too.
   * @throws {SystemError} for what cannot be opened.
   */
  static async open(
    { context, run }: Engine,
    name: string,
    { readOnly, findsHoles = false }: { readOnly: boolean; findsHoles?: boolean },
  ): Promise<OpenImage> {
    const { type, path } = firstLayer(name);
    const leaf: ImageSpec = { type, path, readOnly, direct: false };
    return await OpenImage.#open({ context, run }, { leaf, isAlone: false, findsHoles });
  }

  /**
   * Opens one layer of a chain without those below it: what it does not hold itself is a hole.
   *
   * @param leaf As `layers` of an open chain has it.
   */
  static async openAlone(engine: Engine, leaf: ImageSpec): Promise<OpenImage> {
    // A hole of the file is zeros that hide what is below: this layer does hold them.
    return await OpenImage.#open(engine, { leaf, isAlone: true, findsHoles: false });
  }

  static async #open(
    { context, run }: Pick<Engine, "context" | "run">,
    { leaf, isAlone, findsHoles }: { leaf: ImageSpec; isAlone: boolean; findsHoles: boolean },
  ): Promise<OpenImage> {
    const image = new OpenImage(`${leaf.type}:${leaf.path}`, context.log);
    const preparation = new Preparation();
    const own = {
      ...context,
      scheduler: ownedBy(image, context.scheduler),
      pieces: new PieceTable(context.pieces),
      retained: image.#retained,
      faults: image,
      findsHoles,
      takePrepared: () => preparation.take(),
    };
    let failure: unknown = null;
    await run((finished) =>
      preparation.run(leaf, context, (error) => {
        try {
          if (error !== null) throw error;
          image.#images = isAlone
            ? [context.driverOf(leaf.type).open(leaf, own, image)]
            : openImages({ leaf }, own, image);
        } catch (thrown) {
          failure = thrown;
        }
        finished();
      })
    );
    if (failure !== null) throw failure;
    return image;
  }

  get #top(): ImageDriver {
    return this.#images[0];
  }

  /** The image's name. */
  get name(): string {
    return this.#name;
  }

  /** Size of the disk. */
  get sectors(): number {
    return this.#top.sectors;
  }

  /** The image, and the images below it. */
  get layers(): readonly ImageDriver[] {
    return this.#images;
  }

  /**
   * Refuses a file that the disk is read from as the place of its copy.
   *
   * @throws {SystemError} EINVAL.
   */
  refuseAsTarget(path: string): void {
    const target = osStorage.locate(path);
    const isLayer = this.layers.some(({ spec: { type, path } }) => {
      const file = fileInName(`${type}:${path}`);
      return file !== null && isSameFile(osStorage.locate(file.path), target);
    });
    // An image may have its data in another file.
    if (!isLayer && !isOpenHere(target)) return;
    const what = `Cannot write ${this.name} to ${path} (it is read from there)`;
    throw new SystemError(Errno.EINVAL, what);
  }

  /** The most sectors of one `zero`. */
  get zeroSectors(): number {
    return this.#top.zeroSectors;
  }

  /** The most operations that a request of the largest size needs. */
  get operations(): number {
    return this.#top.operationsFor(REQUEST_SECTORS);
  }

  /** Whether all data comes from files, and goes to files, by the page cache. */
  get isCached(): boolean {
    return this.#images.every(({ file }) => file !== undefined);
  }

  /** Reads sectors into I/O memory. */
  read(slot: number, sector: number, count: number, memorySector: number): void {
    this.#begin(slot, count);
    this.#top.read(slot, sector, count, memorySector);
  }

  /** Writes sectors from I/O memory. */
  write(slot: number, sector: number, count: number, memorySector: number): void {
    this.#begin(slot, count);
    this.#top.write(slot, sector, count, memorySector);
  }

  /** Makes sectors read as zeros. */
  zero(slot: number, sector: number, count: number): void {
    this.#begin(slot, count);
    this.#top.zero(slot, sector, count);
  }

  /** Brings what was written to stable storage. */
  flush(slot: number): void {
    this.#begin(slot, 1);
    this.#top.flush(slot);
  }

  /** Asks which sectors hold data. */
  status(slot: number, sector: number, count: number): void {
    this.#begin(slot, 0);
    this.#top.status(slot, sector, count);
  }

  #begin(slot: number, count: number): void {
    assert(this.#left[slot] === 0, "A slot of an image has two requests");
    this.#left[slot] = count;
    this.#errno[slot] = 0;
  }

  pieceDone(slot: number, sectors: number, errno: number): void {
    if (errno !== 0 && this.#errno[slot] === 0) this.#errno[slot] = errno;
    this.#left[slot] -= sectors;
    if (this.#left[slot] === 0) this.user.requestDone(slot, this.#errno[slot]);
  }

  extent(slot: number, sectors: number, isData: boolean): boolean {
    this.user.extent?.(slot, sectors, isData);
    return true;
  }

  statusDone(slot: number, errno: number): void {
    this.user.requestDone(slot, errno);
  }

  /** A driver threw: the operation ends with that. */
  fault(error: unknown): void {
    this.failed = true;
    this.#fault = error;
    throw error;
  }

  /**
   * Puts the images in order and closes them.
   *
   * @throws {SystemError} when what was written may be lost.
   */
  async close({ run }: Engine): Promise<void> {
    const images = this.#images;
    this.#images = [];
    if (images.length === 0) return;
    if (this.failed) {
      for (const image of images) image.abandon();
      throw this.#fault;
    }
    let failure: SystemError | null = null;
    await run((finished) => {
      let left = images.length;
      for (const image of images) {
        closeImage(image, this.#log, (error) => {
          failure ??= error === null ? null : systemError(error, `Cannot close ${this.#name}`);
          if (--left === 0) finished();
        });
      }
    });
    this.#retained.releaseAll();
    if (failure !== null) throw failure;
  }
}
