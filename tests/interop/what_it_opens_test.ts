/** What a tapdisk has from its caller, and which files it makes. */
import assert from "node:assert/strict";
import { needsServed, openDescriptors, withTapdisks } from "../support/served.ts";
import { binaryPath, runOk } from "../support/tools.ts";

const served = needsServed();
const traced = needsServed("strace", "root");

Deno.test({
  name: `a tapdisk does not keep what its caller has open${served.suffix}`,
  ignore: served.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const env = { BLKTAP_CONTROL_DIR: tapdisks.controlFolder, BLKTAP_DEVICE: "none" };
      const tapCtl = `'${binaryPath("tap-ctl")}'`;
      // The caller holds a lock, and the end of a pipe, while it starts a tapdisk.
      const script = `exec 7>'${folder}/lock' 8<'${folder}/lock'; flock 7; ${tapCtl} spawn`;
      const pid = Number(await runOk("bash", ["-c", script], { env }));
      try {
        const open = Array.from(Deno.readDirSync(`/proc/${pid}/fd`), ({ name }) => {
          try {
            return Deno.readLinkSync(`/proc/${pid}/fd/${name}`);
          } catch {
            return "";
          }
        });
        assert.ok(open.length > 5 && open.length === openDescriptors(pid));
        assert.deepEqual(open.filter((target) => target === `${folder}/lock`), []);
        await runOk("flock", ["--nonblock", `${folder}/lock`, "true"]);
      } finally {
        Deno.kill(pid, "SIGTERM");
      }
    }),
});

/** Calls that make or change names, as strace prints them, with the first path of each. */
const CHANGES =
  "open,openat,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,symlink," +
  "symlinkat,link,linkat,bind,mknod,mknodat,chmod,fchmodat,chown,truncate";

/** The paths that are made, removed or opened for writing in a trace. */
function changedPaths(trace: string): string[] {
  const paths: string[] = [];
  for (const line of trace.split("\n")) {
    const call = /^\d+ +(\w+)\(/.exec(line)?.[1];
    const path = /"((?:[^"\\]|\\.)*)"/.exec(line)?.[1];
    if (call === undefined || path === undefined || / = -1 /.test(line)) continue;
    if (call.startsWith("open") && !/O_(?:WRONLY|RDWR|CREAT)/.test(line)) continue;
    paths.push(path);
  }
  return [...new Set(paths)];
}

Deno.test({
  name: `the programs make no file but those they are asked for and their state${traced.suffix}`,
  ignore: traced.ignore,
  fn: () =>
    withTapdisks(async (tapdisks, folder) => {
      const env = {
        BLKTAP_CONTROL_DIR: tapdisks.controlFolder,
        BLKTAP_DEVICE: "none",
        HOME: `${folder}/home`,
        TMPDIR: `${folder}/tmp`,
      };
      const trace = `${folder}/trace`;
      const strace = (...args: string[]): Promise<string> =>
        runOk(
          "strace",
          ["-f", "-A", "-s", "4096", "-e", `trace=${CHANGES}`, "-o", trace, ...args],
          {
            env,
          },
        );
      for (const name of ["home", "tmp"]) Deno.mkdirSync(`${folder}/${name}`);
      const vhdUtil = binaryPath("vhd-util");
      const image = `${folder}/a.vhd`;
      await strace(vhdUtil, "create", "-n", image, "-s", "8");
      await strace(vhdUtil, "snapshot", "-n", `${folder}/b.vhd`, "-p", image);
      await strace(vhdUtil, "copy", "-n", `${folder}/b.vhd`, "-N", `${folder}/c.vhd`);
      const tapCtl = binaryPath("tap-ctl");
      const script =
        `set -e; '${tapCtl}' create -a 'vhd:${image}'; '${tapCtl}' list >'${folder}/list'
        pid=$(sed -n 's/^pid=\\([0-9]*\\) .*/\\1/p' '${folder}/list')
        '${tapCtl}' destroy -p "$pid" -m 0`;
      await strace("bash", "-c", script);
      const paths = changedPaths(Deno.readTextFileSync(trace));
      assert.ok(paths.some((path) => /\/ctl\/nbd\d+\.0$/.test(path)), "the trace has no socket");
      // Its own state, what it was asked for, and what the shell opens.
      const wanted =
        /^FOLDER\/(?:ctl(?:\/|$)|[abc]\.vhd|list$)|^\/dev\/(?:null|tty|shm\/td3-\d+(?:\/\w+-0)?)$/;
      const named = paths.map((path) => path.replace(folder, "FOLDER"));
      assert.deepEqual(named.filter((path) => !wanted.test(path)), []);
      for (const name of ["home", "tmp"]) {
        assert.deepEqual([...Deno.readDirSync(`${folder}/${name}`)], []);
      }
    }),
});
