import { revertJournal } from "../../vhd/resize/journal_revert.ts";
import { type CommandCall, failedTo, type Subcommand } from "../subcommands/command.ts";

/** `vhd-util revert`. */
export const revertCommand: Subcommand = {
  name: "revert",
  summary: "Undo an interrupted resize or modify",
  synopsis: "-n FILE -j JOURNAL",
  usage: "options: <-n name> <-j journal> [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    {
      name: "j",
      value: "JOURNAL",
      text: "the journal; a journal file is removed when the work is done",
    },
  ],
  example: `
$ vhd-util revert -n disk.vhd -j disk.journal
$ vhd-util check -n disk.vhd
disk.vhd is valid`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const journal = call.required("j");
    try {
      revertJournal(path, { journal });
      return 0;
    } catch (error) {
      return failedTo(call, "opening journal failed: ", error);
    }
  },
};
