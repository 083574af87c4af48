import { Errno, messageOf, SystemError, systemError } from "../../ffi/errno.ts";
import {
  allocateRange,
  closeFile,
  fileStatus,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_NOFOLLOW,
  O_RDONLY,
  O_RDWR,
  openFile,
  tryLockExclusive,
  writeAt,
} from "../../ffi/files.ts";
import { MappedFile } from "../../ffi/mapped_file.ts";
import { namesInFolder, pathExists, pathStatus, removePath } from "../../ffi/paths.ts";
import { effectiveUser, isAlive } from "../../ffi/process.ts";
import { ShortSleep } from "../../ffi/short_sleep.ts";
import { untrustedPart } from "../files/trusted_path.ts";
import {
  METRICS_BYTES,
  metricsName,
  type MetricsPage,
  type MetricsPages,
  type MetricsSubject,
  noticeName,
  privatePage,
  RING_STATISTICS,
} from "./metrics.ts";

/** Where the folders are: a filesystem in memory, in which all users may make files. */
const SHARED_MEMORY = "/dev/shm";
const FOLDER_NAME = /^td3-([1-9]\d{0,9})$/;
/** How often a folder is tried that another process is just removing, and the pause between. */
const MOST_TRIES = 20;
const TRY_AGAIN_US = 1000;

/** The files of one process, in a folder that it holds a lock of. */
export class MetricsFolder implements MetricsPages {
  readonly #root: string;
  readonly #path: string;
  readonly #log: (message: string) => void;
  /** The open folder; null when there is none. */
  #lock: number | null = null;

  /**
   * Makes the folder. Without it, as where there is no shared memory, all pages are private.
   *
   * @param log Writes a line to the log.
   * @param root Where the folder is; `/dev/shm` by default.
   */
  constructor(log: (message: string) => void, root = SHARED_MEMORY, pid = Deno.pid) {
    this.#root = root;
    this.#path = `${root}/td3-${pid}`;
    this.#log = log;
    try {
      this.#lock = takeFolder(root, this.#path);
    } catch (error) {
      log(`Monitoring programs see no counters of this process: ${messageOf(error)}`);
    }
  }

  open(subject: MetricsSubject): MetricsPage {
    if (this.#lock === null) return privatePage();
    const name = metricsName(subject);
    const path = `${this.#path}/${name}`;
    try {
      return this.#noticed(name, makePage(path));
    } catch (error) {
      this.#log(`Monitoring programs see no counters in ${path}: ${messageOf(error)}`);
      return privatePage();
    }
  }

  /** A page, with the notice of a ring. */
  #noticed(name: string, page: MetricsPage): MetricsPage {
    const root = this.#root;
    const notice = noticeName(name);
    if (notice === null) return page;
    let second: MappedPage | null = null;
    const close = (): void => {
      page.close();
      second?.unmap();
      removeNotice(root, name);
    };
    try {
      makeFolder(`${root}/${notice}`);
    } catch (error) {
      close();
      throw error;
    }
    second = this.#secondPage(`${root}/${notice}`);
    return { words: page.words, ring: second?.words, close };
  }

  /** The page in the folder of a ring's notice, in place of one that a killed tapdisk left. */
  #secondPage(folder: string): MappedPage | null {
    const path = `${folder}/${RING_STATISTICS}`;
    try {
      if (!isOwnFolder(folder)) throw new SystemError(Errno.ENOENT, `Cannot make ${path}`);
      remove(path);
      return mapPage(path);
    } catch (error) {
      this.#log(`Monitoring programs see no counters in ${path}: ${messageOf(error)}`);
      return null;
    }
  }

  /**
   * Removes the folder and the files that are left in it.
   *
   * @param keepsNotices Whether the notices of rings stay: another process has the rings, and writes there.
   */
  close({ keepsNotices = false } = {}): void {
    if (this.#lock === null) return;
    removeFolder(keepsNotices ? null : this.#root, this.#path);
    closeFile(this.#lock);
    this.#lock = null;
  }
}

interface MappedPage {
  readonly words: Uint32Array<ArrayBuffer>;
  unmap(): void;
}

/** Makes a page and its file. Throws `SystemError`: EEXIST when there is something of that name. */
function makePage(path: string): MetricsPage {
  const { words, unmap } = mapPage(path);
  return {
    words,
    close(): void {
      unmap();
      remove(path);
    },
  };
}

function mapPage(path: string): MappedPage {
  const fd = openFile(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  let file: MappedFile;
  try {
    // A store to a hole ends the process when the filesystem is full, so there must be none.
    allocateRange(fd, 0, METRICS_BYTES);
    writeAt(fd, new Uint8Array(METRICS_BYTES), 0);
    file = new MappedFile(fd, METRICS_BYTES);
  } catch (error) {
    removePath(path);
    throw error;
  } finally {
    closeFile(fd);
  }
  return { words: new Uint32Array(file.bytes.buffer), unmap: () => file.unmap() };
}

/**
 * Makes a folder, or takes one that a process of the same number left, and locks it.
 *
 * @returns The open folder.
 * @throws {SystemError} EPERM for a folder or a link that another user made; EBUSY for that of a process
 * in another container.
 */
function takeFolder(root: string, path: string): number {
  let pause: ShortSleep | null = null;
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    makeFolder(path);
    const fd = openOwnFolder(path);
    if (fd !== null && tryLockExclusive(fd) && isStill(path, fd)) {
      emptyFolder(root, path);
      return fd;
    }
    if (fd !== null) closeFile(fd);
    // A tapdisk that starts in another container may be removing it.
    pause ??= new ShortSleep();
    pause.sleep(TRY_AGAIN_US);
  }
  throw new SystemError(Errno.EBUSY, `Cannot use ${path} (another process has it)`);
}

function makeFolder(path: string): void {
  try {
    Deno.mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return;
    throw systemError(error, `Cannot make the folder ${path}`);
  }
}

/** Opens a folder of this user; null when there is none. Throws `SystemError` for one of another. */
function openOwnFolder(path: string): number | null {
  const part = untrustedPart(path);
  if (part !== null) throw new SystemError(Errno.EPERM, `Cannot use ${part}`);
  let fd: number;
  try {
    fd = openFile(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  } catch (error) {
    if (error instanceof SystemError && error.errno === Errno.ENOENT) return null;
    throw error;
  }
  if (fileStatus(fd).uid === effectiveUser()) return fd;
  closeFile(fd);
  throw new SystemError(Errno.EPERM, `Cannot use ${path}, which another user owns`);
}

/** Whether a folder is there, and is this user's. Throws `SystemError` for one of another. */
function isOwnFolder(path: string): boolean {
  const fd = openOwnFolder(path);
  if (fd === null) return false;
  closeFile(fd);
  return true;
}

function isStill(path: string, fd: number): boolean {
  try {
    const [there, open] = [pathStatus(path, { link: true }), fileStatus(fd)];
    return there.device === open.device && there.inode === open.inode;
  } catch (error) {
    if (error instanceof SystemError && error.errno === Errno.ENOENT) return false;
    throw error;
  }
}

/** Removes a file that may have gone, or that a folder above may keep. */
function remove(path: string): void {
  try {
    removePath(path);
  } catch {
    // What is left is removed by the next tapdisk.
  }
}

/** Removes all files, and the notices of rings; null for `root`: these stay. */
function emptyFolder(root: string | null, path: string): void {
  for (const name of namesInFolder(path)) {
    remove(`${path}/${name}`);
    if (root !== null) removeNotice(root, name);
  }
}

function removeFolder(root: string | null, path: string): void {
  try {
    emptyFolder(root, path);
    removeEmptyFolder(path);
  } catch {
    // As above.
  }
}

/** Removes the notice of a ring and the file in it, unless another process has the ring meanwhile. */
function removeNotice(root: string, name: string): void {
  const notice = noticeName(name);
  if (notice === null) return;
  const isServed = namesIn(root).some((folder) =>
    FOLDER_NAME.test(folder) && pathExists(`${root}/${folder}/${name}`)
  );
  if (isServed) return;
  try {
    if (isOwnFolder(`${root}/${notice}`)) remove(`${root}/${notice}/${RING_STATISTICS}`);
  } catch {
    // Another user made it.
  }
  removeEmptyFolder(`${root}/${notice}`);
}

function removeEmptyFolder(path: string): void {
  try {
    if (Deno.lstatSync(path).isDirectory) Deno.removeSync(path);
  } catch {
    // It is gone, or has files of another program.
  }
}

/**
 * The folders of processes that were killed. The process must have ended; whether one of another container
 * has the folder is not looked at.
 */
function foldersOfTheDead(root: string): string[] {
  return namesIn(root).filter((name) => {
    const pid = Number(FOLDER_NAME.exec(name)?.[1] ?? 0);
    return pid !== 0 && !isAlive(pid);
  }).map((name) => `${root}/${name}`);
}

/**
 * The folders of processes that were killed and that are not another container's: nobody holds the lock.
 * Those of other users, which cannot be looked into, are left out.
 *
 * @param root Where the folders are; `/dev/shm` by default.
 */
export function staleMetrics(root = SHARED_MEMORY): string[] {
  return foldersOfTheDead(root).filter((path) => {
    let fd: number | null = null;
    try {
      fd = openOwnFolder(path);
      return fd !== null && tryLockExclusive(fd);
    } catch {
      return false;
    } finally {
      if (fd !== null) closeFile(fd);
    }
  });
}

/**
 * Removes the folders of processes that were killed. The process must have ended, and no process must
 * hold the lock: one of another container is not visible here, but its lock is.
 *
 * @param root Where the folders are; `/dev/shm` by default.
 */
export function removeStaleMetrics(root = SHARED_MEMORY): void {
  for (const path of foldersOfTheDead(root)) removeStaleFolder(root, path);
}

function removeStaleFolder(root: string, path: string): void {
  let fd: number | null = null;
  try {
    fd = openOwnFolder(path);
    if (fd !== null && tryLockExclusive(fd) && isStill(path, fd)) removeFolder(root, path);
  } catch {
    // It belongs to another user.
  } finally {
    if (fd !== null) closeFile(fd);
  }
}

function namesIn(root: string): string[] {
  try {
    return namesInFolder(root);
  } catch {
    // There is no shared memory.
    return [];
  }
}
