/**
 * A tapdisk's side of a guest's ring, in a process of its own: the real code on real descriptors, with
 * one disk, which it serves over NBD, too. The guest's memory is the file `memory` of a folder; its
 * event channel is a socket, `channel`, on which a byte is a notification.
 *
 *     deno run -A ring_server.ts FOLDER IMAGE PAGES RING
 *
 * RING is a `GuestRing` as JSON. It prints a line when it serves, and ends with its standard input.
 *
 * @module
 */
import { EPOLLIN } from "../../../ffi/epoll.ts";
import { closeFile } from "../../../ffi/files.ts";
import { unixConnect } from "../../../ffi/sockets.ts";
import { NbdServer } from "../../../src/frontend/nbd/server.ts";
import type { GuestRing } from "../../../src/frontend/xenblkif/guest.ts";
import { kernelProcessorTimes } from "../../../src/frontend/xenblkif/polling.ts";
import { XenRing } from "../../../src/frontend/xenblkif/xen_ring.ts";
import { driverOfType } from "../../../src/driver/registry.ts";
import { Bell } from "../blktap2/played_driver.ts";
import { RealDevice } from "../real_device.ts";
import { PlayedXen } from "./played_xen.ts";

const MOST_BELL_BYTES = 2048;

const [folder, image, pages, ring] = Deno.args;
const guest: GuestRing = JSON.parse(ring);
const { scheduler, vbd } = new RealDevice(image, {}, driverOfType);
const complain = (message: string): void => console.error(message);

const socket = unixConnect(`${folder}/channel`);
const outward = new Bell(socket, 1);
const inward = new Bell(socket, MOST_BELL_BYTES);
const xen = new PlayedXen({
  openEvent: () => socket,
  signal() {},
  taken: () => void inward.hear(),
  notify: () => outward.ring(),
  closeEvent: closeFile,
});
xen.memory(guest.domain, Number(pages), `${folder}/memory`);
new NbdServer(scheduler, vbd, { newstyle: `${folder}/nbd` }, complain);
const log = { info() {}, warn: complain, error: complain };
new XenRing(
  { scheduler, log, vbd, xen, processors: kernelProcessorTimes },
  guest,
  `${folder}/journal`,
);

scheduler.watch(0, EPOLLIN, { ready: () => scheduler.stop() });
console.log("ready");
await scheduler.run();
Deno.exit(0);
