import assert from "node:assert/strict";
import { AssertionError } from "../../ffi/assert.ts";
import { Errno, type SystemError } from "../../ffi/errno.ts";
import { closeFile, O_CREAT, O_RDWR, openFile, truncateFile, writeAt } from "../../ffi/files.ts";
import {
  DEVICE_INFO_BYTES,
  encodedControlCommand,
  encodedIoCommand,
  getDeviceInfo,
  PARAMETERS_BYTES,
  putControlCommand,
  putDeviceInfo,
  putIoCommand,
  putParameters,
  RequestDescriptors,
  UBLK_CMD_ADD_DEV,
  UBLK_CMD_GET_DEV_INFO,
  UBLK_CMD_GET_FEATURES,
  UBLK_CMD_START_DEV,
  UBLK_CMD_UPDATE_SIZE,
  UBLK_F_USER_RECOVERY,
  UBLK_IO_COMMIT_AND_FETCH_REQ,
  UBLK_IO_F_FUA,
  UBLK_IO_F_NOUNMAP,
  UBLK_IO_FETCH_REQ,
  UBLK_IO_OP_DISCARD,
  UBLK_IO_OP_FLUSH,
  UBLK_IO_OP_READ,
  UBLK_IO_OP_WRITE,
  UBLK_IO_OP_WRITE_ZEROES,
} from "../../ffi/ublk.ts";
import { memoryAddress } from "../../ffi/memory.ts";
import { diskParameters } from "../../src/frontend/ublk/disk_parameters.ts";
import { processWith } from "../../src/frontend/device_users.ts";
import { DEPTH, MOST_BYTES, QUEUES, whyNotServed } from "../../src/frontend/ublk/limits.ts";
import { isAlive } from "../../ffi/process.ts";
import { numberOfNode } from "../../src/frontend/ublk/node.ts";
import { kindOf } from "../../src/frontend/ublk/queue.ts";
import { removalEnded, removeLeft } from "../../src/frontend/ublk/removal.ts";
import { EpollScheduler } from "../../src/scheduler/epoll_scheduler.ts";
import { RequestKind, SLOTS } from "../../src/vbd/slots.ts";

/** A view with all bits set, so that unwritten bytes are detected. */
function dirty(bytes: number): DataView<ArrayBuffer> {
  return new DataView(new Uint8Array(bytes).fill(0xff).buffer);
}

function hex(view: DataView<ArrayBuffer>): string {
  return new Uint8Array(view.buffer).toHex();
}

Deno.test("commands have the numbers that a C compiler makes of linux/ublk_cmd.h", () => {
  assert.equal(encodedControlCommand(UBLK_CMD_GET_DEV_INFO) >>> 0, 0x80207502);
  assert.equal(encodedControlCommand(UBLK_CMD_GET_FEATURES) >>> 0, 0x80207513);
  assert.equal(encodedControlCommand(UBLK_CMD_ADD_DEV) >>> 0, 0xc0207504);
  assert.equal(encodedControlCommand(UBLK_CMD_START_DEV) >>> 0, 0xc0207506);
  assert.equal(encodedControlCommand(UBLK_CMD_UPDATE_SIZE) >>> 0, 0xc0207515);
  assert.equal(encodedIoCommand(UBLK_IO_FETCH_REQ) >>> 0, 0xc0107520);
  assert.equal(encodedIoCommand(UBLK_IO_COMMIT_AND_FETCH_REQ) >>> 0, 0xc0107521);
});

Deno.test("a control command names its device, no queue, its memory and a number", () => {
  const view = dirty(32);
  putControlCommand(view, 0, {
    device: 7,
    address: 0x7f01_2345_6000,
    lengthBytes: 64,
    data: 0x1_0000_0002,
  });
  assert.equal(
    hex(view),
    "07000000" + "ffff" + "4000" + "00604523017f0000" + "0200000001000000" + "0000000000000000",
  );
});

Deno.test("a command for requests names queue, tag, result and the memory of the tag", () => {
  const view = dirty(16);
  putIoCommand(view, 0, 1, 31, -5, 512);
  assert.equal(view.getUint16(0, true), 1);
  assert.equal(view.getUint16(2, true), 31);
  assert.equal(view.getInt32(4, true), -5);
  assert.equal(Number(view.getBigUint64(8, true)), memoryAddress(512));
});

Deno.test("what a device is made with reads back, and says who made it", () => {
  const view = dirty(DEVICE_INFO_BYTES);
  const wanted = {
    queues: 2,
    depth: 32,
    mostBytes: 262144,
    device: 0xffff_ffff,
    flags: UBLK_F_USER_RECOVERY,
    makerPid: 4711,
  };
  putDeviceInfo(view, 0, wanted);
  assert.deepEqual(getDeviceInfo(view, 0), { ...wanted, state: 0, pid: -1 });
  assert.equal(view.getUint32(28, true), 0, "the upper half of the flags");
  for (let i = 40; i < DEVICE_INFO_BYTES; i++) assert.equal(view.getUint8(i), 0);
  view.setUint32(32, 0, true);
  assert.equal(getDeviceInfo(view, 0).makerPid, 0, "a device that another program made");
});

Deno.test("a disk says its size, blocks, limits and caches", () => {
  const view = dirty(PARAMETERS_BYTES);
  putParameters(view, 0, diskParameters({ sectors: 0x1_2345_6789, readOnly: false }));
  assert.equal(
    hex(view),
    // len, types, attrs (a cache that can be switched to write-through), shifts
    "3c000000" + "03000000" + "0c000000" + "090c0c0c" +
      // max_sectors, chunk_sectors, dev_sectors, virt_boundary_mask
      "00020000" + "00000000" + "8967452301000000" + "0000000000000000" +
      // discards: alignment, granularity, sectors, sectors of zeroes, segments
      "00000000" + "00100000" + "00004000" + "00004000" + "0100" + "0000",
  );
});

Deno.test("a read-only disk says so, and takes no discards", () => {
  const view = dirty(PARAMETERS_BYTES);
  putParameters(view, 0, diskParameters({ sectors: 8, readOnly: true }));
  assert.equal(view.getUint32(8, true), 0b1101);
  assert.equal(view.getUint32(48, true), 0);
  assert.equal(view.getUint32(52, true), 0);
  assert.equal(view.getUint16(56, true), 0);
  assert.notEqual(view.getUint32(44, true), 0, "the kernel refuses a granularity of 0");
});

Deno.test("operations become requests; what was never offered does not", () => {
  assert.equal(kindOf(UBLK_IO_OP_READ), RequestKind.Read);
  assert.equal(kindOf(UBLK_IO_OP_WRITE | UBLK_IO_F_FUA), RequestKind.Write);
  assert.equal(kindOf(UBLK_IO_OP_FLUSH), RequestKind.Flush);
  assert.equal(kindOf(UBLK_IO_OP_DISCARD), RequestKind.Discard);
  assert.equal(kindOf(UBLK_IO_OP_WRITE_ZEROES), RequestKind.Zero);
  assert.equal(kindOf(UBLK_IO_OP_WRITE_ZEROES | UBLK_IO_F_NOUNMAP), RequestKind.Fill);
  for (const unknown of [4, 6, 15, 255]) assert.equal(kindOf(unknown), -1);
});

Deno.test("the descriptors of a queue are read where the kernel maps them", () => {
  const folder = Deno.makeTempDirSync();
  const fd = openFile(`${folder}/ublkc`, O_RDWR | O_CREAT);
  try {
    // Queue 1 begins after 4096 descriptors of 24 bytes.
    const queueAt = 4096 * 24;
    truncateFile(fd, 2 * queueAt);
    const descriptor = new DataView(new ArrayBuffer(24));
    descriptor.setUint32(0, UBLK_IO_OP_WRITE | UBLK_IO_F_FUA, true);
    descriptor.setUint32(4, 512, true);
    descriptor.setBigUint64(8, 0x1_0000_0008n, true);
    writeAt(fd, new Uint8Array(descriptor.buffer), queueAt + 200 * 24);
    const descriptors = new RequestDescriptors(fd, 1, 201);
    assert.equal(descriptors.operationAndFlags(200), UBLK_IO_OP_WRITE | UBLK_IO_F_FUA);
    assert.equal(descriptors.count(200), 512);
    assert.equal(descriptors.sector(200), 0x1_0000_0008);
    assert.equal(descriptors.count(199), 0);
    descriptors.close();
  } finally {
    closeFile(fd);
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("a node's number is its device's; others' nodes have none", () => {
  assert.equal(numberOfNode("/dev/ublkb0"), 0);
  assert.equal(numberOfNode("/dev/ublkb117"), 117);
  for (const node of ["/dev/ublkb1p1", "/dev/ublkc1", "/dev/nbd0", "/dev/ublkb", "ublkb1"]) {
    assert.equal(numberOfNode(node), -1, node);
  }
});

Deno.test("a process that has a node or a partition of it open is found", async () => {
  const folder = Deno.makeTempDirSync();
  const node = `${folder}/ublkb1`;
  try {
    for (const name of [node, `${node}p2`, `${node}0`]) Deno.writeTextFileSync(name, "");
    const holder = (path: string): Deno.ChildProcess =>
      new Deno.Command("sh", { args: ["-c", `exec sleep 60 3<${path}`] }).spawn();
    for (const [path, found] of [[node, true], [`${node}p2`, true], [`${node}0`, false]] as const) {
      const child = holder(path);
      const opened = `/proc/${child.pid}/fd/3`;
      while (!isOpen(opened)) await new Promise((resolve) => setTimeout(resolve, 5));
      assert.equal(processWith(node), found ? child.pid : 0, path);
      assert.equal(isAlive(child.pid), true);
      child.kill("SIGKILL");
      await child.status;
      assert.equal(processWith(node), 0);
      assert.equal(isAlive(child.pid), false);
    }
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

function isOpen(path: string): boolean {
  try {
    Deno.readLinkSync(path);
    return true;
  } catch {
    return false;
  }
}

Deno.test("why a device is not removed is said once, with its node and its number", () => {
  const errors: (SystemError | null)[] = [];
  const done = (error: SystemError | null): void => void errors.push(error);
  removalEnded("/dev/ublkb3", -Errno.EBUSY, done);
  removalEnded("/dev/ublkb3", -Errno.ENODEV, done);
  removeLeft(new EpollScheduler(), "/dev/nbd3", done);
  assert.deepEqual(errors.map((error) => error?.message), [
    "Cannot remove /dev/ublkb3: Device or resource busy (EBUSY)",
    undefined,
    "Cannot take /dev/nbd3 away (no ublk device): Invalid argument (EINVAL)",
  ]);
  assert.equal(errors[0]?.file, "/dev/ublkb3");
});

Deno.test("a device is served only if its requests have room in the slots", () => {
  const made = { mostBytes: MOST_BYTES, queues: QUEUES, depth: DEPTH };
  assert.equal(whyNotServed(made, SLOTS), "");
  assert.equal(whyNotServed({ ...made, mostBytes: 4096 }, SLOTS), "");
  // The kernel would copy the data of a write beyond the slot.
  const longer = { ...made, mostBytes: MOST_BYTES + 4096 };
  assert.match(whyNotServed(longer, SLOTS), /^its requests have up to 266240 bytes$/);
  for (const more of [{ ...made, depth: 4096 }, { ...made, queues: 8 }]) {
    assert.match(whyNotServed(more, SLOTS), /requests at once, and 128 slots are free$/);
  }
  assert.match(whyNotServed(made, QUEUES * DEPTH - 1), /^it has 64 .* 63 slots are free$/);
});

Deno.test("a queue deeper than its descriptors is not mapped: they are those of the next", () => {
  assert.throws(() => new RequestDescriptors(-1, 0, 4097), AssertionError);
});
