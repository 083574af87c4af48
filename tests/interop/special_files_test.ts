/**
 * Files that are neither regular files nor block devices are refused as images, without a wait: an
 * open of a FIFO without a writer would block every disk of the process.
 */
import assert from "node:assert/strict";
import { createDynamic, openDisk, snapshot } from "../../mod.ts";
import { openVhd } from "../../src/vhd/image/image.ts";
import { Errno } from "../../ffi/errno.ts";
import { osDiskFiles } from "../../src/queue/disk_files.ts";
import { osStorage } from "../../src/files/storage.ts";
import { binaryPath, needs, run, runOk, type RunResult, withTempDir } from "../support/tools.ts";
import { needsServed, withTapdisks } from "../support/served.ts";

const MIB = 1024 * 1024;
const TIMEOUT_MS = 60_000;
const tools = needs("mkfifo", "dist/vhd-util");
const served = needsServed("mkfifo");

/** Creates a file of each refused kind; its name is the kind in the error message. */
async function withSpecialFiles(
  folder: string,
  body: (paths: [string, RegExp][]) => Promise<void>,
): Promise<void> {
  await runOk("mkfifo", [`${folder}/fifo.vhd`]);
  Deno.mkdirSync(`${folder}/folder.vhd`);
  Deno.symlinkSync(`${folder}/fifo.vhd`, `${folder}/link.vhd`);
  Deno.symlinkSync("/dev/zero", `${folder}/zero.vhd`);
  using _socket = Deno.listen({ transport: "unix", path: `${folder}/socket.vhd` });
  await body([
    [`${folder}/fifo.vhd`, /a FIFO/],
    [`${folder}/link.vhd`, /a FIFO/],
    [`${folder}/folder.vhd`, /a directory/],
    [`${folder}/socket.vhd`, /a socket/],
    [`${folder}/zero.vhd`, /a character device/],
    ["/dev/null", /a character device/],
  ]);
}

/** Every command of vhd-util that opens a file by name. */
function calls(path: string, good: string, folder: string): string[][] {
  return [
    ["query", "-n", path, "-v"],
    ["read", "-n", path, "-p"],
    ["check", "-n", path],
    ["scan", "-f", "-v", path],
    ["scan", "-v", path],
    ["map", "-n", path],
    ["create", "-n", path, "-s", "4"],
    ["set", "-n", path, "-f", "hidden", "-v", "1"],
    ["repair", "-n", path],
    ["fill", "-n", path],
    ["modify", "-n", path, "-z"],
    ["modify", "-n", good, "-p", path],
    ["modify", "-n", good, "-p", path, "-m"],
    ["resize", "-n", path, "-s", "8", "-f"],
    ["resize", "-n", good, "-s", "8", "-j", path],
    ["revert", "-n", good, "-j", path],
    ["snapshot", "-n", `${folder}/new.vhd`, "-p", path],
    ["snapshot", "-n", `${folder}/new.vhd`, "-p", path, "-m"],
    ["snapshot", "-n", path, "-p", good],
    ["coalesce", "-n", path],
    ["copy", "-n", path, "-N", `${folder}/new.vhd`],
    ["copy", "-n", good, "-N", path],
    ["key", "-C", "-k", path],
  ];
}

Deno.test({
  name: `vhd-util refuses FIFOs, sockets, character devices and folders, at once${tools.suffix}`,
  ignore: tools.ignore,
  fn: () =>
    withTempDir((folder) =>
      withSpecialFiles(folder, async (paths) => {
        createDynamic(`${folder}/base.vhd`, { sizeBytes: 4 * MIB });
        const good = `${folder}/good.vhd`;
        snapshot(good, { parent: `${folder}/base.vhd`, keepEmptyParent: true });
        const vhdUtil = (args: string[]): Promise<RunResult> =>
          run(binaryPath("vhd-util"), args, { timeoutMs: TIMEOUT_MS });
        const [fifo] = paths;
        for (const args of calls(fifo[0], good, folder)) {
          const { code, stdout, stderr } = await vhdUtil(args);
          assert.ok(
            [Errno.EINVAL, Errno.EEXIST].some((errno) => errno === code),
            `${args} ${code}`,
          );
          assert.ok(!`${stdout}${stderr}`.includes("at file:"), stderr);
        }
        for (const [path, text] of paths) {
          const { code, stderr } = await vhdUtil(["query", "-n", path, "-v"]);
          assert.equal(code, Errno.EINVAL);
          assert.match(stderr, text);
        }
        const scan = await vhdUtil(["scan", "-c", "-m", `${folder}/*.vhd`]);
        assert.equal(scan.code, 0);
        assert.match(scan.stdout, /^vhd=good\.vhd capacity/m);
        assert.match(scan.stdout, /^vhd=.*fifo\.vhd scan-error=-22/m);
        const tree = await vhdUtil(["tree", folder]);
        assert.equal(tree.code, 0, tree.stderr);
      })
    ),
});

Deno.test({
  name: `both ways to open a file refuse what is none${tools.suffix}`,
  ignore: tools.ignore,
  fn: () =>
    withTempDir((folder) =>
      withSpecialFiles(folder, (paths) => {
        for (const [path, text] of paths) {
          for (const readOnly of [true, false]) {
            for (const direct of [true, false]) {
              assert.throws(() => osDiskFiles.open(path, { readOnly, direct }), text);
            }
            assert.throws(() => osStorage.open(path, readOnly ? "read" : "write"), text);
          }
          assert.throws(() => osStorage.open(path, "create"), text);
          assert.throws(() => osStorage.open(path, "create-new"), /EEXIST/);
        }
        return Promise.resolve();
      })
    ),
});

Deno.test({
  name:
    `a tapdisk refuses a FIFO as image and as parent, and serves its other disks on${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks((tapdisks, folder) =>
      withSpecialFiles(folder, async (paths) => {
        createDynamic(`${folder}/good.vhd`, { sizeBytes: 4 * MIB });
        const disk = await tapdisks.serve(`vhd:${folder}/good.vhd`);
        for (const type of ["vhd", "aio", "ram"]) {
          for (const [path, text] of type === "vhd" ? paths : paths.slice(0, 1)) {
            const image = `${type}:${path}`;
            await assert.rejects(tapdisks.serve(image, { pid: disk.pid }), text);
          }
        }
        for (const raw of [false, true]) {
          const [base, child] = [`${folder}/base${raw}.vhd`, `${folder}/child${raw}.vhd`];
          createDynamic(base, { sizeBytes: 4 * MIB });
          snapshot(child, { parent: base, rawParent: raw, keepEmptyParent: true });
          Deno.removeSync(base);
          await runOk("mkfifo", [base]);
          await assert.rejects(tapdisks.serve(`vhd:${child}`, { pid: disk.pid }), /a FIFO/);
          assert.throws(() => openDisk(child), /a FIFO/);
        }
        await tapdisks.tapCtlOk("stats", "-p", `${disk.pid}`, "-m", `${disk.minor}`);
      })
    ),
});

Deno.test("an image that is replaced between two looks at it is noticed", () =>
  withTempDir((folder) => {
    const [a, b] = [`${folder}/a.vhd`, `${folder}/b.vhd`];
    createDynamic(a, { sizeBytes: 4 * MIB });
    createDynamic(b, { sizeBytes: 4 * MIB });
    const same = osStorage.locate(a);
    openVhd(a, { same }).close();
    Deno.renameSync(b, a);
    for (const readOnly of [true, false]) {
      assert.throws(() => openVhd(a, { same, readOnly }), { code: "ESTALE" });
      assert.throws(() => osDiskFiles.open(a, { same, readOnly, direct: false }), /ESTALE/);
    }
    assert.throws(() => openVhd(a, { lockedBy: same, readOnly: false }), { code: "ESTALE" });
  }));
