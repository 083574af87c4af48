import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { Arena, equalMemory, memoryAddress, SECTOR_BYTES, zeroSectors } from "../../ffi/memory.ts";
import { REQUEST_SECTORS, REQUEST_SLOTS } from "../driver/driver.ts";
import { fileInName } from "../driver/layers.ts";
import { isSameFile } from "../files/open_file.ts";
import { osStorage } from "../files/storage.ts";
import { createEngine, type Engine } from "./engine.ts";
import { knownImage } from "./names.ts";
import { OpenImage } from "./open_image.ts";
import { type Piece, type Stretch, walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";
import { eachData } from "./zeros.ts";

/** Options of a rebase. */
export interface RebaseOptions extends WorkOptions {
  /** Only the name is changed: the new image must read like the one that was below before. */
  readonly unsafe?: boolean;
}

/**
 * Puts another image below an image. Where the two read differently, the image gets what it showed
 * before, so the disk reads the same at every moment, and this may be killed and repeated.
 *
 * @throws {SystemError} EOPNOTSUPP for types that do not go together, and for an image with snapshots; EINVAL for an image with nothing
 * below it; errors of the images.
 */
export async function rebaseImage(
  name: string,
  parent: string,
  { unsafe = false, onProgress, signal }: RebaseOptions = {},
): Promise<void> {
  const { kind, path } = knownImage(name, "rebase");
  const below = knownImage(parent, "put below another");
  if (kind.rebase === undefined || !kind.rebase.parents.includes(below.kind.type)) {
    const can = kind.rebase?.parents.join(" or ") ?? "no type";
    const what = `Cannot put ${parent} below ${name} (what is below it can be of ${can})`;
    throw new SystemError(Errno.EOPNOTSUPP, what);
  }
  if (!unsafe) kind.rebase.refuse?.(osStorage, path);
  const engine = createEngine(() => {});
  try {
    await refuseLoop(engine, path, { name, parent, parentPath: below.path, unsafe });
    if (!unsafe) await keepContent(engine, name, { parent, onProgress, signal });
  } finally {
    engine.close();
  }
  kind.rebase.run(osStorage, path, { type: below.kind.type, path: below.path, name: parent });
}

/**
 * Refuses an image as its own parent, and one that has it below it: no image of such a chain could be
 * opened. An image whose parents are missing may be put below another when nothing is read of it.
 */
async function refuseLoop(
  engine: Engine,
  path: string,
  { name, parent, parentPath, unsafe }: {
    name: string;
    parent: string;
    parentPath: string;
    unsafe: boolean;
  },
): Promise<void> {
  const own = osStorage.locate(path);
  const isOwn = (file: string): boolean => isSameFile(osStorage.locate(file), own);
  let isLoop = isOwn(parentPath);
  try {
    const image = await OpenImage.open(engine, parent, { readOnly: true });
    const names = image.layers.map(({ spec }) => `${spec.type}:${spec.path}`);
    await image.close(engine);
    isLoop ||= names.some((layer) => {
      const file = fileInName(layer);
      return file !== null && isOwn(file.path);
    });
  } catch (error) {
    if (!isLoop && !(unsafe && error instanceof SystemError)) throw error;
  }
  if (!isLoop) return;
  const what = `Cannot put ${parent} below ${name} (it is that image, or has it below it)`;
  throw new SystemError(Errno.ELOOP, what);
}

/** Writes into an image what it shows of the images below, where another one would show something else. */
async function keepContent(
  engine: Engine,
  name: string,
  { parent, ...options }: { parent: string } & Omit<RebaseOptions, "unsafe">,
): Promise<void> {
  const opened: OpenImage[] = [];
  const open = async (image: Promise<OpenImage>): Promise<OpenImage> => {
    opened.push(await image);
    return opened[opened.length - 1];
  };
  try {
    const old = await open(OpenImage.open(engine, name, { readOnly: true }));
    const below = await open(OpenImage.open(engine, parent, { readOnly: true }));
    const alone = await open(OpenImage.openAlone(engine, old.layers[0].spec));
    const missing: Stretch[] = [];
    await walkImage(engine, {
      source: alone,
      stretch: (stretch, isData) => void (isData || missing.push(stretch)),
    });
    const target = await open(OpenImage.open(engine, name, { readOnly: false }));
    const keeper = new Keeper(engine, { below, target });
    try {
      await keeper.keep({ old, missing, ...options });
      await engine.run((finished) => keeper.flush(finished));
      keeper.throwError();
    } finally {
      keeper.release();
    }
  } finally {
    for (const image of opened.reverse()) await image.close(engine);
  }
}

/** Compares pieces of a disk with another, and writes those that differ. */
class Keeper {
  readonly #engine: Engine;
  readonly #below: OpenImage;
  readonly #target: OpenImage;
  readonly #arena = new Arena(REQUEST_SLOTS * REQUEST_SECTORS * SECTOR_BYTES);
  readonly #read: ((errno: number) => void)[] = [];
  readonly #written: ((errno: number) => void)[] = [];
  #errno = 0;

  constructor(engine: Engine, { below, target }: { below: OpenImage; target: OpenImage }) {
    this.#engine = engine;
    this.#below = below;
    this.#target = target;
  }

  async keep(
    { old, missing, ...options }: Omit<RebaseOptions, "unsafe"> & {
      old: OpenImage;
      missing: readonly Stretch[];
    },
  ): Promise<void> {
    const { zeros } = this.#engine.context;
    const operations = this.#below.operations + this.#target.operations;
    this.#target.user = { requestDone: (slot, errno) => this.#written[slot](errno) };
    this.#below.user = { requestDone: (slot, errno) => this.#read[slot](errno) };
    const holes: Stretch[] = [];
    await walkImage(this.#engine, {
      source: old,
      ranges: missing,
      operations,
      ...options,
      stretch: (stretch, isData) => void (isData || holes.push(stretch)),
      take: (piece, done) => this.#compare(piece, done),
    });
    const end = this.#below.sectors;
    const inBelow = holes.map(({ sector, count }) => ({
      sector,
      count: Math.min(count, end - sector),
    }));
    await walkImage(this.#engine, {
      source: this.#below,
      ranges: inBelow,
      operations,
      ...options,
      take: ({ slot, sector, bytes, memorySector }, done) => {
        let isData = false;
        eachData(bytes, { unitSectors: 8, memorySector }, () => isData = true);
        if (!isData) return done(null);
        this.#write({ slot, sector, count: bytes.length / SECTOR_BYTES, at: zeros.at }, done);
      },
    });
  }

  /** Reads of the image that is to be below what was read of the disk. */
  #compare({ slot, sector, count, memorySector }: Piece, done: Done): void {
    const at = this.#arena.sector + slot * REQUEST_SECTORS;
    const there = Math.max(0, Math.min(count, this.#below.sectors - sector));
    if (there < count) zeroSectors(at + there, count - there);
    this.#read[slot] = (errno) => {
      if (errno !== 0) return done(this.#fault(errno, "read", sector, this.#below));
      const [a, b] = [memoryAddress(memorySector), memoryAddress(at)];
      if (equalMemory(a, b, count * SECTOR_BYTES)) return done(null);
      this.#write({ slot, sector, count, at: memorySector }, done);
    };
    if (there === 0) this.#read[slot](0);
    else this.#below.read(slot, sector, there, at);
  }

  #write(
    { slot, sector, count, at }: { slot: number; sector: number; count: number; at: number },
    done: Done,
  ): void {
    this.#written[slot] = (errno) =>
      done(errno === 0 ? null : this.#fault(errno, "write to", sector, this.#target));
    this.#target.write(slot, sector, count, at);
  }

  #fault(errno: number, doing: string, sector: number, { name }: OpenImage): SystemError {
    return new SystemError(errno, `Cannot ${doing} sector ${sector} of ${name}`);
  }

  /** Makes all writes durable. */
  flush(finished: () => void): void {
    this.#written[0] = (errno) => {
      this.#errno = errno;
      finished();
    };
    this.#target.flush(0);
  }

  throwError(): void {
    if (this.#errno === 0) return;
    throw new SystemError(this.#errno, `Cannot flush ${this.#target.name}`);
  }

  release(): void {
    this.#arena.release();
  }
}
