import { encodeName } from "../../../../ffi/names.ts";
import { encodeUtf16 } from "../../../../src/vhd/format/text.ts";
import {
  PLAT_CODE_MACX,
  PLAT_CODE_W2KU,
  PLAT_CODE_W2RU,
} from "../../../../src/vhd/format/locator.ts";
import type { Random } from "../../../../src/testing/random.ts";
import { pick } from "./mutations.ts";

/** A name of a parent as it is in a file. */
export interface HostileName {
  /** The platform of a locator. */
  readonly code: number;
  /** The name in the locator's form, in hexadecimal. */
  readonly bytes: string;
  /** The name in the header's form, in hexadecimal. */
  readonly header: string;
}

/** Names that lead out of the folder, to the image itself, or nowhere; and names beside it. */
const NAMES = [
  "../secret.vhd",
  "./../secret.vhd",
  "../../etc/secret.vhd",
  "../vm/../secret.vhd",
  "../../../../../../secret.vhd",
  "/srv/secret.vhd",
  "/etc/secret.vhd",
  "/srv/vm/../secret.vhd",
  "/srv/vm//..//secret.vhd",
  "/srv/./vm/./../../etc/secret.vhd",
  "//secret.vhd",
  "/srv/vmx/../secret.vhd",
  "base.vhd",
  "./base.vhd",
  "./mid.vhd",
  "./top.vhd",
  "./child.vhd",
  "./disk.vhd",
  "./base.raw",
  "/srv/vm/base.vhd",
  "./sub/../base.vhd",
  "./none.vhd",
  ".",
  "..",
  "./",
  "/",
  "",
  "./base.vhd\0../secret.vhd",
  "../secret.vhd\0",
  "C:\\srv\\secret.vhd",
  "c:/etc/secret.vhd",
  "./b\u202easecret.vhd",
  "./\x1b[2Jbase.vhd",
  "./base\n.vhd",
  "./\ud800.vhd",
  "./\udcff\udcfe.vhd",
  `./${"a".repeat(255)}.vhd`,
  `./${"a/".repeat(2100)}b.vhd`,
  `${"../".repeat(300)}secret.vhd`,
  "x".repeat(30000),
];

/** Draws a name and how it is written. */
export function drawName(random: Random): HostileName {
  const name = pick(random, NAMES);
  const code = pick(random, [PLAT_CODE_MACX, PLAT_CODE_W2KU, PLAT_CODE_W2RU]);
  const windows = random.chance(0.5) ? name.replaceAll("/", "\\") : name;
  const url = pick(random, ["file://", "file://", "file:", "", "FILE://", "file:///"]);
  const bytes = code === PLAT_CODE_MACX
    ? encodeName(`${url}${name}`)
    : encodeUtf16(windows, { littleEndian: random.chance(0.9) });
  const room = new Uint8Array(512);
  room.set(encodeUtf16(name, { littleEndian: false }).subarray(0, 512));
  return { code, bytes: bytes.toHex(), header: room.toHex() };
}
