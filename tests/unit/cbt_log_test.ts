/**
 * Logs of changed blocks: the layout, which bits stand for what, and cbt-util, whose output and exit
 * statuses are those of the original.
 */
import assert from "node:assert/strict";
import {
  bitmapBytes,
  CBT_HEADER_BYTES,
  changedByte,
  changedBytes,
  changedExtents,
  encodeCbtHeader,
} from "../../src/cbt/cbt_log.ts";
import { readCbtLog } from "../../src/cbt/log_file.ts";
import { cbtUtilMain } from "../../src/cli/cbt_util/main.ts";
import { Random } from "../../src/testing/random.ts";
import { SimulatedDisk } from "../../src/testing/simulated_disk.ts";
import { holdToTranscript, inWorkingFolder } from "../support/golden_transcript.ts";
import { RealDevice } from "../support/real_device.ts";
import { needs, withTempDir } from "../support/tools.ts";
import { goldenText, putFile, runProgram } from "../support/vhd.ts";

const GIB = 2 ** 30;
const UUID = "00112233-4455-6677-8899-aabbccddeeff";

function cbtUtil(...args: string[]) {
  return runProgram(cbtUtilMain, args);
}

Deno.test("cbt: a log has a bit for each 64 KiB, in whole bytes", () => {
  const sizes = [[1, 1], [65536, 1], [65537, 1], [8 * 65536, 1], [8 * 65536 + 1, 2], [GIB, 2048]];
  for (const [sizeBytes, bytes] of sizes) assert.equal(bitmapBytes(sizeBytes), bytes);
});

Deno.test("cbt: a file that is not the log of a disk gets no room when it is refused", () =>
  withTempDir((folder) => {
    const path = `${folder}/sparse`;
    const none = new Uint8Array(16);
    const header = { parent: none, child: none, consistent: 1, sizeBytes: GIB };
    for (const front of [new Uint8Array(1), encodeCbtHeader(header)]) {
      Deno.writeFileSync(path, front);
      Deno.truncateSync(path, 1 << 20);
      const before = Deno.statSync(path);
      const wanted = { code: "EPERM", message: /Cannot track changed blocks/ };
      assert.throws(() => new RealDevice("ram:64", { changedBlocks: path }), wanted);
      const { blocks, mtime } = Deno.statSync(path);
      assert.deepEqual([blocks, mtime], [before.blocks, before.mtime]);
    }
  }));

function setChanged(bits: Uint8Array, first: number, last: number): void {
  for (let at = first >> 3; at <= last >> 3; at++) bits[at] = changedByte(bits, at, first, last);
}

Deno.test("cbt: bits of any range are set, and no others", () => {
  const random = new Random(11);
  for (let round = 0; round < 500; round++) {
    const bits = new Uint8Array(32);
    const first = random.below(256);
    const last = first + random.below(256 - first);
    setChanged(bits, first, last);
    for (let block = 0; block < 256; block++) {
      const isSet = ((bits[block >> 3] >> (block & 7)) & 1) === 1;
      assert.equal(isSet, block >= first && block <= last, `${first} to ${last}: ${block}`);
    }
  }
});

Deno.test("cbt: extents are the runs of set bits, and end with the disk", () => {
  const sizeBytes = 20 * 65536 + 512;
  const header = {
    parent: new Uint8Array(16),
    child: new Uint8Array(16),
    consistent: 1,
    sizeBytes,
  };
  const extentsOf = (...blocks: number[]): number[][] => {
    const bits = new Uint8Array(bitmapBytes(sizeBytes));
    for (const block of blocks) setChanged(bits, block, block);
    return [...changedExtents({ header, bits })].map((extent) => Object.values(extent));
  };
  assert.deepEqual(extentsOf(), []);
  assert.deepEqual(extentsOf(0, 1, 7, 8, 9), [[0, 131072], [7 * 65536, 3 * 65536]]);
  assert.deepEqual(extentsOf(20), [[20 * 65536, 512]]);
  // A bit behind the end of the disk stands for nothing.
  assert.deepEqual(extentsOf(21, 23), []);
  const bits = new Uint8Array(bitmapBytes(sizeBytes)).fill(0xff);
  assert.equal(changedBytes({ header, bits }), sizeBytes);
});

Deno.test("cbt-util: a new log has the original's bytes", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/a.cbtlog`;
    assert.equal((await cbtUtil("create", "-n", path, "-s", String(3 * GIB))).code, 0);
    const bytes = Deno.readFileSync(path);
    assert.equal(bytes.length, 48 + 6144);
    const view = new DataView(bytes.buffer);
    assert.equal(view.getBigUint64(40, true), BigInt(3 * GIB));
    bytes.fill(0, 40, 48);
    assert.ok(bytes.every((byte) => byte === 0));
  }));

Deno.test("cbt-util: fields are set at the original's places and printed", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/a.cbtlog`;
    await cbtUtil("create", "-n", path, "-s", String(GIB));
    assert.equal((await cbtUtil("set", "-n", path, "-p", UUID.toUpperCase())).code, 0);
    assert.equal((await cbtUtil("set", "-n", path, "-c", UUID, "-f", "1")).code, 0);
    const head = Deno.readFileSync(path).subarray(0, 40).toHex();
    assert.equal(head, `${UUID.replaceAll("-", "").repeat(2)}0100000000000000`);
    const printed = async (option: string): Promise<string> =>
      (await cbtUtil("get", "-n", path, option)).stdout;
    assert.equal(await printed("-p"), `${UUID}\n`);
    assert.equal(await printed("-c"), `${UUID}\n`);
    assert.equal(await printed("-f"), "1\n");
    assert.equal(await printed("-s"), `${GIB}\n`);
    assert.deepEqual(JSON.parse(await printed("--json")), {
      parent: UUID,
      child: UUID,
      consistent: true,
      sizeBytes: GIB,
      changedBytes: 0,
    });
  }));

Deno.test("cbt-util: a grown log keeps its bits, and the new ones are clear", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/a.cbtlog`;
    await cbtUtil("create", "-n", path, "-s", String(65536 * 3));
    changeBits(path, [0b101]);
    assert.equal((await cbtUtil("set", "-n", path, "-s", String(65536 * 20))).code, 0);
    assert.deepEqual([...(await cbtUtil("get", "-n", path, "-b")).stdoutBytes], [0b101, 0, 0]);
    const { code, stderr } = await cbtUtil("set", "-n", path, "-s", "65536");
    assert.equal(code, 22);
    assert.match(stderr, /Size smaller than current file size \(1310720\)/);
    assert.equal((await cbtUtil("get", "-n", path, "-s")).stdout, "1310720\n");
  }));

function changeBits(path: string, bits: number[]): void {
  const bytes = Deno.readFileSync(path);
  bytes.set(bits, CBT_HEADER_BYTES);
  Deno.writeFileSync(path, bytes);
}

Deno.test("cbt-util: coalesce adds the parent's bits, unless the parent is larger", () =>
  withTempDir(async (folder) => {
    const [parent, child] = [`${folder}/p`, `${folder}/c`];
    await cbtUtil("create", "-n", parent, "-s", String(65536 * 8));
    await cbtUtil("create", "-n", child, "-s", String(65536 * 16));
    changeBits(parent, [0b1001]);
    changeBits(child, [0b0011, 0b1]);
    assert.equal((await cbtUtil("coalesce", "-p", parent, "-c", child)).code, 0);
    assert.deepEqual([...(await cbtUtil("get", "-n", child, "-b")).stdoutBytes], [0b1011, 1]);
    assert.equal(
      (await cbtUtil("extents", "-n", child)).stdout,
      "0 131072\n196608 65536\n524288 65536\n",
    );
    const refused = await cbtUtil("coalesce", "-p", child, "-c", parent);
    assert.equal(refused.code, 22);
    assert.match(refused.stderr, /Parent bitmap larger than child bitmap/);
    assert.deepEqual([...(await cbtUtil("get", "-n", parent, "-b")).stdoutBytes], [0b1001]);
  }));

Deno.test("cbt-util: wrong command lines print the usage and end with EINVAL", () =>
  withTempDir(async (folder) => {
    const path = `${folder}/a`;
    await cbtUtil("create", "-n", path, "-s", "65536");
    const before = Deno.readFileSync(path);
    const wrong = [
      [],
      ["bogus"],
      ["create", "-n", path],
      ["create", "-n", path, "-s", "0"],
      ["create", "-n", path, "-s", "1e3"],
      ["get", "-n", path],
      ["get", "-n", path, "-p", "-c"],
      ["get", "-p"],
      ["set", "-n", path],
      ["set", "-n", path, "-p", "bogus"],
      ["coalesce", "-p", path],
      ["create", "-h"],
    ];
    for (const args of wrong) assert.equal((await cbtUtil(...args)).code, 22, args.join(" "));
    assert.deepEqual(Deno.readFileSync(path), before);
    assert.equal((await cbtUtil("get", "-n", `${folder}/missing`, "-p")).code, 2);
    Deno.writeFileSync(path, before.subarray(0, 47));
    assert.equal((await cbtUtil("get", "-n", path, "-p")).code, 5);
  }));

const { ignore, suffix } = needs("bash", "xxd");

Deno.test({
  name: `cbt-util answers as the reference does, and its files are the same${suffix}`,
  ignore,
  fn: (test) =>
    inWorkingFolder(async () => {
      const program = { name: "cbt-util", run: cbtUtil, hasErrors: false };
      await holdToTranscript(test, program, { expected: goldenText("cbt-util.expected") });
    }),
});

Deno.test("cbt: a header that claims a huge disk does not take memory", () => {
  const storage = new SimulatedDisk();
  const none = new Uint8Array(16);
  const header = { parent: none, child: none, consistent: 1, sizeBytes: 2 ** 46 };
  putFile(storage, "/a", encodeCbtHeader(header));
  assert.throws(() => readCbtLog("/a", { storage }), { code: "EIO", message: /shorter/ });
  storage.close();
});
