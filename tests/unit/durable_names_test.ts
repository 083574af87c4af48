/** Changes of names are on stable storage before they are reported. */
import assert from "node:assert/strict";
import { Errno, SystemError } from "../../ffi/errno.ts";
import { changeNames } from "../../src/files/names.ts";

Deno.test("the folders of names are synced after their change, each once and in order", () => {
  const steps: string[] = [];
  const sync = { syncFolder: (folder: string): void => void steps.push(folder) };
  const paths = ["/a/new", "/b/old", "/a/other", "plain", "/top"];
  const result = changeNames(sync, paths, () => {
    steps.push("change");
    return 7;
  });
  assert.equal(result, 7);
  assert.deepEqual(steps, ["change", "/a", "/b", ".", "/"]);
});

Deno.test("a change of names that fails syncs nothing, a sync that fails is reported", () => {
  const steps: string[] = [];
  const sync = {
    syncFolder(folder: string): void {
      steps.push(folder);
      throw new SystemError(Errno.EIO, `Cannot sync ${folder}`);
    },
  };
  const change = (): never => {
    throw new SystemError(Errno.EEXIST, "Cannot rename");
  };
  assert.throws(() => changeNames(sync, ["/a/b"], change), { code: "EEXIST" });
  assert.deepEqual(steps, []);
  assert.throws(() => changeNames(sync, ["/a/b", "/c/d"], () => {}), { code: "EIO" });
  assert.deepEqual(steps, ["/a"]);
});
