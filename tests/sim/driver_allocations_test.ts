/**
 * Heap allocations of drivers and the NBD server for a request: none, except occasional allocations
 * of the runtime.
 *
 * @module
 */
import assert from "node:assert/strict";
import { osStorage } from "../../src/files/storage.ts";
import { createQcow } from "../../src/qcow/create.ts";
import { createQcow2 } from "../../src/qcow2/create.ts";
import { createDynamic } from "../../src/vhd/create.ts";
import { snapshot } from "../../src/vhd/snapshot.ts";
import { withTempDir } from "../support/tools.ts";

const MIB = 1 << 20;
/**
 * Permitted average bytes for a request. An object has at least 16 bytes, a number on the heap 12.
 */
const MOST_BYTES = 4;
/**
 * On a busy machine code is compiled late, and uncompiled code allocates. That is not a failure.
 */
const ATTEMPTS = 3;

type Role = "serve" | "ask" | "limit" | "valve" | "mirror";

function start(role: Role, ...what: string[]): Deno.ChildProcess {
  const program = new URL("./device_requests.ts", import.meta.url).pathname;
  const args = ["run", "-A", program, role, ...what];
  return new Deno.Command(Deno.execPath(), { args, stdout: "piped", stderr: "inherit" }).spawn();
}

/**
 * Bytes for a request, without those of loop turns, each of which has many requests; and the
 * largest source.
 */
function bytesOfRequest(line: string): { each: number; most: string } {
  const { requests, bytes }: { requests: number; bytes: Record<string, number> } = JSON.parse(line);
  assert.ok(requests >= 80_000, `${requests} requests`);
  // The bridge is another process's.
  const parts = Object.entries(bytes)
    .filter(([name]) => !name.includes("src/scheduler/") && !name.includes("src/rated/"));
  const each = parts.reduce((sum, [, count]) => sum + count, 0) / requests;
  const most = parts.toSorted(([, a], [, b]) => b - a).slice(0, 5);
  return { each, most: JSON.stringify(most) };
}

/** Runs processes that print their allocations, until all of them allocated little. */
async function assertLittle(run: () => Promise<string[]>): Promise<void> {
  for (let attempt = 1;; attempt++) {
    const worst = (await run()).map(bytesOfRequest).toSorted((a, b) => b.each - a.each)[0];
    if (worst.each <= MOST_BYTES) return;
    if (attempt === ATTEMPTS) assert.fail(`${worst.each} bytes a request: ${worst.most}`);
  }
}

async function ask(image: string, role: Role = "ask", ...more: string[]): Promise<string> {
  const { stdout, success } = await start(role, image, ...more).output();
  assert.ok(success);
  return new TextDecoder().decode(stdout);
}

for (const filter of ["bc:4:", "log:bc:4:"]) {
  Deno.test(`requests to ${filter}vhd: allocate nothing`, () =>
    withTempDir(async (folder) => {
      createDynamic(`${folder}/a.vhd`, { storage: osStorage, sizeBytes: 16 * MIB });
      await assertLittle(async () => [await ask(`${filter}vhd:${folder}/a.vhd`)]);
    }));
}

Deno.test("requests to qcow2: allocate nothing", () =>
  withTempDir(async (folder) => {
    createQcow2(`${folder}/a.qcow2`, { storage: osStorage, sizeBytes: 16 * MIB });
    await assertLittle(async () => [await ask(`qcow2:${folder}/a.qcow2`)]);
  }));

Deno.test("requests to qcow: allocate nothing, alone and on a raw image", () =>
  withTempDir(async (folder) => {
    createQcow(osStorage, { path: `${folder}/a.qcow` }, { sizeBytes: 16 * MIB });
    await assertLittle(async () => [await ask(`qcow:${folder}/a.qcow`)]);
    Deno.writeFileSync(`${folder}/base.raw`, new Uint8Array(16 * MIB).fill(1));
    const options = { sizeBytes: 16 * MIB, backingName: "base.raw" };
    createQcow(osStorage, { path: `${folder}/b.qcow` }, options);
    await assertLittle(async () => [await ask(`qcow:raw:${folder}/b.qcow`)]);
  }));

Deno.test("requests to ram: allocate nothing", () =>
  assertLittle(async () => [await ask("ram:16")]));

Deno.test("requests to a disk with a secondary image beside it allocate nothing", () =>
  assertLittle(async () => [await ask("ram:16", "mirror", "ram:16")]));

Deno.test("requests to a disk with a local cache and a secondary image below it do not", () =>
  withTempDir(async (folder) => {
    const [base, leaf, second] = ["base", "leaf", "second"].map((name) => `${folder}/${name}`);
    createDynamic(base, { storage: osStorage, sizeBytes: 16 * MIB });
    for (const path of [leaf, second]) snapshot(path, { parent: base, keepEmptyParent: true });
    await assertLittle(async () => [await ask(`vhd:${leaf}`, "mirror", `vhd:${second}`)]);
  }));

Deno.test("requests that wait for rate limits allocate nothing", () =>
  assertLittle(async () => [await ask("ram:16", "limit")]));

Deno.test("requests behind a valve allocate nothing", () =>
  assertLittle(async () => [await ask("ram:16", "valve")]));

Deno.test("requests by NBD allocate nothing in the driver and in the server", () =>
  withTempDir((folder) =>
    assertLittle(async () => {
      const server = start("serve", `${folder}/n.sock`);
      const served = server.stdout.pipeThrough(new TextDecoderStream()).getReader();
      assert.match((await served.read()).value ?? "", /^ready/);
      const asked = await ask(`nbd:unix:${folder}/n.sock`);
      let text = "";
      for (let more = await served.read(); !more.done; more = await served.read()) {
        text += more.value;
      }
      assert.ok((await server.status).success);
      return [asked, text];
    })
  ));
