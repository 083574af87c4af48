import { madeFormat } from "./made.ts";
import { rawFormat } from "./raw.ts";
import type { SimFormat } from "./format.ts";
import { dynamicFormat, fixedFormat, foreignFormat } from "./vhd.ts";

/** The formats of images that a chain may begin with, each as often as it is listed. */
export const FORMATS: readonly SimFormat[] = [
  dynamicFormat,
  dynamicFormat,
  dynamicFormat,
  foreignFormat,
  foreignFormat,
  fixedFormat,
  rawFormat,
];

/** The format of this name. */
export function formatNamed(name: string): SimFormat {
  const format = [...FORMATS, madeFormat].find((each) => each.name === name);
  if (format === undefined) throw new TypeError(`There is no format ${name}`);
  return format;
}
