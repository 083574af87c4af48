/** The NBD driver with several connections to a server, of which some are lost. */
import assert from "node:assert/strict";
import { RequestKind } from "../../src/vbd/slots.ts";
import { Random } from "../../src/testing/random.ts";
import { HONEST_OFFER, HostileNbdServer } from "../search/fuzz/wire/hostile_nbd_server.ts";
import { BothEnds, RemoteDisk } from "../search/fuzz/wire/remote_disk.ts";
import { withTempDir } from "../support/tools.ts";

const CAN_MULTI_CONN = 256;
const WITH_MORE = { flags: HONEST_OFFER.flags | CAN_MULTI_CONN };
const MOST_LINKS = 4;
const SECTORS = Number(HONEST_OFFER.sizeBytes) / 512;
/** Sectors of a request. Each has a place of its own. */
const COUNT = 8;
const PLACES = SECTORS / COUNT;

/** An open disk on a server, and what the server must hold. */
class World {
  readonly server: HostileNbdServer;
  readonly ends: BothEnds;
  readonly disk: RemoteDisk;
  readonly expected: Uint8Array;
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
    this.server = new HostileNbdServer(path);
    this.server.more = WITH_MORE;
    this.ends = new BothEnds(this.server);
    this.disk = new RemoteDisk(this.ends.context);
    this.expected = this.server.content.slice();
  }

  async open(): Promise<void> {
    let result: unknown;
    this.disk.vbd.openLater(`nbd:unix:${this.#path}`, {}, (error) => result = error);
    await this.ends.until("opening", () => result !== undefined);
    assert.equal(result, null);
  }

  /** Starts a request on a place of its own. */
  start(random: Random, place: number): void {
    const sector = place * COUNT;
    if (random.chance(0.4)) return this.disk.start(RequestKind.Read, sector, COUNT);
    const data = new Uint8Array(COUNT * 512).fill(random.below(199));
    this.expected.set(data, sector * 512);
    this.disk.start(RequestKind.Write, sector, COUNT, data);
  }

  async settle(): Promise<void> {
    await this.ends.until("all requests", () => this.disk.open === 0);
    assert.equal(this.disk.failure, undefined);
    assert.equal(this.disk.lastErrno, 0);
  }

  async close(): Promise<void> {
    let isClosed = false;
    this.disk.vbd.close(() => isClosed = true);
    await this.ends.until("the close", () => isClosed);
    await this.ends.pass(100);
    assert.equal(this.server.connections, 0, "a connection stayed open");
    this.server.close();
  }

  get log(): string {
    return this.ends.log.join("\n");
  }
}

function linksTest(name: string, body: (world: World) => Promise<void>): void {
  Deno.test(`NBD driver: ${name}`, () =>
    withTempDir(async (folder) => {
      const world = new World(`${folder}/n.sock`);
      await world.open();
      await body(world);
      await world.close();
    }));
}

/** Makes the driver ask for all the connections that it may have. */
async function crowd(world: World, random = new Random(1)): Promise<void> {
  for (let round = 0; round < MOST_LINKS + 1; round++) {
    for (let place = 0; place < 60; place++) world.start(random, place);
    await world.settle();
    await world.ends.pass(10);
  }
}

linksTest(
  "many requests call for more connections, where the server allows them",
  async (world) => {
    assert.equal(world.server.connections, 1);
    await crowd(world);
    assert.equal(world.server.connections, MOST_LINKS);
    assert.deepEqual(world.server.content, world.expected);
  },
);

linksTest("a server that does not allow them has one connection", async (world) => {
  world.server.more = {};
  world.server.hangUp();
  await crowd(world);
  assert.equal(world.server.connections, 1);
  assert.deepEqual(world.server.content, world.expected);
});

for (
  const [what, more] of [["less", { flags: CAN_MULTI_CONN | 1 }], ["no extents", {
    ...WITH_MORE,
    structured: false,
  }]] as const
) {
  linksTest(`another connection that offers ${what} is not used`, async (world) => {
    world.server.more = more;
    await crowd(world);
    assert.equal(world.server.connections, 1);
    assert.match(world.log, /goes on with 1 connections: .*answers differently/);
    // The server would see what it does not offer as a breach.
    for (const kind of [RequestKind.Zero, RequestKind.Discard, RequestKind.Status]) {
      world.disk.start(kind, 0, 8);
      await world.settle();
    }
  });
}

linksTest(
  "what one connection of several has lost is made again on none of the old",
  async (world) => {
    await crowd(world);
    world.server.more = {};
    const random = new Random(2);
    for (let place = 0; place < 60; place++) world.start(random, place);
    world.server.hangUp(2);
    await world.settle();
    await world.ends.pass(1000);
    assert.match(world.log, /lost one of several connections/);
    assert.match(world.log, /connected again/);
    assert.equal(world.server.connections, 1);
    assert.deepEqual(world.server.content, world.expected);
  },
);

linksTest("one connection of several that had no requests is lost alone", async (world) => {
  await crowd(world);
  world.server.hangUp(2);
  await world.ends.pass(1000);
  assert.match(world.log, /lost one of several connections/);
  assert.equal(world.server.connections, MOST_LINKS - 1);
});

linksTest("the first connection is lost, and the others end with it", async (world) => {
  await crowd(world);
  world.server.more = {};
  const random = new Random(3);
  for (let place = 0; place < 60; place++) world.start(random, place);
  world.server.hangUp(0);
  await world.settle();
  await world.ends.pass(1000);
  assert.match(world.log, /connected again/);
  assert.equal(world.server.connections, 1);
  assert.deepEqual(world.server.content, world.expected);
});

linksTest("connections come and go under load, and every write arrives", async (world) => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Random(seed);
    for (let round = 0; round < 8; round++) {
      const first = random.below(PLACES - 80);
      for (let i = 0; i < 80; i++) world.start(random, first + i);
      const turn = random.below(40);
      await world.ends.until("a moment", (turns) => turns >= turn || world.disk.open === 0);
      if (random.chance(0.5)) world.server.hangUp(random.below(MOST_LINKS));
      if (random.chance(0.1)) world.server.hangUp();
      await world.settle();
      assert.deepEqual(world.server.content, world.expected, `seed ${seed}`);
      if (random.chance(0.2)) await world.ends.pass(31_000);
    }
  }
});
