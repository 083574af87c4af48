import { SystemError } from "../../ffi/errno.ts";
import type { FileIdentity } from "../../ffi/files.ts";
import type { Storage, StorageFile } from "../files/storage.ts";
import type { Random } from "./random.ts";
import type { SimulatedScheduler } from "./simulated_scheduler.ts";
import { memoryBytes } from "./sparse_bytes.ts";

/** The operations of a library. */
export const LibraryCommand = { Read: 0, Write: 1, Sync: 2 } as const;
/** An operation at a library. */
export interface LibraryOperation {
  /** One of `LibraryCommand`. */
  readonly command: number;
  /** A number of the caller's, which its completion has. */
  readonly token: number;
  readonly sector: number;
  readonly count: number;
  /** Where in I/O memory the data is. */
  readonly memorySector: number;
}

/** A library that does the I/O of one image, and has a completion queue of its own, like librbd. */
export interface ImageLibrary {
  /** A descriptor that is signalled when operations have ended. */
  readonly fd: number;
  readonly sizeBytes: number;
  /** Starts operations. */
  submit(operations: readonly LibraryOperation[]): void;
  /** The number of completions that can be taken. */
  completions(): number;
  /** Takes the oldest completion; returns its token, and 0 or an errno. */
  take(): { readonly token: number; readonly errno: number };
  /** No operation may be under way. */
  close(): void;
}

const SECTOR_BYTES = 512;

/**
 * A library on a simulated disk. Operations end in any order, each within `latencyMs`; they take
 * effect when they end, and what was written is durable after a sync. The disk's hook decides which
 * of them fail.
 */
export class SimulatedLibrary implements ImageLibrary {
  readonly fd: number;
  readonly sizeBytes: number;
  /** Operations end no earlier than this time. */
  hangsUntilMs = 0;
  readonly #file: StorageFile;
  readonly #scheduler: SimulatedScheduler;
  readonly #random: Random;
  readonly #latencyMs: number;
  readonly #ended: { readonly token: number; readonly errno: number }[] = [];
  #isOpen = true;

  /** Throws `SystemError` when the file cannot be opened. */
  constructor(
    path: string,
    { storage, scheduler, random, latencyMs, readOnly, same }: {
      storage: Storage;
      scheduler: SimulatedScheduler;
      random: Random;
      latencyMs: number;
      readOnly: boolean;
      /** The file must be this one. */
      same?: FileIdentity;
    },
  ) {
    this.#file = storage.open(path, readOnly ? "read" : "write", { same });
    this.sizeBytes = this.#file.sizeBytes();
    this.#scheduler = scheduler;
    this.#random = random;
    this.#latencyMs = latencyMs;
    this.fd = scheduler.openEvent();
  }

  submit(operations: readonly LibraryOperation[]): void {
    for (const operation of operations) {
      this.#scheduler.addTimer(this.#random.below(this.#latencyMs + 1), () => this.#end(operation));
    }
  }

  #end(operation: LibraryOperation): void {
    if (!this.#isOpen) return;
    const leftMs = this.hangsUntilMs - this.#scheduler.nowMs();
    if (leftMs > 0) {
      this.#scheduler.addTimer(leftMs, () => this.#end(operation));
      return;
    }
    let errno = 0;
    try {
      this.#carryOut(operation);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error;
      errno = error.errno;
    }
    this.#ended.push({ token: operation.token, errno });
    this.#scheduler.signal(this.fd);
  }

  #carryOut({ command, sector, count, memorySector }: LibraryOperation): void {
    if (command === LibraryCommand.Sync) return this.#file.sync();
    const bytes = memoryBytes(memorySector, count * SECTOR_BYTES);
    if (command === LibraryCommand.Write) this.#file.writeAt(bytes, sector * SECTOR_BYTES);
    else bytes.fill(0, this.#file.readAt(bytes, sector * SECTOR_BYTES));
  }

  completions(): number {
    return this.#ended.length;
  }

  take(): { readonly token: number; readonly errno: number } {
    const [oldest] = this.#ended.splice(0, 1);
    return oldest;
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#scheduler.closeEvent(this.fd);
    this.#file.close();
  }
}
