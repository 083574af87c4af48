import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";

/** Who may use the page, and how. */
export interface AccessRules {
  /** What clients must have; null where none is needed. */
  readonly token: string | null;
  /** Names under which the page may be asked for, beside `localhost` and addresses. */
  readonly names: readonly string[];
}

/** Why a request is refused. */
export interface Refusal {
  readonly status: number;
  /** For people, and how to do it right. */
  readonly reason: string;
}

/**
 * The name of the cookie of those who have shown the token. Browsers send cookies to all ports of a host: the port
 * that the page was asked for at, which may be that of a tunnel, keeps those of two pages apart.
 */
export function cookieName(host: string | null): string {
  return `blktap_web_${/:(\d{1,5})$/.exec(host ?? "")?.[1] ?? "default"}`;
}
/** Bytes of a token that is made here. */
const TOKEN_BYTES = 24;

/** Makes a token. */
export function makeToken(): string {
  return randomBytes(TOKEN_BYTES).toString("base64url");
}

/** Compares in a time that does not depend on where the texts differ. */
export function isSameSecret(given: string, wanted: string): boolean {
  const digest = (text: string): Uint8Array => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(wanted));
}

/** The host of a `Host` header or an origin, without the port; null for what is none. */
export function hostOf(text: string): string | null {
  const [, bracketed, plain] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/@\s]+))(?::\d{1,5})?$/.exec(text) ?? [];
  // A name may end with a dot, which says that it is whole.
  return bracketed ?? plain?.toLowerCase().replace(/\.$/, "") ?? null;
}

/** Whether a text is a name that a host may have. */
export function isHostName(text: string): boolean {
  return text.length <= 253 && /^[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?$/i.test(text);
}

/**
 * Whether a page may be asked for under a host's name. A site that lets its own name lead to this
 * machine (DNS rebinding) would come with that name; it cannot come with an address.
 */
export function isKnownHost(host: string | null, names: readonly string[]): boolean {
  const name = host === null ? null : hostOf(host);
  if (name === null) return false;
  if (name === "localhost" || name.includes(":")) return true;
  return /^\d{1,3}(?:\.\d{1,3}){3}$/.test(name) || names.includes(name);
}

/** The names of a program that listens at `hostname`: those that it was given, and that one if it is a name. */
export function namesAt(hostname: string, names: readonly string[]): readonly string[] {
  return isHostName(hostname) && !isKnownHost(hostname, names)
    ? [...names, hostname.toLowerCase()]
    : names;
}

function cookieOf(headers: Headers): string | null {
  const wanted = cookieName(headers.get("host"));
  for (const pair of (headers.get("cookie") ?? "").split(";")) {
    const [name, value] = pair.trim().split("=");
    if (name === wanted && value !== undefined) return value;
  }
  return null;
}

/** Decides which requests are served. */
export class Access {
  readonly #rules: AccessRules;
  /** Of this process: what it signs is worth nothing to the next one. */
  readonly #secret = randomBytes(32);

  constructor(rules: AccessRules) {
    this.#rules = rules;
  }

  /** Whether clients need a token. */
  get needsToken(): boolean {
    return this.#rules.token !== null;
  }

  #sign(text: string): string {
    return createHmac("sha256", this.#secret).update(text).digest("base64url");
  }

  /** The cookie of a client that has shown the token; it does not contain it. */
  cookie(headers: Headers): string {
    const value = this.#sign(`cookie ${this.#rules.token}`);
    return `${cookieName(headers.get("host"))}=${value}; Path=/; HttpOnly; SameSite=Strict`;
  }

  /** Whether this is the token. */
  isToken(given: string): boolean {
    return this.#rules.token !== null && isSameSecret(given, this.#rules.token);
  }

  /** Whether a request brings the token, or the cookie of one who had it. */
  isAllowed(headers: Headers): boolean {
    if (this.#rules.token === null) return true;
    const [, bearer] = /^Bearer +(\S+)$/i.exec(headers.get("authorization") ?? "") ?? [];
    if (bearer !== undefined) return this.isToken(bearer);
    const cookie = cookieOf(headers);
    return cookie !== null && isSameSecret(cookie, this.#sign(`cookie ${this.#rules.token}`));
  }

  /**
   * What a form carries, so that only forms of this page are taken.
   *
   * @param purpose What the form does, and to what.
   */
  formToken(purpose: string): string {
    return this.#sign(`form ${purpose}`);
  }

  isFormToken(given: string, purpose: string): boolean {
    return isSameSecret(given, this.formToken(purpose));
  }

  /** Refuses what comes by a wrong name, or from another site; null for what may go on. */
  refusalOf({ method, headers }: { method: string; headers: Headers }): Refusal | null {
    const host = headers.get("host");
    if (!isKnownHost(host, this.#rules.names)) {
      const how = "Use localhost or an address, or name it with --name.";
      return { status: 421, reason: `This page is not served under that name. ${how}` };
    }
    if (!["GET", "HEAD", "POST"].includes(method)) {
      return { status: 405, reason: "Only GET, HEAD and POST are served." };
    }
    const site = headers.get("sec-fetch-site");
    const isNavigation = headers.get("sec-fetch-mode") === "navigate" && method !== "POST";
    if (site !== null && !["same-origin", "none"].includes(site) && !isNavigation) {
      return { status: 403, reason: "The request came from another site." };
    }
    if (method === "POST" && !isOwnOrigin(headers.get("origin"), host)) {
      return { status: 403, reason: "The form was sent from another site." };
    }
    return null;
  }
}

/** Whether an `Origin` is that of this page itself. TLS may end in front of this program. */
function isOwnOrigin(origin: string | null, host: string | null): boolean {
  return origin !== null && host !== null &&
    (origin === `http://${host}` || origin === `https://${host}`);
}
