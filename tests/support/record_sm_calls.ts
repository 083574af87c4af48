/**
 * Records what programs answer to the calls of the storage manager:
 *
 *     deno run -A tests/support/record_sm_calls.ts BIN CONTROL >tests/data/golden/sm-calls.expected
 *
 * `BIN` has tap-ctl, cbt-util and vhd-util; `CONTROL` is the control folder that tap-ctl uses.
 *
 * @module
 */
import { run } from "./tools.ts";
import { playCalls } from "./sm_scenario.ts";
import { goldenImage } from "./vhd.ts";

const [bin, control] = Deno.args;
const folder = Deno.realPathSync(Deno.makeTempDirSync({ prefix: "blktap-test-" }));
const text = await playCalls({
  folder,
  control,
  image: await goldenImage("base.vhd"),
  run: (program, args, stdin) =>
    run(`${bin}/${program}`, [...args], { stdin, env: { LC_ALL: "C" }, timeoutMs: 60_000 }),
});
Deno.removeSync(folder, { recursive: true });
await Deno.stdout.write(new TextEncoder().encode(text));
