import { Errno, SystemError } from "../../ffi/errno.ts";
import { COMPRESSOR } from "../qcow2/format/compression.ts";

/** A cluster, and its compressed form; null when that is not shorter. */
export interface Compressed {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly packed: Uint8Array<ArrayBuffer> | null;
}

interface Answer extends Compressed {
  readonly id: number;
}

interface Job {
  resolve(compressed: Compressed): void;
  reject(error: SystemError): void;
}

/** Workers that compress clusters: one for each processor. */
export class Compressors {
  readonly #type: number;
  readonly #workers: Worker[] = [];
  readonly #jobs = new Map<number, Job>();
  #nextId = 0;

  /** @param type One of `Compression` of QCOW2. */
  constructor(type: number) {
    this.#type = type;
    const url = `data:text/javascript,${encodeURIComponent(COMPRESSOR)}`;
    for (let i = 0; i < navigator.hardwareConcurrency; i++) {
      const worker = new Worker(url, { type: "module" });
      worker.onmessage = ({ data }: MessageEvent<Answer>): void => this.#take(data);
      worker.onerror = (event): void => {
        event.preventDefault();
        this.#fail(event.message);
      };
      this.#workers.push(worker);
    }
  }

  /** How many workers there are. */
  get count(): number {
    return this.#workers.length;
  }

  /** Compresses a cluster, whose memory is gone until the answer. Answers come in any order. */
  compress(bytes: Uint8Array<ArrayBuffer>): Promise<Compressed> {
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<Compressed>();
    this.#jobs.set(id, { resolve, reject });
    const worker = this.#workers[id % this.#workers.length];
    worker.postMessage({ id, bytes, type: this.#type }, [bytes.buffer]);
    return promise;
  }

  #take({ id, bytes, packed }: Answer): void {
    this.#jobs.get(id)?.resolve({ bytes, packed });
    this.#jobs.delete(id);
  }

  #fail(message: string): void {
    const error = new SystemError(Errno.EIO, `Cannot compress a cluster (${message})`);
    for (const job of this.#jobs.values()) job.reject(error);
    this.#jobs.clear();
  }

  /** Ends the workers. What they have not answered is not answered. */
  close(): void {
    for (const worker of this.#workers) worker.terminate();
  }
}
