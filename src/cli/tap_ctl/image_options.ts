import { type Command, Option } from "commander";
import { Errno, SystemError } from "../../../ffi/errno.ts";
import { NO_LIMITS } from "../../vbd/rate_limits.ts";
import { limitChanges, type LimitChoices, limitOptions } from "./limit_options.ts";
import {
  DEVICE_CHOICES,
  type DeviceChoice,
  NO_SECONDARY,
  type OpenRequest,
  QUEUE_CHOICES,
} from "../../control/protocol/open_request.ts";
import { absolutePath } from "./paths.ts";
import type { ServeChoices } from "../../control/client/serve_choices.ts";
import { requestOf, serveOptions } from "./serve_options.ts";
import { RETRY_POLICIES } from "../../vbd/retry.ts";
import { parseMinor, parseSeconds } from "./options.ts";

/** The options of `create` and `open`, as they are parsed. */
export interface ImageChoices
  extends Pick<OpenRequest, "device" | "queue" | "direct" | "retry">, LimitChoices, ServeChoices {
  readonly args: string;
  readonly readOnly?: boolean;
  readonly localCache?: boolean;
  readonly log?: string;
  readonly secondary?: string;
  readonly standby?: boolean;
  readonly existingParent?: number;
  readonly timeout?: number;
}

/** `--device`. */
export function deviceChoice(
  preset: DeviceChoice,
  text = "the kind of block device to make",
): Option {
  return new Option("--device <kind>", text)
    .choices(DEVICE_CHOICES).default(preset);
}

/** The options of `create` and `open`, which differ in `device`. */
export function imageOptions(command: Command, device: Option): Command {
  const queue = new Option("--queue <kind>", "the kernel's interface for disk I/O")
    .choices(QUEUE_CHOICES).default("auto");
  const retry = new Option("--retry <which>", "which errors of the disk are tried again")
    .choices(RETRY_POLICIES).default("all");
  command
    .requiredOption("-a, --args <type:/path>", "the image, such as vhd:/srv/disk.vhd")
    .option("-R, --read-only", "refuse writes")
    .option("-r, --local-cache", "keep in the image what is read from its parents")
    .option("-C, --log <file>", "note changed blocks in this log, which cbt-util made")
    .option("-2, --secondary <type:/path>", "write to this image as well; it takes over when full")
    .option(
      "-e, --existing-parent <minor>",
      "read from this device what the image lacks, and not from its parent",
      parseMinor,
    )
    .option("-s, --standby", "write to the secondary image only when the image is full")
    .option("-t, --timeout <seconds>", "fail a request that takes longer", parseSeconds)
    .option("-D, --no-direct", "use the page cache (no O_DIRECT)")
    .addOption(retry)
    .addOption(device)
    .addOption(queue);
  return serveOptions(limitOptions(command));
}

/** Makes the path in an image's name absolute. */
export type AbsoluteName = (name: string) => string;

/** The request that the options of `create` and `open` make. */
export function openRequest(
  absolute: AbsoluteName,
  { args, readOnly = false, localCache = false, timeout = 0, ...rest }: ImageChoices,
): OpenRequest {
  const { direct, retry, device, queue, log, secondary, standby = false } = rest;
  const { existingParent = null } = rest;
  const serve = requestOf(rest);
  if (standby && secondary === undefined) {
    throw new SystemError(Errno.EINVAL, "Cannot stand by without a secondary image (-s needs -2)");
  }
  return {
    image: absolute(args),
    readOnly,
    direct,
    localCache,
    requestTimeoutSeconds: timeout,
    retry,
    device,
    queue,
    changedBlocks: absoluteFile(log),
    secondary: secondaryImage(absolute, secondary) ?? null,
    standby,
    limits: { ...NO_LIMITS, ...limitChanges(rest) },
    existingParent,
    serve: serve === null ? [] : [serve],
  };
}

/** The secondary image that `-2` names: null for none; undefined without the option. */
export function secondaryImage(
  absolute: AbsoluteName,
  name: string | undefined,
): string | null | undefined {
  return name === undefined ? undefined : name === NO_SECONDARY ? null : absolute(name);
}

/** A file with an absolute path; null without one. */
export function absoluteFile(path?: string): string | null {
  return path === undefined ? null : absolutePath(path);
}
