import { Errno, messageOf } from "../../../ffi/errno.ts";
import { openChain } from "../../vhd/image/chain.ts";
import { openVhd, type VhdImage } from "../../vhd/image/image.ts";
import { readRange } from "../../vhd/image/read.ts";
import { VHD_BLOCK_SIZE, VHD_SECTOR_SIZE } from "../../vhd/format/units.ts";
import {
  type CommandCall,
  expectedErrno,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";
import { dumpHeaders } from "./dump_headers.ts";
import { headersOf } from "./headers_json.ts";
import { jsonText } from "../json.ts";
import {
  decimal,
  hexadecimal,
  type NumberFormat,
  printBatmap,
  printFooter,
  printHeader,
  printLocators,
} from "./print_headers.ts";
import { READ_TABLES, type TableRequest } from "./read_tables.ts";

/** `vhd-util read`. */
export const readCommand: Subcommand = {
  name: "read",
  summary: "Print the metadata of an image, or data of its disk",
  synopsis: "-n FILE [-p [--json]] [-tbmiejdrR NUMBER [-c COUNT]] [-Bax]",
  usage: "options:\n" +
    "-h          help\n" +
    "-n          name\n" +
    "-p          print VHD headers\n" +
    "-t sec      translate logical sector to VHD location\n" +
    "-b blk      print bat entry\n" +
    "-B          print entire bat as a bitmap\n" +
    "-m blk      print bitmap\n" +
    "-i sec      test bitmap for logical sector\n" +
    "-e sec      output extent list of allocated logical sectors\n" +
    "-a          print batmap\n" +
    "-j blk      test batmap for block\n" +
    "-d blk      print data\n" +
    "-c num      num units\n" +
    "-r sec      read num sectors at sec\n" +
    "-R byte     read num bytes at byte\n" +
    "-x          print in hex",
  options: [
    { name: "n", value: "FILE", text: "the image" },
    { name: "p", text: "print the footer, header, parent locators and batmap header" },
    { name: "t", value: "SECTOR", text: "print where in the file a sector of the disk is" },
    { name: "b", value: "BLOCK", text: "print where in the file a block is" },
    { name: "B", text: "print a bit for each block: 1 if it is allocated (binary)" },
    { name: "m", value: "BLOCK", text: "print the bitmap of a block (binary)" },
    {
      name: "i",
      value: "SECTOR",
      text: "print 1 if this image itself holds a sector, otherwise 0",
    },
    {
      name: "e",
      value: "SECTOR",
      text: "print the extents that this image holds among COUNT sectors",
    },
    { name: "a", text: "print the batmap (binary)" },
    { name: "j", value: "BLOCK", text: "print 1 if the batmap marks a block as full, otherwise 0" },
    { name: "d", value: "BLOCK", text: "print the data of a block (binary)" },
    { name: "c", value: "COUNT", text: "how many blocks, sectors or bytes to print; default: 1" },
    {
      name: "r",
      value: "SECTOR",
      text: "print sectors of the disk, read through the chain (binary)",
    },
    { name: "R", value: "BYTE", text: "print bytes of the disk, read through the chain (binary)" },
    { name: "x", text: "print numbers in hexadecimal" },
    { name: "json", text: "with -p: print JSON" },
  ],
  ignoredOptions: [{ name: "C", text: "it turns off a cache that does not exist here" }],
  followsParents: true,
  example: `
$ vhd-util read -n disk.vhd -b 0 -c 2
block: 0: offset: 3584
block: 1: offset: not allocated
$ vhd-util read -n disk.vhd -r 0 -c 1 | xxd | head -1
00000000: 5858 5858 5858 5858 5858 5858 5858 5858  XXXXXXXXXXXXXXXX`,

  run(call: CommandCall): number {
    const path = call.required("n");
    const format = call.has("x") ? hexadecimal : decimal;
    const count = call.number("c") ?? 1;
    if (call.has("json") && !call.has("p")) throw new UsageError("--json needs -p");
    for (const letter of NUMBERED) call.number(letter);
    let image: VhdImage;
    try {
      image = openVhd(path, { lenient: true, ignoreDisabled: true });
    } catch (error) {
      const errno = expectedErrno(error);
      call.output.printLine(`Failed to open ${path}: ${-errno}`);
      call.output.printLine("");
      call.output.printLine(`${path} appears invalid; dumping headers`);
      call.output.printLine("");
      call.output.printError(messageOf(error));
      dumpHeaders(call.output, path, format);
      return errno;
    }
    try {
      return readAll(call, image, { format, count });
    } finally {
      image.close();
    }
  },
};

const NUMBERED = "tbmiejdrR";

interface ReadOptions {
  readonly format: NumberFormat;
  readonly count: number;
}

function readAll(call: CommandCall, image: VhdImage, { format, count }: ReadOptions): number {
  if (call.has("p")) {
    if (call.has("json")) call.output.print(jsonText(headersOf(image)));
    else printHeaders(call, image, format);
  }
  for (const [letter, print] of READ_TABLES) {
    if (!call.has(letter)) continue;
    const first = NUMBERED.includes(letter) ? call.number(letter) ?? 0 : 0;
    const request: TableRequest = { image, output: call.output, first, count, format };
    const status = print(request);
    if (status !== 0) return status;
  }
  const sector = call.number("r");
  if (sector !== null) {
    const status = printData(call, image, {
      offsetBytes: sector * VHD_SECTOR_SIZE,
      lengthBytes: count * VHD_SECTOR_SIZE,
    });
    if (status !== 0) return status;
  }
  const byte = call.number("R");
  if (byte === null) return 0;
  return printData(call, image, { offsetBytes: byte, lengthBytes: count });
}

/** Prints all metadata of an image that could be opened. */
export function printHeaders(
  { output }: CommandCall,
  image: VhdImage,
  format: NumberFormat,
): void {
  printFooter(output, image.footer, format);
  if (image.header === null) return;
  printHeader(output, image.header, format);
  if (image.parent !== null) printLocators(output, image, format);
  if (image.batmap !== null) printBatmap(output, image.batmap, format);
  if (image.batmapFault !== null) {
    output.printLine("failed to get batmap header");
    output.printError(image.batmapFault.message);
  }
}

function printData(
  { output }: CommandCall,
  image: VhdImage,
  { offsetBytes, lengthBytes }: { offsetBytes: number; lengthBytes: number },
): number {
  if (offsetBytes + lengthBytes > image.sizeBytes) {
    output.printError(
      `Cannot read ${lengthBytes} bytes at byte ${offsetBytes} of ${image.path}: ` +
        `the disk has ${image.sizeBytes} bytes (ERANGE)`,
    );
    return Errno.ERANGE;
  }
  const chain = openChain(image.path, { ignoreDisabled: true, ignoreParentUuid: true });
  try {
    const buffer = new Uint8Array(Math.min(VHD_BLOCK_SIZE, lengthBytes));
    for (let done = 0; done < lengthBytes; done += buffer.length) {
      const part = buffer.subarray(0, Math.min(buffer.length, lengthBytes - done));
      readRange(chain, part, offsetBytes + done);
      output.printBytes(part);
    }
  } finally {
    chain.close();
  }
  return 0;
}
