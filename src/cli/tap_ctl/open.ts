import type { Command } from "commander";
import { encryptionKey, keyOptions } from "./encryption.ts";
import { absoluteImage, imagesHelp } from "./image_names.ts";
import { defineOpening } from "./opening.ts";

/** `tap-ctl open`. */
export function defineOpen(command: Command): Command {
  const keys = { options: keyOptions, read: encryptionKey };
  return defineOpening(command, { absolute: absoluteImage, keys })
    .addHelpText("after", `\n${imagesHelp()}`);
}
