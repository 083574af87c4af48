import { isFieldValue, setField } from "../../vhd/set_fields.ts";
import { type CommandCall, failedTo, type Subcommand, UsageError } from "../subcommands/command.ts";

const INTEGER = /^[-+]?[0-9]+$/;

/** `vhd-util set`. */
export const setCommand: Subcommand = {
  name: "set",
  summary: "Set a field of an image",
  synopsis: "-n FILE -f FIELD -v VALUE",
  usage: "options: <-n name> <-f field> <-v value> [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    {
      name: "f",
      value: "FIELD",
      text: "hidden (not a disk for users) or marker (a byte for any use)",
    },
    { name: "v", value: "VALUE", text: "0 or 1 for hidden, 0 to 255 for marker" },
  ],
  example: `
$ vhd-util set -n disk.vhd -f hidden -v 1
$ vhd-util query -n disk.vhd -f
hidden: 1`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const field = call.required("f");
    const text = call.required("v");
    const refuse = (problem: string): UsageError => {
      call.output.printLine(`${problem}`);
      return new UsageError(null);
    };
    if (field !== "hidden" && field !== "marker") {
      throw refuse(field.length >= 25 ? "invalid field" : `invalid field ${field}`);
    }
    const value = Number(text);
    if (!INTEGER.test(text) || !isFieldValue(field, value)) throw refuse(`invalid value ${text}`);
    try {
      setField(path, { field, value });
      return 0;
    } catch (error) {
      return failedTo(call, `error opening ${path}: `, error);
    }
  },
};
