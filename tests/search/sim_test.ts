/** The simulator searches for power cuts that lose data. */
import { searched } from "../support/searched.ts";

Deno.test("simulator: 20,000 power cuts from fixed seeds lose nothing", () =>
  searched("sim", "--count", "20000"));

Deno.test("simulator: 1,000 power cuts lose nothing of images of QCOW", () =>
  searched("sim", "--only", "qcow", "--count", "1000"));

Deno.test("simulator: 2,000 power cuts from seeds that were never used lose nothing", () =>
  searched("sim", "--count", "2000", "--fresh"));
