import { needs } from "../support/tools.ts";
import { VHD_UTIL } from "../../src/cli/vhd_util/main.ts";
import { holdToTranscript, inWorkingFolder } from "../support/golden_transcript.ts";
import { goldenImage, goldenText, vhdUtil } from "../support/vhd.ts";

/**
 * Replaces the parts that differ between runs: folder, UUIDs in order of appearance, times,
 * checksums.
 */
function normalise(transcript: string, folder: string): string {
  const seen = new Map<string, string>();
  const numbered = (uuid: string): string => {
    if (/^[0-]+$/.test(uuid)) return uuid;
    if (!seen.has(uuid)) seen.set(uuid, `UUID${seen.size + 1}`);
    return seen.get(uuid) ?? uuid;
  };
  return transcript
    .replaceAll(folder, "DIR")
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g, numbered)
    .replace(/[SMTWF][a-z]{2} [JFMASOND][a-z]{2} +[0-9]+ [0-9:]{8} [0-9]{4}/g, "TIME")
    .replace(/0x[0-9a-f]{8}\|0x[0-9a-f]{8}/g, "0xSUM|0xSUM");
}

/** Lines that print the result of an earlier subcommand, which may not be implemented. */
const DEPENDENT: ReadonlyMap<string, string> = new Map([
  ["vhd-util query -f -n a.vhd", "set"],
  ["vhd-util read -n base.vhd -r 64 -c 1 | xxd | head -2", "coalesce"],
  ["vhd-util read -n base.vhd -r 8192 -c 1 | xxd | head -2", "coalesce"],
]);

function isCovered(line: string): boolean {
  const name = DEPENDENT.get(line) ?? /^vhd-util ([a-z]+)/.exec(line)?.[1];
  return name === undefined || VHD_UTIL.subcommands.has(name);
}

const { ignore, suffix } = needs("bash", "xxd");

Deno.test({
  name: `vhd-util answers as the reference does, command by command${suffix}`,
  ignore,
  fn: (test) =>
    inWorkingFolder(async (folder) => {
      Deno.writeFileSync("base.vhd", await goldenImage("base.vhd"));
      Deno.writeFileSync("child.vhd", await goldenImage("child.vhd"));
      const program = {
        name: "vhd-util",
        run: vhdUtil,
        hasErrors: true,
        normalise: (transcript: string): string => normalise(transcript, folder),
      };
      await holdToTranscript(test, program, {
        expected: goldenText("vhd-util.expected"),
        isCovered,
      });
    }),
});
