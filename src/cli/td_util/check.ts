import { Errno } from "../../../ffi/errno.ts";
import { checkChain, type ImageCheck } from "../../images/check.ts";
import { jsonText } from "../json.ts";
import { openProgress } from "../progress.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, JSON_OPTION, operandsOf, QUIET_OPTION } from "./operands.ts";

/** `td-util check`. */
export const checkCommand: Subcommand = {
  name: "check",
  summary: "Look for faults of an image",
  synopsis: "[--chain] [--repair] [--json] [--quiet] IMAGE",
  usage: "td-util check [--chain] [--repair] [--json] [--quiet] IMAGE",
  options: [
    { name: "chain", text: "also check the images below it" },
    { name: "repair", text: "mend what can be mended, and check again" },
    JSON_OPTION,
    QUIET_OPTION,
  ],
  operands: true,
  followsParents: true,
  example: `
$ td-util check vhd:disk.vhd
vhd:disk.vhd is valid`,

  async run(call: CommandCall): Promise<number> {
    const [image] = operandsOf(call, "IMAGE");
    const progress = call.has("quiet") ? null : await openProgress("check");
    const checks = await checkChain(imageOf(image), {
      repair: call.has("repair"),
      chain: call.has("chain"),
      onProgress: progress?.update,
    }).finally(() => progress?.stop());
    if (call.has("json")) call.output.print(jsonText(checks));
    else for (const line of checks.flatMap(linesOf)) call.output.printLine(line);
    return checks.every(({ valid }) => valid) ? 0 : Errno.EINVAL;
  },
};

function linesOf({ name, valid, findings, repairs }: ImageCheck): string[] {
  return [
    ...repairs.map((repair) => `repaired: ${repair}`),
    ...findings.map(({ severity, message }) => `${severity}: ${message}`),
    `${name} is ${valid ? "valid" : "damaged"}`,
  ];
}
