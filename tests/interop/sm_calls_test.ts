/**
 * The calls of XenServer's storage manager, with all options that it can pass, against what the
 * reference answers to the same calls: output and exit statuses.
 */
import { withControlBench } from "../support/control.ts";
import { assertTranscript } from "../support/golden_transcript.ts";
import { playCalls } from "../support/sm_scenario.ts";
import { binaryPath, needs, run } from "../support/tools.ts";
import { goldenImage, goldenText } from "../support/vhd.ts";

const { ignore, suffix } = needs("dist/blktap");

Deno.test({
  name: `the storage manager's calls are answered as the reference answers them${suffix}`,
  ignore,
  fn: (test) =>
    withControlBench(async ({ folder, control, env }) => {
      const images = `${Deno.realPathSync(folder)}/images`;
      Deno.mkdirSync(images);
      const actual = await playCalls({
        folder: images,
        control,
        image: await goldenImage("base.vhd"),
        run: (program, args, stdin) => run(binaryPath(program), [...args], { env, stdin }),
      });
      await assertTranscript(test, { expected: goldenText("sm-calls.expected"), actual });
    }),
});
