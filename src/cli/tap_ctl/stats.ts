import { type Command, InvalidArgumentError } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { deviceStatistics } from "../../control/client/questions.ts";
import { deviceOptions } from "./options.ts";
import { NotPlain } from "../plain_command.ts";
import { printText } from "../print.ts";
import { plainJson } from "../../log/plain_text.ts";

/** What `tap-ctl stats` is asked for. */
export interface StatsChoices extends DeviceAddress {
  readonly html?: boolean;
  readonly output?: string;
}

function htmlName(text: string): string {
  if (/\.html?$/i.test(text)) return text;
  throw new InvalidArgumentError("Its name must end in .html.");
}

/** The options of `tap-ctl stats`. */
export function statsOptions(command: Command): Command {
  return deviceOptions(command)
    .option("--html", "print a report as HTML, which is one file and needs no network")
    .option("-o, --output <file>", "write that report to this file", htmlName)
    .addHelpText("after", "\nPrints JSON on one line. Images are listed from leaf to root.");
}

/** Whether a report is asked for, and not the statistics themselves. */
export function asksReport({ html, output }: StatsChoices): boolean {
  return html === true || output !== undefined;
}

/** Prints the statistics of a disk as its tapdisk made them. */
export function printStatistics(device: DeviceAddress): void {
  printText(`${plainJson(deviceStatistics(device))}\n`);
}

/** `tap-ctl stats` as a quick call: a report is left to the whole program. */
export function defineStats(command: Command): Command {
  return statsOptions(command).action((choices: StatsChoices) => {
    if (asksReport(choices)) throw new NotPlain("--html");
    printStatistics(choices);
  });
}
