import assert from "node:assert/strict";
import { type DeviceFacts, judgeDevices, judgeDisks, judgeRoom } from "../../src/doctor/disks.ts";
import { examineAll } from "../../src/doctor/examination.ts";
import { type Finding, findingsOf, runCheck, shellWord } from "../../src/doctor/finding.ts";
import { judgeExamined } from "../../src/doctor/images.ts";
import { judgeAsync, judgeDrivers, listsModule } from "../../src/doctor/kernel.ts";
import { judgeLimits, parseLimits } from "../../src/doctor/limits.ts";
import { acceptsName, judgeLvm, parseLvmConfig } from "../../src/doctor/lvm.ts";
import { judgePrograms, librariesIn } from "../../src/doctor/programs.ts";
import { judgeUnit, multipathTakes, parseUnit, rulesThatOpen } from "../../src/doctor/system.ts";
import { blktapCompletion } from "../../src/cli/blktap_completion.ts";
import { doctorOptions, doctorPage } from "../../src/cli/doctor/documents.ts";
import { helpText, OPTIONS } from "../../src/cli/doctor/texts.ts";
import { decodeDisk } from "../../src/observe/decode.ts";
import type { DiskSample } from "../../src/observe/sample.ts";
import { needs, run, runOk } from "../support/tools.ts";

function severities(findings: readonly Finding[]): string[] {
  return findings.map(({ severity }) => severity);
}

Deno.test("drivers that are missing are notes, unless a disk of the list wants one", () => {
  const ublk = { kind: "ublk", module: "ublk_drv", missing: "no /dev/ublk-control" };
  const facts = [
    { ...ublk, state: "loadable" as const },
    { kind: "nbd", module: "nbd", missing: null, state: "loaded" as const },
    { kind: "blktap2", module: "blktap", missing: "no driver", state: "absent" as const },
  ];
  const disk = { name: "data", device: "ublk" as const, auto: true };
  const found = judgeDrivers(facts, []);
  assert.deepEqual(severities(found), ["note", "ok", "note"]);
  assert.equal(found[0].how, "modprobe ublk_drv");
  assert.match(found[2].what, /this kernel has no such module/);
  const [error] = judgeDrivers(facts, [disk, { ...disk, device: "nbd" }, { ...disk, auto: false }])
    .slice(3);
  assert.equal(error.severity, "error");
  assert.match(error.what, /Disk data of the list is to be a block device of ublk/);
  assert.equal(judgeDrivers(facts, [{ ...disk, device: "auto" }]).length, 3);
});

Deno.test("modules are found in the lists of depmod", () => {
  const list = "kernel/drivers/block/nbd.ko.xz: kernel/x.ko\nkernel/drivers/block/ublk_drv.ko:\n";
  assert.ok(listsModule(list, "nbd") && listsModule(list, "ublk_drv"));
  assert.ok(!listsModule(list, "blktap") && !listsModule(list, "bd"));
  assert.ok(listsModule("kernel/drivers/block/nbd.ko", "nbd"));
});

Deno.test("asynchronous I/O that is used up is an error", () => {
  const judged = (used: number, most: number): Finding =>
    judgeAsync({ used, most, uringDisabled: 0 })[0];
  assert.equal(judged(0, 65_536).severity, "ok");
  assert.equal(judged(65_536 - 511, 65_536).severity, "error");
  const warning = judged(65_536 - 1024, 65_536);
  assert.deepEqual([warning.severity, warning.how], ["warning", "sysctl -w fs.aio-max-nr=1048576"]);
  assert.match(warning.what, /2 more tapdisks can start/);
  assert.equal(judged(0, 100).severity, "error");
  const [, off] = judgeAsync({ used: null, most: null, uringDisabled: 2 });
  assert.deepEqual([off.severity, off.how], ["note", "sysctl -w kernel.io_uring_disabled=0"]);
});

Deno.test("limits are read from /proc and judged", () => {
  const own = parseLimits(Deno.readTextFileSync("/proc/self/limits"));
  assert.ok(own !== null && own.mostFiles > 0);
  assert.equal(parseLimits(""), null);
  const text = "Max locked memory         8388608  unlimited  bytes\n" +
    "Max open files            1024   1048576  files\n";
  assert.deepEqual(parseLimits(text), { mostFiles: 1_048_576, mostLockedBytes: 8_388_608 });
  const fine = { pid: 7, mostFiles: 65_536, openFiles: 100, mostLockedBytes: Infinity };
  assert.deepEqual(severities(judgeLimits([fine])), ["ok"]);
  const few = { ...fine, pid: null, mostFiles: 256, openFiles: null, mostLockedBytes: 0 };
  const found = judgeLimits([few, { ...fine, mostFiles: 120 }]);
  assert.deepEqual(severities(found), ["warning", "warning", "error"]);
  assert.match(found[0].how ?? "", /^ulimit -Hn 65536/);
  assert.equal(found[2].how, "prlimit --pid 7 --nofile=65536:65536");
});

Deno.test("LVM's filters are read as LVM reads them", () => {
  const text = `devices {
	# global_filter = [ "r|commented|" ]
	global_filter = [ "a|^/dev/sda|",
	                  "r|/dev/nbd[0-9]|" ]   # rest
	filter=["r/^\\/dev\\/ublkb/", "a|.*|"]
	use_devicesfile = 0
	scan_lvs=1
}`;
  const facts = parseLvmConfig(text);
  assert.deepEqual(facts.globalFilter, ["a|^/dev/sda|", "r|/dev/nbd[0-9]|"]);
  assert.equal(facts.filter.length, 2);
  assert.ok(facts.scansVolumes && !facts.usesDevicesFile);
  assert.ok(acceptsName(facts.globalFilter, "/dev/sda1"));
  assert.ok(!acceptsName(facts.globalFilter, "/dev/nbd3"));
  assert.ok(acceptsName(["r(^/dev/x)"], "/dev/y") && !acceptsName(["r(^/dev/x)"], "/dev/x"));
  assert.ok(acceptsName([], "/dev/nbd0") && acceptsName(["a|.*|", "r|.*|"], "/dev/nbd0"));
  assert.deepEqual(
    parseLvmConfig('devices/global_filter=["r|a|"]\nuse_devicesfile=1').globalFilter,
    ["r|a|"],
  );
});

Deno.test("LVM that looks at disks that are served is a warning with the whole filter", () => {
  const open = parseLvmConfig('global_filter=["r|/dev/loop|"]');
  assert.equal(judgeLvm(open, [])[0].severity, "note");
  const [warning] = judgeLvm(open, ["/dev/nbd4"]);
  assert.equal(warning.severity, "warning");
  assert.match(warning.what, /guests there: \/dev\/nbd4$/);
  const filter = /global_filter = \[ (.*) \]$/.exec(warning.how ?? "")?.[1] ?? "";
  const mended = parseLvmConfig(`global_filter=[${filter}]`);
  assert.ok(mended.globalFilter.includes("r|/dev/loop|"));
  assert.deepEqual(severities(judgeLvm(mended, ["/dev/nbd4", "/dev/ublkb0"])), ["ok"]);
  assert.deepEqual(severities(judgeLvm({ ...mended, scansVolumes: true }, [])), ["note"]);
  assert.deepEqual(severities(judgeLvm(null, ["/dev/nbd4"])), ["ok"]);
  assert.deepEqual(severities(judgeLvm({ ...open, usesDevicesFile: true }, ["/dev/nbd4"])), ["ok"]);
});

Deno.test("programs and libraries that were replaced are found", () => {
  const maps = "7f00-7f01 r-xp 0 fe:00 12   /usr/lib/x86_64-linux-gnu/libcrypto.so.3\n" +
    "7f02-7f03 r--p 0 fe:00 12   /usr/lib/x86_64-linux-gnu/libcrypto.so.3\n" +
    "7f04-7f05 r-xp 0 fe:00 13   /usr/lib/librbd.so.1.18.0 (deleted)\n" +
    "7f06-7f07 r-xp 0 fe:00 14   /usr/lib/libc.so.6\n7f08-7f09 rw-p 0 00:00 0\n";
  const libraries = librariesIn(maps);
  assert.deepEqual(libraries, [
    "/usr/lib/librbd.so.1.18.0 (deleted)",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
  ]);
  const found = judgePrograms([
    { pid: 5, file: "/usr/lib/blktap/blktap (deleted)", isThisOne: false, libraries: [] },
    { pid: 6, file: "/usr/lib/blktap/blktap", isThisOne: true, libraries },
    { pid: 7, file: null, isThisOne: false, libraries: [] },
  ]);
  assert.deepEqual(severities(found), ["warning", "warning", "note", "ok"]);
  assert.deepEqual(found.slice(0, 2).map(({ how }) => how), [
    "tap-ctl upgrade -p 5",
    "tap-ctl upgrade -p 6",
  ]);
  assert.match(found[1].what, /replaced since: \/usr\/lib\/librbd\.so\.1\.18\.0$/);
});

Deno.test("units of systemd are judged by whether the list has disks", () => {
  const unit = (load: string, active: string, enabled: string): Finding[] => {
    const text = `LoadState=${load}\nActiveState=${active}\nUnitFileState=${enabled}\n`;
    const facts = parseUnit("blktap.service", text);
    return [judgeUnit(facts, true), judgeUnit(facts, false)];
  };
  assert.deepEqual(severities(unit("loaded", "active", "enabled")), ["ok", "ok"]);
  assert.deepEqual(severities(unit("loaded", "failed", "enabled")), ["error", "error"]);
  assert.deepEqual(severities(unit("not-found", "inactive", "")), ["warning", "ok"]);
  assert.deepEqual(severities(unit("masked", "inactive", "masked")), ["warning", "ok"]);
  assert.equal(
    unit("loaded", "inactive", "disabled")[0].how,
    "systemctl enable --now blktap.service",
  );
  assert.equal(unit("loaded", "inactive", "enabled")[0].how, "systemctl start blktap.service");
});

Deno.test("rules that run programs for our devices are found, and the system's are not", () => {
  const rules = `# KERNEL=="nbd*", RUN+="/bin/comment"
KERNEL=="sd*|nbd[0-9]*", SUBSYSTEM=="block", \\
  RUN+="/sbin/scan %k"
KERNEL=="ublkb*", PROGRAM="/bin/id %k"
KERNEL=="*", RUN+="/bin/all"
KERNEL=="nbd*", SYMLINK+="mine"
KERNEL=="loop*", RUN+="/bin/loop"
`;
  const found = rulesThatOpen(rules);
  assert.deepEqual(found.map(({ line }) => line), [2, 4]);
  assert.match(found[0].rule, /RUN\+="\/sbin\/scan %k"$/);
  assert.ok(!multipathTakes('blacklist { devnode ".*" }'));
  assert.ok(!multipathTakes('blacklist_exceptions { devnode "^sd[a-z]" }'));
  assert.ok(multipathTakes('blacklist_exceptions {\n devnode "^(sd|nbd)"\n}'));
  assert.ok(multipathTakes('blacklist_exceptions { devnode "!^loop" }'));
  assert.ok(!multipathTakes('# blacklist_exceptions { devnode "^nbd" }'));
});

/** A disk that is well, with what a test changes of it. */
function disk(more: Partial<DiskSample> = {}): DiskSample {
  const raw = { name: "vhd:/srv/a b.vhd", minor: 3, images: [], secs: [0, 0] };
  return { ...decodeDisk(raw, { pid: 12, nowMs: 0 }), ...more };
}

Deno.test("disks in trouble are findings with a command", () => {
  assert.deepEqual(severities(judgeDisks([disk()])), ["ok"]);
  const full = judgeDisks([disk({ retrying: 4, retriedError: "ENOSPC" })]);
  assert.deepEqual(severities(full), ["error"]);
  assert.match(full[0].what, /Minor 3 of tapdisk 12: 4 requests failed \(ENOSPC\)/);
  assert.match(full[0].how ?? "", /^df -h \/srv /);
  const [failing] = judgeDisks([disk({ retrying: 1, retriedError: "EIO" })]);
  assert.match(failing.how ?? "", /^tap-ctl stats -p 12 -m 3 /);
  const [hanging] = judgeDisks([disk({ unansweredSeconds: 60 })]);
  assert.deepEqual([hanging.severity, hanging.how?.split("   ")[0]], ["error", "kill -USR1 12"]);
  const paused = { state: 0x2a };
  assert.deepEqual(severities(judgeDisks([disk(paused)])), ["note", "ok"]);
  const [waiting] = judgeDisks([disk({ ...paused, inFlight: 2 })]);
  assert.deepEqual([waiting.severity, waiting.how], ["warning", "tap-ctl unpause -p 12 -m 3"]);
  const secondary = { name: "nbd:x", state: "failed" as const, redirected: 0 };
  assert.equal(judgeDisks([disk({ secondary })])[0].severity, "warning");
});

Deno.test("little room is a warning, none an error, and a filesystem that hangs a note", () => {
  const room = (availableBytes: number, more: Partial<DiskSample> = {}): string[] => {
    const filesystem = { sizeBytes: 2 ** 40, availableBytes };
    const file = { sizeBytes: 2 ** 30, allocatedBytes: 2 ** 20, filesystem };
    return severities(judgeRoom([disk(more)], new Map([["/srv/a b.vhd", file]])));
  };
  assert.deepEqual(room(2 ** 39), ["ok"]);
  assert.deepEqual(room(2 ** 29), ["warning"]);
  assert.deepEqual(room(0), ["error"]);
  assert.deepEqual(room(0, { readOnly: true }), ["ok"]);
  assert.deepEqual(severities(judgeRoom([disk()], new Map())), ["note"]);
  assert.deepEqual(severities(judgeRoom([disk({ path: "/dev/sdb" })], new Map())), ["ok"]);
});

Deno.test("devices that others have made on a disk are found", () => {
  const facts = (more: Partial<DeviceFacts>): DeviceFacts[] => [
    { node: "/dev/nbd3", holders: [], timeoutMs: 5000, ...more },
  ];
  assert.deepEqual(severities(judgeDevices(facts({}), 0)), ["ok"]);
  assert.deepEqual(severities(judgeDevices(facts({ holders: ["dm-9999"] }), 0)), ["warning"]);
  assert.deepEqual(severities(judgeDevices(facts({ timeoutMs: 86_400_000 }), null)), ["note"]);
  const [panic] = judgeDevices([], 1);
  assert.equal(panic.how, "sysctl -w kernel.hung_task_panic=0");
});

Deno.test("a broken chain is an error, one that may not be looked at a note", () => {
  const name = "vhd:/srv/it's.vhd";
  const why = "a disk that is served";
  assert.equal(judgeExamined({ name, fault: null, code: null }, { why, isServed: true }), null);
  const broken = judgeExamined({ name, fault: "No parent", code: "ENOENT" }, {
    why,
    isServed: true,
  });
  assert.equal(broken?.severity, "error");
  assert.match(broken?.what ?? "", /chain is broken: No parent\. It is served now/);
  assert.ok(broken?.how?.includes(`'/srv/it'\\''s.vhd'`));
  for (const code of ["EPERM", "EACCES"]) {
    assert.equal(
      judgeExamined({ name, fault: "x", code }, { why, isServed: false })?.severity,
      "note",
    );
  }
});

Deno.test("a check that hangs or fails is a note, and delays the others only so long", async () => {
  const { ok } = findingsOf("x");
  assert.deepEqual(await runCheck({ name: "x", run: () => [ok("fine")] }, 5000), [ok("fine")]);
  const hangs = { name: "x", run: () => new Promise<Finding[]>(() => {}) };
  const [late] = await runCheck(hangs, 20);
  assert.match(late.what, /could not be checked within 0\.02 s/);
  const fails = {
    name: "x",
    run: (): Finding[] => {
      throw new Error("No such luck");
    },
  };
  assert.match((await runCheck(fails, 5000))[0].what, /could not be checked: No such luck/);
});

/** Answers for each line, and hangs at a name that begins with `hang`. */
const EXAMINER = `
const names = (await new Response(Deno.stdin.readable).text()).split("\\n").filter(Boolean);
for (const line of names) {
  const name = JSON.parse(line);
  if (name.startsWith("hang")) await new Promise((resolve) => setTimeout(resolve, 1e9));
  console.log(JSON.stringify({ name, fault: name === "bad" ? "broken" : null, code: null }));
}`;

Deno.test("an image that hangs is a fault of its own, and the others are examined", async () => {
  const command = { program: Deno.execPath(), args: ["eval", EXAMINER] };
  const names = ["good", "hang", "bad", "last"];
  const limits = { eachMs: 3000, allMs: 60_000 };
  const found = await examineAll(names, { command, limits });
  assert.deepEqual(found.map(({ name, fault }) => [name, fault]), [
    ["good", null],
    ["hang", "It could not be opened within 3 s"],
    ["bad", "broken"],
    ["last", null],
  ]);
  const some = await examineAll(["hang", "good"], {
    command,
    limits: { eachMs: 60_000, allMs: 300 },
  });
  assert.deepEqual(some, []);
});

Deno.test("words for a shell are quoted when they must be", () => {
  assert.deepEqual(["/srv/a.vhd", "a b", "it's", "$(x)", ""].map(shellWord), [
    "/srv/a.vhd",
    "'a b'",
    `'it'\\''s'`,
    "'$(x)'",
    "''",
  ]);
});

const groff = needs("groff", "bash");
Deno.test({
  name: `doctor: its manual page, its completion and its help${groff.suffix}`,
  ignore: groff.ignore,
  async fn() {
    const options = ["-K", "utf8", "-man", "-ww", "-Tutf8", "-P-cbou"];
    const page = await run("groff", options, { stdin: doctorPage() });
    assert.deepEqual([page.code, page.stderr], [0, ""]);
    const ask =
      `${
        blktapCompletion({ doctor: doctorOptions() })
      }\nCOMP_WORDS=(blktap doctor --); COMP_CWORD=2; _blktap; ` +
      `printf '%s\n' "\${COMPREPLY[@]}"`;
    const words = (await runOk("bash", ["-c", ask])).split("\n").filter(Boolean);
    for (const { name, text } of OPTIONS) {
      assert.ok(page.stdout.includes(`--${name}`), name);
      assert.ok(helpText().includes(text), name);
      assert.ok(words.includes(`--${name}`), name);
    }
    for (const line of helpText().split("\n")) assert.ok(line.length <= 80, line);
  },
});
