/**
 * Makes an empty image on Ceph as a copy does, in a process of its own: the name, and how old in seconds
 * must be what earlier processes left.
 *
 * @module
 */
import { writeOnCeph } from "../../src/images/on_ceph.ts";

if (import.meta.main) {
  const [name, leftSeconds] = Deno.args;
  await writeOnCeph({ name, sizeBytes: 1 << 20 }, () => Promise.resolve(), Number(leftSeconds));
}
