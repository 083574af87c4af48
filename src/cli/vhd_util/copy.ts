import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { Secret } from "../../../ffi/secret.ts";
import { copyImage } from "../../bulk/copy.ts";
import type { CopyKeys } from "../../bulk/recoding.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { readKey } from "../../vhd/key.ts";
import { osStorage } from "../../files/storage.ts";
import { interruptible } from "../interruption.ts";
import { keyFromStandardInput } from "../key_file.ts";
import { openProgress } from "../progress.ts";
import {
  type CommandCall,
  expectedErrno,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";

/** `vhd-util copy`. */
export const copyCommand: Subcommand = {
  name: "copy",
  summary: "Copy an image and all its parents into one new image",
  synopsis: "-n FILE -N NEW [-k KEYFILE | -E] [-K KEYFILE]",
  usage: "options: -n <name> -N <new VHD name> " +
    "[-k <keyfile> | -E (pass encryption key on stdin)] " +
    "[-h help] ",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "N", value: "NEW", text: "the image to make" },
    { name: "k", value: "KEYFILE", text: "encrypt the copy with this key of 32 or 64 bytes" },
    { name: "E", text: "encrypt the copy with the key on standard input" },
    {
      name: "K",
      value: "KEYFILE",
      text: "the key of the image, to decrypt it or to change its key",
    },
  ],
  followsParents: true,
  example: `
$ vhd-util copy -n today.vhd -N whole.vhd
$ vhd-util query -p -n whole.vhd
whole.vhd has no parent`,

  async run(call: CommandCall): Promise<number> {
    const path = call.value("n");
    const output = call.value("N");
    if (path === null || output === null) {
      throw new UsageError("Must supply both existing and new VHD names");
    }
    if (call.has("k") && call.has("E")) {
      call.output.printError("Only supply -E or -k once");
      return Errno.EPERM;
    }
    try {
      openVhd(path).close();
    } catch (error) {
      call.output.printLine(`error opening ${path}: ${-expectedErrno(error)}`);
      throw error;
    }
    call.warnOfKeyFiles("k", "K");
    const keys = keysOf(call);
    if (osStorage.exists(output) && osStorage.status(output).kind !== "block") {
      call.output.printLine(`VHD file ${output} already exists, chose a different name`);
      return Errno.EINVAL;
    }
    const progress = await openProgress("copy");
    try {
      const onProgress = progress.update;
      await interruptible((signal) => copyImage(path, output, { ...keys, onProgress, signal }));
    } finally {
      progress.stop();
    }
    return 0;
  },
};

function keysOf(call: CommandCall): CopyKeys {
  const keyPath = call.value("k");
  const sourcePath = call.value("K");
  return {
    key: keyPath !== null
      ? requireLength(readKey(keyPath))
      : call.has("E")
      ? requireLength(keyFromStandardInput())
      : undefined,
    sourceKey: sourcePath === null ? undefined : requireLength(readKey(sourcePath)),
  };
}

function requireLength(key: Secret): Uint8Array<ArrayBuffer> {
  const { length } = key.bytes;
  if (length === 32 || length === 64) return key.bytes;
  throw new SystemError(
    Errno.EPERM,
    "Unsupported keysize, use either 256 bit or 512 bit key",
  );
}
