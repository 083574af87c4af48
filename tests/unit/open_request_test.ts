/**
 * The record of an open request stays the same through a message and through the file of a minor. A
 * field that a tapdisk does not support is refused by name.
 */
import assert from "node:assert/strict";
import { readMinorRecord, writeMinorRecord } from "../../src/control/minors/minor_record.ts";
import { allocateMinor } from "../../src/control/minors/minors.ts";
import { minorPath } from "../../src/control/paths.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { keyLength, MessageFlag } from "../../src/control/protocol/params.ts";
import { NO_LIMITS } from "../../src/vbd/rate_limits.ts";
import {
  decodeOpen,
  decodeResume,
  DEVICE_CHOICES,
  encodeOpen,
  encodeResume,
  OPEN_DEFAULTS,
  type OpenRequest,
  parseOpenRequest,
  QUEUE_CHOICES,
} from "../../src/control/protocol/open_request.ts";
import { RETRY_POLICIES } from "../../src/vbd/retry.ts";

const PLAIN: OpenRequest = { ...OPEN_DEFAULTS, image: "vhd:/a.vhd" };

/** Requests with one changed field each, and one with all fields changed. */
const REQUESTS: OpenRequest[] = [
  PLAIN,
  { ...PLAIN, readOnly: true },
  { ...PLAIN, direct: false },
  { ...PLAIN, localCache: true },
  { ...PLAIN, requestTimeoutSeconds: 65535 },
  ...RETRY_POLICIES.map((retry) => ({ ...PLAIN, retry })),
  { ...PLAIN, changedBlocks: "/a.cbtlog" },
  { ...PLAIN, secondary: "nbd:unix:/a" },
  { ...PLAIN, standby: true },
  { ...PLAIN, limits: { ...NO_LIMITS, writeBps: 2 ** 40 } },
  { ...PLAIN, existingParent: 0 },
  ...DEVICE_CHOICES.map((device) => ({ ...PLAIN, device })),
  ...QUEUE_CHOICES.map((queue) => ({ ...PLAIN, queue })),
  {
    image: "log:aio:/ä b",
    readOnly: true,
    direct: false,
    localCache: true,
    requestTimeoutSeconds: 1,
    retry: "transient",
    device: "nbd",
    queue: "io_uring",
    changedBlocks: "/ö.cbtlog",
    secondary: "vhd:/ü b",
    standby: true,
    limits: {
      readIops: 1,
      writeIops: 2,
      totalIops: 3,
      readBps: 4,
      writeBps: 5,
      totalBps: 6,
      burstMs: 700,
    },
    existingParent: 5,
    serve: [],
  },
];

/** What a message does not carry: it is served by messages of its own. */
const SERVED: OpenRequest = {
  ...PLAIN,
  serve: [{
    addresses: ["127.0.0.1", "0:0:0:0:0:0:0:1"],
    port: 10809,
    name: "ä b",
    tls: { mode: "require", certificates: "/pki", psk: null, verifyPeer: true },
    maxClients: 9,
    maxClientsPerAddress: 3,
  }],
};

Deno.test("open request: a message carries every field", () => {
  for (const request of REQUESTS) assert.deepEqual(decodeOpen(encodeOpen(7, request)), request);
});

Deno.test("open request: the file of a minor keeps every field", () => {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  const before = Deno.env.get("BLKTAP_CONTROL_DIR");
  Deno.env.set("BLKTAP_CONTROL_DIR", folder);
  try {
    const minor = allocateMinor();
    const node = `${folder}/node`;
    Deno.writeTextFileSync(node, "");
    for (const request of [...REQUESTS, SERVED]) {
      for (const encrypted of [false, true]) {
        const record = { ...request, node, encrypted };
        writeMinorRecord(minor, record);
        assert.deepEqual(readMinorRecord(minor), record);
      }
    }
    // A record of an earlier version.
    const { image, readOnly, direct, requestTimeoutSeconds, device, queue } = PLAIN;
    const opened = { image, readOnly, direct, requestTimeoutSeconds, device, queue };
    const earlier = { ...opened, node, encrypted: false };
    Deno.writeTextFileSync(minorPath(minor), JSON.stringify(earlier));
    assert.deepEqual(readMinorRecord(minor), { ...PLAIN, node, encrypted: false });
    Deno.removeSync(node);
    assert.equal(readMinorRecord(minor), null);
  } finally {
    if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
    else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("open request: JSON with a field of another type is none", () => {
  const fields = ["image", "readOnly", "direct", "requestTimeoutSeconds", "device", "queue"];
  for (const field of fields) {
    for (const value of [undefined, null, [], "x1"]) {
      if (field === "image" && value === "x1") continue;
      assert.equal(parseOpenRequest({ ...PLAIN, [field]: value }), null, `${field} ${value}`);
    }
  }
  for (
    const limits of [null, 7, [], {}, { ...NO_LIMITS, readIops: -1 }, { ...NO_LIMITS, burstMs: 1 }]
  ) {
    assert.equal(parseOpenRequest({ ...PLAIN, limits }), null);
  }
  assert.equal(parseOpenRequest({ ...PLAIN, retry: "some" }), null);
  for (const value of [null, 7, "text", []]) assert.equal(parseOpenRequest(value), null);
});

Deno.test("open request: it tells how long the key is that follows", () => {
  const message = encodeOpen(0, PLAIN, { keyBytes: 32 });
  assert.deepEqual(decodeOpen(message), PLAIN);
  assert.deepEqual([...message.subarray(MESSAGE_BYTES)], [32]);
  assert.equal(keyLength(message), 32);
  assert.equal(keyLength(encodeOpen(0, PLAIN)), null);
});

Deno.test("open request: what a tapdisk does not carry out is refused by name", () => {
  const refused: [flag: number, message: RegExp][] = [
    [MessageFlag.ADD_CACHE, /no support for a block cache/],
    [MessageFlag.VHD_INDEX, /no support for a VHD index/],
  ];
  for (const [flag, message] of refused) {
    const error = { code: "EOPNOTSUPP", message };
    const [open, resume] = [encodeOpen(3, PLAIN), encodeResume(3, { image: null })];
    for (const request of [open, resume]) request[8] |= flag;
    assert.throws(() => decodeOpen(open), error);
    assert.throws(() => decodeResume(resume), error);
  }
  for (const flag of [MessageFlag.ADD_CACHE, MessageFlag.VHD_INDEX]) {
    const message = encodeOpen(3, PLAIN);
    message[8] |= flag;
    assert.throws(() => decodeOpen(message), { code: "EOPNOTSUPP" });
  }
});

Deno.test("open request: a choice that this version does not know is refused", () => {
  const message = encodeOpen(3, PLAIN);
  message[10] = 0x07;
  assert.throws(() => decodeOpen(message), { code: "EINVAL", message: /another version/ });
  const other = encodeOpen(3, PLAIN);
  other[11] |= 0x30;
  assert.throws(() => decodeOpen(other), { code: "EINVAL", message: /another version/ });
});

Deno.test("open request: a resume keeps the image or names another", () => {
  const requests = [
    { image: null },
    { image: "aio:/b" },
    { image: null, changedBlocks: null },
    { image: "aio:/b", changedBlocks: "/b.cbtlog" },
    { image: null, secondary: null },
    { image: null, changedBlocks: null, secondary: "nbd:host:1" },
  ];
  for (const request of requests) assert.deepEqual(decodeResume(encodeResume(3, request)), request);
});
