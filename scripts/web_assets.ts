/**
 * Writes the script and the style of the page of `blktap web`, with uPlot in both:
 *
 *     deno run -A scripts/web_assets.ts FOLDER
 *
 * @module
 */

const ROOT = new URL("../", import.meta.url).pathname;
const UPLOT_STYLE = "uplot/dist/uPlot.min.css";

async function bundle(output: string): Promise<void> {
  const { success } = await new Deno.Command(Deno.execPath(), {
    args: [
      "bundle",
      "--quiet",
      "--frozen",
      "--minify",
      "--platform=browser",
      `--output=${output}`,
      "src/web/client/main.ts",
    ],
    cwd: ROOT,
  }).spawn().status;
  if (!success) throw new Error("Cannot bundle the script of the page");
}

async function main(folder: string): Promise<void> {
  Deno.mkdirSync(folder, { recursive: true });
  await bundle(`${folder}/page.js`);
  const theirs = Deno.readTextFileSync(new URL(import.meta.resolve(UPLOT_STYLE)));
  const ours = Deno.readTextFileSync(`${ROOT}src/web/style.css`);
  Deno.writeTextFileSync(`${folder}/page.css`, `${theirs}\n${ours}`);
}

const [folder] = Deno.args;
if (folder === undefined) throw new Error("Usage: web_assets.ts FOLDER");
await main(folder);
