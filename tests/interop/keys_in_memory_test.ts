/**
 * Where the key of an encrypted disk is: in memory of tapdisk that is locked in RAM and left out of core
 * dumps, and nowhere else. After the disk is closed it is nowhere.
 */
import assert from "node:assert/strict";
import { hasLibcrypto } from "../support/libcrypto.ts";
import { findInMemory, writableMappings } from "../support/process_memory.ts";
import {
  type Disk,
  isRunning,
  needsServed,
  type Tapdisks,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { binaryPath, needs, run, runOk } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

/** Bytes that are nowhere else. */
const KEY = crypto.getRandomValues(new Uint8Array(64));
/** Parts of the key that a copy of any of it, or an expanded key, would have. */
const PARTS = [0, 16, 32, 48].map((at) => KEY.slice(at, at + 16));

const libcrypto = hasLibcrypto() ? [] : ["libcrypto.so.3"];
const served = needsServed("root", "qemu-io", ...libcrypto);

interface Encrypted {
  readonly image: string;
  readonly keyFile: string;
}

async function makeEncrypted(folder: string): Promise<Encrypted> {
  const [image, keyFile] = [`${folder}/disk.vhd`, `${folder}/disk,aes-xts-plain,512.key`];
  Deno.writeFileSync(keyFile, KEY, { mode: 0o600 });
  for (
    const args of [["create", "-n", image, "-s", "8"], ["key", "-s", "-n", image, "-k", keyFile]]
  ) {
    const { code, stderr } = await vhdUtil(...args);
    assert.equal(code, 0, stderr);
  }
  return { image, keyFile };
}

/** Writes and reads, so that the ciphers of both directions are used. */
async function use({ uri }: Disk): Promise<void> {
  const commands = ["write -P 7 64k 64k", "flush", "read -P 7 64k 64k"];
  await runOk("qemu-io", ["-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri]);
}

/** Asserts that the key is only in locked memory that is not dumped; returns the number of places. */
function placesOfKey(pid: number): number {
  const places = findInMemory(pid, PARTS);
  const loose = places.filter(({ mapping: { flags } }) => !flags.includes("lo"));
  assert.deepEqual(loose.map(({ address, mapping }) => [address.toString(16), mapping.name]), []);
  const dumped = places.filter(({ mapping: { flags } }) => !flags.includes("dd"));
  assert.deepEqual(dumped.map(({ mapping }) => mapping.name), []);
  return places.length;
}

Deno.test({
  name: `a key is only in locked memory, and nowhere after its disk is closed${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const { image, keyFile } = await makeEncrypted(folder);
      const pid = await tapdisks.spawn();
      // Keeps the process after the other disk is closed.
      await tapdisks.serve("ram:8", { pid });
      const disk = await tapdisks.serve(`vhd:${image}`, { pid, options: ["-k", keyFile] });
      await use(disk);
      assert.ok(placesOfKey(pid) >= PARTS.length, "the search does not find a key that is there");
      assert.ok(
        !Deno.readTextFileSync(`${tapdisks.controlFolder}/log/tapdisk.log`).includes("lock"),
      );
      await tapdisks.tapCtlOk("pause", "-p", `${pid}`, "-m", `${disk.minor}`);
      await tapdisks.tapCtlOk("unpause", "-p", `${pid}`, "-m", `${disk.minor}`);
      await use(disk);
      assert.ok(placesOfKey(pid) >= PARTS.length);
      await tapdisks.stop(disk);
      assert.equal(placesOfKey(pid), 0, "the key of a disk that was closed");
    }),
});

Deno.test({
  name: `a key that was refused is nowhere${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const { image, keyFile } = await makeEncrypted(folder);
      const pid = await tapdisks.spawn();
      await tapdisks.serve("ram:8", { pid });
      const plain = `${folder}/plain.vhd`;
      await runOk("cp", [image, plain]);
      await vhdUtil("create", "-n", plain, "-s", "8");
      for (const name of ["vhd:/none", `aio:${image}`, `vhd:${folder}`]) {
        await assert.rejects(tapdisks.serve(name, { pid, options: ["-k", keyFile] }), /Cannot/);
      }
      assert.equal(placesOfKey(pid), 0);
    }),
});

/** Where the kernel writes cores: the test needs the working folder of the process. */
const pattern = Deno.readTextFileSync("/proc/sys/kernel/core_pattern").trim();
const cores = needsServed("root", "qemu-io", "prlimit", ...libcrypto);
const cannotDump = cores.ignore || pattern !== "core";
const dumpSuffix = cores.ignore ? cores.suffix : cannotDump ? " (skipped: core_pattern)" : "";

/** A tapdisk in the foreground, whose cores go into a folder of its own. */
async function withDumpingTapdisk(
  body: (tapdisks: Tapdisks, place: { folder: string; pid: number; core: string }) => Promise<void>,
): Promise<void> {
  await withTapdisks(async (tapdisks, folder) => {
    Deno.mkdirSync(`${folder}/cwd`);
    const child = new Deno.Command("prlimit", {
      args: ["--core=unlimited:unlimited", binaryPath("tapdisk"), "-D"],
      cwd: `${folder}/cwd`,
      env: { BLKTAP_CONTROL_DIR: tapdisks.controlFolder },
      stdout: "null",
      stderr: "null",
    }).spawn();
    const { pid } = child;
    try {
      await waitUntil(() => exists(`${tapdisks.controlFolder}/ctl${pid}`), "tapdisk listens");
      await body(tapdisks, { folder, pid, core: `${folder}/cwd/core` });
    } finally {
      try {
        child.kill("SIGKILL");
      } catch {
        // It has ended.
      }
      await child.status;
    }
  });
}

async function abort(tapdisks: Tapdisks, pid: number): Promise<void> {
  Deno.kill(pid, "SIGABRT");
  await waitUntil(() => !isRunning(pid), `process ${pid} ends`);
  tapdisks.forget(pid);
}

Deno.test({
  name: `a core dump of tapdisk has no data of guests${dumpSuffix}`,
  ignore: cannotDump,
  fn: () =>
    withDumpingTapdisk(async (tapdisks, { pid, core }) => {
      await use(await tapdisks.serve("ram:8", { pid }));
      await abort(tapdisks, pid);
      const [name] = Array.from(Deno.readDirSync(core.replace(/core$/, "")), (entry) => entry.name);
      assert.match(name ?? "no core", /^core/);
      const dump = core.replace(/core$/, name);
      assert.equal((await run("grep", ["-qa", "BLKTAP_CONTROL_DIR", dump])).code, 0);
      // The 64 KiB that `use` writes.
      assert.equal((await run("grep", ["-qaP", "\\x07{512}", dump])).code, 1);
    }),
});

Deno.test({
  name: `a tapdisk that has a key leaves no core dump${dumpSuffix}`,
  ignore: cannotDump,
  fn: () =>
    withDumpingTapdisk(async (tapdisks, { folder, pid, core }) => {
      const { image, keyFile } = await makeEncrypted(folder);
      await use(await tapdisks.serve(`vhd:${image}`, { pid, options: ["-k", keyFile] }));
      await abort(tapdisks, pid);
      assert.deepEqual([...Deno.readDirSync(core.replace(/core$/, ""))], []);
    }),
});

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

const limited = needsServed("root", "prlimit", ...libcrypto);

Deno.test({
  name: `without the right to lock memory a disk is served, and the log says so${limited.suffix}`,
  ignore: limited.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const { image, keyFile } = await makeEncrypted(folder);
      for (const path of [folder, image, keyFile]) await runOk("chown", ["12345:12345", path]);
      const env = {
        BLKTAP_CONTROL_DIR: tapdisks.controlFolder,
        BLKTAP_DEVICE: "none",
        HOME: folder,
      };
      const tapCtl = binaryPath("tap-ctl");
      const as = ["--reuid=12345", "--regid=12345", "--clear-groups", "prlimit", "--memlock=0:0"];
      const create = ["create", "-a", `vhd:${image}`, "-k", keyFile];
      const { code, stderr, stdout } = await run("setpriv", [...as, tapCtl, ...create], { env });
      assert.equal(code, 0, stderr + stdout);
      const log = Deno.readTextFileSync(`${tapdisks.controlFolder}/log/tapdisk.log`);
      assert.match(log, /Minor 0: Cannot lock the memory of a key.*LimitMEMLOCK/);
      const pid = /\[(\d+)\]/.exec(log)?.[1] ?? "";
      await runOk("setpriv", [...as, tapCtl, "destroy", "-p", pid, "-m", "0"], { env });
    }),
});

const vhdKeys = needs("root", "dist/vhd-util", ...libcrypto);

Deno.test({
  name: `a vhd-util that copies with a key has it in locked memory only${vhdKeys.suffix}`,
  ignore: vhdKeys.ignore,
  fn: () =>
    withTapdisks(async (_tapdisks, folder) => {
      const { image } = await makeEncrypted(folder);
      const program = binaryPath("vhd-util");
      const args = ["copy", "-n", image, "-N", `${folder}/copy.vhd`, "-E"];
      const child = new Deno.Command(program, { args, stdin: "piped", stderr: "piped" }).spawn();
      const writer = child.stdin.getWriter();
      await writer.write(KEY.subarray(0, 60));
      await waitUntil(() => findInMemory(child.pid, PARTS).length >= 3, "the key arrives");
      placesOfKey(child.pid);
      await writer.write(KEY.subarray(60));
      await writer.close();
      const { code, stderr } = await child.output();
      assert.equal(code, 0, new TextDecoder().decode(stderr));
    }),
});

Deno.test({
  name: `the mappings of a process are read${served.suffix}`,
  ignore: served.ignore,
  fn(): void {
    const mine = writableMappings(Deno.pid);
    assert.ok(mine.some(({ name, flags }) => name === "[stack]" && flags.includes("wr")));
  },
});
