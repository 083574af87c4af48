/**
 * Every writer of an image holds one lock: a tapdisk while it serves the image, vhd-util while it
 * changes the image. No other process changes the file in that time, and the error names the
 * holder.
 */
import assert from "node:assert/strict";
import { coalesce, createDynamic, createFixed, openDisk, snapshot } from "../../mod.ts";
import { Errno } from "../../ffi/errno.ts";
import { lockHolder } from "../../src/files/lock.ts";
import { binaryPath, run, withTempDir } from "../support/tools.ts";
import { needsServed, withTapdisks } from "../support/served.ts";
import { NbdClient } from "../support/nbd_client.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const served = needsServed();

/** Each way in which vhd-util changes an image: the arguments after `-n FILE`. */
function writers(folder: string): [string, ...string[]][] {
  return [
    ["create", "-s", "10"],
    ["create", "-s", "2", "-r"],
    ["snapshot", "-p", `${folder}/other.vhd`, "-e"],
    ["modify", "-z"],
    ["modify", "-s", String(64 * MIB)],
    ["modify", "-p", `${folder}/other.vhd`, "-j", `${folder}/j`],
    ["fill"],
    ["fill", "-b"],
    ["resize", "-s", "128", "-j", `${folder}/j`],
    ["resize", "-s", "80", "-f"],
    ["repair"],
    ["repair", "-b"],
    ["set", "-f", "hidden", "-v", "1"],
    ["set", "-f", "marker", "-v", "1"],
    ["key", "-s", "-H", "0".repeat(64)],
    ["revert", "-j", `${folder}/old.journal`],
  ];
}

Deno.test({
  name: `no writer changes an image that a tapdisk serves${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const image = `${folder}/a.vhd`;
      createDynamic(`${folder}/other.vhd`, { sizeBytes: 64 * MIB });
      const parent = `${folder}/other.vhd`;
      createDynamic(`${folder}/base.vhd`, { sizeBytes: 64 * MIB });
      snapshot(image, { parent, keepEmptyParent: true, reserveBytes: 128 * MIB });
      // An empty journal, as on a block device: a revert with it is a change too.
      Deno.writeFileSync(`${folder}/old.journal`, new Uint8Array(512));
      const disk = await tapdisks.serve(`vhd:${image}`);
      const before = Deno.readFileSync(image);
      for (const [command, ...options] of writers(folder)) {
        const { code, stderr } = await vhdUtil(command, "-n", image, ...options);
        const call = `${command} ${options.join(" ")}: ${stderr}`;
        assert.equal(code, Errno.EBUSY, call);
        assert.match(stderr, /a\.vhd.*\(EBUSY\)/, call);
        assert.match(stderr, new RegExp(`\\(process ${disk.pid}\\)`), call);
        assert.deepEqual(Deno.readFileSync(image), before, call);
      }
      const busy = { code: "EBUSY" };
      assert.throws(() => createFixed(image, { sizeBytes: MIB }), busy);
      assert.throws(() => openDisk(image, { writable: true }), busy);
      assert.throws(() => openDisk(`${folder}/x/../a.vhd`, { writable: true }), { code: "ENOENT" });
      snapshot(`${folder}/child.vhd`, { parent: image, keepEmptyParent: true });
      await assert.rejects(coalesce(`${folder}/child.vhd`), busy);
      assert.deepEqual(Deno.readFileSync(image), before);
      // Readers are not refused.
      assert.equal((await vhdUtil("query", "-n", image, "-vspfd")).code, 0);
      openDisk(image).close();
    }),
});

Deno.test({
  name: `what a tapdisk reads is neither dropped nor moved${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const parent = `${folder}/parent.vhd`;
      createDynamic(`${folder}/other.vhd`, { sizeBytes: 64 * MIB });
      createDynamic(parent, { sizeBytes: 64 * MIB });
      {
        using disk = openDisk(parent, { writable: true });
        disk.write(new Uint8Array(MIB).fill(7), 0);
      }
      snapshot(`${folder}/child.vhd`, { parent, keepEmptyParent: true });
      Deno.linkSync(parent, `${folder}/hard.vhd`);
      Deno.symlinkSync(parent, `${folder}/link.vhd`);
      Deno.writeFileSync(`${folder}/old.journal`, new Uint8Array(512));
      const drops: [string, ...string[]][] = [
        ["create", "-s", "10"],
        ["create", "-s", "2", "-r"],
        ["snapshot", "-p", `${folder}/other.vhd`, "-e"],
        ["modify", "-z"],
        ["resize", "-s", "8192", "-j", `${folder}/j`],
        ["revert", "-j", `${folder}/old.journal`],
      ];
      const before = Deno.readFileSync(parent);
      const cases: [string, string[]][] = [["child.vhd", []], ["parent.vhd", ["-R"]]];
      for (const [name, options] of cases) {
        const disk = await tapdisks.serve(`vhd:${folder}/${name}`, { options });
        for (const victim of ["parent.vhd", "hard.vhd", "link.vhd"]) {
          for (const [command, ...rest] of drops) {
            const { code, stderr } = await vhdUtil(command, "-n", `${folder}/${victim}`, ...rest);
            const call = `${name}: ${command} ${victim} ${rest.join(" ")}: ${stderr}`;
            assert.equal(code, Errno.EBUSY, call);
            assert.match(stderr, new RegExp(`tapdisk \\(process ${disk.pid}\\) reads it`), call);
            assert.deepEqual(Deno.readFileSync(parent), before, call);
          }
        }
        await tapdisks.stop(disk);
      }
      // Storage managers coalesce into, hide and relink the parents of running disks.
      await tapdisks.serve(`vhd:${folder}/child.vhd`);
      for (const hidden of ["1", "0"]) {
        assert.equal((await vhdUtil("set", "-n", parent, "-f", "hidden", "-v", hidden)).code, 0);
      }
      assert.equal((await vhdUtil("coalesce", "-n", `${folder}/child.vhd`)).code, 0);
    }),
});

Deno.test({
  name: `the storage manager merges and relinks below a disk that runs${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const [base, middle, leaf] = ["base", "middle", "leaf"].map((name) =>
        `${folder}/${name}.vhd`
      );
      createDynamic(base, { sizeBytes: 64 * MIB });
      snapshot(middle, { parent: base, keepEmptyParent: true });
      {
        using disk = openDisk(middle, { writable: true });
        disk.write(new Uint8Array(MIB).fill(1), 0);
      }
      snapshot(leaf, { parent: middle });
      const disk = await tapdisks.serve(`vhd:${leaf}`);
      const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
      const { client } = await NbdClient.open(disk.socket);
      await client.write(8 * MIB, new Uint8Array(MIB).fill(2));
      assert.equal((await vhdUtil("coalesce", "-n", middle)).code, 0);
      const relinked = await vhdUtil("modify", "-n", leaf, "-p", base);
      assert.equal(relinked.code, 0, relinked.stderr);
      assert.match(relinked.stderr, /pause and resume its disk/);
      // New blocks are allocated between the relinking and the pause.
      await client.write(16 * MIB, new Uint8Array(4 * MIB).fill(3));
      await tapdisks.tapCtlOk("pause", ...address);
      await tapdisks.tapCtlOk("unpause", ...address);
      Deno.removeSync(middle);
      for (const [offset, value] of [[0, 1], [8 * MIB, 2], [16 * MIB, 3], [32 * MIB, 0]]) {
        const data = await client.read(offset, MIB);
        assert.ok(data.every((byte) => byte === value), `at ${offset}`);
      }
      client.close();
      await tapdisks.stop(disk);
      assert.equal((await vhdUtil("query", "-n", leaf, "-d")).stdout, "chain depth: 2\n");
      const { code, stdout } = await vhdUtil("check", "-n", leaf, "-p", "-b");
      assert.equal(code, 0, stdout);
    }),
});

Deno.test({
  name: `a paused tapdisk lets others change its image${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const image = `${folder}/a.vhd`;
      createDynamic(image, { sizeBytes: 64 * MIB, reserveBytes: 128 * MIB });
      const disk = await tapdisks.serve(`vhd:${image}`);
      const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
      await tapdisks.tapCtlOk("pause", ...address);
      assert.equal((await vhdUtil("resize", "-n", image, "-s", "80", "-f")).code, 0);
      assert.equal((await vhdUtil("set", "-n", image, "-f", "hidden", "-v", "1")).code, 0);
      assert.equal((await vhdUtil("modify", "-n", image, "-z")).code, 0);
      await tapdisks.tapCtlOk("unpause", ...address);
      const { code } = await vhdUtil("set", "-n", image, "-f", "hidden", "-v", "0");
      assert.equal(code, Errno.EBUSY);
    }),
});

Deno.test({
  name: `a tapdisk does not serve an image that is being changed${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const image = `${folder}/a.vhd`;
      createDynamic(image, { sizeBytes: 64 * MIB });
      using _disk = openDisk(image, { writable: true });
      await assert.rejects(tapdisks.serve(`vhd:${image}`), new RegExp(`process ${Deno.pid}\\)`));
      assert.throws(() => openDisk(image, { writable: true }), /this process has it open/);
      const other = await run(binaryPath("vhd-util"), ["create", "-n", image, "-s", "2"]);
      assert.equal(other.code, Errno.EBUSY, other.stderr);
      // Another name of the same image.
      Deno.symlinkSync(image, `${folder}/link.vhd`);
      Deno.linkSync(image, `${folder}/hard.vhd`);
      for (const name of ["link.vhd", "hard.vhd"]) {
        assert.equal((await vhdUtil("modify", "-n", `${folder}/${name}`, "-z")).code, 16);
      }
    }),
});

Deno.test("create leaves a file alone whose lock another has, and removes none that it did not make", () =>
  withTempDir(async (folder) => {
    const image = `${folder}/a.vhd`;
    createDynamic(image, { sizeBytes: 8 * MIB });
    const before = Deno.readFileSync(image);
    {
      using _disk = openDisk(image, { writable: true });
      assert.throws(() => createDynamic(image, { sizeBytes: 4 * MIB }), { code: "EBUSY" });
      assert.deepEqual(Deno.readFileSync(image), before);
    }
    createDynamic(image, { sizeBytes: 4 * MIB });
    assert.equal((await vhdUtil("query", "-n", image, "-v")).stdout, "4\n");
    Deno.symlinkSync(`${folder}/nowhere.vhd`, `${folder}/link.vhd`);
    assert.throws(() => createDynamic(`${folder}/link.vhd`, { sizeBytes: MIB }), {
      code: "ENOENT",
    });
    assert.throws(() => Deno.statSync(`${folder}/nowhere.vhd`), Deno.errors.NotFound);
  }));

Deno.test("the holder of a lock is read off /proc/locks", () => {
  const locks = [
    "1: POSIX  ADVISORY  READ 100 08:01:77 0 EOF",
    "2: FLOCK  ADVISORY  WRITE 200 08:02:77 0 EOF",
    "2: -> FLOCK  ADVISORY  WRITE 250 08:01:77 0 EOF",
    "3: FLOCK  ADVISORY  WRITE 300 08:01:77 0 EOF",
    "4: FLOCK  ADVISORY  WRITE 400 00:31:78 0 EOF",
    "5: FLOCK  ADVISORY  WRITE 0 08:01:79 0 EOF",
    "6: FLOCK  ADVISORY  WRITE 600 fd:104:80 0 EOF",
    "",
  ].join("\n");
  const device = 0x801;
  const unseen = (): null => null;
  assert.equal(lockHolder(locks, { device, inode: 77 }, unseen), 300);
  assert.equal(lockHolder(locks, { device, inode: 77 }, (pid) => pid === 200), 200);
  assert.equal(lockHolder(locks, { device, inode: 77 }, () => false), null);
  assert.equal(lockHolder(locks, { device, inode: 78 }, unseen), null);
  assert.equal(lockHolder(locks, { device, inode: 78 }, (pid) => pid === 400), 400);
  assert.equal(lockHolder(locks, { device, inode: 79 }, unseen), null);
  assert.equal(lockHolder(locks, { device: 0x10fd04, inode: 80 }, unseen), 600);
  assert.equal(lockHolder("", { device, inode: 77 }, unseen), null);
});
