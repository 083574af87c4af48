/**
 * Makes chains of images, as they may come from anywhere, and says what they hold. A chain is
 * decided by the random numbers that it is made from.
 *
 * @module
 */
import { AesXts } from "../../../ffi/aes_xts.ts";
import type { Storage } from "../../../src/files/storage.ts";
import type { Random } from "../../../src/testing/random.ts";
import { encodeFooter, HD_TYPE_FIXED } from "../../../src/vhd/format/footer.ts";
import type { KeyHash } from "../../../src/vhd/format/batmap.ts";
import { hashKey } from "../../../src/vhd/key.ts";
import { hasLibcrypto } from "../../support/libcrypto.ts";
import { stamped } from "../sim/stamps.ts";
import { heldRuns, planBlocks, putBlocks } from "./blocks.ts";
import { Content, type Run } from "./content.ts";
import { someCreator, someFooter } from "./creators.ts";
import { someNames } from "./locators.ts";
import {
  MOST_BLOCK,
  MOST_ENTRIES,
  MOST_SECTORS,
  pick,
  type Shape,
  type SizeLimits,
  someSectors,
  someShape,
} from "./sizes.ts";
import { type Damage, makeSparse } from "./sparse_image.ts";

/** Limits and probabilities of a chain. */
export interface ChainOptions {
  /** The folder of the top image; its other images are in it and below it. */
  readonly folder: string;
  /** Makes a folder; a storage without folders needs none. */
  readonly makeFolder?: (path: string) => void;
  /**
   * Makes a block device of at least this size, and returns true; by default images are files. Each
   * image gets a device with the probability 0.3.
   */
  readonly makeDevice?: (path: string, sizeBytes: number) => boolean;
  /** The most layers; 6 by default. */
  readonly mostLayers?: number;
  /** The size of a disk in sectors, where it is not extreme; 20,000 by default. */
  readonly mostSectors?: number;
  /** The most sectors of data that an image holds; 1,500 by default. */
  readonly mostDataSectors?: number;
  /** The probability of sizes and places at the limits of the format; 0.08 by default. */
  readonly extremes?: number;
  /** Whether each image can be opened for writing and hold its whole disk. */
  readonly writable?: boolean;
  /** Whether a footer or its backup may be wrong; true by default. */
  readonly wrongFooters?: boolean;
  /** Whether data may lie where no bitmap shows it; true by default. */
  readonly stale?: boolean;
  /** The probability of an encrypted chain; 0.1 by default. */
  readonly encrypted?: number;
  /** The probability of an image with a wrong batmap or footer, or stale data; 0.3 by default. */
  readonly damaged?: number;
  /** Whether the top may be a fixed image; true by default. */
  readonly flatTop?: boolean;
  /** Names with only ASCII letters, for programs that are called with them. */
  readonly plainNames?: boolean;
  /** The first stamp of a sector; 1 by default. */
  readonly firstStamp?: number;
}

/** The kinds of images in a chain. */
export type ImageKind = "raw" | "fixed" | "dynamic" | "differencing";

/** An image of a chain. */
export interface MadeImage extends Damage {
  readonly path: string;
  readonly kind: ImageKind;
  /** The sectors that the image itself holds, where it holds not all; the stamp 0 is zeros. */
  readonly held: readonly Run[];
  /** What the disk holds that this image and its parents make. */
  readonly content: Content;
  readonly blockSectors: number;
  readonly isEncrypted: boolean;
  /** Whether programs that ignore bitmaps, and read the footer at the start, read the same. */
  readonly isPlain: boolean;
  readonly isDevice: boolean;
  /** Whether the image can be opened for writing: its file has room for all blocks of the disk. */
  readonly isHoldable: boolean;
  /** One line. */
  readonly what: string;
}

/** A chain. */
export interface MadeChain {
  /** The top first. */
  readonly images: readonly MadeImage[];
  readonly top: MadeImage;
  /** The key of all encrypted images; null when none is. */
  readonly key: Uint8Array<ArrayBuffer> | null;
  /** The first stamp that was not used. */
  readonly nextStamp: number;
  /** Several lines, the top first. */
  readonly description: string;
}

/** Without libcrypto no image is encrypted. */
const CAN_ENCRYPT = hasLibcrypto();

const NAMES = [
  "disk",
  "base image",
  "Größe",
  "ディスク",
  "\u{1f4be}",
  "a%20b",
  "x&y;z",
  "bytes\udcff\udc80",
  "very-long-".repeat(9),
];
const FOLDERS = ["", "", "", "parents", "parents/old", "Ordner ü"];

/** Whether all blocks of a disk fit into 2 TiB, whatever lies between them. */
function blocksFit({ sectors, blockSectors }: Shape): boolean {
  return Math.ceil(sectors / blockSectors) * (blockSectors + 60) < 2 ** 32 - 2 ** 20;
}

interface Layer {
  readonly path: string;
  readonly uuid: Uint8Array;
  readonly image: MadeImage;
}

interface Encryption {
  readonly key: Uint8Array<ArrayBuffer>;
  readonly cipher: AesXts;
  readonly keyhash: KeyHash;
}

/** Makes a chain in a storage. */
export function makeChain(random: Random, storage: Storage, options: ChainOptions): MadeChain {
  return new ChainMaker(random, storage, options).make();
}

class ChainMaker {
  readonly #random: Random;
  readonly #storage: Storage;
  readonly #options: ChainOptions;
  readonly #limits: SizeLimits;
  #stamp: number;

  constructor(random: Random, storage: Storage, options: ChainOptions) {
    this.#random = random;
    this.#storage = storage;
    this.#options = options;
    this.#stamp = options.firstStamp ?? 1;
    const { mostSectors = 20_000, extremes = 0.08, writable = false } = options;
    this.#limits = { mostSectors, extremes, writable };
  }

  make(): MadeChain {
    const { mostLayers = 6, encrypted = 0.1, flatTop = true } = this.#options;
    let layers = 1;
    while (layers < mostLayers && this.#random.chance(0.55)) layers++;
    const wanted = this.#random.chance(encrypted);
    const encryption = wanted && CAN_ENCRYPT ? this.#encryption() : null;
    const images: MadeImage[] = [];
    let below: Layer | null = null;
    for (let depth = layers - 1; depth >= 0; depth--) {
      below = below !== null || !(depth > 0 || flatTop)
        ? this.#sparse(depth, below, encryption)
        : this.#base(depth, encryption);
      images.unshift(below.image);
    }
    encryption?.cipher.close();
    const isEncrypted = images.some((image) => image.isEncrypted);
    return {
      images,
      top: images[0],
      key: isEncrypted ? encryption?.key ?? null : null,
      nextStamp: this.#stamp,
      description: images.map(({ path, what }) => `${path}: ${what}`).join("\n"),
    };
  }

  readonly #nextStamp = (): number => this.#stamp++;

  #encryption(): Encryption {
    const random = this.#random;
    const key = Uint8Array.from(
      { length: random.chance(0.5) ? 32 : 64 },
      (_, i) => (random.below(256) & 0xf0) | (i & 0x0f),
    );
    const nonce = Uint8Array.from({ length: 32 }, () => random.below(256));
    const keyhash = { cookie: 1, nonce, hash: hashKey(key, nonce) };
    return { key, cipher: new AesXts(key), keyhash };
  }

  #base(depth: number, encryption: Encryption | null): Layer {
    const dice = this.#random.next();
    if (depth > 0 && dice < 0.25) return this.#flat(depth, "raw");
    return dice < 0.4 ? this.#flat(depth, "fixed") : this.#sparse(depth, null, encryption);
  }

  /** A path for an image, in its folder. */
  #path(depth: number, suffix: string): string {
    const { folder, makeFolder, plainNames = false } = this.#options;
    const names = plainNames ? ["disk", "image"] : NAMES;
    const inside = depth === 0 ? "" : pick(this.#random, plainNames ? ["", "parents"] : FOLDERS);
    const place = inside === "" ? folder : `${folder}/${inside}`;
    makeFolder?.(place);
    return `${place}/${pick(this.#random, names)}-${depth}${suffix}`;
  }

  #makeDevice(path: string, sizeBytes: number): boolean {
    const { makeDevice } = this.#options;
    return makeDevice !== undefined && this.#random.chance(0.3) && makeDevice(path, sizeBytes);
  }

  #flat(depth: number, kind: "raw" | "fixed"): Layer {
    const random = this.#random;
    const sectors = someSectors(random, this.#limits);
    const path = this.#path(depth, kind === "raw" ? ".raw" : ".vhd");
    const isDevice = this.#makeDevice(path, (sectors + 64) * 512);
    const content = new Content(sectors);
    const file = this.#storage.open(path, "create");
    let left = this.#options.mostDataSectors ?? 1500;
    for (let i = random.below(6); i > 0 && left > 0; i--) {
      const sector = random.below(sectors);
      const count = Math.min(1 + random.below(200), sectors - sector, left);
      const stamp = this.#nextStamp();
      file.writeAt(stamped(sector, count, stamp), sector * 512);
      content.put(sector, count, stamp);
      left -= count;
    }
    const creator = someCreator(random, { isTap: random.chance(0.5) });
    const footer = someFooter(random, { creator, diskType: HD_TYPE_FIXED, sectors });
    let what = `${kind}, ${sectors} sectors`;
    if (kind === "fixed") {
      const slack = random.chance(0.3) ? random.below(2000) : 0;
      const at = isDevice ? file.sizeBytes() - 512 : (sectors + slack) * 512;
      file.writeAt(encodeFooter(footer), at);
      what += ` by ${JSON.stringify(creator.application)}, ${slack} sectors of slack`;
    } else if (!isDevice) {
      // The last sector of a raw file may be cut: it holds nothing, so zeros are missing.
      const missing = content.at(sectors - 1) === 0 && random.chance(0.4) ? random.below(512) : 0;
      file.truncate(sectors * 512 - missing);
      what += missing > 0 ? `, ${missing} bytes short` : "";
    }
    file.sync();
    file.close();
    const image = {
      path,
      kind,
      content,
      held: content.runs(),
      blockSectors: 0,
      isEncrypted: false,
      isPlain: true,
      isDevice,
      isHoldable: true,
      checkFails: false,
      dataCheckFails: false,
      what,
    };
    return { path, image, uuid: kind === "raw" ? new Uint8Array(16) : footer.uuid };
  }

  #sparse(depth: number, below: Layer | null, encryption: Encryption | null): Layer {
    const random = this.#random;
    const {
      wrongFooters = true,
      stale = true,
      damaged = 0.3,
      extremes = 0.08,
      mostDataSectors = 1500,
    } = this.#options;
    const shape = this.#shapeAbove(below);
    const path = this.#path(depth, ".vhd");
    const isDamaged = random.chance(damaged);
    // A key for a disk whose top image is not encrypted is refused.
    const own = encryption !== null && (depth === 0 || random.chance(0.8)) ? encryption : null;
    const blocks = planBlocks(random, {
      shape,
      mostDataSectors,
      nextStamp: this.#nextStamp,
      below: below?.image.content ?? null,
      // Zeros must be encrypted, too, which takes long.
      mostFilledBlock: own === null ? MOST_BLOCK : 8192,
      stale: stale && isDamaged && own === null && random.chance(0.3),
      full: below === null && random.chance(0.3),
    });
    const blockBytes = blocks.length * (shape.blockSectors + 20) * 512;
    const isDevice = this.#makeDevice(path, blockBytes + shape.entries * 4 + 400 * 512);
    const names = below === null ? null : someNames(random, {
      childPath: path,
      parentPath: below.path,
      isRaw: below.image.kind === "raw",
    });
    const far = !isDevice && !this.#limits.writable && random.chance(extremes);
    const made = makeSparse(random, this.#storage, {
      path,
      shape,
      blocks,
      parent: below === null || names === null ? null : { uuid: below.uuid, names },
      encryption: own,
      far,
      damaged: isDamaged,
      wrongFooters,
    });
    const content = below?.image.content.resized(shape.sectors) ?? new Content(shape.sectors);
    putBlocks(content, blocks, shape);
    const image: MadeImage = {
      path,
      kind: below === null ? "dynamic" : "differencing",
      content,
      held: heldRuns(blocks, shape),
      blockSectors: shape.blockSectors,
      isEncrypted: own !== null,
      isPlain: made.isPlain,
      isDevice,
      isHoldable: !far && blocksFit(shape),
      checkFails: made.checkFails,
      dataCheckFails: made.dataCheckFails,
      what: made.what,
    };
    return { path, image, uuid: made.uuid };
  }

  /** The shape of an image on top of another: mostly of the same size. */
  #shapeAbove(below: Layer | null): Shape {
    const shape = someShape(this.#random, this.#limits);
    if (below === null || this.#random.chance(0.15)) return shape;
    const other = this.#random.chance(0.25) ? this.#random.below(80) - 40 : 0;
    const sectors = Math.max(1, Math.min(below.image.content.sectors + other, MOST_SECTORS));
    let { blockSectors } = shape;
    while (sectors / blockSectors > MOST_ENTRIES && blockSectors < MOST_BLOCK) blockSectors *= 2;
    const spare = shape.entries - Math.ceil(shape.sectors / shape.blockSectors);
    return { sectors, blockSectors, entries: Math.ceil(sectors / blockSectors) + spare };
  }
}
