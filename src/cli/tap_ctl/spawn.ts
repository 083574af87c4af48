import type { Command } from "commander";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { tapdiskForDisk } from "../../control/client/shared_tapdisk.ts";
import { printLine } from "../print.ts";
import { applyRunChoices, type RunChoices, runOptions } from "./run_options.ts";

const NOTES = `
With BLKTAP_DISKS_PER_PROCESS=N, a tapdisk that has room for another of N disks answers, and a new one is
started when none has. It keeps the place for 60 s, until a minor is attached. It ends when it has had no
disk for BLKTAP_IDLE_SECONDS (60 by default). SIGTERM does not end it while it has disks, or places that
are kept. Callers share a tapdisk when they run the same version with the same BLKTAP_ variables.

BLKTAP_CPUS, such as 0-3,8, has the processors of new tapdisks, and BLKTAP_NICE their niceness; --cpus and
--nice come before them. 'create', 'restore' and 'recover' use these variables, too. A tapdisk that takes over
after a crash has what 'recover' is given. /etc/blktap/blktap.conf has NAME=VALUE lines for those
that the environment lacks; BLKTAP_CONFIG names another file.`;

/** `tap-ctl spawn`. */
export function defineSpawn(command: Command): Command {
  return runOptions(parentRootOption(command)).addHelpText("after", NOTES).action(
    async (choices: ParentRootChoices & RunChoices) => {
      allowParentRoots(choices);
      applyRunChoices(choices);
      const pid = await tapdiskForDisk();
      printLine(Deno.stdout.isTerminal() ? `tapdisk spawned with pid ${pid}` : `${pid}`);
    },
  );
}
