/**
 * Requests on the real loop. `ask IMAGE` sends requests to any image, `limit IMAGE` to one with rate
 * limits, `valve IMAGE` behind a bridge; `mirror IMAGE SECONDARY` to one with a secondary image and a
 * local cache; `serve SOCKET` serves a disk in memory over NBD. After a warm-up, each prints as JSON the
 * heap allocations of its own code, by function, and the number of requests. `ask IMAGE REQUESTS` warms
 * up with so many requests, and measures so many.
 *
 * @module
 */
import { driverOfType } from "../../src/driver/registry.ts";
import { NbdServer } from "../../src/frontend/nbd/server.ts";
import { Bridge } from "../../src/rated/bridge.ts";
import { TokenBucket } from "../../src/rated/limiter.ts";
import { Random } from "../../src/testing/random.ts";
import { isLimited, NO_LIMITS, type RateLimits } from "../../src/vbd/rate_limits.ts";
import { RequestKind, type RequestOwner } from "../../src/vbd/slots.ts";
import { watchAllocations } from "../support/allocations.ts";
import { RealDevice } from "../support/real_device.ts";

const WARM_UP = 100_000;
const REQUESTS = 120_000;
const DEPTH = 32;
const LOOK_MS = 20;

function print(requests: number, bytes: Map<string, number>): void {
  console.log(JSON.stringify({ requests, bytes: Object.fromEntries(bytes) }));
}

/** Serves until the client has disconnected. */
async function serve(socket: string): Promise<void> {
  const device = new RealDevice("ram:64", {}, driverOfType);
  const { scheduler, vbd } = device;
  const server = new NbdServer(scheduler, vbd, { newstyle: socket }, () => {});
  const count = (): number => {
    const { read, write, flush } = vbd.statistics().latency_us;
    return read.requests + write.requests + flush.requests;
  };
  let finish: ReturnType<typeof watchAllocations> | null = null;
  let before = 0;
  const look = (): void => {
    if (finish === null && count() >= WARM_UP) {
      before = count();
      finish = watchAllocations();
    }
    if (finish !== null && server.clients === 0) {
      return scheduler.stop();
    }
    scheduler.addTimer(LOOK_MS, look);
  };
  scheduler.addTimer(LOOK_MS, look);
  console.log("ready");
  await scheduler.run();
  print(count() - before, await (finish ?? watchAllocations())());
}

/** A client that allocates nothing. */
class Client implements RequestOwner {
  readonly #device: RealDevice;
  readonly #random = new Random(2);
  ended = 0;
  failed = 0;
  #underWay = 0;
  #goal = 0;

  constructor(device: RealDevice) {
    this.#device = device;
    device.scheduler.addTurnWork(this);
  }

  requestDone(slot: number, errno: number): void {
    this.#device.vbd.requests.releaseSlot(slot);
    this.#underWay--;
    if (errno !== 0) this.failed++;
    if (++this.ended >= this.#goal && this.#underWay === 0) this.#device.scheduler.stop();
  }

  endOfTurn(): boolean {
    if (this.#underWay > DEPTH / 2 || this.ended + this.#underWay >= this.#goal) return false;
    while (this.#underWay < DEPTH && this.ended + this.#underWay < this.#goal) this.#startOne();
    return true;
  }

  #startOne(): void {
    const { requests, sectors } = this.#device.vbd;
    const slot = requests.takeSlot();
    const dice = this.#random.below(100);
    const count = dice < 70 ? 8 : 1 + this.#random.below(64);
    const sector = this.#random.below(sectors - count);
    this.#underWay++;
    if (dice === 0) requests.start(slot, RequestKind.Flush, 0, 0, false, this);
    else if (dice < 5) requests.start(slot, RequestKind.Zero, sector, count, false, this);
    else {
      const kind = dice % 2 === 0 ? RequestKind.Read : RequestKind.Write;
      requests.start(slot, kind, sector, count, dice === 7, this);
    }
  }

  async run(total: number): Promise<void> {
    this.#goal = this.ended + total;
    await this.#device.scheduler.run();
  }
}

async function measure(
  device: RealDevice,
  { warmUp, requests } = { warmUp: WARM_UP, requests: REQUESTS },
): Promise<void> {
  const client = new Client(device);
  await client.run(warmUp);
  const before = client.ended;
  const finish = watchAllocations();
  await client.run(requests);
  if (client.failed > 0) throw new Error(`${client.failed} requests failed`);
  print(client.ended - before, await finish());
}

/** Requests wait for these, in groups. */
const LIMITS = { ...NO_LIMITS, totalIops: 100_000, readBps: 400_000_000, burstMs: 10 };

async function ask(image: string, limits: RateLimits = NO_LIMITS): Promise<void> {
  const device = new RealDevice(image, { limits }, driverOfType);
  await measure(device);
  const { waited } = device.vbd.statistics();
  const isHeld = waited.limit.requests > REQUESTS / 10;
  if (isLimited(limits) !== isHeld) throw new Error(`${waited.limit.requests} requests waited`);
  await device.close();
}

/** Fewer requests, to an image that takes its time. */
async function askSome(image: string, requests: number): Promise<void> {
  const device = new RealDevice(image, {}, driverOfType);
  await measure(device, { warmUp: requests, requests });
  await device.close();
}

const [role, what, secondary] = Deno.args;

async function askMirrored(image: string): Promise<void> {
  const device = new RealDevice(image, { secondary, localCache: true }, driverOfType);
  await measure(device);
  if (device.vbd.secondary.hasFailed) throw new Error("The mirror has failed");
  await device.close();
}

/** Asks for an image behind a bridge, which grants all. */
async function askBehindValve(image: string): Promise<void> {
  const folder = Deno.makeTempDirSync();
  const path = `${folder}/bridge`;
  const device = new RealDevice(image, {}, driverOfType);
  const log = { info(): void {}, warn(): void {}, error(): void {} };
  const bridge = new Bridge(device.scheduler, path, { limiter: new TokenBucket(1e12, 0), log });
  device.vbd.close(() => {});
  device.vbd.open(`valve:${path}:${image}`);
  await measure(device);
  bridge.close();
  await device.close();
  Deno.removeSync(folder, { recursive: true });
}

if (role === "serve") await serve(what);
else if (role === "valve") await askBehindValve(what);
else if (role === "mirror") await askMirrored(what);
else if (secondary === undefined) await ask(what, role === "limit" ? LIMITS : NO_LIMITS);
else await askSome(what, Number(secondary));
