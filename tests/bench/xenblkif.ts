/**
 * Measures the speed of a guest's ring, next to the same tapdisk over NBD. This process is the guest;
 * the tapdisk is another process, with a dynamic VHD in memory. Xen is simulated: a copy between the
 * guest's pages and the tapdisk is one of memory, in place of a call of the hypervisor. NBD's load is
 * fio's. The machine needs two idle processors.
 *
 *     deno task bench:xenblkif [SECONDS-A-ROW]
 *
 * @module
 */
import { POLLIN, waitForDescriptor } from "../../ffi/poll.ts";
import { acceptConnection, unixListen } from "../../ffi/sockets.ts";
import { osStorage } from "../../src/files/storage.ts";
import { Random } from "../../src/testing/random.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { Bell } from "../support/blktap2/played_driver.ts";
import { fio } from "../support/fio.ts";
import { hasTool } from "../support/tools.ts";
import { Op, PAGE, PlayedGuest } from "../support/xen/played_guest.ts";
import { PlayedXen } from "../support/xen/played_xen.ts";
import { cpuSeconds } from "./processor_time.ts";

const SERVER = new URL("../support/xen/ring_server.ts", import.meta.url).pathname;
const SECONDS = Number(Deno.args[0] ?? 3);
const DISK_MIB = 256;
const DISK_PAGES = DISK_MIB * 256;
const MIB_PAGES = 256;
const ORDER = 0;
const RING_PAGES = 8;
const MOST_DEPTH = 32;
const PAGES = RING_PAGES + MOST_DEPTH * (1 + MIB_PAGES);
const WAIT_MS = 10_000;

interface Row {
  readonly title: string;
  readonly isRead: boolean;
  readonly pages: number;
  readonly depth: number;
}

const ROWS: readonly Row[] = [
  { title: "4K randread d32", isRead: true, pages: 1, depth: 32 },
  { title: "4K randwrite d32", isRead: false, pages: 1, depth: 32 },
  { title: "4K randread d1", isRead: true, pages: 1, depth: 1 },
  { title: "44K read d8", isRead: true, pages: 11, depth: 8 },
  { title: "1M read d4", isRead: true, pages: MIB_PAGES, depth: 4 },
  { title: "1M write d4", isRead: false, pages: MIB_PAGES, depth: 4 },
];

/** The guest, whose requests have numbers below the depth, each with pages of its own. */
class Load {
  readonly #guest: PlayedGuest;
  readonly #bell: { readonly inward: Bell; readonly outward: Bell; readonly fd: number };
  readonly #random = new Random(1);

  constructor(guest: PlayedGuest, fd: number) {
    this.#guest = guest;
    this.#bell = { fd, inward: new Bell(fd, 2048), outward: new Bell(fd, 1) };
  }

  #put(number: number, { isRead, pages }: Row): void {
    const guest = this.#guest;
    const { view } = guest;
    const first = RING_PAGES + number * (1 + MIB_PAGES);
    const at = guest.entryAt(guest.put++);
    const operation = isRead ? Op.Read : Op.Write;
    const isIndirect = pages > 11;
    view.setUint8(at, isIndirect ? Op.Indirect : operation);
    view.setUint8(at + 1, isIndirect ? operation : pages);
    view.setUint16(at + 2, isIndirect ? pages : 0, true);
    view.setUint32(at + 8, number, true);
    view.setUint32(at + 12, 0, true);
    view.setUint32(at + 16, this.#random.below(DISK_PAGES - pages) * 8, true);
    view.setUint32(at + 20, 0, true);
    if (isIndirect) view.setUint32(at + 28, guest.reference(first), true);
    const segments = isIndirect ? first * PAGE : at + 24;
    for (let i = 0; i < pages; i++) {
      view.setUint32(segments + 8 * i, guest.reference(first + 1 + i), true);
      view.setUint32(segments + 8 * i + 4, 7 << 8, true);
    }
  }

  /** Keeps `depth` requests under way for so long; returns how many ended. */
  run(row: Row, seconds: number): number {
    const guest = this.#guest;
    const untilMs = performance.now() + seconds * 1000;
    for (let number = 0; number < row.depth; number++) this.#put(number, row);
    this.#push();
    let ended = 0;
    for (let underWay = row.depth; underWay > 0;) {
      if (guest.waiting === 0) this.#wait();
      const goesOn = performance.now() < untilMs;
      while (guest.waiting > 0) {
        const at = guest.entryAt(guest.taken++);
        if (guest.view.getInt16(at + 10, true) !== 0) throw new Error("A request failed");
        ended++;
        underWay--;
        if (!goesOn) continue;
        this.#put(guest.view.getUint32(at, true), row);
        underWay++;
      }
      this.#push();
    }
    return ended;
  }

  #push(): void {
    const { words, put } = this.#guest;
    const before = Atomics.load(words, 0);
    Atomics.store(words, 0, put | 0);
    const wanted = Atomics.load(words, 1);
    if ((put - wanted) >>> 0 < (put - before) >>> 0) this.#bell.outward.ring();
  }

  #wait(): void {
    const guest = this.#guest;
    guest.askAt(guest.taken + 1 | 0);
    if (guest.waiting > 0) return;
    if (!waitForDescriptor(this.#bell.fd, POLLIN, WAIT_MS)) throw new Error("The tapdisk hangs");
    this.#bell.inward.hear();
  }
}

function print(title: string, way: string, ios: number, seconds: number, cpu: number): void {
  const iops = Math.round(ios / seconds).toLocaleString("en");
  const each = (cpu / ios * 1e6).toFixed(1);
  console.log(
    `${title.padEnd(18)} ${way.padEnd(5)} ${iops.padStart(9)} IOPS ` +
      `${each.padStart(7)} µs of the tapdisk's processor each`,
  );
}

function measureRing(load: Load, pid: number, row: Row): void {
  load.run(row, 0.3);
  const before = cpuSeconds(pid);
  const startMs = performance.now();
  const ios = load.run(row, SECONDS);
  const seconds = (performance.now() - startMs) / 1000;
  print(row.title, "ring", ios, seconds, cpuSeconds(pid) - before);
}

async function measureNbd(uri: string, pid: number, row: Row): Promise<void> {
  const rw = row.isRead ? "randread" : "randwrite";
  const size = [`rw=${rw}`, `bs=${row.pages * PAGE}`, `iodepth=${row.depth}`, "randrepeat=0"];
  const time = [`runtime=${SECONDS}`, "time_based", `size=${DISK_MIB}M`, "norandommap"];
  const before = cpuSeconds(pid);
  const [job] = await fio(uri, [...size, ...time]);
  const { total_ios, iops } = row.isRead ? job.read : job.write;
  print(row.title, "NBD", total_ios, total_ios / iops, cpuSeconds(pid) - before);
}

const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-bench-" });
try {
  createDynamic(`${folder}/disk.vhd`, { storage: osStorage, sizeBytes: DISK_MIB << 20 });
  const events = { openEvent: () => -1, signal() {}, taken() {}, closeEvent() {} };
  const path = `${folder}/memory`;
  const guest = new PlayedGuest(new PlayedXen(events), { order: ORDER, pages: PAGES, path });
  const listener = unixListen(`${folder}/channel`);
  const args = [`${folder}`, `vhd:${folder}/disk.vhd`, `${PAGES}`, JSON.stringify(guest.ring)];
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", SERVER, ...args],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const lines = child.stdout.getReader();
  await lines.read();
  lines.releaseLock();
  const load = new Load(guest, acceptConnection(listener));
  // All blocks of the disk are there.
  load.run({ title: "", isRead: false, pages: MIB_PAGES, depth: 4 }, 2);
  for (const row of ROWS) {
    measureRing(load, child.pid, row);
    if (hasTool("fio")) await measureNbd(`nbd+unix:///?socket=${folder}/nbd`, child.pid, row);
  }
  await child.stdin.close();
  await child.stdout.cancel();
  await child.status;
  guest.close();
} finally {
  Deno.removeSync(folder, { recursive: true });
}
