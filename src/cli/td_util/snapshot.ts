import { snapshotImage } from "../../images/change.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, operandsOf } from "./operands.ts";

/** `td-util snapshot`. */
export const snapshotCommand: Subcommand = {
  name: "snapshot",
  summary: "Make an image that holds the later writes of another",
  synopsis: "IMAGE NEW",
  usage: "td-util snapshot IMAGE NEW",
  options: [],
  operands: true,
  followsParents: true,
  example: `
$ td-util snapshot raw:base.raw qcow:today.qcow
$ td-util snapshot vhd:base.vhd vhd:today.vhd
$ td-util snapshot rbd:vms/golden@v1 vhd:today.vhd`,

  run(call: CommandCall): number {
    const [parent, child] = operandsOf(call, "IMAGE", "NEW").map(imageOf);
    snapshotImage(parent, child);
    return 0;
  },
};
