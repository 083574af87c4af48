import { confinementOf } from "../../files/confinement.ts";
import { osStorage } from "../../files/storage.ts";
import { Errno, errnoName, messageOf, SystemError } from "../../../ffi/errno.ts";
import {
  ancestorPaths,
  type ChainCheckOptions,
  chainFinding,
  checkImage,
} from "../../vhd/check/check.ts";
import { type LayerStatistics, layerStatistics } from "../../vhd/check/check_stats.ts";
import { VhdChainError } from "../../vhd/image/errors.ts";
import type { Finding } from "../../vhd/check/findings.ts";
import { openVhd, type VhdImage } from "../../vhd/image/image.ts";
import { fileNameOf } from "../../files/paths.ts";
import { openProgress } from "../progress.ts";
import {
  type CommandCall,
  expectedErrno,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";
import { dumpHeaders } from "./dump_headers.ts";
import { jsonText } from "../json.ts";
import type { Output } from "../subcommands/output.ts";
import { decimal } from "./print_headers.ts";

/** `vhd-util check`. */
export const checkCommand: Subcommand = {
  name: "check",
  summary: "Check an image for damage; nothing is changed",
  synopsis: "-n FILE [-iItBpbs] [--json]",
  usage: "options: -n <file> [-i ignore missing primary footers] " +
    "[-I ignore parent uuids] [-t ignore timestamps] " +
    "[-B do not check BAT for overlapping (precludes -s, -b)] " +
    "[-p check parents] [-b check bitmaps] [-s stats] [-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "i", text: "accept a missing footer, as after a crash; use the backup" },
    { name: "I", text: "do not compare UUIDs with those of the parents" },
    { name: "t", text: "accept time stamps in the future" },
    { name: "B", text: "do not check for overlapping blocks; not with -b or -s" },
    { name: "p", text: "check the parents too" },
    { name: "b", text: "check bitmaps, and the data that they describe" },
    { name: "s", text: "print the allocated and written sectors of each layer" },
    { name: "json", text: "print JSON: all findings, image by image" },
  ],
  followsParents: true,
  example: `
$ vhd-util check -n today.vhd -p
today.vhd is valid
/images/disk.vhd is valid`,

  async run(call: CommandCall): Promise<number> {
    const path = call.required("n");
    if (call.has("B") && (call.has("s") || call.has("b"))) throw new UsageError(null);
    const progress = call.has("b") ? await openProgress("check") : null;
    const options: ChainCheckOptions = {
      ignoreFooter: call.has("i"),
      ignoreParentUuid: call.has("I"),
      ignoreTimestamps: call.has("t"),
      checkOverlaps: !call.has("B"),
      checkData: call.has("b"),
      onProgress: progress?.update,
    };
    try {
      return checkAll(call, path, options);
    } finally {
      progress?.stop();
    }
  },
};

function checkAll(call: CommandCall, path: string, given: ChainCheckOptions): number {
  const options = { ...given, confinement: confinementOf(osStorage, path) };
  if (call.has("json")) return checkAsJson(call, path, options);
  const status = checkOne(call, path, options);
  if (status !== 0) return status;
  const parents: string[] = [];
  const parentStatus = call.has("p") ? checkParents(call, path, { options, parents }) : 0;
  if (call.has("s")) printStatistics(call.output, [path, ...parents].reverse());
  return parentStatus;
}

interface JsonReport {
  readonly path: string;
  readonly valid: boolean;
  readonly findings: readonly Finding[];
  readonly error?: string;
}

function checkAsJson(call: CommandCall, path: string, options: ChainCheckOptions): number {
  const images: JsonReport[] = [];
  let status = 0;
  const check = (image: string): void => {
    const { valid, findings } = checkImage(image, options);
    images.push({ path: image, valid, findings });
    if (!valid) status = Errno.EINVAL;
  };
  try {
    check(path);
    const parents = call.has("p") && status === 0 ? ancestorPaths(path) : [];
    for (const parent of parents) if (status === 0) check(parent);
  } catch (error) {
    status = expectedErrno(error);
    const findings = error instanceof VhdChainError ? [chainFinding(error)] : [];
    const where = error instanceof VhdChainError ? error.path : path;
    images.push({ path: where, valid: false, findings, error: messageOf(error) });
  }
  const valid = status === 0;
  const statistics = valid && call.has("s")
    ? { statistics: statisticsOf(images.map((image) => image.path).reverse()) }
    : {};
  call.output.print(jsonText({ valid, images, ...statistics }));
  return status;
}

function checkOne(call: CommandCall, path: string, options: ChainCheckOptions): number {
  const { output } = call;
  try {
    const { valid, findings } = checkImage(path, options);
    for (const finding of findings) output.printLine(`${lineOf(finding)}`);
    if (!valid) {
      output.printLine(`${path} appears invalid; dumping metadata`);
      dumpHeaders(output, path, decimal);
      return Errno.EINVAL;
    }
  } catch (error) {
    const errno = expectedErrno(error);
    output.printLine(
      error instanceof SystemError && errno === Errno.ENOENT
        ? `cannot stat ${path}: ${errno}`
        : `error opening ${path}: ${errnoName(errno)}`,
    );
    output.printError(messageOf(error));
    return errno;
  }
  if (!call.has("s")) output.printLine(`${path} is valid`);
  return 0;
}

function lineOf({ severity, message, field, offsetBytes }: Finding): string {
  const prefix = severity === "warning" ? "warning: " : "";
  return `${prefix}${message} (${field} at byte ${offsetBytes})`;
}

/** Checks all ancestors; those that are valid are added to `parents`. */
function checkParents(
  call: CommandCall,
  path: string,
  { options, parents }: { options: ChainCheckOptions; parents: string[] },
): number {
  let status = 0;
  try {
    for (const ancestor of ancestorPaths(path)) {
      status = checkOne(call, ancestor, options);
      if (status !== 0) break;
      parents.push(ancestor);
    }
  } catch (error) {
    status = expectedErrno(error);
    if (error instanceof VhdChainError) call.output.printLine(`${lineOf(chainFinding(error))}`);
    call.output.printError(messageOf(error));
  }
  if (status !== 0) call.output.printLine(`error checking parents: ${-status}`);
  return status;
}

/** Prints a line for each image of a chain, the last ancestor first. */
function printStatistics(output: Output, paths: readonly string[]): void {
  statisticsOf(paths).forEach((entry, index) => {
    output.printLine(index === 0 ? firstLine(entry) : laterLine(entry));
  });
}

function statisticsOf(paths: readonly string[]): LayerStatistics[] {
  const images: VhdImage[] = [];
  try {
    for (const path of paths) {
      const image = openVhd(path, { ignoreDisabled: true });
      if (image.type === "fixed") image.close();
      else images.push(image);
    }
    return layerStatistics(images);
  } finally {
    images.forEach((image) => image.close());
  }
}

function firstLine({ path, allocated, written }: LayerStatistics): string {
  return `${fileNameOf(path)}: secs allocated: 0x${allocated.toString(16)} ` +
    `secs written: 0x${written.toString(16)} (${percent(written, allocated)})`;
}

function laterLine(entry: LayerStatistics): string {
  const { written, notInParent, notInAncestors } = entry;
  return `${firstLine(entry)} secs not in parent: 0x${notInParent.toString(16)} ` +
    `(${percent(notInParent, written)}) secs not in ancestors: 0x${notInAncestors.toString(16)} ` +
    `(${percent(notInAncestors, written)})`;
}

function percent(part: number, whole: number): string {
  const ratio = whole === 0 ? 0 : Math.fround(Math.fround(part / whole) * 100);
  return `${ratio.toFixed(2)}%`;
}
