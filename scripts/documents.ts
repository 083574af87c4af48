/**
 * Writes the manual pages and bash's completion of vhd-util into `dist/share`, or the folder named:
 *
 *     deno run -A scripts/documents.ts [FOLDER]
 *
 * @module
 */

import { bashCompletion, manualPage, overviewPage } from "../src/cli/vhd_util/documents.ts";
import { SUBCOMMANDS } from "../src/cli/vhd_util/main.ts";

async function main(): Promise<void> {
  const folder = Deno.args[0] ?? new URL("../dist/share", import.meta.url).pathname;
  const commands = await Promise.all([...SUBCOMMANDS.values()].map((load) => load()));
  const manuals = `${folder}/man/man1`;
  const completions = `${folder}/bash-completion/completions`;
  Deno.mkdirSync(manuals, { recursive: true });
  Deno.mkdirSync(completions, { recursive: true });
  Deno.writeTextFileSync(`${manuals}/vhd-util.1`, overviewPage(commands));
  for (const command of commands) {
    Deno.writeTextFileSync(`${manuals}/vhd-util-${command.name}.1`, manualPage(command));
  }
  Deno.writeTextFileSync(`${completions}/vhd-util`, bashCompletion(commands));
  console.log(`Wrote ${commands.length + 1} manual pages and the completion into ${folder}`);
}

await main();
