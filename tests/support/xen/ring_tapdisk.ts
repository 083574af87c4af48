/**
 * A tapdisk in a process of its own, all of it real but for Xen: the guest's memory is the file `memory` of
 * a folder, and its event channel a connection to the socket `channel` there, on which bytes are
 * notifications. It prints a line when it serves.
 *
 *     deno run -A ring_tapdisk.ts FOLDER DOMAIN PAGES HOW [… --take-over PID]
 *
 * HOW is "well", or "unmapped" for one that cannot map pages of the guest.
 *
 * @module
 */
import { closeFile } from "../../../ffi/files.ts";
import { Arena } from "../../../ffi/memory.ts";
import { receiveAt, sendAt, unixConnect } from "../../../ffi/sockets.ts";
import { openLog } from "../../../src/cli/tapdisk/logging.ts";
import { startTapdisk } from "../../../src/cli/tapdisk/daemon.ts";
import { TAKE_OVER_ARGUMENT } from "../../../src/control/handover/successor.ts";
import { PlayedXen } from "./played_xen.ts";

const BYTES = 4096;

const [folder, domain, pages, how, ...others] = Deno.args;
const bytes = new Arena(BYTES);
const xen = new PlayedXen({
  openEvent: () => unixConnect(`${folder}/channel`),
  signal() {},
  taken: (fd) => void receiveAt(fd, bytes.address, BYTES),
  notify: (fd) => void sendAt(fd, bytes.address, 1),
  closeEvent: closeFile,
  dropEvent: closeFile,
});
if (how === "well") xen.memory(Number(domain), Number(pages), `${folder}/memory`);
const takeOver = others.includes(TAKE_OVER_ARGUMENT) ? Number(others.at(-1)) : undefined;
const log = openLog({ onStandardError: false });
const tapdisk = startTapdisk(log, { inForeground: false, shared: false, takeOver, xen });
console.log("ready");
await tapdisk.run();
log.close();
Deno.exit(0);
