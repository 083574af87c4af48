import assert from "node:assert/strict";
import { Room } from "../../src/control/daemon/room.ts";
import {
  NAMES,
  parseProcessors,
  parseSettings,
  tapdiskSettings,
} from "../../src/control/settings.ts";
import { Logger } from "../../src/log/log.ts";
import { SimulatedScheduler } from "../../src/testing/simulated_scheduler.ts";

/** A room for `disks` in simulated time, and when the process was told to end. */
class Bench {
  readonly scheduler = new SimulatedScheduler();
  readonly left = { descriptors: 10_000, memoryBytes: 2 ** 40 };
  attached = 0;
  endedMs: number | null = null;
  readonly room: Room;

  constructor(disks: number) {
    this.room = new Room({
      scheduler: this.scheduler,
      log: new Logger([]),
      ...{ disks, idleMs: 5_000 },
      attached: () => this.attached,
      idle: () => void (this.endedMs = this.scheduler.nowMs()),
      left: () => this.left,
    });
  }

  attach(): void {
    this.attached++;
    this.room.taken();
  }

  detach(): void {
    this.attached--;
    this.room.left();
  }

  /** Lets time pass. */
  wait(ms: number): void {
    let isOver = false;
    this.scheduler.addTimer(ms, () => isOver = true);
    this.scheduler.runUntil(() => isOver);
  }
}

Deno.test("room: attached disks and places that are kept count", () => {
  const bench = new Bench(3);
  bench.attach();
  bench.room.reserve();
  bench.room.reserve();
  assert.throws(() => bench.room.reserve(), { code: "ENOSPC" });
  bench.attach();
  bench.attach();
  assert.throws(() => bench.room.reserve(), { code: "ENOSPC" });
  bench.detach();
  bench.room.reserve();
  assert.throws(() => bench.room.reserve(), { code: "ENOSPC" });
});

Deno.test("room: a place is kept for a minute, then the process ends when it is idle", () => {
  const bench = new Bench(2);
  bench.room.reserve();
  assert.throws(() => bench.room.reserve(), { code: "ENOSPC" });
  bench.wait(59_000);
  assert.equal(bench.room.kept, 2);
  bench.wait(2_000);
  assert.deepEqual([bench.room.kept, bench.endedMs], [0, null]);
  bench.room.reserve();
  bench.wait(10_000);
  assert.equal(bench.endedMs, null, "somebody is expected");
  bench.attach();
  bench.detach();
  const emptyMs = bench.scheduler.nowMs();
  bench.wait(10_000);
  assert.equal(bench.endedMs, emptyMs + 5_000);
});

Deno.test("room: a disk that comes within the grace time keeps the process", () => {
  const bench = new Bench(2);
  bench.attach();
  bench.detach();
  bench.wait(4_000);
  bench.attach();
  bench.wait(20_000);
  assert.equal(bench.endedMs, null);
  bench.detach();
  bench.wait(4_000);
  bench.room.reserve();
  bench.wait(20_000);
  assert.equal(bench.endedMs, null);
});

Deno.test("room: another process must do when descriptors or memory run out", () => {
  const bench = new Bench(200);
  bench.attach();
  bench.left.descriptors = 130;
  bench.room.reserve();
  bench.room.reserve();
  assert.throws(() => bench.room.reserve(), { code: "EMFILE" });
  bench.left.descriptors = 10_000;
  bench.left.memoryBytes = 2 ** 28;
  assert.throws(() => bench.room.reserve(), { code: "ENOMEM" });
});

Deno.test("settings: a file has names and values, comments, and nothing else", () => {
  const text = '# many\nBLKTAP_DISKS_PER_PROCESS = 50  # disks\n\nBLKTAP_CPUS="0-3"\n';
  const expected = [["BLKTAP_DISKS_PER_PROCESS", "50"], ["BLKTAP_CPUS", "0-3"]];
  assert.deepEqual([...parseSettings(text, "/x")], expected);
  for (const wrong of ["BLKTAP_DISKS=50", "disks per process: 50", "=5"]) {
    assert.throws(() => parseSettings(`\n${wrong}`, "/x"), /Cannot use line 2 of \/x/);
  }
});

Deno.test("settings: the file of the package has all of them, as comments that can be used", () => {
  const path = new URL("../../packaging/blktap.conf", import.meta.url);
  const text = Deno.readTextFileSync(path);
  assert.equal(parseSettings(text, "/x").size, 0);
  // A line in capitals behind a number sign alone is a setting.
  const shown = parseSettings(text.replaceAll(/^#(?=BLKTAP_)/gm, ""), "/x");
  assert.deepEqual([...shown.keys()].sort(), [...NAMES].sort());
  const mentioned = text.match(/BLKTAP_\w+/g) ?? [];
  assert.deepEqual(mentioned.filter((name) => !NAMES.includes(name)), []);
  for (const [name, value] of shown) Deno.env.set(name, value);
  try {
    tapdiskSettings();
  } finally {
    for (const name of NAMES) Deno.env.delete(name);
  }
});

Deno.test("settings: the environment comes before the file", () => {
  const path = Deno.makeTempFileSync();
  Deno.writeTextFileSync(path, "BLKTAP_DISKS_PER_PROCESS=50\nBLKTAP_NICE=-5\n");
  Deno.env.set("BLKTAP_CONFIG", path);
  try {
    assert.deepEqual(tapdiskSettings(), {
      ...{ disksPerProcess: 50, idleSeconds: 60, processors: null, niceness: -5 },
    });
    Deno.env.set("BLKTAP_DISKS_PER_PROCESS", "20");
    assert.equal(tapdiskSettings().disksPerProcess, 20);
    for (const wrong of ["0", "many", "1.5", "16385", "-1"]) {
      Deno.env.set("BLKTAP_DISKS_PER_PROCESS", wrong);
      assert.throws(() => tapdiskSettings(), { code: "EINVAL" }, wrong);
    }
    Deno.env.delete("BLKTAP_DISKS_PER_PROCESS");
    Deno.chmodSync(path, 0o666);
    assert.throws(() => tapdiskSettings(), { code: "EPERM" });
  } finally {
    Deno.env.delete("BLKTAP_DISKS_PER_PROCESS");
    Deno.env.delete("BLKTAP_CONFIG");
    Deno.removeSync(path);
  }
});

Deno.test("settings: lists of processors", () => {
  assert.deepEqual(parseProcessors("0-3,8, 2"), [0, 1, 2, 3, 8]);
  for (const wrong of ["", "3-1", "a", "0,", "8192", "-1"]) {
    assert.throws(() => parseProcessors(wrong), { code: "EINVAL" }, wrong);
  }
});
