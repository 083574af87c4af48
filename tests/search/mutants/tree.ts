import type { Mutant } from "./mutant.ts";

const ROOT = new URL("../../../", import.meta.url).pathname;

/** Folders of the checkout that are not copied. Tests only read them. */
const LINKED = [".toolchain", "dist"];

function git(args: readonly string[], cwd: string): string {
  const { success, stdout, stderr } = new Deno.Command("git", {
    args: [...args],
    cwd,
    // A folder of temporary files may lie in a checkout of something else.
    env: { GIT_CEILING_DIRECTORIES: new URL("..", `file://${cwd}/`).pathname },
    stdout: "piped",
    stderr: "piped",
  }).outputSync();
  const decoder = new TextDecoder();
  if (!success) throw new Error(`git ${args[0]}: ${decoder.decode(stderr).trim()}`);
  return decoder.decode(stdout);
}

/** The files of the checkout as they are now, committed or not. */
function filesOfCheckout(): string[] {
  const listed = git(["ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT);
  return listed.split("\0").filter((file) => file !== "");
}

function isThere(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/** A copy of the checkout in a folder of its own, to which a mutant is applied. */
export class Tree {
  readonly folder: string;
  /** What the files of the mutant were. */
  readonly #before = new Map<string, Uint8Array>();

  /** Copies these files of the checkout; all of them by default. */
  constructor(folder: string, files: readonly string[] = filesOfCheckout()) {
    this.folder = folder;
    for (const file of files) {
      const from = `${ROOT}${file}`;
      // A file may be deleted, but not committed yet.
      if (!isThere(from) || !Deno.lstatSync(from).isFile) continue;
      const to = `${folder}/${file}`;
      Deno.mkdirSync(to.slice(0, to.lastIndexOf("/")), { recursive: true });
      Deno.copyFileSync(from, to);
    }
    for (const name of LINKED) {
      if (isThere(`${ROOT}${name}`)) Deno.symlinkSync(`${ROOT}${name}`, `${folder}/${name}`);
    }
  }

  /** Applies a mutant. Throws when its patch does not apply. */
  apply({ name, patch, files }: Mutant): void {
    for (const path of files) this.#before.set(path, Deno.readFileSync(`${this.folder}/${path}`));
    const file = `${this.folder}/${name}.patch`;
    Deno.writeTextFileSync(file, patch);
    git(["apply", "-C1", "--recount", file], this.folder);
    Deno.removeSync(file);
  }

  /** Takes a mutant back. */
  restore(): void {
    for (const [path, bytes] of this.#before) Deno.writeFileSync(`${this.folder}/${path}`, bytes);
    this.#before.clear();
  }

  /** The lines that differ from the checkout in a file, with their signs. */
  changesOf(file: string): string[] {
    const args = ["diff", "--no-index", "--no-color", "-U0", `${ROOT}${file}`, file];
    const { stdout } = new Deno.Command("git", { args, cwd: this.folder }).outputSync();
    return new TextDecoder().decode(stdout).split("\n").filter((line) =>
      /^[-+](?!--|\+\+)/.test(line)
    );
  }
}
