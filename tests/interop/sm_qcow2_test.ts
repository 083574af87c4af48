/**
 * The life of a QCOW2 disk as XCP-ng's storage manager leads it: images are made, inspected, merged and
 * given another parent by qemu-img, a mark in the header is written by the storage manager itself, also
 * while a tapdisk serves the image, and tap-ctl pauses and resumes.
 */
import assert from "node:assert/strict";
import { NbdClient, noise } from "../support/nbd_client.ts";
import { assertQemuClean } from "../support/qcow2.ts";
import { type Disk, needsServed, type Tapdisks, withTapdisks } from "../support/served.ts";
import { binaryPath, run, runOk } from "../support/tools.ts";

const MIB = 1 << 20;
const SIZE = 64 * MIB;
const HIDDEN_EXTENSION = 0x76617465;
const { ignore, suffix } = needsServed("qemu-img");

/**
 * Finds the extension of the storage manager, or puts it behind the others and moves the name of the
 * backing file; returns the place of its data.
 */
function hiddenAt(path: string): number {
  using file = Deno.openSync(path, { read: true, write: true });
  const header = new Uint8Array(4096);
  file.readSync(header);
  const view = new DataView(header.buffer);
  let at = view.getUint32(100);
  while (view.getUint32(at) !== 0 && view.getUint32(at) !== HIDDEN_EXTENSION) {
    at += 8 + ((view.getUint32(at + 4) + 7) & ~7);
  }
  if (view.getUint32(at) === 0) {
    const nameAt = Number(view.getBigUint64(8));
    if (nameAt !== 0) {
      header.copyWithin(nameAt + 16, nameAt, nameAt + view.getUint32(16));
      view.setBigUint64(8, BigInt(nameAt + 16));
    }
    view.setUint32(at, HIDDEN_EXTENSION);
    view.setUint32(at + 4, 8);
    view.setBigUint64(at + 8, 0n);
    view.setUint32(at + 16, 0);
    view.setUint32(at + 20, 0);
    file.seekSync(0, Deno.SeekMode.Start);
    file.writeSync(header);
  }
  return at + 8;
}

function setHidden(path: string, hidden: boolean): void {
  const at = hiddenAt(path);
  using file = Deno.openSync(path, { read: true, write: true });
  file.seekSync(at, Deno.SeekMode.Start);
  file.writeSync(Uint8Array.of(hidden ? 1 : 0));
}

function isHidden(path: string): boolean {
  return Deno.readFileSync(path)[hiddenAt(path)] === 1;
}

/** A served disk, and what it must read. */
class Guest {
  readonly content = new Uint8Array(SIZE);
  readonly #tapdisks: Tapdisks;
  readonly #disk: Disk;

  constructor(tapdisks: Tapdisks, disk: Disk) {
    this.#tapdisks = tapdisks;
    this.#disk = disk;
  }

  get #address(): string[] {
    return ["-p", `${this.#disk.pid}`, "-m", `${this.#disk.minor}`];
  }

  async write(offset: number, length: number, seed: number): Promise<void> {
    const { client } = await NbdClient.open(this.#disk.socket);
    const data = noise(length, seed);
    this.content.set(data, offset);
    await client.write(offset, data);
    await client.disconnect();
  }

  async check(): Promise<void> {
    const { client } = await NbdClient.open(this.#disk.socket);
    for (let at = 0; at < SIZE; at += MIB) {
      assert.deepEqual(await client.read(at, MIB), this.content.subarray(at, at + MIB), `at ${at}`);
    }
    await client.disconnect();
  }

  async paused(image: string, work: () => Promise<void>): Promise<void> {
    await this.#tapdisks.tapCtlOk("pause", ...this.#address);
    await work();
    await this.#tapdisks.tapCtlOk("unpause", ...this.#address, "-a", `qcow2:${image}`);
  }
}

function snapshot(path: string, parent: string, type: string): Promise<string> {
  const options = ["-b", parent, "-F", type, "-o", "cluster_size=65536"];
  return runOk("qemu-img", ["create", "-f", "qcow2", ...options, path]);
}

Deno.test({
  name: `QCOW2: a disk's life by XCP-ng's storage manager${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const [base, middle, leaf] = ["base", "middle", "leaf"].map((name) =>
        `${folder}/${name}.qcow2`
      );
      await runOk("qemu-img", ["create", "-f", "qcow2", base, `${SIZE}`]);
      const disk = await tapdisks.serve(`qcow2:${base}`);
      const guest = new Guest(tapdisks, disk);
      await guest.write(0, 3 * MIB + 512, 1);
      // A scan finds no mark, and puts one in the header of the image that is being written.
      assert.equal(isHidden(base), false);
      await guest.write(40 * MIB, MIB, 2);

      await guest.paused(middle, async () => {
        await snapshot(middle, base, "qcow2");
        setHidden(middle, false);
        setHidden(base, true);
      });
      await guest.write(MIB + 1024, 200_192, 3);
      await guest.paused(leaf, async () => {
        await snapshot(leaf, middle, "qcow2");
        setHidden(middle, true);
      });
      await guest.write(40 * MIB + 512, 70_144, 4);
      // A scan looks at all images of the chain, and makes room for the mark in the served one.
      assert.deepEqual([base, middle, leaf].map(isHidden), [true, true, false]);
      await guest.write(50 * MIB, 512, 5);
      await guest.check();

      // The middle is merged into the base, and the leaf is put on the base.
      await guest.paused(leaf, async () => {
        await runOk("qemu-img", ["commit", "-q", "-f", "qcow2", "-d", middle]);
        const rebase = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, leaf];
        await runOk("qemu-img", rebase);
      });
      await guest.check();
      await guest.write(10 * MIB, 300_032, 6);
      await tapdisks.stop(disk);
      assert.deepEqual([base, leaf].map(isHidden), [true, false]);
      for (const path of [base, leaf]) await assertQemuClean(path);

      // The allocated part of a disk that grew, in a raw snapshot's chain.
      await runOk("qemu-img", ["resize", "-q", leaf, `${SIZE + MIB}`]);
      const grown = await tapdisks.serve(`qcow2:${leaf}`);
      await new Guest(tapdisks, grown).write(SIZE - MIB, MIB, 7);
      const answer = await run(binaryPath("tapdisk-diff"), [
        ...["-n", `qcow2:${leaf}`],
        ...["-m", `qcow2:${base}`],
      ]);
      assert.notEqual(answer.code, 0);
      await tapdisks.stop(grown);
      await assertQemuClean(leaf);
    }),
});

Deno.test({
  name: `QCOW2: a snapshot of a raw disk by XCP-ng's storage manager${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const [raw, leaf] = [`${folder}/disk.raw`, `${folder}/leaf.qcow2`];
      Deno.writeFileSync(raw, new Uint8Array(0));
      Deno.truncateSync(raw, SIZE);
      const disk = await tapdisks.serve(`aio:${raw}`);
      const guest = new Guest(tapdisks, disk);
      await guest.write(MIB, 70_144, 1);
      await guest.paused(leaf, async () => {
        await snapshot(leaf, raw, "raw");
        setHidden(leaf, false);
      });
      await guest.write(MIB + 4096, 512, 2);
      await guest.check();
      await tapdisks.stop(disk);
      await assertQemuClean(leaf);
      const merged = `${folder}/merged.raw`;
      await runOk("qemu-img", ["convert", "-O", "raw", leaf, merged]);
      assert.deepEqual(Deno.readFileSync(merged), guest.content);
    }),
});
