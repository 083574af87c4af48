/**
 * Hostile NBD clients against a tapdisk: handshakes, and requests of all kinds. Beside them, other
 * clients of the same disk and of another one are served rightly and soon.
 *
 * @module
 */
import { messageOf } from "../../../../ffi/errno.ts";
import { Random } from "../../../../src/testing/random.ts";
import { createDynamic } from "../../../../src/vhd/create.ts";
import { Cmd, joined, Opt, packed, type Reply } from "../../../support/nbd_client.ts";
import type { SearchContext } from "../../search.ts";
import type { Target } from "../target.ts";
import { Bystanders } from "../wire/bystanders.ts";
import { anyBytes, hostileWord, mutated, pick } from "../wire/choose.ts";
import {
  anyCookie,
  checkReply,
  DiskModel,
  type DiskRequest,
  type Region,
  requestBytes,
  type Terms,
} from "../wire/disk_requests.ts";
import { Agreed, anyOption, type HandshakeOption, smallOption } from "../wire/handshakes.ts";
import { HungUp } from "../../../support/nbd_client.ts";
import { NbdWire } from "../wire/nbd_wire.ts";
import { ServedTapdisk } from "../wire/served_tapdisk.ts";

const MIB = 1 << 20;
const DISK_BYTES = 64 * MIB;
const GREETING_BYTES = 18;
const CASES_OF_BATCH = 300;
/** Where orderly clients write, and where those that break off do, whose last writes nobody knows. */
const KEPT: Region = { first: 0, sectors: 24 * 2048, isModelled: true };
const SCRATCH: Region = { first: 24 * 2048, sectors: 16 * 2048, isModelled: false };
/** Clients that have stopped within a message, and are left at that for a while. */
const MOST_STUCK = 6;

class NbdServerTarget implements Target {
  #tapdisk: ServedTapdisk | null = null;
  #bystanders: Bystanders | null = null;
  #socket = "";
  readonly #model = new DiskModel(DISK_BYTES);
  readonly #stuck: NbdWire[] = [];

  async setUp({ folder }: SearchContext): Promise<void> {
    const tapdisk = await ServedTapdisk.start(`${folder}/nbd-server`);
    this.#tapdisk = tapdisk;
    const images = ["victim", "other"].map((name) => `${tapdisk.folder}/${name}.vhd`);
    for (const image of images) createDynamic(image, { sizeBytes: DISK_BYTES });
    const open = { direct: false };
    this.#socket = await tapdisk.serve(0, `vhd:${images[0]}`, open);
    const other = await tapdisk.serve(1, `vhd:${images[1]}`, open);
    this.#bystanders = await Bystanders.start(tapdisk.pid, [
      { socket: this.#socket, offsetBytes: 44 * MIB, lengthBytes: 16 * MIB },
      { socket: other, offsetBytes: 0, lengthBytes: 60 * MIB },
    ]);
  }

  async run(random: Random, context: SearchContext): Promise<number> {
    const tapdisk = this.#tapdisk;
    if (tapdisk === null) throw new TypeError("There is no tapdisk");
    return await tapdisk.telling(() => this.#batch(random, context));
  }

  async #batch(random: Random, context: SearchContext): Promise<number> {
    let cases = 0;
    while (cases < CASES_OF_BATCH) {
      const dice = random.below(10);
      if (dice < 3) cases += await this.#handshake(random, context);
      else if (dice < 8) cases += await this.#requests(random, context);
      else cases += await this.#rude(random, context);
    }
    this.#bystanders?.check();
    if (random.chance(0.1)) await this.#letGo();
    await this.#tapdisk?.check();
    return cases;
  }

  async #letGo(): Promise<void> {
    for (const wire of this.#stuck.splice(0)) wire.close();
    await this.#bystanders?.goOn();
  }

  /** A handshake of many options, good and bad; each has the answer that it must have. */
  async #handshake(random: Random, context: SearchContext): Promise<number> {
    const agreed = new Agreed();
    const flags = random.chance(0.9) ? random.below(4) : hostileWord(random);
    agreed.noZeroes = (flags & 2) !== 0;
    const options: HandshakeOption[] = [];
    const isLong = random.chance(0.03);
    const most = isLong ? 270 : 1 + random.below(12);
    for (let i = 0; i < most; i++) {
      const option = isLong ? smallOption(random, agreed) : anyOption(random, agreed);
      options.push(option);
      if (option.isShort || option.verdict.after !== "options") break;
    }
    context.trace(`handshake with flags ${flags}: options ${options.map(({ option }) => option)}`);
    const wire = await NbdWire.connect(this.#socket);
    try {
      const bytes = joined(packed([4, flags]), ...options.map((option) => option.bytes));
      const sending = sendInParts(random, wire, bytes);
      await wire.receive(GREETING_BYTES);
      if (flags > 3) await expectHangUp(wire);
      else await this.#checkOptions(random, wire, options, agreed);
      await sending;
    } finally {
      wire.close();
    }
    return options.length;
  }

  async #checkOptions(
    random: Random,
    wire: NbdWire,
    options: readonly HandshakeOption[],
    agreed: Agreed,
  ): Promise<void> {
    for (const { option, verdict, isShort, bytes } of options) {
      const what = `option ${option} with ${toHex(bytes.subarray(16, 96))}`;
      if (isShort && verdict.last === null && verdict.after === "options") return;
      if (verdict.last === 0) {
        const view = await wire.receive(agreed.noZeroes ? 10 : 134);
        if (view.getBigUint64(0) !== BigInt(DISK_BYTES)) throw new Error("Another size");
      } else if (verdict.last !== null) {
        const answers = await wire.optionAnswers(option).catch((error) => {
          throw new Error(`No right answer to ${what}: ${error.message}`, { cause: error });
        });
        const { type } = answers[answers.length - 1];
        if (type !== verdict.last) {
          throw new Error(
            `Answer ${type.toString(16)} and not ${verdict.last.toString(16)} to ${what}`,
          );
        }
      }
      if (verdict.after === "closed") return await expectHangUp(wire);
      if (verdict.after === "transmission") return await this.#firstRead(random, wire, agreed);
    }
  }

  async #firstRead(random: Random, wire: NbdWire, terms: Terms): Promise<void> {
    const request = this.#model.good(random, terms, KEPT, 7);
    await this.#flight(wire, [request], terms);
    await wire.send(packed([4, 0x25609513], [2, 0], [2, Cmd.Disc], [8, 0], [8, 0], [4, 0]));
    await expectHangUp(wire);
  }

  /** Opens a connection for requests. */
  async #open(random: Random): Promise<{ wire: NbdWire; terms: Terms }> {
    const structured = random.chance(0.6);
    const meta = structured && random.chance(0.6);
    const option = (number: number, content: Uint8Array = new Uint8Array(0)): Uint8Array =>
      joined(packed([8, 0x49484156454f5054n], [4, number], [4, content.length]), content);
    const parts = [packed([4, 3])];
    if (structured) parts.push(option(Opt.StructuredReply));
    const query = new TextEncoder().encode("base:allocation");
    if (meta) {
      const content = joined(packed([4, 0], [4, 1], [4, query.length]), query);
      parts.push(option(Opt.SetMetaContext, content));
    }
    parts.push(option(Opt.Go, packed([4, 0], [2, 0])));
    const wire = await NbdWire.connect(this.#socket);
    await wire.send(joined(...parts));
    await wire.receive(GREETING_BYTES);
    if (structured) await wire.optionAnswers(Opt.StructuredReply);
    if (meta) await wire.optionAnswers(Opt.SetMetaContext);
    await wire.optionAnswers(Opt.Go);
    return { wire, terms: { structured, meta } };
  }

  /** Flights of requests, good and bad; each has the reply that it must have. */
  async #requests(random: Random, context: SearchContext): Promise<number> {
    const { wire, terms } = await this.#open(random);
    let count = 0;
    try {
      for (let flights = 1 + random.below(6); flights > 0; flights--) {
        const size = random.chance(0.1) ? 200 : 1 + random.below(24);
        const badness = pick(random, [0, 0.1, 0.5, 0.9]);
        const requests = Array.from({ length: size }, (_, i) => {
          const request = random.chance(badness)
            ? this.#model.hostile(random, terms, KEPT, i + 1000)
            : this.#model.good(random, terms, KEPT, i + 1000);
          return { ...request, cookie: anyCookie(random, request) };
        });
        context.trace(`flight of ${size} requests, ${badness} of them bad`);
        await this.#flight(wire, requests, terms);
        count += size;
      }
    } finally {
      wire.close();
    }
    return count;
  }

  /** Sends requests at once, and checks all replies. */
  async #flight(wire: NbdWire, requests: readonly DiskRequest[], terms: Terms): Promise<void> {
    const wordsAt = this.#model.during(requests, KEPT);
    const sending = wire.send(joined(...requests.map((request) => requestBytes(request))));
    const open = new Map<number, DiskRequest[]>();
    for (const request of requests) {
      open.set(request.cookie, [...open.get(request.cookie) ?? [], request]);
    }
    const readBytesOf = (cookie: number): number => {
      // With structured replies, no simple one has data.
      const request = terms.structured ? undefined : open.get(cookie)?.[0];
      return request?.command === Cmd.Read ? request.length : 0;
    };
    for (let left = requests.length; left > 0; left--) {
      const reply = await wire.reply(readBytesOf);
      takeRequest(open, reply, terms, wordsAt);
    }
    await sending;
    this.#model.apply(requests, KEPT);
  }

  /** Clients that break off, send what is no request, or stop within a message. */
  async #rude(random: Random, context: SearchContext): Promise<number> {
    const { wire, terms } = await this.#open(random);
    const size = 1 + random.below(40);
    const good = Array.from(
      { length: size },
      (_, i) =>
        random.chance(0.5)
          ? this.#model.good(random, terms, SCRATCH, i)
          : this.#model.hostile(random, terms, SCRATCH, i),
    );
    const bytes = joined(...good.map((request) => requestBytes(request)));
    const manner = pick(random, ["cut", "magic", "noise", "stuck", "deaf", "refused payload"]);
    context.trace(`rude client: ${manner} after ${size} requests`);
    switch (manner) {
      case "cut":
        await wire.send(bytes.subarray(0, random.below(bytes.length)));
        break;
      case "magic": {
        const wrong = requestBytes(good[0], hostileWord(random, [0x25609513]) | 1 << 31);
        await Promise.all([wire.send(joined(bytes, wrong)), wire.drain()]);
        break;
      }
      case "noise":
        await Promise.all([wire.send(joined(bytes, this.#noise(random, good))), wire.drain()]);
        break;
      case "stuck":
        await wire.send(bytes.subarray(0, bytes.length - 1));
        return await this.#keep(random, wire, size);
      case "deaf": {
        const reads = Array.from(
          { length: 300 },
          (_, i) =>
            packed([4, 0x25609513], [4, 0], [8, i], [8, i * 65536 % (16 * MIB)], [4, 65536]),
        );
        void wire.send(joined(...reads));
        return await this.#keep(random, wire, reads.length);
      }
      default: {
        const length = hostileWord(random, [32 * MIB]) | 1;
        await wire.send(
          joined(
            bytes,
            packed([4, 0x25609513], [2, 0], [2, Cmd.Write], [8, 1], [8, 0], [4, length]),
            anyBytes(random, 100),
          ),
        );
        if (random.chance(0.5)) return await this.#keep(random, wire, size);
      }
    }
    wire.close();
    return size;
  }

  /** Bytes that are no request: their magic number is wrong. */
  #noise(random: Random, good: readonly DiskRequest[]): Uint8Array {
    const noise = random.chance(0.5)
      ? anyBytes(random, 28 + random.below(3000))
      : mutated(random, joined(requestBytes(good[0]), anyBytes(random, 28)));
    const bytes = noise.length < 28 ? joined(noise, new Uint8Array(28)) : noise;
    bytes[0] = 0x24;
    return bytes;
  }

  async #keep(random: Random, wire: NbdWire, cases: number): Promise<number> {
    this.#stuck.push(wire);
    if (this.#stuck.length > MOST_STUCK) this.#stuck.splice(random.below(MOST_STUCK), 1)[0].close();
    // The server shall see it before others come.
    await new Promise((resolve) => setTimeout(resolve, 1));
    return cases;
  }

  async tearDown(): Promise<void> {
    for (const wire of this.#stuck.splice(0)) wire.close();
    await this.#bystanders?.end();
    await this.#tapdisk?.end();
  }
}

/** Takes the request of a reply out of those that are open: of one cookie, one that fits. */
function takeRequest(
  open: Map<number, DiskRequest[]>,
  reply: Reply,
  terms: Terms,
  wordsAt: ((sector: number) => readonly number[] | null) | null,
): void {
  const candidates = open.get(reply.cookie) ?? [];
  const failures: string[] = [];
  for (const [index, request] of candidates.entries()) {
    try {
      checkReply(reply, request, terms, wordsAt);
    } catch (error) {
      failures.push(messageOf(error));
      continue;
    }
    candidates.splice(index, 1);
    return;
  }
  if (failures.length === 0) failures.push(`A reply to ${reply.cookie}, which nobody asked`);
  throw new Error(failures.join("; or: "));
}

async function expectHangUp(wire: NbdWire): Promise<void> {
  try {
    const view = await wire.receive(1);
    throw new Error(`The server goes on with ${view.getUint8(0)} where it must hang up`);
  } catch (error) {
    if (!(error instanceof HungUp)) throw error;
  }
}

async function sendInParts(random: Random, wire: NbdWire, bytes: Uint8Array): Promise<void> {
  const dice = random.below(10);
  const parts = dice < 7 ? 0 : dice < 9 ? 1 + random.below(4) : 30;
  let at = 0;
  for (let i = 0; i < parts && at < bytes.length; i++) {
    const step = parts === 30 ? 1 : random.below(bytes.length - at + 1);
    if (!await wire.send(bytes.subarray(at, at + step))) return;
    at += step;
  }
  await wire.send(bytes.subarray(at));
}

function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const target: Target = new NbdServerTarget();
