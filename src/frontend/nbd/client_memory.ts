import { assert } from "../../../ffi/assert.ts";
import type { Requests } from "../../vbd/requests.ts";
import { FRONTEND_BYTES } from "../../vbd/slots.ts";

/** The most clients of a device at once, including connections of its block device. */
export const MOST_CLIENTS = 512;
/** Memory of each client, bytes, for receiving and for composing replies. */
export const CLIENT_BYTES = 160 * 1024;
/** Clients whose pages are kept when they leave. Pages of further clients are freed. */
export const CLIENTS_THAT_KEEP_PAGES = 32;

assert(MOST_CLIENTS * CLIENT_BYTES <= FRONTEND_BYTES, "A device has memory for all its clients");

/** The memory by device. */
const memories = new WeakMap<Requests, ClientMemory>();

/** The memory of a device's clients, which all NBD servers of the device share. */
export function clientMemoryOf(requests: Requests): ClientMemory {
  let memory = memories.get(requests);
  if (memory === undefined) {
    memory = new ClientMemory(requests);
    memories.set(requests, memory);
  }
  return memory;
}

/** Divides a device's memory for frontends among its clients. */
export class ClientMemory {
  readonly #requests: Requests;
  /** Numbers of free pieces; the last is taken first. */
  readonly #free = Array.from({ length: MOST_CLIENTS }, (_, i) => MOST_CLIENTS - 1 - i);
  readonly #isTaken = new Uint8Array(MOST_CLIENTS);

  constructor(requests: Requests) {
    this.#requests = requests;
  }

  /** Takes CLIENT_BYTES; returns their offset in `Requests.memory`, or -1 when all are taken. */
  take(): number {
    const client = this.#free.pop();
    if (client === undefined) return -1;
    this.#isTaken[client] = 1;
    return this.#requests.frontendOffset + client * CLIENT_BYTES;
  }

  /** Releases memory that `take` returned. */
  give(offset: number): void {
    const { memory, frontendOffset } = this.#requests;
    const client = (offset - frontendOffset) / CLIENT_BYTES;
    assert(this.#isTaken[client] === 1, "Memory of a client is given back once, as it was taken");
    this.#isTaken[client] = 0;
    if (client >= CLIENTS_THAT_KEEP_PAGES) memory.discard(offset, CLIENT_BYTES);
    this.#free.push(client);
  }
}
