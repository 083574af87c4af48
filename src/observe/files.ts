import { statfs } from "node:fs/promises";
import type { DiskSample } from "./sample.ts";

/** A file of an image. */
export interface FileSample {
  readonly sizeBytes: number;
  /** The room that it takes on its filesystem. */
  readonly allocatedBytes: number;
  /** The filesystem's size, and what is left of it for users without privileges. */
  readonly filesystem: { readonly sizeBytes: number; readonly availableBytes: number };
}

/** What is known of files, by path. Files that do not answer, and what is no file, are left out. */
export type FileSamples = ReadonlyMap<string, FileSample>;

/** How long all files together may take, unless the caller says otherwise. */
const FILES_TIMEOUT_MS = 500;
/** How many files are looked at at once: each takes a thread of the runtime, for long where a server hangs. */
const AT_ONCE = 8;

const STAT_BLOCK_BYTES = 512;

type Filesystem = FileSample["filesystem"];

/** The filesystems of the files that were looked at, by the number of their device. */
export type Filesystems = Map<number, Promise<Filesystem>>;

/** What looks at files; tests have others. */
export type LookAtFile = (path: string, known: Filesystems) => Promise<FileSample | null>;

async function filesystemOf(path: string): Promise<Filesystem> {
  const { bsize, blocks, bavail } = await statfs(path);
  return { sizeBytes: blocks * bsize, availableBytes: bavail * bsize };
}

async function lookAtFile(path: string, known: Filesystems): Promise<FileSample | null> {
  const { isFile, size, blocks, dev } = await Deno.stat(path);
  if (!isFile) return null;
  // Most images are on one filesystem, which is asked once.
  const filesystem = known.get(dev) ?? filesystemOf(path);
  known.set(dev, filesystem);
  return {
    sizeBytes: size,
    allocatedBytes: (blocks ?? 0) * STAT_BLOCK_BYTES,
    filesystem: await filesystem,
  };
}

/**
 * Looks at the files of images. A file on a server that hangs delays nothing: it is left out until the look at
 * it has ended, and no second one begins meanwhile.
 */
export class FileGatherer {
  readonly #timeoutMs: number;
  readonly #look: LookAtFile;
  /** Looks that have not ended. */
  readonly #pending = new Set<string>();

  constructor({ timeoutMs = FILES_TIMEOUT_MS, look = lookAtFile }: {
    timeoutMs?: number;
    look?: LookAtFile;
  } = {}) {
    this.#timeoutMs = timeoutMs;
    this.#look = look;
  }

  /** The files of all images of these disks. */
  async gather(disks: readonly DiskSample[]): Promise<FileSamples> {
    const paths = disks.flatMap(({ chain }) => chain.map(({ path }) => path));
    const wanted = new Set(
      paths.filter((path) => path.startsWith("/") && !this.#pending.has(path)),
    );
    const found = new Map<string, FileSample>();
    const left = [...wanted].values();
    const filesystems: Filesystems = new Map();
    let isOver = false;
    const work = async (): Promise<void> => {
      // A path is taken only when there is room to look at it: it would be left out otherwise.
      while (!isOver && this.#pending.size < AT_ONCE) {
        const { done, value: path } = left.next();
        if (done) return;
        this.#pending.add(path);
        const file = await this.#look(path, filesystems).catch(() => null);
        this.#pending.delete(path);
        if (file !== null && !isOver) found.set(path, file);
      }
    };
    const all = Promise.all(Array.from({ length: AT_ONCE }, work));
    const late = Promise.withResolvers<void>();
    const timer = setTimeout(() => late.resolve(), this.#timeoutMs);
    await Promise.race([all, late.promise]);
    clearTimeout(timer);
    isOver = true;
    return found;
  }
}
