import type { Command } from "commander";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { type DeviceAddress, openImage } from "../../control/client.ts";
import {
  absoluteImage,
  deviceOptions,
  type ImageChoices,
  imageOptions,
  imageRequest,
} from "./options.ts";

/** AES-XTS takes two keys of 128 or of 256 bits. */
const KEY_LENGTHS_BYTES = [32, 64];

async function readKey(): Promise<Uint8Array> {
  const key = new Uint8Array(await new Response(Deno.stdin.readable).arrayBuffer());
  if (KEY_LENGTHS_BYTES.includes(key.length)) return key;
  const lengths = `standard input holds ${key.length} bytes; 32 or 64 are wanted`;
  throw new SystemError(Errno.EINVAL, `Cannot use the encryption key (${lengths})`);
}

/** `tap-ctl open`. */
export function defineOpen(command: Command): Command {
  return imageOptions(deviceOptions(command))
    .option("-E, --encrypted", "read the key of an encrypted image from standard input")
    .action(async (choices: ImageChoices & DeviceAddress & { encrypted?: boolean }) => {
      const encryptionKey = choices.encrypted ? await readKey() : undefined;
      const options = { ...imageRequest(choices), encryptionKey };
      openImage(choices, absoluteImage(choices.args), options);
    });
}
