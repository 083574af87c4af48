import assert from "node:assert/strict";
import { needsServed } from "../support/served.ts";
import { binaryPath, run } from "../support/tools.ts";

const { ignore, suffix } = needsServed("root", "setpriv");
/** The number of a user without rights. */
const NOBODY = 65534;

Deno.test({
  name: `a user's tapdisk that has a key reads an image: its blocks are not moved${suffix}`,
  ignore,
  async fn() {
    const folder = Deno.makeTempDirSync({ prefix: "blktap-test-" });
    Deno.chownSync(folder, NOBODY, NOBODY);
    const env = { BLKTAP_CONTROL_DIR: `${folder}/control`, BLKTAP_DEVICE: "none", HOME: folder };
    /** Runs a program as a user without rights, who cannot see what a tapdisk with a key has open. */
    const asUser = async (name: "tap-ctl" | "vhd-util", args: string, code = 0) => {
      const user = ["--reuid", `${NOBODY}`, "--regid", `${NOBODY}`, "--clear-groups"];
      const command = [...user, binaryPath(name), ...args.split(" ")];
      const result = await run("setpriv", command, { env, cwd: folder });
      assert.equal(result.code, code, `${name} ${args}: ${result.stderr}`);
      return result;
    };
    const [parent, child, secret] = ["parent", "child", "secret"].map((n) => `${folder}/${n}.vhd`);
    const keyFile = `${folder}/secret,aes-xts-plain,512.key`;
    await asUser("vhd-util", `create -n ${parent} -s 16`);
    await asUser("vhd-util", `fill -n ${parent} -b`);
    await asUser("vhd-util", `snapshot -n ${child} -p ${parent}`);
    await asUser("vhd-util", `create -n ${secret} -s 16`);
    Deno.writeFileSync(keyFile, crypto.getRandomValues(new Uint8Array(64)));
    Deno.chownSync(keyFile, NOBODY, NOBODY);
    await asUser("vhd-util", `key -s -n ${secret} -k ${keyFile}`);
    const pid = (await asUser("tap-ctl", "spawn")).stdout.trim();
    try {
      for (const [minor, image] of [[0, `vhd:${child}`], [1, `vhd:${secret} -k ${keyFile}`]]) {
        await asUser("tap-ctl", "allocate");
        await asUser("tap-ctl", `attach -p ${pid} -m ${minor}`);
        await asUser("tap-ctl", `open -p ${pid} -m ${minor} -a ${image}`);
      }
      const resize = `resize -n ${parent} -s 4096 -j ${folder}/journal`;
      const refused = await asUser("vhd-util", resize, 16);
      assert.match(refused.stderr, /has it open, perhaps a tapdisk whose files only root can see/);
      await asUser("tap-ctl", `destroy -p ${pid} -m 0`);
      await asUser("vhd-util", resize);
    } finally {
      Deno.kill(Number(pid), "SIGKILL");
      Deno.removeSync(folder, { recursive: true });
    }
  },
});
