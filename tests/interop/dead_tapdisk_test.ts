import assert from "node:assert/strict";
import { fio } from "../support/fio.ts";
import { CmdFlag, NbdClient, noise } from "../support/nbd_client.ts";
import { createVhd, needsServed, vhdUtilOk, withTapdisks } from "../support/served.ts";

const MIB = 1024 * 1024;
const { ignore, suffix } = needsServed("fio");

for (const way of ["destroy", "free"]) {
  Deno.test({
    name:
      `a tapdisk killed under load is cleared up by tap-ctl ${way}, and create serves on${suffix}`,
    ignore,
    fn: () =>
      withTapdisks(async (tapdisks, folder) => {
        const path = await createVhd(`${folder}/a.vhd`, 64);
        const disk = await tapdisks.serve(`vhd:${path}`);
        const { client } = await NbdClient.open(disk.socket);
        for (let i = 0; i < 8; i++) {
          await client.write(48 * MIB + i * MIB, noise(65536, i), i % 2 === 0 ? CmdFlag.Fua : 0);
        }
        await client.flush();
        const load = [
          "rw=randwrite",
          "bs=16k",
          "iodepth=16",
          "size=32M",
          "time_based",
          "runtime=30",
        ];
        const running = fio(disk.uri, load).then(() => "ended", () => "failed");
        await new Promise((resolve) => setTimeout(resolve, 700));
        await tapdisks.kill(disk.pid);
        assert.equal(await running, "failed");
        client.close();

        const minor = ["-m", `${disk.minor}`];
        assert.equal(await tapdisks.tapCtlOk("list"), `minor=${disk.minor}`);
        const address = way === "destroy" ? ["-p", `${disk.pid}`, ...minor] : minor;
        await tapdisks.tapCtlOk(way, ...address);
        assert.equal(await tapdisks.tapCtlOk("list"), "");
        const again = await tapdisks.tapCtl(way, ...address);
        assert.notEqual(again.code, 0, "there is nothing to clear up twice");

        await tapdisks.tapCtlOk("create", "-a", `vhd:${path}`);
        const line = await tapdisks.tapCtlOk("list");
        const pid = Number(/^pid=(\d+) minor=0 state=0 /.exec(line)?.[1]);
        const served = await NbdClient.open(`${tapdisks.controlFolder}/nbd${pid}.0`);
        for (let i = 0; i < 8; i++) {
          assert.deepEqual(await served.client.read(48 * MIB + i * MIB, 65536), noise(65536, i));
        }
        await served.client.disconnect();
        await tapdisks.tapCtlOk("destroy", "-p", `${pid}`, "-m", "0");
        await vhdUtilOk("check", "-n", path);
      }),
  });
}
