import { Errno, messageOf, SystemError } from "../../../ffi/errno.ts";
import {
  checkKey,
  hashKey,
  KEYHASH_BYTES,
  readKey,
  readKeyhash,
  readKeyOf,
  storeKeyhash,
} from "../../vhd/key.ts";
import { openVhd } from "../../vhd/image/image.ts";
import {
  type CommandCall,
  expectedErrno,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";

/** `vhd-util key`. */
export const keyCommand: Subcommand = {
  name: "key",
  summary: "Store, check or print the hash of an image's encryption key",
  synopsis: "-s -n FILE {-k KEYFILE | -H HASH} [-N NONCE]\n-c -n FILE -k KEYFILE\n" +
    "-p -n FILE\n-C -k KEYFILE [-N NONCE]",
  usage: "usage:\n" +
    "-C -k KEYPATH [-N NONCE]: calculate keyhash for KEYPATH\n" +
    "-s -n NAME <-k KEYPATH> | -H HASH> [-N NONCE]: set keyhash for NAME\n" +
    "-c -n NAME <-k KEYPATH>: check keyhash for NAME\n" +
    "-p -n NAME: print keyhash for NAME\n" +
    "-h help",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "s", text: "store the hash in an image that has no data yet" },
    { name: "c", text: "check that the key is the one of the image" },
    { name: "p", text: "print the stored nonce and hash, or 'none'" },
    { name: "C", text: "print the hash of a key" },
    {
      name: "k",
      value: "KEYFILE",
      text: "the key of NAME.vhd: NAME,aes-xts-plain,256.key or 512.key",
    },
    { name: "H", value: "HASH", text: "a hash in place of a key: 64 hexadecimal digits" },
    {
      name: "N",
      value: "NONCE",
      text: "hash this with the key: 64 hexadecimal digits; default: zeros",
    },
  ],
  example: `
$ vhd-util key -s -n disk.vhd -k disk,aes-xts-plain,512.key
$ vhd-util key -c -n disk.vhd -k disk,aes-xts-plain,512.key && echo right
right`,

  run(call: CommandCall): number {
    const keyPath = call.value("k");
    call.warnOfKeyFiles("k");
    if (call.has("C")) return calculate(call, keyPath);
    const path = call.required("n");
    checkUsage(call);
    try {
      openVhd(path).close();
    } catch (error) {
      return fail(call, `failed to open ${path}`, error);
    }
    if (call.has("s")) {
      const status = attempt(call, "setting key failed", () => store(call, path));
      if (status !== 0) return status;
    } else if (call.has("c") && keyPath !== null) {
      const status = attempt(call, "key check failed", () => checkKey(path, keyPath));
      if (status !== 0) return status;
    }
    return call.has("p") ? attempt(call, "failed to read keyhash", () => print(call, path)) : 0;
  },
};

function checkUsage(call: CommandCall): void {
  const [hasKey, hasHash] = [call.has("k"), call.has("H")];
  if (call.has("s")) {
    if (call.has("c") || hasKey === hasHash) throw new UsageError(null);
  } else if (call.has("c")) {
    if (!hasKey || hasHash || call.has("N")) throw new UsageError(null);
  } else if (!call.has("p")) {
    throw new UsageError(null);
  }
}

function fail({ output }: CommandCall, what: string, error: unknown): number {
  const errno = expectedErrno(error);
  output.printError(messageOf(error));
  output.printError(`${what}: ${-errno}`);
  return errno;
}

function attempt(call: CommandCall, failure: string, body: () => void): number {
  try {
    body();
    return 0;
  } catch (error) {
    return fail(call, failure, error);
  }
}

function calculate(call: CommandCall, keyPath: string | null): number {
  if (keyPath === null) throw new UsageError(null);
  return attempt(call, "calculating keyhash failed", () => {
    call.output.printLine(`${hashKey(readKey(keyPath).bytes, nonceOf(call)).toHex()}`);
  });
}

function store(call: CommandCall, path: string): void {
  const nonce = nonceOf(call);
  const keyPath = call.value("k");
  const hash = keyPath === null
    ? parseHex(call.required("H"))
    : hashKey(readKeyOf(path, keyPath).bytes, nonce);
  storeKeyhash(path, { nonce, hash });
}

function print({ output }: CommandCall, path: string): void {
  const keyhash = readKeyhash(path);
  output.printLine(
    keyhash === null ? "none" : `${keyhash.nonce.toHex()} ${keyhash.hash.toHex()}`,
  );
}

function nonceOf(call: CommandCall): Uint8Array {
  const text = call.value("N");
  return text === null ? new Uint8Array(KEYHASH_BYTES) : parseHex(text);
}

function parseHex(text: string): Uint8Array {
  if (/^[0-9a-f]*$/i.test(text) && text.length === KEYHASH_BYTES * 2) {
    return Uint8Array.fromHex(text);
  }
  throw new SystemError(
    Errno.EINVAL,
    `Cannot read '${text}' as ${KEYHASH_BYTES * 2} hexadecimal digits`,
  );
}
