/**
 * A new tapdisk takes a ublk device over on a real kernel, in a machine of its own: a load that never rests would slow
 * other scripts down.
 */

import { testInMachine } from "./support/suite.ts";
import { testTimes } from "./support/times.ts";

const out = await testInMachine([
  { name: "ublk upgrade", command: ["ublk_upgrade.sh", Deno.execPath()] },
]);
if (out !== null) testTimes(`${out}/ublk_upgrade.times`);
