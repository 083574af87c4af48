import assert from "node:assert/strict";
import { Errno } from "../../ffi/errno.ts";
import { fio } from "../support/fio.ts";
import { Cmd, CmdFlag, HungUp, NbdClient, noise } from "../support/nbd_client.ts";
import {
  createVhd,
  type Disk,
  needsServed,
  snapshotVhd,
  vhdUtilOk,
  waitUntil,
  withTapdisks,
} from "../support/served.ts";
import { binaryPath, run } from "../support/tools.ts";

const MIB = 1024 * 1024;
const DISK_MIB = 256;

const { ignore, suffix } = needsServed();

function durabilityTest(name: string, fn: () => Promise<void>): void {
  Deno.test({ name: `durability: ${name}${suffix}`, ignore, fn });
}

/** The expected contents of a sector: the last flushed write, or a later one. */
interface Promised {
  /** Number of the last write that was flushed. */
  flushed: number;
  /** Numbers of later writes, each of which may be present or not. */
  readonly later: Set<number>;
}

const CHUNK_BYTES = 8192;
const CHUNKS = DISK_MIB * MIB / CHUNK_BYTES;

/** Writes numbered chunks to random places and flushes, until the server closes the connection. */
class Writer {
  readonly promised = new Map<number, Promised>();
  flushes = 0;
  #count = 0;

  /** @param seed The seed of the places; several writers have no place in common. */
  constructor(readonly seed: number, readonly writers: number) {}

  /** Writes until the server closes the connection. */
  async run(socket: string): Promise<void> {
    const { client } = await NbdClient.open(socket);
    using _ = client;
    try {
      for (;;) await this.#round(client);
    } catch (error) {
      if (!(error instanceof HungUp || error instanceof Deno.errors.BrokenPipe)) throw error;
    }
  }

  async #round(client: NbdClient): Promise<void> {
    const written: [number, number][] = [];
    for (let i = 0; i < 24; i++) {
      const number = ++this.#count;
      const place = (number * 2654435761 + this.seed * 40503) % (CHUNKS / this.writers);
      const chunk = Math.floor(place) * this.writers + this.seed;
      const promise = this.promised.get(chunk) ?? { flushed: 0, later: new Set() };
      this.promised.set(chunk, promise);
      // The order of two writes in flight to one place is undefined.
      if (promise.later.size > 0) continue;
      promise.later.add(number);
      written.push([chunk, number]);
      const payload = this.content(chunk, number);
      const flags = i === 0 ? CmdFlag.Fua : 0;
      await client.request({ command: Cmd.Write, offset: chunk * CHUNK_BYTES, payload, flags });
    }
    for (const _ of written) assert.equal((await client.reply()).error, 0);
    await client.flush();
    this.flushes++;
    for (const [chunk, number] of written) {
      const promise = this.promised.get(chunk);
      if (promise === undefined) continue;
      promise.flushed = number;
      promise.later.clear();
    }
  }

  content(chunk: number, number: number): Uint8Array<ArrayBuffer> {
    return number === 0 ? new Uint8Array(CHUNK_BYTES) : noise(CHUNK_BYTES, chunk * 31 + number);
  }

  /** Reads and checks all chunks. */
  async verify(client: NbdClient): Promise<void> {
    for (const [chunk, { flushed, later }] of this.promised) {
      const found = await client.read(chunk * CHUNK_BYTES, CHUNK_BYTES);
      for (let at = 0; at < CHUNK_BYTES; at += 512) {
        const sector = found.subarray(at, at + 512);
        const isThere = [flushed, ...later].some((number) =>
          equal(sector, this.content(chunk, number).subarray(at, at + 512))
        );
        assert.ok(isThere, `chunk ${chunk}, byte ${at}: write ${flushed} was flushed and is lost`);
      }
    }
  }
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.every((byte, i) => byte === b[i]);
}

/** Runs `vhd-util check`. The backup footer may be in use. */
async function assertClean(path: string): Promise<void> {
  const { code, stdout, stderr } = await run(binaryPath("vhd-util"), ["check", "-i", "-n", path]);
  assert.equal(code, 0, stdout + stderr);
}

durabilityTest(
  "what was flushed is there after tapdisk was killed, again and again",
  () =>
    withTapdisks(async (tapdisks, folder) => {
      const path = await createVhd(`${folder}/a.vhd`, DISK_MIB);
      const writers = [0, 1].map((seed) => new Writer(seed, 2));
      for (let round = 1; round <= 4; round++) {
        const disk = await tapdisks.serve(`vhd:${path}`);
        const goals = writers.map(({ flushes }) => flushes + 5 * round);
        const working = writers.map((writer) => writer.run(disk.socket));
        const isDone = () => writers.every(({ flushes }, i) => flushes >= goals[i]);
        await waitUntil(isDone, "the writers have flushed");
        await tapdisks.kill(disk.pid);
        await Promise.all(working);
        await assertClean(path);
        const again = await tapdisks.serve(`vhd:${path}`);
        const { client } = await NbdClient.open(again.socket);
        for (const writer of writers) await writer.verify(client);
        // The contents that were read must not change afterwards.
        await client.disconnect();
        await tapdisks.stop(again);
        await vhdUtilOk("check", "-n", path);
      }
    }),
);

const fioNeeds = needsServed("fio");
Deno.test({
  name: `durability: an image survives kill -9 under fio, at any moment${fioNeeds.suffix}`,
  ignore: fioNeeds.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const base = await createVhd(`${folder}/base.vhd`, DISK_MIB);
      const path = await snapshotVhd(`${folder}/child.vhd`, base);
      for (const delayMs of [60, 150, 300, 450]) {
        const disk = await tapdisks.serve(`vhd:${path}`);
        const load = ["rw=randwrite", "bssplit=4k/60:64k/30:1m/10", "iodepth=32", "fsync=64"];
        const endless = ["time_based", "runtime=60", `size=${DISK_MIB}M`, "randrepeat=0"];
        const running = fio(disk.uri, [...load, ...endless])
          .then(() => "ended", () => "failed");
        await new Promise((resolve) => setTimeout(resolve, 400 + delayMs));
        await tapdisks.kill(disk.pid);
        assert.equal(await running, "failed", "fio was through before the kill");
        await assertClean(path);
        await vhdUtilOk("query", "-n", path, "-vsp");
      }
      const disk = await tapdisks.serve(`vhd:${path}`);
      await fio(disk.uri, ["rw=randwrite", "bs=4k", "io_size=4M", "size=64M", "verify=crc32c"]);
      await tapdisks.stop(disk);
      await vhdUtilOk("check", "-n", path, "-p");
    }),
});

durabilityTest(
  "one image has one writer: the second is told so",
  () =>
    withTapdisks(async (tapdisks, folder) => {
      Deno.writeFileSync(`${folder}/a.raw`, new Uint8Array(MIB));
      const images = [`vhd:${await createVhd(`${folder}/a.vhd`, 16)}`, `aio:${folder}/a.raw`];
      for (const image of images) {
        const first = await tapdisks.serve(image);
        const other = await tapdisks.spawn();
        const minor = (await tapdisks.tapCtlOk("allocate")).replace(/^.*-/, "");
        const address = ["-p", `${other}`, "-m", minor];
        await tapdisks.tapCtlOk("attach", ...address);
        const refused = await tapdisks.tapCtl("open", ...address, "-a", image);
        assert.equal(refused.code, Errno.EBUSY, refused.stderr);
        assert.match(refused.stderr, /for writing.*(EBUSY)/);
        assert.ok(refused.stderr.includes(image.slice(4)), refused.stderr);
        // A second writer in the same process is refused too.
        await assert.rejects(tapdisks.serve(image, { pid: first.pid }), /EBUSY/);
        const created = await tapdisks.tapCtl("create", "-a", image);
        assert.equal(created.code, Errno.EBUSY);
        // A read-only open succeeds.
        await tapdisks.tapCtlOk("open", ...address, "-a", image, "-R");
        await tapdisks.tapCtlOk("close", ...address);
        await tapdisks.tapCtlOk("detach", ...address);
        await tapdisks.tapCtlOk("free", "-m", minor);
        await tapdisks.stop(first);
      }
    }),
);

durabilityTest(
  "the lock of a tapdisk that died does not linger",
  () =>
    withTapdisks(async (tapdisks, folder) => {
      const image = `vhd:${await createVhd(`${folder}/a.vhd`, 16)}`;
      let disk: Disk = await tapdisks.serve(image);
      for (let i = 0; i < 3; i++) {
        const { client } = await NbdClient.open(disk.socket);
        await client.write(i * MIB, noise(4096, i), CmdFlag.Fua);
        client.close();
        await tapdisks.kill(disk.pid);
        disk = await tapdisks.serve(image);
      }
      const { client } = await NbdClient.open(disk.socket);
      for (let i = 0; i < 3; i++) {
        assert.deepEqual(await client.read(i * MIB, 4096), noise(4096, i));
      }
      await client.disconnect();
    }),
);

durabilityTest(
  "vhd-util reads a chain that is served and works on its inner layers",
  () =>
    withTapdisks(async (tapdisks, folder) => {
      const base = await createVhd(`${folder}/base.vhd`, 16);
      const first = await tapdisks.serve(`vhd:${base}`);
      const { client: below } = await NbdClient.open(first.socket);
      await below.write(0, noise(MIB, 1), CmdFlag.Fua);
      await below.disconnect();
      await tapdisks.stop(first);
      const middle = await snapshotVhd(`${folder}/middle.vhd`, base);
      // A child of an empty image would become a child of the parent of that image.
      await tapdisks.serve(`vhd:${middle}`).then(async (inner) => {
        const { client: writer } = await NbdClient.open(inner.socket);
        await writer.write(2 * MIB, noise(4096, 4));
        await writer.disconnect();
        await tapdisks.stop(inner);
      });
      const leaf = await snapshotVhd(`${folder}/leaf.vhd`, middle);
      const disk = await tapdisks.serve(`vhd:${leaf}`);
      const { client } = await NbdClient.open(disk.socket);
      await client.write(MIB, noise(4096, 2), CmdFlag.Fua);

      assert.equal(await vhdUtilOk("query", "-n", leaf, "-v"), "16\n");
      assert.equal((await vhdUtilOk("query", "-n", leaf, "-p")).trim(), middle);
      for (const path of [base, middle]) {
        await vhdUtilOk("read", "-n", path, "-p");
        await vhdUtilOk("check", "-n", path, "-p");
      }
      // Another child of an inner layer, served by another tapdisk at the same time.
      const branch = await snapshotVhd(`${folder}/branch.vhd`, middle);
      const sibling = await tapdisks.serve(`vhd:${branch}`);
      const { client: other } = await NbdClient.open(sibling.socket);
      await other.write(0, noise(4096, 3));
      assert.deepEqual(await other.read(0, 4096), noise(4096, 3));
      assert.deepEqual(await other.read(4096, 4096), noise(MIB, 1).slice(4096, 8192));
      assert.deepEqual(await client.read(0, MIB), noise(MIB, 1));
      assert.deepEqual(await client.read(MIB, 4096), noise(4096, 2));
      assert.deepEqual(await client.read(2 * MIB, 4096), noise(4096, 4));
      await other.disconnect();
      await client.disconnect();
    }),
);
