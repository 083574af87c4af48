/**
 * The nbd driver against a server that lies, in this process on a simulated clock: the handshake,
 * replies, connections that are lost and made again. When the server has become honest, all requests
 * end, and data is right.
 *
 * @module
 */
import assert from "node:assert/strict";
import { SystemError } from "../../../../ffi/errno.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { RequestKind, SLOTS } from "../../../../src/vbd/slots.ts";
import { openDescriptors } from "../../../support/served.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { pick } from "../wire/choose.ts";
import { HONEST_OFFER, HostileNbdServer } from "../wire/hostile_nbd_server.ts";
import { BothEnds, RemoteDisk } from "../wire/remote_disk.ts";

const SECTORS = Number(HONEST_OFFER.sizeBytes) / 512;
const DISKS_OF_BATCH = 12;

class NbdClientTarget implements Target {
  #ends: BothEnds | null = null;
  #path = "";
  #descriptors = 0;

  setUp({ folder }: SearchContext): void {
    this.#path = `${folder}/n.sock`;
    this.#ends = new BothEnds(new HostileNbdServer(this.#path));
  }

  async run(random: Random, context: SearchContext): Promise<number> {
    if (this.#ends === null) throw new TypeError("It is not set up");
    // The pauses between attempts to connect vary at random.
    Math.random = () => random.next();
    let cases = 0;
    for (let i = 0; i < DISKS_OF_BATCH; i++) cases += await this.#disk(random, context, this.#ends);
    return cases;
  }

  async #disk(random: Random, context: SearchContext, ends: BothEnds): Promise<number> {
    const { server, log } = ends;
    // Other targets in this process have some, too.
    this.#descriptors = openDescriptors(Deno.pid);
    log.length = 0;
    server.random = random;
    server.cases = 0;
    server.hostility = pick(random, [0.05, 0.3, 0.7, 1]);
    context.trace(`a disk, hostility ${server.hostility}`);
    const disk = new RemoteDisk(ends.context);
    try {
      if (await this.#open(disk, ends, random)) await use(disk, ends, random);
      context.trace(`${server.cases} lies; log: ${log.join("; ")}`);
    } catch (caught) {
      const error = disk.failure ?? caught;
      throw new Error(`${error}\nLog:\n${log.slice(-20).join("\n")}`, { cause: error });
    }
    disk.vbd.destroy();
    server.hangUp();
    this.#checkEnd(ends);
    return 1 + server.cases;
  }

  #checkEnd({ scheduler, log }: BothEnds): void {
    const fault = log.find((line) => line.includes("a fault"));
    if (fault !== undefined) throw new Error(fault);
    assert.equal(scheduler.size, 0, "descriptors are watched at the end");
    const left = openDescriptors(Deno.pid) - this.#descriptors;
    assert.ok(left <= 0, `${left} descriptors are open at the end`);
  }

  /** Opens the disk; false when that fails, which the server's lies explain. */
  async #open(disk: RemoteDisk, ends: BothEnds, random: Random): Promise<boolean> {
    const name = pick(random, ["", "disk", "a:b", "%20", "é".repeat(20), "x".repeat(3000)]);
    const type = pick(random, ["nbd", "nbd", "bc:nbd", "log:nbd"]);
    let result: SystemError | null | undefined;
    const retry = { attempts: pick(random, [0, 3, 100]) };
    disk.vbd.openLater(`${type}:unix:${this.#path}:${name}`, { retry }, (error) => result = error);
    await ends.until("opening", () => result !== undefined);
    if (result === null || result === undefined) return true;
    assert.ok(result instanceof SystemError && result.message.startsWith("Cannot "), `${result}`);
    return false;
  }

  tearDown(): void {
    this.#ends?.server.close();
  }
}

async function use(disk: RemoteDisk, ends: BothEnds, random: Random): Promise<void> {
  const { sectors } = disk.vbd;
  const most = Math.min(sectors, SECTORS);
  for (let round = 1 + random.below(20); round > 0; round--) {
    for (let left = 1 + random.below(8); left > 0 && disk.open < 100; left--) {
      const count = Math.min(most, 1 + random.below(random.chance(0.2) ? 512 : 16));
      const kind = pick(random, Object.values(RequestKind));
      const sector = random.below(most - count + 1);
      const data = kind === RequestKind.Write ? new Uint8Array(count * 512).fill(9) : undefined;
      disk.start(kind, sector, kind === RequestKind.Flush ? 0 : count, data);
    }
    const patience = random.below(200);
    await ends.until("a round", (turns) => disk.open === 0 || turns > patience);
  }
  ends.server.hostility = 0;
  if (sectors === SECTORS) await trust(disk, ends, random);
  await close(disk, ends, random);
}

/** The server has become honest: what waits ends, and what is written is read. */
async function trust(disk: RemoteDisk, ends: BothEnds, random: Random): Promise<void> {
  const settled = (): boolean => disk.open === 0;
  await ends.until("requests to an honest server", settled);
  // A connection lies as much as the server did when it was made.
  ends.server.hangUp();
  const sector = random.below(SECTORS - 8);
  const stamp = random.below(150);
  const data = new Uint8Array(8 * 512).map((_, i) => (i >> 9) + stamp);
  // The first finds that its connection is lost; the next attempt to connect takes its time.
  for (let left = 3; left > 0; left--) {
    disk.start(RequestKind.Write, sector, 8, data);
    await ends.until("a write", settled);
    if (disk.lastErrno === 0) break;
    await ends.pass(70_000);
  }
  assert.equal(disk.lastErrno, 0, "a write to an honest server");
  disk.start(RequestKind.Read, sector, 8);
  await ends.until("a read", settled);
  assert.equal(disk.lastErrno, 0, "a read from an honest server");
  assert.deepEqual(disk.lastData, data);
}

async function close(disk: RemoteDisk, ends: BothEnds, random: Random): Promise<void> {
  let result: SystemError | null | undefined;
  ends.server.hostility = pick(random, [0, 1]);
  const startMs = ends.scheduler.nowMs();
  disk.vbd.close((error) => result = error);
  await ends.until("closing", () => result !== undefined);
  assert.equal(result?.errno ?? 0, 0, `${result}`);
  assert.ok(ends.scheduler.nowMs() - startMs <= 11_000, "closing took more than ten seconds");
  assert.equal(disk.open, 0, "requests are open behind the end");
  assert.equal(disk.vbd.requests.freeSlots, SLOTS);
}

export const target: Target = new NbdClientTarget();
