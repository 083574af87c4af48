/** The messages about guests' rings, byte by byte as blktap's tapdisk-message.h lays them out. */
import assert from "node:assert/strict";
import { BlkifProtocol } from "../../ffi/blkif_ring.ts";
import { SystemError } from "../../ffi/errno.ts";
import { askDiskInfo, connectRing, disconnectRing } from "../../src/control/client/guest_rings.ts";
import { encodeDiskInfo } from "../../src/control/protocol/disk_info.ts";
import {
  decodeConnect,
  decodeGuestDevice,
  encodeConnect,
  encodeDisconnect,
  type GuestRing,
} from "../../src/control/protocol/guest_ring.ts";
import { encodePlain, MESSAGE_BYTES, MessageType } from "../../src/control/protocol/message.ts";
import { LyingTapdisk } from "../search/fuzz/wire/lying_tapdisk.ts";
import { withTempDir } from "../support/tools.ts";

const RING: GuestRing = {
  domain: 7,
  device: 51712,
  references: [8, 9, 10, 0x1234_5678],
  port: 23,
  protocol: BlkifProtocol.X86_32,
  pollDurationUs: 1000,
  pollIdleThreshold: 50,
  isReadOnly: true,
};

Deno.test("a connect has its fields where the original has them", () => {
  const expected = new DataView(new ArrayBuffer(MESSAGE_BYTES));
  expected.setUint16(0, 24, true);
  expected.setUint16(2, 5, true);
  const words: [number, number][] = [
    [8, 7],
    [12, 51712],
    [16, 8],
    [20, 9],
    [24, 10],
    [28, 0x1234_5678],
    [48, 2],
    [52, 2],
    [312, 23],
    [316, 1000],
    [320, 50],
    // Behind the original's structure.
    [324, 1],
  ];
  for (const [at, value] of words) expected.setUint32(at, value, true);
  assert.deepEqual(encodeConnect(5, RING), new Uint8Array(expected.buffer));
  assert.deepEqual(decodeConnect(encodeConnect(5, RING)), RING);
});

Deno.test("a disconnect names the guest's device", () => {
  const message = encodeDisconnect(5, RING);
  assert.deepEqual([...message.subarray(0, 16)], [
    26,
    0,
    5,
    0,
    0,
    0,
    0,
    0,
    7,
    0,
    0,
    0,
    0,
    202,
    0,
    0,
  ]);
  assert.deepEqual(decodeGuestDevice(message), { domain: 7, device: 51712 });
});

function assertRefused(at: number, value: number, code: string): void {
  const message = encodeConnect(5, RING);
  new DataView(message.buffer).setUint32(at, value, true);
  assert.throws(
    () => decodeConnect(message),
    (error) => error instanceof SystemError && error.code === code,
  );
}

Deno.test("a connect that cannot be served is refused", () => {
  assertRefused(48, 4, "EINVAL");
  assertRefused(48, 0xffff_ffff, "EINVAL");
  assertRefused(52, 0, "EPROTONOSUPPORT");
  assertRefused(52, 4, "EPROTONOSUPPORT");
  assertRefused(8, 0x7ff0, "EINVAL");
  const endless = encodeConnect(5, RING);
  endless.fill(65, 56, 312);
  assert.throws(() => decodeConnect(endless), /has no end/);
  for (const pages of [0, 3, 16]) {
    const references = new Array<number>(pages).fill(1);
    assert.throws(() => encodeConnect(5, { ...RING, references }), /pages/);
  }
});

Deno.test("a client connects and disconnects a ring, and asks for the size of the disk", () =>
  withTempDir(async (folder) => {
    const device = { pid: Deno.pid, minor: 5 };
    const tapdisk = await LyingTapdisk.start(`${folder}/ctl${device.pid}`);
    const before = Deno.env.get("BLKTAP_CONTROL_DIR");
    Deno.env.set("BLKTAP_CONTROL_DIR", folder);
    const answer = (bytes: Uint8Array<ArrayBuffer>): void =>
      tapdisk.tell([{ read: MESSAGE_BYTES, answer: bytes, times: 1, stays: false }]);
    try {
      answer(encodePlain(MessageType.XENBLKIF_CONNECT_RSP, 5));
      connectRing(device, RING);
      answer(encodePlain(MessageType.XENBLKIF_DISCONNECT_RSP, 0));
      disconnectRing(device, RING);
      const disk = { sectors: 2 ** 33, sectorSizeBytes: 512, info: 0 };
      answer(encodeDiskInfo(MessageType.DISK_INFO_RSP, 5, disk));
      assert.deepEqual(askDiskInfo(device), disk);
      answer(encodePlain(MessageType.XENBLKIF_CONNECT_RSP, 5));
      assert.throws(() => disconnectRing(device, RING), /xenblkif connect response/);
    } finally {
      if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
      else Deno.env.set("BLKTAP_CONTROL_DIR", before);
      tapdisk.end();
    }
  }));
