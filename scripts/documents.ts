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
import { manualPage, overviewPage, programCompletion } from "../src/cli/subcommands/documents.ts";
import { ratedCompletion, ratedPage } from "../src/cli/td_rated/documents.ts";
import { tapbackCompletion, tapbackPage } from "../src/cli/tapback/documents.ts";
import { blktapCompletion } from "../src/cli/blktap_completion.ts";
import { webOptions, webPage } from "../src/cli/web/documents.ts";
import { exporterOptions, exporterPage } from "../src/cli/exporter/documents.ts";
import { doctorOptions, doctorPage } from "../src/cli/doctor/documents.ts";
import { CBT_UTIL } from "../src/cli/cbt_util/main.ts";
import { imageToolPage } from "../src/cli/image_tools/documents.ts";
import { IMAGE_TOOLS } from "../src/cli/image_tools/main.ts";
import { TD_UTIL } from "../src/cli/td_util/main.ts";
import { VHD_UTIL } from "../src/cli/vhd_util/main.ts";

async function main(): Promise<void> {
  const folder = Deno.args[0] ?? new URL("../dist/share", import.meta.url).pathname;
  const tapCtl = await loadCommands();
  const completions = "bash-completion/completions";
  const files: Record<string, string> = {
    "man/man8/blktap.8": ".so man8/tapdisk.8\n",
    "man/man8/tap-ctl.8": tapCtlPage(tapCtl),
    "man/man8/tapdisk.8": tapdiskPage(tapdiskCommand()),
    "man/man8/tapback.8": tapbackPage(),
    "man/man8/blktap-web.8": webPage(),
    "man/man8/blktap-exporter.8": exporterPage(),
    "man/man8/blktap-doctor.8": doctorPage(),
    "man/man1/td-rated.1": ratedPage(),
    [`${completions}/blktap`]: blktapCompletion({
      web: webOptions(),
      exporter: exporterOptions(),
      doctor: doctorOptions(),
    }),
    [`${completions}/td-rated`]: ratedCompletion(),
    [`${completions}/tapback`]: tapbackCompletion(),
    [`${completions}/tap-ctl`]: tapCtlCompletion(tapCtl),
  };
  for (const program of [VHD_UTIL, CBT_UTIL, TD_UTIL]) {
    const { name } = program;
    const commands = await Promise.all([...program.subcommands.values()].map((load) => load()));
    files[`man/man1/${name}.1`] = overviewPage(program, commands);
    files[`${completions}/${name}`] = programCompletion(program, commands);
    for (const command of commands) {
      files[`man/man1/${name}-${command.name}.1`] = manualPage(program, command);
    }
  }
  for (const tool of IMAGE_TOOLS) files[`man/man1/${tool.name}.1`] = imageToolPage(tool);
  for (const [name, text] of Object.entries(files)) {
    const path = `${folder}/${name}`;
    Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    Deno.writeTextFileSync(path, text);
  }
  console.log(`Wrote ${Object.keys(files).length} manual pages and completions into ${folder}`);
}

await main();
