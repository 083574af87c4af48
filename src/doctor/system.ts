import { messageOf } from "../../ffi/errno.ts";
import { pathExists, pathStatus } from "../../ffi/paths.ts";
import { effectiveUser } from "../../ffi/process.ts";
import { DEVICE_LIST_PATH, type ListedDevice } from "../control/client/device_list.ts";
import { controlFolder, requireOwnFolder } from "../control/paths.ts";
import { type Finding, findingsOf, namesOf, outputOf, shellWord, textOf } from "./finding.ts";

const folder = findingsOf("control folder");
const ALL_RIGHTS = 0o777;
const OWNER_ONLY = 0o700;

/** Whether only its owner reaches the sockets of tapdisks. */
export function folderFindings(): Finding[] {
  const path = controlFolder();
  if (!pathExists(path)) return [folder.ok("It does not exist yet: no tapdisk has started", path)];
  try {
    requireOwnFolder(path);
  } catch (error) {
    return [
      folder.error(
        messageOf(error),
        path,
        `chown root: ${shellWord(path)}; chmod 700 ${shellWord(path)}`,
      ),
    ];
  }
  const { mode, uid } = pathStatus(path);
  const rights = mode & ALL_RIGHTS;
  if ((rights & ~OWNER_ONLY) !== 0) {
    const what = `Its rights are ${rights.toString(8)}: others than its owner can look into it`;
    return [folder.warning(what, path, `chmod 700 ${shellWord(path)}`)];
  }
  const user = effectiveUser();
  if (user !== 0 && uid !== user) {
    return [
      folder.note(`User ${uid} owns it: run this as that user or as root to look into it`, path),
    ];
  }
  return [folder.ok("Only its owner reaches it", path)];
}

/** What systemd says of a unit. */
export interface UnitFacts {
  readonly name: string;
  /** `loaded`, `not-found`, `masked` and so on. */
  readonly load: string;
  /** `active`, `inactive`, `failed` and so on. */
  readonly active: string;
  /** `enabled`, `disabled` and so on; empty for a unit without a file. */
  readonly enabled: string;
}

/** Reads what `systemctl show` prints of a unit. */
export function parseUnit(name: string, text: string): UnitFacts {
  const value = (field: string): string => new RegExp(`^${field}=(.*)$`, "m").exec(text)?.[1] ?? "";
  return {
    name,
    load: value("LoadState"),
    active: value("ActiveState"),
    enabled: value("UnitFileState"),
  };
}

const systemd = findingsOf("systemd");

/** Judges the units that serve the disks of the list. */
export function judgeUnit({ name, load, active, enabled }: UnitFacts, isWanted: boolean): Finding {
  if (active === "failed") {
    return systemd.error(
      `${name} has failed`,
      name,
      `journalctl -u ${name}; systemctl restart ${name}`,
    );
  }
  if (!isWanted) return systemd.ok(`${name} is ${load === "loaded" ? active : "not there"}`, name);
  if (load === "masked") {
    return systemd.warning(
      `${name} is masked: the disks of the list are not served at boot`,
      name,
      `systemctl unmask ${name}`,
    );
  }
  if (load !== "loaded") {
    return systemd.warning(
      `${name} is not installed: the disks of the list are not served at boot`,
      name,
      "install the package of blktap",
    );
  }
  if (enabled === "disabled") {
    return systemd.warning(
      `${name} is disabled: the disks of the list are not served at boot`,
      name,
      `systemctl enable --now ${name}`,
    );
  }
  if (active !== "active") {
    return systemd.warning(
      `${name} is ${active}: it has not served the disks of the list`,
      name,
      `systemctl start ${name}`,
    );
  }
  return systemd.ok(`${name} is active`, name);
}

/** What systemd says of our units; null where it does not run. */
async function unitFacts(): Promise<UnitFacts[] | null> {
  if (!pathExists("/run/systemd/system")) return null;
  const fields = "--property=LoadState,ActiveState,UnitFileState";
  const found: UnitFacts[] = [];
  for (const name of ["blktap.service", "tapback.service"]) {
    const text = await outputOf("systemctl", ["show", fields, name]);
    if (text !== null) found.push(parseUnit(name, text));
  }
  return found;
}

/** The state of our units. */
export async function unitFindings(listed: readonly ListedDevice[]): Promise<Finding[]> {
  const units = await unitFacts();
  if (units === null) return [systemd.ok("systemd does not run here")];
  if (units.length === 0) return [systemd.note("systemd did not answer within 5 s")];
  const isWanted = listed.some(({ auto }) => auto);
  return units.map((unit) => judgeUnit(unit, unit.name === "blktap.service" && isWanted));
}

const rules = findingsOf("udev and multipath");
const OUR_RULES = "60-blktap.rules";
const RULE_FOLDERS = ["/etc/udev/rules.d", "/run/udev/rules.d"];
const SYSTEM_RULES = ["/usr/lib/udev/rules.d", "/lib/udev/rules.d"];
const OUR_KERNEL_NAMES = ["ublkb0", "nbd0", "tdevb0", "td0"];

/** Whether a pattern of udev, as of KERNEL==, matches a name: alternatives of globs. */
function udevMatches(pattern: string, name: string): boolean {
  return pattern.split("|").some((glob) => {
    const expression = glob.replace(/[.+^${}()\\]/g, "\\$&").replaceAll("*", ".*").replaceAll(
      "?",
      ".",
    );
    try {
      return new RegExp(`^${expression}$`).test(name);
    } catch {
      return false;
    }
  });
}

/** The rules of a file, and the line that each begins on. A backslash at the end joins lines. */
function rulesIn(text: string): { line: number; rule: string }[] {
  const found: { line: number; rule: string }[] = [];
  let pending = "";
  let first = 0;
  for (const [index, line] of text.split("\n").entries()) {
    if (pending === "") first = index + 1;
    pending += line.replace(/\\$/, "");
    if (line.endsWith("\\")) continue;
    const rule = pending.trim();
    if (rule !== "" && !rule.startsWith("#")) found.push({ line: first, rule });
    pending = "";
  }
  return found;
}

/** The rules of a file that run a program for our devices by their names. */
export function rulesThatOpen(text: string): { line: number; rule: string }[] {
  return rulesIn(text).filter(({ rule }) => {
    const kernel = /KERNEL=="([^"]*)"/.exec(rule)?.[1];
    if (kernel === undefined || !OUR_KERNEL_NAMES.some((name) => udevMatches(kernel, name))) {
      return false;
    }
    // What matches every disk is the system's own.
    if (udevMatches(kernel, "anything")) return false;
    return /\b(?:RUN(?:\{program\})?\+?=|PROGRAM=|IMPORT\{program\}=)/.test(rule);
  });
}

/** Whether the exceptions of multipath.conf take in our devices. */
export function multipathTakes(config: string): boolean {
  const plain = config.replace(/#.*$/gm, "");
  const exceptions = /blacklist_exceptions\s*\{([^}]*)\}/.exec(plain)?.[1] ?? "";
  return [...exceptions.matchAll(/devnode\s+"([^"]*)"/g)].some(([, pattern]) => {
    try {
      const expression = new RegExp(pattern.replace(/^!/, ""));
      const hit = OUR_KERNEL_NAMES.some((name) => expression.test(name));
      return pattern.startsWith("!") ? !hit : hit;
    } catch {
      return false;
    }
  });
}

/** Other programs that open our devices. */
export function openerFindings(listed: readonly ListedDevice[]): Finding[] {
  const found: Finding[] = [];
  for (const folder of RULE_FOLDERS) {
    for (const name of namesOf(folder)) {
      if (!name.endsWith(".rules") || name === OUR_RULES) continue;
      const path = `${folder}/${name}`;
      for (const { line, rule } of rulesThatOpen(textOf(path) ?? "")) {
        const what = `This rule runs a program for disks that are served: ${rule.slice(0, 200)}`;
        const how = `take ublkb*, nbd* and td* out of it, then: udevadm control --reload`;
        found.push(rules.warning(what, `${path}:${line}`, how));
      }
    }
  }
  const multipath = textOf("/etc/multipath.conf");
  if (multipath !== null && multipathTakes(multipath)) {
    const how = 'blacklist { devnode "^(ublkb|nbd|td)" } and no exception for them; ' +
      "multipathd reconfigure";
    found.push(rules.warning("multipathd takes disks that are served", "/etc/multipath.conf", how));
  }
  const hasRules = [...RULE_FOLDERS, ...SYSTEM_RULES].some((each) =>
    namesOf(each).includes(OUR_RULES)
  );
  if (listed.length > 0 && pathExists("/run/udev/control") && !hasRules) {
    const what = "The rule is missing that makes the links /dev/blktap/NAME of the list";
    found.push(
      rules.warning(
        what,
        DEVICE_LIST_PATH,
        "install packaging/60-blktap.rules; udevadm control --reload",
      ),
    );
  }
  return found.length > 0 ? found : [rules.ok("Nothing else opens the disks that are served")];
}
