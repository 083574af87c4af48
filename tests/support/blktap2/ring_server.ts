/**
 * The tapdisk's side of a ring, in a separate process: the real code on real descriptors, with one
 * disk whose device belongs to the simulated driver behind the socket of a folder. It reads orders
 * from standard input, one on each line, and answers each with a line of JSON.
 *
 *     deno run -A ring_server.ts FOLDER IMAGE [read-only]
 *
 * @module
 */
import type { Done } from "../../../ffi/errno.ts";
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { Arena } from "../../../ffi/memory.ts";
import type { BlockDevice, DeviceHost } from "../../../src/frontend/block_device.ts";
import { blktap2MakerOn } from "../../../src/frontend/blktap2/blktap2_device.ts";
import { osDiskFiles } from "../../../src/queue/disk_files.ts";
import { LibaioBackend } from "../../../src/queue/libaio.ts";
import { EpollScheduler } from "../../../src/scheduler/epoll_scheduler.ts";
import { createVbdContext } from "../../../src/vbd/vbd_context.ts";
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

// Arenas of new sizes are adjacent.
const before = new Arena(GUARD_BYTES);
const driver = new PlayedDriver(folder);
let device: BlockDevice | null = null;
const maker = blktap2MakerOn(driver);
maker.attach(host, null, (error, made) => {
  if (error !== null) throw error;
  device = made;
});
const behind = new Arena(GUARD_BYTES);
before.bytes.fill(GUARD);
behind.bytes.fill(GUARD);

function answer(value: unknown): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${JSON.stringify(value)}\n`));
}

const answerDone: Done = (error) => answer([error?.errno ?? 0, error?.message ?? ""]);

function obey(order: string): void {
  switch (order) {
    case "log":
      return answer(log);
    case "guards":
      return answer(
        [before, behind].every(({ bytes }) => bytes.every((byte) => byte === GUARD)),
      );
    case "heap":
      (globalThis as unknown as { gc?: () => void }).gc?.();
      return answer(Deno.memoryUsage().heapUsed);
    case "pause":
      return vbd.pause(answerDone);
    case "resume":
      return vbd.resume(null, answerDone);
    case "close":
      return vbd.close(answerDone);
    case "detach":
      return device?.detach((error) => answer([error?.errno ?? 0, error?.message ?? ""]));
    case "abandon":
      device?.abandon();
      return answer(null);
    case "gone":
      return answer(device?.gone);
    case "take over":
      return maker.attach(
        host,
        "/dev/xen/blktap-2/tapdev9",
        (error, made) => answer([error?.errno ?? 0, error?.message ?? "", made]),
      );
    case "state":
      return answer([vbd.state, vbd.requests.freeSlots]);
    default:
      throw new Error(`Unknown order ${order}`);
  }
}

// The loop reads the orders, because the event loop of the runtime has few turns.
const input = new Uint8Array(1024);
let text = "";
scheduler.watch(0, EPOLLIN, {
  ready(): void {
    const got = Deno.stdin.readSync(input);
    if (got === null) Deno.exit(0);
    const lines = (text + new TextDecoder().decode(input.subarray(0, got))).split("\n");
    text = lines.pop() ?? "";
    for (const line of lines) obey(line);
  },
});
answer("ready");
await scheduler.run();
