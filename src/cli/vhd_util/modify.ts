import { changeParent, killData, setPhysicalSize } from "../../vhd/modify.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { warnOfConfinement } from "./confined.ts";
import { type CommandCall, failedTo, type Subcommand, UsageError } from "../subcommands/command.ts";

/** `vhd-util modify`. */
export const modifyCommand: Subcommand = {
  name: "modify",
  summary: "Change an image's parent or physical size, or discard its data",
  synopsis: "-n FILE [-z] [-s BYTES] [-p PARENT [-m] [-j JOURNAL]]",
  usage: "*** Dangerous operations, use with care ***\n" +
    "options: <-n name> [-p NEW_PARENT set parent [-m raw]] " +
    "[-s NEW_SIZE set size] [-z zero (kill data)] [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "p", value: "PARENT", text: "set this parent; the image keeps its own data" },
    { name: "m", text: "the new parent is a raw image" },
    {
      name: "j",
      value: "JOURNAL",
      text: "with -p: a journal, which a longer parent name may need",
    },
    {
      name: "s",
      value: "BYTES",
      text: "move the end of the image here, before its volume is reduced",
    },
    { name: "z", text: "discard all data of the image" },
  ],
  followsParents: true,
  example: `
$ vhd-util modify -n today.vhd -p monday.vhd
$ vhd-util query -n today.vhd -p
/images/monday.vhd`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const size = call.number("s");
    const parent = call.value("p");
    const journal = call.value("j") ?? undefined;
    if (journal !== undefined && parent === null) throw new UsageError("-j needs -p");
    try {
      openVhd(path).close();
    } catch (error) {
      return failedTo(call, `error opening ${path}: `, error);
    }
    const attempt = (failure: string, change: () => void): number => {
      try {
        change();
        return 0;
      } catch (error) {
        return failedTo(call, failure, error);
      }
    };
    let status = 0;
    if (call.has("z")) status = attempt("failed to zero VHD: ", () => killData(path));
    if (status === 0 && size !== null) {
      const failure = `failed to set physical size to ${size}: `;
      status = attempt(failure, () => setPhysicalSize(path, { sizeBytes: size }));
    }
    if (status === 0 && parent !== null) {
      const options = { parent, rawParent: call.has("m"), journal };
      status = attempt(
        `failed to set parent to '${parent}': `,
        () => {
          const isServed = changeParent(path, options);
          warnOfConfinement(call, path);
          if (isServed) {
            call.output.printError(
              `A tapdisk serves ${path}: pause and resume its disk, which uses the old parent until then`,
            );
          }
        },
      );
    }
    return status;
  },
};
