import { hasLibcrypto } from "../../../support/libcrypto.ts";
import { madeFormat } from "./made.ts";
import { qcowFormat } from "./qcow.ts";
import { qcow2DeviceFormat, qcow2Format } from "./qcow2.ts";
import { rawDeviceFormat, rawFormat } from "./raw.ts";
import type { Container, SimFormat } from "./format.ts";
import {
  deviceFormat,
  dynamicFormat,
  encryptedDeviceFormat,
  encryptedFormat,
  fixedDeviceFormat,
  fixedFormat,
  foreignFormat,
} from "./vhd.ts";

/** Formats that need libcrypto. */
const ENCRYPTED = hasLibcrypto() ? [encryptedFormat, encryptedFormat, encryptedDeviceFormat] : [];

/** The formats of images that a chain may begin with, each as often as it is listed. */
export const FORMATS: readonly SimFormat[] = [
  dynamicFormat,
  dynamicFormat,
  dynamicFormat,
  foreignFormat,
  foreignFormat,
  fixedFormat,
  rawFormat,
  qcow2Format,
  qcow2Format,
  qcow2DeviceFormat,
  deviceFormat,
  deviceFormat,
  fixedDeviceFormat,
  rawDeviceFormat,
  ...ENCRYPTED,
];

/** The format of this name. */
export function formatNamed(name: string): SimFormat {
  const format = [...FORMATS, madeFormat, qcowFormat].find((each) => each.name === name);
  if (format === undefined) throw new TypeError(`There is no format ${name}`);
  return format;
}

/** The format of a new image of ours: a VHD, or a QCOW2. */
export function newFormat(
  { type = "vhd", encrypted, onDevice }: {
    type?: Container;
    encrypted: boolean;
    onDevice: boolean;
  },
): SimFormat {
  if (type === "qcow2") return onDevice ? qcow2DeviceFormat : qcow2Format;
  if (encrypted) return onDevice ? encryptedDeviceFormat : encryptedFormat;
  return onDevice ? deviceFormat : dynamicFormat;
}
