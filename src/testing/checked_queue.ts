import type { ImageQueue } from "../driver/driver.ts";
import type { CachedFile, DiskFile, DiskFileOptions, DiskFiles } from "../queue/disk_files.ts";
import type { IoOwner } from "../queue/disk_queue.ts";
import type { FaultOwner } from "../scheduler/faults.ts";
import type { Storage } from "../files/storage.ts";

/** Observes the disk operations of an image. */
export interface DiskWatch {
  /** Throws when the image must not use the disk in this way now. */
  onAccess(what: string, changes: boolean): void;
  /** An operation of the queue starts, or has ended. */
  onOperation(isStart: boolean): void;
}

/** Notifies the watch of the end of an operation before it notifies the owner. */
class WatchedOwner implements IoOwner {
  constructor(readonly owner: IoOwner, readonly watch: DiskWatch) {}

  ioDone(token: number, sectors: number, errno: number): void {
    this.watch.onOperation(false);
    this.owner.ioDone(token, sectors, errno);
  }
}

/** The disk queue as one image uses it. */
export class CheckedQueue implements ImageQueue {
  readonly #queue: ImageQueue;
  readonly #watch: DiskWatch;
  readonly #owners = new WeakMap<IoOwner, WatchedOwner>();
  /** Operations that the image has reserved. */
  held = 0;

  constructor(queue: ImageQueue, watch: DiskWatch) {
    this.#queue = queue;
    this.#watch = watch;
  }

  register(file: number, faults?: FaultOwner, isDirect?: boolean): void {
    this.#queue.register(file, faults, isDirect);
  }

  reserve(operations: number, held = 0): boolean {
    if (!this.#queue.reserve(operations, held)) return false;
    this.held += operations;
    return true;
  }

  release(operations: number): void {
    this.held -= operations;
    this.#queue.release(operations);
  }

  #start(what: string, changes: boolean, owner: IoOwner): WatchedOwner {
    this.#watch.onAccess(what, changes);
    this.#watch.onOperation(true);
    const known = this.#owners.get(owner);
    if (known !== undefined) return known;
    const watched = new WatchedOwner(owner, this.#watch);
    this.#owners.set(owner, watched);
    return watched;
  }

  read(
    file: number,
    sector: number,
    count: number,
    memorySector: number,
    owner: IoOwner,
    token: number,
  ): void {
    const watched = this.#start("a read", false, owner);
    this.#queue.read(file, sector, count, memorySector, watched, token);
  }

  write(
    file: number,
    sector: number,
    count: number,
    memorySector: number,
    owner: IoOwner,
    token: number,
  ): void {
    const watched = this.#start("a write", true, owner);
    this.#queue.write(file, sector, count, memorySector, watched, token);
  }

  sync(file: number, owner: IoOwner, token: number): void {
    this.#queue.sync(file, this.#start("a sync", false, owner), token);
  }
}

/** The files of the queue as one image uses them. */
export class CheckedFiles implements DiskFiles {
  readonly storage: Storage;
  readonly #files: DiskFiles;
  readonly #watch: DiskWatch;
  /** Number of files that the image has open. */
  openFiles = 0;

  constructor(files: DiskFiles, watch: DiskWatch) {
    this.#files = files;
    this.#watch = watch;
    this.storage = files.storage;
  }

  openCached(path: string): CachedFile {
    return this.#files.openCached(path);
  }

  open(path: string, options: DiskFileOptions): DiskFile {
    const file = this.#files.open(path, options);
    this.openFiles++;
    let isOpen = true;
    const change = <T>(what: string, call: () => T): T => {
      this.#watch.onAccess(what, true);
      return call();
    };
    return {
      file: file.file,
      path: file.path,
      isBlockDevice: file.isBlockDevice,
      identity: file.identity,
      mark: file.mark,
      cachedBecause: file.cachedBecause,
      weakLock: file.weakLock,
      sizeBytes: () => file.sizeBytes(),
      allocatedRun: (offsetBytes, lengthBytes) => file.allocatedRun(offsetBytes, lengthBytes),
      findAgain: (scheduler, heard, found) => file.findAgain(scheduler, heard, found),
      requireOwn: () => file.requireOwn(),
      truncate: (lengthBytes) => change("a new length", () => file.truncate(lengthBytes)),
      punchHole: (offsetBytes, lengthBytes) =>
        change("a hole", () => file.punchHole(offsetBytes, lengthBytes)),
      close: (): void => {
        if (isOpen) this.openFiles--;
        isOpen = false;
        file.close();
      },
    };
  }
}
