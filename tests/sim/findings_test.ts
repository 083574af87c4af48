/**
 * What `tap-ctl explain` says of a device on a simulated disk that hangs, and of what tests of running
 * tapdisks do not make happen.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { type Finding, findings, healthFinding, roomWanted } from "../../src/observe/findings.ts";
import type { ToldFacts } from "../../src/control/protocol/explain.ts";
import { factsOf } from "../../src/vbd/disk_facts.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";

/** A chain of two VHDs; the lower one has data. */
function open(): { simulation: Simulation; device: SimulatedDevice } {
  const simulation = new Simulation({ seed: 1, latencyMs: 1 });
  createDynamic("/base.vhd", { storage: simulation.disk, sizeBytes: 16 << 20 });
  const base = simulation.open("vhd:/base.vhd");
  base.write(0, stampedSectors(0, 64, 7));
  base.settle();
  base.close();
  snapshot("/leaf.vhd", { storage: simulation.disk, parent: "/base.vhd" });
  return { simulation, device: simulation.open("vhd:/leaf.vhd") };
}

function told({ simulation, device }: ReturnType<typeof open>): ToldFacts {
  const { context, scheduler } = simulation;
  const facts = factsOf(device.vbd, context.queue, scheduler.nowMs());
  return { ...facts, tapdisk: 12, paused: null, notResumed: null };
}

function says(facts: ToldFacts): Finding[] {
  return findings(facts, { mount: roomWanted(facts) ?? "", freeBytes: 512 });
}

function elapse({ simulation }: ReturnType<typeof open>, forMs: number): void {
  const untilMs = simulation.scheduler.nowMs() + forMs;
  simulation.scheduler.addTimer(forMs, () => {});
  simulation.runUntil(() => simulation.scheduler.nowMs() >= untilMs, "The time");
}

function end({ simulation, device }: ReturnType<typeof open>): void {
  device.close();
  simulation.close();
}

Deno.test("explain: the file of a chain that hangs, while it is paused", () => {
  const rig = open();
  const { simulation, device } = rig;
  // The leaf answers, and the base does not.
  device.write(0, stampedSectors(0, 1, 1));
  device.settle();
  device.read(8, 1);
  device.settle();
  assert.deepEqual(says(told(rig)), []);
  simulation.hang("/base.vhd", 10_000);
  device.read(16, 1);
  elapse(rig, 3000);
  const [hung] = says(told(rig));
  assert.equal(hung.kind, "hung");
  assert.match(
    hung.says,
    /^The disk of \/base\.vhd does not answer: it has 1 operation, and the last/,
  );
  device.vbd.pause(() => {});
  elapse(rig, 100);
  const pausing = says(told(rig));
  assert.deepEqual(pausing.map(({ kind }) => kind), ["pausing", "hung"]);
  assert.match(pausing[0].says, /waits for 1 request at the disk, the oldest for 3\.\d s/);
  device.settle();
  elapse(rig, 10);
  assert.deepEqual(says(told(rig)).map(({ kind }) => kind), ["paused"]);
  device.resume();
  assert.deepEqual(says(told(rig)), []);
  end(rig);
});

Deno.test("explain: a layer that is slower than the others, and by how much", () => {
  const rig = open();
  rig.device.read(0, 1);
  rig.device.settle();
  const facts = told(rig);
  const slow = (means: number[], disk: number): Finding[] =>
    says({
      ...facts,
      images: facts.images.map((image, i) => ({ ...image, meanMs: means[i] })),
      requests: { ...facts.requests, disk: { requests: disk, longestMs: 10 } },
    });
  const [finding] = slow([0.4, 180], 3);
  assert.equal(finding.kind, "slow");
  assert.equal(
    finding.says,
    "Operations of vhd:/base.vhd, layer 2 of 2, took 180 ms of late, those of the other layers 0.40 ms at most.",
  );
  assert.deepEqual(slow([0.4, 19], 3), [], "it is not slow");
  assert.deepEqual(slow([100, 180], 3), [], "all are slow alike");
  assert.deepEqual(slow([0.4, 180], 0), [], "nobody waits for it");
  end(rig);
});

Deno.test("explain: what a disk does that waits for nothing", () => {
  const rig = open();
  const before = told(rig);
  assert.equal(healthFinding(before, before, 1000).kind, "idle");
  for (let i = 0; i < 10; i++) rig.device.read(i, 1);
  rig.device.flush();
  rig.device.settle();
  const { kind, says } = healthFinding(before, told(rig), 2000);
  assert.equal(kind, "busy");
  assert.match(
    says,
    /: 5 reads a second, [\d.]+ ms each; 1 flushes a second, [\d.]+ ms each; 0 requests/,
  );
  end(rig);
});

Deno.test("explain: one request is told as one, and several as several", () => {
  const rig = open();
  const facts = told(rig);
  const trouble = { sinceMs: 2000, tries: 3, error: "ENOSPC", errno: Errno.ENOSPC, file: "/a" };
  const sentences = (requests: number): string[] => {
    const limit = { requests, longestMs: 10 };
    const condition = {
      kind: "share",
      bridge: "/b",
      isConnected: true,
      waiting: requests,
    } as const;
    return [
      { trouble: { ...trouble, requests } },
      { trouble: { ...trouble, requests, error: "EIO", errno: Errno.EIO } },
      { requests: { ...facts.requests, limit } },
      { images: [{ ...facts.images[0], condition }] },
    ].flatMap((changed) => says({ ...facts, ...changed })).map(({ says }) => says);
  };
  const beginnings = (requests: number): string[] =>
    sentences(requests).map((text) => text.split(" ").slice(0, 3).join(" "));
  const one = ["1 request waits", "1 request fails", "1 request is", "1 request waits"];
  assert.deepEqual(beginnings(1), one);
  const two = ["2 requests wait", "2 requests fail", "2 requests are", "2 requests wait"];
  assert.deepEqual(beginnings(2), two);
  end(rig);
});

Deno.test("explain: a fault, an image that is full, and a mirror that failed", () => {
  const rig = open();
  const facts = told(rig);
  const kinds = (changed: Partial<ToldFacts>): string[] =>
    says({ ...facts, ...changed }).map(({ kind }) => kind);
  assert.deepEqual(kinds({ phase: "failed" }), ["fault"]);
  const second = { name: "vhd:/b.vhd", redirected: 0 };
  assert.deepEqual(kinds({ secondary: { ...second, state: "failed" } }), ["mirror"]);
  assert.deepEqual(kinds({ secondary: { ...second, state: "alone" } }), ["full"]);
  assert.deepEqual(kinds({ secondary: { ...second, state: "mirror" } }), []);
  const [image, ...rest] = facts.images;
  const share = { kind: "share", bridge: "/run/bridge", isConnected: true, waiting: 2 } as const;
  assert.deepEqual(kinds({ images: [{ ...image, condition: share }, ...rest] }), ["share"]);
  const waits = { client: "a client", held: 0, waits: true, stuckMs: null };
  assert.deepEqual(kinds({ clients: [waits], slots: { free: 0, all: 128 } }), ["slots"]);
  const room = { requests: 3, longestMs: 5000 };
  assert.deepEqual(kinds({ requests: { ...facts.requests, room } }), ["room"]);
  assert.deepEqual(kinds({ reopening: "files of it are gone" }), ["reopening"]);
  end(rig);
});
