/**
 * The type of an image is what its name or its child says, and never guessed from its content. A guest
 * that writes the header of another format to its raw disk gets its bytes back, and no file that this
 * header names is opened: as a disk, as a parent, and in each verb that follows a chain.
 */
import assert from "node:assert/strict";
import { coalesce, copyImage, createDynamic, openDisk, snapshot } from "../../mod.ts";
import { NbdClient } from "../support/nbd_client.ts";
import { assertBytes } from "../support/nbd_disks.ts";
import { type Disk, needsServed, withTapdisks } from "../support/served.ts";
import { withTempDir } from "../support/tools.ts";
import { vhdUtil } from "../support/vhd.ts";

const MIB = 1024 * 1024;
const DISK_BYTES = 4 * MIB;
const served = needsServed();

/** Headers that a guest may write to its disk. Each names a file that is not its own. */
const HEADERS: Readonly<Record<string, (folder: string) => Uint8Array<ArrayBuffer>>> = {
  vhd(folder): Uint8Array<ArrayBuffer> {
    createDynamic(`${folder}/secret.vhd`, { sizeBytes: DISK_BYTES });
    snapshot(`${folder}/forged.vhd`, { parent: `${folder}/secret.vhd`, keepEmptyParent: true });
    return Deno.readFileSync(`${folder}/forged.vhd`);
  },
  qcow2(folder): Uint8Array<ArrayBuffer> {
    const name = new TextEncoder().encode(`${folder}/secret.raw`);
    const header = new Uint8Array(512);
    const view = new DataView(header.buffer);
    view.setUint32(0, 0x514649fb);
    view.setUint32(4, 2);
    view.setBigUint64(8, 104n);
    view.setUint32(16, name.length);
    view.setUint32(20, 16);
    view.setBigUint64(24, BigInt(DISK_BYTES));
    header.set(name, 104);
    return header;
  },
};

/** A raw disk on which a guest wrote a header at its start, and the same bytes at its end. */
function rawDisk(folder: string, kind: string): { raw: string; content: Uint8Array<ArrayBuffer> } {
  const header = HEADERS[kind](folder);
  const content = new Uint8Array(DISK_BYTES);
  content.fill(0x55, MIB, 2 * MIB);
  content.set(header);
  content.set(header, content.length - header.length);
  Deno.writeFileSync(`${folder}/disk.raw`, content);
  return { raw: `${folder}/disk.raw`, content };
}

function contentOf(path: string): Uint8Array {
  using disk = openDisk(path);
  const content = new Uint8Array(disk.sizeBytes);
  disk.read(content, 0);
  return content;
}

async function readServed({ socket }: Disk): Promise<Uint8Array> {
  const { client, info } = await NbdClient.open(socket);
  using _ = client;
  assert.equal(info.sizeBytes ?? DISK_BYTES, DISK_BYTES);
  return await client.read(0, DISK_BYTES);
}

async function vhdUtilOk(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await vhdUtil(...args);
  assert.equal(code, 0, `${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

for (const kind of Object.keys(HEADERS)) {
  Deno.test(`a raw parent stays raw below a ${kind} header, offline`, () =>
    withTempDir(async (folder) => {
      const { raw, content } = rawDisk(folder, kind);
      const child = `${folder}/child.vhd`;
      await vhdUtilOk("snapshot", "-n", child, "-p", raw, "-m");
      assertBytes(contentOf(child), content);
      assert.match(await vhdUtilOk("query", "-p", "-n", child), /disk\.raw/);
      await vhdUtilOk("check", "-p", "-n", child);
      await vhdUtilOk("copy", "-n", child, "-N", `${folder}/copy.vhd`);
      assertBytes(contentOf(`${folder}/copy.vhd`), content);
      await copyImage(child, `${folder}/copy2.vhd`);
      assertBytes(contentOf(`${folder}/copy2.vhd`), content);

      const other = `${folder}/other.vhd`;
      snapshot(other, { parent: raw, rawParent: true });
      await vhdUtilOk("modify", "-n", other, "-p", raw, "-m");
      assertBytes(contentOf(other), content);
      await vhdUtilOk("coalesce", "-n", child);
      await coalesce(other);
      assertBytes(Deno.readFileSync(raw), content);
    }));

  Deno.test({
    name: `a raw disk stays raw below a ${kind} header, served${served.suffix}`,
    ignore: served.ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const { raw, content } = rawDisk(folder, kind);
        const disk = await tapdisks.serve(`aio:${raw}`);
        assertBytes(await readServed(disk), content);
        const address = ["-p", `${disk.pid}`, "-m", `${disk.minor}`];
        await tapdisks.tapCtlOk("pause", ...address);
        await tapdisks.tapCtlOk("unpause", ...address);
        assertBytes(await readServed(disk), content);
        await tapdisks.tapCtlOk("snapshot", ...address, "-n", `${folder}/live.vhd`);
        assertBytes(await readServed(disk), content);
        await tapdisks.stop(disk);

        const again = await tapdisks.serve(`vhd:${folder}/live.vhd`);
        assertBytes(await readServed(again), content);
        const { client } = await NbdClient.open(again.socket);
        await client.write(0, content.subarray(0, 65536));
        await client.disconnect();
        await tapdisks.stop(again);
        await vhdUtilOk("coalesce", "-n", `${folder}/live.vhd`);
        assertBytes(Deno.readFileSync(raw), content);
      }),
  });

  Deno.test({
    name: `an image in memory or behind a filter stays raw below a ${kind} header${served.suffix}`,
    ignore: served.ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const { raw, content } = rawDisk(folder, kind);
        for (const image of [`ram:${raw}`, `log:aio:${raw}`, `bc:aio:${raw}`]) {
          const disk = await tapdisks.serve(image);
          assertBytes(await readServed(disk), content);
          await tapdisks.stop(disk);
        }
        const { code, stderr } = await tapdisks.tapCtl("create", "-a", raw);
        assert.notEqual(code, 0);
        assert.match(stderr, /disk\.raw/);
      }),
  });
}
