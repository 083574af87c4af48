/**
 * Lists the logical volumes of a group with LVM's tools. The volumes need not be active.
 *
 * @module
 */
import { Errno, SystemError } from "../../ffi/errno.ts";

/** A logical volume. */
export interface LogicalVolume {
  readonly name: string;
  readonly sizeBytes: number;
  /** The type of its first segment. Only `linear` can be scanned. */
  readonly segmentType: string;
  /** The device of its first segment, and the start and length of the segment there. */
  readonly device: string;
  readonly startBytes: number;
  readonly segmentBytes: number;
}

const COMMON = ["--noheadings", "--nosuffix", "--units=b", "--separator=|"];

function runLvm(command: string, args: readonly string[]): string[][] {
  let output: Deno.CommandOutput;
  try {
    output = new Deno.Command(command, { args: [...args], stdin: "null" }).outputSync();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    throw new SystemError(Errno.ENOENT, `Cannot list logical volumes: ${command} is not installed`);
  }
  const decoder = new TextDecoder();
  if (!output.success) {
    const why = decoder.decode(output.stderr).trim().split("\n")[0];
    throw new SystemError(Errno.EINVAL, `Cannot list logical volumes: ${command}: ${why}`);
  }
  return decoder.decode(output.stdout).split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => line.split("|").map((field) => field.trim()));
}

/**
 * Lists the volumes of a group in LVM's order.
 *
 * @throws {SystemError} when the group does not exist or LVM is not installed.
 */
export function logicalVolumes(group: string): LogicalVolume[] {
  const devices = new Map<string, { extentBytes: number; startBytes: number }>();
  const groupFields = "--options=vg_extent_size,pv_name,pe_start";
  for (const [extent, device, start] of runLvm("vgs", [group, ...COMMON, groupFields])) {
    devices.set(device, { extentBytes: Number(extent), startBytes: Number(start) });
  }
  const fields = "--options=lv_name,lv_size,segtype,seg_start,seg_size,devices";
  const volumes: LogicalVolume[] = [];
  for (const [name, size, type, start, length, on] of runLvm("lvs", [group, ...COMMON, fields])) {
    if (Number(start) !== 0) continue;
    // As in /dev/sdb(25): the device and the extent that the segment starts at.
    const place = /^([^(,]+)\((\d+)\)/.exec(on ?? "");
    const device = place === null ? undefined : devices.get(place[1]);
    volumes.push({
      name,
      sizeBytes: Number(size),
      segmentType: device === undefined ? "unknown" : type,
      device: place?.[1] ?? "",
      startBytes: (device?.startBytes ?? 0) + Number(place?.[2] ?? 0) * (device?.extentBytes ?? 0),
      segmentBytes: Number(length),
    });
  }
  return volumes;
}

/**
 * The volume of a device name. VHDs on volumes name their parents like this:
 * `/dev/mapper/VG-VHD--1234` is `VHD-1234`. Null for a name of another form.
 */
export function volumeOfDevice(path: string): string | null {
  const name = path.slice(path.lastIndexOf("/") + 1);
  const match = /^(?:[^-]|--)+-((?:[^-]|--)+)$/.exec(name);
  return match === null ? null : match[1].replaceAll("--", "-");
}
