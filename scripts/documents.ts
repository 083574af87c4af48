/**
 * Writes the manual pages and the completions for bash into `dist/share` or another folder:
 *
 *     deno run -A scripts/documents.ts [FOLDER]
 *
 * @module
 */

import { tapCtlCompletion, tapCtlPage, tapdiskPage } from "../src/cli/tap_ctl/documents.ts";
import { loadCommands } from "../src/cli/tap_ctl/main.ts";
import { tapdiskCommand } from "../src/cli/tapdisk/main.ts";
import { manualPage, overviewPage, vhdUtilCompletion } from "../src/cli/vhd_util/documents.ts";
import { SUBCOMMANDS } from "../src/cli/vhd_util/main.ts";

async function main(): Promise<void> {
  const folder = Deno.args[0] ?? new URL("../dist/share", import.meta.url).pathname;
  const subcommands = await Promise.all([...SUBCOMMANDS.values()].map((load) => load()));
  const tapCtl = await loadCommands();
  const completions = "bash-completion/completions";
  const files: Record<string, string> = {
    "man/man1/vhd-util.1": overviewPage(subcommands),
    "man/man8/blktap.8": ".so man8/tapdisk.8\n",
    "man/man8/tap-ctl.8": tapCtlPage(tapCtl),
    "man/man8/tapdisk.8": tapdiskPage(tapdiskCommand()),
    [`${completions}/vhd-util`]: vhdUtilCompletion(subcommands),
    [`${completions}/tap-ctl`]: tapCtlCompletion(tapCtl),
  };
  for (const command of subcommands) {
    files[`man/man1/vhd-util-${command.name}.1`] = manualPage(command);
  }
  for (const [name, text] of Object.entries(files)) {
    const path = `${folder}/${name}`;
    Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    Deno.writeTextFileSync(path, text);
  }
  console.log(`Wrote ${Object.keys(files).length} manual pages and completions into ${folder}`);
}

await main();
