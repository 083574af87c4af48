import { Errno, SystemError } from "../../ffi/errno.ts";
import type { CachedFile, DiskFile, DiskFileOptions, DiskFiles } from "../queue/disk_files.ts";
import { isSameFile } from "../files/open_file.ts";
import { CANNOT_OPEN } from "../files/same_file.ts";
import type { Storage } from "../files/storage.ts";
import type { Scheduler } from "../scheduler/scheduler.ts";

/** The lease of NFS servers, where nobody has set another one. */
const LEASE_MS = 90_000;

/** The files of a device's images, each noted when it is opened. */
export class OpenedFiles implements DiskFiles {
  readonly storage: Storage;
  readonly #files: DiskFiles;
  readonly #before: OpenedFiles | null;
  readonly #opened: {
    readonly file: DiskFile;
    readonly isReadOnly: boolean;
    readonly isDirect: boolean;
  }[] = [];

  /** @param before Each file must be one of these, by the same name (ESTALE). With null, the names decide. */
  constructor(files: DiskFiles, before: OpenedFiles | null = null) {
    this.#files = files;
    this.#before = before;
    this.storage = files.storage;
  }

  open(path: string, options: DiskFileOptions): DiskFile {
    const file = this.#files.open(path, options);
    if (this.#before?.holds(file) === false) {
      file.close();
      throw new SystemError(Errno.ESTALE, `Cannot open ${path}: it is another file than before`);
    }
    const isDirect = options.direct && file.cachedBecause === null;
    this.#opened.push({ file, isReadOnly: options.readOnly, isDirect });
    return file;
  }

  openCached(path: string): CachedFile {
    const file = this.#files.openCached(path);
    this.#opened.push({ file, isReadOnly: false, isDirect: false });
    return file;
  }

  /** Whether a file is one of these. */
  holds({ path, mark }: DiskFile): boolean {
    return this.#opened.some(({ file }) => file.path === path && file.mark === mark);
  }

  /** Throws an `AssertionError` when the descriptor of one that is open is closed, or another file's. */
  requireOwn(): void {
    for (const { file } of this.#opened) file.requireOwn();
  }

  /** The path of one that is written and is not the file that its name leads to now; null without one. */
  get stray(): string | null {
    const isStray = ({ path, identity }: DiskFile): boolean => {
      try {
        return !isSameFile(this.storage.locate(path), identity);
      } catch (error) {
        if (error instanceof SystemError) return true;
        throw error;
      }
    };
    // The node of a block device may have been made again.
    const isSought = (file: DiskFile): boolean => !file.isBlockDevice && isStray(file);
    const found = this.#opened.find(({ file, isReadOnly }) => !isReadOnly && isSought(file));
    return found?.file.path ?? null;
  }

  /**
   * Tells which of the files, which have been closed, cannot be opened by its name now; null when all can.
   * Another thread tries: a server that does not answer must not hold up other disks.
   */
  lookUp(scheduler: Pick<Scheduler, "settle">, found: (why: string | null) => void): void {
    const look = (index: number): void => {
      if (index === this.#opened.length) return found(null);
      const { file } = this.#opened[index];
      file.findAgain(scheduler, { heardMs: 0, mayHaveChanged: true }, (why) => {
        if (why === CANNOT_OPEN) found(`${file.path} ${why}`);
        else look(index + 1);
      });
    };
    look(0);
  }

  /**
   * Tells why the files must not be opened anew in place of those that are open; null when each name still
   * leads to the same file, and no page of it that was written can be lost.
   *
   * @param scheduler Its owner ends by a fault in here.
   * @param heardOf When an operation on a file last succeeded, milliseconds.
   */
  findAgain(
    scheduler: Pick<Scheduler, "settle" | "nowMs">,
    heardOf: (file: number) => number,
    found: (why: string | null) => void,
  ): void {
    const cached = this.#opened.find(({ isReadOnly, isDirect }) => !isReadOnly && !isDirect);
    if (cached !== undefined) {
      const { path } = cached.file;
      return found(`${path} is written through the page cache, which may have lost writes`);
    }
    if (this.#opened.length === 0) return found("it has no files");
    const find = (index: number): void => {
      if (index === this.#opened.length) return found(null);
      const { file, isReadOnly } = this.#opened[index];
      const heardMs = heardOf(file.file);
      const isRecent = scheduler.nowMs() - heardMs < LEASE_MS;
      file.findAgain(scheduler, { heardMs, mayHaveChanged: isReadOnly || isRecent }, (why) => {
        if (why === null) find(index + 1);
        else found(`${file.path} ${why}`);
      });
    };
    find(0);
  }
}
