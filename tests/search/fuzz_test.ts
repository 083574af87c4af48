/** Hostile images, clients, servers, messages and files. */
import { searched } from "../support/searched.ts";

Deno.test("fuzzing: 200,000 cases", () => searched("fuzz", "--count", "200000"));

Deno.test("fuzzing: 50,000 images of QCOW, QCOW2 and VHDX", () =>
  searched("fuzz", "--only", "other-formats", "--count", "50000"));

Deno.test("fuzzing: a million requests of hostile guests to their rings", () =>
  searched("fuzz", "--only", "xenblkif-ring", "--count", "1000000"));
