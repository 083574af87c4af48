import { Errno, SystemError } from "../../../ffi/errno.ts";
import { copyImage } from "../../bulk/copy.ts";
import type { CopyKeys } from "../../bulk/recoding.ts";
import { openVhd } from "../../vhd/image/image.ts";
import { readKey } from "../../vhd/key.ts";
import { osStorage } from "../../files/storage.ts";
import { interruptible } from "../interruption.ts";
import { openProgress } from "../progress.ts";
import { type CommandCall, expectedErrno, type Subcommand, UsageError } from "./command.ts";

const MOST_KEY_BYTES = 64;

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
    key: keyPath !== null ? readKeyFile(keyPath) : call.has("E") ? readStandardInput() : undefined,
    sourceKey: sourcePath === null ? undefined : readKeyFile(sourcePath),
  };
}

function requireLength(key: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  if (key.length === 32 || key.length === 64) return key;
  throw new SystemError(
    Errno.EPERM,
    "Unsupported keysize, use either 256 bit or 512 bit key",
  );
}

function readKeyFile(path: string): Uint8Array<ArrayBuffer> {
  return requireLength(new Uint8Array(readKey(path)));
}

/** Reads a key from a pipe, which may deliver it in pieces. */
function readStandardInput(): Uint8Array<ArrayBuffer> {
  const buffer = new Uint8Array(MOST_KEY_BYTES + 1);
  let length = 0;
  while (length < buffer.length) {
    const got = Deno.stdin.readSync(buffer.subarray(length));
    if (got === null || got === 0) break;
    length += got;
  }
  return requireLength(buffer.slice(0, length));
}
