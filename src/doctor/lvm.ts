import { type Finding, findingsOf, outputOf, textOf } from "./finding.ts";

/** What LVM of this host looks at. */
export interface LvmFacts {
  /** Patterns of devices/global_filter and devices/filter, in order; empty without one. */
  readonly globalFilter: readonly string[];
  readonly filter: readonly string[];
  /** Whether only devices of a list are looked at. */
  readonly usesDevicesFile: boolean;
  /** Whether logical volumes are looked at, which may be disks of guests. */
  readonly scansVolumes: boolean;
}

const CONFIG = "/etc/lvm/lvm.conf";

/** The strings of a value of lvm.conf: `[ "a|x|", "r|.*|" ]` or one string. */
function stringsOf(value: string): string[] {
  return [...value.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, text]) =>
    text.replace(/\\(.)/g, "$1")
  );
}

/** Reads what `lvmconfig` prints, or lvm.conf. Settings may be given with their section in the name. */
export function parseLvmConfig(text: string): LvmFacts {
  const plain = text.split("\n").map((line) => line.replace(/^\s*#.*$/, "")).join("\n");
  const value = (name: string): string => {
    const list = '\\[(?:"(?:[^"\\\\]|\\\\.)*"|[^\\]"])*\\]';
    const setting = new RegExp(`^\\s*(?:devices/)?${name}\\s*=\\s*(${list}|[^\\n]*)`, "gm");
    return [...plain.matchAll(setting)].at(-1)?.[1] ?? "";
  };
  return {
    globalFilter: stringsOf(value("global_filter")),
    filter: stringsOf(value("filter")),
    usesDevicesFile: value("use_devicesfile").trim() === "1",
    scansVolumes: value("scan_lvs").trim() === "1",
  };
}

/** Whether a filter of LVM accepts a name. The first pattern that matches decides; without one it does. */
export function acceptsName(filter: readonly string[], name: string): boolean {
  for (const pattern of filter) {
    const [action, delimiter] = [pattern.charAt(0), pattern.charAt(1)];
    const close = { "(": ")", "[": "]", "{": "}" }[delimiter] ?? delimiter;
    const end = pattern.lastIndexOf(close);
    if (end < 2 || (action !== "a" && action !== "r")) continue;
    try {
      if (new RegExp(pattern.slice(2, end)).test(name)) return action === "a";
    } catch {
      // LVM has its own expressions. One that cannot be read here decides nothing.
    }
  }
  return true;
}

/** What LVM looks at; null when it is not installed. */
export async function lvmFacts(): Promise<LvmFacts | null> {
  const names = ["global_filter", "filter", "use_devicesfile", "scan_lvs"];
  const printed = await outputOf("lvmconfig", [
    ...["--typeconfig", "full"],
    ...names.map((name) => `devices/${name}`),
  ]);
  const text = printed ?? textOf(CONFIG);
  if (text === null) return null;
  const facts = parseLvmConfig(text);
  const hasList = textOf("/etc/lvm/devices/system.devices") !== null;
  return { ...facts, usesDevicesFile: facts.usesDevicesFile && hasList };
}

/** Names of disks that are served, of each kind, and what rejects them. */
const OUR_DEVICES = [
  { name: "/dev/ublkb0", pattern: "r|^/dev/ublkb|" },
  { name: "/dev/nbd0", pattern: "r|^/dev/nbd|" },
  { name: "/dev/xen/blktap-2/tapdev0", pattern: "r|^/dev/xen/blktap-2/|" },
  { name: "/dev/blktap/disk", pattern: "r|^/dev/blktap/|" },
];
/** A volume of a storage repository of XenServer: the disk of a guest. */
const GUEST_VOLUME = { name: "/dev/VG_XenStorage-0/VHD-0", pattern: "r|^/dev/VG_XenStorage-|" };

const lvm = findingsOf("LVM");

/**
 * Judges what LVM looks at. A guest that has LVM on its disk would have its volumes found, and perhaps
 * activated, by the host.
 *
 * @param devices The block devices of disks that are served just now.
 */
export function judgeLvm(facts: LvmFacts | null, devices: readonly string[]): Finding[] {
  if (facts === null) return [lvm.ok("LVM is not installed")];
  if (facts.usesDevicesFile) {
    return [lvm.ok("LVM looks only at the devices of its list", "/etc/lvm/devices/system.devices")];
  }
  const isSeen = (name: string): boolean =>
    acceptsName(facts.globalFilter, name) && acceptsName(facts.filter, name);
  const kinds = [...OUR_DEVICES, ...facts.scansVolumes ? [GUEST_VOLUME] : []];
  const missing = kinds.filter(({ name }) => isSeen(name)).map(({ pattern }) => `"${pattern}"`);
  if (missing.length === 0) return [lvm.ok("LVM does not look at disks of guests", CONFIG)];
  const seen = devices.filter(isSeen);
  const what = seen.length > 0
    ? `LVM looks at disks that are served, and finds the volumes of guests there: ${
      seen.slice(0, 4).join(", ")
    }`
    : "LVM would look at disks that are served as block devices, and find the volumes of guests there";
  const before = facts.globalFilter.map((pattern) => `"${pattern}"`);
  const how = `in ${CONFIG}, section devices: global_filter = [ ${
    [...missing, ...before].join(", ")
  } ]`;
  return [seen.length > 0 ? lvm.warning(what, CONFIG, how) : lvm.note(what, CONFIG, how)];
}
