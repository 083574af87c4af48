/** Disks that lose and misdirect writes and flip bits, and images that other programs may have made. */
import { searched } from "../support/searched.ts";

Deno.test("bad disks: 250 disks that lie damage nothing beyond what they hit", () =>
  searched("bad-disk", "--count", "250"));

Deno.test("images: 400 chains of other programs are read alike by all readers", () =>
  searched("images", "--count", "400"));
