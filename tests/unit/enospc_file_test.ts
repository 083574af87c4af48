/** The file that tells that an image became full. */
import assert from "node:assert/strict";
import { touchEnospcFile } from "../../src/control/minors/enospc_file.ts";

Deno.test("enospc file: it is made in the control folder, and follows no link", () => {
  const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
  const before = Deno.env.get("BLKTAP_CONTROL_DIR");
  Deno.env.set("BLKTAP_CONTROL_DIR", folder);
  try {
    touchEnospcFile(7);
    touchEnospcFile(7);
    const path = `${folder}/tapdisk-enospc7`;
    assert.equal((Deno.statSync(path).mode ?? 0) & 0o777, 0o600);
    Deno.writeTextFileSync(path, "kept");
    touchEnospcFile(7);
    assert.equal(Deno.readTextFileSync(path), "kept");
    Deno.symlinkSync(`${folder}/target`, `${folder}/tapdisk-enospc8`);
    assert.throws(() => touchEnospcFile(8), { code: "ELOOP" });
    assert.throws(() => Deno.statSync(`${folder}/target`), Deno.errors.NotFound);
  } finally {
    if (before === undefined) Deno.env.delete("BLKTAP_CONTROL_DIR");
    else Deno.env.set("BLKTAP_CONTROL_DIR", before);
    Deno.removeSync(folder, { recursive: true });
  }
});
