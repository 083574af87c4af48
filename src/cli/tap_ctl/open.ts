import type { Command } from "commander";
import { type DeviceAddress, openAndServe } from "../../control/client/client.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import { deviceChoice, type ImageChoices, imageOptions, openRequest } from "./image_options.ts";
import { deviceOptions } from "./options.ts";

/** `tap-ctl open`. */
export function defineOpen(command: Command): Command {
  return keyOptions(imageOptions(deviceOptions(command), deviceChoice("none")))
    .action((choices: ImageChoices & KeyChoices & DeviceAddress) => {
      const extras = { key: encryptionKey(choices) };
      openAndServe(choices, openRequest(choices), extras);
    });
}
