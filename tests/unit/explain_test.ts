/** What is made of the facts of a disk: which are taken, and which sentences follow from them. */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { decodeFacts, type ToldFacts } from "../../src/control/protocol/explain.ts";
import { findings, roomWanted } from "../../src/observe/findings.ts";
import { type Room, Rooms } from "../../src/observe/rooms.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { factsOf, type ImageFacts } from "../../src/vbd/disk_facts.ts";
import { Vbd } from "../../src/vbd/vbd.ts";
import { createVbdContext } from "../../src/vbd/vbd_context.ts";
import { Explanations } from "../../src/web/explanations.ts";

function imageFacts(changes: Partial<ImageFacts> = {}): ImageFacts {
  return {
    ...{ name: "vhd:/leaf.vhd", file: "/leaf.vhd", pending: 0, meanMs: 0.2, endedMs: 5 },
    ...{ quietMs: null, condition: null },
    ...changes,
  };
}

function toldFacts(changes: Partial<ToldFacts> = {}): ToldFacts {
  const none = { requests: 0, longestMs: 0 };
  const ended = { requests: 0, mean: 0, highest: 0 };
  return {
    ...{ tapdisk: 100, minor: 0, name: "vhd:/leaf.vhd", phase: "open" as const, bytes: 4096 },
    requests: { room: none, pause: none, retry: none, disk: none, limit: none },
    ...{ slots: { free: 8, all: 8 }, trouble: null, reopening: null, images: [imageFacts()] },
    ...{
      secondary: null,
      limits: null,
      clients: [],
      ended: { read: ended, write: ended, flush: ended },
    },
    ...{ paused: null, notResumed: null },
    ...changes,
  };
}

function decoded(value: unknown): ToldFacts {
  return decodeFacts(new TextEncoder().encode(JSON.stringify(value)));
}

const FULL = {
  ...{ sinceMs: 1000, requests: 2, tries: 3, errno: Errno.ENOSPC, error: "ENOSPC" },
  file: "/leaf.vhd",
};

/** Facts with all that they can have. */
function fullFacts(): ToldFacts {
  return toldFacts({
    trouble: FULL,
    paused: { sinceMs: 1, by: { pid: 2, command: "sm", parent: { pid: 3, command: "xapi" } } },
    notResumed: { sinceMs: 4, why: "it is locked" },
    images: [
      imageFacts({
        condition: {
          ...{ kind: "server", image: "nbd:x", lostMs: null, why: "", nextTryMs: null },
          ...{ asked: 1, oldestMs: 2, meanMs: 3 },
        },
      }),
      imageFacts({ condition: { kind: "share", bridge: "/x", isConnected: true, waiting: 0 } }),
    ],
    secondary: { name: "aio:/b", state: "mirror", redirected: 0 },
    clients: [{ client: "client 1", held: 1, waits: false, stuckMs: null }],
  });
}

/** All values that differ from `value` in one field, which is an object with a letter. */
function* spoiled(value: unknown): Generator<[at: string, changed: unknown]> {
  if (typeof value !== "object" || value === null) return;
  for (const [name, field] of Object.entries(value)) {
    const put = (changed: unknown): unknown =>
      Array.isArray(value)
        ? value.map((each, index) => `${index}` === name ? changed : each)
        : { ...value, [name]: changed };
    yield [name, put({ odd: "x" })];
    for (const [at, changed] of spoiled(field)) yield [`${name}.${at}`, put(changed)];
  }
}

Deno.test("facts of a disk are taken only when each field is what it must be", () => {
  const facts = fullFacts();
  assert.deepEqual(decoded(facts), facts);
  // A newer tapdisk may know more; an older one does not know how long an image has been quiet.
  const [image, ...others] = facts.images;
  const { quietMs: _, ...older } = image;
  assert.equal(decoded({ ...facts, more: 1, images: [older, ...others] }).images.length, 2);
  assert.equal(decoded({ ...facts, images: [{ ...image, condition: { kind: "moon" } }] }).minor, 0);
  const disk = new SimulatedDisk({ seed: 1 });
  const scheduler = new SimulatedScheduler();
  const connection = disk.connect(scheduler, { latencyMs: 0 });
  const context = createVbdContext({
    ...{ scheduler, backend: connection, files: connection, log: () => {} },
  });
  const vbd = new Vbd(context, 3);
  const real = { tapdisk: 1, paused: null, notResumed: null };
  const now = (): ToldFacts => ({ ...factsOf(vbd, context.queue, 10), ...real });
  assert.deepEqual(decoded(now()), now());
  vbd.open("ram:1");
  assert.deepEqual(decoded(now()), now());
  assert.equal(now().images.length, 1);
  let count = 0;
  for (const [at, changed] of spoiled(facts)) {
    assert.throws(() => decoded(changed), { code: "EPROTO" }, at);
    count++;
  }
  assert.ok(count > 80, `${count}`);
  const { slots: _slots, ...without } = facts;
  assert.throws(() => decoded(without), /they make no sense: slots/);
  for (const odd of [null, [], 1, "x", { ...facts, images: new Array(5000).fill(image) }]) {
    assert.throws(() => decoded(odd), { code: "EPROTO" });
  }
});

Deno.test("the layer that does not answer is named, and none that has just got work after a rest", () => {
  const disk = { requests: 3, longestMs: 9_000 };
  const hung = imageFacts({ file: "/base.vhd", pending: 2, endedMs: 9_500, quietMs: 9_000 });
  const rested = imageFacts({ pending: 1, endedMs: 60_000, quietMs: 1 });
  const { requests } = toldFacts();
  const facts = toldFacts({ requests: { ...requests, disk }, images: [rested, hung] });
  const found = findings(facts, null).filter(({ kind }) => kind === "hung");
  assert.equal(found.length, 1);
  assert.match(found[0].says, /^The disk of \/base\.vhd does not answer: it has 2 operations/);
});

Deno.test("a client without a name is told of like others", () => {
  const clients = [{ client: "", held: 1, waits: false, stuckMs: 1_000 }];
  const found = findings(toldFacts({ clients }), null);
  assert.deepEqual(found.map(({ kind }) => kind), ["client"]);
});

Deno.test("a filesystem that hangs keeps nobody waiting, and gets no second question", async () => {
  const facts = toldFacts({ trouble: FULL });
  assert.equal(roomWanted(facts), "/leaf.vhd");
  assert.equal(roomWanted(toldFacts({ trouble: { ...FULL, errno: Errno.EIO } })), null);
  const answer = Promise.withResolvers<Room>();
  let asked = 0;
  const look = (): Promise<Room> => {
    asked++;
    return answer.promise;
  };
  const rooms = new Rooms({ timeoutMs: 1, look });
  const unknown = { mount: "/leaf.vhd", freeBytes: null };
  assert.deepEqual(await rooms.of("/leaf.vhd"), unknown);
  assert.deepEqual(await rooms.of("/leaf.vhd"), unknown);
  assert.equal(asked, 1);
  assert.match(findings(facts, unknown)[0].says, /no room for \/leaf\.vhd \(ENOSPC\)\.$/);
  answer.resolve({ mount: "/", freeBytes: 512 });
  await answer.promise;
  await new Promise((resolve) => setTimeout(resolve));
  const known = new Rooms({ timeoutMs: 600_000, look });
  const says = findings(facts, await known.of("/leaf.vhd"))[0].says;
  assert.match(says, /\(ENOSPC\): 512 bytes are free on \/\.$/);
  const real = await new Rooms({ timeoutMs: 600_000 }).of("/proc/self/status");
  assert.deepEqual(real, { mount: "/proc", freeBytes: 0 });
});

Deno.test("a disk that waits for nothing is told of by two looks", async () => {
  let nowMs = 1_000;
  let reads = 0;
  const ask = (): Promise<ToldFacts> => {
    const { ended } = toldFacts();
    const read = { requests: reads, mean: 200, highest: 900 };
    return Promise.resolve(toldFacts({ ended: { ...ended, read } }));
  };
  const explanations = new Explanations({ ask, nowMs: () => nowMs });
  const device = { pid: 100, minor: 0 };
  assert.deepEqual(await explanations.of(device), []);
  [nowMs, reads] = [2_000, 500];
  const [line] = await explanations.of(device);
  assert.match(line, /^It waits for nothing but its disk: 500 reads a second, 0\.20 ms each/);
  // A page that is loaded between two samples sees what is known: so short a time says nothing.
  [nowMs, reads] = [2_020, 500];
  assert.deepEqual(await explanations.of(device), [line]);
  [nowMs, reads] = [3_000, 600];
  assert.match((await explanations.of(device))[0], /: 100 reads a second/);
  nowMs += 60_000;
  assert.deepEqual(await explanations.of(device), []);
});
