/** Disks on images of a real Ceph cluster, which the test starts. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { existsSync } from "node:fs";
import { Errno } from "../../ffi/errno.ts";
import { CephCluster, needsCeph } from "../support/ceph.ts";
import { fio } from "../support/fio.ts";
import { Cmd, CmdFlag, NbdClient, noise } from "../support/nbd_client.ts";
import {
  type Disk,
  openDescriptors,
  settledDescriptors,
  type Tapdisks,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { binaryPath, run, runOk, type RunResult } from "../support/tools.ts";

const MIB = 1 << 20;
const { ignore, suffix } = needsCeph("fio", "dist/td-util", "nbdinfo", "nbdkit", "qemu-img");

/** A verifying load that lasts until a time has passed, but writes each block once. */
const VERIFIED = [
  "rw=randwrite",
  "bssplit=4k/50:16k/30:64k/20",
  "iodepth=16",
  "verify=crc32c",
  "verify_fatal=1",
];

/** Permitted average bytes for a request: the addresses of two completions are numbers on the heap. */
const MOST_BYTES = 40;

/** What a test of the cluster does. */
type Body = (cluster: CephCluster, tapdisks: Tapdisks, folder: string) => Promise<void>;

const address = ({ pid, minor }: Disk): string[] => ["-p", `${pid}`, "-m", `${minor}`];

/** The extents of a disk as nbdinfo has them: `offset length type`. */
async function extentsOf(disk: Disk): Promise<string[]> {
  const text = await runOk("nbdinfo", ["--map", disk.uri]);
  return text.trim().split("\n").map((line) => line.trim().split(/\s+/).slice(0, 3).join(" "));
}

/** Exports an image by Ceph's own tool. */
async function exported(cluster: CephCluster, name: string, folder: string): Promise<Uint8Array> {
  const path = `${folder}/${name.replace("@", "-")}.raw`;
  await cluster.rbd("export", "--no-progress", `rbd/${name}`, path);
  const bytes = Deno.readFileSync(path);
  Deno.removeSync(path);
  return bytes;
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Refuses to be served. */
async function refusal(tapdisks: Tapdisks, image: string): Promise<string> {
  try {
    await tapdisks.serve(image);
  } catch (error) {
    return `${error}`;
  }
  return "it was served";
}

const TESTS: Readonly<Record<string, Body>> = {
  async "what fio wrote and verified is what rbd exports"(cluster, tapdisks, folder) {
    await cluster.rbd("create", "--size", "32M", "rbd/fio");
    const disk = await tapdisks.serve(cluster.image("fio"));
    await fio(disk.uri, [...VERIFIED, "size=32M"]);
    const { client } = await NbdClient.open(disk.socket);
    const seen: Uint8Array[] = [];
    for (let at = 0; at < 32; at++) seen.push(await client.read(at * MIB, MIB));
    await client.disconnect();
    await tapdisks.stop(disk);
    assert.ok(Buffer.concat(seen).equals(await exported(cluster, "fio", folder)));
  },

  async "holes are holes, zeros and discards make them, forced writes last"(cluster, tapdisks) {
    await cluster.rbd("create", "--size", "40M", "rbd/holes");
    const disk = await tapdisks.serve(cluster.image("holes"));
    assert.deepEqual(await extentsOf(disk), [`0 ${40 * MIB} 3`]);
    const { client } = await NbdClient.open(disk.socket);
    await client.write(8 * MIB, noise(MIB, 1), 1);
    await client.write(20 * MIB, noise(MIB, 2));
    await client.flush();
    const data = (from: number, to: number): string[] => [
      `0 ${from * MIB} 3`,
      `${from * MIB} ${(to - from) * MIB} 0`,
    ];
    assert.deepEqual(await extentsOf(disk), [
      ...data(8, 12),
      `${12 * MIB} ${8 * MIB} 3`,
      `${20 * MIB} ${4 * MIB} 0`,
      `${24 * MIB} ${16 * MIB} 3`,
    ]);
    // A part of an object becomes zeros; a whole object goes.
    const zero = { command: Cmd.WriteZeroes, cookie: 1 };
    await client.do({ ...zero, offset: 8 * MIB + 4096, length: 8192 });
    await client.do({ ...zero, command: Cmd.Trim, offset: 20 * MIB, length: 4 * MIB });
    const expected = noise(MIB, 1);
    expected.fill(0, 4096, 4096 + 8192);
    assert.deepEqual(await client.read(8 * MIB, MIB), expected);
    assert.deepEqual(await client.read(20 * MIB, MIB), new Uint8Array(MIB));
    assert.deepEqual((await extentsOf(disk)).slice(0, 2), data(8, 12));
    // Zeros that take room are data, though nothing was there.
    const filled = { ...zero, offset: 32 * MIB, length: 4 * MIB, flags: CmdFlag.NoHole };
    assert.equal((await client.do(filled)).error, 0);
    assert.deepEqual((await extentsOf(disk))[3], `${32 * MIB} ${4 * MIB} 0`);
    assert.deepEqual(await client.read(32 * MIB, MIB), new Uint8Array(MIB));
    await client.disconnect();
  },

  async "one tapdisk at a time writes to an image; others are told whose it is"(cluster, tapdisks) {
    await cluster.rbd("create", "--size", "8M", "rbd/lock");
    const image = cluster.image("lock");
    const first = await tapdisks.serve(image);
    const refused = await refusal(tapdisks, image);
    assert.match(refused, /the client at 127\.0\.0\.1:0\/\d+ has its lock.*\(EBUSY\)/);
    // Reading is permitted beside it.
    const reader = await tapdisks.serve(image, { options: ["-R"] });
    await tapdisks.stop(reader);
    await tapdisks.stop(first);
    await tapdisks.stop(await tapdisks.serve(image));
  },

  async "a disk whose lock is broken ends with a clear error, and its image is intact"(
    cluster,
    tapdisks,
  ) {
    await cluster.rbd("create", "--size", "8M", "rbd/stolen");
    const disk = await tapdisks.serve(cluster.image("stolen"));
    const bystander = await tapdisks.serve("ram:4", { pid: disk.pid });
    const { client } = await NbdClient.open(disk.socket);
    await client.write(0, noise(4096, 1));
    const [lock] = JSON.parse(await cluster.rbd("lock", "ls", "--format", "json", "rbd/stolen"));
    await cluster.rbd("lock", "rm", "rbd/stolen", lock.id, lock.locker);
    const late = { command: Cmd.Write, cookie: 2, offset: 0, length: 4096 };
    await assert.rejects(client.do({ ...late, payload: noise(4096, 2) }));
    client.close();
    const log = Deno.readTextFileSync(`${tapdisks.controlFolder}/log/tapdisk.log`);
    assert.match(log, /Cannot go on with rbd:rbd\/stolen.*shut this client out.*ESHUTDOWN/);
    const other = await NbdClient.open(bystander.socket);
    await other.client.write(0, noise(4096, 3));
    await other.client.disconnect();
    const again = await tapdisks.serve(cluster.image("stolen"));
    const second = await NbdClient.open(again.socket);
    assert.deepEqual(await second.client.read(0, 4096), noise(4096, 1));
    await second.client.disconnect();
  },

  async "a snapshot is read only, and keeps its moment"(cluster, tapdisks, folder) {
    await cluster.rbd("create", "--size", "16M", "rbd/snap");
    const disk = await tapdisks.serve(cluster.image("snap"));
    const { client } = await NbdClient.open(disk.socket);
    await client.write(0, noise(MIB, 1));
    await client.flush();
    await cluster.rbd("snap", "create", "--no-progress", "rbd/snap@one");
    await client.write(0, noise(MIB, 2));
    await client.disconnect();
    const snapshot = cluster.image("snap@one");
    assert.match(await refusal(tapdisks, snapshot), /a snapshot is open for reading only.*EROFS/);
    const kept = await tapdisks.serve(snapshot, { options: ["-R"] });
    const reader = await NbdClient.open(kept.socket);
    assert.deepEqual(await reader.client.read(0, MIB), noise(MIB, 1));
    await reader.client.disconnect();
    assert.deepEqual(await extentsOf(kept), [`0 ${4 * MIB} 0`, `${4 * MIB} ${12 * MIB} 3`]);
    await tapdisks.stop(kept);
    await tapdisks.stop(disk);
    const moment = await exported(cluster, "snap@one", folder);
    assert.deepEqual(moment.subarray(0, MIB), noise(MIB, 1));
  },

  async "tap-ctl snapshot makes a snapshot of a running image, under load"(
    cluster,
    tapdisks,
    folder,
  ) {
    await cluster.rbd("create", "--size", "16M", "rbd/live");
    const disk = await tapdisks.serve(cluster.image("live"));
    const { client } = await NbdClient.open(disk.socket);
    await client.write(12 * MIB, noise(MIB, 1));
    const load = fio(disk.uri, [...VERIFIED, "size=8M"]);
    const args = ["snapshot", ...address(disk), "--type", "rbd"];
    const made = await tapdisks.tapCtlOk(...args, "-n", "one");
    assert.match(made, /rbd:rbd\/live,conf=\S+ is open, with the snapshot rbd:rbd\/live@one/);
    await client.write(12 * MIB, noise(MIB, 2));
    await load;
    const moment = await exported(cluster, "live@one", folder);
    assert.deepEqual(moment.subarray(12 * MIB, 13 * MIB), noise(MIB, 1));
    assert.deepEqual(await client.read(12 * MIB, MIB), noise(MIB, 2));
    const refusals = [["one", Errno.EEXIST], ["a@b", Errno.EINVAL], ["/a", Errno.EINVAL]] as const;
    for (const [name, errno] of refusals) {
      assert.equal((await tapdisks.tapCtl(...args, "-n", name)).code, errno, name);
    }
    const file = await tapdisks.tapCtl("snapshot", ...address(disk), "-n", `${folder}/x.vhd`);
    assert.equal(file.code, Errno.EOPNOTSUPP);
    assert.match(file.stderr, /--type rbd/);
    await client.disconnect();
  },

  async "tap-ctl snapshot makes a clone that the disk goes on with, under load"(
    cluster,
    tapdisks,
    folder,
  ) {
    await cluster.rbd("create", "--size", "16M", "rbd/first");
    const disk = await tapdisks.serve(cluster.image("first"));
    const { client } = await NbdClient.open(disk.socket);
    await client.write(12 * MIB, noise(MIB, 1));
    const load = fio(disk.uri, [...VERIFIED, "size=8M"]);
    const args = ["snapshot", ...address(disk), "--type", "rbd-clone"];
    const made = await tapdisks.tapCtlOk(...args, "-n", "second");
    assert.match(made, /rbd:rbd\/second,conf=\S+ is open, on rbd:rbd\/first@second/);
    await client.write(12 * MIB + 4096, noise(8192, 2));
    await load;
    const expected = noise(MIB, 1);
    expected.set(noise(8192, 2), 4096);
    assert.deepEqual(await client.read(12 * MIB, MIB), expected);
    const before = await exported(cluster, "first", folder);
    assert.deepEqual(before.subarray(12 * MIB, 13 * MIB), noise(MIB, 1));
    // What the cluster refuses leaves the disk on the image that it has, and nothing behind.
    await cluster.rbd("create", "--size", "16M", "rbd/taken");
    const refusals = [["taken", Errno.EEXIST], ["a/b", Errno.EINVAL], [
      "a,b",
      Errno.EINVAL,
    ]] as const;
    for (const [name, errno] of refusals) {
      assert.equal((await tapdisks.tapCtl(...args, "-n", name)).code, errno, name);
    }
    assert.equal((await tapdisks.tapCtl(...args, "--rename", "-n", "x")).code, Errno.EINVAL);
    const snapshots = await cluster.rbd("snap", "ls", "--format", "json", "rbd/second");
    assert.deepEqual(JSON.parse(snapshots), []);
    await client.write(13 * MIB, noise(4096, 3));
    // A cluster that still serves old clients has clones of protected snapshots only.
    await cluster.ceph("config", "set", "client", "rbd_default_clone_format", "1");
    await tapdisks.tapCtlOk(...args, "-n", "third");
    await cluster.ceph("config", "rm", "client", "rbd_default_clone_format");
    const [third] = JSON.parse(await cluster.rbd("snap", "ls", "--format", "json", "rbd/second"));
    assert.deepEqual([third.name, third.protected], ["third", "true"]);
    assert.deepEqual(await client.read(13 * MIB, 4096), noise(4096, 3));
    assert.deepEqual(await client.read(12 * MIB, MIB), expected);
    await client.disconnect();
    await tapdisks.stop(disk);
    const after = await exported(cluster, "third", folder);
    assert.deepEqual(after.subarray(12 * MIB, 13 * MIB), expected);
    assert.deepEqual(after.subarray(13 * MIB, 13 * MIB + 4096), noise(4096, 3));
  },

  async "requests wait while the OSD and the monitor are away, and none fails"(cluster, tapdisks) {
    await cluster.rbd("create", "--size", "32M", "rbd/away");
    const disk = await tapdisks.serve(cluster.image("away"), { options: ["-t", "60"] });
    const bystander = await tapdisks.serve("ram:4", { pid: disk.pid });
    let ended = false;
    const load = fio(disk.uri, [...VERIFIED, "size=32M", "rate_iops=200"])
      .finally(() => ended = true);
    await new Promise((resolve) => setTimeout(resolve, 500));
    await cluster.stopOsd();
    const started = performance.now();
    const { client } = await NbdClient.open(bystander.socket);
    await client.write(0, noise(4096, 3));
    await client.disconnect();
    assert.ok(performance.now() - started < 10_000, "the other disk of the process answers");
    const waiting = JSON.parse(await tapdisks.tapCtlOk("stats", ...address(disk)));
    assert.ok(!ended && waiting.reqs_outstanding > 0, "requests wait for the OSD");
    cluster.startOsd();
    await cluster.stopMonitor();
    cluster.startMonitor();
    await load;
    const stats = JSON.parse(await tapdisks.tapCtlOk("stats", ...address(disk)));
    assert.deepEqual([stats.images[0].fail, stats.retries], [[0, 0], 0]);
  },

  async "writes wait while the cluster is full"(cluster, tapdisks) {
    await cluster.rbd("create", "--size", "8M", "rbd/full");
    const disk = await tapdisks.serve(cluster.image("full"));
    const { client } = await NbdClient.open(disk.socket);
    await client.write(0, noise(4096, 1));
    await cluster.ceph("osd", "set-full-ratio", "0.003");
    await cluster.healthHas("OSD_FULL");
    let ended = false;
    const write = client.write(0, noise(4096, 2)).then(() => ended = true);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    assert.equal(ended, false);
    await cluster.ceph("osd", "set-full-ratio", "0.95");
    await write;
    assert.deepEqual(await client.read(0, 4096), noise(4096, 2));
    await client.disconnect();
  },

  async "an image that grew has its new size without a pause; tap-ctl resizes it, too"(
    cluster,
    tapdisks,
  ) {
    await cluster.rbd("create", "--size", "8M", "rbd/grows");
    const disk = await tapdisks.serve(cluster.image("grows"));
    await cluster.rbd("resize", "--no-progress", "--size", "24M", "rbd/grows");
    let size = "";
    for (let tries = 0; tries < 400 && size !== `${24 * MIB}\n`; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      size = await runOk("nbdinfo", ["--size", disk.uri]);
    }
    assert.equal(size, `${24 * MIB}\n`);
    assert.deepEqual(await extentsOf(disk), [`0 ${24 * MIB} 3`]);
    const { client } = await NbdClient.open(disk.socket);
    await client.write(23 * MIB, noise(MIB, 1));
    await client.disconnect();
    await tapdisks.tapCtlOk("resize", ...address(disk), "-s", "32M");
    const grown = await NbdClient.open(disk.socket);
    assert.equal(grown.info.sizeBytes, 32 * MIB);
    assert.deepEqual(await grown.client.read(23 * MIB, MIB), noise(MIB, 1));
    assert.deepEqual(await grown.client.read(31 * MIB, MIB), new Uint8Array(MIB));
    await grown.client.disconnect();
    const smaller = await tapdisks.tapCtl("resize", ...address(disk), "-s", "8M");
    assert.equal(smaller.code, Errno.EINVAL);
  },

  async "a write beyond the end of an image that was cut fails, also when it begins before"(
    cluster,
    tapdisks,
  ) {
    await cluster.rbd("create", "--size", "8M", "rbd/cut");
    const disk = await tapdisks.serve(cluster.image("cut"));
    await cluster.rbd("resize", "--no-progress", "--allow-shrink", "--size", "4M", "rbd/cut");
    const { client } = await NbdClient.open(disk.socket);
    const across = { command: Cmd.Write, offset: 4 * MIB - 4096, payload: noise(8192, 1) };
    let { error } = await client.ask(across);
    for (let tries = 0; tries < 400 && error === 0; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      ({ error } = await client.ask(across));
    }
    assert.equal(error, Errno.EINVAL);
    await client.write(4 * MIB - 8192, noise(8192, 2));
    assert.deepEqual(await client.read(4 * MIB - 8192, 8192), noise(8192, 2));
    await cluster.rbd("resize", "--no-progress", "--size", "8M", "rbd/cut");
    error = Errno.EINVAL;
    for (let tries = 0; tries < 400 && error !== 0; tries++) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      ({ error } = await client.ask(across));
    }
    assert.equal(error, 0, "it has its size again");
    await client.disconnect();
  },

  async "td-util makes an image, resizes it, and copies to it and from it"(
    cluster,
    _tapdisks,
    folder,
  ) {
    const [raw, vhd] = [`${folder}/a.raw`, `${folder}/b.vhd`];
    const bytes = new Uint8Array(16 * MIB);
    bytes.set(noise(MIB, 1), 5 * MIB);
    Deno.writeFileSync(raw, bytes);
    const tdUtil = (...args: string[]): Promise<string> => runOk(binaryPath("td-util"), args);
    await tdUtil("create", cluster.image("copy"), "8M");
    await tdUtil("resize", "--quiet", cluster.image("copy"), "16M");
    await tdUtil("convert", `aio:${raw}`, cluster.image("copy"));
    const there = await exported(cluster, "copy", folder);
    assert.ok(Buffer.from(there).equals(bytes));
    await tdUtil("convert", cluster.image("copy"), `vhd:${vhd}`);
    await runOk("qemu-img", ["compare", "-f", "raw", "-F", "vpc", raw, vhd]);
    assert.match(await tdUtil("info", cluster.image("copy")), /16 MiB/);
    const again = await run(binaryPath("td-util"), ["create", cluster.image("copy"), "8M"]);
    assert.equal(again.code, Errno.EEXIST, again.stderr);
  },

  async "td-util convert makes an image, whose name appears when it is whole"(
    cluster,
    _tapdisks,
    folder,
  ) {
    const bytes = new Uint8Array(16 * MIB);
    bytes.set(noise(MIB, 1), 5 * MIB);
    Deno.writeFileSync(`${folder}/a.raw`, bytes);
    const convert = (...args: string[]): Promise<RunResult> =>
      run(binaryPath("td-util"), ["convert", "--quiet", ...args]);
    await cluster.ceph("osd", "pool", "create", "data", "8");
    const from = `aio:${folder}/a.raw`;
    const options = ["--object-size", "1Mi", "--data-pool", "data"];
    const made = await convert(...options, from, cluster.image("made"));
    assert.equal(made.code, 0, made.stderr);
    const info = JSON.parse(await cluster.rbd("info", "--format", "json", "rbd/made"));
    assert.deepEqual([info.size, info.object_size, info.data_pool], [16 * MIB, MIB, "data"]);
    assert.ok(Buffer.from(await exported(cluster, "made", folder)).equals(bytes));
    const used = JSON.parse(await cluster.rbd("diff", "--format", "json", "rbd/made"));
    assert.deepEqual(used.map(({ offset }: { offset: number }) => offset), [5 * MIB]);
    const exists = await convert(...options, from, cluster.image("made"));
    assert.match(exists.stderr, /it exists, and its objects and its data pool stay.*EEXIST/);
    const file = await convert(...options, from, `aio:${folder}/b.raw`);
    assert.match(file.stderr, /only images on Ceph have objects.*EINVAL/);
    const images = async (): Promise<string[]> =>
      JSON.parse(await cluster.rbd("ls", "--format", "json", "rbd"));
    const before = await images();
    const socket = `${folder}/nbd.sock`;
    // A source that stops after a while, and one that fails.
    for (const filter of ["delay", "error"]) {
      const settings = filter === "delay" ? "rdelay=1" : "error-pread=EIO";
      const plugin = filter === "delay"
        ? ["--filter=delay", "pattern", "64M", settings]
        : ["--filter=error", "pattern", "64M", settings, "error-pread-rate=1"];
      const server = new Deno.Command("nbdkit", {
        args: ["-f", "-U", socket, ...plugin],
        stdin: "null",
        stdout: "null",
        stderr: "null",
      }).spawn();
      try {
        let hasEnded = false;
        server.status.then(() => hasEnded = true);
        while (!existsSync(socket) && !hasEnded) await pause(50);
        const child = new Deno.Command(binaryPath("td-util"), {
          args: ["convert", "--quiet", `nbd:unix:${socket}`, cluster.image("partial")],
          stdin: "null",
          stdout: "null",
          stderr: "piped",
        }).spawn();
        const output = child.output().finally(() => hasEnded = true);
        if (filter === "delay") {
          while (!hasEnded && (await images()).length === before.length) await pause(50);
          assert.ok((await images()).some((name) => /^partial\.[0-9a-f]{16}\.part$/.test(name)));
          child.kill("SIGTERM");
        }
        const { code, stderr } = await output;
        assert.equal(
          code,
          filter === "delay" ? 128 + 15 : Errno.EIO,
          new TextDecoder().decode(stderr),
        );
        assert.deepEqual(await images(), before, filter);
      } finally {
        server.kill("SIGKILL");
        await server.status;
        Deno.removeSync(socket);
      }
    }
  },

  async "a QCOW2 on this machine is on an image of the cluster, where that is allowed"(
    cluster,
    _tapdisks,
    folder,
  ) {
    await cluster.rbd("create", "--size", "16M", "rbd/golden");
    const raw = `${folder}/golden.raw`;
    const golden = new Uint8Array(16 * MIB);
    golden.set(noise(MIB, 1), 9 * MIB);
    Deno.writeFileSync(raw, golden);
    const tdUtil = (...args: string[]): Promise<RunResult> =>
      run(binaryPath("td-util"), args, { env: { CEPH_CONF: cluster.conf } });
    assert.equal((await tdUtil("convert", `aio:${raw}`, cluster.image("golden"))).code, 0);
    await cluster.rbd("snap", "create", "--no-progress", "rbd/golden@v1");
    const child = async (name: string, backing: string): Promise<string> => {
      const path = `${folder}/${name}.qcow2`;
      const create = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", backing];
      await runOk("qemu-img", [...create, path, "16M"]);
      return `qcow2:${path}`;
    };
    const image = await child("child", "rbd:rbd/golden@v1:id=admin");
    const refused = await tdUtil("map", image);
    assert.match(refused.stderr, /allow images on Ceph by --parent-root rbd/);
    const hostile = await child("hostile", `rbd:rbd/golden@v1:conf=${cluster.conf}`);
    const answer = await tdUtil("map", "--parent-root", "rbd", hostile);
    assert.match(answer.stderr, /only id= may be an option/);
    const env = { CEPH_CONF: cluster.conf, BLKTAP_PARENT_ROOTS: "rbd" };
    await withTapdisks(async (tapdisks) => {
      const disk = await tapdisks.serve(image);
      const { client } = await NbdClient.open(disk.socket);
      assert.deepEqual(await client.read(9 * MIB, MIB), noise(MIB, 1));
      await client.write(9 * MIB + 4096, noise(8192, 2));
      const expected = noise(MIB, 1);
      expected.set(noise(8192, 2), 4096);
      assert.deepEqual(await client.read(9 * MIB, MIB), expected);
      assert.deepEqual(await client.read(0, MIB), new Uint8Array(MIB));
      await client.disconnect();
    }, { env });
    const grandchild = `${folder}/grandchild.qcow2`;
    const top = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "child.qcow2"];
    await runOk("qemu-img", [...top, grandchild, "16M"]);
    const map = await tdUtil("map", "--parent-root", "rbd", `qcow2:${grandchild}`);
    assert.match(map.stdout, /qcow2:\S+child\.qcow2\n.*rbd:rbd\/golden@v1,id=admin/);
    assert.ok(Buffer.from(await exported(cluster, "golden@v1", folder)).equals(golden));
  },

  async "a VHD on this machine is on a snapshot on the cluster, and names it as the kernel would"(
    cluster,
    _tapdisks,
    folder,
  ) {
    await cluster.rbd("create", "--size", "16M", "rbd/base");
    const golden = new Uint8Array(16 * MIB);
    golden.set(noise(MIB, 1), 9 * MIB);
    Deno.writeFileSync(`${folder}/base.raw`, golden);
    const env = { CEPH_CONF: cluster.conf };
    type Tool = "td-util" | "vhd-util";
    const tool = (name: Tool, ...args: string[]): Promise<RunResult> =>
      run(binaryPath(name), args, { env });
    const made = async (name: Tool, ...args: string[]): Promise<string> => {
      const { code, stdout, stderr } = await tool(name, ...args);
      assert.equal(code, 0, stderr);
      return stdout;
    };
    await made("td-util", "convert", "--quiet", `aio:${folder}/base.raw`, cluster.image("base"));
    const child = `${folder}/child.vhd`;
    const changing = await tool("td-util", "snapshot", "rbd:rbd/base", `vhd:${child}`);
    assert.match(changing.stderr, /others may write to that.*EINVAL.*rbd snap create/s);
    await cluster.rbd("snap", "create", "--no-progress", "rbd/base@v1");
    await made("td-util", "snapshot", "rbd:rbd/base@v1", `vhd:${child}`);
    assert.match(
      await made("vhd-util", "query", "-n", child, "-p", "-u"),
      /^\/dev\/rbd\/rbd\/base@v1$/m,
    );
    await made("vhd-util", "check", "-n", child, "--parent-root", "rbd");
    const refused = await tool("td-util", "map", `vhd:${child}`);
    assert.match(refused.stderr, /its parent is rbd:rbd\/base@v1 \(EPERM\).*--parent-root rbd/);
    // What knows nothing of Ceph misses the parent, and does not take another file for it.
    const read = await tool("vhd-util", "coalesce", "-n", child, "--parent-root", "rbd");
    assert.match(read.stderr, /its parent rbd:rbd\/base@v1 is on Ceph \(ENOENT\)/);
    const device = "/dev/rbd/rbd/base@v1";
    const other = `${folder}/other.vhd`;
    await made("vhd-util", "snapshot", "-n", other, "-m", "-p", device);
    await made("td-util", "diff", "--parent-root", "rbd", `vhd:${child}`, `vhd:${other}`);
    await withTapdisks(async (tapdisks) => {
      const disk = await tapdisks.serve(`vhd:${child}`);
      const beside = await tapdisks.serve(`vhd:${other}`);
      const { client } = await NbdClient.open(disk.socket);
      assert.deepEqual(await client.read(9 * MIB, MIB), noise(MIB, 1));
      await client.write(9 * MIB + 4096, noise(8192, 2));
      await tapdisks.tapCtlOk("snapshot", ...address(disk), "-n", `${folder}/top.vhd`);
      await client.write(9 * MIB + 16384, noise(4096, 3));
      const expected = noise(MIB, 1);
      expected.set(noise(8192, 2), 4096);
      expected.set(noise(4096, 3), 16384);
      assert.deepEqual(await client.read(9 * MIB, MIB), expected);
      assert.deepEqual(await client.read(0, MIB), new Uint8Array(MIB));
      await client.disconnect();
      const reader = await NbdClient.open(beside.socket);
      assert.deepEqual(await reader.client.read(9 * MIB, MIB), noise(MIB, 1));
      await reader.client.disconnect();
      const locks = await cluster.rbd("lock", "ls", "--format", "json", "rbd/base");
      assert.deepEqual(JSON.parse(locks), [], "the parent is not locked");
    }, { env: { ...env, BLKTAP_PARENT_ROOTS: "rbd" } });
    const map = await made("td-util", "map", "--parent-root", "rbd", `vhd:${folder}/top.vhd`);
    assert.match(map, /vhd:\S+child\.vhd\n.*rbd:rbd\/base@v1/s);
    const qcow2 = `qcow2:${folder}/child.qcow2`;
    await made("td-util", "snapshot", "rbd:rbd/base@v1,id=admin", qcow2);
    const same = ["diff", "--parent-root", "rbd", qcow2, `vhd:${other}`];
    await made("td-util", ...same);
    assert.ok(Buffer.from(await exported(cluster, "base@v1", folder)).equals(golden));
  },

  async "requests make no objects: a call boxes two numbers"(cluster) {
    await cluster.rbd("create", "--size", "32M", "rbd/heap");
    const program = new URL("../sim/device_requests.ts", import.meta.url).pathname;
    const args = ["run", "-A", program, "ask", cluster.image("heap"), "12000"];
    let each = Infinity;
    let most = "";
    // On a busy machine code is compiled late, and uncompiled code allocates.
    for (let attempt = 0; attempt < 3 && each > MOST_BYTES; attempt++) {
      const { requests, bytes } = JSON.parse(
        await runOk(Deno.execPath(), args, { timeoutMs: 240_000 }),
      );
      const parts = Object.entries<number>(bytes)
        .filter(([name]) => !name.includes("src/scheduler/"));
      each = parts.reduce((sum, [, count]) => sum + count, 0) / requests;
      most = JSON.stringify(parts.filter(([, count]) => count > requests));
    }
    assert.ok(each <= MOST_BYTES, `${each} bytes a request: ${most}`);
  },

  async "images that are not there, and users without a key, are refused"(cluster) {
    const cases = [
      [cluster.image("none"), /the image.*ENOENT/],
      [cluster.image("fio@none"), /the snapshot.*ENOENT/],
      [`rbd:none/fio,conf=${cluster.conf}`, /the pool none.*ENOENT/],
      [`rbd:rbd/space/fio,conf=${cluster.conf}`, /the image.*ENOENT/],
      [`rbd:rbd/fio,id=nobody,conf=${cluster.conf}`, /refuse client\.nobody/],
      ["rbd:rbd/fio,conf=/none", /configuration \/none cannot be read.*ENOENT/],
    ] as const;
    for (const [image, why] of cases) {
      const { code, stderr } = await run(binaryPath("td-util"), ["info", image]);
      assert.notEqual(code, 0);
      assert.match(stderr, why);
    }
  },

  async "the configuration says how long a connection may take"(_cluster, _tapdisks, folder) {
    const conf = `${folder}/gone.conf`;
    Deno.writeTextFileSync(
      conf,
      "[global]\nmon_host = 127.0.0.1:1\nauth_client_required = none\nclient_mount_timeout = 1\n",
    );
    const startMs = performance.now();
    const { stderr } = await run(binaryPath("td-util"), ["info", `rbd:rbd/fio,conf=${conf}`]);
    assert.match(stderr, /monitors do not answer.*ETIMEDOUT/);
    assert.ok(performance.now() - startMs < 25_000, "it gave up after a second");
  },

  async "what a killed copy left is removed when it is old and nobody has it open"(
    cluster,
    tapdisks,
    folder,
  ) {
    const images = async (): Promise<string[]> =>
      (await cluster.rbd("ls")).trim().split("\n").sort();
    const before = await images();
    const left = (digit: string): string => `again.${digit.repeat(16)}.part`;
    const others = [
      `${left("0")}x`,
      `other${left("0")}`,
      "again.part",
      `again.${"g".repeat(16)}.part`,
    ];
    for (const name of [left("1"), left("2"), ...others]) {
      await cluster.rbd("create", "--size", "8M", `rbd/${name}`);
    }
    const disk = await tapdisks.serve(cluster.image(left("2")));
    const raw = `${folder}/again.raw`;
    Deno.writeFileSync(raw, noise(MIB, 3));
    const copy = ["convert", "--quiet", `raw:${raw}`, cluster.image("again")];
    await runOk(binaryPath("td-util"), copy);
    const young = ["again", left("1"), left("2"), ...others];
    assert.deepEqual(
      await images(),
      [...before, ...young].sort(),
      "they may belong to another copy",
    );
    await cluster.rbd("rm", "--no-progress", "rbd/again");
    const script = new URL("../support/write_on_ceph.ts", import.meta.url).pathname;
    await runOk(Deno.execPath(), ["run", "-A", "--no-check", script, cluster.image("again"), "0"]);
    assert.deepEqual(await images(), [...before, "again", left("2"), ...others].sort());
    await tapdisks.stop(disk);
    for (const name of ["again", left("2"), ...others]) {
      await cluster.rbd("rm", "--no-progress", `rbd/${name}`);
    }
  },

  async "images of a cluster that works do not wait for one that is away"(
    cluster,
    tapdisks,
    folder,
  ) {
    const conf = `${folder}/away.conf`;
    Deno.writeTextFileSync(
      conf,
      "[global]\nmon_host = 127.0.0.1:1\nauth_client_required = none\nclient_mount_timeout = 60\n",
    );
    await cluster.rbd("create", "--size", "8M", "rbd/present");
    const pid = await tapdisks.spawn();
    let ended = 0;
    const away = Array.from(
      { length: 20 },
      () => tapdisks.serve(`rbd:rbd/x,conf=${conf}`, { pid }).catch(() => {}).then(() => ended++),
    );
    const connecting = (): number =>
      [...Deno.readDirSync(`/proc/${pid}/task`)].filter(({ name }) => {
        try {
          const comm = Deno.readTextFileSync(`/proc/${pid}/task/${name}/comm`);
          return comm.trim() === "msgr-worker-0";
        } catch {
          return false;
        }
      }).length;
    await waitUntil(() => connecting() >= 8, "clients of the cluster that is away connect");
    const disk = await tapdisks.serve(cluster.image("present"), { pid });
    const { client } = await NbdClient.open(disk.socket);
    assert.deepEqual(await client.read(0, 512), new Uint8Array(512));
    await client.disconnect();
    assert.equal(ended, 0);
    await tapdisks.kill(pid);
    await Promise.all(away);
  },

  async "a disk that is closed leaves no descriptor and no lock"(cluster, tapdisks) {
    await cluster.rbd("create", "--size", "8M", "rbd/leaves");
    const pid = await tapdisks.spawn();
    const keeper = await tapdisks.serve("ram:4", { pid });
    const once = async (): Promise<number> => {
      await tapdisks.stop(await tapdisks.serve(cluster.image("leaves"), { pid }));
      return await settledDescriptors(pid);
    };
    const before = await once();
    for (let i = 0; i < 2; i++) await once();
    assert.ok(openDescriptors(pid) <= before, `${openDescriptors(pid)} after ${before}`);
    const locks = await cluster.rbd("lock", "ls", "--format", "json", "rbd/leaves");
    assert.deepEqual(JSON.parse(locks), []);
    await tapdisks.stop(keeper);
  },
};

Deno.test({
  name: `disks on a Ceph cluster${suffix}`,
  ignore,
  async fn(test) {
    const cluster = await CephCluster.start();
    try {
      for (const [name, body] of Object.entries(TESTS)) {
        await test.step(
          name,
          () => withTapdisks((tapdisks, folder) => body(cluster, tapdisks, folder)),
        );
      }
    } finally {
      await cluster.stop();
    }
  },
});
