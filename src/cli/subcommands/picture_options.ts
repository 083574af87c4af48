import { type CommandCall, type CommandOption, UsageError } from "./command.ts";
import { writePictureFile } from "../picture_file.ts";

/** The options of commands that print pictures. */
export const PICTURE_OPTIONS: readonly CommandOption[] = [
  { name: "svg", text: "print a drawing as SVG" },
  { name: "html", text: "print a page as HTML, which is one file and needs no network" },
  {
    name: "o",
    value: "FILE",
    text: "write the picture to this file; of the two kinds, the end of its name tells which",
  },
];

/** A kind of picture. */
export type PictureKind = "svg" | "html" | "png";

/** What picture a call is for, and where it goes. */
export interface PictureWish {
  readonly kind: PictureKind;
  /** Null for standard output. */
  readonly path: string | null;
}

function kindByName(path: string, kinds: readonly PictureKind[]): PictureKind {
  const [, ending = ""] = /\.([a-z]+)$/i.exec(path) ?? [];
  const found = kinds.find((kind) => kind === ending.toLowerCase());
  if (found !== undefined) return found;
  const names = kinds.map((kind) => `.${kind}`).join(" or ");
  throw new UsageError(`Cannot write a picture to ${path}: the name must end in ${names}`);
}

/**
 * The picture that a call is for; null when it is for none.
 *
 * @param path The file that the call names; null without one.
 * @param kinds The kinds of picture that the command has.
 * @throws {UsageError} for options that exclude each other.
 */
export function pictureWish(
  call: CommandCall,
  { path = call.value("o"), kinds = ["svg", "html"] }: {
    path?: string | null;
    kinds?: readonly PictureKind[];
  } = {},
): PictureWish | null {
  const asked = (["svg", "html"] as const).filter((kind) => call.has(kind));
  const words = [...asked, ...call.has("json") ? ["json"] : []].map((name) => `--${name}`);
  if (words.length > 1) throw new UsageError(`Cannot print ${words.join(" and ")}: choose one`);
  if (call.has("json") && path !== null) {
    throw new UsageError("Cannot write JSON to a file: -o is for pictures");
  }
  const kind = asked.at(0) ?? (path === null ? null : kindByName(path, kinds));
  return kind === null ? null : { kind, path };
}

/** Writes a picture to where it goes. */
export function deliverPicture(
  call: CommandCall,
  { path }: PictureWish,
  picture: string | Uint8Array,
): void {
  if (path !== null) {
    const bytes = typeof picture === "string" ? new TextEncoder().encode(picture) : picture;
    writePictureFile(path, bytes);
  } else if (typeof picture === "string") call.output.printRaw(picture);
  else call.output.printBytes(picture);
}
