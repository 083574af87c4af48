/**
 * Sends mixed requests to a simulated disk, by a client that allocates nothing. Prints as JSON the
 * size of the heap before and after, and the processor time. Run with
 * `--v8-flags=--expose-gc,--trace-gc` and the number of requests; `encrypted` after the number
 * encrypts the images, `logged` gives the disk a log of changed blocks, `traced` records the requests.
 *
 * @module
 */
import { createCbtLog } from "../../src/cbt/log_file.ts";
import process from "node:process";
import { driverOfType } from "../../src/driver/registry.ts";
import { MetricsFolder } from "../../src/metrics/metrics_folder.ts";
import { Random } from "../../src/testing/random.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { DiskKey, hashKey, storeKeyhash } from "../../src/vhd/key.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { beginTrace } from "../../src/vbd/request_trace.ts";
import { TraceRing } from "../../src/trace/trace_ring.ts";
import { Simulation } from "../support/sim.ts";

const DISK_SECTORS = 32 * 2048;
const WARM_UP = 200_000;
const REQUESTS = Number(Deno.args[0]);
const DEPTH = 32;
const KEY = Deno.args[1] === "encrypted" ? Uint8Array.from({ length: 64 }, (_, i) => i) : null;

// The counters are in files, as those of a tapdisk are.
const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
const metrics = new MetricsFolder(console.error, folder);
const simulation = new Simulation({ seed: 1, driverOf: driverOfType, metrics });
const storage = simulation.disk;
createDynamic("/base.vhd", { storage, sizeBytes: DISK_SECTORS * 512 });
if (KEY !== null) {
  const nonce = new Uint8Array(32);
  storeKeyhash("/base.vhd", { storage, nonce, hash: hashKey(KEY, nonce) });
}
snapshot("/child.vhd", { storage, parent: "/base.vhd" });
const options = KEY === null ? {} : { key: new DiskKey(KEY) };
if (Deno.args[1] === "logged") createCbtLog("/log", { storage, sizeBytes: DISK_SECTORS * 512 });
const changedBlocks = Deno.args[1] === "logged" ? "/log" : undefined;
const device = simulation.open("vhd:/child.vhd", { ...options, changedBlocks });
const { requests } = device.vbd;
const ring = Deno.args[1] === "traced" ? new TraceRing(simulation.scheduler.lastMs) : null;
if (ring !== null) beginTrace(device.vbd, ring, simulation.scheduler.lastMs);
const random = new Random(2);

class Client implements RequestOwner {
  ended = 0;
  failed = 0;
  underWay = 0;

  requestDone(slot: number, errno: number): void {
    requests.releaseSlot(slot);
    this.ended++;
    this.underWay--;
    if (errno !== 0) this.failed++;
  }

  startOne(): void {
    const slot = requests.takeSlot();
    const dice = random.below(100);
    const count = dice < 70 ? 8 : 1 + random.below(64);
    const sector = random.below(DISK_SECTORS - count);
    this.underWay++;
    if (dice % 20 === 0) requests.start(slot, RequestKind.Flush, 0, 0, false, this);
    else if (dice % 20 === 1) requests.start(slot, RequestKind.Zero, sector, count, false, this);
    else {
      const kind = dice % 2 === 0 ? RequestKind.Read : RequestKind.Write;
      requests.start(slot, kind, sector, count, dice === 3, this);
    }
  }

  run(total: number): void {
    const end = this.ended + total;
    while (this.ended < end) {
      while (this.underWay < DEPTH) this.startOne();
      simulation.scheduler.turn();
      if (ring !== null) { while (ring.run > 0) ring.drop(ring.run); }
    }
  }
}

const collect = (globalThis as unknown as { gc?: () => void }).gc;
if (collect === undefined) throw new Error("Run with --v8-flags=--expose-gc");

const client = new Client();
client.run(WARM_UP);
collect();
const before = Deno.memoryUsage().heapUsed;
const startUs = process.cpuUsage().user;
client.run(REQUESTS);
const cpuMs = (process.cpuUsage().user - startUs) / 1000;
const after = Deno.memoryUsage().heapUsed;
metrics.close();
Deno.removeSync(folder);
console.log(JSON.stringify({ ended: client.ended, failed: client.failed, before, after, cpuMs }));
