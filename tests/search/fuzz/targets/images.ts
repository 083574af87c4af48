import { Random } from "../../../../src/testing/random.ts";
import type { SearchContext } from "../../search.ts";
import { errorKind, messageKind } from "../images/error_kind.ts";
import { drawCase, type ImageCase, runCase } from "../images/image_case.ts";
import { describeMutation } from "../images/mutations.ts";
import { reduce } from "../images/reduce.ts";
import { Stage } from "../images/stage.ts";
import type { Target } from "../target.ts";

const CASES = 150;

/** Cases on a simulated disk, each drawn from random numbers. */
export class ImageTarget implements Target {
  readonly #name: string;
  readonly #draw: (random: Random) => ImageCase;
  /** Kinds of refusals and findings that were seen. */
  readonly #seen = new Set<string>();

  constructor(name: string, draw: (random: Random) => ImageCase) {
    this.#name = name;
    this.#draw = draw;
  }

  async run(random: Random, context: SearchContext): Promise<number> {
    const stage = new Stage();
    const { stackTraceLimit } = Error;
    // Most cases end in an error that is expected. The case of a finding runs again for its trace.
    Error.stackTraceLimit = 0;
    for (let i = 0; i < CASES; i++) {
      const drawn = this.#draw(new Random(random.bits()));
      context.trace(`${i}: ${drawn.world}: ${drawn.mutations.map(describeMutation).join(" ")}`);
      context.trace(`   ${drawn.actions.map(({ act }) => act).join(" ")}`);
      try {
        const verdict = await runCase(stage, drawn);
        stage.useNeighbour();
        this.#note(verdict, context);
      } catch (error) {
        Error.stackTraceLimit = stackTraceLimit;
        throw await explained(i, drawn, error);
      }
    }
    Error.stackTraceLimit = stackTraceLimit;
    stage.close();
    return CASES;
  }

  #note(verdict: string, context: SearchContext): void {
    context.count(
      `${this.#name}: ${verdict === "" ? "without a fault" : "with faults or refused"}`,
    );
    const kind = messageKind(verdict);
    if (this.#seen.has(kind)) return;
    this.#seen.add(kind);
    context.count(`${this.#name}: kinds of faults seen by a process`);
  }
}

/** An error with the smallest case that shows it, as an entry of the corpus. */
async function explained(number: number, found: ImageCase, error: unknown): Promise<Error> {
  const { smallest, error: last } = await reduce(found, error, {
    parts: ({ mutations }) => mutations.length,
    without: (from, first, count) => ({
      ...from,
      mutations: from.mutations.filter((_, i) => i < first || i >= first + count),
    }),
  }, async (each) => await runCase(new Stage(), each));
  const entry = JSON.stringify({ what: errorKind(last), ...smallest });
  return new Error(`Case ${number} finds something; for the corpus:\n${entry}`, { cause: last });
}

/** Mutated images: read in every way, served, and given to every verb. */
export const target: Target = new ImageTarget("images", drawCase);
