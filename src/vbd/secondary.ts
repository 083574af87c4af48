import { type Done, Errno, SystemError, systemError } from "../../ffi/errno.ts";
import { firstLayer, lastLayer } from "../driver/layers.ts";
import type { DiskKey } from "../vhd/key.ts";
import type { SecondDisk } from "./beside_second.ts";
import type { MirrorKeeper } from "./mirror.ts";
import { layerKind, type ReadySecond } from "./mirror_wish.ts";
import type { OpenOptions } from "./open_options.ts";
import { Redirects } from "./redirects.ts";
import type { SecondarySummary } from "./statistics.ts";
import type { DeviceContext } from "./vbd_context.ts";

/** A second disk, before and while it is open. */
export interface ClosedDisk extends SecondDisk {
  open(name: string, options: OpenOptions): unknown;
  openLater(name: string, options: OpenOptions, done: Done): void;
  cancelOpening(): void;
}

/** What is known of the secondary image of a device. */
export interface SecondaryState {
  /** Whether a mirror failed, so that the device goes on without it. */
  readonly hasFailed: boolean;
  /** Whether sectors are at the secondary image alone, because the image is full. */
  readonly isFull: boolean;
  /** Whether it has data of the disk that the image and its parents lack. */
  readonly hasOwnData: boolean;
}

/** Why a secondary image cannot be taken for the layer of the disk that it was. */
const NO_LAYER = "it was a layer of the disk, and is another image now";

/**
 * The secondary image of a device: opens it, and keeps what must be known of it while the images are
 * closed because the device is paused.
 */
export class Secondary implements MirrorKeeper, SecondaryState {
  hasFailed = false;
  isFull = false;
  redirectedSectors = 0;
  readonly #make: () => ClosedDisk;
  readonly #context: DeviceContext;
  readonly #minor: number;
  readonly #changed: () => void;
  #redirects: { readonly map: Redirects; readonly sectors: number } | null = null;
  /** The secondary image as a layer, and whether it had data when it became one. */
  #layer: { readonly name: string; readonly hadData: boolean } | null = null;
  /** The disk that is being opened. */
  #opening: ClosedDisk | null = null;

  /**
   * @param make Makes a second disk, without an image.
   * @param changed Called when the image has become full, or a mirror has failed.
   */
  constructor(
    context: DeviceContext,
    { minor, make, changed }: { minor: number; make: () => ClosedDisk; changed: () => void },
  ) {
    this.#context = context;
    this.#minor = minor;
    this.#make = make;
    this.#changed = changed;
  }

  #log(message: string): void {
    this.#context.log(`Minor ${this.#minor}: ${message}`);
  }

  /** The secondary image as a layer of the chain, where it is one; else null. */
  #layerOf(name: string, { secondary, standby }: OpenOptions): ReadySecond | null {
    if (secondary === undefined || standby === true) return null;
    const kind = layerKind(name, secondary, this.#context);
    if (kind === "none") return null;
    if (this.#layer?.name !== secondary) {
      this.#layer = { name: secondary, hadData: kind === "data" };
    }
    return { layer: layerSpec(secondary) };
  }

  /** Whether a disk has data in this image that is nowhere else: it was a layer, and not a new one. */
  #isLayerWithData(secondary: string): boolean {
    return this.#layer?.name === secondary && this.#layer.hadData;
  }

  /**
   * Opens the secondary image that the options name, or calls back with null when there is none.
   *
   * @param name The image, `type:path`.
   * @param isKept Whether it is the one that the device had: then a device whose leaf and parents have
   * all data goes on without a secondary image that cannot be opened.
   */
  openLater(
    name: string,
    options: OpenOptions,
    isKept: boolean,
    done: (error: unknown, second: ReadySecond | null) => void,
  ): void {
    const { secondary } = options;
    if (secondary === undefined || (isKept && this.hasFailed)) return done(null, null);
    const layer = this.#layerOf(name, options);
    if (layer !== null) return done(null, layer);
    const disk = this.#make();
    const key = keyFor(secondary, options);
    this.#opening = disk;
    const hasData = this.isFull || this.#isLayerWithData(secondary);
    const opened: Done = (error) => {
      this.#opening = null;
      if (error === null && isKept && this.#isLayerWithData(secondary)) {
        disk.close(() => disk.destroy());
        return done(new SystemError(Errno.ESTALE, `Cannot open ${secondary} (${NO_LAYER})`), null);
      }
      if (error === null) return done(null, { disk });
      key?.wipe();
      disk.destroy();
      if (!isKept || hasData || error.errno === Errno.ECANCELED) return done(error, null);
      this.mirrorFailed(error);
      done(null, null);
    };
    try {
      disk.openLater(secondary, { ...secondOptions(options), key }, opened);
    } catch (error) {
      if (this.#opening === null) throw error;
      opened(systemError(error, `Cannot open ${secondary}`));
    }
  }

  /** As `openLater`, at once. Throws `SystemError`. */
  open(name: string, options: OpenOptions): ReadySecond | null {
    const { secondary } = options;
    if (secondary === undefined) return null;
    const layer = this.#layerOf(name, options);
    if (layer !== null) return layer;
    const disk = this.#make();
    const key = keyFor(secondary, options);
    try {
      disk.open(secondary, { ...secondOptions(options), key });
    } catch (error) {
      key?.wipe();
      disk.destroy();
      throw systemError(error, `Cannot open ${secondary}`);
    }
    return { disk };
  }

  /** For statistics; null without a secondary image. */
  describe({ secondary: name, standby }: OpenOptions): SecondarySummary | null {
    if (name === undefined) return null;
    const working = this.isFull ? "alone" : standby === true ? "standby" : "mirror";
    const state = this.hasFailed ? "failed" : working;
    return { name, state, redirected: this.redirectedSectors };
  }

  get hasOwnData(): boolean {
    return this.isFull || this.#layer?.hadData === true;
  }

  /** Whether one is being opened. */
  get isOpening(): boolean {
    return this.#opening !== null;
  }

  /** Gives up an `openLater` (ECANCELED). */
  cancelOpening(): void {
    this.#opening?.cancelOpening();
  }

  /**
   * Why a device cannot go on without its secondary image, or with another; null when it can.
   *
   * @param isSameLeaf Whether it goes on with the image that it had.
   */
  changeRefusal(
    { from, to, isSameLeaf }: { from?: string; to?: string; isSameLeaf: boolean },
  ): SystemError | null {
    if (from === undefined || from === to || (to === undefined && !isSameLeaf)) return null;
    if (!this.isFull && !this.#isLayerWithData(from)) return null;
    const why = this.isFull
      ? "the image became full, and what was written since is there alone"
      : "it is a layer of the disk, and had data before";
    const hint = `'unpause -2 null -a ${from}' goes on with it alone`;
    const message = `Cannot leave the secondary image ${from} (${why}; ${hint})`;
    return new SystemError(Errno.EBUSY, message);
  }

  /** The device runs with the secondary image that it was told, or with none. */
  settled(secondary: string | undefined): void {
    this.hasFailed = false;
    if (secondary === undefined) this.reset();
  }

  /** There is no secondary image any more. */
  reset(): void {
    this.hasFailed = false;
    this.isFull = false;
    this.redirectedSectors = 0;
    this.#layer = null;
    this.#redirects?.map.release();
    this.#redirects = null;
  }

  redirectsOf(sectors: number): Redirects {
    const known = this.#redirects;
    if (known?.sectors === sectors) return known.map;
    const map = new Redirects(sectors);
    if (known !== null) {
      map.copyFrom(known.map, Math.min(sectors, known.sectors));
      known.map.release();
    }
    this.#redirects = { map, sectors };
    return map;
  }

  leafFull(): void {
    this.isFull = true;
    this.#log("the image is full: writes go to the secondary image alone from now on");
    this.#changed();
  }

  mirrorFailed(why: SystemError): void {
    this.hasFailed = true;
    this.#log(`the secondary image has failed, and is not written to any more: ${why.message}`);
    this.#changed();
  }

  redirected(sectors: number): void {
    this.redirectedSectors += sectors;
  }
}

/** A request to a secondary image is made once: the device decides what an error means. */
function secondOptions({ readOnly, direct }: OpenOptions): OpenOptions {
  return { readOnly, direct, retry: { attempts: 0 } };
}

/**
 * The key of a secondary image, for a type that can be encrypted: it must be if the disk is. The second
 * disk wipes its copy.
 */
function keyFor(secondary: string, { key }: OpenOptions): DiskKey | undefined {
  if (key === undefined) return undefined;
  try {
    return lastLayer(secondary).driver.takesKey === true ? key.copy() : undefined;
  } catch {
    // Opening the image says why.
    return undefined;
  }
}

/** Closes a second disk that is not needed after all. */
export function leaveSecond(second: ReadySecond | null): void {
  if (second === null || !("disk" in second)) return;
  const { disk } = second;
  disk.close(() => disk.destroy());
}

function layerSpec(name: string): { type: string; path: string } {
  const { type, path } = firstLayer(name);
  return { type, path };
}
