/**
 * The properties of an image type apply everywhere: a driver in the registry appears in commands,
 * help, manual pages, completion, lists of disks and statistics.
 *
 * @module
 */
import assert from "node:assert/strict";
import { workingFolder } from "../../ffi/paths.ts";
import { tapCtlCompletion, tapCtlPage, tapdiskPage } from "../../src/cli/tap_ctl/documents.ts";
import { loadCommands } from "../../src/cli/tap_ctl/main.ts";
import { absoluteImage } from "../../src/cli/tap_ctl/image_names.ts";
import { tapdiskCommand } from "../../src/cli/tapdisk/main.ts";
import { parseDeviceList } from "../../src/control/client/device_list.ts";
import { aioDriver } from "../../src/driver/aio.ts";
import type { DriverType } from "../../src/driver/driver.ts";
import { NAMES_FILE } from "../../src/driver/image_name.ts";
import { allDrivers, driverOfType, registerDriver } from "../../src/driver/registry.ts";
import { liveSnapshot } from "../../src/vbd/live_snapshot.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { DiskKey } from "../../src/vhd/key.ts";
import { Simulation } from "../support/sim.ts";
// Loaded here because Deno reports a library that is loaded within a test as a leak.
import "../../src/images/convert.ts";

const twin: DriverType = {
  ...aioDriver,
  type: "twin2+x",
  where: "[a|b:]FILE",
  summary: "Raw, by another name",
  number: 77,
  suffix: ".twin",
  named: (rest) => /^[ab]:/.test(rest) ? { kind: "file", at: 2 } : NAMES_FILE,
  open: (spec, context, sink) =>
    aioDriver.open({ ...spec, path: spec.path.replace(/^[ab]:/, "") }, context, sink),
};
registerDriver(twin);

// Loaded here because Deno reports a library that is loaded within a test as a leak.
const TAP_CTL = await loadCommands();

Deno.test("a name is taken once", () => {
  assert.throws(() => registerDriver({ ...twin }), /Cannot add a driver named twin2\+x/);
});

Deno.test("paths of files are made absolute, behind filters and settings", () => {
  const cwd = workingFolder();
  const cases = [
    ["twin2+x:disk", `twin2+x:${cwd}/disk`],
    ["twin2+x:a:disk", `twin2+x:a:${cwd}/disk`],
    ["log:bc:64:twin2+x:a:sub/disk", `log:bc:64:twin2+x:a:${cwd}/sub/disk`],
    ["bc:vhd:x:y.vhd", `bc:vhd:${cwd}/x:y.vhd`],
    ["ram:disk.raw", `ram:${cwd}/disk.raw`],
  ];
  for (const [name, expected] of cases) assert.equal(absoluteImage(name), expected);
  const kept = [
    "twin2+x:/disk",
    "twin2+x:a:/disk",
    "twin2+x:a:",
    "ram:64",
    "bc:64:ram:64",
    "nbd:localhost:10809",
    "nbd:unix:s.sock",
    "log:nbd+unix:///x?socket=s",
    "other:disk",
    "log:disk",
    "vhd:",
    "disk",
    "",
  ];
  for (const name of kept) assert.equal(absoluteImage(name), name);
});

Deno.test("help, manual pages and completion have every type", () => {
  const commands = TAP_CTL;
  const completion = tapCtlCompletion(commands);
  const pages = [tapCtlPage(commands), tapdiskPage(tapdiskCommand())];
  for (const { type, summary } of allDrivers()) {
    for (const page of pages) assert.ok(page.includes(summary.replaceAll("-", "\\-")), type);
    assert.ok(completion.includes(`${type}: `) || completion.includes(`${type}:"`), type);
  }
});

Deno.test("the table in docs/images.md has every type of this program", () => {
  const text = Deno.readTextFileSync(new URL("../../docs/images.md", import.meta.url));
  const rows = text.split("\n").filter((line) => line.startsWith("| `"))
    .map((line) => line.split(/(?<!\\)\|/).slice(1, 4).map((cell) => cell.trim()));
  const expected = allDrivers().filter((driver) => driver !== twin)
    .map(({ type, where, summary }) => [
      `\`${type}\``,
      `\`${where.replaceAll("|", "\\|")}\``,
      summary,
    ]);
  assert.deepEqual(rows, expected);
});

Deno.test("lists of disks take every type, and no other", () => {
  const names = ["twin2+x:/d", "log:twin2+x:a:/d", "nbd+unix:///x?socket=/s", "vhd:/d\\040e"];
  const { devices, faults } = parseDeviceList(names.map((name, i) => `n${i} ${name}`).join("\n"));
  assert.deepEqual(faults, []);
  assert.equal(devices.length, names.length);
  for (const name of ["twin:/d", "log:/d", "twin2+x:", ":/d", "/d"]) {
    const [fault] = parseDeviceList(`n ${name}`).faults;
    assert.match(fault.reason, /is no image/, name);
  }
});

Deno.test("an added type is served, counted by its number, and snapshotted as what it says", () => {
  const simulation = new Simulation({ seed: 1 });
  const { context } = simulation;
  const { storage } = context.files;
  const file = storage.open("/disk.twin", "create-new");
  file.truncate(1 << 20);
  file.close();
  const device = simulation.open("log:twin2+x:a:/disk.twin");
  const { images } = device.vbd.statistics();
  assert.deepEqual(images.map(({ driver }) => driver.type), [9, 77]);
  let name = "";
  liveSnapshot(context, device.vbd, {
    path: "/new.vhd",
    rename: false,
    timeoutMs: 1000,
    done: (...end) => name = JSON.stringify(end),
  });
  simulation.runUntil(() => name !== "", "The snapshot");
  assert.match(name, /log:vhd:\/new\.vhd/);
  device.close();
  simulation.close();
});

Deno.test("a key is refused before anything is opened where the type takes none", () => {
  const simulation = new Simulation({ seed: 2 });
  for (const name of ["twin2+x:/nothing", "log:nbd:localhost:1", "bc:ram:4"]) {
    const key = new DiskKey(new Uint8Array(64));
    assert.throws(() => simulation.open(name, { key }), /with a key: it is not an encrypted image/);
  }
  createDynamic("/d.vhd", { storage: simulation.context.files.storage, sizeBytes: 1 << 20 });
  simulation.close();
});

Deno.test("a name without a type is refused with the one that its suffix stands for", () => {
  const simulation = new Simulation({ seed: 3 });
  const cases = [
    ["/srv/disk.twin", /such as twin2\+x:\/srv\/disk\.twin/],
    ["log:/srv/disk.vhd", /such as vhd:\/srv\/disk\.vhd/],
    ["/srv/disk", /such as vhd:\/disk\.vhd/],
    ["bc:4:other:/srv/disk.vhd", /type "other" \(types: .*twin2\+x.*\)/],
  ] as const;
  for (const [name, message] of cases) assert.throws(() => simulation.open(name), message);
  simulation.close();
});

Deno.test("types keep to their form: names, summaries and numbers", () => {
  for (const { type, summary, number, where } of allDrivers()) {
    assert.match(type, /^[a-z0-9+]+$/);
    assert.match(summary, /^[A-Z].*[^.]$/);
    assert.ok((number === undefined || Number.isInteger(number)) && where !== "");
    assert.equal(driverOfType(type).type, type);
  }
});
