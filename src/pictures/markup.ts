/**
 * `src/pictures`: drawings of chains, of what their images hold, and of latencies, as SVG and HTML. They are pure
 * functions from descriptions to text. This folder must not read files, ask tapdisks, or print.
 *
 * This file makes markup. Every value that is put into it is escaped, so that no name of a file can be
 * anything but text.
 *
 * @module
 */
import { plainText } from "../log/plain_text.ts";

/** Markup whose parts are escaped. Only {@linkcode markup} and constant texts make it. */
export class Markup {
  /** @param text Markup, not text: a constant, or made of escaped parts. */
  constructor(readonly text: string) {}
}

/** What may be put into markup: text and numbers, which are escaped, and markup. */
export type MarkupValue = string | number | Markup | readonly Markup[];

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/**
 * Escapes text for the content of elements and for quoted values of attributes, in XML and in HTML.
 * Characters that XML forbids, and those that change how text is shown, become visible escapes.
 */
export function escapeMarkup(text: string): string {
  return plainText(text)
    .replace(/[\ufffe\uffff]/g, (character) => `\\u${character.charCodeAt(0).toString(16)}`)
    .replace(/[&<>"']/g, (character) => ENTITIES[character]);
}

/** At most two decimals, as coordinates need no more. */
function numberText(value: number): string {
  return Number.isFinite(value) ? `${Number(value.toFixed(2))}` : "0";
}

function textOf(value: MarkupValue): string {
  if (typeof value === "string") return escapeMarkup(value);
  if (typeof value === "number") return numberText(value);
  if (value instanceof Markup) return value.text;
  return value.map(({ text }) => text).join("\n");
}

/**
 * Markup from a template, with escaped values.
 *
 * ```ts
 * import { markup } from "./markup.ts";
 *
 * markup`<text x="${4.5}">${"<b>.vhd"}</text>`.text; // <text x="4.5">&lt;b&gt;.vhd</text>
 * ```
 */
export function markup(parts: TemplateStringsArray, ...values: readonly MarkupValue[]): Markup {
  let text = parts[0];
  values.forEach((value, index) => text += textOf(value) + parts[index + 1]);
  return new Markup(text);
}

/** No markup. */
export const NOTHING = new Markup("");
