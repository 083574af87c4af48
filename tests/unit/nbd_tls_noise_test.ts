/**
 * TLS connections whose bytes change on the way to a port: flipped, cut, doubled or swapped, in the
 * handshake and after it. Each ends or goes on, no write is made of what was not sent, and a client
 * beside them is served. The seed of a case is in its failure.
 *
 * @module
 */
import assert from "node:assert/strict";
import { socketPair } from "../../ffi/sockets.ts";
import { Random } from "../../src/testing/random.ts";
import { Cmd, infoContent, joined, Opt, requestHeader } from "../support/nbd_client.ts";
import { SocketEnd } from "../support/played_loop.ts";
import { hasTls, KEYED, option, Rig, TlsEnd } from "../support/port_rig.ts";

const CASES = 150;
const SECTOR_BYTES = 512;
/** What the clients write; no other bytes may be on the disk. */
const WRITTEN = 0x5a;

/** The socket to the port, and a pair of sockets between the client and this one. */
class Noise {
  readonly #random: Random;
  readonly #port: SocketEnd;
  readonly #near: SocketEnd;
  /** The client's end. */
  readonly client: SocketEnd;
  /** Bytes until the next damage. */
  #quiet: number;
  damages = 0;

  constructor(random: Random, port: SocketEnd) {
    this.#random = random;
    this.#port = port;
    const [near, far] = socketPair();
    this.#near = new SocketEnd(near);
    this.client = new SocketEnd(far);
    this.#quiet = random.below(random.chance(0.5) ? 600 : 6000);
  }

  /** Passes on what has come, in both directions; the bytes to the port are damaged. */
  pass(): void {
    const sent = this.#near.receive();
    if (sent !== null && sent.length > 0) this.#toPort(sent);
    const answered = this.#port.receive();
    if (answered !== null && answered.length > 0) this.#trySend(this.#near, answered);
  }

  #toPort(bytes: Uint8Array): void {
    if (bytes.length <= this.#quiet) {
      this.#quiet -= bytes.length;
      return this.#trySend(this.#port, bytes);
    }
    const damaged = this.#damage(bytes, this.#quiet);
    this.damages++;
    this.#quiet = this.#random.below(4000);
    this.#trySend(this.#port, damaged);
  }

  #damage(bytes: Uint8Array, at: number): Uint8Array {
    const random = this.#random;
    const before = bytes.slice(0, at);
    const after = bytes.slice(at);
    switch (random.below(5)) {
      case 0:
        after[0] ^= 1 << random.below(8);
        return joined(before, after);
      case 1:
        return joined(before, after.slice(1 + random.below(40)));
      case 2:
        return joined(before, after.slice(0, 1 + random.below(60)), after);
      case 3:
        return joined(before, crypto.getRandomValues(new Uint8Array(1 + random.below(80))), after);
      default:
        return joined(after, before);
    }
  }

  #trySend(end: SocketEnd, bytes: Uint8Array): void {
    try {
      if (bytes.length > 0) end.send(bytes);
    } catch {
      // The other side has hung up.
    }
  }

  close(): void {
    this.#near.close();
    this.client.close();
  }
}

/** One connection: a handshake, an export, writes and reads, as far as it gets. */
function runCase(rig: Rig, seed: number): number {
  const random = new Random(seed);
  const end = rig.greeted();
  rig.exchange(end, option(Opt.StartTls));
  const noise = new Noise(random, end);
  const client = new TlsEnd(rig, noise.client);
  const pass = (): void => {
    noise.pass();
    rig.run();
    noise.pass();
  };
  let isDone = false;
  for (let i = 0; i < 12 && !isDone; i++) {
    isDone = client.stream.handshake() === 0;
    pass();
  }
  if (isDone) {
    client.stream.sendBytes(option(Opt.Go, infoContent("disk")));
    for (let i = 0; i < 6; i++) {
      const offset = SECTOR_BYTES * random.below(2048);
      const length = SECTOR_BYTES * (1 + random.below(16));
      const command = random.chance(0.5) ? Cmd.Write : Cmd.Read;
      const request = requestHeader({ command, offset, length, cookie: i });
      const data = new Uint8Array(command === Cmd.Write ? length : 0).fill(WRITTEN);
      client.stream.sendBytes(joined(request, data));
      pass();
      client.stream.receiveBytes(new Uint8Array(16384));
    }
  }
  client.close();
  pass();
  noise.close();
  rig.disconnect(end);
  return noise.damages;
}

Deno.test({
  name: `TLS: bytes that change on the way end one connection${
    hasTls ? "" : " (skipped: needs libssl)"
  }`,
  ignore: !hasTls,
  fn() {
    const rig = new Rig(KEYED);
    const good = rig.entered();
    const first = Number(Deno.env.get("BLKTAP_TEST_SEED") ?? Math.floor(Math.random() * 1e6));
    let damages = 0;
    for (let seed = first; seed < first + CASES; seed++) {
      damages += runCase(rig, seed);
      good.send(requestHeader({ command: Cmd.Read, offset: 0, length: 512, cookie: 4 }));
      assert.equal(good.receive()?.length, 16 + 512, `seed ${seed}: ${rig.log.join("\n")}`);
      assert.doesNotMatch(rig.log.join("\n"), /fault/, `seed ${seed}`);
      rig.log.length = 0;
    }
    assert.ok(damages > CASES / 2, `only ${damages} damages`);
    for (let sector = 0; sector < 2048 + 16; sector += 64) {
      good.send(
        requestHeader({ command: Cmd.Read, offset: sector * 512, length: 32768, cookie: 1 }),
      );
      const bytes = good.receive()?.slice(16) ?? new Uint8Array(0);
      assert.equal(bytes.length, 32768);
      const isFine = bytes.every((byte) => byte === 0 || byte === WRITTEN);
      assert.ok(isFine, `first seed ${first}: the disk has bytes that no client sent`);
    }
    rig.close();
  },
});
