import { Session } from "node:inspector";
import { RealDevice } from "./tests/support/real_device.ts";
import { driverOfType } from "./src/driver/registry.ts";
import { createQcow2 } from "./src/qcow2/create.ts";
import { createDynamic } from "./src/vhd/create.ts";
import { Random } from "./src/testing/random.ts";
import { RequestKind } from "./src/vbd/slots.ts";
const kind = Deno.args[0] ?? "qcow2";
const path = `/dev/shm/q1prof.${kind}`;
try { Deno.removeSync(path); } catch { /* */ }
if (kind === "qcow2") createQcow2(path, { sizeBytes: 8 * 2 ** 30 }); else createDynamic(path, { sizeBytes: 8 * 2 ** 30 });
const device = new RealDevice(`${kind}:${path}`, {}, driverOfType);
const random = new Random(3);
let under = 0, ended = 0, goal = 0;
const client = { requestDone(slot: number, errno: number) { device.vbd.requests.releaseSlot(slot); under--; ended++; if (errno) throw new Error("e" + errno); if (ended >= goal && under === 0) device.scheduler.stop(); },
 endOfTurn() { if (under > 16 || ended + under >= goal) return false; while (under < 32 && ended + under < goal) { const slot = device.vbd.requests.takeSlot(); under++; device.vbd.requests.start(slot, RequestKind.Write, random.below(2097152) * 8, 8, false, client); } return true; } };
device.scheduler.addTurnWork(client);
async function run(n: number) { goal = ended + n; const t = performance.now(); const c = Deno.memoryUsage; void c; await device.scheduler.run(); return performance.now() - t; }
console.log("warm", (await run(20000)).toFixed(0));
const s = new Session(); s.connect();
const post = (m: string, p = {}) => new Promise<any>((r, j) => s.post(m, p, (e: any, a: any) => e ? j(e) : r(a)));
await post("Profiler.enable"); await post("Profiler.setSamplingInterval", { interval: 200 }); await post("Profiler.start");
const n = 60000; const ms = await run(n);
const { profile } = await post("Profiler.stop");
console.log(n, "in", ms.toFixed(0), "ms", (n / ms * 1000).toFixed(0), "iops", JSON.stringify((device as any).context?.queue?.statistics ?? {}));
const self = new Map<string, number>(); let total = 0;
const by = new Map(profile.nodes.map((x: any) => [x.id, x]));
profile.samples.forEach((id: number, i: number) => { const f = (by.get(id) as any).callFrame; const k = `${f.functionName} ${f.url.split("/").slice(-1)[0]}`; const d = profile.timeDeltas[i]; total += d; self.set(k, (self.get(k) ?? 0) + d); });
for (const [k, v] of [...self].sort((a, b) => b[1] - a[1]).slice(0, 28)) console.log((v / 1000).toFixed(0).padStart(6), "ms", (100 * v / total).toFixed(1).padStart(5), "%", k);
await device.close(); Deno.removeSync(path); Deno.exit(0);
