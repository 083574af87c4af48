/**
 * A client that behaves correctly, for tests of clients that do not.
 *
 * @module
 */
import assert from "node:assert/strict";
import { NbdClient, noise } from "./nbd_client.ts";
import { type Disk, waitUntil } from "./served.ts";

const MIB = 1024 * 1024;
/**
 * The longest round. A client that keeps others waiting is dropped after half a second, or else after
 * a minute. The rest is for a machine that is slow.
 */
const MOST_MS = 15_000;

/** Writes and reads back, one request after the other, and records errors and delays. */
export class Bystander {
  #working = true;
  #rounds = 0;
  #longestMs = 0;
  #fault: unknown;
  readonly #work: Promise<void>;

  private constructor(client: NbdClient) {
    this.#work = this.#run(client).catch((error) => {
      this.#fault = error;
    }).finally(() => client.close());
  }

  static async start(disk: Disk): Promise<Bystander> {
    return new Bystander((await NbdClient.open(disk.socket)).client);
  }

  async #run(client: NbdClient): Promise<void> {
    while (this.#working) {
      const startMs = performance.now();
      const data = noise(65536, ++this.#rounds);
      const offset = 44 * MIB + (this.#rounds % 256) * 65536;
      await client.write(offset, data);
      assert.deepEqual(await client.read(offset, data.length), data);
      this.#longestMs = Math.max(this.#longestMs, performance.now() - startMs);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await client.disconnect();
  }

  /** Ends; throws when there was an error or a long delay. */
  async end(): Promise<void> {
    const goal = this.#rounds + 2;
    const isServed = () => this.#rounds >= goal || this.#fault !== undefined;
    await waitUntil(isServed, "the other clients are served");
    this.#working = false;
    await this.#work;
    if (this.#fault !== undefined) throw this.#fault;
    assert.ok(this.#longestMs < MOST_MS, `another client had to wait for ${this.#longestMs} ms`);
  }
}
