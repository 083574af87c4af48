import { createHash } from "node:crypto";
import { systemError } from "../../ffi/errno.ts";
import { PICTURE_STYLE } from "../pictures/style.ts";
import { respond } from "./responses.ts";

/** A file of the page. */
export interface Asset {
  /** Its name has a hash of its content, so that browsers can keep it. */
  readonly name: string;
  readonly type: string;
  readonly text: string;
}

/** The script and the style of all pages. */
export interface Assets {
  readonly script: Asset;
  readonly style: Asset;
}

function asset(stem: string, suffix: string, type: string, text: string): Asset {
  const hash = createHash("sha256").update(text).digest("hex").slice(0, 16);
  return { name: `${stem}-${hash}.${suffix}`, type: `${type}; charset=utf-8`, text };
}

/** Makes assets of their texts. */
export function assetsOf({ script, style }: { script: string; style: string }): Assets {
  return {
    script: asset("page", "js", "text/javascript", script),
    style: asset("page", "css", "text/css", `${style}\n${PICTURE_STYLE}`),
  };
}

/** Where `scripts/build` puts them: beside the program's bundle, and for the sources into `dist`. */
const FOLDER = Deno.build.standalone ? "./web/" : "../../dist/web/";

/** Reads them. Throws `SystemError`. */
export function readAssets(): Assets {
  const read = (name: string): string => {
    const url = new URL(`${FOLDER}${name}`, import.meta.url);
    try {
      return Deno.readTextFileSync(url);
    } catch (error) {
      throw systemError(error, `Cannot read ${url.pathname}, which scripts/build makes`);
    }
  };
  return assetsOf({ script: read("page.js"), style: read("page.css") });
}

/** The answer with a file; null for another name. */
export function assetResponse(assets: Assets, name: string): Response | null {
  const found = [assets.script, assets.style].find((each) => each.name === name);
  if (found === undefined) return null;
  return respond(found.text, {
    headers: {
      "content-type": found.type,
      "cache-control": "private, max-age=31536000, immutable",
    },
  });
}
