/** The file of a trace: it is there whole, or not at all, and an error says what happened. */
import assert from "node:assert/strict";
import { WholeFile } from "../../src/cli/tap_ctl/trace_file.ts";
import { withTempDir } from "../support/tools.ts";

Deno.test("a trace that cannot get its name leaves nothing, and says why", () =>
  withTempDir((folder) => {
    const path = `${folder}/trace`;
    const file = new WholeFile(path);
    file.write("all");
    // Another program makes a folder of that name meanwhile.
    Deno.mkdirSync(path);
    assert.throws(() => file.finish(), { code: "EISDIR", message: /^Cannot write .*trace/ });
    // As after each error.
    file.abandon();
    assert.deepEqual(Array.from(Deno.readDirSync(folder), ({ name }) => name), ["trace"]);
  }));

Deno.test("a trace replaces a file when it is whole, and not before", () =>
  withTempDir((folder) => {
    const path = `${folder}/trace`;
    Deno.writeTextFileSync(path, "before");
    const file = new WholeFile(path);
    file.write("after");
    assert.equal(Deno.readTextFileSync(path), "before");
    file.finish();
    assert.equal(Deno.readTextFileSync(path), "after");
    const other = new WholeFile(path);
    other.write("never");
    other.abandon();
    assert.equal(Deno.readTextFileSync(path), "after");
    assert.deepEqual(Array.from(Deno.readDirSync(folder), ({ name }) => name), ["trace"]);
  }));
