/**
 * What drivers and the NBD server put on the heap for a request: nothing, but for what the runtime
 * makes of a call now and then.
 *
 * @module
 */
import assert from "node:assert/strict";
import { osStorage } from "../../src/vhd/storage.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { withTempDir } from "../support/tools.ts";

const MIB = 1 << 20;
/** Bytes of a request on average. An object of its own has at least 16, a number on the heap 12. */
const MOST_ASKED_BYTES = 2;
const MOST_SERVED_BYTES = 4;

function start(role: "serve" | "ask", what: string): Deno.ChildProcess {
  const program = new URL("./device_requests.ts", import.meta.url).pathname;
  const args = ["run", "-A", program, role, what];
  return new Deno.Command(Deno.execPath(), { args, stdout: "piped", stderr: "inherit" }).spawn();
}

/** Sees to it that there was little, but for the loop's turns, each of which has many requests. */
function assertLittle(line: string, mostBytes: number): void {
  const { requests, bytes }: { requests: number; bytes: Record<string, number> } = JSON.parse(line);
  assert.ok(requests >= 80_000, `${requests} requests`);
  const parts = Object.entries(bytes).filter(([name]) => !name.includes("src/scheduler/"));
  const each = parts.reduce((sum, [, count]) => sum + count, 0) / requests;
  const most = parts.toSorted(([, a], [, b]) => b - a).slice(0, 5);
  assert.ok(each <= mostBytes, `${each} bytes a request: ${JSON.stringify(most)}`);
}

async function assertAsksLittle(image: string): Promise<void> {
  const { stdout, success } = await start("ask", image).output();
  assert.ok(success);
  assertLittle(new TextDecoder().decode(stdout), MOST_ASKED_BYTES);
}

for (const filter of ["bc:4:", "log:bc:4:"]) {
  Deno.test(`requests to ${filter}vhd: allocate nothing`, () =>
    withTempDir(async (folder) => {
      createDynamic(`${folder}/a.vhd`, { storage: osStorage, sizeBytes: 16 * MIB });
      await assertAsksLittle(`${filter}vhd:${folder}/a.vhd`);
    }));
}

Deno.test("requests to ram: allocate nothing", () => assertAsksLittle("ram:16"));

Deno.test("requests by NBD allocate nothing in the driver and in the server", () =>
  withTempDir(async (folder) => {
    const server = start("serve", `${folder}/n.sock`);
    const served = server.stdout.pipeThrough(new TextDecoderStream()).getReader();
    assert.match((await served.read()).value ?? "", /^ready/);
    await assertAsksLittle(`nbd:unix:${folder}/n.sock`);
    let text = "";
    for (let more = await served.read(); !more.done; more = await served.read()) text += more.value;
    assert.ok((await server.status).success);
    assertLittle(text, MOST_SERVED_BYTES);
  }));
