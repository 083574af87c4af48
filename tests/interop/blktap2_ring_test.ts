import assert from "node:assert/strict";
import { createDynamic } from "../../src/vhd/create.ts";
import { osStorage } from "../../src/files/storage.ts";
import { type KernelOptions, PlayedKernel } from "../support/blktap2/played_kernel.ts";
import {
  FLUSH,
  putTransfer,
  READ,
  readSectors,
  RingLoad,
  type Segment,
  TRIM,
  WRITE,
  writeSectors,
} from "../support/blktap2/ring_disk.ts";

const DISK_SECTORS = 16 * 2048;
const WHOLE: Segment = [0, 7];
const CREATE = "ring 208 40 bytes";
const REMOVE = "ring 207 0";
const FREE = "control 201 7";

/** A simulated kernel, and a tapdisk with a VHD on a tmpfs. */
async function withKernel(
  options: KernelOptions,
  body: (kernel: PlayedKernel) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync({ dir: "/dev/shm", prefix: "blktap-test-" });
  try {
    const path = `${folder}/disk.vhd`;
    createDynamic(path, { storage: osStorage, sizeBytes: DISK_SECTORS * 512 });
    const kernel = await PlayedKernel.start(folder, `vhd:${path}`, options);
    try {
      await body(kernel);
    } finally {
      await kernel.close();
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

function bytes(sectors: number, seed: number): Uint8Array {
  return Uint8Array.from({ length: sectors * 512 }, (_, i) => (i >> 9) * 31 + i * 7 + seed);
}

async function logOf(kernel: PlayedKernel): Promise<string> {
  return (await kernel.order("log") as string[]).join("\n");
}

Deno.test("a device of the driver shows what the disk is", async () => {
  await withKernel({}, async (kernel) => {
    assert.deepEqual(kernel.device, {
      request: 208,
      capacity: DISK_SECTORS,
      sectorSize: 512,
      flags: 0x02 | 0x04 | 0x08,
      physBlockSize: 4096,
      trimBlockSize: 4096,
      name: "",
    });
    assert.deepEqual(kernel.calls.map((call) => call.replace(/^ring 1000\d/, "file")), [
      "control 200 12 bytes",
      "file 7",
      "file 0",
      CREATE,
    ]);
    assert.equal(await logOf(kernel), "");
  });
});

Deno.test("a read-only disk is one for the driver, and refuses what changes it", async () => {
  await withKernel({ serverArgs: ["read-only"] }, async (kernel) => {
    assert.equal(kernel.device?.flags, 0x01 | 0x02 | 0x04);
    const place = { id: 3, sector: 8, segments: [WHOLE] };
    assert.equal((await writeSectors(kernel, bytes(8, 1), place)).status, -1);
    assert.equal((await readSectors(kernel, place)).answer.status, 0);
  });
});

Deno.test("a driver that knows no flushes is served, and the log says so", async () => {
  await withKernel({ flagMask: 0x03 }, async (kernel) => {
    assert.match(await logOf(kernel), /does not know of flushes, trimming/);
  });
});

Deno.test("the first driver makes its device in the old way, pauses and goes on", async () => {
  await withKernel({ firstDriver: true }, async (kernel) => {
    const { request, capacity, sectorSize, name = "" } = kernel.device ?? {};
    assert.deepEqual([request, capacity, sectorSize], [202, DISK_SECTORS, 512]);
    assert.match(name, /^vhd:\/dev\/shm\/.*\/disk\.vhd$/);
    const place = { id: 0, sector: 100, segments: [WHOLE] };
    assert.equal((await writeSectors(kernel, bytes(8, 5), place)).status, 0);
    kernel.sendMessage(1);
    await kernel.until("it pauses", () => kernel.paused);
    putTransfer(kernel, READ, place);
    kernel.publish();
    await assert.rejects(kernel.answers(1, 300));
    kernel.reopenName = name;
    kernel.sendMessage(2);
    await kernel.until("it goes on", () => kernel.resumeResult === 0);
    assert.equal((await kernel.answers(1))[0].status, 0);
    assert.deepEqual(
      kernel.arena.bytes.slice(kernel.pageAt(0, 0), kernel.pageAt(0, 1)),
      bytes(8, 5),
    );

    kernel.sendMessage(1);
    await kernel.until("it pauses again", () => kernel.paused);
    kernel.reopenName = "vhd:/nowhere/disk.vhd";
    kernel.resumeResult = null;
    kernel.sendMessage(2);
    await kernel.until("it cannot go on", () => kernel.resumeResult !== null);
    assert.equal(kernel.resumeResult, -2);
  });
});

Deno.test("segments that join, and those that do not, hold their sectors", async () => {
  await withKernel({}, async (kernel) => {
    const shapes: Segment[][] = [
      [WHOLE],
      Array<Segment>(11).fill(WHOLE),
      [[7, 7], WHOLE, WHOLE, [0, 0]],
      [[0, 3], [4, 7], [2, 5]],
      Array.from({ length: 11 }, (_, i): Segment => [i % 8, i % 8]),
      [[0, 0], [0, 0], [0, 0]],
      [[3, 7], [1, 7], [0, 2]],
    ];
    let sector = 5;
    for (const [index, segments] of shapes.entries()) {
      const id = (index * 5 + 31) % 32;
      const count = segments.reduce((sum, [first, last]) => sum + last - first + 1, 0);
      const data = bytes(count, index);
      assert.deepEqual(await writeSectors(kernel, data, { id, sector, segments }), {
        id: BigInt(id),
        operation: WRITE,
        status: 0,
      });
      // Reads through other segments: only the order of sectors matters.
      const plain: Segment[] = [];
      for (let left = count; left > 0; left -= 8) plain.push([0, Math.min(left, 8) - 1]);
      const read = await readSectors(kernel, { id: (id + 1) % 32, sector, segments: plain });
      assert.equal(read.answer.status, 0);
      assert.deepEqual(read.data, data);
      const same = await readSectors(kernel, { id: (id + 2) % 32, sector, segments });
      assert.deepEqual(same.data, data);
      sector += count + 3;
    }
  });
});

Deno.test("flushes and trims are answered", async () => {
  await withKernel({}, async (kernel) => {
    const place = { id: 1, sector: 4096, segments: [WHOLE] };
    await writeSectors(kernel, bytes(8, 9), place);
    kernel.putRequest({ operation: FLUSH, segments: 0, id: 2, sector: 0 });
    kernel.putRequest({
      operation: TRIM,
      segments: 0,
      id: 3,
      sector: 0,
      trimSectors: DISK_SECTORS,
    });
    kernel.publish();
    const answers = await kernel.answers(2);
    assert.deepEqual(answers.map(({ operation, status }) => [operation, status]).sort(), [
      [FLUSH, 0],
      [TRIM, 0],
    ]);
  });
});

Deno.test("what cannot be done is answered with an error, and the ring goes on", async () => {
  await withKernel({}, async (kernel) => {
    const { view, bytes } = kernel.arena;
    const marked = kernel.pageAt(4, 0);
    bytes.fill(0x5a, marked, marked + 11 * 4096);
    const one = { operation: READ, segments: 1, id: 4, sector: 0, first: 0, last: 7 };
    const cases: [string, number, (at: number) => void, object?][] = [
      ["an operation that is none", -2, () => {}, { operation: 4 }],
      ["operation 255", -2, () => {}, { operation: 255 }],
      ["no segments", -1, () => {}, { segments: 0 }],
      ["12 segments", -1, () => {}, { segments: 12 }],
      ["255 segments", -1, () => {}, { segments: 255 }],
      ["a segment beyond its page", -1, () => {}, { last: 8 }],
      ["a segment far beyond its page", -1, () => {}, { first: 0, last: 255 }],
      ["a segment that ends before it begins", -1, () => {}, { first: 5, last: 4 }],
      ["the sector behind the last", -1, () => {}, { sector: DISK_SECTORS - 7 }],
      ["sector 2^32", -1, () => {}, { sector: 2 ** 32 }],
      ["sector 2^53", -1, (at) => view.setUint32(at + 20, 1 << 21, true)],
      ["sector 2^64 - 1", -1, (at) => view.setBigUint64(at + 16, 2n ** 64n - 1n, true)],
      ["a write at 2^63", -1, (at) => view.setUint32(at + 20, 1 << 31, true), { operation: WRITE }],
      ["a trim beyond the end", -1, () => {}, {
        operation: TRIM,
        sector: 1,
        trimSectors: DISK_SECTORS,
      }],
      ["a trim of 2^64 - 1", -1, (at) => view.setBigUint64(at + 24, 2n ** 64n - 1n, true), {
        operation: TRIM,
      }],
    ];
    for (const [what, status, change, fields] of cases) {
      change(kernel.putRequest({ ...one, ...fields }));
      kernel.publish();
      const [answer] = await kernel.answers(1);
      assert.deepEqual([answer.id, answer.status], [4n, status], what);
    }
    for (const id of [32n, 255n, 2n ** 32n, 2n ** 32n + 4n, 2n ** 64n - 1n]) {
      view.setBigUint64(kernel.putRequest(one) + 8, id, true);
      kernel.publish();
      const [answer] = await kernel.answers(1);
      assert.deepEqual([answer.id, answer.status], [id, -1]);
    }
    assert.ok(bytes.subarray(marked, marked + 11 * 4096).every((byte) => byte === 0x5a));
    kernel.putRequest(one);
    kernel.publish();
    assert.equal((await kernel.answers(1))[0].status, 0);
    assert.equal(await kernel.order("guards"), true);
  });
});

for (const jump of [33, 1000, 2 ** 31 - 1, 2 ** 31, -1]) {
  Deno.test(`a ring whose producer moves by ${jump} is closed, and the log says why`, async () => {
    await withKernel({}, async (kernel) => {
      kernel.put += jump;
      kernel.publish();
      await kernel.until("the tap is free", () => kernel.calls.includes(FREE));
      assert.match(await logOf(kernel), /Closing \/dev\/xen\/.*: its ring makes no sense/);
      assert.equal(kernel.waiting, 0);
      assert.equal(await kernel.order("guards"), true);
    });
  });
}

Deno.test("two requests of a number close the ring when the first is through", async () => {
  await withKernel({}, async (kernel) => {
    await kernel.order("pause");
    putTransfer(kernel, READ, { id: 9, sector: 0, segments: [WHOLE] });
    kernel.publish();
    await kernel.order("state");
    putTransfer(kernel, READ, { id: 9, sector: 8, segments: [WHOLE] });
    kernel.publish();
    await assert.rejects(kernel.answers(1, 300));
    assert.match(await logOf(kernel), /a second request of number 9/);
    assert.ok(!kernel.calls.includes(FREE), "its page may be read into still");
    await kernel.order("resume");
    assert.equal((await kernel.answers(1))[0].status, 0);
    await kernel.until("the tap is free", () => kernel.calls.includes(FREE));
  });
});

Deno.test("a message that means nothing is taken out, and the ring goes on", async () => {
  await withKernel({}, async (kernel) => {
    kernel.sendMessage(77);
    await kernel.until("the message is out", () => kernel.arena.bytes[16] === 0);
    assert.match(await logOf(kernel), /a message 77/);
    const { answer } = await readSectors(kernel, { id: 0, sector: 0, segments: [WHOLE] });
    assert.equal(answer.status, 0);
  });
});

Deno.test("requests wait while the disk is paused, as many as the ring has", async () => {
  await withKernel({}, async (kernel) => {
    assert.deepEqual(await kernel.order("pause"), [0, ""]);
    // The request has more non-adjacent parts than a device has slots.
    const segments = Array.from({ length: 11 }, (): Segment => [2, 3]);
    for (let id = 0; id < 32; id++) putTransfer(kernel, WRITE, { id, sector: id * 22, segments });
    kernel.publish();
    await assert.rejects(kernel.answers(1, 300));
    assert.deepEqual(await kernel.order("state"), [0x2a, 0]);
    await kernel.order("resume");
    const answers = await kernel.answers(32);
    assert.deepEqual(new Set(answers.map(({ id }) => Number(id))).size, 32);
    assert.ok(answers.every(({ status, operation }) => status === 0 && operation === WRITE));
    assert.deepEqual(await kernel.order("state"), [0, 128]);
  });
});

Deno.test("a device in use is not taken away; one that is not goes, and its tap with it", async () => {
  await withKernel({}, async (kernel) => {
    kernel.opened = true;
    const [errno, message] = await kernel.order("detach") as [number, string];
    assert.equal(errno, 16);
    assert.match(message, /Cannot take \/dev\/xen\/blktap-2\/tapdev7 away \(somebody uses it\)/);
    const { answer } = await readSectors(kernel, { id: 0, sector: 0, segments: [WHOLE] });
    assert.equal(answer.status, 0);
    kernel.opened = false;
    assert.deepEqual(await kernel.order("detach"), [0, ""]);
    assert.deepEqual(kernel.calls.slice(-3), [REMOVE, "ring 10002 0", FREE]);
    assert.equal(kernel.device, null);
    assert.deepEqual(await kernel.order("close"), [0, ""]);
  });
});

Deno.test("a device that is abandoned answers all that it has, and goes", async () => {
  await withKernel({}, async (kernel) => {
    await kernel.order("pause");
    kernel.opened = true;
    for (let id = 0; id < 20; id++) {
      putTransfer(kernel, READ, { id, sector: id * 8, segments: [[0, 0], [0, 0], [0, 0]] });
    }
    kernel.publish();
    await assert.rejects(kernel.answers(20, 300));
    await kernel.order("abandon");
    await kernel.order("close");
    await kernel.until("the tap is free", () => kernel.calls.includes(FREE));
    const answers = await kernel.answers(20);
    assert.ok(answers.every(({ status }) => status === -1));
    assert.equal(new Set(answers.map(({ id }) => id)).size, 20);
  });
});

Deno.test("the driver can have its device removed", async () => {
  await withKernel({}, async (kernel) => {
    kernel.sendMessage(3);
    await kernel.until("the ring is closed", () => kernel.calls.includes("ring 10002 0"));
    assert.match(await logOf(kernel), /the driver was told to remove it/);
    assert.equal(await kernel.order("gone"), true);
    // Such a driver frees the tap itself. The number may now belong to another tap.
    assert.ok(!kernel.calls.includes(FREE));
    assert.deepEqual(await kernel.order("detach"), [0, ""]);
  });
});

Deno.test("a device whose tapdisk died cannot be taken over, and leaves nothing", async () => {
  await withKernel({}, async (kernel) => {
    const [errno, message, made] = await kernel.order("take over") as [number, string, unknown];
    assert.deepEqual([errno, made], [19, null]);
    assert.match(message, /^Cannot take over \/dev\/xen\/blktap-2\/tapdev9 \(the blktap2 driver/);
    assert.equal(kernel.calls.at(-1), "control 201 9");
    assert.equal(await kernel.order("gone"), false);
  });
});

Deno.test("a million requests at full depth bring and keep their data", async () => {
  await withKernel({}, async (kernel) => {
    const load = new RingLoad(kernel, {
      seed: 4711,
      sectors: DISK_SECTORS,
      requests: 1_000_000,
      depth: 32,
      writes: 0.45,
      flushes: 0.001,
      verify: true,
    });
    await load.run();
    assert.equal(load.ended, 1_000_000);
    assert.equal(await kernel.order("guards"), true);
    assert.deepEqual(await kernel.order("detach"), [0, ""]);
    assert.deepEqual(await kernel.order("close"), [0, ""]);
  });
});

Deno.test("requests of a ring allocate nothing", async () => {
  let lines: string[] = [];
  let grown = 0;
  await withKernel({ v8Flags: "--expose-gc,--trace-gc" }, async (kernel) => {
    lines = kernel.runtimeLines;
    const run = async (seed: number, requests: number): Promise<number> => {
      const options = { seed, sectors: DISK_SECTORS, depth: 32, writes: 0.5, verify: false };
      await new RingLoad(kernel, { ...options, requests }).run();
      return await kernel.order("heap") as number;
    };
    await run(1, 400_000);
    const before = await run(2, 10_000);
    grown = await run(3, 500_000) - before;
  });
  assert.ok(grown < 256 * 1024, `the heap grew by ${grown} bytes`);
  // The last two collections were requested, before and after the measured requests.
  const [, between] = lines.join("\n").split("Mark-Compact").slice(-3);
  assert.ok(lines.length > 3, "the runtime tells of its collections");
  assert.ok((between.match(/Scavenge/g) ?? []).length <= 1, lines.join("\n"));
});
