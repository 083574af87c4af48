/**
 * Which user a connection over the loopback device comes from, as the kernel's table of connections
 * says it. So the page can be on localhost, where every user of the machine can connect, and still
 * be for the user that serves it, and for root.
 *
 * @module
 */

/** Both ends of a connection. */
export interface ConnectionEnds {
  readonly client: { readonly hostname: string; readonly port: number };
  readonly server: { readonly hostname: string; readonly port: number };
}

/** The 16 bytes of an IPv6 address without a zone; null for what is none. */
function bytesOfV6(text: string): number[] | null {
  const halves = text.split("::");
  if (halves.length > 2) return null;
  const groups = halves.map((half) => half === "" ? [] : half.split(":"));
  const missing = 8 - groups.flat().length;
  if (halves.length === 2 ? missing < 1 : missing !== 0) return null;
  const zeros = new Array<string>(halves.length === 2 ? missing : 0).fill("0");
  const all = [...groups[0], ...zeros, ...(groups[1] ?? [])];
  if (!all.every((group) => /^[0-9a-fA-F]{1,4}$/.test(group))) return null;
  return all.flatMap((group) => [parseInt(group, 16) >> 8, parseInt(group, 16) & 0xff]);
}

function bytesOf(address: string): number[] | null {
  if (address.includes(":")) return bytesOfV6(address);
  const parts = address.split(".").map(Number);
  return parts.length === 4 && parts.every((part) => part >= 0 && part <= 255) ? parts : null;
}

/** An end as the table has it: words of four bytes in the byte order of the machine, and the port. */
export function tableEntry({ hostname, port }: ConnectionEnds["client"]): string | null {
  const bytes = bytesOf(hostname);
  if (bytes === null) return null;
  let text = "";
  for (let word = 0; word < bytes.length; word += 4) {
    for (let i = 3; i >= 0; i--) text += bytes[word + i].toString(16).padStart(2, "0");
  }
  return `${text}:${port.toString(16).padStart(4, "0")}`.toUpperCase();
}

/** TCP_ESTABLISHED. The kernel names no user of a connection that its client has closed, but root. */
const ESTABLISHED = "01";

/** The user of the client's end in a table such as `/proc/net/tcp`; null when it is not there. */
export function userInTable(table: string, { client, server }: ConnectionEnds): number | null {
  const [from, to] = [tableEntry(client), tableEntry(server)];
  if (from === null || to === null) return null;
  for (const line of table.split("\n")) {
    const [, local, remote, state, , , , user] = line.trim().split(/\s+/);
    if (local === from && remote === to) return state === ESTABLISHED ? Number(user) : null;
  }
  return null;
}

/** The user of the client's end of a connection of this machine; null when it is not known. */
export function userOfPeer(ends: ConnectionEnds): number | null {
  const table = ends.client.hostname.includes(":") ? "/proc/net/tcp6" : "/proc/net/tcp";
  try {
    return userInTable(Deno.readTextFileSync(table), ends);
  } catch {
    return null;
  }
}
