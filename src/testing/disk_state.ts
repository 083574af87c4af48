import { SharedStateError } from "../../ffi/assert.ts";
import { Errno, SystemError } from "../../ffi/errno.ts";
import type { FileIdentity } from "../../ffi/files.ts";
import type {
  DiskOperation,
  Misdeed,
  OperationHook,
  OperationKind,
  OperationTrace,
  Verdict,
} from "./disk_operation.ts";
import { originOfCall } from "./origins.ts";
import { PAGE_BYTES } from "./page_pool.ts";
import { Random } from "./random.ts";
import { type BlockDevice, SimulatedFile } from "./simulated_file.ts";
import { Survival } from "./survival.ts";

/**
 * The processes were killed, or the power failed, after the caller's process was started. It ends
 * the whole process: no disk contains it.
 */
export class DeadProcessError extends SharedStateError {
  override readonly name = "DeadProcessError";
}

/** Options of a simulated disk. */
export interface SimulatedDiskOptions {
  /** Seed of the order of completions and of what survives a power cut; 1 by default. */
  readonly seed?: number;
  /** Whether `cutPower` will be called. Unflushed changes are recorded only then. */
  readonly powerCuts?: boolean;
  /** Room for data in bytes, counted in pages of 4 KiB; unlimited by default. */
  readonly capacityBytes?: number;
}

type Names = Map<string, SimulatedFile>;

/**
 * The state that all sides of a simulated disk share: the files by name, the power and the room.
 */
export class DiskState {
  readonly random: Random;
  readonly powerCuts: boolean;
  capacityBytes: number;
  beforeOperation: OperationHook | null = null;
  trace: OperationTrace | null = null;
  /** The number of the current boot; handles of an earlier boot are dead. */
  boot = 0;
  isOff = false;
  /** Whether the hook ever threw: its caller may leave operations in flight. */
  hookThrew = false;
  /**
   * The names after each change since the last sync, the newest last; any of them may survive a
   * cut.
   */
  #versions: Names[] = [new Map()];
  readonly #files = new Set<SimulatedFile>();
  #lastInode = 0;

  constructor(options: SimulatedDiskOptions) {
    this.random = new Random(options.seed ?? 1);
    this.powerCuts = options.powerCuts ?? false;
    this.capacityBytes = options.capacityBytes ?? Infinity;
  }

  /** A disk with the same files and no open handle. */
  copy(): DiskState {
    const { powerCuts, capacityBytes } = this;
    const copy = new DiskState({ seed: this.random.bits(), powerCuts, capacityBytes });
    const copies = new Map([...this.#files].map((file) => [file, file.copy()]));
    for (const file of copies.values()) copy.#files.add(file);
    copy.#lastInode = this.#lastInode;
    copy.#versions = this.#versions.map((names) =>
      new Map([...names].map(([name, file]) => [name, copies.get(file) ?? file.copy()]))
    );
    return copy;
  }

  /** The names after each change since the last sync, the newest last. */
  get versions(): readonly ReadonlyMap<string, SimulatedFile>[] {
    return this.#versions;
  }

  /** A disk with these names, whose files `replace` makes from those of this disk. */
  withFiles(
    { seed, powerCuts, names }: {
      seed: number;
      powerCuts: boolean;
      names: ReadonlyMap<string, SimulatedFile>;
    },
    replace: (file: SimulatedFile) => SimulatedFile,
  ): DiskState {
    if (this.isOff) throw new TypeError("The power of this disk is off");
    const made = new DiskState({ seed, powerCuts, capacityBytes: this.capacityBytes });
    made.#lastInode = this.#lastInode;
    const replaced = new Map([...new Set(names.values())].map((file) => [file, replace(file)]));
    for (const file of replaced.values()) made.#files.add(file);
    made.#versions = [
      new Map([...names].map(([name, file]) => [name, replaced.get(file) ?? file])),
    ];
    return made;
  }

  get #names(): Names {
    return this.#versions[this.#versions.length - 1];
  }

  #changeNames(change: (names: Names) => void): void {
    if (this.powerCuts) this.#versions.push(new Map(this.#names));
    change(this.#names);
  }

  /**
   * Calls the hook for an operation. Throws `SystemError` where the operation is to fail; returns
   * what a bad disk does with it, or null.
   */
  admit(operation: Omit<DiskOperation, "from">): Misdeed | null {
    const verdict = this.verdict(operation, null);
    if (verdict === 0) return null;
    if (typeof verdict !== "number") return verdict;
    throw new SystemError(verdict, `Cannot ${operation.kind} ${operation.path}`);
  }

  /**
   * Calls the hook and returns its verdict.
   *
   * @param from The code that asked for the operation; null: it is the code that runs.
   */
  verdict(asked: Omit<DiskOperation, "from">, from: string | null): Verdict {
    const { boot } = this;
    this.assertAlive(boot);
    const origin = this.trace === null ? null : from ?? originOfCall();
    const operation = { ...asked, from: origin };
    const before = this.hookThrew;
    this.hookThrew = true;
    const verdict = this.beforeOperation?.(operation) ?? 0;
    if (typeof verdict !== "number") requirePossible(operation, verdict);
    this.trace?.(operation, verdict);
    this.hookThrew = before;
    // The hook may have cut the power.
    this.assertAlive(boot);
    return verdict;
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
    const file = this.#newFile(null);
    this.#changeNames((names) => names.set(name, file));
    return file;
  }

  #newFile(device: BlockDevice | null): SimulatedFile {
    const identity = { device: 1, inode: ++this.#lastInode };
    const file = new SimulatedFile(this.powerCuts, identity, device);
    this.#files.add(file);
    return file;
  }

  /** Adds a block device. It was there before, so that its name outlasts a power cut. */
  addBlockDevice(name: string, device: BlockDevice): void {
    const file = this.#newFile(device);
    for (const names of this.#versions) names.set(name, file);
  }

  /**
   * The file of this name, whose identity must be `wanted`. Throws `SystemError` ENOENT, ESTALE.
   */
  same(name: string, wanted: FileIdentity | undefined): SimulatedFile {
    const file = this.named(name);
    if (wanted !== undefined && wanted.inode !== file.identity.inode) {
      throw new SystemError(Errno.ESTALE, `Cannot open ${name}: it is another file than before`);
    }
    return file;
  }

  /** Renames a file; an existing file of the new name is replaced. */
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

  /**
   * Takes the lock of a file for a handle. Throws `SystemError` EBUSY when another handle has it.
   */
  lock(file: SimulatedFile, handle: object, path: string): void {
    if (file.lockedBy !== null) {
      throw new SystemError(Errno.EBUSY, `Cannot open ${path} for writing: it is being written to`);
    }
    file.lockedBy = handle;
  }

  /** Records that a handle has opened a file. */
  opened(file: SimulatedFile): void {
    file.handles++;
  }

  /** Records that a handle of boot `boot` has closed a file. */
  closed(file: SimulatedFile, handle: object, boot: number): void {
    if (boot !== this.boot) return;
    if (file.lockedBy === handle) file.lockedBy = null;
    file.handles--;
    this.dropUnused();
  }

  /** Makes the contents of a file durable, and all earlier changes of names. */
  sync(file: SimulatedFile): void {
    file.sync();
    this.syncNames();
  }

  /** Makes all changes of names durable. */
  syncNames(): void {
    if (this.#versions.length > 1) this.#versions.splice(0, this.#versions.length - 1);
  }

  /** The number of bytes of a write, from its start, for which there is room. */
  roomFor(file: SimulatedFile, offsetBytes: number, lengthBytes: number): number {
    if (file.device !== null) {
      return Math.max(0, Math.min(lengthBytes, file.sizeBytes - offsetBytes));
    }
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

  /** Number of open handles of all files. */
  get openFiles(): number {
    let handles = 0;
    for (const file of this.#files) handles += file.handles;
    return handles;
  }

  /** Bytes of room in use. */
  get usedBytes(): number {
    let pages = 0;
    for (const file of this.#files) pages += file.pages;
    return pages * PAGE_BYTES;
  }

  /** Kills all processes: their handles are dead and their locks are released. */
  killProcesses(): void {
    this.boot++;
    this.hookThrew = false;
    for (const file of this.#files) {
      file.handles = 0;
      file.lockedBy = null;
    }
    this.dropUnused();
  }

  /** Cuts the power: all handles are dead, and unflushed changes are lost in part. */
  cutPower(): void {
    if (!this.powerCuts) throw new TypeError("This disk does not simulate power cuts");
    this.killProcesses();
    this.isOff = true;
    const survival = new Survival(this.random);
    this.#versions = [this.#versions[survival.below(this.#versions.length)]];
    for (const file of this.#files) file.cutPower(survival);
    this.dropUnused();
  }

  /** Frees the memory of all files. */
  release(): void {
    for (const file of this.#files) file.release();
    this.#files.clear();
    this.#versions = [new Map()];
  }
}

const POSSIBLE: Readonly<Record<Misdeed["does"], readonly OperationKind[]>> = {
  lose: ["write", "punch", "sync", "sync folder"],
  misdirect: ["write"],
  rot: ["read", "write"],
  shorten: ["read", "write"],
  "fail late": ["write"],
};

function requirePossible({ kind, lengthBytes, queued }: DiskOperation, misdeed: Misdeed): void {
  const isPossible = POSSIBLE[misdeed.does].includes(kind) &&
    (queued || misdeed.does !== "fail late");
  if (!isPossible) {
    throw new TypeError(`A disk cannot ${misdeed.does} an operation of kind ${kind}`);
  }
  if (misdeed.does !== "shorten") return;
  if (misdeed.lengthBytes > 0 && misdeed.lengthBytes < lengthBytes) return;
  throw new TypeError(`A transfer of ${lengthBytes} bytes cannot end at ${misdeed.lengthBytes}`);
}
