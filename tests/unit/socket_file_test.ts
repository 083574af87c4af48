/** Sockets whose names cannot be removed, as on a filesystem that has become read-only. */
import assert from "node:assert/strict";
import { ControlServer } from "../../src/control/daemon/server.ts";
import { NbdServer } from "../../src/frontend/nbd/server.ts";
import { PlayedLoop } from "../support/played_loop.ts";
import { RealDevice } from "../support/real_device.ts";
import { openDescriptors } from "../support/served.ts";
import { withTempDir } from "../support/tools.ts";

/** Puts a file where the folder of sockets was: their names cannot be looked up any more. */
function takeFolderAway(place: string): void {
  Deno.renameSync(place, `${place}.away`);
  Deno.writeTextFileSync(place, "not a folder");
}

Deno.test("sockets that cannot be removed keep no NBD server from closing", () =>
  withTempDir(async (folder) => {
    const place = `${folder}/sockets`;
    Deno.mkdirSync(place);
    const device = new RealDevice("ram:4096");
    const before = openDescriptors(Deno.pid);
    const server = new NbdServer(device.scheduler, device.vbd, {
      newstyle: `${place}/a`,
      oldstyle: `${place}/b`,
      handoverNewstyle: `${place}/c`,
      handoverOldstyle: `${place}/d`,
    }, () => {});
    takeFolderAway(place);
    server.close();
    assert.equal(openDescriptors(Deno.pid), before);
    await device.close();
    device.vbd.destroy();
  }));

Deno.test("a control socket that cannot be removed does not keep a tapdisk from ending", () =>
  withTempDir((folder) => {
    const place = `${folder}/sockets`;
    Deno.mkdirSync(place);
    const server = new ControlServer(new PlayedLoop(), `${place}/ctl`, {
      commands: new Map(),
      log: { info() {}, warn() {}, error() {} },
    });
    takeFolderAway(place);
    let isDown = false;
    server.shutDown(() => isDown = true);
    assert.ok(isDown);
  }));
