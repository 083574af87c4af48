import { createImage } from "../../images/create.ts";
import type { CommandCall, Subcommand } from "../subcommands/command.ts";
import { imageOf, makingOf, ON_CEPH_OPTIONS, operandsOf, sizeOf } from "./operands.ts";

/** `td-util create`. */
export const createCommand: Subcommand = {
  name: "create",
  summary: "Make an empty image",
  synopsis: "[--fixed] [--object-size=SIZE] [--data-pool=POOL] IMAGE SIZE",
  usage: "td-util create [--fixed] [--object-size=SIZE] [--data-pool=POOL] IMAGE SIZE",
  options: [
    { name: "fixed", text: "make a fixed VHD, or a QCOW with its table" },
    ...ON_CEPH_OPTIONS,
  ],
  operands: true,
  example: `
$ td-util create qcow:disk.qcow 10Gi
$ td-util create --fixed vhd:disk.vhd 512Mi`,

  run(call: CommandCall): number {
    const [image, size] = operandsOf(call, "IMAGE", "SIZE");
    const options = { sizeBytes: sizeOf(size), fixed: call.has("fixed"), onCeph: makingOf(call) };
    createImage(imageOf(image), options);
    return 0;
  },
};
