/**
 * A client that writes stamped sectors, and verifies what it reads. Every writer of a disk has its
 * own stripes; together they meet in each block of a VHD.
 *
 * @module
 */
import type { Random } from "../../../src/testing/random.ts";
import { Cmd, CmdFlag, HungUp, NbdClient, type Reply } from "../../support/nbd_client.ts";
import type { Soak } from "./context.ts";
import type { Place, SoakDisk } from "./disk.ts";
import { Finding } from "./finding.ts";
import { DISCARDED, type Flight } from "./model.ts";
import { SECTOR_BYTES, stamp, ZEROS } from "./stamps.ts";

/** A request that is not answered within this time is a finding. */
export const SILENCE_MS = 120_000;
const STRIPE_SECTORS = 256;
const MOST_IN_BURST = 16;

/** A request on its way. */
interface Pending {
  readonly command: number;
  readonly sector: number;
  readonly count: number;
  readonly flight: Flight | null;
}

/** Whether an error says that the other side has closed the connection. */
export function isHangUp(error: unknown): boolean {
  return error instanceof HungUp || error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.ConnectionReset ||
    error instanceof Deno.errors.ConnectionRefused ||
    error instanceof Deno.errors.NotConnected || error instanceof Deno.errors.NotFound ||
    error instanceof Deno.errors.BadResource;
}

/** Waits until all have ended; throws what the first one threw. An error ends the connection. */
async function bothEnded(client: NbdClient, ...work: readonly Promise<void>[]): Promise<void> {
  const errors: unknown[] = [];
  await Promise.all(work.map((one) =>
    one.catch((error) => {
      errors.push(error);
      client.close();
    })
  ));
  if (errors.length > 0) throw errors[0];
}

export class Writer {
  readonly #random: Random;
  readonly #pending = new Map<number, Pending>();
  #interruptions = 0;
  #cookie = 0;

  constructor(readonly soak: Soak, readonly disk: SoakDisk, readonly lane: number) {
    this.#random = soak.random(`writer ${lane} of ${disk.name}`);
  }

  get #subject(): string {
    return this.disk.name;
  }

  /** Writes and reads until the soak ends. */
  async run(): Promise<void> {
    while (!this.soak.isEnding) {
      const place = await this.disk.whenServed();
      if (place === null) return;
      this.#interruptions = this.disk.interruptions;
      try {
        await this.#session(place);
      } catch (error) {
        if (!isHangUp(error)) throw error;
        if (this.#isUndisturbed) {
          throw new Finding("The server hung up on a writer", { cause: error });
        }
      } finally {
        this.#loseAll();
      }
    }
  }

  /** Whether no event of ours has ended the connection. */
  get #isUndisturbed(): boolean {
    return this.disk.interruptions === this.#interruptions;
  }

  #loseAll(): void {
    for (const { flight } of this.#pending.values()) {
      if (flight !== null) this.disk.model.lose(flight);
    }
    this.#pending.clear();
  }

  async #session({ socket }: Place): Promise<void> {
    const options = { structured: this.#random.chance(0.5), silenceMs: SILENCE_MS };
    const { client, info } = await NbdClient.open(socket, options);
    this.soak.journal.count("connections of writers");
    try {
      const sectors = Math.min(info.sizeBytes / SECTOR_BYTES, this.disk.model.sectors);
      // A connection ends now and then, so that the next one sees a new size.
      const bursts = 50 + this.#random.below(400);
      for (let burst = 0; burst < bursts; burst++) {
        if (this.soak.isEnding || !this.#isUndisturbed) break;
        const startMs = performance.now();
        const requests = await this.disk.whileLoud(() => this.#burst(client, sectors));
        const paceMs = requests * this.#millisecondsPerRequest;
        await this.soak.sleep(Math.max(0, paceMs - (performance.now() - startMs)));
        if (this.#random.chance(1 / 300)) return await this.#hangUp(client, sectors);
      }
      await client.request({ command: Cmd.Disc });
    } finally {
      client.close();
    }
  }

  get #millisecondsPerRequest(): number {
    const writers = this.soak.disks.reduce((sum, { plan }) => sum + plan.writers, 0);
    return writers * 1000 / this.soak.options.rate;
  }

  /** Leaves in the middle of requests. */
  async #hangUp(client: NbdClient, sectors: number): Promise<void> {
    this.soak.journal.note(this.#subject, `writer ${this.lane} hangs up in the middle`);
    this.soak.journal.count("writers that hung up in the middle");
    await this.disk.whileLoud(async () => {
      for (let i = 0; i < 4; i++) await this.#send(client, sectors);
    });
  }

  /** Sends requests at once, and receives their replies. Returns their number. */
  async #burst(client: NbdClient, sectors: number): Promise<number> {
    const count = 1 + this.#random.below(MOST_IN_BURST);
    const send = async (): Promise<void> => {
      for (let sent = 0; sent < count; sent++) await this.#send(client, sectors);
    };
    const receive = async (): Promise<void> => {
      for (let received = 0; received < count; received++) this.#receive(await client.reply());
    };
    await this.#decide(client);
    await bothEnded(client, send(), receive());
    this.soak.journal.count("requests of writers", count);
    return count;
  }

  /** Reads a sector in doubt, so that it is known what it holds. */
  async #decide(client: NbdClient): Promise<void> {
    const sector = this.disk.model.firstSettled;
    if (sector === null || this.#laneOf(sector) !== this.lane) return;
    const data = await client.read(sector * SECTOR_BYTES, SECTOR_BYTES);
    this.disk.model.check(data, sector, "after a lost connection");
  }

  #laneOf(sector: number): number {
    return Math.floor(sector / STRIPE_SECTORS) % this.disk.plan.writers;
  }

  /** A range in this writer's stripes that is not in use; null when none was found. */
  #place(sectors: number, mayBeInDoubt: boolean): { sector: number; count: number } | null {
    const { model } = this.disk;
    for (let attempt = 0; attempt < 8; attempt++) {
      const count = this.#random.chance(0.6) ? 8 : 1 + this.#random.below(128);
      // Half of the requests go to the first part, where blocks are in use already.
      const all = sectors - model.firstSector - count;
      const within = this.#random.chance(0.5) ? all : Math.min(all, 4 * 4096);
      const sector = model.firstSector + this.#random.below(within);
      const end = sector + count;
      if (this.#laneOf(sector) !== this.lane || this.#laneOf(end - 1) !== this.lane) continue;
      if (Math.floor(sector / STRIPE_SECTORS) !== Math.floor((end - 1) / STRIPE_SECTORS)) continue;
      if (!mayBeInDoubt && model.isInDoubt(sector, count)) continue;
      const overlaps = [...this.#pending.values()].some((other) =>
        sector < other.sector + other.count && other.sector < end
      );
      if (!overlaps) return { sector, count };
    }
    return null;
  }

  async #send(client: NbdClient, sectors: number): Promise<void> {
    const dice = this.#random.next();
    const isRead = dice < 0.35;
    const place = this.#place(sectors, isRead);
    const { model } = this.disk;
    if (place === null || dice > 0.97) {
      const flush = { command: Cmd.Flush };
      return await this.#request(client, flush, { sector: 0, count: 0 }, null);
    }
    const { sector, count } = place;
    const range = { offset: sector * SECTOR_BYTES, length: count * SECTOR_BYTES };
    if (isRead) return await this.#request(client, { command: Cmd.Read, ...range }, place, null);
    if (dice < 0.90) {
      const generation = model.newGeneration();
      const payload = new Uint8Array(range.length);
      stamp(payload, { disk: model.disk, sector, generation });
      const flags = this.#random.chance(0.05) ? CmdFlag.Fua : 0;
      const flight = model.begin(sector, count, generation);
      const write = { command: Cmd.Write, offset: range.offset, payload, flags };
      return await this.#request(client, write, place, flight);
    }
    if (dice < 0.95) {
      const flags = this.#random.chance(0.5) ? CmdFlag.NoHole : 0;
      const flight = model.begin(sector, count, ZEROS);
      const zero = { command: Cmd.WriteZeroes, ...range, flags };
      return await this.#request(client, zero, place, flight);
    }
    const flight = model.begin(sector, count, DISCARDED);
    await this.#request(client, { command: Cmd.Trim, ...range }, place, flight);
  }

  async #request(
    client: NbdClient,
    request: Parameters<NbdClient["request"]>[0],
    { sector, count }: { sector: number; count: number },
    flight: Flight | null,
  ): Promise<void> {
    const cookie = ++this.#cookie;
    // It is pending before a byte of it is sent, as sending may fail in the middle.
    this.#pending.set(cookie, { command: request.command, sector, count, flight });
    await client.request({ ...request, cookie });
  }

  #receive({ cookie, error, data }: Reply): void {
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw new Finding(`A reply to no request: cookie ${cookie}`);
    const { command, sector, count, flight } = pending;
    if (error !== 0) {
      // It stays pending: it may have reached the disk.
      if (!this.#isUndisturbed) throw new HungUp(`Error ${error} while the disk is interrupted`);
      throw new Finding(`Request ${command} at sector ${sector} ended with error ${error}`);
    }
    this.#pending.delete(cookie);
    if (flight !== null) this.disk.model.end(flight);
    if (command === Cmd.Read) {
      if (data.length !== count * SECTOR_BYTES) {
        throw new Finding(`A read of ${count} sectors returned ${data.length} bytes`);
      }
      this.disk.model.check(data, sector, "read by a writer");
    }
  }
}
