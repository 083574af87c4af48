/**
 * What a disk does besides requests, with QCOW2 images that the built tapdisk serves: pauses with
 * another size, snapshots in chains of several types, logs of changed blocks, secondary images,
 * statistics, holes. qemu-img judges the images.
 */
import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { Cmd, NbdClient, noise } from "../support/nbd_client.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { assertQemuClean, qemuCreate } from "../support/qcow2.ts";
import { type Disk, needsServed, type Tapdisks, withTapdisks } from "../support/served.ts";
import { binaryPath, runOk } from "../support/tools.ts";

const MIB = 1 << 20;
const SIZE_MIB = 16;
const { ignore, suffix } = needsServed("qemu-img", "nbdinfo", "dist/td-util", "dist/cbt-util");

function test(name: string, body: (tapdisks: Tapdisks, folder: string) => Promise<void>): void {
  Deno.test({ name: `${name}${suffix}`, ignore, fn: () => withTapdisks(body) });
}

function addressOf({ pid, minor }: Disk): string[] {
  return ["-p", `${pid}`, "-m", `${minor}`];
}

/** Calls `body` with a client of a disk. */
async function withClient<T>(
  { socket }: Disk,
  body: (client: NbdClient) => Promise<T>,
): Promise<T> {
  const { client } = await NbdClient.open(socket);
  const result = await body(client);
  await client.disconnect();
  return result;
}

/** A disk's content, as it is to be. */
class Content {
  readonly bytes: Uint8Array<ArrayBuffer>;
  #seed = 1;

  constructor(sizeBytes = SIZE_MIB * MIB) {
    this.bytes = new Uint8Array(sizeBytes);
  }

  async write(disk: Disk, at: number, lengthBytes: number): Promise<void> {
    const data = noise(lengthBytes, this.#seed++);
    this.bytes.set(data, at);
    await withClient(disk, (client) => client.write(at, data));
  }

  async clear(disk: Disk, command: number, offset: number, length: number): Promise<void> {
    this.bytes.fill(0, offset, offset + length);
    await withClient(disk, async (client) => void await client.do({ command, offset, length }));
  }

  async assertServed(disk: Disk): Promise<void> {
    await withClient(disk, async (client) => {
      for (let at = 0; at < this.bytes.length; at += MIB) {
        const length = Math.min(MIB, this.bytes.length - at);
        assertBytes(await client.read(at, length), this.bytes.subarray(at, at + length));
      }
    });
  }

  /** Asserts that QEMU reads the same. */
  async assertQemu(path: string): Promise<void> {
    const raw = `${path}.expected`;
    Deno.writeFileSync(raw, this.bytes);
    await runOk("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", path, raw]);
    Deno.removeSync(raw);
  }
}

async function served(
  tapdisks: Tapdisks,
  path: string,
  { create = [] as string[], options = [] as string[] } = {},
): Promise<Disk> {
  await qemuCreate(path, SIZE_MIB * MIB, create);
  return await tapdisks.serve(`qcow2:${path}`, { options });
}

for (const create of [[], ["cluster_size=512"], ["extended_l2=on", "cluster_size=16k"]]) {
  test(`a paused QCOW2 gets another size and goes on (${create})`, async (tapdisks, folder) => {
    const path = `${folder}/a.qcow2`;
    const disk = await served(tapdisks, path, { create });
    const small = new Content();
    await small.write(disk, 15 * MIB - 512, MIB + 512);
    await tapdisks.tapCtlOk("pause", ...addressOf(disk));
    // 300 MiB need a longer L1 table with clusters of 512 bytes.
    const size = 300 * MIB;
    await runOk(binaryPath("td-util"), ["resize", `qcow2:${path}`, `${size}`]);
    await tapdisks.tapCtlOk("unpause", ...addressOf(disk));
    const content = new Content(size);
    content.bytes.set(small.bytes);
    await content.write(disk, 16 * MIB - 1024, 4096);
    await content.write(disk, size - 300_032, 300_032);
    await content.assertServed(disk);
    await tapdisks.stop(disk);
    await assertQemuClean(path);
    await content.assertQemu(path);
  });
}

test("snapshots of a QCOW2 on a QCOW2 on a VHD on a raw image", async (tapdisks, folder) => {
  Deno.writeFileSync(`${folder}/raw`, new Uint8Array(SIZE_MIB * MIB));
  const disk = await tapdisks.serve(`aio:${folder}/raw`);
  const content = new Content();
  const address = addressOf(disk);
  const snapshot = async (name: string, ...options: string[]): Promise<void> => {
    await tapdisks.tapCtlOk("snapshot", ...address, "-n", `${folder}/${name}`, ...options);
    await content.write(disk, Math.floor(Math.random() * 15 * 2048) * 512, 200_192);
    await content.clear(
      disk,
      Cmd.WriteZeroes,
      Math.floor(Math.random() * 15 * 2048) * 512,
      150_016,
    );
    // A discard of a VHD may do nothing.
    if (!name.endsWith("qcow2")) return;
    await content.clear(disk, Cmd.Trim, Math.floor(Math.random() * 15) * MIB, MIB);
  };
  await content.write(disk, 0, 4 * MIB);
  await snapshot("1.vhd");
  await snapshot("2.vhd");
  await snapshot("3.qcow2", "--type", "qcow2");
  // A QCOW2 is the default on a QCOW2.
  await snapshot("4.qcow2");
  await snapshot("5.qcow2", "--rename");
  await snapshot("6.qcow2", "--type", "qcow2");
  const refused = await tapdisks.tapCtl(
    "snapshot",
    ...address,
    "-n",
    `${folder}/7.vhd`,
    "--type",
    "vhd",
  );
  assert.equal(refused.code, Errno.EOPNOTSUPP);
  assert.match(refused.stderr, /a VHD cannot be on a QCOW2/);
  await content.assertServed(disk);
  const stats = JSON.parse(await tapdisks.tapCtlOk("stats", ...address));
  const names = stats.images.map(({ name }: { name: string }) => name.replace(/^.*\//, ""));
  // With --rename the image that was served became 5, and the new one has its name.
  assert.deepEqual(names, ["6.qcow2", "4.qcow2", "5.qcow2", "3.qcow2", "2.vhd", "1.vhd", "raw"]);
  await tapdisks.stop(disk);
  const again = await tapdisks.serve(`qcow2:${folder}/6.qcow2`);
  await content.assertServed(again);
  await tapdisks.stop(again);
  for (const name of ["3", "4", "5", "6"]) await assertQemuClean(`${folder}/${name}.qcow2`);
  // QEMU does not read the parent of a VHD.
  Deno.writeFileSync(`${folder}/expected`, content.bytes);
  const images = [`qcow2:${folder}/6.qcow2`, `aio:${folder}/expected`];
  await runOk(binaryPath("td-util"), ["diff", ...images]);
});

test("a QCOW2 has a log of changed blocks over pauses and a snapshot", async (tapdisks, folder) => {
  const log = async (name: string): Promise<string> => {
    const path = `${folder}/${name}.cbtlog`;
    await runOk(binaryPath("cbt-util"), ["create", "-n", path, "-s", `${SIZE_MIB * MIB}`]);
    return path;
  };
  const extents = (path: string): Promise<string> =>
    runOk(binaryPath("cbt-util"), ["extents", "-n", path]);
  const [first, second] = [await log("1"), await log("2")];
  const options = ["-C", first];
  const disk = await served(tapdisks, `${folder}/a.qcow2`, { options });
  const content = new Content();
  await content.write(disk, 65_536, 4096);
  await content.clear(disk, Cmd.WriteZeroes, MIB, 4096);
  await content.clear(disk, Cmd.Trim, 2 * MIB, 65_536);
  const address = addressOf(disk);
  await tapdisks.tapCtlOk("pause", ...address);
  assert.equal(await extents(first), `65536 65536\n${MIB} 65536\n${2 * MIB} 65536\n`);
  const child = `${folder}/b.qcow2`;
  await runOk(binaryPath("td-util"), ["snapshot", `qcow2:${folder}/a.qcow2`, `qcow2:${child}`]);
  await tapdisks.tapCtlOk("unpause", ...address, "-a", `qcow2:${child}`, "-c", second);
  await content.write(disk, 3 * MIB, 512);
  assert.equal(await extents(second), `${3 * MIB} 65536\n`);
  await content.assertServed(disk);
  await tapdisks.stop(disk);
  assert.equal(await extents(first), `65536 65536\n${MIB} 65536\n${2 * MIB} 65536\n`);
  await content.assertQemu(child);
});

test("a QCOW2 is mirrored to a QCOW2, and to one of another tapdisk", async (tapdisks, folder) => {
  const [own, other] = [`${folder}/own.qcow2`, `${folder}/other.qcow2`];
  await qemuCreate(own, SIZE_MIB * MIB, ["cluster_size=4k"]);
  const disk = await served(tapdisks, `${folder}/a.qcow2`, { options: ["-2", `qcow2:${own}`] });
  const content = new Content();
  const change = async (): Promise<void> => {
    await content.write(disk, 1024, 3 * MIB);
    await content.clear(disk, Cmd.WriteZeroes, 2 * MIB - 512, 70_144);
    // A discard frees whole clusters only, of each image.
    await content.clear(disk, Cmd.Trim, 65_536, 524_288);
    await content.write(disk, 12 * MIB, 65_536);
  };
  const failed = async (): Promise<number> =>
    JSON.parse(await tapdisks.tapCtlOk("stats", ...addressOf(disk))).nbd_mirror_failed;
  await change();
  assert.equal(await failed(), 0);
  await tapdisks.tapCtlOk("pause", ...addressOf(disk));
  await assertQemuClean(own);
  await content.assertQemu(own);
  await runOk("qemu-img", ["convert", "-O", "qcow2", own, other]);
  const target = await tapdisks.serve(`qcow2:${other}`);
  const mirror = ["-2", `nbd:unix:${target.socket}`];
  await tapdisks.tapCtlOk("unpause", ...addressOf(disk), ...mirror);
  await change();
  assert.equal(await failed(), 0);
  await content.assertServed(target);
  await content.assertServed(disk);
  await tapdisks.stop(disk);
  await tapdisks.stop(target);
  for (const path of [`${folder}/a.qcow2`, other]) {
    await assertQemuClean(path);
    await content.assertQemu(path);
  }
});

test(
  "discards and zeros free the room of a QCOW2, and NBD clients see holes",
  async (tapdisks, folder) => {
    const path = `${folder}/a.qcow2`;
    const disk = await served(tapdisks, path);
    const content = new Content();
    await content.write(disk, 0, 12 * MIB);
    const usedKib = async (): Promise<number> => {
      await withClient(disk, (client) => client.flush());
      return Deno.statSync(path).blocks ?? 0;
    };
    const full = await usedKib();
    assert.ok(full >= 12 * 2048, `${full} blocks for 12 MiB`);
    await content.clear(disk, Cmd.Trim, 4 * MIB, 2 * MIB);
    await content.clear(disk, Cmd.WriteZeroes, 8 * MIB, MIB);
    // A cluster whose entry changed is given back with the next change.
    await content.write(disk, 0, 512);
    await content.write(disk, 13 * MIB, 512);
    const map = JSON.parse(await runOk("nbdinfo", ["--json", "--map", disk.uri]));
    const extents = map.map((each: { offset: number; length: number; type: number }) => [
      each.offset / 65_536,
      each.length / 65_536,
      each.type,
    ]);
    const [hole, data] = [3, 0];
    const wanted = [
      [0, 64, data],
      [64, 32, hole],
      [96, 32, data],
      [128, 16, hole],
      [144, 48, data],
      [192, 16, hole],
      [208, 1, data],
      [209, 47, hole],
    ];
    assert.deepEqual(extents, wanted);
    await content.assertServed(disk);
    await tapdisks.stop(disk);
    await assertQemuClean(path);
    await content.assertQemu(path);
    const left = Deno.statSync(path).blocks ?? 0;
    assert.ok(left <= full - 3 * 2048 + 1024, `${left} of ${full} blocks`);
  },
);

test("/etc/blktap/devices names a QCOW2", async (tapdisks, folder) => {
  await qemuCreate(`${folder}/a.qcow2`, SIZE_MIB * MIB);
  const list = `${folder}/devices`;
  Deno.writeTextFileSync(list, `data qcow2:${folder}/a.qcow2 device=none\n`);
  assert.match(await tapdisks.tapCtlOk("restore", "--file", list), /^data: \S+\.0$/);
  assert.match(await tapdisks.tapCtlOk("list"), /args=qcow2:\/\S+\/a\.qcow2$/);
  assert.equal(await tapdisks.tapCtlOk("restore", "--stop", "--file", list), "data: stopped");
});
