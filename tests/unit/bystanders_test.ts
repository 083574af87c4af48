/** The clients beside hostile ones must notice what they are there for. */
import assert from "node:assert/strict";
import { Handshake } from "../../src/frontend/nbd/handshake.ts";
import { Bystanders } from "../search/fuzz/wire/bystanders.ts";
import { sendAll } from "../search/fuzz/wire/served_tapdisk.ts";
import { waitUntil } from "../support/served.ts";
import { withTempDir } from "../support/tools.ts";

const SIZE = 1 << 20;

/** How a server treats its client's next write. */
interface Treatment {
  delayMs: number;
  isKept: boolean;
}

/** Serves one NBD client from memory. */
async function serve(connection: Deno.Conn, treatment: Treatment): Promise<void> {
  const disk = new Uint8Array(SIZE);
  let bytes = new Uint8Array(0);
  const answers: Uint8Array[] = [];
  const handshake = new Handshake(
    () => ({ sizeBytes: SIZE, flags: 1, hasLog: false }),
    (answer) => answers.push(answer.slice()),
  );
  handshake.start();
  const chunk = new Uint8Array(1 << 17);
  for (;;) {
    for (const answer of answers.splice(0)) await sendAll(connection, answer);
    const got = await connection.read(chunk);
    if (got === null) return;
    bytes = Uint8Array.from([...bytes, ...chunk.subarray(0, got)]);
    if (handshake.stage !== "transmission") {
      bytes = bytes.slice(handshake.consume(new DataView(bytes.buffer)));
    }
    while (bytes.length >= 28 && handshake.stage === "transmission") {
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      const [command, offset, length] = [view.getUint16(6), view.getUint32(20), view.getUint32(24)];
      const size = 28 + (command === 1 ? length : 0);
      if (bytes.length < size) break;
      if (command === 1 && treatment.isKept) disk.set(bytes.subarray(28, size), offset);
      const reply = new Uint8Array(16 + (command === 0 ? length : 0));
      new DataView(reply.buffer).setUint32(0, 0x67446698);
      reply.set(bytes.subarray(8, 16), 8);
      if (command === 0) reply.set(disk.subarray(offset, offset + length), 16);
      bytes = bytes.slice(size);
      const { delayMs } = treatment;
      treatment.delayMs = 0;
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      answers.push(reply);
    }
  }
}

function bystanderTest(
  name: string,
  body: (bystanders: Bystanders, treatment: Treatment) => Promise<void>,
): void {
  Deno.test(`bystanders: ${name}`, () =>
    withTempDir(async (folder) => {
      const listener = Deno.listen({ transport: "unix", path: `${folder}/s` });
      const treatment: Treatment = { delayMs: 0, isKept: true };
      const served = listener.accept().then(async (connection) => {
        await serve(connection, treatment).catch(() => {});
        connection.close();
      });
      const stand = { socket: `${folder}/s`, offsetBytes: 0, lengthBytes: SIZE / 2 };
      const bystanders = await Bystanders.start(Deno.pid, [stand]);
      try {
        await body(bystanders, treatment);
      } finally {
        await bystanders.end();
        await served;
        listener.close();
      }
    }));
}

async function assertNotices(bystanders: Bystanders, what: RegExp): Promise<void> {
  const notices = (): boolean => {
    try {
      bystanders.check();
      return false;
    } catch {
      return true;
    }
  };
  await waitUntil(notices, "they notice");
  assert.throws(() => bystanders.check(), what);
}

bystanderTest(
  "a server that idles while they wait for four seconds",
  async (bystanders, treatment) => {
    treatment.delayMs = 4500;
    await assertNotices(bystanders, /waited \d+ ms/);
  },
);

bystanderTest("a write that is not kept", async (bystanders, treatment) => {
  treatment.isKept = false;
  await assertNotices(bystanders, /wrong data at/);
});

bystanderTest("a server that is slow, but not by three seconds", async (bystanders, treatment) => {
  treatment.delayMs = 400;
  await bystanders.goOn();
  bystanders.check();
});
