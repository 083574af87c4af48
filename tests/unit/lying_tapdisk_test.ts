import assert from "node:assert/strict";
import { SystemError } from "../../ffi/errno.ts";
import { closeImage } from "../../src/control/client/client.ts";
import { deviceLog } from "../../src/control/client/device_log.ts";
import { inventory } from "../../src/control/client/inventory.ts";
import { askPid, deviceStatistics } from "../../src/control/client/questions.ts";
import { encodeError, encodePid } from "../../src/control/protocol/answers.ts";
import { encodeListEntry } from "../../src/control/protocol/list.ts";
import { MESSAGE_BYTES } from "../../src/control/protocol/message.ts";
import { encodeStatisticsHead } from "../../src/control/protocol/statistics.ts";
import { encodeWriteLogHead } from "../../src/control/protocol/write_log.ts";
import { LyingTapdisk } from "../search/fuzz/wire/lying_tapdisk.ts";
import { withTempDir } from "../support/tools.ts";

const pid = Deno.pid;
const device = { pid, minor: 3 };

/** Calls `body` with a tapdisk that gives one answer to each connection. */
function lying(name: string, body: (answer: (...parts: Uint8Array[]) => void) => void): void {
  Deno.test(`tap-ctl and a tapdisk that lies: ${name}`, () =>
    withTempDir(async (folder) => {
      Deno.mkdirSync(`${folder}/tapdisk`);
      const tapdisk = await LyingTapdisk.start(`${folder}/ctl${pid}`);
      const before = Deno.env.get("BLKTAP_CONTROL_DIR");
      Deno.env.set("BLKTAP_CONTROL_DIR", folder);
      try {
        body((...parts) => {
          const answer = Uint8Array.from(parts.flatMap((part) => [...part]));
          tapdisk.tell([{ read: MESSAGE_BYTES, answer, times: 1, stays: false }]);
        });
      } finally {
        if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
        else Deno.env.set("BLKTAP_CONTROL_DIR", before);
        tapdisk.end();
      }
    }));
}

function assertBroken(call: () => unknown, why: RegExp): void {
  assert.throws(call, (error) => {
    assert.ok(error instanceof SystemError && error.code === "EPROTO", `${error}`);
    assert.match(error.message, why);
    return true;
  });
}

lying("an error that would end as success, or as another error", (answer) => {
  for (const error of [0, 256, -0x8000_0000]) {
    answer(encodeError(3, { error, message: "No" }));
    assertBroken(() => closeImage(device), /answered with error/);
  }
  answer(encodeError(3, { error: -22, message: "No" }));
  assert.throws(() => closeImage(device), { errno: 22, message: "No" });
});

lying("a process that cannot be", (answer) => {
  for (const process of [0, -1]) {
    answer(encodePid(0, process));
    assertBroken(() => askPid(pid), /says that it is process/);
  }
});

lying("statistics of 8 PiB", (answer) => {
  answer(encodeStatisticsHead(3, 2 ** 53));
  assertBroken(() => deviceStatistics(device), /9007199254740992 bytes/);
});

lying("a log of any length, out of order, beyond the end, or not whole", (answer) => {
  const page = (number: number, bits: number): Uint8Array => {
    const record = new Uint8Array(4100).fill(bits, 4, 5);
    new DataView(record.buffer).setUint32(0, number, true);
    return record;
  };
  const head = (lengthBytes: number, sectors = 65_536): Uint8Array =>
    encodeWriteLogHead(3, { sectors, lengthBytes });
  answer(head(8200), page(0, 0x80), page(1, 0xc0));
  assert.deepEqual(deviceLog(device).runs, [[0, 1], [32_768, 2]]);
  answer(head(2 ** 53), page(0, 1));
  assertBroken(() => deviceLog(device), /closed the connection/);
  answer(head(8200), page(1, 1), page(0, 1));
  assertBroken(() => deviceLog(device), /make no sense/);
  answer(head(4100), page(2, 1));
  assertBroken(() => deviceLog(device), /make no sense/);
  answer(head(4100, 4), page(0, 1));
  assertBroken(() => deviceLog(device), /make no sense/);
  answer(head(4099), page(0, 1));
  assertBroken(() => deviceLog(device), /make no sense/);
});

lying("devices that cannot be, or without end", (answer) => {
  const entry = (minor: number, state = 0): Uint8Array =>
    encodeListEntry(0, { count: 1, minor, state, path: "vhd:/x" });
  for (const wrong of [entry(-1), entry(16_384), entry(1, -1)]) {
    answer(wrong);
    assert.deepEqual(inventory(), []);
  }
  answer(entry(5), encodeListEntry(0, { count: 0, minor: -1, state: 0, path: "" }));
  assert.deepEqual(inventory().map(({ minor }) => minor), [5]);
});
