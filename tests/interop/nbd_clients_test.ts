import assert from "node:assert/strict";
import { noise } from "../support/nbd_client.ts";
import { createVhd, needsServed, snapshotVhd, vhdUtilOk, withTapdisks } from "../support/served.ts";
import { run, runOk } from "../support/tools.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 256;
const DISK_BYTES = DISK_MIB * MIB;

/** A sparse raw file: data at a few distant places. */
const PLACES: readonly (readonly [number, number])[] = [
  [0, 65536],
  [31 * MIB + 4096, 3 * MIB],
  [100 * MIB, 512 * 1024],
  [DISK_BYTES - 65536, 65536],
];
const DATA_BYTES = PLACES.reduce((sum, [, bytes]) => sum + bytes, 0);

function makeSparse(path: string): void {
  using file = Deno.openSync(path, { create: true, write: true });
  file.truncateSync(DISK_BYTES);
  for (const [offset, bytes] of PLACES) {
    file.seekSync(offset, Deno.SeekMode.Start);
    file.writeSync(noise(bytes, offset + 1));
  }
}

function allocatedBytes(path: string): number {
  return (Deno.statSync(path).blocks ?? 0) * 512;
}

/** Compares contents; qemu-img fails at a difference. */
async function assertSame(left: string, right: string): Promise<void> {
  await runOk("qemu-img", ["compare", "-f", "raw", "-F", "raw", left, right]);
}

async function qemuIo(uri: string, ...commands: string[]): Promise<string> {
  const text = await runOk("qemu-io", [
    "-f",
    "raw",
    ...commands.flatMap((command) => ["-c", command]),
    uri,
  ]);
  assert.doesNotMatch(text, /failed|error/i);
  return text;
}

interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

async function mapOf(uri: string): Promise<Extent[]> {
  return JSON.parse(await runOk("nbdinfo", ["--map", "--json", uri]));
}

function clientTest(
  name: string,
  tools: string[],
  fn: () => Promise<void>,
): void {
  const { ignore, suffix } = needsServed(...tools);
  Deno.test({ name: `NBD clients: ${name}${suffix}`, ignore, fn });
}

clientTest(
  "nbdinfo describes the export",
  ["nbdinfo"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const disk = await tapdisks.serve(`vhd:${path}`);
      const described = JSON.parse(await runOk("nbdinfo", ["--json", disk.uri]));
      assert.equal(described.protocol, "newstyle-fixed");
      assert.equal(described.structured, true);
      const [served] = described.exports;
      assert.equal(served["export-size"], DISK_BYTES);
      assert.deepEqual(served.contexts, ["base:allocation"]);
      assert.equal(served.block_minimum ?? served.block_size_minimum, 512);
      const can = ["can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"];
      for (const ability of can) assert.equal(served[ability], true, ability);
      assert.equal(served.is_read_only, false);
      assert.match(await runOk("nbdinfo", ["--list", disk.uri]), /export="":/);
      await tapdisks.stop(disk);
      const readOnly = await tapdisks.serve(`vhd:${path}`, { options: ["-R"] });
      assert.equal((await run("nbdinfo", ["--is", "readonly", readOnly.uri])).code, 0);
      assert.notEqual((await run("nbdinfo", ["--can", "write", readOnly.uri])).code, 0);
    }),
);

clientTest(
  "nbdinfo --map shows what a chain holds",
  ["nbdinfo", "qemu-io"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      const base = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const below = await tapdisks.serve(`vhd:${base}`);
      await qemuIo(below.uri, "write -P 1 0 64k", "write -P 2 8M 2M");
      await tapdisks.stop(below);
      const disk = await tapdisks.serve(`vhd:${await snapshotVhd(`${folder}/b.vhd`, base)}`);
      await qemuIo(disk.uri, "write -P 3 9M 4M", "write -P 4 200M 4k");
      const found = (await mapOf(disk.uri)).map((
        { offset, length, type },
      ) => [offset, length, type]);
      assert.deepEqual(found, [
        [0, 65536, 0],
        [65536, 8 * MIB - 65536, 3],
        [8 * MIB, 5 * MIB, 0],
        [13 * MIB, 187 * MIB, 3],
        [200 * MIB, 4096, 0],
        [200 * MIB + 4096, 56 * MIB - 4096, 3],
      ]);
      const totals = await runOk("nbdinfo", ["--map", "--totals", disk.uri]);
      assert.match(totals, new RegExp(`^\\s*${5 * MIB + 65536 + 4096}\\s.*\\bdata`, "m"));
    }),
);

clientTest(
  "nbdcopy moves only data, both ways",
  ["nbdcopy", "qemu-img"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      makeSparse(`${folder}/in.raw`);
      const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const disk = await tapdisks.serve(`vhd:${path}`);
      await runOk("nbdcopy", ["--flush", `${folder}/in.raw`, disk.uri]);
      // Five blocks of 2 MiB have data, and only their written sectors are allocated.
      assert.ok(allocatedBytes(path) < DATA_BYTES + MIB, `${allocatedBytes(path)} bytes of image`);
      await runOk("nbdcopy", [disk.uri, `${folder}/out.raw`]);
      await assertSame(`${folder}/in.raw`, `${folder}/out.raw`);
      assert.ok(allocatedBytes(`${folder}/out.raw`) < DATA_BYTES + MIB);
      // Sectors read: qemu-img reads only the data.
      const stats = await tapdisks.tapCtlOk("stats", "-p", `${disk.pid}`, "-m", `${disk.minor}`);
      const { secs: [readSectors] } = JSON.parse(stats);
      assert.ok(readSectors * 512 < 2 * DATA_BYTES, `${readSectors} sectors were read`);
      await tapdisks.stop(disk);
      await vhdUtilOk("check", "-n", path);
    }),
);

clientTest(
  "nbdcopy with several connections, from one of ours to another",
  ["nbdcopy", "qemu-img"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      makeSparse(`${folder}/in.raw`);
      const from = await tapdisks.serve(`aio:${folder}/in.raw`, { options: ["-R"] });
      const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const to = await tapdisks.serve(`vhd:${path}`);
      const options = ["--connections=4", "--threads=4", "--requests=32", "--request-size=1048576"];
      await runOk("nbdcopy", [...options, "--flush", from.uri, to.uri]);
      await assertSame(from.uri, to.uri);
      assert.ok(allocatedBytes(path) < DATA_BYTES + 2 * MIB, `${allocatedBytes(path)} bytes`);
      await tapdisks.stop(to);
      await vhdUtilOk("check", "-n", path);
    }),
);

clientTest(
  "qemu-img converts from and to, and moves only data",
  ["qemu-img"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      makeSparse(`${folder}/in.raw`);
      const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const disk = await tapdisks.serve(`vhd:${path}`);
      const raw = ["-f", "raw", "-O", "raw"];
      await runOk("qemu-img", ["convert", "-n", ...raw, `${folder}/in.raw`, disk.uri]);
      assert.ok(allocatedBytes(path) < DATA_BYTES + 2 * MIB, `${allocatedBytes(path)} bytes`);
      await runOk("qemu-img", ["convert", ...raw, disk.uri, `${folder}/out.raw`]);
      await assertSame(`${folder}/in.raw`, `${folder}/out.raw`);
      const qcow2 = `${folder}/out.qcow2`;
      await runOk("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", disk.uri, qcow2]);
      await runOk("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", disk.uri, qcow2]);
      const [data, holes] = await Promise.all([true, false].map(async (isData) => {
        const extents: { length: number; data: boolean }[] = JSON.parse(
          await runOk("qemu-img", ["map", "--output=json", "-f", "raw", disk.uri]),
        );
        return extents.filter((extent) => extent.data === isData)
          .reduce((sum, { length }) => sum + length, 0);
      }));
      assert.ok(data < DATA_BYTES + MIB, `${data} bytes are data`);
      assert.equal(data + holes, DISK_BYTES);
    }),
);

clientTest(
  "qemu-io writes, zeroes, discards, flushes and reads",
  ["qemu-io"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      Deno.writeFileSync(`${folder}/a.raw`, new Uint8Array(0));
      Deno.truncateSync(`${folder}/a.raw`, DISK_BYTES);
      const vhd = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const pid = await tapdisks.spawn();
      for (const image of [`vhd:${vhd}`, `aio:${folder}/a.raw`]) {
        const { uri } = await tapdisks.serve(image, { pid });
        await qemuIo(
          uri,
          "write -P 0x11 0 4M",
          "write -P 0x22 -f 2097152 512",
          "write -P 0x33 7M 1536",
          "writev -P 0x44 20M 4k 64k 512",
          "aio_write -P 0x55 32M 2M",
          "aio_write -P 0x66 34M 2M",
          "aio_flush",
          "write -z 1M 512k",
          "write -z -u 3M 64k",
          "write -z -f 240M 16M",
          "discard 20M 4k",
          "flush",
        );
        await qemuIo(
          uri,
          "read -P 0x11 0 1M",
          "read -P 0 1M 512k",
          "read -P 0x11 1536k 512k",
          "read -P 0x22 2M 512",
          "read -P 0x11 2097664 1047552",
          "read -P 0 3M 64k",
          "read -P 0x33 7M 1536",
          "read -P 0 7341568 1M",
          "read -P 0x44 20975616 64k",
          "read -P 0x55 32M 2M",
          "read -P 0x66 34M 2M",
          "read -P 0 240M 16M",
        );
      }
    }),
);

clientTest("qemu-nbd serves the same image with the same content afterwards", [
  "qemu-nbd",
  "qemu-img",
], () =>
  withTapdisks(async (tapdisks, folder) => {
    makeSparse(`${folder}/in.raw`);
    const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
    const disk = await tapdisks.serve(`vhd:${path}`);
    await runOk("nbdcopy", ["--flush", `${folder}/in.raw`, disk.uri]);
    await tapdisks.stop(disk);
    const socket = `${folder}/qemu.sock`;
    const options = `driver=vpc,force_size_calc=current_size,file.filename=${path}`;
    using _ = await qemuNbd(socket, options);
    await assertSame(`nbd+unix:///?socket=${socket}`, `${folder}/in.raw`);
  }));

clientTest(
  "what qemu-nbd writes into a VHD is served",
  ["qemu-nbd", "qemu-io", "qemu-img"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = `${folder}/q.vhd`;
      const create = ["create", "-f", "vpc", "-o", "force_size=on", path, `${DISK_MIB}M`];
      await runOk("qemu-img", create);
      const socket = `${folder}/qemu.sock`;
      const options = `driver=vpc,force_size_calc=current_size,file.filename=${path}`;
      {
        using _ = await qemuNbd(socket, options);
        const uri = `nbd+unix:///?socket=${socket}`;
        await qemuIo(uri, "write -P 7 1M 5M", "write -P 8 250M 6M", "flush");
      }
      const disk = await tapdisks.serve(`vhd:${path}`);
      await qemuIo(disk.uri, "read -P 0 0 1M", "read -P 7 1M 5M", "read -P 8 250M 6M");
      await qemuIo(disk.uri, "write -P 9 5M 4M", "flush");
      await tapdisks.stop(disk);
      const io = ["-c", "read -P 7 1M 4M", "-c", "read -P 9 5M 4M", "-c", "read -P 8 250M 6M"];
      const { code, stdout } = await run("qemu-io", ["-r", ...io, "--image-opts", options]);
      assert.equal(code, 0, stdout);
      assert.doesNotMatch(stdout, /failed/i);
    }),
);

clientTest(
  "an image served to be read gives its content and takes nothing",
  ["qemu-io", "nbdcopy"],
  () =>
    withTapdisks(async (tapdisks, folder) => {
      makeSparse(`${folder}/in.raw`);
      const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const writable = await tapdisks.serve(`vhd:${path}`);
      await runOk("nbdcopy", ["--flush", `${folder}/in.raw`, writable.uri]);
      await tapdisks.stop(writable);
      const before = Deno.statSync(path);
      // Readers do not exclude one another.
      const disks = [
        await tapdisks.serve(`vhd:${path}`, { options: ["-R"] }),
        await tapdisks.serve(`vhd:${path}`, { options: ["-R"] }),
      ];
      for (const disk of disks) {
        await assertSame(disk.uri, `${folder}/in.raw`);
        const write = await run("qemu-io", ["-f", "raw", "-c", "write 0 512", disk.uri]);
        assert.match(write.stdout + write.stderr, /read-only|permission denied/i);
        await tapdisks.stop(disk);
      }
      assert.deepEqual(Deno.statSync(path).mtime, before.mtime);
      assert.equal(Deno.statSync(path).size, before.size);
    }),
);

/** Starts qemu-nbd; the end of the result's scope stops it. */
async function qemuNbd(socket: string, options: string): Promise<Disposable> {
  const pidFile = `${socket}.pid`;
  await runOk("qemu-nbd", [
    "--fork",
    `--pid-file=${pidFile}`,
    "--persistent",
    `--socket=${socket}`,
    "--image-opts",
    options,
  ]);
  const pid = Number(Deno.readTextFileSync(pidFile));
  return {
    [Symbol.dispose](): void {
      Deno.kill(pid, "SIGTERM");
      // qemu-nbd closes the image before it removes its socket.
      while (exists(`/proc/${pid}/exe`)) {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
      }
    },
  };
}

function exists(path: string): boolean {
  try {
    Deno.readLinkSync(path);
    return true;
  } catch {
    return false;
  }
}
