import { repairImage } from "../../vhd/repair.ts";
import { type CommandCall, failedTo, type Subcommand } from "../subcommands/command.ts";

/** `vhd-util repair`. */
export const repairCommand: Subcommand = {
  name: "repair",
  summary: "Rebuild metadata from the rest of an image; nothing is guessed",
  synopsis: "-n FILE [-b]",
  usage: "options: <-n name> <-b use the back-up footer> [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "b", text: "use the backup footer even if the one at the end is good" },
  ],
  example: `
$ vhd-util repair -n disk.vhd
wrote the footer from the backup footer
$ vhd-util check -n disk.vhd
disk.vhd is valid`,

  run(call: CommandCall): number {
    const path = call.required("n");
    try {
      for (const line of repairImage(path, { useBackupFooter: call.has("b") })) {
        call.output.printLine(`${line}`);
      }
      return 0;
    } catch (error) {
      return failedTo(call, `error opening ${path}: `, error);
    }
  },
};
