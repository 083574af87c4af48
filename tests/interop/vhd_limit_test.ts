import assert from "node:assert/strict";
import { newFooter } from "../../src/vhd/create.ts";
import { encodeFooter, HD_TYPE_DYNAMIC } from "../../src/vhd/format/footer.ts";
import { emptyHeader, encodeHeader } from "../../src/vhd/format/header.ts";
import { Cmd, NbdClient, WireError } from "../support/nbd_client.ts";
import { needsServed, vhdUtilOk, withTapdisks } from "../support/served.ts";
import { binaryPath, run } from "../support/tools.ts";

const MIB = 1 << 20;
const BLOCK = 2 * MIB;
const { ignore, suffix } = needsServed();

/** A sparse image whose only block ends `sectorsLeft` sectors before the limit of a BAT entry. */
function putImageAtLimit(path: string, sectorsLeft: number): boolean {
  const footer = newFooter(HD_TYPE_DYNAMIC, 3 * BLOCK);
  footer.creatorVersion = 0x0001_0001;
  const header = emptyHeader();
  header.tableOffset = 1536n;
  header.maxBatEntries = 3;
  header.blockSize = BLOCK;
  const sector = 0xffff_ffff - 1 - 4097 - sectorsLeft;
  const end = (sector + 4097) * 512;
  const bat = new Uint8Array(512).fill(0xff);
  new DataView(bat.buffer).setUint32(0, sector);
  using file = Deno.openSync(path, { create: true, write: true });
  const put = (bytes: Uint8Array, offset: number): void => {
    file.seekSync(offset, Deno.SeekMode.Start);
    for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
  };
  put(encodeFooter(footer), 0);
  put(encodeHeader(header), 512);
  put(bat, 1536);
  try {
    put(new Uint8Array(512).fill(0xff), sector * 512);
  } catch {
    return false;
  }
  put(encodeFooter(footer), end);
  return true;
}

Deno.test({
  name: `at 2 TiB a new block is refused, by tapdisk and vhd-util, and nothing is lost${suffix}`,
  ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      for (const [sectorsLeft, room] of [[0, 0], [8, 0], [4096, 0], [4112, 1]]) {
        const path = `${folder}/limit${sectorsLeft}.vhd`;
        if (!putImageAtLimit(path, sectorsLeft)) return;
        const disk = await tapdisks.serve(`vhd:${path}`);
        const { client } = await NbdClient.open(disk.socket);
        await client.write(0, new Uint8Array(4096).fill(0x30));
        const errors: number[] = [];
        for (const block of [1, 2]) {
          const payload = new Uint8Array(4096).fill(0x31);
          const offset = block * BLOCK;
          const { error } = await client.ask({ command: Cmd.Write, offset, length: 4096, payload });
          errors.push(error);
        }
        const full = WireError.NoSpace;
        assert.deepEqual(errors, room === 0 ? [full, full] : [0, full], `${sectorsLeft} left`);
        await client.flush();
        await client.disconnect();
        client.close();
        await tapdisks.stop(disk);
        assert.match(await vhdUtilOk("check", "-n", path), /is valid/);
        const { code, stderr } = await run(binaryPath("vhd-util"), ["fill", "-n", path]);
        assert.equal(code, 27, stderr);
        assert.match(stderr, /2 TiB/);
        const again = await tapdisks.serve(`vhd:${path}`);
        const { client: reader } = await NbdClient.open(again.socket);
        assert.deepEqual(await reader.read(0, 4096), new Uint8Array(4096).fill(0x30));
        const wanted = new Uint8Array(4096).fill(room === 0 ? 0 : 0x31);
        assert.deepEqual(await reader.read(BLOCK, 4096), wanted);
        await reader.disconnect();
        reader.close();
        await tapdisks.stop(again);
        Deno.removeSync(path);
      }
    }),
});
