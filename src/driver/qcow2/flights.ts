import type { IoOwner } from "../../queue/disk_queue.ts";

/** Where the ends of operations are told. */
export interface FlightOwner {
  ioDone(token: number, sectors: number, errno: number): void;
}

/**
 * Counts the operations on places that a table names. A place that no table names any more may be
 * given to something else only after the operations that began before have ended: they would read or
 * write what is not theirs. Operations are counted in two turns; `turnOver` starts the other one, and
 * tells when the last operation of the one before has ended.
 */
export class Flights {
  readonly #counts = new Int32Array(2);
  #turn = 0;
  #ended: (() => void) | null = null;

  /** Whether operations of the turn before are under way. */
  get isTurning(): boolean {
    return this.#ended !== null;
  }

  /** Calls back when all operations that are under way now have ended; may do so at once. */
  turnOver(ended: () => void): void {
    this.#turn = 1 - this.#turn;
    if (this.#counts[1 - this.#turn] === 0) return ended();
    this.#ended = ended;
  }

  /** The owner for an operation that starts now, which is counted. */
  begin(owners: FlightOwners): IoOwner {
    this.#counts[this.#turn]++;
    return this.#turn === 0 ? owners.first : owners.second;
  }

  /** An operation of a turn has ended. */
  end(turn: number): void {
    if (--this.#counts[turn] > 0 || turn === this.#turn) return;
    const ended = this.#ended;
    this.#ended = null;
    ended?.();
  }
}

/** Takes the ends of operations that are counted, and passes them on. */
export class FlightOwners {
  readonly first: IoOwner;
  readonly second: IoOwner;

  constructor(flights: Flights, owner: FlightOwner) {
    const ofTurn = (turn: number): IoOwner => ({
      ioDone(token, sectors, errno): void {
        flights.end(turn);
        owner.ioDone(token, sectors, errno);
      },
    });
    this.first = ofTurn(0);
    this.second = ofTurn(1);
  }
}
