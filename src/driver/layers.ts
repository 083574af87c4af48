/**
 * The layers of an image's name: `log:bc:256:vhd:/disk.vhd` has three, each with its driver.
 *
 * @module
 */
import { SystemError } from "../../ffi/errno.ts";
import type { DriverType } from "./driver.ts";
import { type ImageName, type Named, parseImageName } from "./image_name.ts";
import { allDrivers, driverOfType } from "./registry.ts";

/** One driver of an image's name. */
export interface NameLayer {
  readonly driver: DriverType;
  /** The name's part before this layer: the filters in front of it. */
  readonly above: string;
  /** What follows the driver's own name. */
  readonly rest: string;
  /** What that names. */
  readonly named: Named;
}

/**
 * The last layer of a name, behind the filters in front of it.
 *
 * @throws {SystemError} EINVAL for a name that is not one of an image, ENOENT for an unknown type.
 */
export function lastLayer(name: string): NameLayer {
  for (let at = 0;;) {
    const own = name.slice(at);
    const { type, path: rest } = firstLayer(own);
    const driver = driverOfType(type);
    const named = driver.named(rest);
    if (named.kind !== "image") return { driver, above: name.slice(0, at), rest, named };
    at += type.length + 1 + named.at;
  }
}

/** The first layer of a name, and what is behind it. Throws `SystemError` EINVAL. */
export function firstLayer(name: string): ImageName {
  return parseImageName(name, exampleFor(name));
}

/** How a file without a type would be named, as far as its suffix tells. */
function exampleFor(path: string): string | undefined {
  const driver = allDrivers().find(({ suffix }) => suffix !== undefined && path.endsWith(suffix));
  return driver === undefined || path.includes(":") ? undefined : `${driver.type}:${path}`;
}

/** The file in an image's name. */
export interface FileInName extends NameLayer {
  /** The whole name up to the path. */
  readonly head: string;
  readonly path: string;
}

/** The file that an image's name ends with; null when it ends with none, or is not one of an image. */
export function fileInName(name: string): FileInName | null {
  let layer: NameLayer;
  try {
    layer = lastLayer(name);
  } catch (error) {
    if (error instanceof SystemError) return null;
    throw error;
  }
  const { named: { kind, at }, rest } = layer;
  if (kind !== "file" || rest.length === at) return null;
  const path = rest.slice(at);
  return { ...layer, head: name.slice(0, name.length - path.length), path };
}

/** Whether this is the name of an image, of a type that is known. */
export function isImageName(name: string): boolean {
  try {
    lastLayer(name);
    return true;
  } catch (error) {
    if (error instanceof SystemError) return false;
    throw error;
  }
}

/** All types of images, a line each: how they are named, and what they are. */
export function describeTypes(): string[] {
  const names = allDrivers().map(({ type, where }) => `${type}:${where}`);
  const width = Math.max(...names.map((name) => name.length));
  return allDrivers().map(({ summary }, i) => `${names[i].padEnd(width)}  ${summary}`);
}
