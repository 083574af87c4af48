import type { Command } from "commander";
import type { Secret } from "../../../ffi/secret.ts";
import { type DeviceAddress, openAndServe } from "../../control/client/client.ts";
import type { KeyChoices } from "./encryption.ts";
import {
  type AbsoluteName,
  deviceChoice,
  type ImageChoices,
  imageOptions,
  openRequest,
} from "./image_options.ts";
import { deviceOptions } from "./options.ts";

/** What `tap-ctl open` loads for keys of encrypted images. */
export interface KeyReader {
  readonly options: (command: Command) => Command;
  readonly read: (choices: KeyChoices) => Secret | undefined;
}

/**
 * The options and the action of `tap-ctl open`. This file does not load the drivers of images.
 *
 * @param keys Without it, the command has no options for keys.
 */
export function defineOpening(
  command: Command,
  { absolute, keys }: { absolute: AbsoluteName; keys?: KeyReader },
): Command {
  const withImage = imageOptions(deviceOptions(command), deviceChoice("none"));
  return (keys?.options(withImage) ?? withImage)
    .action((choices: ImageChoices & KeyChoices & DeviceAddress) => {
      // First of all: this may find that another program has to read the command line.
      const request = openRequest(absolute, choices);
      openAndServe(choices, request, { key: keys?.read(choices) });
    });
}
