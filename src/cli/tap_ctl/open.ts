import type { Command } from "commander";
import { type DeviceAddress, openImage } from "../../control/client/client.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import type { ForeignOptions } from "../../control/protocol/open_request.ts";
import {
  deviceChoice,
  deviceOptions,
  foreignOptions,
  type ImageChoices,
  imageOptions,
  openRequest,
} from "./options.ts";

/** `tap-ctl open`. */
export function defineOpen(command: Command): Command {
  return keyOptions(imageOptions(deviceOptions(command), deviceChoice("none")))
    .action((choices: ImageChoices & ForeignOptions & KeyChoices & DeviceAddress) => {
      const extras = { key: encryptionKey(choices), foreign: foreignOptions(choices) };
      openImage(choices, openRequest(choices), extras);
    });
}
