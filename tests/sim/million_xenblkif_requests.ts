/**
 * Sends requests through the ring of a guest that allocates nothing. Prints as JSON the size of the
 * heap before and after. Run with `--v8-flags=--expose-gc,--trace-gc` and the number of requests.
 *
 * @module
 */
import { XenRing } from "../../src/frontend/xenblkif/xen_ring.ts";
import { driverOfType } from "../../src/driver/registry.ts";
import { privatePage } from "../../src/metrics/metrics.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { Simulation } from "../support/sim.ts";
import { Op, PAGE, PlayedGuest } from "../support/xen/played_guest.ts";
import { PlayedXen } from "../support/xen/played_xen.ts";

const DISK_SECTORS = 32 * 2048;
const WARM_UP = 200_000;
const REQUESTS = Number(Deno.args[0]);
const DATA_PAGE = 8;
const TABLE_PAGE = 500;
const TABLE_SEGMENTS = 130;
const PATTERN = [Op.Read, Op.Write, Op.Read, Op.Write, Op.Flush, Op.Barrier, Op.Read, Op.Indirect];
// Words of an entry, and of the ring's head.
const [ID, SECTOR, SEGMENTS, INDIRECT] = [2, 4, 6, 7];
const [REQ_PROD, RSP_PROD, RSP_EVENT] = [0, 2, 3];

// They are counted as in the files that other programs read.
const metrics = { open: () => ({ ...privatePage(), ring: privatePage().words }) };
const simulation = new Simulation({ seed: 1, driverOf: driverOfType, metrics });
const { scheduler } = simulation;
createDynamic("/disk.vhd", { storage: simulation.disk, sizeBytes: DISK_SECTORS * 512 });
const { vbd } = simulation.open("vhd:/disk.vhd");
const xen = new PlayedXen({
  openEvent: () => scheduler.openEvent(),
  signal() {},
  taken() {},
  closeEvent: (fd) => scheduler.closeEvent(fd),
});
const guest = new PlayedGuest(xen);
const log = { info() {}, warn() {}, error() {} };
const times = { idle: 0, all: 0 };
const journal = `/dev/shm/played-journal-${Deno.pid}`;
const ring = new XenRing(
  { scheduler, log, vbd, xen, processors: () => times },
  guest.ring,
  journal,
);

const { bytes } = guest.memory.arena;
const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);

function putSegment(at: number, page: number): void {
  words[at] = guest.reference(page);
  words[at + 1] = 7 << 8;
}

for (let i = 0; i < TABLE_SEGMENTS; i++) putSegment(TABLE_PAGE * PAGE / 4 + 2 * i, DATA_PAGE + i);

/** Writes entry `index`, over the response that is in it. */
function put(index: number): void {
  const at = guest.entryAt(index) / 4;
  const operation = PATTERN[index % PATTERN.length];
  const segments = operation === Op.Flush ? 0 : 1 + index % 11;
  words[at + ID] = index;
  words[at + ID + 1] = 7;
  words[at + SECTOR] = index % guest.entries * 1200;
  words[at + SECTOR + 1] = 0;
  if (operation === Op.Indirect) {
    words[at] = operation | (index & 8) << 5 | TABLE_SEGMENTS << 16;
    words[at + INDIRECT] = guest.reference(TABLE_PAGE);
    return;
  }
  words[at] = operation | segments << 8;
  for (let i = 0; i < segments; i++) {
    putSegment(at + SEGMENTS + 2 * i, DATA_PAGE + index % guest.entries * 11 + i);
  }
}

let ended = 0;
let failed = 0;

function run(total: number): void {
  const end = ended + total;
  while (ended < end) {
    while (guest.put - guest.taken < guest.entries) put(guest.put++);
    Atomics.store(words, REQ_PROD, guest.put);
    ring.ready(0);
    scheduler.turn();
    for (; guest.taken < Atomics.load(words, RSP_PROD); guest.taken++) {
      // i16 status @10.
      if (words[guest.entryAt(guest.taken) / 4 + 2] >> 16 !== 0) failed++;
      ended++;
    }
    words[RSP_EVENT] = guest.taken + 1;
  }
}

const collect = (globalThis as unknown as { gc?: () => void }).gc;
if (collect === undefined) throw new Error("Run with --v8-flags=--expose-gc");

Deno.removeSync(journal);
run(WARM_UP);
collect();
const before = Deno.memoryUsage().heapUsed;
run(REQUESTS);
const after = Deno.memoryUsage().heapUsed;
console.log(JSON.stringify({ ended, failed, before, after }));
