import type { Scheduler } from "../../scheduler/scheduler.ts";
import type { ConnectionHost, ServedConnection } from "./connection_host.ts";

/**
 * The most requests that are started before replies are sent, even if more were received. So the
 * client processes the first replies while the others are prepared.
 */
const MOST_REQUESTS = 12;
/**
 * The most work of a client in one turn. A request counts as 1, and its data as 1 for each 8 KiB.
 * So it is 256 small requests or 2 MiB of data.
 */
const MOST_WORK = 256;
const WORK_SHIFT = 13;
/**
 * The same while another client of the process has work: 16 small requests, some 0.1 ms, or 128 KiB. A
 * request of one disk waits for this work of the others.
 */
const MOST_SHARED_WORK = 16;
/** How much work one client does without another until it has its turns for itself again. */
const REMEMBERED_WORK = 1 << 16;
/** More work, and more requests, than a client can have in the slots of a disk. */
const NO_LIMIT = 1 << 29;

/** Whether one client of a process has had work alone, and for how much work. */
class Company {
  last: TurnBudget | null = null;
  aloneWork = REMEMBERED_WORK;
  #hasLeft = false;

  /** Notes work of a client. */
  note(budget: TurnBudget, work: number): void {
    if (this.last === budget) {
      if (this.aloneWork < REMEMBERED_WORK) this.aloneWork += work;
      return;
    }
    // The first client of a process is alone, and so is one after another that has left.
    if (this.last !== null && !this.#hasLeft) this.aloneWork = 0;
    this.last = budget;
    this.#hasLeft = false;
  }

  /** A client has left: the next one is not beside it. */
  left(budget: TurnBudget): void {
    // It is kept: see "Machine code stays" in docs/data-path.md.
    if (this.last === budget) this.#hasLeft = true;
  }
}

const companies = new WeakMap<Scheduler, Company>();

/** The clients of a process have one loop. */
function companyOn(loop: Scheduler): Company {
  const known = companies.get(loop);
  if (known !== undefined) return known;
  const company = new Company();
  companies.set(loop, company);
  return company;
}

/** How much of a client's requests is taken before others get their turn. */
export class TurnBudget {
  readonly #connection: ServedConnection;
  readonly #host: ConnectionHost;
  /** Requests taken since replies were last sent. */
  #taken = 0;
  /** Work of this turn, see `MOST_WORK`. */
  #work = 0;
  #most = MOST_WORK;
  readonly #company: Company;

  constructor(connection: ServedConnection, host: ConnectionHost) {
    this.#connection = connection;
    this.#host = host;
    this.#company = companyOn(host.scheduler.loop);
  }

  /** Whether more requests can be taken now. */
  get isLeft(): boolean {
    return this.#taken < MOST_REQUESTS && this.#work < this.#most;
  }

  /** Notes a request, and data that it reads. Replies may be due before the next one. */
  takeRequest(dataBytes: number): void {
    this.#host.scheduler.noteRequest();
    if (++this.#taken === MOST_REQUESTS) this.#host.makeDue(this.#connection);
    this.#take(1 + (dataBytes >>> WORK_SHIFT));
  }

  /** Notes data. */
  takeData(bytes: number): void {
    this.#take(bytes >>> WORK_SHIFT);
  }

  /** Notes work. The client goes on in the next turn when that of this one ends with it. */
  #take(work: number): void {
    const wasLeft = this.#work < this.#most;
    this.#work += work;
    this.#company.note(this, work);
    if (wasLeft && this.#work >= this.#most) this.#host.makeDueNextTurn(this.#connection);
  }

  /** The client has closed its end, and sends no more: what it has sent is taken in this turn. */
  lift(): void {
    this.#taken = -NO_LIMIT;
    this.#most = NO_LIMIT;
  }

  /** The client has left. */
  end(): void {
    this.#company.left(this);
  }

  /** Replies were sent. */
  repliesSent(): void {
    this.#taken = 0;
  }

  /** A new turn begins. */
  startTurn(): void {
    this.#work = 0;
    const { aloneWork } = this.#company;
    this.#most = aloneWork < REMEMBERED_WORK ? MOST_SHARED_WORK : MOST_WORK;
  }
}
