import { plainText } from "../log/plain_text.ts";

/** Markup that needs no escaping any more. `markup` makes it, and `picture`. */
export class Html {
  constructor(readonly text: string) {}
}

/** What may stand in a template: text is escaped, markup is not, null and false are nothing. */
export type Part = Html | string | number | null | false | readonly Part[];

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/**
 * Text for an element or for an attribute in quotes. Control characters, and those that change the
 * direction of text, become visible escapes: names come from images and folders.
 */
export function escapeHtml(text: string): string {
  return plainText(text).replace(/[&<>"']/g, (character) => ESCAPES[character]);
}

function textOf(part: Part): string {
  if (part instanceof Html) return part.text;
  if (part === null || part === false) return "";
  if (typeof part === "string" || typeof part === "number") return escapeHtml(String(part));
  return part.map(textOf).join("");
}

/**
 * A template of markup. Attributes must be in quotes.
 *
 * ```ts
 * import { markup } from "./html.ts";
 *
 * markup`<p title="${"a \"quote\""}">${"<b>"}</p>`.text; // the quote and the tag are escaped
 * ```
 */
export function markup(strings: TemplateStringsArray, ...parts: readonly Part[]): Html {
  let text = strings[0];
  parts.forEach((part, index) => text += textOf(part) + strings[index + 1]);
  return new Html(text);
}

/** A picture of `src/pictures`, which has escaped all names. */
export function picture(svg: string): Html {
  return new Html(svg);
}
