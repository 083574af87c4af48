import type { Command } from "commander";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import type { Secret } from "../../../ffi/secret.ts";
import { keyFileWarning, keyFromStandardInput } from "../key_file.ts";
import { printErrorLine } from "../print.ts";
import { CRYPTO_SUPPORTED_KEYSIZE, readKey } from "../../vhd/key.ts";

/** The options for the key of an encrypted image. */
export interface KeyChoices {
  readonly encrypted?: boolean;
  readonly keyFile?: string;
}

/** `-E` and `-k`. The key itself is never an argument: other users can see arguments. */
export function keyOptions(command: Command): Command {
  return command
    .option("-E, --encrypted", "read the key of an encrypted image from standard input")
    .option("-k, --key-file <file>", "read the key of an encrypted image from a file");
}

/**
 * The key that the options name; undefined when they name none.
 *
 * @throws {SystemError} EINVAL when there is not exactly one key of 256 or 512 bits.
 */
export function encryptionKey({ encrypted, keyFile }: KeyChoices): Secret | undefined {
  if (keyFile !== undefined && encrypted) {
    throw new SystemError(Errno.EINVAL, "Cannot take the key from two places: give -E or -k");
  }
  if (keyFile !== undefined) {
    const warning = keyFileWarning(keyFile);
    if (warning !== null) printErrorLine(warning);
    return checked(readKey(keyFile), keyFile);
  }
  if (!encrypted) return undefined;
  return checked(keyFromStandardInput(), "standard input");
}

function checked(key: Secret, source: string): Secret {
  const { length } = key.bytes;
  if (CRYPTO_SUPPORTED_KEYSIZE.some((bits) => bits === length * 8)) return key;
  key.release();
  const lengths = `${source} holds ${length} bytes; 32 or 64 are wanted`;
  throw new SystemError(Errno.EINVAL, `Cannot use the encryption key (${lengths})`);
}
