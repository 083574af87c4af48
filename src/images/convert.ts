import { type Done, Errno, SystemError } from "../../ffi/errno.ts";
import { SECTOR_BYTES } from "../../ffi/memory.ts";
import { writeOutput } from "../bulk/merge.ts";
import type { NewFile } from "../files/new_file.ts";
import type { RbdMaking } from "../../ffi/rbd_images.ts";
import { fileInName, firstLayer } from "../driver/layers.ts";
import { Compression } from "../qcow2/format/header.ts";
import { Compressors } from "./compressors.ts";
import { noFixed, requireFixed, requireNothingOfCeph } from "./create.ts";
import { createEngine, type Engine } from "./engine.ts";
import type { CompressionName, ImageKind } from "./kind.ts";
import { knownImage } from "./names.ts";
import { writeOnCeph } from "./on_ceph.ts";
import { OpenImage } from "./open_image.ts";
import { copyCompressed, copySequentially } from "./sequential.ts";
import { type Piece, type Stretch, walkImage } from "./walk.ts";
import type { WorkOptions } from "./work.ts";
import { eachData, UNIT_SECTORS } from "./zeros.ts";

/** Azure takes disks of whole MiB only. */
const AZURE_BYTES = 1 << 20;

/** Options of a conversion. */
export interface ConvertOptions extends WorkOptions {
  /** Makes a VHD with all its room at once. */
  readonly fixed?: boolean;
  /** Makes a VHD as Azure wants it: fixed, with whole MiB. What is added to the disk is zeros. */
  readonly azure?: boolean;
  /** Compresses the clusters of a QCOW2. */
  readonly compression?: CompressionName;
  /** Leaves out what is read as zeros, also where the source has data. True by default. */
  readonly detectZeros?: boolean;
  /** What a new image on Ceph has other than the cluster's defaults. */
  readonly onCeph?: RbdMaking;
  /** Takes lines that drivers log. */
  readonly log?: (message: string) => void;
}

/** What a conversion did. */
export interface Converted {
  /** Size of the disk. */
  readonly sectors: number;
  /** Sectors that were written. */
  readonly writtenSectors: number;
}

/**
 * Copies a disk into an image of another type, or of the same one. The new image has no parent. Holes
 * stay holes. The name of a file, or of a new image on Ceph, appears when the copy is whole and durable; a
 * block device, an export of an NBD server and an image on Ceph that exists are written in place.
 *
 * @param from An image as tapdisk names it, of any type: `vhd:/disk.vhd`.
 * @param to The image to make: `aio:/disk.raw`, `nbd:localhost:10809`.
 * @throws {SystemError} EEXIST for a file that exists; errors of the images.
 */
export async function convertImage(
  from: string,
  to: string,
  options: ConvertOptions = {},
): Promise<Converted> {
  const engine = createEngine(options.log ?? (() => {}));
  try {
    const source = await OpenImage.open(engine, from, { readOnly: true, findsHoles: true });
    try {
      return await convertOpen(engine, { source, to, options });
    } finally {
      await source.close(engine);
    }
  } finally {
    engine.close();
  }
}

interface Conversion {
  readonly source: OpenImage;
  readonly to: string;
  readonly options: ConvertOptions;
}

/** Throws `SystemError` EINVAL for options that the type of the new image does not have. */
function refuseOptions(
  to: string,
  { fixed = false, azure = false, compression, onCeph }: ConvertOptions,
): void {
  if (azure && !to.startsWith("vhd:")) {
    throw new SystemError(Errno.EINVAL, `Cannot make ${to} for Azure (it must be named vhd:FILE)`);
  }
  if (compression !== undefined && !to.startsWith("qcow2:")) {
    const why = "only a QCOW2 is compressed, which must be named qcow2:FILE";
    throw new SystemError(Errno.EINVAL, `Cannot compress ${to} (${why})`);
  }
  if (firstLayer(to).type !== "rbd") requireNothingOfCeph(to, onCeph);
  else if (fixed) throw noFixed(to);
}

async function convertOpen(engine: Engine, conversion: Conversion): Promise<Converted> {
  const { source, to, options } = conversion;
  const { signal, fixed, azure = false } = options;
  const { sectors } = source;
  const unitBytes = azure ? AZURE_BYTES : SECTOR_BYTES;
  const sizeBytes = Math.ceil(sectors * SECTOR_BYTES / unitBytes) * unitBytes;
  refuseOptions(to, options);
  if (firstLayer(to).type === "rbd") {
    const image = { name: to, sizeBytes, making: options.onCeph };
    const writtenSectors = await writeOnCeph(image, (target, isNew) => {
      return copyInto(engine, { ...conversion, target, isNew });
    });
    return { sectors, writtenSectors };
  }
  const file = fileInName(to);
  if (file === null) {
    const writtenSectors = await copyInto(engine, { ...conversion, target: to, isNew: false });
    return { sectors, writtenSectors };
  }
  const { kind } = knownImage(to, "make");
  const { create } = kind;
  if (create === undefined) {
    throw new SystemError(Errno.EOPNOTSUPP, `Cannot make an image named ${to}: it is only read`);
  }
  if (fixed === true) requireFixed(to, kind);
  const { storage } = engine.context.files;
  // A file that exists is refused anyway, and a device is written in place.
  const isDevice = storage.exists(file.path) && storage.status(file.path).kind === "block";
  if (isDevice) source.refuseAsTarget(file.path);
  const writtenSectors = await writeOutput(
    engine.context,
    { output: file.path, signal },
    async ({ path, same }) => {
      const copied = await copyOver(engine, { kind, file: { path, same }, sizeBytes }, conversion);
      if (copied !== null) return copied;
      create(storage, { path, same }, { sizeBytes, fixed: fixed === true || azure });
      // What a device held before shows in a raw image.
      const isNew = kind.type !== "aio" || storage.status(path).kind !== "block";
      return await copyInto(engine, { ...conversion, target: `${kind.type}:${path}`, isNew });
    },
  );
  return { sectors, writtenSectors };
}

/**
 * Makes a new image and writes all that a disk holds to it, from start to end.
 *
 * @returns The sectors that were written; null for a type whose images are not made like that.
 */
async function copyOver(
  engine: Engine,
  { kind, file, sizeBytes }: { kind: ImageKind; file: NewFile; sizeBytes: number },
  { source, options }: Conversion,
): Promise<number | null> {
  const { fixed, azure, compression, detectZeros = true, signal, onProgress } = options;
  const { storage } = engine.context.files;
  const slots = source.isCached ? engine.cachedSlots : undefined;
  const copy = { source, detectZeros, slots, signal, onProgress };
  if (compression === undefined) {
    if (fixed === true || azure === true || kind.createSequential === undefined) return null;
    return await copySequentially(
      engine,
      kind.createSequential(storage, file, { sizeBytes }),
      copy,
    );
  }
  if (kind.createCompressed === undefined) return null;
  const image = kind.createCompressed(storage, file, { sizeBytes, compression });
  const compressors = new Compressors(Compression[compression === "zstd" ? "Zstd" : "Zlib"]);
  try {
    return await copyCompressed(engine, image, { ...copy, compressors });
  } finally {
    compressors.close();
  }
}

/**
 * Writes all that a disk holds to an image that exists; returns the sectors that were written.
 *
 * @param isNew Whether the image reads as zeros; otherwise zeros are written where the disk has holes.
 */
export async function copyInto(
  engine: Engine,
  { source, target, isNew, options }: Omit<Conversion, "to"> & { target: string; isNew: boolean },
): Promise<number> {
  const image = await OpenImage.open(engine, target, { readOnly: false });
  try {
    requireRoom(source, image);
    if (!isNew) await zeroHoles(engine, source, image);
    const writer = new Writer(image, { ...options, isNew });
    await walkImage(engine, {
      source,
      operations: image.operations,
      slots: source.isCached && image.isCached ? engine.cachedSlots : undefined,
      signal: options.signal,
      onProgress: options.onProgress,
      take: (piece, done) => writer.write(piece, done),
    });
    await engine.run((finished) => writer.flush(finished));
    writer.throwError();
    return writer.written;
  } finally {
    await image.close(engine);
  }
}

function requireRoom(source: OpenImage, image: OpenImage): void {
  if (image.sectors >= source.sectors) return;
  const why = `it has ${image.sectors} sectors, and ${source.name} ${source.sectors}`;
  throw new SystemError(Errno.ENOSPC, `Cannot write to ${image.name} (${why})`);
}

/** Makes an image read as zeros where a disk has holes, and behind its end. */
async function zeroHoles(engine: Engine, source: OpenImage, image: OpenImage): Promise<void> {
  const holes: Stretch[] = [];
  await walkImage(engine, {
    source,
    stretch: (stretch, isData) => void (isData || holes.push(stretch)),
  });
  if (image.sectors > source.sectors) {
    holes.push({ sector: source.sectors, count: image.sectors - source.sectors });
  }
  await writeZeros(engine, image, holes);
}

/**
 * Makes stretches of an image read as zeros, and them durable.
 *
 * @param target The image's name.
 * @throws {SystemError} errors of the image.
 */
export async function zeroStretches(
  engine: Engine,
  target: string,
  stretches: readonly Stretch[],
): Promise<void> {
  if (stretches.length === 0) return;
  const image = await OpenImage.open(engine, target, { readOnly: false });
  try {
    await writeZeros(engine, image, stretches);
  } finally {
    // Closing makes durable what was written.
    await image.close(engine);
  }
}

async function writeZeros(
  engine: Engine,
  image: OpenImage,
  stretches: readonly Stretch[],
): Promise<void> {
  for (const { sector, count } of stretches) {
    for (let done = 0; done < count; done += image.zeroSectors) {
      const part = Math.min(image.zeroSectors, count - done);
      let errno = 0;
      await engine.run((finished) => {
        image.user = {
          requestDone: (_slot, failed) => {
            errno = failed;
            finished();
          },
        };
        image.zero(0, sector + done, part);
      });
      if (errno !== 0) {
        throw new SystemError(
          errno,
          `Cannot write zeros to sector ${sector + done} of ${image.name}`,
        );
      }
    }
  }
}

/** Writes pieces of a disk to an image. */
class Writer {
  written = 0;
  readonly #image: OpenImage;
  readonly #skipsZeros: boolean;
  /** By slot: what is called after the write that is under way. */
  readonly #next: ((errno: number) => void)[] = [];
  #errno = 0;

  constructor(
    image: OpenImage,
    { isNew, detectZeros = true }: { isNew: boolean; detectZeros?: boolean },
  ) {
    this.#image = image;
    this.#skipsZeros = isNew && detectZeros;
    image.user = { requestDone: (slot, errno) => this.#next[slot](errno) };
  }

  /** Writes a piece, without its zeros where nothing else was. */
  write({ slot, sector, count, memorySector, bytes }: Piece, done: Done): void {
    const runs: { from: number; count: number }[] = [];
    const add = (from: number, sectors: number): void => void runs.push({ from, count: sectors });
    if (this.#skipsZeros) eachData(bytes, { unitSectors: UNIT_SECTORS, memorySector }, add);
    else add(0, count);
    const step = (errno: number): void => {
      const run = runs.shift();
      if (errno !== 0) {
        const what = `Cannot write to sector ${sector} of ${this.#image.name}`;
        return done(new SystemError(errno, what));
      }
      if (run === undefined) return done(null);
      this.written += run.count;
      this.#next[slot] = step;
      this.#image.write(slot, sector + run.from, run.count, memorySector + run.from);
    };
    step(0);
  }

  /** Makes all writes durable. */
  flush(finished: () => void): void {
    this.#next[0] = (errno) => {
      this.#errno = errno;
      finished();
    };
    this.#image.flush(0);
  }

  throwError(): void {
    if (this.#errno === 0) return;
    throw new SystemError(this.#errno, `Cannot flush ${this.#image.name}`);
  }
}
