/**
 * A tapdisk's half of a ring in a process of its own: the real engine on real descriptors, and one
 * disk that is a device of the driver that the process behind the folder's socket plays. Takes orders
 * on standard input, a word a line, and answers each with a line of JSON.
 *
 *     deno run -A ring_server.ts FOLDER IMAGE [read-only]
 *
 * @module
 */
import { TextLineStream } from "./text_lines.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { BlockDevice, DeviceHost } from "../../../src/frontend/block_device.ts";
import { blktap2MakerOn } from "../../../src/frontend/blktap2/blktap2_device.ts";
import { osDiskFiles } from "../../../src/queue/disk_files.ts";
import { LibaioBackend } from "../../../src/queue/libaio.ts";
import { EpollScheduler } from "../../../src/scheduler/epoll_scheduler.ts";
import { createVbdContext } from "../../../src/vbd/engine.ts";
import { Vbd } from "../../../src/vbd/vbd.ts";
import { PlayedDriver } from "./played_driver.ts";

const GUARD_BYTES = 1 << 20;
const GUARD = 0xa5;

const [folder, image, access = ""] = Deno.args;
const scheduler = new EpollScheduler();
const log: string[] = [];
const write = (message: string) => void log.push(message);
const context = createVbdContext({
  scheduler,
  backend: new LibaioBackend(scheduler),
  files: osDiskFiles,
  log: write,
});
const vbd = new Vbd(context, 0);
vbd.open(image, { readOnly: access === "read-only" });
const host: DeviceHost = {
  scheduler,
  vbd,
  log: { info: write, warn: write, error: write },
};

// Arenas of sizes of their own lie one behind the other.
const before = new Arena(GUARD_BYTES);
const driver = new PlayedDriver(folder);
let device: BlockDevice | null = null;
blktap2MakerOn(driver).attach(host, null, (error, made) => {
  if (error !== null) throw error;
  device = made;
});
const behind = new Arena(GUARD_BYTES);
before.bytes.fill(GUARD);
behind.bytes.fill(GUARD);

function whole(
  start: (done: (errno: number, message: string) => void) => void,
): Promise<[number, string]> {
  return new Promise((resolve) => start((errno, message) => resolve([errno, message])));
}

async function obey(order: string): Promise<unknown> {
  switch (order) {
    case "log":
      return log;
    case "guards":
      return [before, behind].every(({ bytes }) => bytes.every((byte) => byte === GUARD));
    case "heap":
      (globalThis as unknown as { gc?: () => void }).gc?.();
      return Deno.memoryUsage().heapUsed;
    case "pause":
      return await whole((done) => vbd.pause(done));
    case "resume":
      return await whole((done) => vbd.resume(null, done));
    case "close":
      return await whole((done) => vbd.close(done));
    case "detach":
      return await whole((done) => device?.detach(done));
    case "abandon":
      return device?.abandon() ?? null;
    case "state":
      return [vbd.state, vbd.requests.freeSlots];
    default:
      throw new Error(`Nobody knows what to do for ${order}`);
  }
}

async function takeOrders(): Promise<void> {
  const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream())
    .pipeThrough(new TextLineStream());
  for await (const line of lines) console.log(JSON.stringify(await obey(line)));
  Deno.exit(0);
}

console.log(JSON.stringify("ready"));
takeOrders();
await scheduler.run();
