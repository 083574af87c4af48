/**
 * Sets the flag of an idle io_uring by which the kernel tells of work that it holds back, and then
 * looks for completions. The kernel can leave this flag set when it adds work on one processor while
 * another one does it. Prints how many completions there are and the flags; it may not go on for ever.
 *
 * @module
 */
import { memoryAt } from "../../ffi/libc.ts";
import { Uring } from "../../ffi/uring.ts";
import { mapRing, PARAMS_SQ_OFF, setUpRing } from "../../ffi/uring_setup.ts";

const IORING_OFF_SQ_RING = 0;
const IORING_SQ_TASKRUN = 1 << 2;

/** The descriptor of the only ring of this process. */
function descriptorOfRing(): number {
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      if (Deno.readLinkSync(`/proc/self/fd/${name}`) === "anon_inode:[io_uring]") {
        return Number(name);
      }
    } catch {
      // The descriptor of the folder itself is gone by now.
    }
  }
  throw new Error("This process has no io_uring");
}

const ring = new Uring(8, 16);
const address = mapRing(descriptorOfRing(), 4096, IORING_OFF_SQ_RING);
const words = new Int32Array(memoryAt(address, 4096));
const flagsAt = setUpRing(8, 16).params[PARAMS_SQ_OFF + 4] / 4;
ring.prepareNothing(1, 1);
ring.submit();
console.log(`completions ${ring.completions()}`);
ring.consume(1);
Atomics.or(words, flagsAt, IORING_SQ_TASKRUN);
console.log(`completions ${ring.completions()}, flags ${Atomics.load(words, flagsAt)}`);
