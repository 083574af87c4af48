/**
 * Serves three clients, one after the other. Prints as JSON the clients whose objects are left
 * after a garbage collection. Run with `--v8-flags=--expose-gc`.
 *
 * @module
 */
import { driverOfType } from "../../src/driver/registry.ts";
import { closeFile } from "../../ffi/files.ts";
import type { ServedConnection } from "../../src/frontend/nbd/connection_host.ts";
import { NbdConnections } from "../../src/frontend/nbd/connections.ts";
import { SocketPairs } from "../../src/frontend/nbd_device/socket_pairs.ts";
import { RealDevice } from "./real_device.ts";

const device = new RealDevice("ram:4096", {}, driverOfType);
const left: WeakRef<ServedConnection>[] = [];
const connections = new NbdConnections(device.scheduler, device.vbd, {
  owner: {
    connectionGone: () => {},
    connectionRetired: (connection) => void left.push(new WeakRef(connection)),
  },
});
for (let i = 0; i < 3; i++) {
  const pairs = new SocketPairs(device.vbd.requests, 1);
  const [kernelEnd] = pairs.kernelEnds.splice(0);
  pairs.serve(connections);
  closeFile(kernelEnd);
  device.scheduler.addTimer(30, () => device.scheduler.stop());
  await device.scheduler.run();
}
// The target of a new WeakRef stays alive until the runtime has had a turn.
await new Promise((resolve) => setTimeout(resolve, 0));
(globalThis as unknown as { gc: () => void }).gc();
console.log(JSON.stringify(left.map((client) => client.deref() !== undefined)));
connections.close();
await device.close();
device.vbd.destroy();
