import type { Command } from "commander";
import { listTapdisks } from "../../control/client/inventory.ts";
import { runsThisProgram, upgradeTapdisk } from "../../control/client/upgrade.ts";
import { printLine } from "../print.ts";
import { parsePid } from "./options.ts";
import { Tries } from "./tries.ts";

const NOTES = `
Starts the tapdisk that belongs to this tap-ctl. It takes over the disks of a running one, with their NBD
clients and the rings of Xen guests: connections stay, and requests wait for a moment, mostly less than
200 ms. Then the old tapdisk ends. With -p, prints the number of the new process. Without -p, all
tapdisks that run another program than this one are replaced, and a line for each has the old and the
new number.

Programs that know the old number go on: its sockets become links to those of the new process, as long as
that one lives. 'tap-ctl list' shows the new number only.

A disk that is paused stays paused. Refused before anything changes, with what to do: disks that have a
secondary image, are named ram:, log: or rbd:, are block devices of blktap2, or are paused while clients
wait for answers; clients whose TLS the kernel does not have both ways; a tapdisk in the foreground. When a
step fails, or the new tapdisk does not get ready in time, it is ended, and the old one serves on.`;

async function upgradeAll(): Promise<void> {
  const tries = new Tries("upgraded", "tapdisks");
  for (const pid of listTapdisks().filter((each) => !runsThisProgram(each))) {
    await tries.each(
      `tap-ctl upgrade: tapdisk ${pid}`,
      () => Promise.resolve().then(() => printLine(`${pid} ${upgradeTapdisk(pid).pid}`)),
    );
  }
  tries.end();
}

/** `tap-ctl upgrade`. */
export function defineUpgrade(command: Command): Command {
  return command
    .option("-p, --pid <pid>", "only this tapdisk, whatever it runs", parsePid)
    .addHelpText("after", NOTES)
    .action(async ({ pid }: { pid?: number }) => {
      if (pid === undefined) return await upgradeAll();
      printLine(`${upgradeTapdisk(pid).pid}`);
    });
}
