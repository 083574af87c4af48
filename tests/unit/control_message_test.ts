import assert from "node:assert/strict";
import {
  decodePid,
  decodeResponse,
  encodeError,
  encodePid,
} from "../../src/control/protocol/answers.ts";
import { decodeDiskInfo, encodeDiskInfo } from "../../src/control/protocol/disk_info.ts";
import { decodeListEntry, encodeListEntry } from "../../src/control/protocol/list.ts";
import {
  ALL_MINORS,
  encodePlain,
  MESSAGE_BYTES,
  messageCookie,
  messageName,
  MessageType,
  messageType,
} from "../../src/control/protocol/message.ts";
import {
  decodeParams,
  encodeParams,
  encodeTrailer,
  keyLength,
  LONGEST_REQUEST_BYTES,
  MessageFlag,
  type Params,
  requestLength,
} from "../../src/control/protocol/params.ts";
import {
  decodeStatisticsLength,
  encodeStatisticsHead,
} from "../../src/control/protocol/statistics.ts";

import {
  decodeLimit,
  decodeLimitReply,
  encodeLimit,
  encodeLimitReply,
  type LimitChanges,
  LIMITS_BYTES,
} from "../../src/control/protocol/limit.ts";
import { decodeOpen, encodeOpen, OPEN_DEFAULTS } from "../../src/control/protocol/open_request.ts";
import { NO_LIMITS, type RateLimits } from "../../src/vbd/rate_limits.ts";

/** Zeros, with the given bytes (hexadecimal) or text at the given offsets. */
function bytes(
  parts: Record<number, string>,
  { length = MESSAGE_BYTES }: { length?: number } = {},
): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(length);
  for (const [offset, part] of Object.entries(parts)) {
    const isText = part.startsWith("'");
    all.set(isText ? new TextEncoder().encode(part.slice(1)) : fromHex(part), Number(offset));
  }
  return all;
}

function fromHex(text: string): Uint8Array {
  return Uint8Array.from(text.split(" "), (digits) => parseInt(digits, 16));
}

const PLAIN: Params = {
  flags: 0,
  minor: 3,
  path: "vhd:/sr/a.vhd",
  parentMinor: -1,
  requestTimeoutSeconds: 0,
  secondary: "",
};

// The messages that tap-ctl 3.55 sent for `-m 3`, as their bytes that are not zero.
const PLAIN_REQUESTS: [string, number, Record<number, string>][] = [
  ["attach", MessageType.ATTACH, { 0: "05 00 03" }],
  ["detach", MessageType.DETACH, { 0: "0f 00 03" }],
  ["close", MessageType.CLOSE, { 0: "0d 00 03" }],
  ["close -f", MessageType.FORCE_SHUTDOWN, { 0: "17 00 03" }],
  ["pause", MessageType.PAUSE, { 0: "09 00 03" }],
  ["stats", MessageType.STATS, { 0: "15 00 03" }],
];

const IMAGE_REQUESTS: [string, number, Params, Record<number, string>][] = [
  ["open -a vhd:/sr/a.vhd", MessageType.OPEN, PLAIN, {
    0: "07 00 03",
    12: "03",
    20: "'vhd:/sr/a.vhd",
    276: "ff ff ff ff",
  }],
  [
    "open -a aio:/sr/b.raw -R -D -t 40",
    MessageType.OPEN,
    {
      ...PLAIN,
      path: "aio:/sr/b.raw",
      flags: MessageFlag.RDONLY | MessageFlag.NO_O_DIRECT,
      requestTimeoutSeconds: 40,
    },
    { 0: "07 00 03", 8: "02 02 00 00 03", 20: "'aio:/sr/b.raw", 276: "ff ff ff ff 28" },
  ],
  [
    "open -a vhd:/sr/a.vhd -r -e 2 -2 nbd:/sr/mirror -s",
    MessageType.OPEN,
    {
      ...PLAIN,
      flags: MessageFlag.ADD_LCACHE | MessageFlag.REUSE_PRT | MessageFlag.SECONDARY |
        MessageFlag.STANDBY,
      parentMinor: 2,
      secondary: "nbd:/sr/mirror",
    },
    {
      0: "07 00 03",
      8: "e0 01 00 00 03",
      20: "'vhd:/sr/a.vhd",
      276: "02",
      282: "'nbd:/sr/mirror",
    },
  ],
  [
    "unpause -a vhd:/sr/c.vhd -2 nbd:/sr/mirror",
    MessageType.RESUME,
    {
      ...PLAIN,
      minor: 0,
      parentMinor: 0,
      path: "vhd:/sr/c.vhd",
      flags: MessageFlag.SECONDARY,
      secondary: "nbd:/sr/mirror",
    },
    { 0: "0b 00 03", 8: "80", 20: "'vhd:/sr/c.vhd", 282: "'nbd:/sr/mirror" },
  ],
];

Deno.test("message: requests without parameters have the reference's bytes", () => {
  for (const [name, type, parts] of PLAIN_REQUESTS) {
    const message = encodePlain(type, 3);
    assert.deepEqual(message, bytes(parts), name);
    assert.equal(messageType(message), type, name);
    assert.equal(messageCookie(message), 3, name);
  }
});

Deno.test("message: open and unpause have the reference's bytes, both ways", () => {
  for (const [name, type, params, parts] of IMAGE_REQUESTS) {
    assert.deepEqual(encodeParams(type, 3, params), bytes(parts), name);
    assert.deepEqual(decodeParams(bytes(parts)), params, name);
  }
});

Deno.test("message: a minor takes both bytes of the cookie", () => {
  const message = encodeParams(MessageType.OPEN, 16383, { ...PLAIN, minor: 16383 });
  assert.deepEqual([...message.subarray(0, 4)], [7, 0, 0xff, 0x3f]);
  assert.deepEqual([...message.subarray(12, 16)], [0xff, 0x3f, 0, 0]);
  assert.equal(messageCookie(message), 16383);
});

Deno.test("message: answers have the reference's bytes, both ways", () => {
  const pid = bytes({ 0: "04", 8: "a5 27" });
  assert.deepEqual(encodePid(0, 10149), pid);
  assert.equal(decodePid(pid), 10149);

  const disk = { sectors: 131072, sectorSizeBytes: 512, info: 0 };
  const opened = bytes({ 0: "08", 10: "02", 17: "02" });
  assert.deepEqual(encodeDiskInfo(MessageType.OPEN_RSP, 0, disk), opened);
  assert.deepEqual(decodeDiskInfo(opened), disk);

  const refused = bytes({ 0: "01 00 07", 8: "13" });
  assert.deepEqual(encodeError(7, { error: 19, message: "" }), refused);
  assert.deepEqual(decodeResponse(refused), { error: 19, message: "" });

  const entry = { count: 2, minor: 0, state: 0x2a, path: "vhd:/sr/base.vhd" };
  const listed = bytes({ 0: "14 00 ff ff 00 00 00 00 02", 16: "2a", 20: "'vhd:/sr/base.vhd" });
  assert.deepEqual(encodeListEntry(ALL_MINORS, entry), listed);
  assert.deepEqual(decodeListEntry(listed), entry);

  const end = { count: 0, minor: -1, state: 0, path: "" };
  const ended = bytes({ 0: "14 00 ff ff", 12: "ff ff ff ff" });
  assert.deepEqual(encodeListEntry(ALL_MINORS, end), ended);
  assert.deepEqual(decodeListEntry(ended), end);

  const head = bytes({ 0: "16", 16: "3c 01" });
  assert.deepEqual(encodeStatisticsHead(0, 316), head);
  assert.equal(decodeStatisticsLength(head), 316);
});

Deno.test("message: the sizes of disks beyond 32 bits of sectors come through", () => {
  const disk = { sectors: 2 ** 42 + 1, sectorSizeBytes: 4096, info: 4 };
  assert.deepEqual(decodeDiskInfo(encodeDiskInfo(MessageType.DISK_INFO_RSP, 1, disk)), disk);
});

Deno.test("message: a log's path and the length of a key follow an open", () => {
  const flags = MessageFlag.ADD_LOG | MessageFlag.OPEN_ENCRYPTED;
  const trailer = encodeTrailer({ logPath: "/sr/a.log", keyBytes: 32 });
  assert.deepEqual(trailer, bytes({ 0: "'/sr/a.log", 256: "20" }, { length: 256 + 1 }));

  const request = new Uint8Array(MESSAGE_BYTES + trailer.length);
  request.set(encodeParams(MessageType.OPEN, 3, { ...PLAIN, flags }));
  request.set(trailer, MESSAGE_BYTES);
  assert.equal(keyLength(request), 32);
  // What is no path ends nothing: the request is refused, for its flags.
  assert.equal(keyLength(request.fill(0x61, MESSAGE_BYTES, MESSAGE_BYTES + 256)), 32);
});

Deno.test("message: how long a request is shows as its bytes come in", () => {
  const flags = MessageFlag.ADD_LOG | MessageFlag.LIMITS | MessageFlag.OPEN_ENCRYPTED;
  const request = new Uint8Array(LONGEST_REQUEST_BYTES);
  request.set(encodeParams(MessageType.OPEN, 3, { ...PLAIN, flags }));
  request[MESSAGE_BYTES + 256 + LIMITS_BYTES] = 255;
  assert.equal(requestLength(request.subarray(0, 0)), MESSAGE_BYTES);
  assert.equal(requestLength(request.subarray(0, 100)), MESSAGE_BYTES);
  assert.equal(requestLength(request.subarray(0, MESSAGE_BYTES)), LONGEST_REQUEST_BYTES);
  const whole = MESSAGE_BYTES + 256 + LIMITS_BYTES + 1;
  assert.equal(requestLength(request.subarray(0, whole)), LONGEST_REQUEST_BYTES);
  assert.equal(requestLength(request), LONGEST_REQUEST_BYTES);
  // A pause has no parameters: the bytes of the flags of an open are ignored.
  const pause = bytes({ 0: "09 00 03", 8: "ff ff ff ff" });
  assert.equal(requestLength(pause), MESSAGE_BYTES);
  // A resume has a log, but never limits or a key.
  const resume = encodeParams(MessageType.RESUME, 3, { ...PLAIN, flags });
  assert.equal(requestLength(resume), MESSAGE_BYTES + 256);
});

const SOME_LIMITS = { ...NO_LIMITS, readIops: 500, totalBps: 2 ** 40 + 1, burstMs: 1000 };

Deno.test("message: limits of an open follow the path of its log", () => {
  const plain = { ...OPEN_DEFAULTS, image: "vhd:/a", limits: SOME_LIMITS };
  for (const request of [plain, { ...plain, changedBlocks: "/a.cbtlog" }]) {
    for (const keyBytes of [undefined, 16]) {
      const message = encodeOpen(3, request, { keyBytes });
      assert.equal(requestLength(message), message.length);
      assert.deepEqual(decodeOpen(message), request);
      assert.equal(keyLength(message), keyBytes ?? null);
    }
  }
  const message = encodeOpen(3, plain);
  message.fill(0xff, MESSAGE_BYTES, MESSAGE_BYTES + 8);
  assert.throws(() => decodeOpen(message), { code: "EINVAL", message: /limits/ });
});

Deno.test("message: a limit changes what it names, and its answer has all limits", () => {
  assert.equal(decodeLimit(encodeLimit(3, {}), SOME_LIMITS), null);
  const changes: [LimitChanges, RateLimits][] = [
    [{ readIops: 0 }, { ...SOME_LIMITS, readIops: 0 }],
    [{ burstMs: 50 }, { ...SOME_LIMITS, burstMs: 50 }],
    [{ writeBps: 7, writeIops: 8 }, { ...SOME_LIMITS, writeBps: 7, writeIops: 8 }],
    [{ ...NO_LIMITS }, NO_LIMITS],
  ];
  for (const [change, after] of changes) {
    const message = encodeLimit(3, change);
    assert.equal(message.length, MESSAGE_BYTES);
    assert.deepEqual(decodeLimit(message, SOME_LIMITS), after);
    assert.deepEqual(decodeLimitReply(encodeLimitReply(3, after)), after);
  }
  for (const burstMs of [0, 9, 3_600_001]) {
    assert.throws(() => decodeLimit(encodeLimit(3, { burstMs }), NO_LIMITS), { code: "EINVAL" });
  }
});

Deno.test("message: a path of 255 bytes fits, a longer one is refused by name", () => {
  const longest = `vhd:/${"é".repeat(125)}`;
  assert.equal(new TextEncoder().encode(longest).length, 255);
  const message = encodeParams(MessageType.OPEN, 1, { ...PLAIN, path: longest });
  assert.equal(decodeParams(message).path, longest);
  assert.throws(
    () => encodeParams(MessageType.OPEN, 1, { ...PLAIN, path: `${longest}x` }),
    { code: "ENAMETOOLONG", message: /é{9}.*at most 255 bytes/ },
  );
});

Deno.test("message: a path without an end is refused", () => {
  const message = encodeParams(MessageType.OPEN, 1, PLAIN).fill(0x61, 20, 276);
  assert.throws(() => decodeParams(message), { code: "EINVAL" });
});

Deno.test("message: a reason that is too long keeps its file and its end", () => {
  const path = `/${"é".repeat(400)}`;
  const message = `Cannot open ${path}: No such file or directory (ENOENT)`;
  const got = decodeResponse(encodeError(1, { error: 2, message }));
  assert.equal(got.error, 2);
  assert.match(got.message, /^Cannot open \/é+…é+: No such file or directory \(ENOENT\)$/);
  assert.ok(new TextEncoder().encode(got.message).length <= 255);
});

Deno.test("message: types have names, unknown ones too", () => {
  assert.equal(messageName(MessageType.FORCE_SHUTDOWN), "force shutdown");
  assert.equal(messageName(MessageType.OPEN_RSP), "open response");
  assert.equal(messageName(77), "unknown (77)");
});
