import type { Command } from "commander";
import { FileGatherer } from "../../observe/files.ts";
import { Gatherer } from "../../observe/gather.ts";
import { metricsText } from "../../observe/prometheus.ts";
import { printText } from "../print.ts";

/** `tap-ctl metrics`. */
export function defineMetrics(command: Command): Command {
  return command
    .addHelpText(
      "after",
      "\nOf all disks of this machine, as 'blktap exporter' serves them. A tapdisk that does not answer within\n" +
        "a second has blktap_tapdisk_up 0.",
    )
    .action(async () => {
      const sample = await new Gatherer().gather();
      printText(metricsText(sample, await new FileGatherer().gather(sample.disks)).trimEnd());
    });
}
