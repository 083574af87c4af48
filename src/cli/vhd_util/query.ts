import { Errno, messageOf } from "../../../ffi/errno.ts";
import { DD_BLK_UNUSED } from "../../vhd/format/bat.ts";
import { resolveParent, unresolvedParent } from "../../vhd/image/parent.ts";
import { HD_FOOTER_SIZE } from "../../vhd/format/footer.ts";
import { openVhd, type VhdImage } from "../../vhd/image/image.ts";
import { VHD_SECTOR_SIZE } from "../../vhd/format/units.ts";
import { type CommandCall, expectedErrno, type Subcommand } from "../subcommands/command.ts";
import { jsonText } from "../json.ts";
import { depthOf, factsOf } from "./query_json.ts";

const MIB = 1024 * 1024;

/** `vhd-util query`. */
export const queryCommand: Subcommand = {
  name: "query",
  summary: "Print facts about an image, one a line, in the order of the options",
  synopsis: "-n FILE {[-vspfmdaSub] | --json [-b]}",
  usage: "options: <-n name> [-v print virtual size (in MB)] " +
    "[-s print physical utilization (bytes)] [-p print parent] " +
    "[-f print fields] [-m print marker] [-d print chain depth] " +
    "[-S print max virtual size (MB) for fast resize] " +
    "[-a print allocated block count] " +
    "[-u don't resolve parent path] " +
    "[-b don't trust the footer, use the back-up one instead] " +
    "[-h help]",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "v", text: "print the size of the disk in MiB" },
    { name: "s", text: "print how many bytes of the file are in use" },
    { name: "p", text: "print the path of the parent" },
    { name: "f", text: "print the hidden flag" },
    { name: "m", text: "print the marker byte" },
    { name: "d", text: "print the number of layers in the chain" },
    { name: "a", text: "print the number of allocated blocks" },
    { name: "S", text: "print the size in MiB that 'resize -f' can grow the disk to" },
    { name: "u", text: "with -p: print the stored path without looking for the file" },
    { name: "b", text: "use the backup footer, even if the one at the end is valid" },
    { name: "json", text: "print JSON: all facts" },
  ],
  followsParents: true,
  example: `
$ vhd-util query -vsp -n today.vhd
10240
45568
/images/disk.vhd`,

  run(call: CommandCall): number {
    const path = call.required("n");
    let image: VhdImage;
    try {
      const useBackupFooter = call.has("b");
      image = openVhd(path, { lenient: true, ignoreDisabled: true, useBackupFooter });
    } catch (error) {
      const errno = expectedErrno(error);
      call.output.printLine(`error opening ${path}: ${-errno}`);
      call.output.printError(messageOf(error));
      return errno;
    }
    try {
      return call.has("json") ? printJson(call, image) : printFacts(call, image);
    } finally {
      image.close();
    }
  },
};

/** Printers by option letter. Each returns 0 or an error number. */
const FACTS: readonly (readonly [string, (call: CommandCall, image: VhdImage) => number])[] = [
  ["v", printVirtualSize],
  ["s", printPhysicalSize],
  ["p", printParent],
  ["f", printHidden],
  ["m", printMarker],
  ["d", printDepth],
  ["a", printAllocated],
  ["S", printMaxSize],
];

function printFacts(call: CommandCall, image: VhdImage): number {
  let status = 0;
  for (const [letter, print] of FACTS) {
    if (!call.has(letter)) continue;
    const errno = print(call, image);
    if (status === 0) status = errno;
  }
  return status;
}

function printJson({ output }: CommandCall, image: VhdImage): number {
  const { facts, status } = factsOf(image, { physicalSizeBytes: physicalSize(image) });
  output.print(jsonText(facts));
  return status;
}

function printVirtualSize({ output }: CommandCall, image: VhdImage): number {
  output.printLine(`${Math.floor(image.sizeBytes / MIB)}`);
  return 0;
}

function printPhysicalSize({ output }: CommandCall, image: VhdImage): number {
  output.printLine(`${physicalSize(image)}`);
  return 0;
}

function physicalSize(image: VhdImage): number {
  return image.type === "fixed"
    ? image.file.sizeBytes()
    : image.endOfDataSector * VHD_SECTOR_SIZE + HD_FOOTER_SIZE;
}

function printParent(call: CommandCall, image: VhdImage): number {
  const { output } = call;
  if (image.parent === null) {
    output.printLine(`${image.path} has no parent`);
    return 0;
  }
  try {
    const stored = call.has("u") ? unresolvedParent(image) : null;
    output.printLine(`${stored ?? resolveParent(image, { anyUuid: true })}`);
    return 0;
  } catch (error) {
    const errno = expectedErrno(error);
    output.printLine("query failed");
    output.printError(messageOf(error));
    return errno;
  }
}

function printHidden({ output }: CommandCall, image: VhdImage): number {
  output.printLine(`hidden: ${image.footer.hidden}`);
  return 0;
}

function printMarker({ output }: CommandCall, image: VhdImage): number {
  output.printLine(`marker: ${image.batmap?.header.marker ?? 0}`);
  return 0;
}

function printDepth({ output }: CommandCall, image: VhdImage): number {
  try {
    output.printLine(`chain depth: ${depthOf(image)}`);
    return 0;
  } catch (error) {
    const errno = expectedErrno(error);
    output.printLine(`error checking chain depth: ${-errno}`);
    output.printError(messageOf(error));
    return errno;
  }
}

function printAllocated({ output }: CommandCall, image: VhdImage): number {
  if (image.type === "fixed") {
    output.printLine(`error reading bat: ${-Errno.EINVAL}`);
    return Errno.EINVAL;
  }
  let used = 0;
  for (let block = 0; block < image.blocks; block++) {
    if (image.bat[block] !== DD_BLK_UNUSED) used++;
  }
  output.printLine(`${used}`);
  return 0;
}

function printMaxSize({ output }: CommandCall, image: VhdImage): number {
  const bytes = (image.header?.maxBatEntries ?? 0) * image.blockSizeBytes;
  output.printLine(`${Math.floor(bytes / MIB)}`);
  return 0;
}
