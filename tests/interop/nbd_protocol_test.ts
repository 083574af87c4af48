import assert from "node:assert/strict";
import {
  Chunk,
  Cmd,
  CmdFlag,
  joined,
  NbdClient,
  noise,
  packed,
  WireError,
} from "../support/nbd_client.ts";
import { assertBytes, DISK_BYTES, nbdTest } from "../support/nbd_disks.ts";

const MIB = 1024 * 1024;
/** A read-only export: no TRIM, no WRITE_ZEROES. */
const READ_ONLY_FLAGS = 1 | 2 | 4 | 8 | 128 | 256;
const HOLE_AND_ZERO = 3;

nbdTest("what was written is read, by simple and by structured replies", async ({ vhd, raw }) => {
  for (const disk of [vhd, await raw()]) {
    for (const structured of [false, true]) {
      const { client, info } = await NbdClient.open(disk.socket, { structured });
      assert.equal(info.sizeBytes, DISK_BYTES);
      const data = noise(3 * 4096 + 512, structured ? 1 : 2);
      await client.write(5 * MIB - 1024, data);
      await client.write(5 * MIB + 8192, data, CmdFlag.Fua);
      await client.flush();
      for (const flags of structured ? [0, CmdFlag.Df] : [0]) {
        const read = { command: Cmd.Read, offset: 5 * MIB - 1024, length: data.length, flags };
        const reply = await client.do(read);
        assert.deepEqual(reply.chunks, structured ? [Chunk.OffsetData] : []);
        assertBytes(reply.data.subarray(0, 9216), data.subarray(0, 9216));
      }
      assertBytes(await client.read(5 * MIB + 8192, data.length), data);
      await client.disconnect();
    }
  }
});

nbdTest("32 MiB go in one request, and no more", async ({ vhd, raw }) => {
  const most = 32 * MIB;
  for (const disk of [vhd, await raw()]) {
    const { client } = await NbdClient.open(disk.socket, { structured: true });
    const data = noise(most, 7);
    await client.write(512, data);
    assertBytes(await client.read(512, most), data);
    const read = await client.ask({ command: Cmd.Read, length: most + 512 });
    assert.equal(read.error, WireError.Inval);
    const whole = { command: Cmd.Read, length: most + 512, flags: CmdFlag.Df };
    assert.equal((await client.ask(whole)).error, WireError.Overflow);
    const written = { command: Cmd.Write, payload: new Uint8Array(most + 512) };
    assert.equal((await client.ask(written)).error, WireError.Inval);
    assertBytes(await client.read(512, 4096), data.subarray(0, 4096));
    await client.disconnect();
  }
});

nbdTest("zero lengths do nothing or are refused; all are answered", async ({ vhd, raw }) => {
  for (const disk of [vhd, await raw()]) {
    for (const structured of [false, true]) {
      const { client } = await NbdClient.open(disk.socket, { structured, metaContext: structured });
      for (const command of [Cmd.Read, Cmd.Write, Cmd.Trim, Cmd.WriteZeroes]) {
        for (const flags of command === Cmd.Read ? [0] : [0, CmdFlag.Fua]) {
          for (const offset of [0, 4096, DISK_BYTES]) {
            const { error, data } = await client.ask({ command, flags, offset, length: 0 });
            assert.ok(error === 0 || error === WireError.Inval, `command ${command}: ${error}`);
            assert.equal(data.length, 0);
          }
        }
      }
      const status = await client.ask({ command: Cmd.BlockStatus, length: 0 });
      assert.equal(status.error, WireError.Inval);
      await client.disconnect();
    }
  }
});

nbdTest("WRITE_ZEROES makes zeros, with and without NO_HOLE and FUA", async ({ vhd, raw }) => {
  for (const disk of [vhd, await raw()]) {
    const { client } = await NbdClient.open(disk.socket);
    const data = noise(8 * MIB, 3);
    for (const flags of [0, CmdFlag.NoHole, CmdFlag.Fua, CmdFlag.NoHole | CmdFlag.Fua]) {
      await client.write(MIB, data);
      const zeroes = { command: Cmd.WriteZeroes, offset: 3 * MIB - 512, length: 3 * MIB, flags };
      await client.do(zeroes);
      const expected = data.slice();
      expected.fill(0, 2 * MIB - 512, 5 * MIB - 512);
      assertBytes(await client.read(MIB, data.length), expected);
    }
    // The whole disk in one request, which is larger than any permitted write.
    await client.do({ command: Cmd.WriteZeroes, length: DISK_BYTES });
    assertBytes(await client.read(0, 16 * MIB), new Uint8Array(16 * MIB));
    await client.disconnect();
  }
});

nbdTest("WRITE_ZEROES with NO_HOLE takes the room that it zeroes", async ({ vhd, raw, folder }) => {
  const images = [[vhd, `${folder}/a.vhd`], [await raw(), `${folder}/a.raw`]] as const;
  for (const [disk, path] of images) {
    const { client } = await NbdClient.open(disk.socket);
    const zeroes = { command: Cmd.WriteZeroes, offset: 0, length: 8 * MIB };
    await client.do(zeroes);
    const before = Deno.statSync(path).blocks ?? 0;
    await client.do({ ...zeroes, flags: CmdFlag.NoHole | CmdFlag.Fua });
    const blocks = Deno.statSync(path).blocks ?? 0;
    assert.ok(blocks >= before + 8 * 2048, `${before} blocks became ${blocks}`);
    assertBytes(await client.read(0, 8 * MIB), new Uint8Array(8 * MIB));
    await client.disconnect();
  }
});

nbdTest("TRIM spares its neighbours and gives room back", async ({ vhd, raw, folder }) => {
  const images = [[vhd, `${folder}/a.vhd`], [await raw(), `${folder}/a.raw`]] as const;
  for (const [disk, path] of images) {
    const { client } = await NbdClient.open(disk.socket);
    const data = noise(16 * MIB, 4);
    await client.write(0, data);
    await client.flush();
    const blocksBefore = Deno.statSync(path).blocks ?? 0;
    await client.do({ command: Cmd.Trim, offset: MIB, length: 14 * MIB });
    await client.do({ command: Cmd.Trim, offset: 0, length: 512, flags: CmdFlag.Fua });
    const blocks = Deno.statSync(path).blocks ?? 0;
    assert.ok(blocks <= blocksBefore - 13 * 2048, `${blocksBefore} blocks became ${blocks}`);
    assertBytes(await client.read(512, MIB - 512), data.subarray(512, MIB));
    assertBytes(await client.read(15 * MIB, MIB), data.subarray(15 * MIB));
    await client.disconnect();
  }
});

nbdTest("BLOCK_STATUS tells data from holes; REQ_ONE stops at the first", async ({ vhd }) => {
  const { client } = await NbdClient.open(vhd.socket, { metaContext: true });
  await client.write(4 * MIB, noise(4096, 1));
  await client.write(4 * MIB + 8192, noise(512, 2));
  const command = Cmd.BlockStatus;
  const all = await client.do({ command, length: DISK_BYTES });
  assert.deepEqual(all.chunks, [Chunk.BlockStatus]);
  assert.deepEqual(all.extents, [
    [4 * MIB, HOLE_AND_ZERO],
    [4096, 0],
    [4096, HOLE_AND_ZERO],
    [512, 0],
    [DISK_BYTES - 4 * MIB - 8704, HOLE_AND_ZERO],
  ]);
  const ranges: [number, number, number, [number, number][]][] = [
    [0, DISK_BYTES, CmdFlag.ReqOne, [[4 * MIB, HOLE_AND_ZERO]]],
    [0, 512, CmdFlag.ReqOne, [[512, HOLE_AND_ZERO]]],
    [4 * MIB + 512, MIB, CmdFlag.ReqOne, [[3584, 0]]],
    [4 * MIB + 512, 512, 0, [[512, 0]]],
  ];
  for (const [offset, length, flags, expected] of ranges) {
    assert.deepEqual((await client.do({ command, offset, length, flags })).extents, expected);
  }
  const { client: plain } = await NbdClient.open(vhd.socket, { structured: true });
  assert.equal((await plain.ask({ command, length: 4096 })).error, WireError.Inval);
  await plain.disconnect();
  await client.disconnect();
});

nbdTest("BLOCK_STATUS of a chequered disk is cut off, and goes on from there", async ({ vhd }) => {
  const { client } = await NbdClient.open(vhd.socket, { metaContext: true });
  // Every other sector has data: more extents than one reply holds.
  const sectors = 2 * 10_000;
  const waiting: number[] = [];
  for (let sector = 0; sector < sectors; sector += 2) {
    waiting.push(
      await client.request({
        command: Cmd.Write,
        offset: sector * 512,
        payload: new Uint8Array(512).fill(1),
      }),
    );
    if (waiting.length === 64) {
      for (const _ of waiting.splice(0)) assert.equal((await client.reply()).error, 0);
    }
  }
  for (const _ of waiting) assert.equal((await client.reply()).error, 0);
  let offset = 0;
  let answers = 0;
  for (let data = true; offset < sectors * 512; answers++) {
    const length = sectors * 512 - offset;
    const { extents } = await client.do({ command: Cmd.BlockStatus, offset, length });
    for (const [bytes, flags] of extents) {
      assert.equal(bytes, 512);
      assert.equal(flags, data ? 0 : HOLE_AND_ZERO, `at ${offset}`);
      offset += bytes;
      data = !data;
    }
  }
  assert.ok(answers > 1);
  await client.disconnect();
});

nbdTest("what lies beyond the end or is no whole sector is refused", async ({ vhd, raw }) => {
  const most = 0xffff_ffff;
  const beyond: [number, number | bigint, number][] = [
    [Cmd.Read, DISK_BYTES, 512],
    [Cmd.Read, DISK_BYTES - 512, 1024],
    [Cmd.Write, DISK_BYTES - 512, 1024],
    [Cmd.Trim, DISK_BYTES - 512, 1024],
    [Cmd.WriteZeroes, DISK_BYTES - 512, 1024],
    [Cmd.BlockStatus, DISK_BYTES - 512, 1024],
    [Cmd.Read, (1n << 63n) - 512n, 1024],
    [Cmd.Write, (1n << 64n) - 512n, 512],
    [Cmd.Trim, (1n << 64n) - 512n, 1024],
    [Cmd.Trim, 0, most - 511],
    [Cmd.WriteZeroes, 0, most - 511],
    [Cmd.BlockStatus, 0, most - 511],
    [Cmd.Read, 0, most],
    [Cmd.Trim, 0, most],
    [Cmd.WriteZeroes, 0, most],
    [Cmd.BlockStatus, 0, most],
    [Cmd.Read, 1, 512],
    [Cmd.Read, 0, 513],
    [Cmd.Write, 511, 512],
    [Cmd.Write, 0, 1],
    [Cmd.Trim, 1, 511],
    [Cmd.WriteZeroes, 256, 256],
    [Cmd.BlockStatus, 0, 100],
  ];
  for (const disk of [vhd, await raw()]) {
    const { client } = await NbdClient.open(disk.socket, { metaContext: true });
    await client.write(0, noise(4096, 9));
    for (const [command, offset, length] of beyond) {
      const payload = command === Cmd.Write ? new Uint8Array(length) : undefined;
      const { error, data } = await client.ask({ command, offset, length, payload });
      const expected: number[] = [WireError.Inval, WireError.NoSpace];
      assert.ok(expected.includes(error), `command ${command} ${offset}+${length}: ${error}`);
      assert.equal(data.length, 0);
    }
    assertBytes(await client.read(0, 4096), noise(4096, 9));
    await client.disconnect();
  }
});

const MISPLACED_FLAGS = [
  [Cmd.Read, CmdFlag.NoHole],
  [Cmd.Read, CmdFlag.ReqOne],
  [Cmd.Write, CmdFlag.NoHole],
  [Cmd.Write, CmdFlag.Df],
  [Cmd.Trim, CmdFlag.NoHole],
  [Cmd.WriteZeroes, CmdFlag.Df],
  [Cmd.WriteZeroes, CmdFlag.ReqOne],
] as const;

nbdTest("a command whose low byte is that of another is refused as unknown", async ({ vhd }) => {
  const { client } = await NbdClient.open(vhd.socket, { structured: true, metaContext: true });
  for (const command of [256, 256 + Cmd.Write, 0x8000 + Cmd.BlockStatus, 0xffff]) {
    const reply = await client.ask({ command, length: 512 });
    // Only replies to READ and BLOCK_STATUS are structured.
    assert.deepEqual([reply.error, reply.chunks], [WireError.Inval, []], `command ${command}`);
  }
  await client.disconnect();
});

nbdTest("unknown commands and flags are refused, with and without structure", async ({ vhd }) => {
  for (const structured of [false, true]) {
    const { client } = await NbdClient.open(vhd.socket, { structured });
    for (const command of [Cmd.Cache, 8, 9, 100, 0x100, 0x101, 0xffff]) {
      const reply = await client.ask({ command, length: 4096 });
      assert.equal(reply.error, WireError.Inval, `command ${command}`);
    }
    for (const flags of [CmdFlag.FastZero, 32, 0x8000]) {
      const zeroes = { command: Cmd.WriteZeroes, length: 4096, flags };
      assert.equal((await client.ask(zeroes)).error, WireError.Inval, `flags ${flags}`);
      const write = { command: Cmd.Write, payload: new Uint8Array(512), flags };
      assert.equal((await client.ask(write)).error, WireError.Inval, `flags ${flags}`);
    }
    // Flags of other commands, and DF without structured replies.
    for (const [command, flags] of MISPLACED_FLAGS) {
      const payload = command === Cmd.Write ? new Uint8Array(512) : undefined;
      const reply = await client.ask({ command, length: 512, flags, payload });
      assert.equal(reply.error, WireError.Inval, `command ${command}, flags ${flags}`);
    }
    const unfragmented = { command: Cmd.Read, length: 512, flags: CmdFlag.Df };
    const expected = structured ? 0 : WireError.Inval;
    assert.equal((await client.ask(unfragmented)).error, expected);
    // FUA is permitted for all commands, including those that do not write.
    await client.do({ command: Cmd.Read, length: 512, flags: CmdFlag.Fua });
    await client.do({ command: Cmd.Flush, flags: CmdFlag.Fua });
    const flush = await client.ask({ command: Cmd.Flush, offset: 512, length: 512 });
    assert.equal(flush.error, WireError.Inval);
    await client.flush();
    await client.disconnect();
  }
});

nbdTest("a disk served to be read refuses what changes it", async ({ vhd, tapdisks, folder }) => {
  const { client: writer } = await NbdClient.open(vhd.socket);
  const data = noise(4096, 5);
  await writer.write(8192, data);
  await writer.disconnect();
  await tapdisks.stop(vhd);
  const image = `vhd:${folder}/a.vhd`;
  const before = Deno.readFileSync(`${folder}/a.vhd`);
  const disk = await tapdisks.serve(image, { options: ["-R"] });
  const { client, info } = await NbdClient.open(disk.socket, { metaContext: true });
  assert.equal(info.flags, READ_ONLY_FLAGS);
  const payload = new Uint8Array(512);
  assert.equal((await client.ask({ command: Cmd.Write, payload })).error, WireError.Perm);
  for (const command of [Cmd.Trim, Cmd.WriteZeroes]) {
    assert.equal((await client.ask({ command, length: 512 })).error, WireError.Perm);
  }
  await client.flush();
  assertBytes(await client.read(8192, 4096), data);
  await client.disconnect();
  await tapdisks.stop(disk);
  assertBytes(Deno.readFileSync(`${folder}/a.vhd`), before);
});

nbdTest("requests beyond the slots wait their turn; each is answered once", async ({ vhd }) => {
  const { client } = await NbdClient.open(vhd.socket, { structured: true });
  const data = noise(4 * MIB, 6);
  await client.write(0, data);
  // 1500 requests of all sizes, out of order, are sent before the first reply is received.
  const offsets = new Map<number, [number, number]>();
  const sent: Uint8Array[] = [];
  for (let i = 0; i < 1500; i++) {
    const offset = (i * 7919 % 7000) * 512;
    const length = (1 + i % 16) * 512;
    offsets.set(i, [offset, length]);
    sent.push(packed([4, 0x25609513], [2, 0], [2, Cmd.Read], [8, i], [8, offset], [4, length]));
  }
  const sending = client.send(joined(...sent));
  while (offsets.size > 0) {
    const { cookie, data: read } = await client.reply();
    const [offset, length] = offsets.get(cookie) ?? [0, 0];
    assert.ok(offsets.delete(cookie), `two answers to ${cookie}`);
    assertBytes(read, data.subarray(offset, offset + length));
  }
  await sending;
  await client.disconnect();
});

nbdTest("goodbye comes after the answers to what was asked before", async ({ vhd }) => {
  const { client } = await NbdClient.open(vhd.socket);
  for (let i = 0; i < 20; i++) {
    await client.request({ command: Cmd.Write, offset: i * 65536, payload: noise(65536, i) });
  }
  await client.request({ command: Cmd.Disc });
  for (let i = 0; i < 20; i++) assert.equal((await client.reply()).error, 0);
  assert.ok(await client.hasHungUp());
  client.close();
  const { client: reader } = await NbdClient.open(vhd.socket);
  for (let i = 0; i < 20; i++) assertBytes(await reader.read(i * 65536, 65536), noise(65536, i));
  await reader.disconnect();
});

nbdTest(
  "long reads and writes go piece by piece between others, in either form",
  async ({ vhd }) => {
    const data = noise(24 * MIB, 8);
    for (const structured of [false, true]) {
      const { client } = await NbdClient.open(vhd.socket, { structured });
      const { client: another } = await NbdClient.open(vhd.socket, { structured });
      const asked = new Map<number, [number, number]>();
      const writing = client.request({ command: Cmd.Write, payload: data, flags: CmdFlag.Fua });
      assert.equal((await client.reply()).error, 0);
      await writing;
      for (let i = 0; i < 30; i++) {
        const length = i % 10 === 5 ? 7 * MIB + 512 : 4096;
        const offset = i * 65536 + 512;
        const command = Cmd.Read;
        asked.set(await client.request({ command, offset, length }), [offset, length]);
      }
      assertBytes(await another.read(MIB, 12 * MIB), data.subarray(MIB, 13 * MIB));
      while (asked.size > 0) {
        const { cookie, data: found } = await client.reply();
        const [offset, length] = asked.get(cookie) ?? [0, 0];
        assert.ok(asked.delete(cookie));
        assertBytes(found, data.subarray(offset, offset + length));
      }
      const beyond = { offset: DISK_BYTES - 4 * MIB, length: 8 * MIB };
      assert.equal((await client.ask({ command: Cmd.Read, ...beyond })).error, WireError.Inval);
      const payload = new Uint8Array(8 * MIB).fill(1);
      const write = { command: Cmd.Write, offset: beyond.offset, payload };
      assert.equal((await client.ask(write)).error, WireError.NoSpace);
      assertBytes(await client.read(beyond.offset, 4 * MIB), new Uint8Array(4 * MIB));
      await client.disconnect();
      await another.disconnect();
    }
  },
);
