/** What `tap-ctl top` shows of given samples, after which keys, at which size of the terminal. */
import assert from "node:assert/strict";
import { wanted } from "../../src/cli/tap_ctl/top.ts";
import { keysIn } from "../../src/cli/top/keys.ts";
import { detailLines } from "../../src/cli/top/detail.ts";
import { megabytes, percent, shortNumber, shortTime } from "../../src/cli/top/figures.ts";
import { rowsOf, sorted } from "../../src/cli/top/rows.ts";
import { head, left, right, tail, widthOf } from "../../src/cli/top/text.ts";
import {
  FIRST_VIEW,
  pressed,
  rowsIn,
  type Samples,
  screenLines,
  type View,
} from "../../src/cli/top/view.ts";
import type { DiskSample } from "../../src/observe/sample.ts";
import { diskSample, histogramOf, hostSample, layerSample } from "../support/observe.ts";

const SIZE = { columns: 80, rows: 24 };

/** A second in which disk N made N * 100 reads of 4 KiB. */
function samplesOf(...changes: Partial<DiskSample>[]): Samples {
  const at = (atMs: number) =>
    changes.map((change, minor) => {
      const reads = atMs / 1000 * minor * 100;
      const none = diskSample().ended;
      return diskSample({
        minor,
        path: `/images/disk-${minor}.vhd`,
        atMs,
        ended: { ...none, read: { requests: reads, failed: 0 } },
        readSectors: 8 * reads,
        chain: [layerSample({ readSectors: 8 * reads })],
        latency: { read: histogramOf([128, reads]), write: histogramOf(), flush: histogramOf() },
        times: { diskMs: atMs / 4, queueMs: 0, pauseMs: 0, retryMs: 0, limitMs: 0, clientMs: 0 },
        ...change,
      });
    });
  return { before: hostSample(at(0)), now: hostSample(at(1_000), { atMs: 1_000 }) };
}

function textOf(view: View, samples: Samples, size = SIZE): string[] {
  return screenLines(view, samples, size).map(({ text }) => text);
}

/** The view after keys. */
function after(samples: Samples, ...keys: string[]): View {
  return keys.reduce<View>((view, key) => {
    const next = pressed(view, key, samples, SIZE);
    assert.ok(next !== null, `${key} quits`);
    return next;
  }, FIRST_VIEW);
}

Deno.test("figures are short, and never wider than their column", () => {
  const numbers = [0, 0.05, 3, 9.96, 12.3, 999, 999.6, 1234, 99_949, 999_499, 999_600, 1e9];
  assert.deepEqual(
    numbers.map(shortNumber),
    ["0", "0.1", "3", "10", "12", "999", "1.0k", "1.2k", "100k", "999k", "1.0M", "1.0G"],
  );
  assert.deepEqual([0, 1e3, 4.56e6, 1.2e8, 2e9].map(megabytes), ["0", "0.0", "4.6", "120", "2000"]);
  const times = [0.4, 85, 999.6, 1_234, 15_000, 999_600, 9_960_000, 61e6, 3600e6, 1e12];
  assert.deepEqual(
    times.map(shortTime),
    ["0us", "85us", "1.0ms", "1.2ms", "15ms", "1.0s", "10s", "61s", "60min", "278h"],
  );
  assert.deepEqual([null, 0, 0.001, 0.5, 0.999, 1].map(percent), [
    "-",
    "0",
    "1",
    "50",
    "99",
    "100",
  ]);
  for (const us of times) assert.ok(shortTime(us).length <= 5);
});

Deno.test("texts are cut and padded by the columns that they take", () => {
  assert.deepEqual([widthOf("ab"), widthOf("日本"), widthOf("e\u0301")], [2, 4, 1]);
  assert.deepEqual([head("日本語", 5), left("日本", 6), right("é", 3)], ["日本", "日本  ", "  é"]);
  assert.deepEqual([tail("/a/long/name", 6), tail("name", 6), tail("x日本", 4)], [
    "…/name".slice(-6),
    "name",
    "…本",
  ]);
});

Deno.test("the table has a line for each disk, those with the most requests first", () => {
  const samples = samplesOf({}, {}, { node: "/dev/ublkb2" });
  const lines = textOf(FIRST_VIEW, samples);
  assert.equal(lines.length, SIZE.rows);
  assert.match(lines[0], /^3 disks, 300 IOPS, 1\.2 MB\/s read, 0 MB\/s written, in 1\.0 s$/);
  assert.match(lines[1], /^MINOR +IOPS +MB\/S +P50 +P99 +QD FLY RTY ERR +D\/Q\/C TOP CCH IMAGE$/);
  const figures = lines.slice(2, 5).map((line) => line.trim().split(/ +/));
  assert.deepEqual(figures.map(([minor, iops]) => [minor, iops]), [["2", "200"], ["1", "100"], [
    "0",
    "0",
  ]]);
  assert.deepEqual(figures[0].slice(2, 12), [
    ...["0.8", "127us", "127us", "0.3", "0", "0", "0"],
    ...["100/0/0", "100", "-"],
  ]);
  assert.match(figures[0][12], /^….*disk-2\.vhd$/);
});

Deno.test("no line is wider than the terminal, at any size, with any name", () => {
  const samples = samplesOf(
    { path: "/日本語日本語日本語日本語日本語.vhd" },
    { path: `/x\u001b[2J${"y".repeat(300)}` },
    { path: "", chain: [] },
  );
  for (const columns of [1, 20, 40, 79, 80, 120, 300]) {
    for (const keys of [[], ["enter"], ["?"], ["/", "日", "x"]]) {
      for (const rows of [1, 3, 10, 50]) {
        const lines = screenLines(after(samples, ...keys), samples, { columns, rows });
        assert.ok(lines.length <= rows);
        for (const { text } of lines) {
          assert.ok(widthOf(text) <= columns, `${columns}: ${text}`);
          assert.match(text, /^\P{Cc}*$/u);
        }
      }
    }
  }
});

Deno.test("wide terminals get more columns", () => {
  const [, title] = textOf(FIRST_VIEW, samplesOf({}), { columns: 120, rows: 10 });
  for (const column of ["RD/S", "WR/S", "RMB/S", "WMB/S", "IMGS"]) {
    assert.ok(title.includes(column));
  }
});

Deno.test("a disk that does not run is marked, with its state in place of where time goes", () => {
  const samples = samplesOf({}, { retrying: 3, retriedError: "ENOSPC" }, { state: 0x2a });
  const lines = screenLines(after(samples, "m", "end"), samples, SIZE);
  const [first, second, third] = lines.slice(2, 5);
  assert.match(second.text, / 3 +\S+ retrying /);
  assert.match(third.text, / paused /);
  assert.deepEqual([first.style, second.style, third.style], ["plain", "bad", "reverse"]);
});

Deno.test("tapdisks that hang or died are named below the disks", () => {
  const { before, now } = samplesOf({});
  const trouble = {
    silent: [{ pid: 5, minors: [7, 8], why: "Cannot get an answer from tapdisk 5" }],
    dead: [6],
    unserved: [{ minor: 9, image: "vhd:/x" }],
  };
  const text = textOf(FIRST_VIEW, { before, now: { ...now, ...trouble } }).join("\n");
  assert.match(text, /tapdisk 5 \(minors 7, 8\): Cannot get an answer/);
  assert.match(text, /1 tapdisk died: 6/);
  assert.match(text, /minor 9, vhd:\/x: no tapdisk serves it; 'tap-ctl recover'/);
});

Deno.test("keys sort, reverse, and select; the selection stays with its disk", () => {
  const samples = samplesOf({ inFlight: 5 }, {}, { inFlight: 9 });
  const order = (view: View): number[] => rowsIn(view, samples).map(({ disk }) => disk.minor);
  assert.deepEqual(order(after(samples, "f")), [2, 0, 1]);
  assert.deepEqual(order(after(samples, "f", "r")), [1, 0, 2]);
  assert.deepEqual(order(after(samples, "m")), [0, 1, 2]);
  assert.deepEqual(order(after(samples, "n", "r")), [2, 1, 0]);
  assert.equal(after(samples, ">").sort, "throughput");
  assert.equal(after(samples, "<").sort, "state");
  const chosen = after(samples, "down", "m");
  const lines = screenLines(chosen, samples, SIZE);
  assert.match(lines.find(({ style }) => style === "reverse")?.text ?? "", /^ +1 /);
  assert.equal(after(samples, "up", "up").selected, 2);
  assert.equal(after(samples, "end").selected, 0);
  assert.equal(pressed(FIRST_VIEW, "q", samples, SIZE), null);
});

Deno.test("all keys of sorting order by what their column shows, without rates last", () => {
  const { now } = samplesOf({}, {}, {});
  const rows = rowsOf(hostSample(now.disks.slice(1).map((disk) => ({ ...disk, atMs: 0 }))), now);
  for (const key of ["iops", "throughput", "depth", "errors"] as const) {
    assert.equal(sorted(rows, key, false).at(-1)?.disk.minor, 0, key);
  }
});

Deno.test("a filter is typed, kept, and taken away by escape", () => {
  const samples = samplesOf({}, { node: "/dev/ublkb2" }, { state: 0x2a });
  const minors = (view: View): number[] => rowsIn(view, samples).map(({ disk }) => disk.minor);
  const typing = after(samples, "/", "q", "backspace", "U", "b");
  assert.match(textOf(typing, samples).at(-1) ?? "", /^Filter: Ub_/);
  const kept = after(samples, "/", "U", "b", "enter");
  assert.deepEqual(minors(kept), [1]);
  assert.match(textOf(kept, samples).at(-1) ?? "", /filter "Ub"/);
  assert.deepEqual(minors(after(samples, "/", "U", "enter", "escape")), [2, 1, 0]);
  assert.deepEqual(minors(after(samples, "/", "0", "enter")), [0]);
  assert.deepEqual(minors(after(samples, "/", ..."paused", "enter")), [2]);
  assert.match(textOf(after(samples, "/", "%", "enter"), samples).join("\n"), /No such disks/);
});

Deno.test("enter opens a disk with its chain and histograms, escape goes back", () => {
  const chain = [
    layerSample({ path: "/leaf", readSectors: 400 }),
    layerSample({ path: "/base", readSectors: 300 }),
  ];
  const samples = samplesOf({}, { chain });
  const open = after(samples, "enter");
  const text = textOf(open, samples, { columns: 80, rows: 40 }).join("\n");
  assert.match(text, /Minor 1 of tapdisk 100: vhd:\/images\/disk-1\.vhd/);
  assert.match(text, /running, 1 MiB/);
  assert.match(text, /Time: disk 100 %, queue 0 %/);
  assert.match(text, /LAYER +SIZE RMB\/S WMB\/S READ% HIT% IMAGE/);
  assert.match(text, /0 +1 MiB +0 +0 +0 +- vhd:\/leaf/);
  assert.match(text, /Reads: 100 requests/);
  assert.match(text, /< +128us +100 #+/);
  assert.match(text, /Writes: none/);
  assert.equal(after(samples, "enter", "escape").isOpen, false);
  const { before } = samples;
  const gone = { before, now: hostSample([]) };
  assert.match(textOf(open, gone).join("\n"), /Minor 1 is not served any more/);
});

Deno.test("a tapdisk or a minor that is asked for is shown alone, with its own trouble", () => {
  const disks = [diskSample({ pid: 1, minor: 3 }), diskSample({ pid: 2, minor: 4 })];
  const sample = hostSample(disks, {
    silent: [{ pid: 5, minors: [6, 7], why: "it hangs" }, { pid: 8, minors: [9], why: "it hangs" }],
    dead: [10, 11],
    unserved: [{ minor: 12, image: "vhd:/a" }, { minor: 13, image: "vhd:/b" }],
  });
  const shown = (choice: { pid?: number; minor?: number }): unknown[] => {
    const { disks, silent, dead, unserved } = wanted(sample, choice);
    return [
      ...disks.map(({ minor }) => `disk ${minor}`),
      ...silent.map(({ pid }) => `silent ${pid}`),
      ...dead.map((pid) => `dead ${pid}`),
      ...unserved.map(({ minor }) => `unserved ${minor}`),
    ];
  };
  assert.equal(shown({}).length, 8);
  assert.deepEqual(shown({ pid: 1 }), ["disk 3"]);
  assert.deepEqual(shown({ pid: 5 }), ["silent 5"]);
  assert.deepEqual(shown({ pid: 10 }), ["dead 10"]);
  assert.deepEqual(shown({ minor: 4 }), ["disk 4"]);
  assert.deepEqual(shown({ minor: 7 }), ["silent 5"]);
  assert.deepEqual(shown({ minor: 13 }), ["unserved 13"]);
  assert.deepEqual(shown({ pid: 8, minor: 6 }), []);
});

Deno.test("long texts are scrolled, and no further than their end", () => {
  const chain = Array.from({ length: 60 }, (_, index) => layerSample({ path: `/layer-${index}` }));
  const samples = samplesOf({}, { chain });
  const lines = (...keys: string[]): string =>
    textOf(after(samples, "enter", ...keys), samples).join("\n");
  assert.ok(!lines().includes("/layer-59"));
  assert.ok(lines("page down", "page down", "page down").includes("/layer-59"));
  assert.ok(lines("page down", "home").includes("Minor 1"));
  // No key is lost at the end: the next one up is seen.
  const past = lines("end", "page down", "page down", "down", "up");
  assert.equal(past, lines("end", "up"));
  assert.notEqual(past, lines("end"));
  assert.ok(lines("end").includes("/layer-59") || !lines("end").includes("/layer-0"));
});

Deno.test("histograms with many buckets have few lines, and lose no request", () => {
  const buckets = Array.from({ length: 30 }, (_, index): [number, number] => [2 ** index, 1]);
  const none = histogramOf();
  const latency = { read: histogramOf(...buckets), write: none, flush: none };
  const disk = diskSample({ latency, atMs: 1_000 });
  const [row] = rowsOf(null, hostSample([disk]));
  const lines = detailLines(row, null, 70).filter((line) => line.startsWith("  < "));
  assert.ok(lines.length <= 16);
  const counted = lines.map((line) => Number(/^ {2}< +\S+ +(\d+) /.exec(line)?.[1]));
  assert.equal(counted.reduce((sum, count) => sum + count, 0), 30);
});

Deno.test("keys are found in what a terminal sends", () => {
  assert.deepEqual(keysIn("q\x1b[A\x1bOB\x1b[5~\r\x7f日"), [
    ...["q", "up", "down", "page up", "enter", "backspace", "日"],
  ]);
  assert.deepEqual(keysIn("\x1b"), ["escape"]);
  assert.deepEqual(keysIn("\x1b[99;5~\x01a"), ["a"]);
});
