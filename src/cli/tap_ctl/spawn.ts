import type { Command } from "commander";
import { spawnTapdisk } from "../../control/client/spawn.ts";
import { printLine } from "../print.ts";

/** `tap-ctl spawn`. */
export function defineSpawn(command: Command): Command {
  return command.action(async () => {
    const pid = await spawnTapdisk();
    printLine(Deno.stdout.isTerminal() ? `tapdisk spawned with pid ${pid}` : `${pid}`);
  });
}
