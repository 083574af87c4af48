import { Errno, SystemError } from "../../../ffi/errno.ts";
import { osStorage } from "../../files/storage.ts";
import { snapshotImage } from "../../images/change.ts";
import { convertImage } from "../../images/convert.ts";
import { createImage } from "../../images/create.ts";
import { replaceRaw } from "../../images/replace_raw.ts";
import { interruptible } from "../interruption.ts";
import { openProgress } from "../progress.ts";
import type { ImageTool, ToolCall } from "./tool.ts";
import { wholeNumber } from "./tool.ts";

const MIB = 1 << 20;

/** `img2qcow`. */
export const fromRawTool: ImageTool = {
  name: "img2qcow",
  summary: "Make a QCOW of version 1 from a raw image",
  synopsis: "QCOW RAW",
  text: "The QCOW must not exist.",
  letters: "",
  operands: [2, 2],
  async run({ operands: [to, from] }): Promise<number> {
    await withBar(
      "copy",
      (signal, onProgress) => convertImage(`aio:${from}`, `qcow:${to}`, { signal, onProgress }),
    );
    return 0;
  },
};

/** `qcow2raw`. */
export const toRawTool: ImageTool = {
  name: "qcow2raw",
  summary: "Copy the disk of a QCOW of version 1 into a raw file or a device",
  synopsis: "RAW QCOW",
  text:
    "A file or a device that exists is overwritten if that is confirmed with 'y' on standard input.",
  letters: "",
  operands: [2, 2],
  async run(call): Promise<number> {
    const [to, from] = call.operands;
    const exists = osStorage.exists(to);
    if (exists && !isConfirmed(call, to)) return Errno.ECANCELED;
    await withBar("copy", async (signal, onProgress) => {
      const options = { signal, onProgress };
      if (exists) await replaceRaw(`qcow:${from}`, to, options);
      else await convertImage(`qcow:${from}`, `aio:${to}`, options);
    });
    return 0;
  },
};

function isConfirmed({ output }: ToolCall, path: string): boolean {
  output.printError(`WARNING: All existing data in ${path} will be overwritten.`);
  output.printError("Do you wish to continue? (y or n)");
  const answer = new Uint8Array(1);
  const got = Deno.stdin.readSync(answer);
  if (got === 1 && String.fromCharCode(answer[0]) === "y") return true;
  output.printError("Nothing was changed");
  return false;
}

/** `qcow-create`. */
export const createTool: ImageTool = {
  name: "qcow-create",
  summary: "Make an empty QCOW of version 1",
  synopsis: "[-r] MIB QCOW [BACKING]",
  text:
    "-r gives the tables room at once. BACKING is named raw:FILE or qcow:FILE; without that, it is\n" +
    "raw, and refused if it begins like a QCOW.",
  letters: "r",
  operands: [2, 3],
  run({ options, operands: [size, path, backing] }): number | null {
    const mib = wholeNumber(size);
    if (mib === null || mib === 0) return null;
    const sizeBytes = mib * MIB;
    const reserve = options.length > 0;
    if (backing === undefined) createImage(`qcow:${path}`, { sizeBytes, fixed: reserve });
    else snapshotImage(backingName(backing), `qcow:${path}`, { sizeBytes, fixed: reserve });
    return 0;
  },
};

/**
 * The name of a backing file, with its type.
 *
 * @throws {SystemError} EINVAL for a file without a type that may be a QCOW: its content is not trusted.
 */
function backingName(given: string): string {
  if (given.startsWith("raw:")) return `aio:${given.slice(4)}`;
  if (given.startsWith("qcow:")) return given;
  const file = osStorage.open(given, "read");
  try {
    const start = new Uint8Array(4);
    file.readAt(start, 0);
    if (String.fromCharCode(...start.subarray(0, 3)) !== "QFI") return `aio:${given}`;
  } finally {
    file.close();
  }
  const why = "it begins like a QCOW, which a guest can write into a raw image too";
  throw new SystemError(Errno.EINVAL, `Cannot use ${given} as a backing file: ${why}`, {
    hint: `name it qcow:${given} or raw:${given}`,
  });
}

async function withBar<T>(
  label: string,
  work: (signal: AbortSignal, onProgress: (done: number, total: number) => void) => Promise<T>,
): Promise<T> {
  const progress = await openProgress(label);
  try {
    return await interruptible((signal) => work(signal, progress.update));
  } finally {
    progress.stop();
  }
}
