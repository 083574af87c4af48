/** td-util is killed at random moments: the disk reads the same, its images are sound, and the command can be repeated. */
import assert from "node:assert/strict";
import { binaryPath, needs, run, runOk, withTempDir } from "../support/tools.ts";

const { ignore, suffix } = needs("dist/td-util", "qemu-img", "qemu-io");
const MIB = 1 << 20;
const KILLS = 5;
const TD_UTIL = binaryPath("td-util");

async function tdUtil(...args: string[]): Promise<string> {
  return await runOk(TD_UTIL, args);
}

/** A disk with data, zeros that take room, and holes; and one above it with other data. */
async function makeChain(folder: string, below: string, above: string): Promise<void> {
  const content = new Uint8Array(48 * MIB);
  for (let i = 0; i < 32 * MIB; i += 512) content[i] = 1 + i / 512 % 251;
  Deno.writeFileSync(`${folder}/raw`, content);
  await tdUtil("convert", `raw:${folder}/raw`, below);
  for (let i = 8 * MIB; i < 24 * MIB; i += 512) content[i] = 0;
  for (let i = 40 * MIB; i < 44 * MIB; i += 512) content[i] = 7;
  Deno.writeFileSync(`${folder}/raw`, content);
  await tdUtil("snapshot", below, above);
  const writes = Array.from({ length: 44 }, (_, i) => ["-c", `write -P ${i} ${i}M 1M`]).flat();
  const [type, path] = above.split(/:(.*)/s);
  await runOk("qemu-io", ["-f", type, ...writes, path]);
}

interface Killed {
  readonly name: string;
  readonly below: string;
  readonly args: (folder: string) => string[];
  /** The images that must be sound at every moment. */
  readonly images: readonly string[];
}

const KILLED: readonly Killed[] = [
  ...["qcow2", "vhd", "raw"].map((type): Killed => ({
    name: `commit into ${type}`,
    below: `${type}:below`,
    args: (folder) => ["commit", `qcow2:${folder}/above`],
    images: ["qcow2:above", ...(type === "raw" ? [] : [`${type}:below`])],
  })),
  {
    name: "compact",
    below: "raw:below",
    args: (folder) => ["compact", `qcow2:${folder}/above`],
    images: ["qcow2:above"],
  },
  {
    name: "rebase",
    below: "qcow2:below",
    args: (folder) => ["rebase", `qcow2:${folder}/above`, `raw:${folder}/raw`],
    images: ["qcow2:above"],
  },
  {
    name: "compact of what is below",
    below: "vhd:below",
    args: (folder) => ["compact", `vhd:${folder}/below`],
    images: ["qcow2:above", "vhd:below"],
  },
];

/** Starts a command, and kills it after some time. False when it had ended. */
async function isKilled(args: string[], afterMs: number): Promise<boolean> {
  const child = new Deno.Command(TD_UTIL, { args, stdout: "null", stderr: "null" }).spawn();
  const timer = setTimeout(() => {
    try {
      child.kill("SIGKILL");
    } catch (error) {
      // It has ended, and its status is about to come.
      if (!(error instanceof TypeError)) throw error;
    }
  }, afterMs);
  const { signal } = await child.status;
  clearTimeout(timer);
  return signal === "SIGKILL";
}

function inFolder(folder: string, image: string): string {
  return image.replace(":", `:${folder}/`);
}

/**
 * Checks an image. A VHD grows over the footer at its end, which is written again when it is closed: until
 * then the copy at its start counts, and a repair brings the footer back.
 */
async function checkAfterKill(image: string): Promise<void> {
  const { code, stdout } = await run(TD_UTIL, ["check", image]);
  if (code === 0) return;
  const errors = stdout.split("\n").filter((line) => line.startsWith("error: "));
  assert.deepEqual(errors.filter((error) => !error.includes("primary footer invalid")), [], stdout);
  assert.ok(image.startsWith("vhd:") && errors.length > 0, stdout);
  await tdUtil("check", "--repair", image);
}

for (const { name, below, args, images } of KILLED) {
  Deno.test({
    name: `td-util that is killed: ${name}${suffix}`,
    ignore,
    fn: () =>
      withTempDir(async (folder) => {
        const above = `qcow2:${folder}/above`;
        await makeChain(folder, inFolder(folder, below), above);
        await runOk("qemu-img", ["convert", "-O", "raw", `${folder}/above`, `${folder}/kept`]);
        const look = async (mayLeak: boolean): Promise<void> => {
          for (const image of images) await checkAfterKill(inFolder(folder, image));
          const { code, stderr } = await run("qemu-img", ["check", `${folder}/above`]);
          assert.ok(code === 0 || (code === 3 && mayLeak), stderr);
          await tdUtil("diff", above, `raw:${folder}/kept`);
        };
        const start = performance.now();
        await tdUtil("info", above);
        const startMs = performance.now() - start;
        for (let i = 0; i < KILLS; i++) {
          // Random moments: no run depends on which of them it is.
          if (!await isKilled(args(folder), startMs + Math.random() * 150)) break;
          await look(true);
        }
        await tdUtil(...args(folder));
        await look(false);
      }),
  });
}
