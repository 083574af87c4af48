import { errnoName, messageOf, systemError } from "../../../ffi/errno.ts";
import { canonicalPath, fileNameOf } from "../../files/paths.ts";
import { ScanError, type ScannedImage } from "../../vhd/check/scan.ts";
import { osStorage } from "../../files/storage.ts";
import { jsonText } from "../json.ts";
import {
  type CommandCall,
  expectedErrno,
  type Subcommand,
  UsageError,
} from "../subcommands/command.ts";
import { arrangeImages, type ListedImage } from "./scan_order.ts";
import { fileTargets, type ScanTarget, volumeTargets } from "./scan_targets.ts";

/** `vhd-util scan`. */
export const scanCommand: Subcommand = {
  name: "scan",
  summary: "List images, one a line",
  synopsis: "[-m PATTERN] [-l GROUP] [-fcpavM] [--json] [FILE…]",
  usage: "usage: [OPTIONS] FILES\n" +
    "options: [-m match filter] [-f fast] [-c continue on failure] " +
    "[-l LVM volume] [-p pretty print] [-a scan parents] " +
    "[-v verbose] [-h help] [-M show markers]",
  options: [
    { name: "m", value: "PATTERN", text: "scan files such as '/images/*.vhd'; with -l: volumes" },
    { name: "f", text: "read only footers and headers; print stored parent names" },
    { name: "c", text: "go on after an error, and end with status 0" },
    { name: "l", value: "GROUP", text: "scan the logical volumes of this group, active or not" },
    { name: "p", text: "indent children under their parents" },
    { name: "a", text: "scan all ancestors too" },
    { name: "v", text: "print full paths" },
    { name: "M", text: "print the marker and the key hash too" },
    { name: "json", text: "print JSON: an array with an object for each image" },
  ],
  followsParents: true,
  example: `
$ vhd-util scan -f -m '*.vhd'
vhd=disk.vhd capacity=10737418240 size=45568 hidden=0 parent=none
vhd=today.vhd capacity=10737418240 size=46592 hidden=0 parent=disk.vhd`,
  operands: true,

  run(call: CommandCall): number {
    if (call.value("m") === null && call.operands.length === 0) throw new UsageError(null);
    const scan = new Scan(call);
    let status: number;
    try {
      status = scan.run();
    } catch (error) {
      status = expectedErrno(error);
      call.output.printError(messageOf(error));
      call.output.printError(`scan failed: ${-status}. Check syslog for details`);
      return status;
    }
    scan.printGathered();
    return call.has("c") ? 0 : status;
  },
};

/** An image that could not be scanned. */
interface FailedImage {
  readonly name: string;
  readonly errno: number;
  /** What was being done. */
  readonly doing: string;
  readonly detail: string;
}

class Scan {
  readonly #call: CommandCall;
  readonly #pretty: boolean;
  readonly #json: boolean;
  /** Images that are printed at the end: indented, or as JSON. */
  readonly #gathered: ListedImage[] = [];
  readonly #failed: FailedImage[] = [];
  #status = 0;

  constructor(call: CommandCall) {
    this.#call = call;
    this.#pretty = call.has("p");
    this.#json = call.has("json");
  }

  /** Scans everything; returns the first error number, 0 without one. */
  run(): number {
    const targets = this.#targets();
    const seen = new Set(targets.map(({ name }) => fileNameOf(name)));
    if (this.#stopped()) return this.#status;
    // The loop appends parents to the list that it walks.
    for (const target of targets) {
      const scanned = this.#scanOne(target);
      if (scanned !== null && this.#call.has("a")) {
        this.#addParent(target, { scanned, seen, targets });
      }
      if (this.#stopped()) break;
    }
    return this.#status;
  }

  #stopped(): boolean {
    return this.#status !== 0 && !this.#call.has("c");
  }

  #targets(): ScanTarget[] {
    const call = this.#call;
    const pattern = call.value("m");
    const names = call.operands;
    const fault = (name: string, error: unknown): void => {
      if (!this.#stopped()) {
        this.#fail(
          name,
          new ScanError("failure scanning target", systemError(error, "Cannot scan")),
        );
      }
    };
    const group = call.value("l");
    if (group !== null) {
      const patterns = pattern === null ? names : [pattern, ...names];
      return volumeTargets(group, { patterns, fault });
    }
    const options = { fast: call.has("f") && !this.#pretty, markers: call.has("M") };
    return fileTargets({ pattern, names, options, fault });
  }

  #scanOne(target: ScanTarget): ScannedImage | null {
    const { sizeBytes } = target;
    let { name } = target;
    try {
      if (this.#pretty && this.#call.value("l") === null) name = canonicalPath(osStorage, name);
      const facts = target.scan();
      this.#list({ name, sizeBytes, facts });
      return facts;
    } catch (error) {
      this.#fail(name, error);
      return null;
    }
  }

  #addParent(
    target: ScanTarget,
    { scanned, seen, targets }: {
      scanned: ScannedImage;
      seen: Set<string>;
      targets: ScanTarget[];
    },
  ): void {
    if (scanned.parent === null || seen.has(fileNameOf(scanned.parent))) return;
    seen.add(fileNameOf(scanned.parent));
    try {
      targets.push(target.parentTarget(scanned));
    } catch (error) {
      // The image itself was scanned, so a missing parent is reported but is not a failure.
      const status = this.#status;
      this.#fail(
        scanned.parent,
        new ScanError("failure scanning target", systemError(error, "Cannot scan")),
      );
      this.#status = status;
    }
  }

  #list(image: ListedImage): void {
    if (this.#pretty || this.#json) this.#gathered.push(image);
    else this.#print(image, { depth: 0, found: true });
  }

  #fail(name: string, error: unknown): void {
    const errno = error instanceof ScanError ? error.errno : expectedErrno(error);
    if (this.#status === 0) this.#status = errno;
    const doing = error instanceof ScanError ? error.doing : "failure scanning target";
    const detail = messageOf(error);
    if (this.#json) this.#failed.push({ name, errno, doing, detail });
    else {
      const { output } = this.#call;
      output.printLine(`vhd=${name} scan-error=${-errno} error-message='${doing}'`);
      if (this.#call.has("v")) output.printError(detail);
    }
  }

  /** Prints the images that were gathered. */
  printGathered(): void {
    if (this.#json) return this.#printJson();
    for (const { image, depth, found } of arrangeImages(this.#gathered)) {
      this.#print(image, { depth, found });
    }
  }

  #print(
    { name, sizeBytes, facts }: ListedImage,
    { depth, found }: { depth: number; found: boolean },
  ): void {
    const verbose = this.#call.has("v");
    const shown = (path: string): string => verbose ? path : fileNameOf(path);
    const parent = facts.parent === null ? "none" : shown(facts.parent);
    const markers = this.#call.has("M")
      ? `marker=${facts.marker} keyhash=${keyhashText(facts)} `
      : "";
    this.#call.output.printLine(
      `${" ".repeat(depth * 3)}vhd=${shown(name)} capacity=${facts.capacityBytes} ` +
        `size=${sizeBytes} hidden=${facts.hidden} ${markers}parent=${parent}` +
        `${facts.parent !== null && !found ? " (not found in scan)" : ""}`,
    );
  }

  #printJson(): void {
    const images = this.#gathered.map(({ name, sizeBytes, facts }) => ({
      vhd: name,
      capacity: facts.capacityBytes,
      size: sizeBytes,
      hidden: facts.hidden !== 0,
      parent: facts.parent,
      ...(this.#call.has("M") ? { marker: facts.marker, keyhash: keyhashText(facts) || null } : {}),
    }));
    const failed = this.#failed.map(({ name, errno, doing, detail }) => ({
      vhd: name,
      error: { errno, code: errnoName(errno), doing, message: detail },
    }));
    this.#call.output.print(jsonText([...images, ...failed]));
  }
}

function keyhashText({ keyhash }: ScannedImage): string {
  if (keyhash === null || keyhash.cookie === 0) return "";
  return Array.from(keyhash.hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
