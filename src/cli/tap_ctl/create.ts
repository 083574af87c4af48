import type { Command } from "commander";
import { createDevice } from "../../control/lifecycle.ts";
import { minorPath } from "../../control/paths.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import { absoluteImage, type ImageChoices, imageOptions, imageRequest } from "./options.ts";

/** `tap-ctl create`. */
export function defineCreate(command: Command): Command {
  return keyOptions(imageOptions(command))
    .option("-d, --device <name>", "accepted and ignored: the minor's path is the name")
    .addHelpText("after", "\nPrints the path of the device's minor.")
    .action(async (choices: ImageChoices & KeyChoices) => {
      const options = { ...imageRequest(choices), encryptionKey: await encryptionKey(choices) };
      const device = await createDevice(absoluteImage(choices.args), options);
      console.log(minorPath(device.minor));
    });
}
