import { peerOf } from "../../../ffi/descriptors.ts";
import type { ClientKind } from "./connection_host.ts";

/** Who a client is, for people: where it comes from, or its process. */
export function clientTitle(fd: number, { entered, resumed }: ClientKind): string {
  const place = entered?.place ?? resumed?.state.place;
  if (place !== undefined) return `the NBD client at ${place.from}`;
  try {
    const { pid } = peerOf(fd);
    if (pid <= 0) return "an NBD client";
    const name = Deno.readTextFileSync(`/proc/${pid}/comm`).trimEnd();
    return `the NBD client ${name} (process ${pid})`;
  } catch {
    return "an NBD client whose process has ended";
  }
}
