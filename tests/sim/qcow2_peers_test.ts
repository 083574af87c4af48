/** QCOW2 images that QEMU and our driver write in turns, with options that seeds draw. */
import { runPeers } from "../support/qcow2_peers.ts";
import { needs, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("qemu-img", "qemu-io");

for (let seed = 1; seed <= 10; seed++) {
  Deno.test({
    name: `QEMU and the driver write a QCOW2 in turns, seed ${seed}${suffix}`,
    ignore,
    fn: () => withTempDir((folder) => runPeers(folder, seed)),
  });
}
