/**
 * What a trace of a device on a simulated disk records: the stages of each request tile its time, and
 * its operations are those of the images that it needed.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import {
  TraceCollector,
  type TracedOperation,
  type TracedRequest,
} from "../../src/trace/collector.ts";
import { stageName } from "../../src/trace/names.ts";
import { TracedKind } from "../../src/trace/records.ts";
import { TraceRing } from "../../src/trace/trace_ring.ts";
import { NO_LIMITS } from "../../src/vbd/rate_limits.ts";
import { beginTrace, endTrace, type RequestTrace } from "../../src/vbd/request_trace.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { PlayedUblk } from "../support/played_ublk.ts";
import { type SimulatedDevice, Simulation, stampedSectors } from "../support/sim.ts";
import { Op } from "../support/xen/played_guest.ts";
import { XenRig } from "../support/xen/xen_rig.ts";

const SIZE_BYTES = 16 << 20;

/** A device that is traced. */
class Recording {
  readonly simulation: Simulation;
  readonly device: SimulatedDevice;
  readonly ring: TraceRing;
  readonly names = new Map<number, string>();
  readonly #trace: RequestTrace;

  constructor(simulation: Simulation, device: SimulatedDevice) {
    this.simulation = simulation;
    this.device = device;
    // The clock of a simulation begins at 0, which stands for no time in the records.
    this.elapse(10);
    this.ring = new TraceRing(simulation.scheduler.lastMs);
    this.#trace = beginTrace(device.vbd, this.ring, simulation.scheduler.lastMs);
  }

  elapse(forMs: number): void {
    const untilMs = this.simulation.scheduler.nowMs() + forMs;
    this.simulation.scheduler.addTimer(forMs, () => {});
    this.simulation.runUntil(() => this.simulation.scheduler.nowMs() >= untilMs, "The time");
  }

  /** Takes out what has been recorded. */
  take(): { requests: TracedRequest[]; others: TracedOperation[] } {
    const requests: TracedRequest[] = [];
    const others: TracedOperation[] = [];
    for (const [layer, name] of this.device.vbd.tracing.takeNames()) this.names.set(layer, name);
    const collector = new TraceCollector({
      request: (request) => requests.push(request),
      reply() {},
      operation: (operation) => others.push(operation),
      slotWait() {},
    });
    while (this.ring.run > 0) {
      const bytes = this.ring.bytes.slice();
      collector.take(bytes);
      this.ring.drop(this.ring.run);
    }
    requests.forEach(assertTiled);
    return { requests, others };
  }

  end(): void {
    endTrace(this.device.vbd, this.#trace);
  }

  /** Ends the trace and all else. */
  close(): void {
    this.end();
    this.device.close();
    this.ring.release();
    this.simulation.close();
  }
}

/** Opens an image, of which `make` makes what it needs, and traces it. */
function traceOf(image: string, make: (simulation: Simulation) => void): Recording {
  const simulation = new Simulation({ seed: 1, latencyMs: 5 });
  make(simulation);
  return new Recording(simulation, simulation.open(image));
}

function makeRaw({ disk }: Simulation, path: string, sizeBytes = SIZE_BYTES): void {
  const file = disk.open(path, "create");
  file.truncate(sizeBytes);
  file.close();
}

/** The stages of a request follow each other without a gap, from its beginning to its end. */
function assertTiled({ stages, startMs, endMs }: TracedRequest): void {
  let at = startMs;
  for (const stage of stages) {
    assert.ok(Math.abs(stage.startMs - at) < 1e-3, `a stage at ${stage.startMs} follows ${at}`);
    assert.ok(stage.endMs >= stage.startMs);
    at = stage.endMs;
  }
  assert.ok(Math.abs(at - endMs) < 1e-3, `stages end at ${at}, and the request at ${endMs}`);
}

function stagesOf(request: TracedRequest): string[] {
  return request.stages.map(({ stage, errno }) => `${stageName(stage)}${errno === 0 ? "" : " -"}`);
}

Deno.test("a trace shows for each read from which image of the chain it came", () => {
  const traced = traceOf("vhd:/child.vhd", (simulation) => {
    createDynamic("/base.vhd", { storage: simulation.disk, sizeBytes: SIZE_BYTES });
    const base = simulation.open("vhd:/base.vhd");
    base.write(0, stampedSectors(0, 16, 7));
    base.settle();
    base.close();
    snapshot("/child.vhd", { storage: simulation.disk, parent: "/base.vhd" });
  });
  const { device } = traced;
  device.write(0, stampedSectors(0, 8, 9));
  device.settle();
  traced.take();
  device.read(0, 16);
  device.settle();
  const { requests: [read] } = traced.take();
  const parts = read.operations.map(({ layer, kind, count, startMs, submittedMs, endMs }) => {
    assert.ok(startMs <= submittedMs && submittedMs <= endMs);
    assert.ok(read.startMs <= startMs && endMs <= read.endMs + 1e-3);
    return [traced.names.get(layer), kind, count];
  });
  assert.deepEqual(parts.sort(), [
    ["vhd:/base.vhd", TracedKind.Read, 8],
    ["vhd:/child.vhd", TracedKind.Read, 8],
  ]);
  assert.deepEqual([read.kind, read.sector, read.count, read.errno], [TracedKind.Read, 0, 16, 0]);
  traced.close();
});

Deno.test("a trace shows what a request waits for", () => {
  const traced = traceOf("aio:/disk", (simulation) => {
    makeRaw(simulation, "/disk");
  });
  const { device, simulation } = traced;
  // Held by a limit.
  device.vbd.requests.limit({ ...NO_LIMITS, readIops: 10, burstMs: 1 });
  for (let i = 0; i < 3; i++) device.read(8 * i, 8);
  device.settle();
  const limited = traced.take().requests;
  assert.deepEqual(limited.map(stagesOf), [
    ["at the image"],
    ["held by a rate limit", "at the image"],
    ["held by a rate limit", "at the image"],
  ]);
  assert.ok(limited[2].endMs - limited[2].startMs >= 199);
  device.vbd.requests.limit(NO_LIMITS);
  // Held by a pause, of which the image is open anew.
  device.pause();
  device.read(0, 8);
  traced.elapse(300);
  device.resume();
  device.settle();
  const [paused] = traced.take().requests;
  assert.deepEqual(stagesOf(paused), ["held by a pause", "at the image"]);
  assert.ok(paused.stages[0].endMs - paused.stages[0].startMs >= 300);
  assert.equal(traced.names.get(paused.operations[0].layer), "aio:/disk");
  // Tried again.
  let fails = 1;
  simulation.fault = () => fails-- > 0 ? Errno.EAGAIN : 0;
  device.read(0, 8);
  device.settle();
  const [retried] = traced.take().requests;
  const again = ["at the image -", "waits for its next try", "at the image"];
  assert.deepEqual(stagesOf(retried), again);
  assert.deepEqual(retried.operations.map(({ errno }) => errno), [Errno.EAGAIN, 0]);
  assert.equal(retried.errno, 0);
  traced.close();
});

Deno.test("a trace shows the parts of a long request, and requests that have not ended", () => {
  const traced = traceOf("aio:/disk", (simulation) => {
    makeRaw(simulation, "/disk", 4 * 1024 ** 3);
  });
  const { device, simulation } = traced;
  device.discard(0, 5 << 20);
  device.settle();
  const [discard] = traced.take().requests;
  assert.deepEqual(discard.stages.map(({ doneSectors }) => doneSectors >> 20), [1, 2, 3, 4, 5]);
  simulation.hang("/disk", 50);
  device.read(8, 8);
  traced.elapse(30);
  traced.end();
  const [hanging] = traced.take().requests;
  assert.ok(hanging.isUnfinished);
  assert.deepEqual(stagesOf(hanging), ["at the image"]);
  assert.ok(hanging.endMs - hanging.startMs >= 30);
  device.settle();
  assert.deepEqual(traced.take(), { requests: [], others: [] }, "nothing is recorded any more");
  traced.close();
});

Deno.test("operations of one disk are not in the trace of another", () => {
  const traced = traceOf("aio:/disk", (simulation) => {
    makeRaw(simulation, "/disk");
    makeRaw(simulation, "/other");
  });
  const other = traced.simulation.open("aio:/other");
  other.write(0, stampedSectors(0, 8, 1));
  other.flush();
  other.settle();
  assert.deepEqual(traced.take(), { requests: [], others: [] });
  traced.device.flush();
  traced.device.settle();
  const { requests, others } = traced.take();
  assert.deepEqual(requests.map(({ kind }) => kind), [TracedKind.Flush]);
  assert.deepEqual(others.map(({ kind, layer }) => [kind, traced.names.get(layer)]), [
    [TracedKind.Flush, "aio:/disk"],
  ]);
  other.close();
  traced.close();
});

Deno.test("requests of a block device, which keeps its slots, begin when they come", () => {
  const traced = traceOf("aio:/disk", (simulation) => makeRaw(simulation, "/disk"));
  const kernel = new PlayedUblk(traced.device);
  traced.elapse(500);
  for (let round = 0; round < 3; round++) {
    kernel.write(64 * round, stampedSectors(64 * round, 8, 5));
    kernel.read(64 * round, 8);
    kernel.settle();
    traced.elapse(100);
  }
  const { requests } = traced.take();
  assert.deepEqual(requests.map(({ kind, count }) => [kind, count]).sort(), [
    ...[TracedKind.Read, TracedKind.Read, TracedKind.Read].map((kind) => [kind, 8]),
    ...[TracedKind.Write, TracedKind.Write, TracedKind.Write].map((kind) => [kind, 8]),
  ]);
  for (const request of requests) {
    assert.deepEqual(stagesOf(request), ["at the image"]);
    assert.ok(request.endMs - request.startMs <= 50, "the time before it came is not of it");
    assert.deepEqual(request.operations.map(({ sector }) => sector), [request.sector]);
  }
  kernel.stop();
  kernel.close();
  traced.close();
});

Deno.test("requests of a guest's ring are traced", () => {
  const rig = new XenRig({ latencyMs: 5 });
  const disk = rig.disk(16384);
  const guest = rig.guest(disk);
  const traced = new Recording(rig.simulation, disk.device);
  const segments = Array.from({ length: 4 }, (_, i) => [guest.reference(8 + i), 0, 7] as const);
  guest.add({ operation: Op.Write, id: 1n, sector: 64, segments });
  guest.add({ operation: Op.Flush, id: 2n, sector: 0, segments: [] });
  guest.push();
  rig.responses(guest, 2);
  const { requests } = traced.take();
  assert.deepEqual(requests.map(({ kind, sector, count }) => [kind, sector, count]).sort(), [
    [TracedKind.Write, 64, 32],
    [TracedKind.Flush, 0, 0],
  ]);
  traced.end();
  traced.ring.release();
  rig.close();
});
