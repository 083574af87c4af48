/**
 * `src/cli/doctor`: `blktap doctor`, which prints what is wrong with this host. The folder parses, prints, and
 * starts the process that opens images. It must not look at anything itself: `src/doctor` does.
 *
 * @module
 */
import { Errno, errnoOf, messageOf } from "../../../ffi/errno.ts";
import { workingFolder } from "../../../ffi/paths.ts";
import { examineHost } from "../../doctor/doctor.ts";
import { examineImage } from "../../doctor/examination.ts";
import { type Finding, isFault, SEVERITIES } from "../../doctor/finding.ts";
import { ownCommand } from "../background.ts";
import { parseOptions } from "../getopt.ts";
import { printErrorLine, printJson, printLine, printText } from "../print.ts";
import { helpText, OPTIONS, SYNOPSIS, wrapped } from "./texts.ts";

/** The argument of the process that opens images. */
const EXAMINER_ARGUMENT = "examine-images";
const WIDTH = 100;

function printFinding({ severity, check, what, where, how }: Finding): void {
  printLine(`${severity.padEnd(8)} ${check}`);
  for (const line of wrapped(what, WIDTH - 2)) printLine(`  ${line}`);
  if (where !== null) printLine(`  at:   ${where}`);
  if (how !== null) printLine(`  mend: ${how}`);
}

function countOf(findings: readonly Finding[], severity: Finding["severity"]): string {
  const count = findings.filter((finding) => finding.severity === severity).length;
  return `${count} ${severity}${count === 1 ? "" : "s"}`;
}

function printFindings(findings: readonly Finding[], all: boolean): void {
  const rank = ({ severity }: Finding): number => -SEVERITIES.indexOf(severity);
  const shown = findings.filter(({ severity }) => all || severity !== "ok");
  for (const finding of shown.toSorted((a, b) => rank(a) - rank(b))) printFinding(finding);
  printLine(
    (["error", "warning", "note"] as const).map((each) => countOf(findings, each)).join(", "),
  );
}

/** Opens the images whose names come by standard input, each a line of JSON, and says what became of them. */
async function examineImages(): Promise<number> {
  const names = (await new Response(Deno.stdin.readable).text()).split("\n").filter(Boolean);
  for (const line of names) {
    const name: unknown = JSON.parse(line);
    if (typeof name !== "string") return Errno.EINVAL;
    printJson(await examineImage(name), { indent: 0 });
  }
  return 0;
}

/**
 * Runs `blktap doctor`.
 *
 * @returns The exit status: 0, 1 when something is wrong, or an error number.
 */
export async function doctorMain(args: readonly string[]): Promise<number> {
  if (args.length === 1 && args[0] === `--${EXAMINER_ARGUMENT}`) return await examineImages();
  const long = OPTIONS.map(({ name }) => name);
  const { options, operands, fault } = parseOptions({ short: "h", long }, args);
  if (fault !== null) {
    printErrorLine(`blktap doctor: ${fault}`);
    printErrorLine(`Usage: ${SYNOPSIS}`);
    return Errno.EINVAL;
  }
  const has = (name: string): boolean => options.some((option) => option.name === name);
  if (has("help") || has("h")) {
    printText(helpText());
    return 0;
  }
  const folders = operands.map((each) =>
    each.startsWith("/") ? each : `${workingFolder()}/${each}`
  );
  const { program, first } = ownCommand("doctor");
  try {
    const command = { program, args: [...first, `--${EXAMINER_ARGUMENT}`] };
    const findings = await examineHost({ folders, command });
    if (has("json")) printJson(findings);
    else printFindings(findings, has("all"));
    return findings.some(isFault) ? 1 : 0;
  } catch (error) {
    printErrorLine(`blktap doctor: ${messageOf(error)}`);
    return errnoOf(error);
  }
}
