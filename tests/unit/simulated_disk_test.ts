/**
 * The guarantees and the faults of the simulated disk.
 *
 * @module
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Arena } from "../../ffi/memory.ts";
import { copyImage } from "../../src/bulk/copy.ts";
import { DiskQueue } from "../../src/queue/disk_queue.ts";
import { pagePool } from "../../src/testing/page_pool.ts";
import { Random } from "../../src/testing/random.ts";
import { changesOnly, DeadProcessError, SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { getFile, putFile, syncFile } from "../support/vhd.ts";

const SECTOR = 512;
const PAGE = 4096;
const TIB = 1024 ** 4;

function filled(sectors: number, value: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(sectors * SECTOR).fill(value);
}

/** Transfers sectors through the queue of a separate process; returns the errno. */
function queued(
  disk: SimulatedDisk,
  kind: "read" | "write",
  { sector, count, arena }: { sector: number; count: number; arena: Arena },
): number {
  const scheduler = new SimulatedScheduler();
  const connection = disk.connect(scheduler, { latencyMs: 3 });
  const queue = new DiskQueue(scheduler, connection, 64);
  const file = connection.open("/f", { readOnly: kind === "read", direct: true });
  let result = -1;
  queue.register(file.file);
  queue[kind](file.file, sector, count, arena.sector, { ioDone: (_t, _s, e) => result = e }, 0);
  scheduler.runUntil(() => result >= 0);
  file.close();
  queue.close();
  return result;
}

Deno.test("synchronous code, the queue and bulk work see the same files", async () => {
  using disk = new SimulatedDisk();
  const arena = new Arena(16 * SECTOR);
  putFile(disk, "/f", filled(16, 1));
  assert.equal(queued(disk, "read", { sector: 4, count: 4, arena }), 0);
  assert.deepEqual(arena.bytes.slice(0, 4 * SECTOR), filled(4, 1));
  arena.bytes.fill(2);
  assert.equal(queued(disk, "write", { sector: 8, count: 16, arena }), 0);
  assert.deepEqual(getFile(disk, "/f"), new Uint8Array([...filled(8, 1), ...filled(16, 2)]));
  arena.release();
  createDynamic("/a.vhd", { storage: disk, sizeBytes: 4 << 20 });
  await copyImage("/a.vhd", "/b.vhd", { makeContext: disk.bulkContext() });
  assert.ok(disk.exists("/b.vhd"));
});

Deno.test("a file of terabytes takes the room of what was written", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  const file = disk.open("/f", "create-new");
  file.truncate(8 * TIB);
  file.writeAt(filled(3, 7), 5 * TIB - SECTOR);
  file.sync();
  assert.equal(disk.usedBytes, 2 * PAGE);
  const found = new Uint8Array(5 * SECTOR);
  assert.equal(file.readAt(found, 5 * TIB - 2 * SECTOR), found.length);
  assert.deepEqual(found, new Uint8Array([...filled(1, 0), ...filled(3, 7), ...filled(1, 0)]));
  const reader = disk.connect(new SimulatedScheduler()).open("/f", {
    readOnly: true,
    direct: true,
  });
  assert.equal(reader.allocatedRun(0, 8 * TIB), PAGE - 5 * TIB);
  assert.equal(reader.allocatedRun(5 * TIB - PAGE, 8 * TIB), 2 * PAGE);
  file.truncate(0);
  disk.cutPower();
  disk.powerOn();
  assert.ok([0, 8 * TIB].includes(disk.status("/f").sizeBytes));
});

Deno.test("a power cut keeps what was synced; of later writes sectors, old or new, never mixed", () => {
  const outcomes = new Set<string>();
  for (let seed = 1; seed <= 60; seed++) {
    using disk = new SimulatedDisk({ seed, powerCuts: true });
    const file = disk.open("/f", "create-new");
    file.writeAt(filled(16, 1), 0);
    file.sync();
    file.writeAt(filled(8, 2), 4 * SECTOR + 100);
    file.writeAt(filled(8, 3), 12 * SECTOR);
    disk.cutPower();
    disk.powerOn();
    const bytes = getFile(disk, "/f");
    assert.ok(bytes.length === 16 * SECTOR || bytes.length === 20 * SECTOR);
    assert.deepEqual(bytes.slice(0, 4 * SECTOR + 100), filled(5, 1).slice(0, 4 * SECTOR + 100));
    for (let sector = 5; sector < bytes.length / SECTOR; sector++) {
      const allowed = sector >= 16 ? [0, 3] : sector > 12 ? [1, 3] : [1, 2, 3];
      const [first, ...rest] = new Set(bytes.subarray(sector * SECTOR, (sector + 1) * SECTOR));
      // The first write may end within a sector; the rest of that sector has the old bytes.
      if (sector !== 12) assert.deepEqual(rest, [], `sector ${sector}, seed ${seed}`);
      assert.ok(allowed.includes(first), `sector ${sector} holds ${first}, seed ${seed}`);
    }
    outcomes.add(bytes.filter((_, at) => at % SECTOR === 200).join());
  }
  assert.ok(outcomes.size > 20, `${outcomes.size} outcomes`);
  const all = (value: number): string => filled(1, value).slice(0, 8).join();
  const whole = [...outcomes].map((outcome) => outcome.split(",").slice(4, 12).join());
  assert.ok(whole.includes(all(1)) && whole.includes(all(2)), "whole writes are lost, and kept");
});

Deno.test("a name outlasts a power cut once its change has returned, and perhaps before", () => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 40; seed++) {
    using disk = new SimulatedDisk({ seed, powerCuts: true });
    putFile(disk, "/a", filled(1, 1));
    syncFile(disk, "/a");
    let syncs = 0;
    disk.beforeOperation = ({ kind }) => {
      if (kind === "sync folder" && ++syncs > seed % 4) disk.cutPower();
    };
    const change = (): void => {
      disk.rename("/a", "/b");
      disk.link("/b", "/c");
      disk.remove("/b");
    };
    if (seed % 4 < 3) assert.throws(change, DeadProcessError);
    else change();
    if (seed % 4 === 3) disk.cutPower();
    disk.beforeOperation = null;
    disk.powerOn();
    const names = ["/a", "/b", "/c"].filter((name) => disk.exists(name));
    for (const name of names) assert.deepEqual(getFile(disk, name), filled(1, 1));
    seen.add(`${seed % 4} ${names.join()}`);
  }
  assert.deepEqual([...seen].sort(), [
    "0 /a",
    "0 /b",
    "1 /b",
    "1 /b,/c",
    "2 /b,/c",
    "2 /c",
    "3 /c",
  ]);
});

Deno.test("power that fails within synchronous code leaves its clean-up nothing to do", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  putFile(disk, "/f", filled(1, 1));
  syncFile(disk, "/f");
  const file = disk.open("/f", "write");
  let changes = 0;
  disk.beforeOperation = changesOnly(() => {
    if (++changes === 2) disk.cutPower();
  });
  assert.throws(() => {
    try {
      file.writeAt(filled(1, 2), 0);
      file.sync();
    } finally {
      assert.throws(() => disk.remove("/f"), DeadProcessError);
    }
  }, DeadProcessError);
  disk.powerOn();
  assert.throws(() => file.writeAt(filled(1, 3), 0), DeadProcessError);
  file.close();
  assert.ok([1, 2].includes(getFile(disk, "/f")[0]));
  assert.equal(changes, 2);
});

Deno.test("a full disk takes what has room, and more when a hole is freed", () => {
  using disk = new SimulatedDisk({ capacityBytes: 3 * PAGE });
  const file = disk.open("/f", "create-new");
  file.truncate(100 * PAGE);
  file.writeAt(new Uint8Array(2 * PAGE).fill(1), 0);
  assert.throws(() => file.writeAt(new Uint8Array(2 * PAGE).fill(2), 4 * PAGE), {
    errno: Errno.ENOSPC,
  });
  assert.equal(disk.usedBytes, 3 * PAGE);
  file.writeAt(filled(1, 3), 0);
  file.close();
  const arena = new Arena(3 * PAGE);
  const write = (sector: number, count = 8): number =>
    queued(disk, "write", { sector, count, arena });
  assert.equal(write(10 * PAGE / SECTOR), Errno.ENOSPC);
  const opened = disk.connect(new SimulatedScheduler()).open("/f", {
    readOnly: false,
    direct: true,
  });
  assert.ok(opened.punchHole(PAGE, PAGE));
  opened.close();
  assert.equal(write(10 * PAGE / SECTOR), 0);
  disk.capacityBytes = 4 * PAGE;
  assert.equal(write(20 * PAGE / SECTOR), 0);
  disk.capacityBytes = 5 * PAGE;
  // The write needs three pages; there is room for one.
  assert.equal(write(30 * PAGE / SECTOR, 24), Errno.ENOSPC);
  assert.equal(disk.usedBytes, 5 * PAGE);
  arena.release();
});

Deno.test("a process that dies lets go of its locks; its operations are done or not", () => {
  const ends = new Set<number>();
  for (let seed = 1; seed <= 20; seed++) {
    using disk = new SimulatedDisk({ seed });
    putFile(disk, "/f", filled(8, 1));
    const scheduler = new SimulatedScheduler();
    const connection = disk.connect(scheduler, { latencyMs: 5 });
    const queue = new DiskQueue(scheduler, connection, 8);
    const { file } = connection.open("/f", { readOnly: false, direct: true });
    const again = disk.connect(scheduler);
    const open = () => again.open("/f", { readOnly: false, direct: true });
    assert.throws(open, { errno: Errno.EBUSY });
    const arena = new Arena(8 * SECTOR);
    queue.register(file);
    queue.write(file, 0, 8, arena.sector, { ioDone: () => assert.fail("It is dead") }, 0);
    queue.endOfTurn();
    connection.die();
    open().close();
    ends.add(getFile(disk, "/f")[0]);
    arena.release();
  }
  assert.deepEqual([...ends].sort(), [0, 1]);
});

Deno.test("a copy is a disk of its own", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  putFile(disk, "/f", filled(300, 1));
  disk.link("/f", "/g");
  using copy = disk.copy();
  putFile(copy, "/f", filled(10, 2));
  disk.open("/f", "write").writeAt(filled(1, 3), 0);
  assert.deepEqual(getFile(copy, "/g"), filled(10, 2), "one file has both names there too");
  assert.deepEqual(getFile(disk, "/f").subarray(SECTOR), filled(299, 1));
  copy.cutPower();
  copy.powerOn();
  assert.equal(getFile(disk, "/f")[0], 3);
});

/** A disk with flushed and unflushed changes of names, contents and lengths, and writes in flight. */
function busyDisk(seed: number): { disk: SimulatedDisk; arena: Arena; end: () => void } {
  const disk = new SimulatedDisk({ seed, powerCuts: true });
  putFile(disk, "/f", filled(8, 1));
  putFile(disk, "/g", filled(1, 1));
  for (const path of ["/f", "/g"]) syncFile(disk, path);
  const scheduler = new SimulatedScheduler();
  const connection = disk.connect(scheduler, { latencyMs: 5 });
  const queue = new DiskQueue(scheduler, connection, 8);
  const { file } = connection.open("/f", { readOnly: false, direct: true });
  queue.register(file);
  const arena = new Arena(12 * SECTOR);
  arena.bytes.fill(3);
  const offline = disk.open("/g", "write");
  offline.writeAt(filled(4, 2), 0);
  offline.truncate(2 * SECTOR);
  // Two neighbours become one write, with two parts of memory.
  queue.write(file, 4, 4, arena.sector + 8, { ioDone: () => {} }, 0);
  queue.write(file, 8, 2, arena.sector, { ioDone: () => {} }, 0);
  queue.endOfTurn();
  const end = (): void => {
    connection.die();
    disk.close();
    arena.release();
  };
  return { disk, arena, end };
}

Deno.test("a photograph is the disk after a power cut; the run does not notice it", () => {
  const outcomes = new Set<string>();
  const ends = new Set<string>();
  for (const photographs of [0, 300]) {
    const { disk, end } = busyDisk(5);
    for (let i = 0; i < photographs; i++) {
      using photo = disk.photograph(new Random(i));
      const writer = photo.open("/f", "write");
      writer.writeAt(filled(1, 9), 0);
      writer.close();
      const made = photo.open("/new", "create-new");
      made.close();
      const [f, g] = [getFile(photo, "/f"), getFile(photo, "/g")];
      for (let sector = 1; sector < f.length / SECTOR; sector++) {
        const value = f[sector * SECTOR];
        assert.ok([sector < 8 ? 1 : 0, ...(sector >= 4 ? [3] : [])].includes(value), `${sector}`);
      }
      outcomes.add(
        `${f.filter((_, at) => at % SECTOR === 0).join("")} ${g.length / SECTOR} ${g[0]}`,
      );
    }
    assert.deepEqual(getFile(disk, "/f"), filled(8, 1));
    const { inode } = disk.open("/last", "create-new").identity;
    disk.cutPower();
    disk.powerOn();
    ends.add(
      [
        ...disk.paths,
        ...disk.paths.map((path) => getFile(disk, path).join("")),
        disk.usedBytes,
        inode,
      ]
        .join(),
    );
    end();
  }
  assert.ok(outcomes.size > 20, `${outcomes.size}`);
  assert.equal(ends.size, 1);
});

Deno.test("a photograph may be taken within the hook, and of a photograph", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  const seen = new Set<number>();
  let operations = 0;
  disk.beforeOperation = () => {
    using photo = disk.photograph(new Random(operations++), { powerCuts: true });
    if (!photo.exists("/f")) return;
    const file = photo.open("/f", "write");
    file.truncate(SECTOR);
    for (let seed = 0; seed < 20; seed++) {
      using second = photo.photograph(new Random(seed));
      seen.add(getFile(second, "/f").length / SECTOR);
    }
  };
  putFile(disk, "/f", filled(3, 1));
  syncFile(disk, "/f");
  disk.open("/f", "read").close();
  disk.beforeOperation = null;
  assert.deepEqual([...seen].sort(), [0, 1, 3]);
});

Deno.test("an enumeration chooses what is kept of each change", () => {
  const { disk, end } = busyDisk(1);
  disk.open("/h", "create-new");
  disk.beforeOperation = ({ kind }) => kind === "sync folder" ? Errno.EIO : 0;
  assert.throws(() => disk.rename("/g", "/i"));
  const list = disk.undecided();
  assert.deepEqual(
    list.map(({ kind, path, offsetBytes, lengthBytes, inFlight, needs }) =>
      [kind, path, offsetBytes / SECTOR, lengthBytes / SECTOR, inFlight, needs].join()
    ),
    [
      "names,/f,/h,/i,0,0,false,-1",
      "length,/f,10,0,true,-1",
      "write,/f,4,6,true,-1",
      "length,/i,4,0,false,-1",
      "length,/i,2,0,false,3",
      "write,/i,0,4,false,-1",
    ],
  );
  const states = new Set<string>();
  for (let choice = 0; choice < 1 << list.length; choice++) {
    using photo = disk.photographWith((index) => (choice & 1 << index) !== 0);
    const g = photo.exists("/i") ? "/i" : "/g";
    assert.equal(photo.exists("/i"), (choice & 1) !== 0);
    const [f, content] = [getFile(photo, "/f"), getFile(photo, g)];
    assert.equal(f.length, (choice & 2) !== 0 ? 10 * SECTOR : 8 * SECTOR);
    assert.deepEqual(f.subarray(4 * SECTOR, 8 * SECTOR), filled(4, (choice & 4) !== 0 ? 3 : 1));
    const sectors = (choice & 8) === 0 ? 1 : (choice & 16) === 0 ? 4 : 2;
    assert.equal(content.length, sectors * SECTOR);
    assert.equal(content[0], (choice & 32) !== 0 ? 2 : 1);
    states.add([g, f.length, f[4 * SECTOR], content.length, content[0]].join());
  }
  assert.equal(states.size, 2 * 4 * 6);
  using torn = disk.photographWith((index) => index !== 2 || ((sector) => sector === 5));
  assert.deepEqual([...getFile(torn, "/f")].filter((_, at) => at % SECTOR === 0), [
    ...[1, 1, 1, 1, 1, 1, 1, 1],
    ...[0, 3],
  ]);
  end();
});

Deno.test("photographs are cheap and give back their memory", () => {
  using disk = new SimulatedDisk({ powerCuts: true });
  putFile(disk, "/f", new Uint8Array(400 * PAGE).fill(1));
  syncFile(disk, "/f");
  const file = disk.open("/f", "write");
  for (let i = 0; i < 30; i++) file.writeAt(filled(8, i), i * 12 * SECTOR);
  const start = performance.now();
  let random = 0;
  for (let i = 0; i < 2000; i++) disk.photograph(new Random(random++)).close();
  const milliseconds = (performance.now() - start) / 2000;
  assert.ok(milliseconds < 20, `${milliseconds} ms`);
  assert.ok(pagePool.pagesInUse < 3000, `${pagePool.pagesInUse} pages`);
});
