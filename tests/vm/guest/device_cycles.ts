/**
 * Creates and removes block devices in one process. Fails when a resource is left over, and prints
 * it as `NAME BEFORE AFTER` in lines. Must run in the machine.
 *
 *     deno run -A --v8-flags=--expose-gc device_cycles.ts netlink|ioctl|ublk CONNECTIONS CYCLES
 *
 * Each device is written to through the kernel before it is removed.
 *
 * @module
 */

import { NbdDeviceMaker } from "../../../src/frontend/nbd_device/nbd_device.ts";
import { ublkMaker } from "../../../src/frontend/ublk/ublk_maker.ts";
import type { BlockDevice } from "../../../src/frontend/block_device.ts";
import { osDiskFiles } from "../../../src/queue/disk_files.ts";
import { LibaioBackend } from "../../../src/queue/libaio.ts";
import { EpollScheduler } from "../../../src/scheduler/epoll_scheduler.ts";
import { createVbdContext } from "../../../src/vbd/vbd_context.ts";
import { Vbd } from "../../../src/vbd/vbd.ts";

const NAMES = ["descriptors", "mappings", "residentPages"];
/**
 * The runtime keeps some memory and some more mappings: 16 MiB and 20 mappings after 30 devices are
 * not a leak, because a device has at least one mapping, and more than 36 MiB.
 */
const MOST_LEFT = [0, 20, 4096];

const WARM_UP_CYCLES = 60;

const [way, connections, cycles] = Deno.args;
const scheduler = new EpollScheduler();
const log = (message: string): void => console.error(message);
const context = createVbdContext({
  scheduler,
  backend: new LibaioBackend(scheduler),
  files: osDiskFiles,
  log,
});
const maker = way === "ublk" ? ublkMaker : new NbdDeviceMaker(() => ({
  interface: way === "ioctl" ? "ioctl" : "netlink",
  connections: Number(connections),
}));

function attach(vbd: Vbd): Promise<BlockDevice> {
  const host = { scheduler, vbd, log: { info: log, warn: log, error: log } };
  return new Promise((resolve, reject) =>
    maker.attach(host, null, (error, device) => {
      if (device !== null) resolve(device);
      else reject(error);
    })
  );
}

function detach(device: BlockDevice): Promise<void> {
  return new Promise((resolve, reject) =>
    device.detach((error) => error === null ? resolve() : reject(error))
  );
}

/** Another process writes to the device, because this process serves it. */
async function use(node: string): Promise<void> {
  const args = ["if=/dev/urandom", `of=${node}`, "bs=4k", "count=8", "oflag=direct"];
  const { success } = await new Deno.Command("dd", { args, stderr: "inherit" }).output();
  if (!success) throw new Error(`Cannot write to ${node}`);
}

async function cycle(): Promise<void> {
  const vbd = new Vbd(context, 0);
  vbd.open("ram:64");
  const device = await attach(vbd);
  await use(device.node);
  await detach(device);
  await new Promise<void>((resolve) => vbd.close(() => resolve()));
  vbd.destroy();
}

/** A garbage collection by the runtime; without it, garbage would count as left over. */
const { gc } = globalThis as { gc?: () => void };
if (gc === undefined) throw new Error("This needs --v8-flags=--expose-gc");

/** Kernel resources of a process: descriptors, mappings, resident memory in pages. */
function possessions(): [descriptors: number, mappings: number, residentPages: number] {
  gc?.();
  const descriptors = Array.from(Deno.readDirSync("/proc/self/fd")).length;
  const mappings = Deno.readTextFileSync("/proc/self/maps").split("\n").length;
  const pages = Number(Deno.readTextFileSync("/proc/self/statm").split(" ")[1]);
  return [descriptors, mappings, pages];
}

async function main(): Promise<number> {
  // The runtime's own memory grows for the first devices, and then no more.
  for (let i = 0; i < WARM_UP_CYCLES; i++) await cycle();
  const before = possessions();
  for (let i = 0; i < Number(cycles); i++) await cycle();
  const after = possessions();
  NAMES.forEach((name, i) => console.log(`${name} ${before[i]} ${after[i]}`));
  return after.every((count, i) => count - before[i] <= MOST_LEFT[i]) ? 0 : 1;
}

// While `main` is pending, the runtime's event loop has turns often.
scheduler.settle(
  main().catch((error) => {
    console.error(error);
    return 1;
  }),
  (status) => Deno.exit(status),
);
await scheduler.run();
