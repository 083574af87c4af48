import assert from "node:assert/strict";
import { type ControlBench, withControlBench } from "../support/control.ts";

Deno.test("tap-ctl: every command has help", () => withControlBench(allHaveHelp));

async function allHaveHelp(bench: ControlBench): Promise<void> {
  const help = await bench.ok("--help");
  const commands = [...help.matchAll(/^ {2}([a-z]+) {2,}\S/gm)].map((match) => match[1]);
  assert.deepEqual(
    commands,
    ("list allocate free create destroy recover upgrade spawn attach detach open close serve unserve restore pause " +
      "unpause snapshot resize limit stats explain trace top metrics log major check").split(" "),
  );
  assert.equal(await bench.ok("help"), help);
  for (const command of commands) {
    // One is as good as the other, and each call starts a process.
    const option = command.length % 2 === 0 ? "--help" : "-h";
    const text = await bench.ok(`${command} ${option}`);
    assert.match(text, new RegExp(`^Usage: tap-ctl ${command} `));
  }
}
