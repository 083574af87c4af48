/**
 * Properties of single kinds of block devices on a real kernel: several queues or connections,
 * leftovers. TLS in the kernel is beside them.
 */

import { testInMachine } from "./support/suite.ts";

await testInMachine([
  { name: "ublk alone", command: ["ublk.sh", Deno.execPath()] },
  { name: "nbd alone", command: ["nbd.sh", Deno.execPath()] },
  { name: "ublk upgrade", command: ["ublk_upgrade.sh", Deno.execPath()] },
  { name: "TLS in the kernel", command: ["tls.sh", Deno.execPath()] },
]);
