import type { Command } from "commander";
import { absoluteImage, imagesHelp } from "./image_names.ts";
import { defineOpening } from "./opening.ts";

/** `tap-ctl open`. */
export function defineOpen(command: Command): Command {
  return defineOpening(command, absoluteImage).addHelpText("after", `\n${imagesHelp()}`);
}
