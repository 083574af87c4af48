/**
 * Offline work on files in memory: the real queue on a backend that carries operations out in an
 * order of its own, a few at a time, from a seed. What `MemoryStorage.beforeOperation` throws stops
 * it in the middle, as a kill would.
 *
 * @module
 */

import { SystemError } from "../../ffi/errno.ts";
import { memoryAt } from "../../ffi/libc.ts";
import { memoryAddress } from "../../ffi/memory.ts";
import type { EngineMaker, OfflineEngine } from "../../src/bulk/engine.ts";
import { type CompletionSink, type DiskBackend, IoKind } from "../../src/queue/backend.ts";
import type { DiskFile, DiskFileOptions, DiskFiles } from "../../src/queue/disk_files.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { Random } from "../../src/testing/random.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import type { MemoryStorage } from "../../src/testing/memory_storage.ts";
import type { StorageFile } from "../../src/files/storage.ts";
import { VHD_SECTOR_SIZE } from "../../src/vhd/format/units.ts";

interface Operation {
  readonly kind: IoKind;
  readonly file: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly address: number;
  readonly iovecCount: number;
  readonly io: number;
}

class MemoryDisk implements DiskFiles, DiskBackend {
  readonly capacity = 64;
  readonly batch = 32;
  readonly #random: Random;
  readonly #open = new Map<number, StorageFile>();
  #lastFile = 0;
  #prepared: Operation[] = [];
  #underWay: Operation[] = [];

  constructor(readonly storage: MemoryStorage, seed: number) {
    this.#random = new Random(seed);
  }

  open(path: string, { readOnly }: DiskFileOptions): DiskFile {
    const file = ++this.#lastFile;
    const opened = this.storage.open(path, readOnly ? "read" : "write");
    this.#open.set(file, opened);
    return {
      file,
      path,
      isBlockDevice: false,
      identity: opened.identity,
      cachedBecause: null,
      sizeBytes: () => opened.sizeBytes(),
      truncate: (lengthBytes) => opened.truncate(lengthBytes),
      punchHole: () => false,
      allocatedRun: (_offsetBytes, lengthBytes) => lengthBytes,
      close: () => void this.#open.delete(file),
    };
  }

  register(_file: number): void {}

  prepare(
    kind: IoKind,
    file: number,
    sectors: Float64Array,
    count: number,
    memorySector: number,
    iovecCount: number,
    io: number,
  ): void {
    const offsetBytes = sectors[io] * VHD_SECTOR_SIZE;
    const lengthBytes = count * VHD_SECTOR_SIZE;
    const address = memoryAddress(memorySector);
    this.#prepared.push({ kind, file, offsetBytes, lengthBytes, address, iovecCount, io });
  }

  submit(): void {
    this.#underWay.push(...this.#prepared.splice(0));
  }

  reap(sink: CompletionSink): number {
    const count = Math.min(this.#underWay.length, 1 + this.#random.below(4));
    for (let i = 0; i < count; i++) {
      const at = this.#random.below(this.#underWay.length);
      const [operation] = this.#underWay.splice(at, 1);
      sink.completed(operation.io, this.#resultOf(operation));
    }
    return count;
  }

  /** Errors of the system are results; anything else that is thrown stops the work. */
  #resultOf(operation: Operation): number {
    try {
      return this.#carryOut(operation);
    } catch (error) {
      if (error instanceof SystemError) return -error.errno;
      throw error;
    }
  }

  #carryOut(operation: Operation): number {
    const file = this.#open.get(operation.file);
    if (file === undefined) throw new Error(`An operation on file ${operation.file}, not open`);
    if (operation.kind === IoKind.Sync) {
      file.sync();
      return 0;
    }
    let done = 0;
    for (const bytes of memoryOf(operation)) {
      const offset = operation.offsetBytes + done;
      if (operation.kind === IoKind.Write) file.writeAt(bytes, offset);
      const moved = operation.kind === IoKind.Write ? bytes.length : file.readAt(bytes, offset);
      done += moved;
      if (moved < bytes.length) break;
    }
    return done;
  }

  close(): void {}
}

function memoryOf(operation: Operation): Uint8Array<ArrayBuffer>[] {
  const { address, lengthBytes, iovecCount } = operation;
  if (iovecCount === 0) return [new Uint8Array(memoryAt(address, lengthBytes))];
  const iovecs = new BigUint64Array(memoryAt(address, iovecCount * 16));
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for (let i = 0; i < iovecCount; i++) {
    parts.push(new Uint8Array(memoryAt(Number(iovecs[2 * i]), Number(iovecs[2 * i + 1]))));
  }
  return parts;
}

/** Makes engines on files in memory. */
export function memoryEngine(storage: MemoryStorage, seed = 1): EngineMaker {
  return (operations): OfflineEngine => {
    const scheduler = new SimulatedScheduler();
    const disk = new MemoryDisk(storage, seed);
    const queue = new DiskQueue(scheduler, disk, operations);
    return {
      queue,
      files: disk,
      run(start): Promise<void> {
        let over = false;
        start(() => over = true);
        if (scheduler.runUntil(() => over)) return Promise.resolve();
        return Promise.reject(new Error("The loop stands still before the work is finished"));
      },
      close(): void {
        queue.close();
      },
    };
  };
}
