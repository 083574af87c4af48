/**
 * The mutation check: applies deliberate faults one at a time and runs the tests that should notice.
 *
 *     deno task test:mutants [NAME…] [--all | --sample N [--seed N]] [--wider] [--jobs N] [--list]
 *
 * A mutant that survives its tests, or whose patch does not apply, is a failure.
 *
 * @module
 */
import { Command, InvalidArgumentError } from "commander";
import { allMutants, type Mutant, sampleOf, tableOf, today } from "./mutant.ts";
import { endTests, runTest, type TestRun } from "./test_run.ts";
import { Tree } from "./tree.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;
const SAMPLE = 8;
/** A test may take so many times as long as without a mutant, and so long in any case. */
const SLOWER = 10;
const LEAST_TIMEOUT_MS = 15_000;
/** Time limit of a test without a mutant. */
const PLAIN_TIMEOUT_MS = 120_000;
/** Left out of `--wider`: they take long, and read documents or the types of all files. */
const NOT_WIDER = /\/(?:contributing|documentation|docs|house_rules|mutants)_test\.ts$/;

interface Options {
  readonly all?: boolean;
  readonly sample?: number;
  readonly seed?: number;
  readonly jobs: number;
  readonly wider?: boolean;
  readonly list?: boolean;
  readonly output?: boolean;
}

/** What became of a mutant. */
interface Verdict {
  readonly mutant: Mutant;
  readonly caught: boolean;
  /** The test that noticed, or why the mutant counts as not caught. */
  readonly how: string;
  readonly seconds: number;
}

/** Runs test files with and without mutants, each mutant in the copy of a lane. */
class MutationCheck {
  readonly #folder: string;
  readonly #plain: Tree;
  readonly #options: Options;
  /** By test file: how it goes without a mutant. */
  readonly #plainRuns = new Map<string, Promise<TestRun>>();

  constructor(folder: string, options: Options) {
    this.#folder = folder;
    this.#options = options;
    this.#plain = new Tree(`${folder}/plain`);
  }

  /** Runs all mutants, in as many lanes as there are jobs. */
  async run(mutants: readonly Mutant[]): Promise<Verdict[]> {
    const verdicts: Verdict[] = [];
    const left = [...mutants];
    const lane = async (number: number): Promise<void> => {
      const tree = new Tree(`${this.#folder}/${number}`);
      for (let mutant = left.shift(); mutant !== undefined; mutant = left.shift()) {
        const verdict = await this.#judge(mutant, tree);
        verdicts.push(verdict);
        print(verdict);
      }
    };
    await Promise.all(Array.from({ length: this.#options.jobs }, (_, i) => lane(i)));
    return verdicts;
  }

  async #judge(mutant: Mutant, tree: Tree): Promise<Verdict> {
    const startMs = performance.now();
    const verdict = (caught: boolean, how: string): Verdict => {
      return { mutant, caught, how, seconds: (performance.now() - startMs) / 1000 };
    };
    try {
      tree.apply(mutant);
    } catch (error) {
      tree.restore();
      return verdict(false, `its patch does not apply: ${String(error)}`);
    }
    try {
      return verdict(...await this.#runTests(mutant, tree));
    } finally {
      tree.restore();
    }
  }

  async #runTests(mutant: Mutant, tree: Tree): Promise<[caught: boolean, how: string]> {
    for (const file of this.#testsFor(mutant)) {
      const plain = await this.#plainRun(file);
      if (plain.outcome !== "passed") {
        return [false, `${file} ${plain.outcome} without a mutant: ${plain.test}`];
      }
      const timeoutMs = Math.max(LEAST_TIMEOUT_MS, SLOWER * plain.seconds * 1000);
      const scratch = `${tree.folder}.tmp`;
      const run = await runTest(file, { tree: tree.folder, scratch, timeoutMs });
      if (this.#options.output) console.log(run.output);
      if (run.outcome === "broken") return [false, `its patch makes no program: ${run.output}`];
      if (run.outcome !== "passed") {
        const isListed = mutant.tests.includes(file);
        return [true, `${isListed ? "" : "(not listed) "}${file}: ${run.test || run.outcome}`];
      }
    }
    return [false, "it survives"];
  }

  #testsFor({ tests }: Mutant): string[] {
    const wider = this.#options.wider ? quickTests() : [];
    return [...tests, ...wider.filter((file) => !tests.includes(file))];
  }

  #plainRun(file: string): Promise<TestRun> {
    const known = this.#plainRuns.get(file);
    if (known !== undefined) return known;
    const scratch = `${this.#folder}/p${this.#plainRuns.size}.tmp`;
    const tree = this.#plain.folder;
    const run = runTest(file, { tree, scratch, timeoutMs: PLAIN_TIMEOUT_MS });
    this.#plainRuns.set(file, run);
    return run;
  }
}

/** The files of unit and simulation tests. */
function quickTests(): string[] {
  const files = ["tests/unit", "tests/sim"].flatMap((folder) =>
    Array.from(Deno.readDirSync(`${ROOT}${folder}`), ({ name }) => `${folder}/${name}`)
  );
  return files.filter((file) => file.endsWith("_test.ts") && !NOT_WIDER.test(file)).sort();
}

function print({ mutant, caught, how, seconds }: Verdict): void {
  const took = `${seconds.toFixed(1)} s`.padStart(7);
  console.log(`${caught ? "caught" : "NOT CAUGHT"}  ${took}  ${mutant.name}: ${how}`);
}

function number(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError("Not a number.");
  return value;
}

/** At least one. */
function count(text: string): number {
  return Math.max(1, number(text));
}

function command(): Command {
  return new Command("test:mutants")
    .description("Plants faults one at a time, and runs the tests that should notice.")
    .argument("[names...]", "mutants; a sample of the day without any")
    .option("--all", "all mutants")
    .option("--sample <n>", `so many mutants; ${SAMPLE} by default`, count)
    .option("--seed <n>", "which sample; the days since 1970 by default", number)
    .option("--wider", "run all unit and simulation tests against what survives its own")
    .option("--jobs <n>", "mutants at once", count, navigator.hardwareConcurrency)
    .option("--output", "print what the tests print")
    .option("--list", "list the mutants and their number by kind and place; run none");
}

function choose(mutants: readonly Mutant[], names: readonly string[], options: Options): Mutant[] {
  if (options.all) return [...mutants];
  if (names.length === 0) {
    const seed = options.seed ?? today();
    console.log(`Sample ${seed}; --seed ${seed} chooses it again`);
    return sampleOf(mutants, options.sample ?? SAMPLE, seed);
  }
  return names.map((name) => {
    const mutant = mutants.find((mutant) => mutant.name === name);
    if (mutant === undefined) throw new TypeError(`There is no mutant ${name}; see --list`);
    return mutant;
  });
}

function list(mutants: readonly Mutant[]): void {
  for (const { name, kind, fault, files, tests } of mutants) {
    console.log(`${name} (${kind}, ${files.join(", ")}): ${fault}\n    ${tests.join(" ")}`);
  }
  console.log(`${mutants.length} mutants:\n\n${tableOf(mutants)}`);
}

async function main(args: readonly string[]): Promise<number> {
  const program = command().parse(args, { from: "user" });
  const options = program.opts<Options>();
  const mutants = allMutants();
  if (options.list) {
    list(mutants);
    return 0;
  }
  const chosen = choose(mutants, program.args, options);
  const folder = Deno.makeTempDirSync({ prefix: "mutants-" });
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    Deno.addSignalListener(signal, () => {
      endTests();
      Deno.removeSync(folder, { recursive: true });
      Deno.exit(130);
    });
  }
  const startMs = performance.now();
  try {
    const verdicts = await new MutationCheck(folder, options).run(chosen);
    const caught = verdicts.filter((verdict) => verdict.caught).length;
    const seconds = ((performance.now() - startMs) / 1000).toFixed(0);
    console.log(`${caught} of ${chosen.length} mutants caught in ${seconds} s`);
    return caught === chosen.length ? 0 : 1;
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.exit(await main(Deno.args));
