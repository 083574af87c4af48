import type { Command } from "commander";
import { writePictureFile } from "../picture_file.ts";
import { printText } from "../print.ts";
import { asksReport, printStatistics, type StatsChoices, statsOptions } from "./stats.ts";

async function stats(choices: StatsChoices): Promise<void> {
  if (!asksReport(choices)) return printStatistics(choices);
  const { statisticsPage } = await import("./stats_report.ts");
  const page = await statisticsPage(choices);
  const { output } = choices;
  if (output === undefined) printText(page.replace(/\n$/, ""));
  else writePictureFile(output, new TextEncoder().encode(page));
}

/** `tap-ctl stats` in the whole program. */
export function defineStatsCommand(command: Command): Command {
  return statsOptions(command).action(stats);
}
