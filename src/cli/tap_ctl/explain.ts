import type { Command } from "commander";
import type { DeviceAddress } from "../../control/client/client.ts";
import { deviceFacts } from "../../control/client/questions.ts";
import type { ToldFacts } from "../../control/protocol/explain.ts";
import { printJson, printLine } from "../print.ts";
import { type Finding, findings, healthFinding, roomWanted } from "../../observe/findings.ts";
import { Rooms } from "../../observe/rooms.ts";
import { deviceOptions } from "./options.ts";

interface ExplainChoices extends DeviceAddress {
  readonly json?: boolean;
}

/** The time between two looks at a disk that waits for nothing. */
const LOOK_MS = 1_000;

const NOTES = `
Says in sentences what the requests of a disk wait for: a full filesystem, a server, a slow or hung disk of
one of its images, a pause, a rate limit, a client that does not read. What tapdisk knows is told, and not
guessed. A disk that waits for nothing is looked at for a second, and its figures are printed.

The findings of --json have a kind, what is so, and what to do: no-image, fault, paused, pausing, not-resumed,
reopening, full, failing, server-lost, server-silent, hung, limit, share, client, slots, room, slow, mirror,
busy, idle. In the facts, times are milliseconds before now.`;

/** `tap-ctl explain`. */
export function defineExplain(command: Command): Command {
  return deviceOptions(command)
    .option("--json", "print JSON: findings, and the facts behind them")
    .addHelpText("after", NOTES)
    .action(explain);
}

async function findingsOf(facts: ToldFacts): Promise<Finding[]> {
  const file = roomWanted(facts);
  return findings(facts, file === null ? null : await new Rooms().of(file));
}

async function explain({ json = false, ...device }: ExplainChoices): Promise<void> {
  let facts = deviceFacts(device);
  let found = await findingsOf(facts);
  if (found.length === 0) {
    const before = facts;
    const startMs = performance.now();
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    facts = deviceFacts(device);
    found = await findingsOf(facts);
    if (found.length === 0) found = [healthFinding(before, facts, performance.now() - startMs)];
  }
  if (json) return printJson({ findings: found, facts });
  const { minor, name } = facts;
  printLine(`Minor ${minor}${name === "" ? "" : `, ${name}`}:`);
  for (const finding of found) printFinding(finding);
}

function printFinding({ says, advice }: Finding): void {
  printLine(`- ${says}`);
  if (advice !== "") printLine(`  ${advice}`);
}
