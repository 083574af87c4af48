/**
 * `src/cli/quick`: the calls that storage managers make most, a file for each. `scripts/build` bundles each file
 * with all that it needs into one module, and with `plain_command.ts` in place of commander: the runtime takes a
 * third of a millisecond to load a module, and these programs run for some 20 ms of their own. What such a module
 * does not understand it leaves to the whole program. So it must not do anything before it has understood the
 * command line, and must not say what is wrong with one.
 *
 * @module
 */

/** Runs one subcommand. Returns the exit status; null when nothing was done, and the whole program has to run. */
export type Quick = (args: readonly string[]) => Promise<number | null>;
