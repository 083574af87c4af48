import type { Command } from "commander";
import { type DeviceAddress, openImage } from "../../control/client/client.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import {
  absoluteImage,
  deviceChoice,
  deviceOptions,
  type ImageChoices,
  imageOptions,
  imageRequest,
} from "./options.ts";

/** `tap-ctl open`. */
export function defineOpen(command: Command): Command {
  return keyOptions(imageOptions(deviceOptions(command), deviceChoice("none")))
    .action(async (choices: ImageChoices & KeyChoices & DeviceAddress) => {
      const options = { ...imageRequest(choices), encryptionKey: await encryptionKey(choices) };
      openImage(choices, absoluteImage(choices.args), options);
    });
}
