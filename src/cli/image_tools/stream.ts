import { imageName } from "../../images/names.ts";
import { streamTo } from "../td_util/stream.ts";
import { type ImageTool, valueOf, wholeNumber } from "./tool.ts";

/** `tapdisk-stream`. */
export const streamTool: ImageTool = {
  name: "tapdisk-stream",
  summary: "Write the content of a disk to standard output",
  synopsis: "-n TYPE:PATH [-c SECTORS] [-s SECTORS]",
  text: "-c writes so many sectors of 512 bytes, -s leaves out so many at the start.",
  letters: "n:c:s:",
  operands: [0, 0],
  async run(call): Promise<number | null> {
    const image = valueOf(call, "n");
    const skip = wholeNumber(valueOf(call, "s") ?? "0");
    const count = valueOf(call, "c");
    const sectors = count === null ? undefined : wholeNumber(count);
    if (image === null || skip === null || sectors === null) return null;
    await streamTo(call.output, imageName(image), { skip, count: sectors });
    return 0;
  },
};
