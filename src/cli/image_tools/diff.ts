import { Errno } from "../../../ffi/errno.ts";
import { diffImages } from "../../images/diff.ts";
import { imageName } from "../../images/names.ts";
import { interruptible } from "../interruption.ts";
import { type ImageTool, valueOf } from "./tool.ts";

/** `tapdisk-diff`. */
export const diffTool: ImageTool = {
  name: "tapdisk-diff",
  summary: "Compare two disks",
  synopsis: "-n TYPE:PATH -m TYPE:PATH",
  text: "The exit status is 0 for disks that are alike, and 22 for others. The first sector that " +
    "differs\nis printed. In the original the first image had to be a VHD.",
  letters: "n:m:",
  operands: [0, 0],
  async run(call): Promise<number | null> {
    const [first, second] = [valueOf(call, "n"), valueOf(call, "m")];
    if (first === null || second === null) return null;
    const { sizesBytes: [a, b], ranges } = await interruptible((signal) =>
      diffImages(imageName(first), imageName(second), { signal })
    );
    if (a !== b) {
      call.output.printError(`Image sizes differ: ${a / 512} != ${b / 512}`);
      return Errno.EINVAL;
    }
    if (ranges.length === 0) return 0;
    call.output.printError(`mismatch at sector ${ranges[0].offsetBytes / 512}`);
    return Errno.EINVAL;
  },
};
