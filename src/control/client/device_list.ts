/**
 * The list of disks to serve at boot, `/etc/blktap/devices`: one disk per line, with a name, an image
 * and options, as in fstab(5). This file only parses the text.
 *
 * @module
 */
import { isImageName } from "../../driver/layers.ts";
import { TLS_MODES } from "../../tls/tls.ts";
import { RETRY_POLICIES } from "../../vbd/retry.ts";
import {
  areRateLimits,
  LEAST_BURST_MS,
  MOST_BURST_MS,
  type RateLimits,
} from "../../vbd/rate_limits.ts";
import {
  DEVICE_CHOICES,
  OPEN_DEFAULTS,
  type OpenRequest,
  QUEUE_CHOICES,
} from "../protocol/open_request.ts";
import { MOST_EXPORT_CLIENTS } from "../protocol/serve.ts";
import { parseListen, type ServeChoices } from "./serve_choices.ts";

/** Where the list is. */
export const DEVICE_LIST_PATH = "/etc/blktap/devices";

/** A disk of the list. */
export interface ListedDevice extends OpenRequest {
  /** Number of its line; the first is 1. */
  readonly line: number;
  /** The block device is /dev/blktap/NAME. */
  readonly name: string;
  /** File with the key of an encrypted image. */
  readonly keyFile?: string;
  /** Whether it is served when no names are given. */
  readonly auto: boolean;
  /** How it is served over TCP; its host is looked up when it is. */
  readonly overTcp: ServeChoices;
}

/** A line that is not valid. */
export interface ListFault {
  readonly line: number;
  readonly reason: string;
}

type Options = {
  -readonly [Name in keyof Omit<ListedDevice, "line" | "name" | "image">]: ListedDevice[Name];
};

/** Applies the value of an option; returns what is wrong with the value, or null. */
type Apply = (options: Options, value: string) => string | null;

/** An option without a value. */
function set(settings: Partial<Options>): Apply {
  return (options) => {
    Object.assign(options, settings);
    return null;
  };
}

function setDevice(options: Options, value: string): string | null {
  const choice = DEVICE_CHOICES.find((known) => known === value);
  if (choice === undefined) return `device must be one of ${DEVICE_CHOICES.join(", ")}`;
  options.device = choice;
  return null;
}

function setQueue(options: Options, value: string): string | null {
  const choice = QUEUE_CHOICES.find((known) => known === value);
  if (choice === undefined) return `queue must be one of ${QUEUE_CHOICES.join(", ")}`;
  options.queue = choice;
  return null;
}

function setRetry(options: Options, value: string): string | null {
  const policy = RETRY_POLICIES.find((known) => known === value);
  if (policy === undefined) return `retry must be one of ${RETRY_POLICIES.join(", ")}`;
  options.retry = policy;
  return null;
}

function setTimeLimit(options: Options, value: string): string | null {
  if (!/^\d{1,5}$/.test(value) || Number(value) > 0xffff) {
    return "timeout must be a whole number of seconds up to 65535";
  }
  options.requestTimeoutSeconds = Number(value);
  return null;
}

function setKeyFile(options: Options, value: string): string | null {
  if (!value.startsWith("/")) return "key-file must be a whole path";
  options.keyFile = value;
  return null;
}

/** Sets a limit, which is a whole number. */
function setLimit(name: keyof RateLimits): Apply {
  return (options, value) => {
    const limits = { ...options.limits, [name]: Number(value) };
    if (!/^\d+$/.test(value) || !areRateLimits(limits)) {
      return name === "burstMs"
        ? `a burst must be from ${LEAST_BURST_MS} to ${MOST_BURST_MS} milliseconds`
        : "a limit must be a whole number";
    }
    options.limits = limits;
    return null;
  };
}

/** Sets how the disk is served over TCP. `read` returns null for a value that is none. */
function setServe<Name extends keyof ServeChoices>(
  name: Name,
  hint: string,
  read: (value: string) => ServeChoices[Name] | null,
): Apply {
  return (options, value) => {
    const choice = read(value);
    if (choice === null) return hint;
    options.overTcp = { ...options.overTcp, [name]: choice };
    return null;
  };
}

function wholePath(value: string): string | null {
  return value.startsWith("/") ? value : null;
}

function clientCount(value: string): number | null {
  const count = Number(value);
  return /^\d+$/.test(value) && count >= 1 && count <= MOST_EXPORT_CLIENTS ? count : null;
}

const CLIENTS_HINT = `a number of clients must be from 1 to ${MOST_EXPORT_CLIENTS}`;
const SERVING: Record<string, Apply> = {
  listen: setServe("listen", "listen must be HOST:PORT, such as :10809", parseListen),
  "export-name": setServe("exportName", "", (value) => value),
  tls: setServe(
    "tls",
    `tls must be one of ${TLS_MODES.join(", ")}`,
    (value) => TLS_MODES.find((mode) => mode === value) ?? null,
  ),
  "tls-certificates": setServe(
    "tlsCertificates",
    "tls-certificates must be a whole path",
    wholePath,
  ),
  "tls-psk": setServe("tlsPsk", "tls-psk must be a whole path", wholePath),
  "max-clients": setServe("maxClients", CLIENTS_HINT, clientCount),
  "max-clients-per-address": setServe("maxClientsPerAddress", CLIENTS_HINT, clientCount),
};

const LIMITS: Record<string, Apply> = {
  "read-iops": setLimit("readIops"),
  "write-iops": setLimit("writeIops"),
  "total-iops": setLimit("totalIops"),
  "read-bps": setLimit("readBps"),
  "write-bps": setLimit("writeBps"),
  "total-bps": setLimit("totalBps"),
  burst: setLimit("burstMs"),
};

const OPTIONS: Record<string, Apply> = {
  defaults: set({}),
  ro: set({ readOnly: true }),
  noauto: set({ auto: false }),
  "no-direct": set({ direct: false }),
  device: setDevice,
  queue: setQueue,
  retry: setRetry,
  timeout: setTimeLimit,
  "key-file": setKeyFile,
  "tls-verify-peer": setServe("tlsVerifyPeer", "", () => true),
  ...SERVING,
  ...LIMITS,
};
const WITH_VALUE = new Set([
  ...["device", "queue", "retry", "timeout", "key-file"],
  ...Object.keys(SERVING),
  ...Object.keys(LIMITS),
]);

/** Whether a name can be a file in /dev/blktap. The kernel's driver uses `control` and `blktapN`. */
function isName(name: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9._+-]*$/.test(name) && !/^(control|blktap\d+)$/.test(name);
}

/** A field with its escapes replaced: `\040` is the character with this octal number. */
function unescape(field: string): string {
  return field.replace(/\\([0-3][0-7]{2})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8)));
}

function parseOptions(text: string): Options | string {
  const options: Options = { ...OPEN_DEFAULTS, device: "auto", auto: true, overTcp: {} };
  for (const word of text.split(",")) {
    const [, name, equals, value] = /^([^=]*)(=?)(.*)$/s.exec(word) ?? [];
    if (!Object.hasOwn(OPTIONS, name)) return `there is no option '${name}'`;
    if (WITH_VALUE.has(name) !== (equals === "=")) {
      return `option ${name} ${equals === "=" ? "takes no" : "wants a"} value`;
    }
    const fault = OPTIONS[name](options, unescape(value));
    if (fault !== null) return fault;
  }
  return options;
}

function parseLine(text: string, line: number): ListedDevice | string {
  const [name, image, options = "defaults", ...rest] = text.split(/\s+/);
  if (!isName(name)) return `'${name}' cannot be a name under /dev/blktap`;
  if (image === undefined) return "an image, such as vhd:/srv/disk.vhd, must follow the name";
  if (!isImageName(unescape(image))) return `'${image}' is no image, such as vhd:/srv/disk.vhd`;
  if (rest.length > 0) return `nothing must follow the options, '${rest.join(" ")}' does`;
  const parsed = parseOptions(options);
  return typeof parsed === "string" ? parsed : { line, name, image: unescape(image), ...parsed };
}

/** Parses a list. Lines that are not valid are reported; the others are used. */
export function parseDeviceList(text: string): { devices: ListedDevice[]; faults: ListFault[] } {
  const devices: ListedDevice[] = [];
  const faults: ListFault[] = [];
  for (const [index, raw] of text.split("\n").entries()) {
    const content = raw.trim();
    if (content === "" || content.startsWith("#")) continue;
    const line = index + 1;
    const parsed = parseLine(content, line);
    if (typeof parsed === "string") {
      faults.push({ line, reason: parsed });
    } else if (devices.some(({ name }) => name === parsed.name)) {
      faults.push({ line, reason: `there is a disk of the name ${parsed.name} above` });
    } else {
      devices.push(parsed);
    }
  }
  return { devices, faults };
}
