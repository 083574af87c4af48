import type { Command } from "commander";
import { type DeviceAddress, openAndServe } from "../../control/client/client.ts";
import { encryptionKey, type KeyChoices, keyOptions } from "./encryption.ts";
import {
  type AbsoluteName,
  deviceChoice,
  type ImageChoices,
  imageOptions,
  openRequest,
} from "./image_options.ts";
import { deviceOptions } from "./options.ts";

/** The options and the action of `tap-ctl open`. This file does not load the drivers of images. */
export function defineOpening(command: Command, absolute: AbsoluteName): Command {
  return keyOptions(imageOptions(deviceOptions(command), deviceChoice("none")))
    .action((choices: ImageChoices & KeyChoices & DeviceAddress) => {
      // First of all: this may find that another program has to read the command line.
      const request = openRequest(absolute, choices);
      const extras = { key: encryptionKey(choices) };
      openAndServe(choices, request, extras);
    });
}
