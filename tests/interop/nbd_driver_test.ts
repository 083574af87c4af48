/**
 * Exports of other servers as images: tapdisk is a client of nbdkit, qemu-nbd and another tapdisk.
 *
 * @module
 */
import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  settledDescriptors,
  type Tapdisks,
  vhdUtilOk,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { findTool, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 64;
const { ignore, suffix } = needsServed("fio", "nbdkit", "qemu-nbd", "qemu-io", "nbdinfo");

const VERIFIED = [
  "rw=randwrite",
  "bs=4k",
  "iodepth=32",
  `size=${DISK_MIB}M`,
  "io_size=24M",
  "verify=crc32c",
  "verify_backlog=2000",
  "verify_fatal=1",
  "randrepeat=0",
];

/** A foreign NBD server. */
interface Peer {
  kill(signal: Deno.Signal): Promise<void>;
}

async function startPeer(
  command: string,
  args: readonly string[],
  isReady: () => boolean,
): Promise<Peer> {
  const child = new Deno.Command(findTool(command) ?? command, {
    args: [...args],
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  await waitUntil(isReady, `${command} listens`);
  return {
    async kill(signal: Deno.Signal): Promise<void> {
      child.kill(signal);
      await child.status;
    },
  };
}

function isThere(path: string): boolean {
  try {
    return Deno.lstatSync(path).isSocket === true;
  } catch {
    return false;
  }
}

async function onSocket(command: string, args: readonly string[], path: string): Promise<Peer> {
  return await startPeer(command, args, () => isThere(path));
}

/** A test with tapdisks and servers that are ended afterwards. */
function driverTest(
  name: string,
  body: (world: { tapdisks: Tapdisks; folder: string; peers: Peer[] }) => Promise<void>,
): void {
  Deno.test({
    name: `NBD driver: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const peers: Peer[] = [];
        try {
          await body({ tapdisks, folder, peers });
        } finally {
          for (const peer of peers) await peer.kill("SIGKILL").catch(() => {});
        }
      }),
  });
}

/** Creates a raw file of zeros. */
function rawFile(path: string): string {
  Deno.writeFileSync(path, new Uint8Array(0));
  Deno.truncateSync(path, DISK_MIB * MIB);
  return path;
}

async function qemuIo(disk: Disk, ...commands: string[]): Promise<string> {
  return await runOk("qemu-io", [
    ...["-f", "raw", "-t", "none"],
    ...commands.flatMap((line) => ["-c", line]),
    disk.uri,
  ]);
}

/** `hole` or `data` for each extent, as a client of the device sees it. */
async function mapOf(disk: Disk): Promise<string[]> {
  const map = await runOk("nbdinfo", ["--map", disk.uri]);
  return map.trim().split("\n").map((line) => line.trim().split(/\s+/).join(" "));
}

async function retriesOf(tapdisks: Tapdisks, { pid, minor }: Disk): Promise<number> {
  const text = await tapdisks.tapCtlOk("stats", "-p", `${pid}`, "-m", `${minor}`);
  const statistics: { retries: number } = JSON.parse(text);
  return statistics.retries;
}

for (const [how, options] of [["", []], [" that knows no structured replies", ["--no-sr"]]]) {
  driverTest(
    `fio verifies through tapdisk to nbdkit${how}`,
    async ({ tapdisks, folder, peers }) => {
      const socket = `${folder}/n.sock`;
      const args = ["--foreground", "--unix", socket, ...options, "memory", `${DISK_MIB}M`];
      peers.push(await onSocket("nbdkit", args, socket));
      const disk = await tapdisks.serve(`nbd:unix:${socket}`);
      const [job] = await fio(disk.uri, VERIFIED);
      assert.equal(job.error, 0);
      assert.equal(job.write.io_bytes, 24 * MIB);
      const sizes = "bssplit=512/10:4k/40:12k/20:64k/20:300k/8:2m/2";
      const mixed = VERIFIED.filter((option) => !option.startsWith("bs="));
      const [second] = await fio(disk.uri, [...mixed, sizes, "verify_interval=512"]);
      assert.equal(second.error, 0);
      assert.equal(await retriesOf(tapdisks, disk), 0);
    },
  );
}

driverTest(
  "zeros, holes, trims and flushes reach qemu-nbd",
  async ({ tapdisks, folder, peers }) => {
    const socket = `${folder}/n.sock`;
    const path = rawFile(`${folder}/a.raw`);
    const args = ["--persistent", "--shared=8", "-f", "raw", "--discard=unmap"];
    peers.push(await onSocket("qemu-nbd", [...args, "-x", "d:1", "-k", socket, path], socket));
    const disk = await tapdisks.serve(`nbd+unix:///d:1?socket=${socket}`);
    assert.deepEqual(await mapOf(disk), [`0 ${DISK_MIB * MIB} 3 hole,zero`]);
    await qemuIo(
      disk,
      "write -q -P 9 8M 16M",
      "write -q -z -u 10M 2M",
      "discard -q 20M 1M",
      "flush",
    );
    assert.deepEqual(await mapOf(disk), [
      `0 ${8 * MIB} 3 hole,zero`,
      `${8 * MIB} ${2 * MIB} 0 data`,
      `${10 * MIB} ${2 * MIB} 3 hole,zero`,
      `${12 * MIB} ${8 * MIB} 0 data`,
      `${20 * MIB} ${1 * MIB} 3 hole,zero`,
      `${21 * MIB} ${3 * MIB} 0 data`,
      `${24 * MIB} ${40 * MIB} 3 hole,zero`,
    ]);
    await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", disk.uri, path]);
    await tapdisks.stop(disk);
  },
);

driverTest("by TCP and export name, for reading only", async ({ tapdisks, folder, peers }) => {
  const path = rawFile(`${folder}/a.raw`);
  const port = 20_000 + Math.floor(Math.random() * 20_000);
  const args = ["--persistent", "--shared=8", "-r", "-f", "raw", "-x", "disk", "-b", "127.0.0.1"];
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  const listens = () => Deno.readTextFileSync("/proc/net/tcp").includes(`0100007F:${hex} 00000000`);
  peers.push(await startPeer("qemu-nbd", [...args, "-p", `${port}`, path], listens));
  await assert.rejects(tapdisks.serve(`nbd:127.0.0.1:${port}:disk`), /forbids it.*EROFS/);
  await assert.rejects(tapdisks.serve(`nbd:127.0.0.1:${port}:gone`), /no such export.*ENOENT/);
  for (const name of [`nbd:localhost:${port}:disk`, `nbd://127.0.0.1:${port}/disk`]) {
    const disk = await tapdisks.serve(name, { options: ["-R"] });
    const read = ["-r", "-f", "raw", "-c", "read -P 0 1M 2M", disk.uri];
    assert.match(await runOk("qemu-io", read), /read 2097152/);
    await tapdisks.stop(disk);
  }
});

driverTest("a server that is not there is an error at once", async ({ tapdisks, folder }) => {
  await assert.rejects(tapdisks.serve(`nbd:unix:${folder}/n.sock`), /Cannot connect.*ENOENT/);
  await assert.rejects(tapdisks.serve("nbd:127.0.0.1:1"), /Cannot connect.*ECONNREFUSED/);
  await assert.rejects(tapdisks.serve("nbd:somewhere"), /no descriptor of that name.*ENOENT/);
  const pid = await tapdisks.spawn();
  const disk = await tapdisks.serve(`aio:${rawFile(`${folder}/a.raw`)}`, { pid });
  await tapdisks.stop(disk);
});

driverTest(
  "nbdkit is killed and comes back under load: fio sees time go by",
  async ({ tapdisks, folder, peers }) => {
    const socket = `${folder}/n.sock`;
    const path = rawFile(`${folder}/a.raw`);
    const start = async (): Promise<Peer> => {
      const args = ["--foreground", "--unix", socket, "file", path];
      const peer = await onSocket("nbdkit", args, socket);
      peers.push(peer);
      return peer;
    };
    let peer = await start();
    const disk = await tapdisks.serve(`nbd:unix:${socket}`);
    const descriptors = await settledDescriptors(disk.pid);
    const load = fio(disk.uri, [
      ...VERIFIED.filter((o) => !/^(bs|io_size)=/.test(o)),
      "bs=8k",
      "io_size=64M",
      "rate=12m",
    ]);
    for (const awayMs of [0, 1500]) {
      await new Promise((resolve) => setTimeout(resolve, 1200));
      await peer.kill("SIGKILL");
      await new Promise((resolve) => setTimeout(resolve, awayMs));
      Deno.removeSync(socket);
      peer = await start();
    }
    const [job] = await load;
    assert.equal(job.error, 0);
    assert.equal(job.write.io_bytes, 64 * MIB);
    assert.ok(await retriesOf(tapdisks, disk) > 0, "requests were tried again");
    await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", disk.uri, path]);
    assert.equal(await settledDescriptors(disk.pid), descriptors);
  },
);

driverTest(
  "pause while the server is away, and unpause when it is back",
  async ({ tapdisks, folder, peers }) => {
    const socket = `${folder}/n.sock`;
    const path = rawFile(`${folder}/a.raw`);
    const args = ["--foreground", "--unix", socket, "file", path];
    const first = await onSocket("nbdkit", args, socket);
    peers.push(first);
    const disk = await tapdisks.serve(`nbd:unix:${socket}`);
    const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
    await first.kill("SIGKILL");
    Deno.removeSync(socket);
    const write = qemuIo(disk, "write -q -P 7 1M 1M", "flush");
    await new Promise((resolve) => setTimeout(resolve, 500));
    await tapdisks.tapCtlOk("pause", ...address);
    assert.notEqual((await tapdisks.tapCtl("unpause", ...address)).code, 0);
    peers.push(await onSocket("nbdkit", args, socket));
    await tapdisks.tapCtlOk("unpause", ...address);
    await write;
    assert.match(await runOk("qemu-io", ["-f", "raw", "-c", "read -P 7 1M 1M", path]), /1048576/);
  },
);

driverTest("a VHD that another tapdisk serves", async ({ tapdisks, folder }) => {
  const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
  const remote = await tapdisks.serve(`vhd:${path}`);
  const disk = await tapdisks.serve(`nbd:unix:${remote.socket}`);
  const [job] = await fio(disk.uri, VERIFIED);
  assert.equal(job.error, 0);
  const before = await mapOf(remote);
  assert.deepEqual(await mapOf(disk), before);
  await tapdisks.stop(disk);
  await tapdisks.stop(remote);
  await vhdUtilOk("check", "-n", path);
});
