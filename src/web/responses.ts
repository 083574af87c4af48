import type { Html } from "./html.ts";

/**
 * What every answer says. No script and no style but those of this page are run, nothing is loaded from
 * elsewhere, no other site may show it in a frame or read it, and it is not kept.
 */
const HEADERS: Readonly<Record<string, string>> = {
  "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; " +
    "img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; " +
    "frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  // Not `no-referrer`: forms would then have no origin.
  "referrer-policy": "same-origin",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-store",
  // A connection has one request: see `front_door.ts`.
  "connection": "close",
};

/** What goes with an answer. */
export interface ResponseOptions {
  readonly status?: number;
  readonly headers?: Readonly<Record<string, string>>;
}

/** An answer with the headers of every answer. */
export function respond(
  body: BodyInit | null,
  { status = 200, headers = {} }: ResponseOptions = {},
): Response {
  return new Response(body, { status, headers: { ...HEADERS, ...headers } });
}

/** A page. */
export function htmlResponse({ text }: Html, { status, headers }: ResponseOptions = {}): Response {
  const type = { "content-type": "text/html; charset=utf-8" };
  return respond(text, { status, headers: { ...type, ...headers } });
}

/** A text, for what no person looks at. */
export function textResponse(text: string, { status, headers }: ResponseOptions = {}): Response {
  const type = { "content-type": "text/plain; charset=utf-8" };
  return respond(`${text}\n`, { status, headers: { ...type, ...headers } });
}

/** Leads to another page of this site. */
export function redirect(to: string, headers: Readonly<Record<string, string>> = {}): Response {
  return respond(null, { status: 303, headers: { location: to, ...headers } });
}
