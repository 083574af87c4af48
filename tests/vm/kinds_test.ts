/**
 * Properties of single kinds of block devices on a real kernel: several queues or connections,
 * leftovers. TLS in the kernel is beside them.
 */

import { testInMachine } from "./support/suite.ts";
import { testTimes } from "./support/times.ts";

const out = await testInMachine([
  { name: "ublk alone", command: ["ublk.sh", Deno.execPath()] },
  { name: "nbd alone", command: ["nbd.sh", Deno.execPath()] },
  { name: "TLS in the kernel", command: ["tls.sh", Deno.execPath()] },
]);
if (out !== null) testTimes(`${out}/tls_upgrade.times`);
