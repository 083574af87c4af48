/**
 * The part of commander that plain command lines need. `scripts/build` puts it in commander's place where a
 * subcommand has a file of its own (`quick/quick.ts`): commander is two thirds of what such a call would load.
 *
 * It takes lines of known options, each by its whole name and given once, with the value as the next argument.
 * For all else, such as help, `-m5`, or a value that is refused, it throws {@linkcode NotPlain}; then commander
 * reads the line. `tests/unit/plain_command_test.ts` compares the two.
 *
 * @module
 */

/** A command line that commander has to read. */
export class NotPlain extends Error {}

/** The error of a parser that refuses a value. The class is commander's where commander is loaded. */
export class InvalidArgumentError extends Error {}

/** What commander throws to end the program; nothing here does. */
export class CommanderError extends Error {
  readonly exitCode: number = 0;
}

type Parser = (text: string, before: unknown) => unknown;

/** An option: commander's class of that name. */
export class Option {
  readonly #flags: readonly string[];
  /** Whether a value follows. */
  readonly takesValue: boolean;
  /** The property that holds the value. */
  readonly property: string;
  /** The value without the option. */
  preset: unknown;
  /** The value of an option that takes none. */
  readonly flagValue: boolean;
  mandatory = false;
  #parse: Parser | undefined;
  #choices: readonly string[] | undefined;

  constructor(flags: string, _text?: string) {
    const [, names, value] = /^([^<[]+?)(?: ([<[].*))?$/.exec(flags) ?? [];
    if (names === undefined || value?.startsWith("[") || value?.includes("...")) {
      throw new NotPlain(flags);
    }
    this.#flags = names.split(", ");
    this.takesValue = value !== undefined;
    const long = this.#flags[this.#flags.length - 1].replace(/^--/, "");
    this.flagValue = !long.startsWith("no-");
    this.preset = this.flagValue ? undefined : true;
    this.property = long.replace(/^no-/, "").replace(/-(.)/g, (_, first) => first.toUpperCase());
  }

  choices(values: readonly string[]): this {
    this.#choices = values;
    return this;
  }

  default(value: unknown): this {
    this.preset = value;
    return this;
  }

  argParser(parse: Parser): this {
    this.#parse = parse;
    return this;
  }

  hideHelp(): this {
    return this;
  }

  is(word: string): boolean {
    return this.#flags.includes(word);
  }

  /** The value that a text stands for. */
  parsed(text: string): unknown {
    if (this.#choices?.includes(text) === false) throw new NotPlain(text);
    try {
      return this.#parse === undefined ? text : this.#parse(text, this.preset);
    } catch {
      // Commander says what is wrong.
      throw new NotPlain(text);
    }
  }
}

type Action = (values: Record<string, unknown>) => unknown;

/** A command: commander's class of that name. */
export class Command {
  readonly #options: Option[] = [];
  #action: Action | undefined;

  constructor(_name?: string) {}

  description = (_text: string): this => this;
  helpOption = (_flags: string, _text: string): this => this;
  allowExcessArguments = (_allow: boolean): this => this;
  showHelpAfterError = (): this => this;
  configureOutput = (_output: unknown): this => this;
  exitOverride = (): this => this;
  addHelpText = (_where: string, _text: string): this => this;

  option(flags: string, text: string, parse?: Parser): this {
    return this.addOption(withParser(new Option(flags, text), parse));
  }

  requiredOption(flags: string, text: string, parse?: Parser): this {
    const option = withParser(new Option(flags, text), parse);
    option.mandatory = true;
    return this.addOption(option);
  }

  addOption(option: Option): this {
    this.#options.push(option);
    return this;
  }

  action(run: Action): this {
    this.#action = run;
    return this;
  }

  /** The values of the options. Throws `NotPlain`. */
  valuesOf(args: readonly string[]): Record<string, unknown> {
    const values: Record<string, unknown> = {};
    for (const { property, preset } of this.#options) {
      if (preset !== undefined) values[property] = preset;
    }
    const given = new Set<Option>();
    for (let at = 0; at < args.length; at++) {
      const option = this.#options.find((known) => known.is(args[at]));
      if (option === undefined || given.has(option)) throw new NotPlain(args[at]);
      given.add(option);
      if (!option.takesValue) values[option.property] = option.flagValue;
      else if (++at < args.length) values[option.property] = option.parsed(args[at]);
      else throw new NotPlain(args[at - 1]);
    }
    if (this.#options.some((option) => option.mandatory && !given.has(option))) {
      throw new NotPlain("A required option is missing");
    }
    return values;
  }

  async parseAsync(args: readonly string[], _from: unknown): Promise<this> {
    const values = this.valuesOf(args);
    if (this.#action === undefined) throw new NotPlain("A command without an action");
    await this.#action(values);
    return this;
  }
}

function withParser(option: Option, parse?: Parser): Option {
  return parse === undefined ? option : option.argParser(parse);
}
