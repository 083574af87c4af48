import { assert } from "../../../ffi/assert.ts";
import type { Requests } from "../../vbd/requests.ts";
import { FRONTEND_BYTES } from "../../vbd/slots.ts";

/** The most clients that a device serves at once, those of its block device among them. */
export const MOST_CLIENTS = 512;
/** Memory that each client has, to receive into and to compose answers in. */
export const CLIENT_BYTES = 160 * 1024;
/** Memory of more clients than this goes back to the system when they leave. */
const CLIENTS_THAT_KEEP_PAGES = 32;

assert(MOST_CLIENTS * CLIENT_BYTES <= FRONTEND_BYTES, "A device has memory for all its clients");

/** By device. */
const memories = new WeakMap<Requests, ClientMemory>();

/** The memory of a device's clients, which all its servers of NBD share. */
export function clientMemoryOf(requests: Requests): ClientMemory {
  let memory = memories.get(requests);
  if (memory === undefined) {
    memory = new ClientMemory(requests);
    memories.set(requests, memory);
  }
  return memory;
}

/** Divides what a device has of memory for frontends among its clients. */
export class ClientMemory {
  readonly #requests: Requests;
  /** Clients that have none; the last one is taken first. */
  readonly #free = Array.from({ length: MOST_CLIENTS }, (_, i) => MOST_CLIENTS - 1 - i);
  readonly #isTaken = new Uint8Array(MOST_CLIENTS);

  constructor(requests: Requests) {
    this.#requests = requests;
  }

  /** Takes memory: the offset of `CLIENT_BYTES` in `Requests.memory`; -1 when there is none. */
  take(): number {
    const client = this.#free.pop();
    if (client === undefined) return -1;
    this.#isTaken[client] = 1;
    return this.#requests.frontendOffset + client * CLIENT_BYTES;
  }

  /** Gives memory back. */
  give(offset: number): void {
    const { memory, frontendOffset } = this.#requests;
    const client = (offset - frontendOffset) / CLIENT_BYTES;
    assert(this.#isTaken[client] === 1, "Memory of a client is given back once, as it was taken");
    this.#isTaken[client] = 0;
    if (client >= CLIENTS_THAT_KEEP_PAGES) memory.discard(offset, CLIENT_BYTES);
    this.#free.push(client);
  }
}
