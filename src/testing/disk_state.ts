import { SharedStateError } from "../../ffi/assert.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { FileIdentity } from "../../ffi/files.ts";
import { PAGE_BYTES } from "./page_pool.ts";
import { Random } from "./random.ts";
import { SimulatedFile } from "./simulated_file.ts";
import { Survival } from "./survival.ts";

/** What can be done to a simulated disk. */
export type OperationKind =
  | "open"
  | "create"
  | "read"
  | "write"
  | "punch"
  | "truncate"
  | "sync"
  | "sync folder"
  | "rename"
  | "link"
  | "remove";

/** An operation that is about to be carried out. */
export interface DiskOperation {
  readonly kind: OperationKind;
  /** The file; of a rename or link, the old name. */
  readonly path: string;
  /** Of a read, write, punch: the range. Of a truncate: the new length, and 0. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** Whether it comes from the disk queue, and not from synchronous code. */
  readonly queued: boolean;
}

/** Decides about an operation: an errno to fail with, or 0. What it throws goes to the caller. */
export type OperationHook = (operation: DiskOperation) => number | void;

/** A hook that sees only what changes files or makes changes last. */
export function changesOnly(hook: OperationHook): OperationHook {
  return (operation) => {
    const { kind } = operation;
    return kind === "open" || kind === "read" ? 0 : hook(operation);
  };
}

/**
 * Processes were killed, or the power failed, since the one that asks was started. It ends the whole
 * process: nothing contains it.
 */
export class DeadProcessError extends SharedStateError {
  override readonly name = "DeadProcessError";
}

/** How a simulated disk behaves. */
export interface SimulatedDiskOptions {
  /** What decides the order of completions, and what outlasts a power cut; 1 by default. */
  readonly seed?: number;
  /** Whether `cutPower` will be called: only then is it noted what is not flushed. */
  readonly powerCuts?: boolean;
  /** Room for data, bytes, in pages of 4 KiB; without end by default. */
  readonly capacityBytes?: number;
}

type Names = Map<string, SimulatedFile>;

/** The files of a simulated disk by name, its power and its room: what all its sides share. */
export class DiskState {
  readonly random: Random;
  readonly powerCuts: boolean;
  capacityBytes: number;
  beforeOperation: OperationHook | null = null;
  /** Which start of the machine it is; handles of an earlier one are dead. */
  boot = 0;
  isOff = false;
  /** Whether the hook ever threw: whoever it threw at may leave operations under way. */
  hookThrew = false;
  /** Each change of names since the last sync, the newest last: any of them may outlast a cut. */
  #versions: Names[] = [new Map()];
  readonly #files = new Set<SimulatedFile>();

  constructor(options: SimulatedDiskOptions) {
    this.random = new Random(options.seed ?? 1);
    this.powerCuts = options.powerCuts ?? false;
    this.capacityBytes = options.capacityBytes ?? Infinity;
  }

  /** The same files on another disk, on which nothing is open. */
  copy(): DiskState {
    const { powerCuts, capacityBytes } = this;
    const copy = new DiskState({ seed: this.random.bits(), powerCuts, capacityBytes });
    const copies = new Map([...this.#files].map((file) => [file, file.copy()]));
    for (const file of copies.values()) copy.#files.add(file);
    copy.#versions = this.#versions.map((names) =>
      new Map([...names].map(([name, file]) => [name, copies.get(file) ?? file.copy()]))
    );
    return copy;
  }

  get #names(): Names {
    return this.#versions[this.#versions.length - 1];
  }

  #changeNames(change: (names: Names) => void): void {
    if (this.powerCuts) this.#versions.push(new Map(this.#names));
    change(this.#names);
  }

  /** Asks the hook about an operation. Throws `SystemError` where it is to fail. */
  admit(operation: DiskOperation): void {
    const errno = this.verdict(operation);
    if (errno !== 0) throw new SystemError(errno, `Cannot ${operation.kind} ${operation.path}`);
  }

  /** The same for those who want the errno; 0: it goes ahead. */
  verdict(operation: DiskOperation): number {
    const { boot } = this;
    this.assertAlive(boot);
    const before = this.hookThrew;
    this.hookThrew = true;
    const errno = this.beforeOperation?.(operation) ?? 0;
    this.hookThrew = before;
    // The hook may have cut the power.
    this.assertAlive(boot);
    return errno;
  }

  /** Throws when the power is off, or went off since this boot. */
  assertAlive(boot: number): void {
    if (this.isOff || boot !== this.boot) {
      throw new DeadProcessError("The process that does this is dead");
    }
  }

  find(name: string): SimulatedFile | undefined {
    return this.#names.get(name);
  }

  /** The file of this name. Throws `SystemError` ENOENT. */
  named(name: string): SimulatedFile {
    const file = this.find(name);
    if (file === undefined) throw new SystemError(Errno.ENOENT, `Cannot find ${name}`);
    return file;
  }

  create(name: string): SimulatedFile {
    const file = new SimulatedFile(this.powerCuts);
    this.#files.add(file);
    this.#changeNames((names) => names.set(name, file));
    return file;
  }

  /** The file of this name, which must be a certain one. Throws `SystemError` ENOENT, ESTALE. */
  same(name: string, wanted: FileIdentity | undefined): SimulatedFile {
    const file = this.named(name);
    if (wanted !== undefined && wanted.inode !== file.identity.inode) {
      throw new SystemError(Errno.ESTALE, `Cannot open ${name}: it is another file than before`);
    }
    return file;
  }

  /** Gives a file another name, in the place of a file that has it. */
  rename(from: string, to: string): void {
    const file = this.named(from);
    this.#changeNames((names) => {
      names.delete(from);
      names.set(to, file);
    });
    this.dropUnused();
  }

  link(from: string, to: string): void {
    const file = this.named(from);
    if (this.find(to) !== undefined) {
      throw new SystemError(Errno.EEXIST, `Cannot link ${from} to ${to}`);
    }
    this.#changeNames((names) => names.set(to, file));
  }

  remove(name: string): void {
    this.named(name);
    this.#changeNames((names) => names.delete(name));
    this.dropUnused();
  }

  /** Frees the room of files that have neither a name nor a handle. */
  dropUnused(): void {
    const used = new Set(this.#versions.flatMap((names) => [...names.values()]));
    for (const file of this.#files) {
      if (used.has(file) || file.handles > 0) continue;
      file.release();
      this.#files.delete(file);
    }
  }

  /** The names of all files. */
  get names(): string[] {
    return [...this.#names.keys()];
  }

  /** Takes the lock of a file for a handle. Throws `SystemError` EBUSY when another has it. */
  lock(file: SimulatedFile, handle: object, path: string): void {
    if (file.lockedBy !== null) {
      throw new SystemError(Errno.EBUSY, `Cannot open ${path} for writing: it is being written to`);
    }
    file.lockedBy = handle;
  }

  /** A handle opens a file. */
  opened(file: SimulatedFile): void {
    file.handles++;
  }

  /** A handle that was opened since this boot is closed. */
  closed(file: SimulatedFile, handle: object, boot: number): void {
    if (boot !== this.boot) return;
    if (file.lockedBy === handle) file.lockedBy = null;
    file.handles--;
    this.dropUnused();
  }

  /** Brings a file to stable storage, and with it all changes of names before. */
  sync(file: SimulatedFile): void {
    file.sync();
    this.syncNames();
  }

  /** Brings all changes of names to stable storage. */
  syncNames(): void {
    if (this.#versions.length > 1) this.#versions.splice(0, this.#versions.length - 1);
  }

  /** How many bytes of a write have room, from its start on. */
  roomFor(file: SimulatedFile, offsetBytes: number, lengthBytes: number): number {
    if (this.capacityBytes === Infinity) return lengthBytes;
    let free = Math.floor((this.capacityBytes - this.usedBytes) / PAGE_BYTES);
    if (file.pagesMissing(offsetBytes, lengthBytes) <= free) return lengthBytes;
    let end = offsetBytes;
    while (end < offsetBytes + lengthBytes) {
      if (file.pagesMissing(end, 1) > 0 && free-- <= 0) break;
      end = (Math.floor(end / PAGE_BYTES) + 1) * PAGE_BYTES;
    }
    return Math.min(lengthBytes, end - offsetBytes);
  }

  /** Bytes of room in use. */
  get usedBytes(): number {
    let pages = 0;
    for (const file of this.#files) pages += file.pages;
    return pages * PAGE_BYTES;
  }

  /** All processes die: their handles are dead, and their locks gone. */
  killProcesses(): void {
    this.boot++;
    this.hookThrew = false;
    for (const file of this.#files) {
      file.handles = 0;
      file.lockedBy = null;
    }
    this.dropUnused();
  }

  /** The power fails: all handles are dead, and what was not flushed is lost in part. */
  cutPower(): void {
    if (!this.powerCuts) throw new TypeError("This disk does not simulate power cuts");
    this.killProcesses();
    this.isOff = true;
    const survival = new Survival(this.random);
    this.#versions = [this.#versions[survival.below(this.#versions.length)]];
    for (const file of this.#files) file.cutPower(survival);
    this.dropUnused();
  }

  /** Gives the memory of all files back. */
  release(): void {
    for (const file of this.#files) file.release();
    this.#files.clear();
    this.#versions = [new Map()];
  }
}
