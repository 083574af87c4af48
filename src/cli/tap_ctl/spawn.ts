import type { Command } from "commander";
import { allowParentRoots, type ParentRootChoices, parentRootOption } from "../parent_roots.ts";
import { spawnTapdisk } from "../../control/client/spawn.ts";
import { printLine } from "../print.ts";

/** `tap-ctl spawn`. */
export function defineSpawn(command: Command): Command {
  return parentRootOption(command).action(async (choices: ParentRootChoices) => {
    allowParentRoots(choices);
    const pid = await spawnTapdisk();
    printLine(Deno.stdout.isTerminal() ? `tapdisk spawned with pid ${pid}` : `${pid}`);
  });
}
