/** The systemd units of the package: their settings and their exposure levels. */
import assert from "node:assert/strict";
import { needs, run } from "../support/tools.ts";

const UNIT = new URL("../../packaging/blktap.service", import.meta.url).pathname;
const TAPBACK_UNIT = new URL("../../packaging/tapback.service", import.meta.url).pathname;
const WEB_UNIT = new URL("../../packaging/blktap-web.service", import.meta.url).pathname;
const EXPORTER_UNIT = new URL("../../packaging/blktap-exporter.service", import.meta.url).pathname;
/** The limit, out of 10; a higher value is "exposed" or worse. */
const MOST_EXPOSURE = 5;
/** tapback has no use for disks and networks. */
const MOST_TAPBACK_EXPOSURE = 3;

const tools = needs("systemd-analyze");

/** Whether systemd-analyze can check a file without a running systemd (since version 250). */
async function canAnalyze(): Promise<boolean> {
  if (tools.ignore) return false;
  const { stdout } = await run("systemd-analyze", ["--version"]);
  return Number(/^systemd (\d+)/.exec(stdout)?.[1] ?? 0) >= 250;
}

Deno.test({
  name: `systemd takes the unit to be confined${tools.suffix}`,
  ignore: !await canAnalyze(),
  async fn() {
    const limits = [
      [UNIT, MOST_EXPOSURE],
      [TAPBACK_UNIT, MOST_TAPBACK_EXPOSURE],
      [WEB_UNIT, MOST_EXPOSURE],
      [EXPORTER_UNIT, MOST_EXPOSURE],
    ] as const;
    for (const [unit, most] of limits) {
      const args = ["security", "--offline=true", "--no-pager", unit];
      const { stdout } = await run("systemd-analyze", args);
      const exposure = Number(/exposure level for [\w-]+\.service: (\d+\.\d)/.exec(stdout)?.[1]);
      assert.ok(exposure < most, stdout);
    }
  },
});

Deno.test("the unit of tapback can reach xenstored both ways, and write where it must", () => {
  const lines = Deno.readTextFileSync(TAPBACK_UNIT).split("\n");
  for (
    const line of [
      // Its lock, and the journals of rings that are over.
      "ReadWritePaths=/run",
      // ProtectClock= implies that devices are refused which are not named.
      "DeviceAllow=/dev/xen/xenbus rw",
      "Restart=always",
      "StartLimitIntervalSec=0",
    ]
  ) assert.ok(lines.includes(line), line);
  assert.ok(!lines.some((line) => line.startsWith("PrivateDevices")));
});

Deno.test("the unit of the exporter has a folder for its socket, and can write nowhere else", () => {
  const lines = Deno.readTextFileSync(EXPORTER_UNIT).split("\n");
  const [, folder] = /--socket \/run\/([\w-]+)\/\w+$/m.exec(lines.join("\n")) ?? [];
  assert.ok(lines.includes("ProtectSystem=strict"));
  assert.ok(lines.includes(`RuntimeDirectory=${folder}`));
  assert.ok(!lines.some((line) => line.startsWith("ReadWritePaths")));
});

Deno.test("the unit is confined by what it says, and keeps what tapdisk cannot do without", () => {
  const text = Deno.readTextFileSync(UNIT);
  const settings = text.replaceAll(/ *\\\n */g, " ").split("\n")
    .filter((line) => /^[A-Z]\w+=/.test(line));
  const valuesOf = (name: string): string[] =>
    settings.filter((line) => line.startsWith(`${name}=`))
      .flatMap((line) => line.slice(name.length + 1).split(" "));
  assert.deepEqual(valuesOf("NoNewPrivileges"), ["yes"]);
  assert.deepEqual(valuesOf("ProtectSystem"), ["full"]);
  assert.deepEqual(valuesOf("UMask"), ["0027"]);
  // A refused system call must fail, not kill the process.
  assert.deepEqual(valuesOf("SystemCallErrorNumber"), ["EPERM"]);
  // Old versions of systemd ignore unknown names, so an allow list would be empty there. Of several
  // lists of capabilities they keep only the common entries.
  const refused = settings.filter((line) => line.startsWith("SystemCallFilter="));
  assert.equal(refused.length, 1);
  assert.match(refused[0], /^SystemCallFilter=~@clock .*@module .*@mount .*@privileged /);
  assert.equal(settings.filter((line) => line.startsWith("CapabilityBoundingSet=")).length, 1);
  const families = ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"];
  assert.deepEqual(valuesOf("RestrictAddressFamilies"), families);
  const capabilities = valuesOf("CapabilityBoundingSet");
  // Without CAP_SYS_PTRACE, a device that a process of another user has open would seem to be free.
  for (const name of ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE"]) {
    assert.ok(capabilities.includes(name), name);
  }
  for (const name of ["CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SETUID", "CAP_SYS_BOOT"]) {
    assert.ok(!capabilities.includes(name), name);
  }
  // These settings would deny tapdisk compiled code, block devices, or images in home folders and
  // /tmp.
  for (
    const name of [
      "MemoryDenyWriteExecute",
      "PrivateDevices",
      "ProtectClock",
      "DeviceAllow",
      "ProtectHome",
      "PrivateTmp",
      "ProtectProc",
    ]
  ) assert.deepEqual(valuesOf(name), [], name);
});
